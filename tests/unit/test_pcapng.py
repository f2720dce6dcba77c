"""The blocks of a pcapng file, byte by byte."""

from __future__ import annotations

import struct

import pytest

from netbox.packet.capturing import pcapng
from netbox.packet.capturing.pcapng import Statistics
from netbox.packet.capturing.values import Interface, Way

INTERFACE = Interface(3, "web/eth0", "", 1)


def words(*values: int) -> bytes:
    return struct.pack(f"={len(values)}I", *values)


def option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


END = bytes(4)


def test_section_header() -> None:
    options = option(3, b"Linux 6.1") + option(4, b"netbox 1") + END
    total = 28 + len(options)
    body = words(0x1A2B3C4D) + struct.pack("=HHq", 1, 0, -1) + options
    assert pcapng.section_header("netbox 1", "Linux 6.1") == words(0x0A0D0D0A, total) + body + words(total)


def test_interface() -> None:
    options = option(2, b"web/eth0") + option(3, b"eth0 of web") + option(9, b"\x09") + option(11, b"\0tcp port 80") + END
    total = 20 + len(options)
    expected = words(1, total) + struct.pack("=HHI", 1, 0, 65535) + options + words(total)
    assert pcapng.interface("web/eth0", "eth0 of web", 65535, filter="tcp port 80") == expected
    assert b"\x0b\0" not in pcapng.interface("a", "b", 65535)[-12:]


def test_names_of_both_families() -> None:
    four = struct.pack("=HH", 1, 8) + bytes((10, 0, 0, 2)) + b"web\0"
    six = struct.pack("=HH", 2, 19) + bytes.fromhex("fd00" + "0" * 26 + "02") + b"db\0" + b"\0"
    total = 12 + len(four + six + END)
    assert pcapng.names([("10.0.0.2", "web"), ("fd00::2", "db")]) == words(4, total) + four + six + END + words(total)
    assert pcapng.names([]) == b""


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 61])
@pytest.mark.parametrize("comment", ["", "dropped"])
def test_packet(length: int, comment: str) -> None:
    data, time = bytes(range(length)), 1_700_000_000_123_456_789
    options = (option(1, comment.encode()) if comment else b"") + option(2, words(0b0101)) + option(5, struct.pack("=Q", 7)) + END
    padded = data + bytes(-length % 4)
    total = 32 + len(padded + options)
    head = words(6, total, 3, time >> 32, time & 0xFFFFFFFF, length, 1500)
    assert b"".join(pcapng.packets([((time, Way(3, 0b0101, INTERFACE), data, 1500), 7, comment)])) == head + padded + options + words(total)


def test_statistics() -> None:
    began, ended = 5 << 32 | 6, 7 << 32 | 8
    numbers = option(4, struct.pack("=Q", 100)) + option(5, struct.pack("=Q", 2)) + option(7, struct.pack("=Q", 9))
    options = option(2, words(5, 6)) + option(3, words(7, 8)) + numbers + END
    total = 24 + len(options)
    assert pcapng.statistics(1, Statistics(began, ended, 100, 9, 2)) == words(5, total, 1, 7, 8) + options + words(total)


def test_a_text_that_is_too_long_is_cut() -> None:
    block = b"".join(pcapng.packets([((0, Way(0, 0, INTERFACE), b"", 0), 0, "x" * 70_000)]))
    assert struct.unpack_from("=I", block, 4)[0] == len(block)
    assert struct.unpack_from("=HH", block, 28) == (1, 0xFFFF)
