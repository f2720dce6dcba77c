"""Capture filters, run by the kernel on a socket that needs no privilege: a filter sees what is sent to it as a frame."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest

from netbox.errors import UsageError
from netbox.kernel.packet_filter import LINKTYPE_RAW, check_filter, compile_filter, socket_program

SO_ATTACH_FILTER = 26


def frame(protocol: int, port: int) -> bytes:
    transport = struct.pack("!HH", 40000, port) + bytes(16)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(transport), 1, 0, 64, protocol, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    return bytes(12) + b"\x08\x00" + ip + transport


def passes(program: bytes, data: bytes) -> int:
    """How many bytes of a frame pass the program."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        buffer = ctypes.create_string_buffer(program, len(program))
        receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
        receiver.setblocking(False)
        try:
            sender.send(data)
            return len(receiver.recv(65536))
        except (BlockingIOError, PermissionError):
            return 0


@pytest.mark.parametrize(
    ("expression", "protocol", "port", "expected"),
    [("", 6, 80, True), ("tcp port 80", 6, 80, True), ("tcp port 80", 6, 81, False), ("udp", 6, 80, False), ("host 10.0.0.2", 17, 1, True)],
)
def test_a_filter_decides(expression: str, protocol: int, port: int, expected: bool) -> None:
    data = frame(protocol, port)
    assert passes(compile_filter(expression, 65535), data) == (len(data) if expected else 0)
    if expression:  # the same packet without its link header
        assert passes(compile_filter(expression, 65535, LINKTYPE_RAW), data[14:]) == (len(data) - 14 if expected else 0)


def test_the_snapshot_length_cuts() -> None:
    assert passes(compile_filter("", 30), frame(6, 80)) == 30
    assert passes(compile_filter("tcp", 30), frame(6, 80)) == 30


@pytest.mark.parametrize(
    ("expression", "words"), [("tcp porto", "syntax error"), ("host", "syntax error"), ("vlan 5000", "5000"), ("a\0b", "NUL")]
)
def test_what_cannot_be_understood_is_an_error(expression: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_filter(expression)


def test_a_program_for_every_interface_of_a_namespace() -> None:
    assert socket_program("", 100, loopback=True) == compile_filter("", 100)
    assert len(socket_program("", 100, loopback=False)) == 4 * 8
    # Both link types, behind a look at the hardware type; a filter on link headers leaves nothing of devices without.
    both = len(compile_filter("tcp", 100)) + len(compile_filter("tcp", 100, LINKTYPE_RAW))
    assert len(socket_program("tcp", 100, loopback=True)) == both + 3 * 8
    assert len(socket_program("ether multicast", 100, loopback=True)) == len(compile_filter("ether multicast", 100)) + (3 + 1) * 8
