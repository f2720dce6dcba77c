from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.kernel.iptables_entry import Entry, arguments, validate
from netbox.network import firewall
from netbox.network.firewall import RuleGroup
from netbox.network.firewall_iptables import IptablesBackend, entry
from netbox.spec import PortSpec

NETWORK = """
iptables -t raw -A NETBOX-GUARD -d 127.0.0.0/8 -i netbox0 OWNER -j DROP
iptables -t raw -A NETBOX-GUARD -s 127.0.0.0/8 -i netbox0 OWNER -j DROP
iptables -t filter -A NETBOX-FENCE -s 10.9.0.0/20 ! -i netbox0 OWNER -j DROP
iptables -t filter -A NETBOX-FENCE -s 127.0.0.0/8 -o netbox0 OWNER -j DROP
iptables -t filter -A NETBOX-INGRESS -o netbox0 -m conntrack --ctstate RELATED,ESTABLISHED OWNER -j ACCEPT
iptables -t filter -A NETBOX-INGRESS -i netbox0 -o netbox0 OWNER -j ACCEPT
iptables -t filter -A NETBOX-INGRESS -o netbox0 -m conntrack --ctstate DNAT OWNER -j ACCEPT
iptables -t filter -A NETBOX-INGRESS -o netbox0 OWNER -j DROP
iptables -t filter -A NETBOX-EGRESS -s 10.9.0.0/20 -i netbox0 OWNER -j ACCEPT
iptables -t filter -A NETBOX-EGRESS -i netbox0 OWNER -j DROP
iptables -t nat -A NETBOX-HAIRPIN -s 10.9.0.0/20 -d 10.9.0.0/20 -o netbox0 -m conntrack --ctstate DNAT OWNER -j MASQUERADE
iptables -t nat -A NETBOX-HAIRPIN -s 127.0.0.0/8 -o netbox0 OWNER -j MASQUERADE
iptables -t nat -A NETBOX-KEEP -o netbox0 -m conntrack --ctstate DNAT OWNER -j ACCEPT
iptables -t nat -A NETBOX-LEAVE -s 10.9.0.0/20 ! -o netbox0 OWNER -j MASQUERADE
"""

BASE = """
iptables -t raw -N NETBOX-GUARD
iptables -t raw -I PREROUTING 1 -d 127.0.0.0/8 ! -i lo -j NETBOX-GUARD
iptables -t raw -I PREROUTING 1 -s 127.0.0.0/8 ! -i lo -j NETBOX-GUARD
iptables -t filter -N NETBOX-FENCE
iptables -t filter -N NETBOX-INGRESS
iptables -t filter -N NETBOX-EGRESS
iptables -t filter -I FORWARD 1 -j NETBOX-FENCE
iptables -t filter -I FORWARD 2 -j NETBOX-INGRESS
iptables -t filter -I FORWARD 3 -j NETBOX-EGRESS
iptables -t nat -N NETBOX-HAIRPIN
iptables -t nat -N NETBOX-KEEP
iptables -t nat -N NETBOX-LEAVE
iptables -t nat -N NETBOX-PUBLISH
iptables -t nat -A POSTROUTING -j NETBOX-HAIRPIN
iptables -t nat -A POSTROUTING -j NETBOX-KEEP
iptables -t nat -A POSTROUTING -j NETBOX-LEAVE
iptables -t nat -A PREROUTING ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j NETBOX-PUBLISH
iptables -t nat -A OUTPUT -m addrtype --dst-type LOCAL -j NETBOX-PUBLISH
"""


