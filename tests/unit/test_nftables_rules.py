from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.network import firewall, firewall_choice
from netbox.network.firewall import PUBLISH, Redirect, Rule
from netbox.network.firewall_choice import Situation, decide
from netbox.network.firewall_nftables import NftablesBackend
from netbox.network.firewall_nftables_networks import Network, named_member, network_from, network_of
from netbox.network.firewall_nftables_rules import chain_rule, element, named_element
from netbox.network.firewall_nftables_table import index_key
from netbox.spec import PortSpec

SHARED = """
guard ip daddr 127.0.0.0/8 iifname @open_bridges drop
guard ip saddr 127.0.0.0/8 iifname @open_bridges drop
fence ip saddr 127.0.0.0/8 oifname @open_bridges drop
ingress oifname @open_bridges ct state established,related accept
ingress iifname . oifname @open_pairs accept
ingress oifname @open_bridges ct status dnat accept
ingress oifname @open_bridges drop
egress iifname @open_bridges drop
hairpin ip saddr 127.0.0.0/8 oifname @open_bridges masquerade
keep oifname @open_bridges ct status dnat accept
"""
ABOUT_SUBNETS = """
fence ip saddr & 255.255.240.0 @subnets_20 iifname . ip saddr & 255.255.240.0 != @members_20 drop
egress iifname . ip saddr & 255.255.240.0 @members_20 accept
hairpin oifname . ip saddr & 255.255.240.0 @members_20 oifname . ip daddr & 255.255.240.0 @members_20 ct status dnat masquerade
leave ip saddr & 255.255.240.0 @subnets_20 oifname . ip saddr & 255.255.240.0 != @members_20 masquerade
"""
MEMBERS = """
open_bridges { "netbox0" comment "network:bridge" }
open_pairs { "netbox0" . "netbox0" comment "network:bridge" }
subnets_20 { 10.9.0.0 comment "network:bridge" }
members_20 { "netbox0" . 10.9.0.0 comment "network:bridge" }
"""


def typed(lines: list[str]) -> list[str]:
    """The commands as nft gets them, without those that make sets."""
    return [line for line in (" ".join(shlex.split(line)[1:]) for line in lines) if not line.startswith("add set")]


def test_the_rules_of_a_network() -> None:
    """They stand once for all networks; what tells a network apart are elements."""
    group = firewall.network_rules("network:bridge", "netbox0", "10.9.0.0/20")
    assert typed(NftablesBackend().commands([group], base=False)) == [
        *(f'add rule ip netbox {line} comment "netbox"' for line in SHARED.strip().splitlines()),
        # In front of what stands, the last one first: an accept for what is known comes before the drop of the rest.
        *(f'insert rule ip netbox {line} comment "netbox/20"' for line in reversed(ABOUT_SUBNETS.strip().splitlines())),
        *(f"add element ip netbox {line}" for line in MEMBERS.strip().splitlines()),
    ]


INTERNAL = """
guard ip daddr 127.0.0.0/8 iifname @internal_bridges drop
guard ip saddr 127.0.0.0/8 iifname @internal_bridges drop
fence iifname @internal_bridges iifname . oifname != @internal_pairs drop
fence oifname @internal_bridges iifname . oifname != @internal_pairs drop
ingress iifname . oifname @internal_pairs accept
"""


def test_the_rules_of_an_internal_network() -> None:
    group = firewall.network_rules("network:inner", "nb-1", "10.9.0.0/20", internal=True)
    assert typed(NftablesBackend().commands([group], base=False)) == [
        *(f'add rule ip netbox {line} comment "netbox"' for line in INTERNAL.strip().splitlines()),
        'add element ip netbox internal_bridges { "nb-1" comment "network:inner" }',
        'add element ip netbox internal_pairs { "nb-1" . "nb-1" comment "network:inner" }',
    ]


