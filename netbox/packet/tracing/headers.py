"""Reading a packet from its network header on: addresses, ports, what it is. Pure.

Sources: RFC 791, 8200, 9293, 768, 9260, 792, 4443, 826. Only what a trace shows is read, and whatever is cut off or makes no sense is left
out rather than refused: these bytes are as somebody sent them.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import NamedTuple

from netbox.packet.tracing.values import Flow

_PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 58: "icmpv6", 132: "sctp"}
_FLAGS = ((0x02, "SYN"), (0x10, "ACK"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"), (0x20, "URG"))
_SCTP_CHUNKS = {0: "DATA", 1: "INIT", 2: "INIT-ACK", 3: "SACK", 4: "HEARTBEAT", 6: "ABORT", 7: "SHUTDOWN"}
_ICMP = {
    0: "echo reply",
    3: "destination unreachable",
    4: "source quench",
    5: "redirect",
    8: "echo request",
    11: "time exceeded",
    12: "parameter problem",
}
_ICMP_UNREACHABLE = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    4: "fragmentation needed",
    9: "network prohibited",
    10: "host prohibited",
    13: "prohibited by a filter",
}
_ICMPV6 = {
    1: "destination unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
}
_ICMPV6_UNREACHABLE = {0: "no route", 1: "prohibited by a filter", 3: "address unreachable", 4: "port unreachable"}
_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination options
_FRAGMENT = 44


class Header(NamedTuple):
    """What the headers of a packet say.

    ``identity`` is the IP id, or the flow label of IPv6. ``quoted`` is the packet that an ICMP error is about. ``echo`` is the identifier
    of an ICMP echo.
    """

    flow: Flow
    identity: int
    ttl: int
    length: int
    quoted: Header | None = None
    echo: int | None = None

    @property
    def is_error(self) -> bool:
        """Whether it is an ICMP error."""
        return self.quoted is not None


@lru_cache(4096)
def parse(packet: bytes) -> Header | None:
    """The headers of an IPv4, IPv6 or ARP packet; ``None`` for anything else."""
    try:
        if packet[:1] and packet[0] >> 4 == 4:
            return _ipv4(packet)
        if packet[:1] and packet[0] >> 4 == 6:
            return _ipv6(packet)
        return _arp(packet)
    except (struct.error, IndexError, OSError, ValueError):
        return None


def _ipv4(packet: bytes) -> Header:
    length, identity, fragment, ttl, number = struct.unpack_from("!xxHHHBB", packet)
    source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    start = (packet[0] & 0xF) * 4
    first = not fragment & 0x1FFF
    return _transport(packet[start:] if first else b"", number, source, destination, identity, ttl, length)


def _ipv6(packet: bytes) -> Header:
    first, length, number, ttl = struct.unpack_from("!IHBB", packet)
    source, destination = (socket.inet_ntop(socket.AF_INET6, packet[place : place + 16]) for place in (8, 24))
    start = 40
    while number in _EXTENSIONS:
        number, start = packet[start], start + 8 + packet[start + 1] * 8
    if number == _FRAGMENT:
        number, start = packet[start], start + 8
    return _transport(packet[start:], number, source, destination, first & 0xFFFFF, ttl, 40 + length)


def _transport(data: bytes, number: int, source: str, destination: str, identity: int, ttl: int, length: int) -> Header:
    protocol = _PROTOCOLS.get(number, str(number))
    ports, detail, quoted, echo = (0, 0), "", None, None
    if protocol in ("tcp", "udp", "sctp") and len(data) >= 4:
        ports = struct.unpack_from("!HH", data)
    if protocol == "tcp" and len(data) >= 14:
        detail = ",".join(name for bit, name in _FLAGS if data[13] & bit)
    elif protocol == "sctp" and len(data) >= 13:
        detail = _SCTP_CHUNKS.get(data[12], "")
    elif protocol in ("icmp", "icmpv6") and len(data) >= 2:
        detail = icmp_words(protocol, data[0], data[1])
        if data[0] in ((0, 8) if protocol == "icmp" else (128, 129)) and len(data) >= 6:
            echo = struct.unpack_from("!H", data, 4)[0]
        elif data[0] in ((3, 4, 5, 11, 12) if protocol == "icmp" else (1, 2, 3, 4)):
            quoted = _quoted(data[8:])
    return Header(Flow(protocol, source, destination, *ports, detail), identity, ttl, length, quoted, echo)


def _quoted(data: bytes) -> Header | None:
    """The packet that an ICMP error is about, of which little may be there: its identity and protocol are among the first twelve bytes."""
    found = parse(data)
    if found is not None or len(data) < 12:
        return found
    version, number = data[0] >> 4, data[9] if data[0] >> 4 == 4 else data[6]
    identity = int.from_bytes(data[4:6], "big") if version == 4 else int.from_bytes(data[0:4], "big") & 0xFFFFF
    return Header(Flow(_PROTOCOLS.get(number, str(number)), "", ""), identity, 0, 0)


def icmp_words(protocol: str, kind: int, code: int) -> str:
    """``port unreachable``, ``echo request``."""
    if protocol == "icmp":
        specific = _ICMP_UNREACHABLE.get(code) if kind == 3 else None
        return specific or _ICMP.get(kind, f"type {kind} code {code}")
    specific = _ICMPV6_UNREACHABLE.get(code) if kind == 1 else None
    return specific or _ICMPV6.get(kind, f"type {kind} code {code}")


def _arp(packet: bytes) -> Header | None:
    hardware, protocol, _, size, operation = struct.unpack_from("!HHBBH", packet)
    if hardware != 1 or protocol != 0x0800 or size != 4:
        return None
    source, destination = socket.inet_ntoa(packet[14:18]), socket.inet_ntoa(packet[24:28])
    return Header(Flow("arp", source, destination, detail={1: "who-has", 2: "is-at"}.get(operation, "")), 0, 0, 28)