NAMES = """
iptables -t filter -N NETBOX-NAMES
iptables -t filter -I INPUT 1 -j NETBOX-NAMES
iptables -t filter -A NETBOX-NAMES -d 10.9.0.1 -i nb-1 -p udp -m udp --dport 61053 OWNER -j ACCEPT
iptables -t filter -A NETBOX-NAMES -d 10.9.0.1 -i nb-1 -p tcp -m tcp --dport 61053 OWNER -j ACCEPT
iptables -t nat -A NETBOX-PUBLISH -d 10.9.0.1 -p udp -m udp --dport 53 OWNER -j DNAT --to-destination 10.9.0.1:61053
iptables -t nat -A NETBOX-PUBLISH -d 10.9.0.1 -p tcp -m tcp --dport 53 OWNER -j DNAT --to-destination 10.9.0.1:61053
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


def test_the_rules_of_a_network() -> None:
    group = firewall.network_rules("network:bridge", "netbox0", "10.9.0.0/20")
    assert IptablesBackend().commands([group], base=False) == lines(NETWORK.replace("OWNER", "-m comment --comment network:bridge"))


def test_the_rules_of_an_internal_network() -> None:
    """Nothing is translated, and nothing forwarded: in whichever order networks and ports came, the fence is asked first."""
    group = firewall.network_rules("network:inner", "nb-1", "10.9.0.0/24", internal=True)
    text = """
