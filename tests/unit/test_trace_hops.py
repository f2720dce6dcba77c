"""Recorded events and records become hops: a probe that passes a bridge with NAT and is dropped, one that is answered, words about them."""

from __future__ import annotations

import dataclasses
import json

from netbox.kernel.packet_event import CONSUME, DELIVER, DROP, TRANSMIT, PacketEvent
from netbox.kernel.rule_trace import RuleRecord
from netbox.packet.tracing import text, values
from netbox.packet.tracing.assemble import Surroundings, hops
from netbox.packet.tracing.follow import outcome
from netbox.packet.tracing.headers import parse
from netbox.packet.tracing.hooks import Passage, passages
from netbox.packet.tracing.identity import Identity
from netbox.packet.tracing.located import followed
from netbox.packet.tracing.rules import Rules
from netbox.packet.tracing.values import Hop, Owner, Trace
from netbox.packet.tracing.watching import Grouping
from tests.unit.test_trace_reading import LEGACY, ipv4, tcp

CLIENT, HOST, DB = 11, 12, 13
AROUND = Surroundings(
    {CLIENT: "client", HOST: "host", DB: "db"},
    [CLIENT, HOST, DB],
    {(HOST, "nbc"): "link of client", (HOST, "br"): "network front", (HOST, "nbd"): "link of db"},
    frozenset({(HOST, "br")}),
    {"10.0.1.3": "db"},
    {"nbc": CLIENT, "nbd": DB},
    ports={(HOST, "nbc"): "br", (HOST, "nbd"): "br"},
)
MINE = Identity(4, "tcp", 77, 40000)
BEFORE = ipv4(6, tcp(40000, 5432), destination="10.0.0.1")
AFTER = ipv4(6, tcp(40000, 80), destination="10.0.1.3")
MINE_HEADER = parse(BEFORE)
ANSWER = ipv4(6, tcp(80, 40000, 0x12), "10.0.1.3", "10.0.0.2", 0)


def event(time: int, kind: str, netns: int, device: str, packet: bytes, reason: str = "", function: str = "", skb: int = 1) -> PacketEvent:
    return PacketEvent(1000 + time, kind, skb, netns, 1, device, 0x800, len(packet), packet, reason, function)


def mark(netns: int, hook: str, end: str, packet: bytes, into: str = "", out: str = "") -> RuleRecord:
    return RuleRecord(netns, "nftables", "inet", "netbox_trace_1", end, "policy", 0, "accept", "", hook, into, out, packet, 5)


def legacy(hook: str, table: str, chain: str, number: int, packet: bytes, kind: str = "rule") -> RuleRecord:
    return RuleRecord(HOST, "iptables", "ip", table, chain, kind, number, "", "", hook, "", "", packet)


NAT = """\
*nat
:PREROUTING ACCEPT [0:0]
:NETBOX-PUBLISH - [0:0]
-A PREROUTING -j NETBOX-PUBLISH
-A NETBOX-PUBLISH -p tcp -m tcp --dport 5432 -m comment --comment "sandbox:0123456789ab" -j DNAT --to-destination 10.0.1.3:80
COMMIT
"""
RULES = {HOST: Rules("", NAT + LEGACY, naming=lambda _: "db")}
RECORDS = [
    mark(HOST, "prerouting", "first", BEFORE, "br"),
    mark(HOST, "prerouting", "last", AFTER, "br"),
    mark(HOST, "forward", "first", AFTER, "br", "nb-1"),
    legacy("prerouting", "nat", "PREROUTING", 1, BEFORE),
    legacy("prerouting", "nat", "NETBOX-PUBLISH", 1, BEFORE),
    legacy("forward", "filter", "FORWARD", 1, AFTER),
    legacy("forward", "filter", "NETBOX-INGRESS", 1, AFTER),
    legacy("forward", "filter", "NETBOX-INGRESS", 1, ipv4(6, tcp(1, 2), number=1)),  # another packet
]
WAY = [
    event(0, TRANSMIT, CLIENT, "eth0", BEFORE),
    event(10, DELIVER, HOST, "nbc", BEFORE),
    event(20, DELIVER, HOST, "br", AFTER),
]


