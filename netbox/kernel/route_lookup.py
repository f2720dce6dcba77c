"""What the kernel would do with a packet: the route that it would take, and what it knows of the next hop (rtnetlink(7)).

Both ask in the calling thread's network namespace, unless the socket was opened in another one.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from typing import NamedTuple

from netbox.kernel import rtnetlink
from netbox.kernel.inspection import NEIGHBOUR_STATES, ROUTE_TYPES

_RTM_GETNEIGH, _RTM_NEWNEIGH = 30, 28
_RTA_SRC, _RTA_PREFSRC, _RTA_METRICS = 2, 7, 8
_RTAX_MTU = 2
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_HEADER = struct.Struct("=IHHII")
_BUFFER = 1 << 16


class Route(NamedTuple):
    """The way to an address. ``kind`` is unicast, local, broadcast, …; ``link`` is the link's index, ``source`` the address that the kernel
    would send from; ``mtu`` is that of the path as far as the kernel has learnt it, 0 if it has not.
    """

    kind: str
    link: int
    gateway: str | None
    source: str | None
    mtu: int = 0


class Neighbour(NamedTuple):
    """An entry of the ARP or neighbour cache; ``state`` is that of ip-neighbour(8), ``mac`` is empty while unknown."""

    state: str
    mac: str


def lookup(address: str, source: str | None = None, sock: socket.socket | None = None) -> Route:
    """The route to an address, for packets from ``source`` if that is given.

    Raises:
        OSError: there is none. ENETUNREACH: no route; EHOSTUNREACH, EACCES, EINVAL: a route of type unreachable, prohibit, blackhole.
    """
    packed = ipaddress.ip_address(address).packed
    family = _family(packed)
    bits = len(packed) * 8
    body = _ROUTE.pack(family, bits, bits if source else 0, 0, 0, 0, 0, 0, 0) + rtnetlink.attribute(rtnetlink.RTA_DST, packed)
    if source:
        body += rtnetlink.attribute(_RTA_SRC, ipaddress.ip_address(source).packed)
    answer = _ask(rtnetlink.RTM_GETROUTE, rtnetlink.RTM_NEWROUTE, body, address, sock)
    kind = _ROUTE.unpack_from(answer)[7]
    attributes = rtnetlink.parse_attributes(answer[_ROUTE.size :])
    metrics = rtnetlink.parse_attributes(attributes.get(_RTA_METRICS, b""))
    return Route(
        ROUTE_TYPES.get(kind, str(kind)),
        _number(attributes.get(rtnetlink.RTA_OIF)),
        _address(attributes.get(rtnetlink.RTA_GATEWAY)),
        _address(attributes.get(_RTA_PREFSRC)),
        _number(metrics.get(_RTAX_MTU)),
    )


def neighbour(address: str, index: int, sock: socket.socket | None = None) -> Neighbour | None:
    """What the kernel knows of a neighbour on a link, nothing if it was never asked for.

    Raises:
        OSError: the kernel refuses the question.
    """
    packed = ipaddress.ip_address(address).packed
    body = _NEIGHBOUR.pack(_family(packed), index, 0, 0, 0) + rtnetlink.attribute(rtnetlink.NDA_DST, packed)
    try:
        answer = _ask(_RTM_GETNEIGH, _RTM_NEWNEIGH, body, address, sock)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    state = _NEIGHBOUR.unpack_from(answer)[2]
    mac = rtnetlink.parse_attributes(answer[_NEIGHBOUR.size :]).get(rtnetlink.NDA_LLADDR, b"")
    return Neighbour(NEIGHBOUR_STATES.get(state, "none"), mac.hex(":"))


def _ask(kind: int, expected: int, body: bytes, subject: str, sock: socket.socket | None) -> bytes:
    owned = sock is None
    connection = sock if sock is not None else rtnetlink.open_socket()
    try:
        connection.send(_HEADER.pack(_HEADER.size + len(body), kind, rtnetlink.NLM_F_REQUEST, 1, 0) + body)
        data = connection.recv(_BUFFER)
    finally:
        if owned:
            connection.close()
    length, answer = _HEADER.unpack_from(data)[:2]
    payload = data[_HEADER.size : length]
    if answer == expected:
        return payload
    number = -struct.unpack_from("=i", payload)[0]
    raise OSError(number, os.strerror(number), subject)


def _family(packed: bytes) -> int:
    return socket.AF_INET if len(packed) == 4 else socket.AF_INET6


def _address(value: bytes | None) -> str | None:
    return str(ipaddress.ip_address(value)) if value else None


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value and len(value) == 4 else 0
