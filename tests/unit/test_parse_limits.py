from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse.limits import (
    ULIMITS,
    check_resources,
    format_device,
    format_device_rule,
    format_ulimit,
    parse_cpuset,
    parse_device,
    parse_device_rule,
    parse_resources,
    parse_rootfs,
    parse_sysctls,
    parse_ulimit,
    parse_ulimits,
)
from netbox.spec import Device, DeviceRule, Resources, Ulimit


def one_line(error: UsageError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


def test_resources() -> None:
    found = parse_resources(
        memory="64m", memory_swap="-1", cpus="1.5", cpu_shares="512", cpuset_cpus="0-1", pids_limit="100", blkio_weight=500
    )
    assert found == Resources(64 << 20, -1, 1.5, 512, "0-1", 100, 500)
    assert parse_resources() == Resources()


def test_no_limit() -> None:
    assert parse_resources(pids_limit=-1).pids_limit == -1
    assert parse_resources(memory="0", cpus="0", lift=True) == Resources(memory=0, cpus=0.0)


@pytest.mark.parametrize(
    "values",
    [
        {"memory": "0"},
        {"memory": "5m"},
        {"memory": "-1"},
        {"memory_swap": "-2"},
        {"memory_swap": "1k"},
        {"cpus": "0"},
        {"cpu_shares": "1"},
        {"cpu_shares": "262145"},
        {"cpu_shares": "many"},
        {"cpuset_cpus": ""},
        {"pids_limit": "0"},
        {"pids_limit": "-2"},
        {"blkio_weight": "9"},
        {"blkio_weight": "1001"},
        {"blkio_weight": True},
    ],
)
def test_bad_resources(values: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_resources(**values)  # type: ignore[arg-type]
    assert str(caught.value).startswith(next(iter(values)).replace("_", "-"))


def test_memory_swap_counts_memory_too() -> None:
    check_resources(Resources(memory=100, memory_swap=100))
    check_resources(Resources(memory=100, memory_swap=-1))
    with pytest.raises(UsageError, match="memory-swap needs memory"):
        check_resources(Resources(memory_swap=100))
    with pytest.raises(UsageError, match="is below memory"):
        check_resources(Resources(memory=101, memory_swap=100))


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1 2", "9999", "0-9999", "1,2,"])
def test_bad_cpusets(text: str) -> None:
    with pytest.raises(UsageError, match="^cpuset-cpus "):
        parse_cpuset(text)


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 4000)), min_size=1))
def test_cpusets(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{start}-{start + length}" if length else str(start) for start, length in ranges)
    assert parse_cpuset(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nofile=1024:2048", Ulimit("nofile", 1024, 2048)),
        ("nofile=1024", Ulimit("nofile", 1024, 1024)),
        ("core=-1", Ulimit("core", -1, -1)),
        ("core=unlimited", Ulimit("core", -1, -1)),
        ("core=0:-1", Ulimit("core", 0, -1)),
    ],
)
def test_ulimits(text: str, expected: Ulimit) -> None:
    assert parse_ulimit(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nofile", "unreadable"),
        ("nofile=", "unreadable"),
        ("nofile=1:2:3", "unreadable"),
        ("files=1", "no such limit; use one of as, core"),
        ("nofile=2048:1024", "the soft limit 2048 is above the hard limit 1024"),
        ("nofile=-1:1024", "the soft limit -1 is above the hard limit 1024"),
        ("nofile=-2", "out of range"),
        ("nofile=99999999999999999999", "out of range"),
        ("nofile=" + "9" * 5000, "out of range"),
    ],
)
def test_bad_ulimits(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ulimit(text)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_last_ulimit_of_a_name_wins() -> None:
    assert parse_ulimits(["core=1", "nofile=2", "core=3"]) == (Ulimit("core", 3, 3), Ulimit("nofile", 2, 2))
    assert parse_ulimits({"core": 1, "nofile": (2, 3)}) == (Ulimit("core", 1, 1), Ulimit("nofile", 2, 3))


limits = st.integers(-1, (1 << 63) - 1)


@given(st.sampled_from(ULIMITS), limits, limits)
def test_ulimit_round_trip(name: str, soft: int, hard: int) -> None:
    limit = Ulimit(name, soft, hard)
    if hard != -1 and (soft == -1 or soft > hard):
        with pytest.raises(UsageError):
            parse_ulimit(format_ulimit(limit))
    else:
        assert parse_ulimit(format_ulimit(limit)) == limit


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["net.ipv4.ip_forward=1"], (("net.ipv4.ip_forward", "1"),)),
        (["net/ipv4/ip_forward=1"], (("net.ipv4.ip_forward", "1"),)),
        (["net.ipv4.conf.eth0/1.forwarding=1"], (("net.ipv4.conf.eth0/1.forwarding", "1"),)),
        ({"kernel.sem": "250 32000 100 128"}, (("kernel.sem", "250 32000 100 128"),)),
        (["a.b=1", "a.b=2"], (("a.b", "2"),)),
    ],
)
def test_sysctls(values: list[str], expected: tuple[tuple[str, str], ...]) -> None:
    assert parse_sysctls(values) == expected