def _hops(events: list[PacketEvent], records: list[RuleRecord]) -> tuple[Hop, ...]:
    return hops(events, passages(records, RULES, MINE.role), MINE.role, AROUND)


def _trace(found: tuple[Hop, ...], reachable: bool = False) -> Trace:
    return Trace("client", "db (10.0.0.1)", found, outcome(found, reachable), "filtered: nothing came back", reachable, "bpf", {})


def test_dropped_behind_nat() -> None:
    found = _hops([*WAY, event(30, DROP, HOST, "br", AFTER, "NETFILTER_DROP", "nf_hook_slow")], RECORDS)
    assert [(hop.netns, hop.kind) for hop in found] == [
        ("client", "sent"),
        ("client", "device"),
        ("host", "device"),
        ("host", "rule"),
        ("host", "rule"),
        ("host", "nat"),
        ("host", "bridge"),
        ("host", "route"),
        ("host", "rule"),
        ("host", "rule"),
        ("host", "drop"),
    ]
    nat = found[5]
    assert nat.before is not None
    assert (nat.before.destination_port, nat.flow and str(nat.flow)) == (5432, "10.0.0.2:40000 → 10.0.1.3:80")
    assert nat.rule is not None
    assert (nat.rule.owner, nat.rule.verdict) == (Owner("sandbox", "db"), "dnat")
    last = found[-1]
    assert last.rule is not None
    assert (last.rule.place, last.rule.owner, last.time) == ("filter NETBOX-INGRESS rule 1", Owner("network", "back"), 30)
    trace = _trace(found)
    assert trace.outcome == "dropped"
    assert text.sentence(trace) == "dropped on host by filter NETBOX-INGRESS rule 1 (network back): NETFILTER_DROP in nf_hook_slow"
    assert json.loads(json.dumps(trace.to_json()))["hops"][-1]["rule"]["place"] == "filter NETBOX-INGRESS rule 1"


def test_without_events_the_rules_tell() -> None:
    found = _hops([], RECORDS)
    assert [hop.kind for hop in found] == ["sent", "rule", "rule", "nat", "route", "rule", "rule", "drop"]
    assert text.sentence(_trace(found)) == "dropped on host by filter NETBOX-INGRESS rule 1 (network back)"


def test_taken_and_answered() -> None:
    events = [
        event(0, TRANSMIT, CLIENT, "eth0", BEFORE),
        event(10, DELIVER, DB, "eth0", AFTER),
        event(30, TRANSMIT, DB, "eth0", ANSWER, skb=2),
        event(40, CONSUME, 0, "", AFTER, "", "tcp_rcv_state_process"),
        event(50, DELIVER, CLIENT, "eth0", ANSWER, skb=2),
        event(55, DROP, CLIENT, "eth0", AFTER, "QUEUE_PURGE", "skb_queue_purge_reason", skb=3),
        event(56, DROP, CLIENT, "eth0", ANSWER, "SOCKET_FILTER", "raw_rcv", skb=6),
        event(60, DROP, CLIENT, "eth0", ANSWER, "NO_SOCKET", "tcp_v4_rcv", skb=2),
        event(70, CONSUME, CLIENT, "eth0", ANSWER, "", "raw_recvmsg", skb=4),
        event(80, TRANSMIT, CLIENT, "eth0", ipv4(6, tcp(40000, 80, 4), number=3), skb=5),  # the kernel's own RST
    ]
    silent = [item._replace(function="") if item.kind == CONSUME else item for item in events]  # Linux before 6.4 does not say who took it
    silent[1:1] = [event(5, CONSUME, HOST, "nbc", AFTER), event(8, CONSUME, DB, "", AFTER, skb=9)]  # copies are freed at any time
    silent.insert(4, event(20, CONSUME, DB, "", AFTER, skb=9))
    told = [[(hop.netns, hop.kind, hop.text, hop.time) for hop in _hops(way, [])] for way in (events, silent)]
    assert told[0] == told[1]
    found = _hops(events, [])
    assert [(hop.netns, hop.kind, hop.direction) for hop in found] == [
        ("client", "sent", "request"),
        ("client", "device", "request"),
        ("db", "nat", "request"),
        ("db", "device", "request"),
        ("db", "socket", "request"),
        ("db", "sent", "reply"),
        ("db", "device", "reply"),
        ("client", "device", "reply"),
        ("client", "socket", "reply"),
    ]
    trace = dataclasses.replace(_trace(found, True), answer="open: SYN-ACK")
    assert text.sentence(trace) == "delivered: it was taken by db; answer: open: SYN-ACK"
    assert [hop.time for hop in found] == sorted(hop.time for hop in found)