iptables -t raw -A NETBOX-GUARD -d 127.0.0.0/8 -i nb-1 OWNER -j DROP
iptables -t raw -A NETBOX-GUARD -s 127.0.0.0/8 -i nb-1 OWNER -j DROP
iptables -t filter -A NETBOX-FENCE -i nb-1 ! -o nb-1 OWNER -j DROP
iptables -t filter -A NETBOX-FENCE ! -i nb-1 -o nb-1 OWNER -j DROP
iptables -t filter -A NETBOX-INGRESS -i nb-1 -o nb-1 OWNER -j ACCEPT
"""
    assert IptablesBackend().commands([group], base=False) == lines(text.replace("OWNER", "-m comment --comment network:inner"))


def test_names_at_another_port() -> None:
    group = firewall.with_names(firewall.RuleGroup("network:x", ()), "nb-1", ["10.9.0.1"], 61053)
    assert IptablesBackend().commands([group], base=False) == lines(NAMES.replace("OWNER", "-m comment --comment network:x"))
    plain = firewall.with_names(firewall.RuleGroup("network:x", ()), "nb-1", ["10.9.0.1"], 53)
    assert {rule.stage for rule in plain.rules} == {firewall.NAMES}


def test_the_base() -> None:
    assert IptablesBackend().commands([], base=True) == lines(BASE)


@pytest.mark.parametrize(
    ("port", "command"),
    [
        (PortSpec(80, 8080), "-p tcp -m tcp --dport 8080 COMMENT -j DNAT --to-destination 10.9.0.2:80"),
        (PortSpec(53, 5353, protocol="udp"), "-p udp -m udp --dport 5353 COMMENT -j DNAT --to-destination 10.9.0.2:53"),
        (PortSpec(3868, 3868, protocol="sctp"), "-p sctp -m sctp --dport 3868 COMMENT -j DNAT --to-destination 10.9.0.2:3868"),
        (PortSpec(80, 80), "-p tcp -m tcp --dport 80 COMMENT -j DNAT --to-destination 10.9.0.2:80"),
        (PortSpec(80, 8080, host_ip="127.0.0.1"), "-d 127.0.0.1 -p tcp -m tcp --dport 8080 COMMENT -j DNAT --to-destination 10.9.0.2:80"),
        # A range is one rule; where the numbers differ the kernel shifts them.
        (PortSpec(8000, 8000, 11), "-p tcp -m tcp --dport 8000:8010 COMMENT -j DNAT --to-destination 10.9.0.2"),
        (PortSpec(90, 8000, 11), "-p tcp -m tcp --dport 8000:8010 COMMENT -j DNAT --to-destination 10.9.0.2:90-100/8000"),
    ],
)
def test_a_published_port_is_one_rule(port: PortSpec, command: str) -> None:
    group = firewall.publish_rules("sandbox:abc", "10.9.0.2", [port])
    expected = f"iptables -t nat -A NETBOX-PUBLISH {command.replace('COMMENT', '-m comment --comment sandbox:abc')}"
    assert IptablesBackend().commands([group], base=False) == [expected]


def test_what_protects_comes_before_what_opens() -> None:
    groups = [firewall.publish_rules("s", "10.9.0.2", [PortSpec(80, 8080)]), firewall.network_rules("n", "nb0", "10.9.0.0/20")]
    tables = [line.split()[2] for line in IptablesBackend().commands(groups, base=False)]
    assert tables == ["raw"] * 2 + ["filter"] * 8 + ["nat"] * 5


def test_a_redirect_needs_ports() -> None:
    rule = firewall.Rule(firewall.PUBLISH, firewall.Redirect("10.9.0.2", 80), protocol="tcp")
    with pytest.raises(ValueError, match="needs ports"):
        entry(rule, "x")


ports = st.builds(
    lambda port, host, count, protocol, ip: PortSpec(port, host, count, protocol, ip),
    st.integers(1, 60000),
    st.integers(1, 60000),
    st.integers(1, 5000),
    st.sampled_from(["tcp", "udp", "sctp"]),
    st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"]),
)


@given(st.lists(ports, max_size=5))
def test_every_published_port_is_valid_and_owned(chosen: list[PortSpec]) -> None:
    group = firewall.publish_rules("sandbox:0123456789ab", "10.9.0.2", chosen)
    assert len(group.rules) == len(chosen)
    for rule in group.rules:
        item = entry(rule, group.owner)
        validate(item)
        words = arguments(item)
        assert words[words.index("--comment") + 1] == group.owner
        assert re.fullmatch(r"10\.9\.0\.2(:\d+(-\d+/\d+)?)?", words[-1])


@given(st.text(max_size=20), st.text(max_size=30))
def test_nothing_strange_reaches_the_c_library(interface: str, comment: str) -> None:
    item = Entry("NETBOX-X", "ACCEPT", in_interface=interface, comment=comment)
    try:
        validate(item)
    except ValueError:
        return
    assert re.fullmatch(r"!?[A-Za-z0-9_.-]*\+?", interface)
    assert re.fullmatch(r"[A-Za-z0-9_.:/ -]*", comment)


@pytest.mark.parametrize(
    "item",
    [
        Entry("", "ACCEPT"),
        Entry("A" * 29, "ACCEPT"),
        Entry("X", "LOG; rm"),
        Entry("X", "ACCEPT", in_interface="a" * 16),
        Entry("X", "ACCEPT", source="10.0.0.0/33"),
        Entry("X", "ACCEPT", source="10.0.0.0.0"),
        Entry("X", "ACCEPT", destination="!example.org"),
        Entry("X", "ACCEPT", protocol="sctp "),
        Entry("X", "ACCEPT", ports=(1, 2)),
        Entry("X", "ACCEPT", protocol="tcp", ports=(0, 2)),
        Entry("X", "ACCEPT", protocol="tcp", ports=(3, 2)),
        Entry("X", "ACCEPT", protocol="tcp", ports=(3, 65536)),
        Entry("X", "ACCEPT", states=("NEW", "OLD")),
        Entry("X", "ACCEPT", comment='a"b'),
        Entry("X", "ACCEPT", comment="x" * 256),
        Entry("X", "DNAT"),
        Entry("X", "ACCEPT", to_destination="10.0.0.1"),
        Entry("X", "DNAT", to_destination="10.0.0.1:70000"),
        Entry("X", "DNAT", to_destination="10.0.0.1:80-"),
        Entry("X", "DNAT", to_destination="host:80"),
    ],
)
def test_a_bad_value_is_refused(item: Entry) -> None:
    with pytest.raises(ValueError):
        validate(item)


def test_groups_are_values() -> None:
    assert firewall.publish_rules("a", "10.9.0.2", []) == RuleGroup("a", ())
    assert firewall.network_rules("a", "nb0", "10.9.0.0/20") == firewall.network_rules("a", "nb0", "10.9.0.0/20")
