"""The tables that mark packets for a trace, and how hooks of bridges lie around those of inet."""

from __future__ import annotations

from netbox.kernel.rule_trace import RuleRecord
from netbox.kernel.trace_tables import FIRST, LAST, commands
from netbox.packet.tracing.headers import Header
from netbox.packet.tracing.hooks import passages
from netbox.packet.tracing.rules import Rules

LISTING = """\
table inet filter {
	chain input {
		type filter hook input priority 0; policy accept;
	}
}
table bridge lab {
	chain f {
		type filter hook forward priority -200; policy accept;
	}
}
table netdev guard {
	chain one {
		type filter hook ingress device "eth0" priority 0; policy accept;
	}
	chain more {
		type filter hook ingress devices = { "eth1", eth2 } priority 0; policy accept;
	}
}
table arp lab {
	chain none {
	}
}
table arp netbox_trace_7_1 {
	chain input_first {
		type filter hook input priority -450; policy accept;
	}
}
"""
PACKET = bytes.fromhex("4500001c000100004011000000000000000000000001003500080000")


def test_inet_alone_where_nobody_else_has_chains() -> None:
    lines, families = commands("t", ("ip id 7",), "")
    assert families == ("inet",)
    assert lines[0] == "add table inet t { flags owner ; }"
    assert [line for line in lines if "nftrace" in line] == [
        f"add rule inet t {hook}_first ip id 7 meta nftrace set 1" for hook in ("prerouting", "output")
    ]


def test_other_families_where_somebody_has_chains() -> None:
    words = ("meta nfproto ipv4 meta l4proto icmp", "fib daddr type local", "limit rate 5/second")
    lines, families = commands("t", words, LISTING)
    assert families == ("inet", "bridge", "netdev")
    rules = [line.removeprefix("add rule ") for line in lines if "nftrace" in line]
    for hook in ("prerouting", "output"):
        assert f"bridge t {hook}_first meta protocol ip meta l4proto icmp meta nftrace set 1" in rules
        assert f"inet t {hook}_first fib daddr type local meta nftrace set 1" in rules
    assert not [rule for rule in rules if "fib" in rule and not rule.startswith("inet")]
    assert (
        'add chain netdev t ingress_first { type filter hook ingress devices = { "eth0", "eth1", "eth2" } priority -450 ; policy accept ; }'
        in lines
    )
    with_arp, families = commands("t", words, LISTING + "table arp other {\n\tchain c {\n\t\ttype filter hook input priority 0;\n\t}\n}\n")
    assert families[-1] == "arp"
    assert [line for line in with_arp if line.startswith("add rule arp")] == [
        f"add rule arp t {hook}_first limit rate 5/second meta nftrace set 1" for hook in ("input", "output")
    ]
    assert "arp" not in commands("t", ("ip id 7",), LISTING.replace("netbox_trace_7_1", "other"))[1]


def test_hooks_of_inet_inside_of_those_of_a_bridge() -> None:
    def mark(hook: str, end: str, family: str = "inet") -> RuleRecord:
        return RuleRecord(4, "nftables", family, "netbox_trace_1_1", end, "policy", 0, "accept", "", hook, "a", "b", PACKET, 9)

    def rule(number: int) -> RuleRecord:
        return RuleRecord(4, "nftables", "bridge", "lab", "p", "rule", number, "continue", "", "", "a", "", PACKET, 9)

    records = [
        mark("bridge prerouting", FIRST, "bridge"),
        rule(1),
        mark("prerouting", FIRST),
        mark("prerouting", LAST),
        rule(2),
        mark("bridge prerouting", LAST, "bridge"),
        mark("bridge forward", FIRST, "bridge"),
    ]

    def role(header: Header | None) -> str | None:
        return "request" if header else None

    found = passages(records, {4: Rules()}, role)
    assert [passage.hook for passage in found] == ["bridge prerouting", "prerouting", "bridge forward"]
    assert [len(passage.hits) for passage in found] == [2, 0, 0]
    assert [passage.after is None for passage in found] == [False, False, True]
