"""What a trace reads: headers, trace records, listings of rules, lines of tracefs, filters."""

from __future__ import annotations

import socket
import struct

import pytest

from netbox.errors import UsageError
from netbox.kernel.packet_event import DELIVER, DROP, TRANSMIT
from netbox.kernel.rule_trace import RuleRecord, parse_prefix
from netbox.kernel.tracefs import parse as parse_line
from netbox.packet.tracing.filters import acceptor
from netbox.packet.tracing.headers import parse
from netbox.packet.tracing.identity import Identity
from netbox.packet.tracing.rules import Rules
from netbox.packet.tracing.values import Flow, Owner


def ipv4(protocol: int, body: bytes, source: str = "10.0.0.2", destination: str = "10.0.0.3", number: int = 77) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, 0, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(destination) + body


def tcp(source: int, destination: int, flags: int = 2) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 0, 0x50, flags, 1000, 0, 0)


def ipv6(protocol: int, body: bytes, label: int = 77) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, "fd00::2") + socket.inet_pton(socket.AF_INET6, "fd00::3")
    return struct.pack("!IHBB", 6 << 28 | label, len(body), protocol, 63) + addresses + body


ERROR = ipv4(1, b"\3\3" + bytes(6) + ipv4(6, tcp(40000, 80)[:8]), "10.0.0.3", "10.0.0.2", 9)


def test_headers() -> None:
    found = parse(ipv4(6, tcp(40000, 80)))
    assert found is not None
    assert (found.flow, found.identity, found.ttl, found.length) == (Flow("tcp", "10.0.0.2", "10.0.0.3", 40000, 80, "SYN"), 77, 64, 40)
    six = parse(ipv6(0, b"\x06\0" + bytes(6) + tcp(1, 2, 0x12)))  # behind hop-by-hop options
    assert six is not None
    assert (str(six.flow), six.flow.detail, six.identity, six.ttl) == ("[fd00::2]:1 → [fd00::3]:2", "SYN,ACK", 77, 63)
    echo = parse(ipv4(1, struct.pack("!BBHHH", 8, 0, 0, 5, 1)))
    assert echo is not None
    assert (echo.flow.detail, echo.echo, str(echo.flow)) == ("echo request", 5, "10.0.0.2 → 10.0.0.3")
    arp = parse(struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + bytes(6) + b"\x0a\0\0\x02" + bytes(6) + b"\x0a\0\0\x03")
    assert arp is not None
    assert arp.flow == Flow("arp", "10.0.0.2", "10.0.0.3", detail="who-has")


def test_an_error_quotes_a_packet() -> None:
    found = parse(ERROR)
    assert found is not None
    assert found.quoted is not None
    assert (found.flow.detail, found.quoted.flow.destination_port, found.quoted.identity) == ("port unreachable", 80, 77)
    short = parse(ERROR[:40])  # as the firewall's trace has it
    assert short is not None
    assert short.quoted is not None
    assert (short.quoted.flow.protocol, short.quoted.identity) == ("tcp", 77)


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x60" + bytes(10), bytes(28), b"\x45" + bytes(11)])
def test_garbage_is_nothing(data: bytes) -> None:
    assert parse(data) is None


def test_who_is_who() -> None:
    mine = Identity(4, "tcp", 77, 40000)
    assert mine.role(parse(ipv4(6, tcp(40000, 80)))) == "request"
    assert mine.role(parse(ipv4(6, tcp(40001, 8080)))) == "request"  # behind NAT
    assert mine.role(parse(ipv4(6, tcp(80, 40000, 0x12), number=0))) == "reply"
    assert mine.role(parse(ipv4(6, tcp(40000, 80), number=78))) is None
    assert mine.role(parse(ipv4(17, tcp(40000, 80)))) is None
    assert mine.role(parse(ERROR)) == "reply"
    assert mine.role(None) is None
    ping = Identity(4, "icmp", 77, 5)
    assert ping.role(parse(ipv4(1, struct.pack("!BBHHH", 8, 0, 0, 5, 1)))) == "request"
    assert ping.role(parse(ipv4(1, struct.pack("!BBHHH", 0, 0, 0, 5, 1), number=1))) == "reply"
    assert ping.role(parse(ipv4(1, struct.pack("!BBHHH", 0, 0, 0, 6, 1)))) is None
    assert Identity(6, "tcp", 77, 2).role(parse(ipv6(6, tcp(2, 80)))) == "request"


def test_packets_of_others_with_the_same_number() -> None:
    """A busy connection has each IP id again and again."""
    for mine, body in (
        (Identity(4, "tcp", 77, 40000), tcp(50000, 80, 0x10)),
        (Identity(4, "sctp", 77, 40000), struct.pack("!HHIIBBH", 50000, 80, 1, 0, 3, 0, 4)),
        (Identity(4, "udp", 77, 40000, (80, 8080)), struct.pack("!HHHH", 50000, 443, 8, 0)),
    ):
        number = {"tcp": 6, "udp": 17, "sctp": 132}[mine.protocol]
        assert mine.role(parse(ipv4(number, body))) is None
        behind_nat = body[:2] + struct.pack("!H", 8080) + body[4:]
        if mine.protocol == "udp":
            assert mine.role(parse(ipv4(number, behind_nat))) == "request"


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("TRACE: filter:FORWARD:rule:3 ", ("filter", "FORWARD", "rule", 3)),
        ("TRACE: raw:NETBOX-GUARD:return:1 ", ("raw", "NETBOX-GUARD", "return", 1)),
        ("TRACE: filter:odd:name:policy:2 ", ("filter", "odd:name", "policy", 2)),
        ("dropped by me", None),
        ("TRACE: filter:FORWARD", None),
    ],
)
def test_trace_records(prefix: str, expected: object) -> None:
    assert parse_prefix(prefix) == expected


