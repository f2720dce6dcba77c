"""What shaping asks of the kernel: messages byte by byte, against those of tc(8), and the order of the parts."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from netbox.errors import Conflict
from netbox.kernel import traffic_control as tc
from netbox.kernel.iptables_entry import Entry, arguments, validate
from netbox.network import shaping
from netbox.network.firewall_iptables import entry
from netbox.network.plan import Endpoint, NetworkPlan
from netbox.network.shaping import Impairment

HEADER = 20  # bytes, struct tcmsg

# What tc of iproute2 6.1 sends behind struct tcmsg, taken with strace(1): TCA_KIND, then TCA_OPTIONS.
TC_NETEM = (  # netem limit 50000 delay 100ms 10ms corrupt 1.5%
    "0a0001006e6574656d0000002800020084d7170050c300000000000000000000000000005a6202000c0004003d0ad70300000000"
)
TC_NETEM_DELAY = "0a0001006e6574656d0000001c000200286bee0050c3000000000000000000000000000000000000"  # netem limit 50000 delay 1s
TC_HTB = "08000100687462001c00020018000200030000000a000000010000000000000000000000"  # htb default 1
TC_U32 = (  # u32 match ip dst 10.1.2.0/24 flowid 4:2
    "0800010075333200" "30000200" "0800010002000400" "24000500"
    "01000100000000000000000000000000" "ffffff00" "0a010200" "10000000" "00000000"
)  # fmt: skip

ENDPOINT = Endpoint("bridge", "netbox0", "10.9.0.0/20", "10.9.0.1", "10.9.0.2", "02:6e:0a:09:00:02", 1500, "eth0", "nb0123456789")
PLAN = NetworkPlan("0123456789abcdef" * 4, "bridge", "web", endpoints=(ENDPOINT,))


def test_netem_is_what_tc_sends() -> None:
    request = tc.add_netem(7, tc.TC_H_ROOT, tc.handle(1), 100_000_000, 10_000_000, 1.5, 0, 50_000)
    assert request.body[HEADER:].hex() == TC_NETEM
    assert struct.unpack("=BxxxiIII", request.body[:HEADER]) == (0, 7, 0x10000, 0xFFFFFFFF, 0)
    assert (request.kind, request.flags) == (36, 0x600)
    assert tc.add_netem(7, tc.TC_H_ROOT, tc.handle(1), 1_000_000_000, 0, 0, 0, 50_000).body[HEADER:].hex() == TC_NETEM_DELAY
    lossy = tc.add_netem(7, tc.TC_H_ROOT, tc.handle(1), 1_000_000_000, 0, 0, 25, 50_000).body[HEADER:].hex()
    assert lossy == TC_NETEM_DELAY.replace("50c30000" + 4 * "00", "50c30000" + "00000040")


def test_htb_is_what_tc_sends() -> None:
    assert tc.add_htb(7, tc.TC_H_ROOT, tc.handle(4), 1).body[HEADER:].hex() == TC_HTB


def test_a_filter_is_what_tc_sends() -> None:
    (request,) = tc.add_filter(7, tc.handle(4), 3, tc.DESTINATION, ["10.1.2.0/24"], tc.handle(4, 2))
    assert request.body[HEADER:].hex() == TC_U32
    assert struct.unpack("=BxxxiIII", request.body[:HEADER]) == (0, 7, 0, 0x40000, 196616)  # as tc's, for pref 3 and protocol ip


def test_a_rate_beyond_32_bits() -> None:
    slow, fast = (tc.add_tbf(7, tc.TC_H_ROOT, tc.handle(1), rate, 1 << 20, 1 << 21).body for rate in (0xFFFFFFFF, 1 << 33))
    assert struct.pack("=HHQ", 12, tc.TCA_TBF_RATE64, 1 << 33) in fast
    assert len(fast) == len(slow) + 12


def test_names_of_handles() -> None:
    assert [tc.name(value) for value in (tc.TC_H_ROOT, tc.handle(4), tc.handle(18, 1))] == ["root", "4:", "12:1"]


def commands(direction: str, *impairments: Impairment, base: int = 0) -> list[str]:
    return [step.command for step in shaping.steps(7, 1500, direction, base, impairments)]


def test_nothing_asked_for_is_nothing() -> None:
    assert commands("in") == []
    assert commands("in", Impairment("out", rate=125_000), Impairment("in", loss=5.0)) == []  # loss is the firewall's


def test_the_order_of_the_parts() -> None:
    everybody = Impairment("out", rate=125_000, delay=100_000_000, jitter=1_000_000)
    peer = Impairment("out", "db", ("10.9.0.3/32",), rate=62_500, corrupt=1.0)
    lossy = Impairment("out", "far", ("10.8.0.0/16",), loss=1.0)
    assert commands("out", everybody, peer, lossy, base=1_250_000) == [
        "qdisc add dev DEV root handle 1: tbf rate 10mbit burst 15140 limit 77640",
        "qdisc add dev DEV parent 1:1 handle 2: netem limit 352 delay 100ms 1ms",
        "qdisc add dev DEV parent 2:1 handle 3: tbf rate 1mbit burst 15140 limit 47908",
        "qdisc add dev DEV parent 3:1 handle 4: htb default 1",
        "class add dev DEV parent 4: classid 4:1 htb rate 1tbit quantum 60000",
        "qdisc add dev DEV parent 4:1 handle 12: bfifo limit 47908",
        "class add dev DEV parent 4: classid 4:2 htb rate 1tbit quantum 60000",
        "filter add dev DEV parent 4: protocol ip pref 1 u32 match ip dst 10.9.0.3/32 flowid 4:2",
        "qdisc add dev DEV parent 4:2 handle 14: netem limit 100 corrupt 1%",
        "qdisc add dev DEV parent 14:1 handle 15: tbf rate 500kbit burst 15140 limit 47908",
    ]
    assert commands("in", peer._replace(direction="in"))[3].endswith("match ip src 10.9.0.3/32 flowid 4:2")


def test_loss_is_a_rule_where_packets_arrive() -> None:
    items = [Impairment("in", loss=5.0), Impairment("out", "db", ("10.9.0.3/32",), loss=50.0), Impairment("out", rate=1000)]
    inside, outside = (shaping.loss_rules(PLAN, direction, items) for direction in ("in", "out"))
    assert inside.owner == outside.owner == "impair:0123456789ab"
    assert [" ".join(arguments(entry(rule, inside.owner))) for rule in inside.rules] == [
        "-d 10.9.0.2 -i eth0 -m statistic --mode random --probability 0.0500000000 -m comment --comment impair:0123456789ab -j DROP"
    ]
    assert [" ".join(arguments(entry(rule, outside.owner))) for rule in outside.rules] == [
        "-s 10.9.0.2 -d 10.9.0.3/32 -i netbox0 -m statistic --mode random --probability 0.5000000000"
        " -m comment --comment impair:0123456789ab -j DROP"
    ]


def test_loss_that_no_rule_would_see_is_the_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        Impairment("in", loss=5.0),
        Impairment("out", "db", ("10.9.0.3/32",), loss=50.0),
        Impairment("out", "far", ("10.8.0.0/16",), loss=1.0),
    ]
    monkeypatch.setattr(shaping, "_BRIDGE_NETFILTER", "/nowhere")
    wanted = shaping.placed(PLAN, asked)
    assert [item.in_queue for item in wanted] == [False, True, False]
    assert commands("out", *wanted)[-1] == "qdisc add dev DEV parent 4:2 handle 14: netem limit 50000 loss 50%"
    assert commands("out", *shaping.placed(PLAN, [Impairment("out", loss=5.0)])) == [
        "qdisc add dev DEV root handle 2: netem limit 50000 loss 5%"
    ]
    assert [rule.destination for rule in shaping.loss_rules(PLAN, "out", wanted).rules] == ["10.8.0.0/16"]
    assert [Impairment.from_json(item.to_json()) for item in wanted] == wanted


def test_loss_of_both_families() -> None:
    endpoint = dataclasses.replace(PLAN.endpoints[0], address6="fd00::2", subnet6="fd00::/64", gateway6="fd00::1")
    plan = dataclasses.replace(PLAN, endpoints=(endpoint,))
    items = [Impairment("out", "db", ("10.9.0.3/32", "fd00::3/128"), loss=50.0), Impairment("out", loss=5.0)]
    found = [(rule.source, rule.destination, rule.ipv6) for rule in shaping.loss_rules(plan, "out", items).rules]
    both = [("10.9.0.2", "10.9.0.3/32", False), ("10.9.0.2", "", False), ("fd00::2", "fd00::3/128", True), ("fd00::2", "", True)]
    assert found == both
    commands = [step.command for step in shaping.steps(3, 1500, "out", 0, [Impairment("out", "db", ("fd00::3/128",), rate=1000)])]
    assert any("protocol ipv6" in line and "u32 match ip6 dst fd00::3/128" in line for line in commands)


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_a_probability_is_a_share(probability: float) -> None:
    with pytest.raises(ValueError, match="bad probability"):
        validate(Entry("NETBOX-LOSS", "DROP", probability=probability))


def test_a_new_impairment_replaces_that_of_the_same_peer_and_direction() -> None:
    old = [Impairment("in", rate=1), Impairment("in", "db", ("10.9.0.3/32",), rate=2), Impairment("out", rate=3)]
    assert shaping.merged(old, [Impairment("in", rate=9)]) == [*old[1:], Impairment("in", rate=9)]
    assert shaping.merged(old, [Impairment("in", "10.9.0.3", ("10.9.0.3/32",), loss=1.0)])[-1].loss == 1.0


def test_peers_must_not_overlap() -> None:
    old = [Impairment("in", "db", ("10.9.0.3/32",), rate=2)]
    assert len(shaping.merged(old, [Impairment("out", "10.0.0.0/8", ("10.0.0.0/8",), rate=2)])) == 2
    with pytest.raises(Conflict, match=r"the peer 10\.0\.0\.0/8 overlaps db, which is impaired already"):
        shaping.merged(old, [Impairment("in", "10.0.0.0/8", ("10.0.0.0/8",), rate=2)])


def test_an_impairment_survives_json() -> None:
    item = Impairment("in", "db", ("10.9.0.3/32",), 125_000, 0.5, 1.0, 100_000_000, 1_000_000, 12.5)
    assert Impairment.from_json(item.to_json()) == item
    assert item.effects == {"rate": "1mbit", "loss": "0.5%", "corrupt": "1%", "delay": "100ms", "jitter": "1ms"}