@pytest.mark.parametrize("internal", [False, True])
@pytest.mark.parametrize(
    ("subnet", "subnet6"), [("10.9.0.0/20", "fd00:9::/64"), ("192.168.4.0/30", "fd00:8::/80"), ("10.0.0.0/8", "fd00::/48")]
)
def test_a_network_is_known_by_its_rules_and_by_its_elements(subnet: str, subnet6: str, internal: bool) -> None:
    group = firewall.dual_stack(firewall.network_rules("network:x", "nb-1", subnet, internal), subnet, subnet6)
    group = firewall.with_names(group, "nb-1", ["10.9.0.1"], 61053)
    for ipv6, its in ((False, subnet), (True, subnet6)):
        network = network_of(group, ipv6)
        assert network == Network("nb-1", "" if internal else its, ipv6)
        assert network is not None
        members = network.members("network:x")
        assert network_from([(member.set, member.keys()[0]) for member in members], ipv6) == network
        assert [named_member(member.name, ipv6) for member in members] == [member._replace(owner="") for member in members]
        shared = [rule.command for part in network.parts() for rule in part.rules]
        assert sorted(network.standing(rule).command for rule in network.rules) == sorted(shared)


def test_a_group_that_is_not_a_whole_network_has_rules_of_its_own() -> None:
    group = firewall.network_rules("network:x", "nb-1", "10.9.0.0/20")
    edited = firewall.RuleGroup(group.owner, group.rules[1:])
    assert network_of(edited, False) is None
    assert network_of(firewall.publish_rules("sandbox:a", "10.9.0.2", [PortSpec(80, 8080)]), False) is None
    lines = NftablesBackend().commands([edited], base=False)
    assert len(lines) == len(edited.rules)
    assert 'nft \'add rule ip netbox ingress oifname "nb-1" drop comment "network:x"\'' in lines


@pytest.mark.parametrize(
    ("probability", "below"), [(0.5, 1 << 29), (0.05, 53687091), (1e-6, 1074), (1e-12, 1), (0.999999, (1 << 30) - 1074), (1.0, None)]
)
def test_a_share_of_packets(probability: float, below: int | None) -> None:
    rule = chain_rule(Rule("guard", "drop", source="10.9.0.2", probability=probability), "impair:abc")
    share = f"numgen random mod 1073741824 < {below} " if below else ""
    assert rule.command == f'add rule ip netbox guard ip saddr 10.9.0.2 {share}drop comment "impair:abc"'


def test_a_share_of_a_published_port_is_no_element() -> None:
    rule = Rule(PUBLISH, Redirect("10.9.0.2", 80), protocol="tcp", ports=(8080, 8080), probability=0.5)
    assert element(rule, "x:y") is None
    assert "numgen random mod 1073741824 < 536870912" in chain_rule(rule, "x:y").command


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (PortSpec(80, 8080), 'port { tcp . 8080 comment "sandbox:abc" : 10.9.0.2 . 80 }'),
        (PortSpec(53, 5353, protocol="udp"), 'port { udp . 5353 comment "sandbox:abc" : 10.9.0.2 . 53 }'),
        (
            PortSpec(80, 8080, host_ip="127.0.0.1"),
            'address_port { tcp . 127.0.0.1 . 8080 comment "sandbox:abc" : 10.9.0.2 . 80 }',
        ),
        # A range whose numbers stay is one element, one that is shifted has an element for each port.
        (PortSpec(8000, 8000, 11), 'port_range { tcp . 0.0.0.0/0 . 8000-8010 comment "sandbox:abc" : 10.9.0.2 }'),
        (
            PortSpec(90, 8000, 2),
            'port { tcp . 8000 comment "sandbox:abc 8000-8001" : 10.9.0.2 . 90,'
            ' tcp . 8001 comment "sandbox:abc 8000-8001" : 10.9.0.2 . 91 }',
        ),
    ],
)
def test_a_published_port_is_an_element(port: PortSpec, expected: str) -> None:
    group = firewall.publish_rules("sandbox:abc", "10.9.0.2", [port])
    assert NftablesBackend().commands([group], base=False) == [f"nft 'add element ip netbox {expected}'"]


def test_names_at_another_port_come_before_the_ports_of_all_addresses() -> None:
    """An accept for what comes to the host would overrule nobody, so there is none."""
    group = firewall.with_names(firewall.RuleGroup("network:x", ()), "nb-1", ["10.9.0.1"], 61053)
    assert NftablesBackend().commands([group], base=False) == [
        f"nft 'add element ip netbox address_port {{ {protocol} . 10.9.0.1 . 53 comment \"network:x\" : 10.9.0.1 . 61053 }}'"
        for protocol in ("udp", "tcp")
    ]


