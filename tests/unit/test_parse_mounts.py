from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse.mounts import (
    PROPAGATIONS,
    check_targets,
    format_mount,
    format_volume,
    parse_mount,
    parse_target,
    parse_tmpfs,
    parse_volume,
)
from netbox.spec import BindMount, TmpfsMount


def one_line(error: UsageError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", BindMount("/a", "/b", create_source=True)),
        ("/a:/b:ro", BindMount("/a", "/b", True, create_source=True)),
        ("/a:/b:rw", BindMount("/a", "/b", create_source=True)),
        ("/a/:/b//c/", BindMount("/a", "/b/c", create_source=True)),
        ("//a:///b", BindMount("/a", "/b", create_source=True)),
        ("/a:/b:ro,rslave", BindMount("/a", "/b", True, "rslave", create_source=True)),
        ("/sys:/sys", BindMount("/sys", "/sys", create_source=True)),
        ("/proc:/host/proc", BindMount("/proc", "/host/proc", create_source=True)),
    ],
)
def test_volumes(text: str, expected: BindMount) -> None:
    assert parse_volume(text) == expected


def test_a_relative_source_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_volume("./data:/data").source == f"{tmp_path}/data"
    assert parse_volume("..:/data").source == os.path.dirname(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "anonymous volumes are not offered"),
        ("/data", "anonymous volumes are not offered"),
        ("data:/data", "named volumes are not offered; for a directory write ./data:/data"),
        (":/data", "the source is empty"),
        ("/a:b", "must be an absolute path"),
        ("/a:", "must be an absolute path"),
        ("/a:/", "the root cannot be mounted over"),
        ("/a:/b/..", "'..' in a target"),
        ("/a:/b/../../etc", "'..' in a target"),
        ("/a:/proc", "/proc belongs to the kernel"),
        ("/a:/proc/sys", "/proc belongs to the kernel"),
        ("/a:/b:xx", "'xx' is not an option"),
        ("/a:/b:", "'' is not an option"),
        ("/a:/b:ro,rw", "access is given twice"),
        ("/a:/b:z", "the option 'z' is not offered"),
        ("/a:/b:ro:x", "too many colons"),
        ("/a:/" + "x" * 5000, "longer than the 4095 bytes"),
        ("/a\0:/b", "NUL"),
    ],
)
def test_bad_volumes(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_volume(text)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type=bind,source=/a,target=/b", BindMount("/a", "/b")),
        ("type=bind,src=/a,dst=/b,readonly", BindMount("/a", "/b", True)),
        ("type=bind,src=/a,destination=/b,ro=true", BindMount("/a", "/b", True)),
        ("type=bind,src=/a,dst=/b,readonly=false", BindMount("/a", "/b")),
        ("type=bind,src=/a,dst=/b,bind-propagation=shared", BindMount("/a", "/b", False, "shared")),
        ("type=bind,src=/a,dst=/b,bind-nonrecursive", BindMount("/a", "/b", recursive=False)),
        ("type=bind,src=/a,dst=/b,bind-recursive=disabled", BindMount("/a", "/b", recursive=False)),
        ('type=bind,"src=/a,b",dst=/b', BindMount("/a,b", "/b")),
        ("type=bind,src=/a:b,dst=/b", BindMount("/a:b", "/b")),
        ("type=tmpfs,target=/t", TmpfsMount("/t")),
        ("type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=700", TmpfsMount("/t", 64 << 20, 0o700)),
        ("type=tmpfs,dst=/t,ro", TmpfsMount("/t", None, 0o1777, ("nosuid", "nodev", "noexec", "ro"))),
    ],
)
def test_mounts(text: str, expected: BindMount | TmpfsMount) -> None:
    assert parse_mount(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no type"),
        ("source=/a,target=/b", "no type"),
        ("type=volume,source=a,target=/b", "type 'volume' are not offered"),
        ("type=bind,target=/b", "no source"),
        ("type=bind,source=/a", "no target"),
        ("type=bind,source=,target=/b", "no source"),
        ("type=bind,source=/a,target=/b,foo=1", "'foo' is not a key of type=bind"),
        ("type=bind,source=/a,target=/b,tmpfs-size=1m", "'tmpfs-size' is not a key of type=bind"),
        ("type=bind,source=/a,src=/c,target=/b", "'source' is given twice"),
        ("type=bind,source,target=/b", "'source' has no value"),
        ("type=bind,source=/a,target=/b,readonly=maybe", "neither true nor false"),
        ("type=bind,source=/a,target=/b,bind-propagation=x", "'x' is not a propagation"),
        ("type=bind,source=/a,target=/b,bind-recursive=writable", "not offered"),
        ("type=tmpfs,target=/t,source=/a", "'source' is not a key of type=tmpfs"),
        ("type=tmpfs,target=/t,tmpfs-mode=9", "not an octal number"),
        ("type=tmpfs,target=/t,tmpfs-mode=17777", "not an octal number"),
        ("type=tmpfs,target=/t,tmpfs-size=10x", "'x' is not a unit"),
        ('type=bind,"source=/a', "mount"),
    ],
)
def test_bad_mounts(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/t", TmpfsMount("/t")),
        ("/t:size=64m", TmpfsMount("/t", 64 << 20)),
        ("/t:mode=755,size=1m", TmpfsMount("/t", 1 << 20, 0o755)),
        ("/t:exec", TmpfsMount("/t", options=("nosuid", "nodev"))),
        ("/t:exec,suid,dev", TmpfsMount("/t", options=())),
        ("/t:ro,rw", TmpfsMount("/t")),
        ("/t:ro,noatime,uid=5,uid=6", TmpfsMount("/t", options=("nosuid", "nodev", "noexec", "ro", "noatime", "uid=6"))),
        ("/t:noexec,noexec", TmpfsMount("/t", options=("nosuid", "nodev", "noexec"))),
    ],
)
def test_tmpfs(text: str, expected: TmpfsMount) -> None:
    assert parse_tmpfs(text) == expected
    assert parse_tmpfs(expected) == expected


