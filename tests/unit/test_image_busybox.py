"""Which programs are static: told from ELF headers of either size and byte order."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbox.errors import Unsupported
from netbox.image import busybox

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3


def elf(*headers: int, wide: bool = True, order: str = "<") -> bytes:
    start = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    length, entry = (64, 56) if wide else (52, 32)
    kind = struct.pack(order + "HHI", 2, 62, 1)
    offsets = struct.pack(order + ("QQQ" if wide else "III"), 0, length, 0)
    rest = struct.pack(order + "IHHHHHH", 0, length, entry, len(headers), 0, 0, 0)
    return start + kind + offsets + rest + b"".join(struct.pack(order + "I", header).ljust(entry, b"\0") for header in headers)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("headers", "static"), [((PT_LOAD, PT_LOAD), True), ((PT_LOAD, PT_DYNAMIC), True), ((PT_INTERP, PT_LOAD), False), ((), False)]
)
def test_a_program_with_an_interpreter_is_not_static(
    tmp_path: Path, headers: tuple[int, ...], static: bool, wide: bool, order: str
) -> None:
    program = tmp_path / "program"
    program.write_bytes(elf(*headers, wide=wide, order=order))
    assert busybox.is_static(str(program)) is static


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", elf(PT_LOAD)[:70], elf(PT_LOAD)[:40], b"\x7fELF" + b"\xff" * 60])
def test_what_is_no_program_is_not_static(tmp_path: Path, data: bytes) -> None:
    program = tmp_path / "program"
    program.write_bytes(data)
    assert not busybox.is_static(str(program))


@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_header_raises(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    program = tmp_path_factory.mktemp("elf") / "program"
    program.write_bytes(elf(PT_LOAD)[:20] + data)
    assert busybox.is_static(str(program)) in (True, False)


def test_a_static_one_further_down_the_list_is_taken(tmp_path: Path) -> None:
    dynamic, static = tmp_path / "dynamic", tmp_path / "static"
    dynamic.write_bytes(elf(PT_INTERP))
    static.write_bytes(elf(PT_LOAD))
    assert busybox.find_static((str(tmp_path / "none"), str(dynamic), str(static))).path == str(static)


@pytest.mark.parametrize(("data", "reason"), [(elf(PT_INTERP), "needs a dynamic loader"), (None, "has no busybox")])
def test_none_at_all_says_what_to_install(tmp_path: Path, data: bytes | None, reason: str) -> None:
    program = tmp_path / "busybox"
    if data is not None:
        program.write_bytes(data)
    with pytest.raises(Unsupported, match=reason) as caught:
        busybox.find_static((str(program),))
    assert "busybox-static" in str(caught.value)