@pytest.mark.parametrize(
    "text", ["", "a", "a=1", "net.x", "net.x=", "net..x=1", "net.x.=1", "../x=1", "net/../x=1", "net.x=1\n2", "Net x=1"]
)
def test_bad_sysctls(text: str) -> None:
    with pytest.raises(UsageError, match="^sysctl "):
        parse_sysctls([text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/fuse", Device("/dev/fuse", "/dev/fuse")),
        ("/dev/fuse:/dev/x", Device("/dev/fuse", "/dev/x")),
        ("/dev/fuse:/dev/x:r", Device("/dev/fuse", "/dev/x", "r")),
        ("/dev/fuse:mr", Device("/dev/fuse", "/dev/fuse", "rm")),
    ],
)
def test_devices(text: str, expected: Device) -> None:
    assert parse_device(text) == expected


@pytest.mark.parametrize(
    "text", ["", "fuse", "/dev/a:/dev/b:x", "/dev/a:/dev/b:rr", "/dev/a:b/c:r", "/dev/a:/b:/c:r", "/dev/a:", "/dev/a:/"]
)
def test_bad_devices(text: str) -> None:
    with pytest.raises(UsageError, match="^device "):
        parse_device(text)


accesses = st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"])


@given(st.sampled_from("abc"), st.integers(-1, (1 << 20) - 1), st.integers(-1, (1 << 20) - 1), accesses)
def test_device_rule_round_trip(kind: str, major: int, minor: int, access: str) -> None:
    rule = DeviceRule(kind, major, minor, access)
    assert parse_device_rule(format_device_rule(rule)) == rule
    assert parse_device_rule(rule) == rule


@given(st.text(alphabet="abcxyz0", min_size=1), accesses)
def test_device_round_trip(name: str, access: str) -> None:
    device = Device(f"/dev/{name}", f"/dev/target/{name}", access)
    assert parse_device(format_device(device)) == device


@pytest.mark.parametrize("text", ["", "c 1:3", "d 1:3 r", "c 1 r", "c 1:x r", "c 1:3 x", "c 1:3 rr", "c  1:3 r", "c 9999999:1 r"])
def test_bad_device_rules(text: str) -> None:
    with pytest.raises(UsageError):
        parse_device_rule(text)


def test_rootfs_is_made_absolute_and_never_the_machine_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    assert parse_rootfs("box") == "/tmp/box"
    for text in ("/", "//", "/..", ".."):
        with pytest.raises(UsageError, match="this machine's own files"):
            parse_rootfs(text)


@given(
    st.one_of(st.text(), st.text(alphabet="abc 0123456789:*-,=/.rwm")),
    st.sampled_from([parse_cpuset, parse_ulimit, parse_device, parse_device_rule, lambda text: parse_sysctls([text])]),
)
def test_random_text_gives_usage_errors_only(text: str, parse: object) -> None:
    try:
        parse(text)  # type: ignore[operator]
    except UsageError as error:
        one_line(error)
