"""nfnetlink messages: a socket, and reading what arrives (<linux/netfilter/nfnetlink.h>, netlink(7))."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE = 33
_HEADER = 16
_GENERIC = 4  # struct nfgenmsg
_TYPE_MASK = 0x3FFF
_WAIT = 5.0  # seconds


def open_socket(groups: Sequence[int] = (), buffer: int = 0) -> socket.socket:
    """A socket in the calling thread's network namespace, in multicast groups, with a receive buffer in bytes. Raises ``OSError``."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        sock.settimeout(_WAIT)
        if buffer:
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        sock.close()
        raise
    return sock


def messages(data: bytes) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    """The type, the family and the attributes of each message."""
    offset = 0
    while offset + _HEADER <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < _HEADER:
            return
        if length >= _HEADER + _GENERIC:
            yield kind, data[offset + _HEADER], attributes(data[offset + _HEADER + _GENERIC : offset + length])
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute (struct nlattr), padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type."""
    found, offset = {}, 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def text(value: bytes) -> str:
    """A string attribute."""
    return value.split(b"\0", 1)[0].decode(errors="replace")