def test_where_a_socket_took_it() -> None:
    """The kernel may give the socket a copy that says no device, while another one, a packet socket's, is freed on the way behind it."""
    events = [
        event(0, TRANSMIT, CLIENT, "eth0", BEFORE),
        event(10, DELIVER, DB, "eth0", AFTER),
        event(20, CONSUME, HOST, "nbc", AFTER, "", "packet_recvmsg", skb=9),
        event(25, DROP, HOST, "nbc", AFTER, "PACKET_SOCK_ERROR", "tpacket_rcv", skb=10),
        event(30, TRANSMIT, DB, "eth0", ANSWER, skb=2),
        event(40, CONSUME, 0, "", AFTER, "", "tcp_rcv_state_process", skb=8),
    ]
    assert [hop.netns for hop in _hops(events, []) if hop.kind == "socket"] == ["db"]


def _passed(hook: str, into: str, out: str) -> list[RuleRecord]:
    return [mark(HOST, hook, end, BEFORE, into, out) for end in ("first", "last")]


def test_a_bridge_is_told_without_its_hooks() -> None:
    """Linux without br_netfilter shows no hook of inet what a bridge switches; where it does, that is not said twice."""
    way = [*WAY[:2], event(20, TRANSMIT, HOST, "nbd", BEFORE), event(30, DELIVER, DB, "eth0", BEFORE)]
    hook = _passed("forward", "br", "br")
    first, last = _passed("bridge forward", "nbc", "nbd")
    port, leaves = [first, *hook, last], _passed("bridge postrouting", "", "nbd")
    for records in ([], [*hook, *_passed("postrouting", "", "br")], [*port, *leaves], [first, last, *leaves]):
        assert [hop.text for hop in _hops(way, records) if hop.netns == "host"] == [
            "in by nbc (link of client)",
            "stays on br (network front)",
            "out by nbd (link of db)",
        ]


def test_a_translation_is_told_where_it_was() -> None:
    """With br_netfilter on the port, without it behind the bridge."""
    records = [mark(HOST, "prerouting", "first", BEFORE, "br"), mark(HOST, "prerouting", "last", AFTER, "br")]
    port, bridge = "in by nbc (link of client)", "in by br (network front)"
    translated = "destination translated back (known connection)"
    for looks, expected in ((AFTER, [port, translated, bridge]), (BEFORE, [port, bridge, translated])):
        found = _hops([*WAY[:2], event(20, DELIVER, HOST, "br", looks), event(30, TRANSMIT, HOST, "nbd", AFTER)], records)
        assert [hop.text for hop in found if hop.netns == "host"][:3] == expected


def test_lost() -> None:
    trace = _trace(_hops(WAY[:2], []))
    assert text.sentence(trace) == "lost: the kernel reported no drop, last seen on host at nbc; answer: filtered: nothing came back"
    full = dataclasses.replace(trace, counters={"ListenOverflows": 1})
    assert "the listen backlog of db (10.0.0.1) is full (ListenOverflows +1)" in text.sentence(full)


