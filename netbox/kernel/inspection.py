"""What the network of a namespace is like right now: links, addresses, neighbours, and what the kernel would do with one packet.

Read over one rtnetlink socket, which works in the namespace where it was opened. IPv4 and IPv6. Sources: rtnetlink(7),
``<linux/if_link.h>``, ``<linux/neighbour.h>``, ``<linux/rtnetlink.h>``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from netbox.kernel import rtnetlink
from netbox.kernel.rtnetlink import RouteSocket, attribute, number, parse_attributes

RTM_GETNEIGH, RTM_GETQDISC = 30, 38
IFF_LOWER_UP = 0x10000
NDA_DST, NDA_LLADDR = 1, 2
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 2, 3, 4, 5, 7, 8, 15
RTAX_MTU = 2
TCA_KIND = 1
AF_BRIDGE = 7

NEIGHBOUR_STATES = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}
ROUTE_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")  # <linux/if_bridge.h>

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_TC = struct.Struct("=BxxxiIII")
_RECEIVE_BUFFER = 1 << 18


class LinkFact(NamedTuple):
    """A network device. ``carrier`` says that the other end is up too; ``peer`` is the number of a veth's other end, ``master`` that of
    its bridge; ``port_state`` is that of a bridge's port, else empty.
    """

    name: str
    number: int
    kind: str
    up: bool
    carrier: bool
    mtu: int
    mac: str
    master: int
    peer: int
    port_state: str = ""


class AddressFact(NamedTuple):
    """An address of a link, without and with the length of its network."""

    interface: str
    address: str
    prefix_length: int


class NeighbourFact(NamedTuple):
    """What the kernel believes about a neighbour's MAC: ``state`` is one of ``NEIGHBOUR_STATES``."""

    interface: str
    address: str
    mac: str
    state: str


class ForwardingFact(NamedTuple):
    """Behind which port of a bridge a MAC is; ``permanent`` are the ports' own."""

    port: str
    mac: str
    permanent: bool


class QueueFact(NamedTuple):
    """A queueing discipline of a link."""

    interface: str
    kind: str


class RouteFact(NamedTuple):
    """What the kernel answered when asked for the way of one packet. ``error`` is its errno, 0 when it found one; ``kind`` is one of
    ``ROUTE_TYPES``; ``mtu`` is that of the route, 0 when it has none of its own.
    """

    destination: str
    kind: str = ""
    interface: str = ""
    gateway: str = ""
    source: str = ""
    mtu: int = 0
    error: int = 0


