"""Packets in words. The packets are built by hand: what they must be called is what the protocols' documents say."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.packet.capturing import dissect
from netbox.packet.capturing.pcapng import LINKTYPE_ETHERNET, LINKTYPE_RAW

NAMES = {"10.0.0.2": "web", "10.0.0.3": "db", "10.0.0.1": "host", "fd00::2": "web"}


def ipv4(protocol: int, payload: bytes, source: str = "10.0.0.2", destination: str = "10.0.0.3", fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(destination) + payload


def ipv6(following: int, payload: bytes, source: str = "fd00::2", destination: str = "2001:db8::1") -> bytes:
    head = struct.pack("!IHBB", 0x60000000, len(payload), following, 64)
    return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + payload


def ethernet(kind: int, payload: bytes) -> bytes:
    return bytes.fromhex("0200000000020200000000010000")[:12] + struct.pack("!H", kind) + payload


def tcp(flags: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, 80, 7, 9, 0x50, flags, 64240, 0, 0) + payload


def udp(source: int, destination: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def dns(flags: int, answers: bytes = b"", count: int = 0, name: bytes = b"\2db\0") -> bytes:
    return struct.pack("!6H", 1, flags, 1, count, 0, 0) + name + struct.pack("!HH", 1, 1) + answers


def arp(operation: int, sender: str, target: str) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + bytes.fromhex("020000000001") + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)


ANSWER = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton("10.0.0.3")
LOOP = b"\xc0\x0c"
INNER = ipv4(17, udp(5000, 53, b""))[:28]


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        (0x0806, arp(1, "10.0.0.2", "10.0.0.3"), "ARP who has db? tell web"),
        (0x0806, arp(2, "10.0.0.3", "10.0.0.2"), "ARP db is at 02:00:00:00:00:01"),
        (0x0806, arp(1, "10.0.0.2", "10.0.0.2"), "ARP announcement: web is at 02:00:00:00:00:01"),
        (0x0806, arp(1, "0.0.0.0", "10.0.0.2"), "ARP who has web? tell 02:00:00:00:00:01"),
        (0x0800, ipv4(6, tcp(0x02)), "web:40000 → db:80  TCP SYN, seq 7, win 64240, length 0"),
        (0x0800, ipv4(6, tcp(0x18, b"hello")), "web:40000 → db:80  TCP PSH ACK, seq 7:12, ack 9, win 64240, length 5"),
        (0x0800, ipv4(6, tcp(0x14)[:12]), "web → db  TCP, cut short after 12 bytes"),
        (0x0800, ipv4(17, udp(5000, 6000, b"abc"), destination="192.0.2.9"), "web:5000 → 192.0.2.9:6000  UDP, length 3"),
        (0x0800, ipv4(17, udp(5000, 53, dns(0x0100)), destination="10.0.0.1"), "web:5000 → host:53  DNS query A db."),
        (0x0800, ipv4(17, udp(53, 5000, dns(0x8180, ANSWER, 1))), "web:53 → db:5000  DNS answer A db.: 10.0.0.3 (db)"),
        (0x0800, ipv4(17, udp(53, 5000, dns(0x8183))), "web:53 → db:5000  DNS answer A db.: NXDOMAIN"),
        (0x0800, ipv4(17, udp(5000, 53, dns(0x0100, name=LOOP))), f"web:5000 → db:53  UDP, length {12 + 2 + 4}"),
        (0x0800, ipv4(17, udp(5000, 53, dns(0x0100, name=b"\3\x1b[m\0"))), "web:5000 → db:53  DNS query A ?[m."),
        (0x0800, ipv4(1, struct.pack("!BBHHH", 8, 0, 0, 5, 2) + bytes(56)), "web → db  ICMP echo request, id 5, seq 2, length 56"),
        (0x0800, ipv4(1, struct.pack("!BBHHH", 3, 3, 0, 0, 0) + INNER), "web → db  ICMP port unreachable, about web:5000 → db:53"),
        (
            0x0800,
            ipv4(1, struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + INNER),
            "web → db  ICMP fragmentation needed (MTU 1400), about web:5000 → db:53",
        ),
        (0x0800, ipv4(1, struct.pack("!BBHHH", 11, 0, 0, 0, 0) + INNER[:9]), "web → db  ICMP time to live exceeded"),
        (
            0x0800,
            ipv4(132, struct.pack("!HHII", 1, 2, 0, 0) + struct.pack("!BBH", 1, 0, 20) + bytes(16)),
            "web:1 → db:2  SCTP INIT, length 20",
        ),
        (0x0800, ipv4(17, bytes(8), fragment=0x2000 | 185), "web → db  UDP fragment at 1480, more follow, length 8"),
        (0x0800, ipv4(99, bytes(8)), "web → db  protocol 99, length 8"),
        (0x86DD, ipv6(6, tcp(0x12)), "web:40000 → [2001:db8::1]:80  TCP SYN ACK, seq 7, ack 9, win 64240, length 0"),
        (
            0x86DD,
            ipv6(58, struct.pack("!BBHHH", 135, 0, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, "fd00::2")),
            "web → 2001:db8::1  ICMPv6 who has web?",
        ),
        (
            0x86DD,
            ipv6(0, b"\x3a\0" + bytes(6) + struct.pack("!BBHHH", 128, 0, 0, 1, 2)),
            "web → 2001:db8::1  ICMPv6 echo request, id 1, seq 2, length 0",
        ),
        (0x86DD, ipv6(44, struct.pack("!BBHI", 17, 0, 1, 9) + udp(1, 2, b"")), "web:1 → [2001:db8::1]:2  UDP, length 0"),
        (0x8100, struct.pack("!HH", 10, 0x0806) + arp(1, "10.0.0.2", "10.0.0.3"), "vlan 10, ARP who has db? tell web"),
        (0x88CC, bytes(4), "02:00:00:00:00:01 → 02:00:00:00:00:02  LLDP, length 4"),
        (0x0026, b"\x42\x42\x03", "02:00:00:00:00:01 → 02:00:00:00:00:02  STP, length 38"),
        (0x0800, b"\x45", "cut short after 15 bytes"),
    ],
)
def test_a_packet_in_words(kind: int, payload: bytes, expected: str) -> None:
    assert dissect.line(ethernet(kind, payload), LINKTYPE_ETHERNET, NAMES) == expected


def test_without_a_link_header() -> None:
    assert dissect.line(ipv4(6, tcp(0x04)), LINKTYPE_RAW, NAMES).startswith("web:40000 → db:80  TCP RST")
    assert dissect.line(ipv6(6, tcp(0x04)), LINKTYPE_RAW, NAMES).startswith("web:40000 → [2001:db8::1]:80  TCP RST")


@given(st.sampled_from([0x0800, 0x0806, 0x86DD, 0x8100]), st.binary(max_size=120))
def test_no_bytes_are_too_strange(kind: int, data: bytes) -> None:
    assert dissect.line(ethernet(kind, data), LINKTYPE_ETHERNET, NAMES).isprintable()


@given(st.sampled_from([1, 6, 17, 58, 132]), st.binary(max_size=120))
def test_no_transport_is_too_strange(protocol: int, data: bytes) -> None:
    assert dissect.line(ethernet(0x0800, ipv4(protocol, data)), LINKTYPE_ETHERNET, NAMES).isprintable()
    assert dissect.line(ethernet(0x86DD, ipv6(protocol, data)), LINKTYPE_ETHERNET, NAMES).isprintable()


@given(st.binary(max_size=80))
def test_no_dns_is_too_strange(data: bytes) -> None:
    assert dissect.line(ethernet(0x0800, ipv4(17, udp(53, 1, struct.pack("!6H", 1, 0x8180, 1, 2, 0, 0) + data))), LINKTYPE_ETHERNET, NAMES)