def test_lines_of_hops() -> None:
    found = _hops([*WAY, event(30, DROP, HOST, "br", AFTER, "IP_INHDR", "ip_forward")], RECORDS)
    shown = [text.what(hop) for hop in found if not text.is_detail(hop)]
    assert shown == [
        "sends TCP SYN 10.0.0.2:40000 → 10.0.0.1:5432",
        "out",
        "in (link of client)",
        "prerouting: nat NETBOX-PUBLISH rule 1 (sandbox db): dnat",
        "NAT 10.0.0.2:40000 → 10.0.0.1:5432 ⇒ 10.0.0.2:40000 → 10.0.1.3:80, by nat NETBOX-PUBLISH rule 1 (sandbox db)",
        "in (network front)",
        "routed from br (network front) to nb-1",
        "forward: filter NETBOX-INGRESS rule 1 (network back): drop",
        "DROPPED: IP_INHDR in ip_forward — its TTL has expired",
    ]


def test_events_without_headers_are_found_by_device_and_length() -> None:
    def bare(time: int, kind: str, device: str, skb: int, length: int, reason: str = "") -> PacketEvent:
        return PacketEvent(time, kind, skb, 0, 0, device, 0, length, b"", reason)

    sent = Passage(CLIENT, "request", "postrouting", "", "eth0", MINE_HEADER, MINE_HEADER)
    events = [
        bare(1, TRANSMIT, "eth0", 7, 54),  # of another namespace
        bare(2, TRANSMIT, "eth0", 8, 54),
        bare(3, DELIVER, "nbc", 8, 40),
        bare(4, TRANSMIT, "nbd", 8, 54),
        bare(5, DELIVER, "eth0", 8, 40),
        bare(6, DROP, "eth0", 8, 40, "NO_SOCKET"),
        bare(7, TRANSMIT, "eth0", 8, 54),  # the address again
    ]
    found = followed(events, [sent], AROUND, HOST)
    assert [(item.time, item.netns) for item in found] == [(2, CLIENT), (3, HOST), (4, HOST), (5, DB), (6, DB)]
    assert followed(events, [], AROUND, HOST) == []
    assert [hop.netns for hop in hops(found, [], MINE.role, AROUND)] == ["client", "host", "host", "host", "db", "db"]


def test_live_packets_are_told_apart() -> None:
    grouping = Grouping()
    for item in (
        *WAY,
        event(25, DELIVER, DB, "eth0", ANSWER, skb=2),
        event(40, CONSUME, DB, "eth0", AFTER, function="tcp_v4_rcv", skb=9),  # a copy
        event(50, TRANSMIT, CLIENT, "eth0", ipv4(6, tcp(40000, 80, 0x10), number=78), skb=1),
    ):
        grouping.add(item)
    assert grouping.settled(0) == []
    groups = grouping.settled(1 << 40)
    assert [[item.time - 1000 for item in group.events] for group in groups] == [[0, 10, 20, 40], [25], [50]]
    assert not grouping.waits


def test_rules_of_others_are_shown_as_they_stand() -> None:
    hit = RULES[HOST].hit(legacy("forward", "filter", "FORWARD", 2, AFTER))
    assert text.rule(hit).startswith("filter FORWARD rule 2 (foreign: -A FORWARD -s 10.9.0.0/16 ")
    assert text.rule(hit._replace(position=0)) == "filter FORWARD policy (foreign)"


def test_reasons_have_words() -> None:
    assert text.reason("NO_SOCKET") == "no socket listens there"
    assert text.reason("IP_INHDR", "ip_rcv_core") != text.reason("IP_INHDR", "ip_forward")
    assert text.reason("SOMETHING_NEW") == ""
    assert values.endpoint("fd00::1", 80) == "[fd00::1]:80"
