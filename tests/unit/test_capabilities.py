"""Names and masks of capabilities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import Unsupported, UsageError
from netbox.kernel import capabilities
from netbox.kernel.capabilities import ALL, DEFAULT, NAMES, mask_of, names_of, resolve

names = st.sampled_from(NAMES)
name_sets = st.sets(names)


def test_numbers_are_those_of_the_kernel() -> None:
    assert len(NAMES) == 41
    assert [NAMES.index(name) for name in ("CHOWN", "NET_ADMIN", "SYS_ADMIN", "SYSLOG", "BPF", "CHECKPOINT_RESTORE")] == [
        0,
        12,
        21,
        34,
        39,
        40,
    ]


def test_default_is_the_set_that_docker_grants() -> None:
    assert DEFAULT == 0xA80425FB
    assert len(names_of(DEFAULT)) == 14
    assert resolve() == DEFAULT


@pytest.mark.parametrize("text", ["NET_ADMIN", "net_admin", "CAP_NET_ADMIN", "cap_Net_Admin", " net_admin "])
def test_ways_to_write_a_name(text: str) -> None:
    assert resolve(add=[text]) == DEFAULT | 1 << 12
    assert resolve(add=["ALL"], drop=[text]) == ALL & ~(1 << 12)


@pytest.mark.parametrize(
    ("add", "drop", "privileged", "expected"),
    [
        ((), ("ALL",), False, 0),
        (("NET_RAW",), ("ALL",), False, mask_of(["NET_RAW"])),
        (("all",), (), False, ALL),
        (("ALL",), ("SYS_ADMIN", "BPF"), False, ALL & ~mask_of(["SYS_ADMIN", "BPF"])),
        (("ALL",), ("ALL",), False, ALL),
        ((), ("MKNOD", "SYS_ADMIN"), False, DEFAULT & ~mask_of(["MKNOD"])),
        (("MKNOD",), ("MKNOD",), False, DEFAULT),
        ((), ("ALL",), True, ALL),
    ],
)
def test_resolution(add: tuple[str, ...], drop: tuple[str, ...], privileged: bool, expected: int) -> None:
    assert resolve(add, drop, privileged) == expected


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize(("text", "guess"), [("NET_ADMN", "NET_ADMIN"), ("cap_syslogs", "SYSLOG"), ("ptrace", "SYS_PTRACE")])
def test_unknown_name_suggests_close_ones(text: str, guess: str, privileged: bool) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(add=[text], privileged=privileged)
    assert repr(text) in caught.value.message
    assert guess in (caught.value.hint or "")
    with pytest.raises(UsageError):
        resolve(drop=[text])


@pytest.mark.parametrize("text", ["", "CAP_", "CAP_ALL", "0", "zzzz", "NET ADMIN", "CAP_CAP_CHOWN"])
def test_refused_names(text: str) -> None:
    with pytest.raises(UsageError):
        resolve(add=[text])


@given(name_sets)
def test_masks_and_names_are_two_ways_to_write_a_set(chosen: set[str]) -> None:
    assert set(names_of(mask_of(chosen))) == chosen


@given(name_sets, name_sets)
def test_what_is_added_is_there_and_what_is_dropped_is_not(add: set[str], drop: set[str]) -> None:
    mask = resolve(add, drop)
    assert mask & mask_of(add) == mask_of(add)
    assert mask & mask_of(drop - add) == 0
    assert mask & ~(DEFAULT | mask_of(add)) == 0


@given(st.text(max_size=20))
def test_any_text_is_a_name_or_a_usage_error(text: str) -> None:
    try:
        name = capabilities.canonical(text)
    except UsageError:
        return
    assert name in (*NAMES, "ALL")


def test_available_is_the_bounding_set() -> None:
    with open("/proc/self/status", encoding="ascii") as file:
        bounding = next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd"))
    assert capabilities.available() == bounding


def test_grants_only_what_this_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "available", lambda: DEFAULT)
    capabilities.check_grantable(["CHOWN", "ALL", "cap_kill"])
    with pytest.raises(Unsupported, match="SYS_ADMIN, BPF"):
        capabilities.check_grantable(["CHOWN", "bpf", "SYS_ADMIN"])
