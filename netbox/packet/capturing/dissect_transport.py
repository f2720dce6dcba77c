"""Words for what is above IP: TCP, UDP with DNS and DHCP, SCTP, ICMP and ICMPv6. Pure. Numbers: IANA's registries of each protocol."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple


class Short(Exception):
    """The packet ends too early."""


class Peers(NamedTuple):
    """Who sends to whom, as shown, and what other addresses are called."""

    source: str
    destination: str
    names: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.source} → {self.destination}"

    def with_ports(self, source: int, destination: int) -> str:
        """``web:40000 → db:80``."""
        return f"{_endpoint(self.source, source)} → {_endpoint(self.destination, destination)}"


_TCP_FLAGS = ((0x02, "SYN"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"), (0x20, "URG"), (0x10, "ACK"), (0x40, "ECE"), (0x80, "CWR"))
_DNS_PORTS = (53, 5353, 5355)
_DHCP_PORTS = {67, 68}
_DHCP_MAGIC = b"\x63\x82\x53\x63"
_DHCP_TYPES = ("", "discover", "offer", "request", "decline", "ack", "nak", "release", "inform")
_DNS_TYPES = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    41: "OPT",
    64: "SVCB",
    65: "HTTPS",
    255: "ANY",
}
_DNS_ERRORS = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
_MOST_LABELS = 128
_SCTP_CHUNKS = {
    0: "DATA",
    1: "INIT",
    2: "INIT ACK",
    3: "SACK",
    4: "HEARTBEAT",
    5: "HEARTBEAT ACK",
    6: "ABORT",
    7: "SHUTDOWN",
    8: "SHUTDOWN ACK",
    9: "ERROR",
    10: "COOKIE ECHO",
    11: "COOKIE ACK",
    14: "SHUTDOWN COMPLETE",
}
_UNREACHABLE = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    4: "fragmentation needed",
    5: "source route failed",
    9: "network prohibited",
    10: "host prohibited",
    13: "administratively prohibited",
}
_UNREACHABLE6 = {0: "no route", 1: "administratively prohibited", 3: "address unreachable", 4: "port unreachable", 6: "route rejected"}
_NEIGHBOURS = {133: "router solicitation", 134: "router advertisement", 137: "redirect", 143: "multicast listener report"}


def tcp(data: bytes, peers: Peers) -> str:
    """RFC 9293."""
    source, destination, sequence, acknowledged, offset, flags, window = struct.unpack_from("!HHIIBBH", data)
    words = " ".join(name for bit, name in _TCP_FLAGS if flags & bit) or "no flags"
    length = max(0, len(data) - (offset >> 4) * 4)
    place = f"seq {sequence}" + (f":{(sequence + length) & 0xFFFFFFFF}" if length else "")
    answer = f", ack {acknowledged}" if flags & 0x10 else ""
    return f"{peers.with_ports(source, destination)}  TCP {words}, {place}{answer}, win {window}, length {length}"


def udp(data: bytes, peers: Peers) -> str:
    """RFC 768; with DNS (RFC 1035) and DHCP (RFC 2131) inside."""
    source, destination, _ = struct.unpack_from("!HHH", data)
    payload = data[8:]
    who = peers.with_ports(source, destination)
    try:
        if source in _DNS_PORTS or destination in _DNS_PORTS:
            return f"{who}  DNS {_dns(payload, peers)}"
        if {source, destination} <= _DHCP_PORTS and payload[236:240] == _DHCP_MAGIC:
            return f"{who}  DHCP {_dhcp(payload)}"
    except (Short, struct.error, IndexError):
        pass  # another protocol on that port
    return f"{who}  UDP, length {len(payload)}"


def sctp(data: bytes, peers: Peers) -> str:
    """RFC 9260: the kinds of the chunks."""
    source, destination = struct.unpack_from("!HH", data)
    chunks, offset = [], 12
    while offset + 4 <= len(data):
        kind, _, size = struct.unpack_from("!BBH", data, offset)
        chunks.append(_SCTP_CHUNKS.get(kind, f"chunk {kind}"))
        offset += max(4, (size + 3) & ~3)
    return f"{peers.with_ports(source, destination)}  SCTP {', '.join(chunks) or 'nothing'}, length {len(data) - 12}"


def icmp(data: bytes, peers: Peers) -> str:
    """RFC 792. An error names the packet that it is about."""
    kind, code, _, first, second = struct.unpack_from("!BBHHH", data)
    if kind in (0, 8):
        what = "echo request" if kind == 8 else "echo reply"
        return f"{peers}  ICMP {what}, id {first}, seq {second}, length {len(data) - 8}"
    if kind == 3:
        what = _UNREACHABLE.get(code, f"unreachable, code {code}") + (f" (MTU {second})" if code == 4 else "")
    elif kind == 11:
        what = "fragment reassembly time exceeded" if code else "time to live exceeded"
    else:
        return f"{peers}  ICMP {'redirect' if kind == 5 else f'type {kind}'}, code {code}"
    return f"{peers}  ICMP {what}{_inner(data[8:], peers, socket.AF_INET)}"


def icmpv6(data: bytes, peers: Peers) -> str:
    """RFC 4443 and neighbour discovery (RFC 4861)."""
    kind, code, _, first, second = struct.unpack_from("!BBHHH", data)
    if kind in (128, 129):
        what = "echo request" if kind == 128 else "echo reply"
        return f"{peers}  ICMPv6 {what}, id {first}, seq {second}, length {len(data) - 8}"
    if kind in (135, 136):
        target = socket.inet_ntop(socket.AF_INET6, data[8:24])
        name = peers.names.get(target, target)
        return f"{peers}  ICMPv6 who has {name}?" if kind == 135 else f"{peers}  ICMPv6 {name} is here"
    if kind == 1:
        what = _UNREACHABLE6.get(code, f"unreachable, code {code}")
    elif kind == 2:
        what = f"packet too big (MTU {first << 16 | second})"
    elif kind == 3:
        what = "fragment reassembly time exceeded" if code else "hop limit exceeded"
    else:
        return f"{peers}  ICMPv6 {_NEIGHBOURS.get(kind, f'type {kind}')}"
    return f"{peers}  ICMPv6 {what}{_inner(data[8:], peers, socket.AF_INET6)}"


def _inner(data: bytes, peers: Peers, family: int) -> str:
    """``, about web:40000 → db:80``: the packet that an ICMP error quotes."""
    try:
        if family == socket.AF_INET:
            protocol, start = data[9], (data[0] & 15) * 4
            ends = (data[12:16], data[16:20])
        else:
            protocol, start, ends = data[6], 40, (data[8:24], data[24:40])
        source, destination = (socket.inet_ntop(family, end) for end in ends)
    except (IndexError, ValueError):
        return ""
    about = Peers(peers.names.get(source, source), peers.names.get(destination, destination), peers.names)
    if protocol in (6, 17, 132) and len(data) >= start + 4:
        return f", about {about.with_ports(*struct.unpack_from('!HH', data, start))}"
    return f", about {about}"


def _dhcp(data: bytes) -> str:
    offset = 240
    while data[offset] != 255:
        if data[offset] == 53:
            kind = data[offset + 2]
            return _DHCP_TYPES[kind] if 0 < kind < len(_DHCP_TYPES) else f"type {kind}"
        offset += 1 if data[offset] == 0 else 2 + data[offset + 1]
    return "without a type"


def _dns(data: bytes, peers: Peers) -> str:
    _, flags, questions, answers, _, _ = struct.unpack_from("!6H", data)
    if not questions and not answers:
        raise Short
    offset, asked = 12, ""
    if questions:
        name, offset = _dns_name(data, offset)
        kind, _ = struct.unpack_from("!HH", data, offset)
        offset += 4
        asked = f"{_DNS_TYPES.get(kind, f'type {kind}')} {name}"
    if not flags & 0x8000:
        return f"query {asked}"
    code = flags & 15
    if code:
        return f"answer {asked}: {_DNS_ERRORS.get(code, f'error {code}')}"
    found = []
    for _ in range(answers if questions <= 1 else 0):
        _, offset = _dns_name(data, offset)
        kind, _, _, size = struct.unpack_from("!HHIH", data, offset)
        offset += 10
        found.append(_dns_value(data, kind, offset, size, peers))
        offset += size
    return f"answer {asked}: {', '.join(found) or 'nothing'}".replace("answer :", "answer:")


def _dns_value(data: bytes, kind: int, offset: int, size: int, peers: Peers) -> str:
    if (kind, size) in ((1, 4), (28, 16)):
        address = socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, data[offset : offset + size])
        name = peers.names.get(address)
        return f"{address} ({name})" if name else address
    if kind in (2, 5, 12):
        return f"{_DNS_TYPES[kind]} {_dns_name(data, offset)[0]}"
    return _DNS_TYPES.get(kind, f"type {kind}")


def _dns_name(data: bytes, offset: int) -> tuple[str, int]:
    """The name at ``offset``, printable, and where the next field is. A pointer may only lead backwards."""
    labels: list[str] = []
    end = -1
    limit = offset
    while len(labels) < _MOST_LABELS:
        size = data[offset]
        if size & 0xC0 == 0xC0:
            target = struct.unpack_from("!H", data, offset)[0] & 0x3FFF
            end = offset + 2 if end < 0 else end
            if target >= limit:
                raise Short
            offset = limit = target
            continue
        if size & 0xC0:
            raise Short
        if not size:
            return ".".join(labels) + ".", offset + 1 if end < 0 else end
        label = data[offset + 1 : offset + 1 + size].decode("latin-1")
        labels.append("".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in label))
        offset += 1 + size
    raise Short


def _endpoint(name: str, port: int) -> str:
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