@pytest.mark.parametrize("text", ["", "t", "/", "/t:", "/t:foo", "/t:size=", "/t:size", "/t:mode=x", "/t:uid=root", "/t:size=-1", "/proc"])
def test_bad_tmpfs(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tmpfs(text)
    assert "\n" not in str(caught.value)


def test_values_of_the_spec_are_checked_too() -> None:
    with pytest.raises(UsageError):
        parse_volume(BindMount("/a", "b"))
    with pytest.raises(UsageError):
        parse_mount(BindMount("/a", "/b", propagation="x"))
    with pytest.raises(UsageError):
        parse_mount(TmpfsMount("/t", size=-1))
    with pytest.raises(UsageError):
        parse_tmpfs(TmpfsMount("/t", mode=0o10000))


def test_two_mounts_on_one_target() -> None:
    check_targets([BindMount("/a", "/b"), TmpfsMount("/c")])
    with pytest.raises(UsageError, match="two mounts have the target '/b'"):
        check_targets([BindMount("/a", "/b"), TmpfsMount("/b")])


names = st.text(alphabet=st.characters(exclude_characters="/\0\r\n", codec="utf-8"), min_size=1, max_size=12)
safe = names.filter(lambda name: name not in (".", "..") and name != "proc")
paths = st.lists(safe, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
binds = st.builds(
    BindMount,
    source=paths,
    target=paths,
    read_only=st.booleans(),
    propagation=st.sampled_from(PROPAGATIONS),
    recursive=st.booleans(),
    create_source=st.just(False),
)


@given(binds)
def test_mount_round_trip(bind: BindMount) -> None:
    assert parse_mount(format_mount(bind)) == bind


@given(binds.filter(lambda bind: ":" not in bind.source + bind.target))
def test_volume_round_trip(bind: BindMount) -> None:
    expected = bind._replace(recursive=True, create_source=True)
    assert parse_volume(format_volume(expected)) == expected


@given(st.text(alphabet=st.characters(codec="utf-8")), st.sampled_from([parse_volume, parse_mount, parse_tmpfs]))
def test_random_text_gives_usage_errors_only(text: str, parse: object) -> None:
    try:
        mount = parse(text)  # type: ignore[operator]
    except UsageError as error:
        one_line(error)
    else:
        assert mount.target.startswith("/")
        assert ".." not in mount.target.split("/")


@given(st.text(alphabet="/.ab", max_size=20))
def test_a_target_never_leaves_the_root(text: str) -> None:
    try:
        target = parse_target(text, "volume")
    except UsageError:
        return
    assert os.path.normpath(target) == target
    assert target.startswith("/")
    assert not target.startswith("//")
    assert target != "/"
