"""The sockets of a network namespace with their queues, over NETLINK_SOCK_DIAG (sock_diag(7)).

The socket works in the calling thread's network namespace. For a listening socket the kernel tells how many connections wait to be accepted
and how many may (``<linux/inet_diag.h>``, net/ipv4/tcp_diag.c); /proc/net/tcp does not.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from netbox.kernel.rtnetlink import parse_attributes

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
LISTEN, CLOSE = 10, 7  # <net/tcp_states.h>; an unconnected UDP socket is in state CLOSE
ALL_STATES = 0xFFF

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_ID = struct.Struct("=4s16s16sI8s")
_MESSAGE = struct.Struct("=BBBB4s16s16sI8s5I")
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_RECEIVE_BUFFER = 1 << 18
_ONLY_IPV6 = 11  # INET_DIAG_SKV6ONLY, told of listening and of unconnected sockets


class SocketFact(NamedTuple):
    """A socket: its own end and the other (port 0 without), its state, and for a listening one how many connections wait (``waiting``) and
    how many may (``room``); for others the bytes received and not read, and those sent and not acknowledged. ``only_ipv6``: one bound to
    ``::`` takes nothing of IPv4 (ipv6(7), IPV6_V6ONLY).
    """

    protocol: str
    address: str
    port: int
    peer: str
    peer_port: int
    state: int
    waiting: int
    room: int
    inode: int
    only_ipv6: bool = False

    def takes(self, address: str) -> bool:
        """Whether it is bound so that packets to an address are for it."""
        anywhere = ("::",) if ":" in address else ("0.0.0.0", *(() if self.only_ipv6 else ("::",)))
        return self.address in (address, *anywhere)

    @property
    def is_full(self) -> bool:
        """Whether a listening socket turns new connections away (``sk_acceptq_is_full`` of <net/sock.h>)."""
        return self.state == LISTEN and self.waiting > self.room


def sockets(protocol: str, states: int = ALL_STATES) -> list[SocketFact]:
    """The sockets of a protocol (``tcp``, ``udp``, ``sctp``) of both families, in the states whose bits are set.

    A kernel that cannot tell (no IPv6, no SCTP, no sock_diag) has none.

    Raises:
        OSError: the kernel refuses.
    """
    found: list[SocketFact] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, PROTOCOLS[protocol], 0, states) + bytes(_ID.size)
            flags = _NLM_F_REQUEST | _NLM_F_DUMP
            netlink.send(_HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, flags, 1, 0) + body)
            try:
                found += [_fact(protocol, payload) for payload in _answers(netlink)]
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL):
                    raise
    return found


def _fact(protocol: str, payload: bytes) -> SocketFact:
    family, state, _, _, ports, source, destination, _, _, _, waiting, room, _, inode = _MESSAGE.unpack_from(payload)
    port, peer_port = struct.unpack("!HH", ports)
    own, peer = _address(family, source), _address(family, destination)
    only_ipv6 = parse_attributes(payload[_MESSAGE.size :]).get(_ONLY_IPV6, b"")[:1] == b"\1"
    return SocketFact(protocol, own, port, peer, peer_port, state, waiting, room, inode, only_ipv6)


def _address(family: int, value: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, value[:4])
    return socket.inet_ntop(socket.AF_INET6, value).removeprefix("::ffff:")


def _answers(netlink: socket.socket) -> Iterator[bytes]:
    while True:
        data = netlink.recv(_RECEIVE_BUFFER)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            payload = data[offset + _HEADER.size : offset + length]
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                raise OSError(code, os.strerror(code), "sockets")
            yield payload
            offset += (length + 3) & ~3