def family_of(address: str) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class InspectionSocket(RouteSocket):
    """A ``RouteSocket`` with the questions of this module. Raises OSError when the kernel refuses one."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        super().__init__(sock)
        self._names: dict[int, str] = {}

    def __enter__(self) -> InspectionSocket:
        return self

    def link_facts(self) -> list[LinkFact]:
        """Every link of the namespace."""
        found = [_link(body) for body in self._dump(rtnetlink.RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0))]
        self._names = {link.number: link.name for link in found}
        return found

    def address_facts(self) -> list[AddressFact]:
        """Every address, of both families. Ask for the links first: their names come from there."""
        found = []
        for body in self._dump(rtnetlink.RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
            family, length, _, _, index = _ADDRESS.unpack_from(body)
            values = parse_attributes(body[_ADDRESS.size :])
            raw = values.get(rtnetlink.IFA_LOCAL) or values.get(rtnetlink.IFA_ADDRESS, b"")
            if family in (socket.AF_INET, socket.AF_INET6) and raw:
                found.append(AddressFact(self._name(index), _address(raw), length))
        return found

    def neighbour_facts(self) -> list[NeighbourFact]:
        """Every entry of the neighbour tables but those of multicast (``noarp``)."""
        found = []
        for body in self._dump(RTM_GETNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0)):
            family, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
            values = parse_attributes(body[_NEIGHBOUR.size :])
            if family in (socket.AF_INET, socket.AF_INET6) and NDA_DST in values and not state & 0x40:
                mac = values.get(NDA_LLADDR, b"").hex(":")
                found.append(NeighbourFact(self._name(index), _address(values[NDA_DST]), mac, _neighbour_state(state)))
        return found

    def forwarding_facts(self) -> list[ForwardingFact]:
        """The forwarding tables of all bridges: where a frame for a MAC goes."""
        found = []
        for body in self._dump(RTM_GETNEIGH, _NEIGHBOUR.pack(AF_BRIDGE, 0, 0, 0, 0)):
            _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
            values = parse_attributes(body[_NEIGHBOUR.size :])
            if NDA_LLADDR in values:
                found.append(ForwardingFact(self._name(index), values[NDA_LLADDR].hex(":"), bool(state & 0x80)))
        return found

    def queue_facts(self) -> list[QueueFact]:
        """The queueing disciplines that somebody has put on links."""
        found = []
        for body in self._dump(RTM_GETQDISC, _TC.pack(0, 0, 0, 0, 0)):
            _, index, _, _, _ = _TC.unpack_from(body)
            kind = _text(parse_attributes(body[_TC.size :]), TCA_KIND)
            if kind not in ("noqueue", "noop", "pfifo_fast", "mq", "fq_codel", "fq"):
                found.append(QueueFact(self._name(index), kind))
        return found

    def route(self, destination: str, source: str = "", interface: str = "") -> RouteFact:
        """What becomes of a packet to ``destination``: one of the namespace's own, or with ``interface`` one that comes in there from
        ``source``. For the latter the kernel applies its checks: EXDEV is the reverse path filter, EHOSTUNREACH forwarding that is off.
        """
        family = family_of(destination)
        bits = 128 if family == socket.AF_INET6 else 32
        body = _ROUTE.pack(family, bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
        body += attribute(RTA_DST, socket.inet_pton(family, destination))
        if source:
            body += attribute(RTA_SRC, socket.inet_pton(family, source))
        if interface:
            index = next((index for index, name in self._names.items() if name == interface), 0)
            body += number(RTA_IIF, index)
        self._socket.send(self._message(rtnetlink.RTM_GETROUTE, 0, body))
        while True:
            for kind, sequence, payload in _answers(self._socket.recv(_RECEIVE_BUFFER)):
                if sequence != self._sequence:
                    continue
                if kind == rtnetlink.RTM_NEWROUTE:
                    return self._route(destination, payload)
                code = -struct.unpack_from("=i", payload)[0]
                if code in (errno.EPERM, errno.EBADF, errno.ENOMEM):
                    raise OSError(code, os.strerror(code), f"route to {destination}")
                return RouteFact(destination, error=code)

    def _route(self, destination: str, body: bytes) -> RouteFact:
        kind = _ROUTE.unpack_from(body)[7]
        values = parse_attributes(body[_ROUTE.size :])
        metrics = parse_attributes(values.get(RTA_METRICS, b""))
        return RouteFact(
            destination,
            ROUTE_TYPES.get(kind, str(kind)),
            self._name(_integer(values, RTA_OIF)),
            _address(values[RTA_GATEWAY]) if RTA_GATEWAY in values else "",
            _address(values[RTA_PREFSRC]) if RTA_PREFSRC in values else "",
            _integer(metrics, RTAX_MTU),
        )

    def _name(self, index: int) -> str:
        return self._names.get(index, str(index) if index else "")


def _link(body: bytes) -> LinkFact:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    values = parse_attributes(body[_LINK.size :])
    info = parse_attributes(values.get(rtnetlink.IFLA_LINKINFO, b""))
    slave = parse_attributes(info.get(rtnetlink.IFLA_INFO_SLAVE_DATA, b""))
    state = slave.get(rtnetlink.IFLA_BRPORT_STATE, b"")
    is_port = info.get(rtnetlink.IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0") == b"bridge"
    return LinkFact(
        _text(values, rtnetlink.IFLA_IFNAME),
        index,
        _text(info, rtnetlink.IFLA_INFO_KIND),
        bool(flags & rtnetlink.IFF_UP),
        bool(flags & IFF_LOWER_UP),
        _integer(values, rtnetlink.IFLA_MTU),
        values.get(rtnetlink.IFLA_ADDRESS, b"").hex(":"),
        _integer(values, rtnetlink.IFLA_MASTER),
        _integer(values, rtnetlink.IFLA_LINK),
        _PORT_STATES[state[0]] if is_port and state and state[0] < len(_PORT_STATES) else "",
    )


def _text(values: dict[int, bytes], kind: int) -> str:
    return values.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _integer(values: dict[int, bytes], kind: int) -> int:
    value = values.get(kind, b"")
    return int(struct.unpack("=I", value)[0]) if len(value) == 4 else 0


def _address(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


def _neighbour_state(value: int) -> str:
    return next((name for bit, name in NEIGHBOUR_STATES.items() if value & bit), "none")


def _answers(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        if length < 16:
            return
        yield kind, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3