def test_the_base_comes_first() -> None:
    lines = NftablesBackend().commands([firewall.network_rules("network:x", "nb0", "10.9.0.0/20")], base=True)
    assert lines[0] == "nft add table ip netbox"
    first_use = next(number for number, line in enumerate(lines) if "network:x" in line)
    assert all("add rule" not in line or number >= first_use or 'comment "netbox"' in line for number, line in enumerate(lines))


def test_a_redirect_that_is_no_plain_port_is_a_rule() -> None:
    rule = Rule(PUBLISH, Redirect("10.9.0.2", 80), in_interface="eth0", protocol="tcp", ports=(8080, 8080))
    assert element(rule, "x:y") is None
    assert chain_rule(rule, "x:y").command == 'add rule ip netbox publish iifname "eth0" tcp dport 8080 dnat to 10.9.0.2:80 comment "x:y"'
    with pytest.raises(ValueError, match="shifted"):
        chain_rule(Rule(PUBLISH, Redirect("10.9.0.2", 80), in_interface="eth0", protocol="tcp", ports=(8080, 8081)), "x:y")
    with pytest.raises(ValueError, match="states"):
        chain_rule(Rule(PUBLISH, "accept", states=("DNAT", "NEW")), "x:y")


ports = st.builds(
    PortSpec,
    st.integers(1, 60000),
    st.integers(1, 60000),
    st.integers(1, 50),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"]),
)


@given(ports)
def test_what_the_index_remembers_is_enough_to_delete(port: PortSpec) -> None:
    (rule,) = firewall.publish_rules("sandbox:0123456789ab", "10.9.0.2", [port]).rules
    item = element(rule, "sandbox:0123456789ab")
    assert item is not None
    assert named_element(item.name).delete() == item.delete()
    assert len(item.keys()) == len(item.values())
    assert len(item.keys()) == (1 if port.port == port.host_port else port.length)
    assert item.comment.partition(" ")[0] == "sandbox:0123456789ab"


@given(st.text(max_size=20), st.text(max_size=110))
def test_nothing_strange_becomes_a_command(interface: str, owner: str) -> None:
    try:
        command = chain_rule(Rule("ingress", "accept", in_interface=interface), owner).command
    except ValueError:
        return
    name = r'(iifname (!= )?"[A-Za-z0-9_.-]+\*?" )?'
    assert re.fullmatch(rf'add rule ip netbox ingress {name}accept comment "[A-Za-z0-9_.:/-]{{1,100}}"', command)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789:", min_size=1, max_size=80))
def test_the_key_of_an_owner_fits(owner: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{1,15}", index_key(owner))


@pytest.mark.parametrize(
    ("situation", "name", "reason"),
    [
        (Situation("iptables", False, True, ("ip filter",)), "iptables", "NETBOX_FIREWALL says so"),
        (Situation("nftables", True, True, None), "nftables", "NETBOX_FIREWALL says so"),
        (Situation("auto", True, False, ()), "iptables", "no rules of others are in nf_tables"),
        (Situation("auto", True, False, None), "iptables", "this kernel has no nf_tables"),
        (Situation("auto", True, True, ("ip filter", "ip nat")), "nftables", "rules of this host are in nf_tables (ip filter, ip nat)"),
        (
            Situation("auto", True, False, ("ip nat",)),
            "iptables",
            "rules of this host are in nf_tables (ip nat), but libnftables1 is not installed",
        ),
        (Situation("auto", False, True, ()), "nftables", "the legacy tables are missing"),
        (Situation("auto", False, False, ()), "nftables", "the legacy tables are missing"),
    ],
)
def test_the_choice(situation: Situation, name: str, reason: str) -> None:
    assert decide(situation) == (name, reason)


def test_a_backend_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", "ipfw")
    with pytest.raises(UsageError, match="NETBOX_FIREWALL=ipfw: no such firewall backend"):
        firewall_choice.requested()
    monkeypatch.setenv("NETBOX_FIREWALL", "")
    assert firewall_choice.requested() == "auto"
