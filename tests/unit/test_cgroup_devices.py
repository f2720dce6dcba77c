"""Device allow lists: the decision, the v1 lines and the v2 program agree."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.kernel import devices_bpf as bpf
from netbox.kernel.cgroups import ALLOW_ALL, DEFAULT_DEVICES, DeviceRule
from netbox.kernel.cgroups.devices import allowed, checked, v1_lines

NUMBERS = st.integers(-1, 4)
ACCESS = st.sets(st.sampled_from("rwm"), min_size=1).map("".join)
RULES = st.lists(st.builds(DeviceRule, st.sampled_from("abc"), NUMBERS, NUMBERS, ACCESS), max_size=6)


def execute(code: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """Runs the program as the kernel would: eleven registers, r1 points at struct bpf_cgroup_dev_ctx."""
    context = struct.pack("<III", sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access) << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers: list[int | None] = [None] * 11
    position = 0
    for _ in range(len(code) // 8 + 1):
        opcode, operands, offset, immediate = struct.unpack_from("<BBhI", code, position * 8)
        destination, source = operands & 15, operands >> 4
        position += 1
        if opcode == bpf.EXIT:
            assert registers[0] is not None
            return registers[0]
        if opcode == bpf.LOAD_WORD:
            assert source == 1
            registers[destination] = struct.unpack_from("<I", context, offset)[0]
            continue
        value = registers[destination]
        if opcode == bpf.MOVE_IMMEDIATE:
            registers[destination] = immediate
        elif opcode == bpf.MOVE_REGISTER:
            registers[destination] = registers[source]
        elif value is not None and opcode == bpf.AND_IMMEDIATE:
            registers[destination] = value & immediate
        elif value is not None and opcode == bpf.SHIFT_RIGHT_IMMEDIATE:
            registers[destination] = value >> immediate
        elif opcode in (bpf.JUMP_NOT_EQUAL_IMMEDIATE, bpf.JUMP_NOT_EQUAL_REGISTER):
            other = immediate if opcode == bpf.JUMP_NOT_EQUAL_IMMEDIATE else registers[source]
            position += offset if value != other else 0
        else:
            raise AssertionError(f"instruction {position - 1}: {opcode:#x} on r{destination} = {value}")
    raise AssertionError("the program does not end")


@given(RULES, st.sampled_from("bc"), st.integers(0, 4), st.integers(0, 4), ACCESS)
def test_the_program_decides_as_the_rules_do(rules: list[DeviceRule], kind: str, major: int, minor: int, access: str) -> None:
    assert execute(bpf.program(rules), kind, major, minor, access) == int(allowed(rules, kind, major, minor, access))


@pytest.mark.parametrize(
    ("kind", "major", "minor", "access", "may"),
    [
        ("c", 1, 3, "rw", True),
        ("c", 136, 17, "rw", True),
        ("c", 10, 200, "rw", True),
        ("b", 8, 0, "m", True),
        ("b", 8, 0, "r", False),
        ("c", 1, 1, "r", False),  # /dev/mem
        ("c", 1, 11, "r", False),  # /dev/kmsg
        ("c", 10, 229, "rw", False),  # /dev/fuse
        ("b", 1, 3, "rw", False),
        ("c", 1, 1, "rm", False),
    ],
)
def test_the_default_list(kind: str, major: int, minor: int, access: str, may: bool) -> None:
    assert allowed(DEFAULT_DEVICES, kind, major, minor, access) is may
    assert execute(bpf.program(DEFAULT_DEVICES), kind, major, minor, access) == int(may)


def test_everything() -> None:
    assert v1_lines(ALLOW_ALL) == ["a"]
    assert execute(bpf.program([*ALLOW_ALL, *DEFAULT_DEVICES]), "b", 8, 0, "rwm") == 1


def test_the_lines_of_version_1() -> None:
    rules = checked([("c", 1, 3, "rwm"), ("b", -1, -1, "m"), ("a", 8, -1, "wr")])
    assert v1_lines(rules) == ["c 1:3 rwm", "b *:* m", "b 8:* rw", "c 8:* rw"]


@pytest.mark.parametrize(
    "rule",
    [("x", 1, 3, "r"), ("", 1, 3, "r"), ("c", 1, 3, ""), ("c", 1, 3, "rx"), ("c", -2, 3, "r"), ("c", 1, 1 << 32, "r"), ("c", "1", 3, "r")],
)
def test_a_rule_that_means_nothing_is_refused(rule: tuple[str, int, int, str]) -> None:
    with pytest.raises(UsageError, match="device rule"):
        checked([rule])
