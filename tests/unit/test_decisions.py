"""Records of firewall rules, put together packet by packet."""

from __future__ import annotations

import struct

from netbox.kernel.rule_trace import RuleRecord
from netbox.packet.tracing.decisions import Decisions, content, dropper
from netbox.packet.tracing.values import Owner, RuleHit

HOST = 4


def ipv4(number: int = 1, destination: int = 3, ttl: int = 64, port: int = 80) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40, number, 0, ttl, 6, ttl) + bytes((10, 0, 0, 2, 10, 0, 0, destination))
    return head + struct.pack("!HHIIHHHH", 40000, port, 5, 0, 0x5002, 100, 0, 0)


def ipv6(label: int, port: int) -> bytes:
    return struct.pack("!IHBB", 6 << 28 | label, 8, 17, 64) + bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack("!HHHH", 4000, port, 8, 0)


def nftables(packet: bytes, chain: str, table: str = "netbox_trace_1", number: int = 0, hook: str = "", identity: int = 7) -> RuleRecord:
    kind = "rule" if number else "policy"
    return RuleRecord(HOST, "nftables", "inet", table, chain, kind, number, "accept", "", hook, "", "", packet, identity)


def legacy(packet: bytes, chain: str, number: int) -> RuleRecord:
    return RuleRecord(HOST, "iptables", "ip", "filter", chain, "rule", number, "", "", "forward", "", "", packet)


def test_what_tells_a_packet_from_others() -> None:
    assert content(ipv4(1, ttl=64)) == content(ipv4(1, ttl=63))
    assert len({content(packet) for packet in (ipv4(1), ipv4(2), ipv4(1, destination=4), ipv4(1, port=81), ipv6(1, 53), ipv6(1, 54))}) == 6
    assert content(b"") == content(b"\x45") == b""


def test_a_translated_packet_keeps_its_records() -> None:
    before, after = ipv4(destination=3, port=8080), ipv4(destination=9)
    decisions = Decisions()
    decisions.take(
        [
            nftables(before, "first", hook="prerouting"),
            nftables(before, "nat", "ip nat", 5),
            nftables(after, "last", hook="prerouting"),
            nftables(after, "first", hook="forward"),
            nftables(after, "forward", "other", 6),
            nftables(b"", "forward", "other", 7),
            legacy(after, "FORWARD", 1),
        ]
    )
    assert [record.number for record in decisions.of(before)] == [5, 6, 7, 1]
    assert decisions.of(after) == decisions.of(before)
    # The kernel gives the same number to another packet of the same flow, which enters anew.
    decisions.take([nftables(ipv4(2), "first", hook="prerouting"), nftables(b"", "other", "other", 9)])
    assert [record.number for record in decisions.of(ipv4(2))] == [9]
    assert len(decisions.of(before)) == 4
    assert decisions.of(ipv4(3)) == ()


def test_old_packets_are_forgotten() -> None:
    decisions = Decisions()
    decisions.take([legacy(ipv4(number), "FORWARD", 1) for number in range(5000)])
    assert decisions.of(ipv4(0)) == ()
    assert len(decisions.of(ipv4(4999))) == 1


def hit(verdict: str) -> RuleHit:
    return RuleHit("iptables", "ip", "filter", "FORWARD", 1, verdict, "", Owner("foreign"))


def test_which_rule_dropped_a_packet() -> None:
    assert dropper([]) is None
    assert dropper([hit("accept"), hit("drop"), hit("accept")]) == hit("drop")
    assert dropper([hit("accept")]) is None
    assert dropper([hit("accept"), hit("rule")]) == hit("rule")
