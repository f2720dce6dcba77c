"""Classic BPF programs for sockets: packets that do not match stay in the kernel (socket(7), SO_ATTACH_FILTER; <linux/filter.h>). Pure
but for ``attach``.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_LD_WORD, _LD_HALF, _LD_HALF_INDEXED, _LDX_HEADER = 0x20, 0x28, 0x48, 0xB1
_AND, _EQUAL, _GREATER, _AT_LEAST, _RETURN = 0x54, 0x15, 0x25, 0x35, 0x06
_ALL = 0x40000
_MOST_JUMPS = 250


def destination_ports(ports: Sequence[int], version: int) -> list[Instruction]:
    """Lets TCP, UDP and SCTP for these ports pass, at most 250, on a raw IP socket: one of IPv4 sees the IP header, one of IPv6 not.

    Raises ValueError for more.
    """
    if len(ports) > _MOST_JUMPS:
        raise ValueError(f"{len(ports)} ports are more than a jump reaches over")
    load = [(_LDX_HEADER, 0, 0, 0), (_LD_HALF_INDEXED, 0, 0, 2)] if version == 4 else [(_LD_HALF, 0, 0, 2)]
    tests = [(_EQUAL, len(ports) - number, 0, port) for number, port in enumerate(ports)]
    return [*load, *tests, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _ALL)]


def identifications(first: int, count: int, version: int) -> list[Instruction]:
    """Lets ``count`` IP ids (IPv6: flow labels) from ``first`` on pass, on a packet socket without link-layer headers."""
    load = [(_LD_HALF, 0, 0, 4)] if version == 4 else [(_LD_WORD, 0, 0, 0), (_AND, 0, 0, 0xFFFFF)]
    tests = [(_AT_LEAST, 0, 1, first), (_GREATER, 0, 1, first + count - 1)]
    return [*load, *tests, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _ALL)]


def attach(sock: socket.socket, program: Sequence[Instruction] | None) -> None:
    """Puts a program on a socket in place of its former one; ``None`` takes it off. Raises OSError."""
    if program is None:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