LEGACY = """\
*filter
:FORWARD DROP [0:0]
:NETBOX-INGRESS - [0:0]
-A FORWARD -j NETBOX-INGRESS
-A FORWARD -s 10.9.0.0/16 -m comment --comment "a b" -j REJECT --reject-with icmp-port-unreachable
-A NETBOX-INGRESS -o nb-1 -m comment --comment "network:back" -j DROP
COMMIT
"""
NFTABLES = """\
table ip netbox { # handle 1
	chain forward { # handle 2
		type filter hook forward priority 0; policy accept;
		jump ingress comment "netbox" # handle 7
	}

	chain ingress { # handle 3
		oifname "nb-1" drop comment "network:back" # handle 9
	}
}
table inet other { # handle 2
	chain f { # handle 1
		type filter hook forward priority 10; policy drop;
		ip saddr 10.9.0.0/16 reject # handle 4
	}
}
"""


def _record(backend: str, table: str, chain: str, number: int, kind: str = "rule", family: str = "ip", verdict: str = "") -> RuleRecord:
    return RuleRecord(1, backend, family, table, chain, kind, number, verdict, "", "forward", "a", "b", b"")


def test_rules_have_text_and_owner() -> None:
    rules = Rules(NFTABLES, LEGACY)
    ours = rules.hit(_record("iptables", "filter", "NETBOX-INGRESS", 1))
    assert (ours.place, ours.verdict, ours.owner) == ("filter NETBOX-INGRESS rule 1", "drop", Owner("network", "back"))
    assert rules.hit(_record("iptables", "filter", "FORWARD", 1)).owner == Owner("netbox")
    foreign = rules.hit(_record("iptables", "filter", "FORWARD", 2))
    assert (foreign.verdict, foreign.owner) == ("reject", Owner("foreign"))
    policy = rules.hit(_record("iptables", "filter", "FORWARD", 3, "policy"))
    assert (policy.place, policy.verdict) == ("filter FORWARD policy", "drop")
    assert rules.hit(_record("iptables", "filter", "NETBOX-INGRESS", 2, "return")).place == "filter NETBOX-INGRESS end"
    nft = rules.hit(_record("nftables", "netbox", "ingress", 9, verdict="drop"))
    assert (nft.place, nft.text, nft.owner) == (
        "ip netbox ingress rule 1",
        'oifname "nb-1" drop comment "network:back"',
        Owner("network", "back"),
    )
    assert rules.priority(_record("nftables", "other", "f", 4, family="inet")) == 10
    assert rules.hit(_record("nftables", "other", "f", 0, "policy", "inet", "drop")).verdict == "drop"
    assert rules.knows(_record("nftables", "netbox", "ingress", 9))
    assert not rules.knows(_record("nftables", "netbox", "ingress", 10))


def test_lines_of_tracefs() -> None:
    line = "  nc-12 [000] b..2.  120.000125: net_dev_queue: dev=eth0 skbaddr=00000000abcdef01 len=74"
    event = parse_line(line)
    assert event is not None
    assert (event.kind, event.time, event.device, event.length, event.skb) == (TRANSMIT, 120_000_125_000, "eth0", 74, 0xABCDEF01)
    drop = parse_line(
        "<idle>-0 [001] ..s1. 1.5: kfree_skb: skbaddr=0a rx_sk=0b protocol=2048 location=nf_hook_slow+0x9d/0x110 reason: NETFILTER_DROP"
    )
    assert drop is not None
    assert (drop.kind, drop.reason, drop.function, drop.time) == (DROP, "NETFILTER_DROP", "nf_hook_slow", 1_500_000_000)
    assert parse_line("x-1 [0] .. 1.0: kfree_skb: skbaddr=0a protocol=0 location=a+0x1/0x2 reason: NOT_SPECIFIED") is None
    plain = parse_line("x-1 [0] .. 1.0: kfree_skb: skbaddr=0a protocol=2048 location=ffffffffc0a1b2c3 reason: NETFILTER_DROP")  # Linux 6.1
    assert plain is not None
    assert plain.function == "ffffffffc0a1b2c3"
    assert parse_line("x-1 [0] .. 1.0: sched_switch: prev=1") is None
    assert parse_line("CPU:0 [LOST 12 EVENTS]") is None
    arrived = parse_line("x-1 [0] .. 1.0: netif_receive_skb: dev=nb-1 skbaddr=0a len=60")
    assert arrived is not None
    assert arrived.kind == DELIVER


def test_filters() -> None:
    packet = ipv4(6, tcp(40000, 80))
    passing = [
        "tcp port 80",
        "host 10.0.0.3",
        "tcp[tcpflags] & tcp-syn != 0",
        "ip and not udp",
        "dst portrange 70-90",
        "net 10.0.0.0/24",
        "",
    ]
    refused = ["udp", "src port 80", "ip6", "host 10.0.0.4", "greater 100", "tcp[200] = 1"]
    assert [expression for expression in passing if not acceptor(expression)(packet)] == []
    assert [expression for expression in refused if acceptor(expression)(packet)] == []
    assert acceptor("ip6 and tcp port 80")(ipv6(6, tcp(1, 80)))
    with pytest.raises(UsageError, match="nonsense"):
        acceptor("nonsense and more")
