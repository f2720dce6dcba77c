"""One packet with addresses and an identity of our choice, built by hand: the bytes are pure, ``send`` puts them on the source's way out.

Sources: RFC 791, 8200 (headers), 9293 (TCP), 768 (UDP), 792, 4443 (ICMP), 9260 (SCTP); raw(7) for sockets that take a whole packet.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from netbox.kernel import namespaces
from netbox.packet.diagnosis.values import ICMP, SCTP, TCP, UDP

_PROTOCOLS = {ICMP: 1, TCP: 6, UDP: 17, SCTP: 132}
_ICMPV6 = 58
_SYN, _DONT_FRAGMENT = 0x02, 0x4000
_IPV6_HDRINCL = 36
_CRC32C = 0x82F63B78


class Crafted(NamedTuple):
    """What is sent. ``number`` is the IP id, or the flow label of IPv6; ``source_port`` the echo identifier for ICMP."""

    protocol: str
    source: str
    destination: str
    source_port: int
    port: int
    number: int
    ttl: int = 64


def build(packet: Crafted) -> bytes:
    """The whole IP packet: a SYN, a datagram of one byte, an echo request, or an SCTP INIT."""
    version6 = ":" in packet.destination
    family = socket.AF_INET6 if version6 else socket.AF_INET
    number = _ICMPV6 if version6 and packet.protocol == ICMP else _PROTOCOLS[packet.protocol]
    source, destination = socket.inet_pton(family, packet.source), socket.inet_pton(family, packet.destination)
    body = _transport(packet, version6)
    place = {TCP: 16, UDP: 6, ICMP: 2}.get(packet.protocol)
    if place is not None:
        ends = source + destination
        pseudo = ends + (struct.pack("!II", len(body), number) if version6 else struct.pack("!HH", number, len(body)))
        total = checksum(body if packet.protocol == ICMP and not version6 else pseudo + body)
        body = body[:place] + struct.pack("!H", total or 0xFFFF) + body[place + 2 :]
    if version6:
        return struct.pack("!IHBB", 6 << 28 | packet.number, len(body), number, packet.ttl) + source + destination + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), packet.number, _DONT_FRAGMENT, packet.ttl, number, 0)
    total = checksum(header + source + destination)
    return header[:10] + struct.pack("!H", total) + source + destination + body


def _transport(packet: Crafted, version6: bool) -> bytes:
    ends = packet.source_port, packet.port
    if packet.protocol == TCP:
        options = struct.pack("!BBH", 2, 4, 1220)  # a segment size that fits every path
        return struct.pack("!HHIIBBHHH", *ends, 1, 0, 6 << 4, _SYN, 64240, 0, 0) + options
    if packet.protocol == UDP:
        return struct.pack("!HHHH", *ends, 9, 0) + b"\n"
    if packet.protocol == ICMP:
        return struct.pack("!BBHHH", 128 if version6 else 8, 0, 0, packet.source_port, 1) + bytes(32)
    return init(*ends)


def init(source_port: int, port: int) -> bytes:
    """An SCTP packet that asks for an association (RFC 9260, 3.3.2)."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)
    plain = struct.pack("!HHII", source_port, port, 0, 0) + chunk
    return plain[:8] + struct.pack("<I", _crc32c(plain)) + plain[12:]


def send(netns_fd: int, packet: Crafted) -> None:
    """Sends it from a network namespace (-1: the calling thread's). Raises OSError for what the kernel says at once."""
    family = socket.AF_INET6 if ":" in packet.destination else socket.AF_INET
    made = (
        namespaces.socket_in(netns_fd, family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        if netns_fd >= 0
        else socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    )
    with made as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        sock.sendto(build(packet), (packet.destination, 0))


def checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (_CRC32C if value & 1 else 0)
    return value ^ 0xFFFFFFFF
