from __future__ import annotations

import pytest

from netbox.network import firewall
from netbox.network.exposure import PREROUTING, THIS_HOST, Connection, matches, sentence, walk
from netbox.network.firewall import Redirect, Rule, RuleGroup
from netbox.spec import PortSpec

FRONT = firewall.network_rules("network:front", "nb-front", "10.9.0.0/24")
BACK = firewall.network_rules("network:back", "nb-back", "10.9.1.0/24")
INNER = firewall.network_rules("network:inner", "nb-inner", "10.9.2.0/24", internal=True)
WEB = firewall.publish_rules(
    "sandbox:web", "10.9.0.2", [PortSpec(80, 8080), PortSpec(443, 8443, host_ip="127.0.0.1"), PortSpec(7000, 9000, 11, "udp")]
)
GROUPS = [FRONT, BACK, INNER, WEB]
BRIDGES = {"nb-front": "10.9.0.0/24", "nb-back": "10.9.1.0/24", "nb-inner": "10.9.2.0/24"}
SOURCES = {
    "nb-front": "10.9.0.9",
    "nb-back": "10.9.1.9",
    "nb-inner": "10.9.2.9",
    THIS_HOST: "198.51.100.2",
    "eth0": "198.51.100.1",
}


@pytest.mark.parametrize(
    ("interface", "destination", "port", "passes", "stages"),
    [
        ("eth0", "198.51.100.2", 8080, True, ["publish", "ingress"]),
        ("eth0", "198.51.100.2", 8081, False, []),
        ("eth0", "198.51.100.2", 8443, False, []),
        ("eth0", "127.0.0.1", 8443, False, ["prerouting"]),
        (THIS_HOST, "198.51.100.2", 8080, True, ["publish"]),
        (THIS_HOST, "127.0.0.1", 8443, True, ["publish"]),
        (THIS_HOST, "198.51.100.2", 8443, False, []),
        ("nb-front", "198.51.100.2", 8080, True, ["publish", "ingress"]),
        ("nb-front", "127.0.0.1", 8443, False, ["guard"]),
        ("nb-back", "198.51.100.2", 8080, True, ["publish", "ingress"]),
        ("nb-inner", "198.51.100.2", 8080, False, ["fence"]),
    ],
)
def test_a_published_port(interface: str, destination: str, port: int, passes: bool, stages: list[str]) -> None:
    found = walk(GROUPS, Connection(interface, SOURCES[interface], destination, "tcp", port), True, BRIDGES)
    assert found.passes is passes
    assert [step.rule.stage for step in found.steps] == stages


@pytest.mark.parametrize(
    ("interface", "destination", "passes", "stages"),
    [
        ("nb-front", "10.9.0.2", True, ["ingress"]),
        ("nb-back", "10.9.0.2", False, ["ingress"]),
        ("nb-inner", "10.9.0.2", False, ["fence"]),
        ("nb-back", "10.9.2.2", False, ["fence"]),
        ("nb-inner", "10.9.2.2", True, ["ingress"]),
        (THIS_HOST, "10.9.0.2", True, []),
        ("eth0", "10.9.0.2", False, ["ingress"]),
        ("eth0", "10.9.2.2", False, ["fence"]),
    ],
)
def test_an_address_of_its_own(interface: str, destination: str, passes: bool, stages: list[str]) -> None:
    found = walk(GROUPS, Connection(interface, SOURCES[interface], destination), False, BRIDGES)
    assert found.passes is passes
    assert [step.rule.stage for step in found.steps] == stages


def test_a_range_is_led_to_the_port_behind_it() -> None:
    connection = Connection("eth0", "198.51.100.1", "198.51.100.2", "udp", 9010)
    assert walk(GROUPS, connection, True, BRIDGES).passes
    assert not walk(GROUPS, Connection("eth0", "198.51.100.1", "198.51.100.2", "udp", 9011), True, BRIDGES).passes


@pytest.mark.parametrize(("interface", "kept"), [("nb-front", False), ("nb-back", True), ("eth0", True), (THIS_HOST, True)])
def test_whose_address_is_seen(interface: str, kept: bool) -> None:
    found = walk(GROUPS, Connection(interface, SOURCES[interface], "198.51.100.2", "tcp", 8080), True, BRIDGES)
    assert found.keeps_source is kept
    local = walk(GROUPS, Connection(THIS_HOST, "127.0.0.1", "127.0.0.1", "tcp", 8080), True, BRIDGES)
    assert not local.keeps_source


def test_a_missing_rule_shows() -> None:
    open_front = RuleGroup("network:front", tuple(rule for rule in FRONT.rules if rule.verdict != "drop"))
    found = walk([open_front, BACK, INNER, WEB], Connection("eth0", "198.51.100.1", "10.9.0.2"), False, BRIDGES)
    assert found.passes
    assert found.steps == ()


def test_a_loss_is_no_barrier() -> None:
    loss = RuleGroup("impair:a", (Rule("guard", "drop", in_interface="eth0", probability=0.5),))
    assert walk([loss, *GROUPS], Connection("eth0", "198.51.100.1", "198.51.100.2", "tcp", 8080), True, BRIDGES).passes


def test_wildcards_of_interfaces() -> None:
    assert matches(Rule("fence", "drop", in_interface="nb-+"), Connection("nb-back", "10.9.1.9", "10.9.0.2"))
    assert not matches(Rule("fence", "drop", in_interface="!nb-+"), Connection("nb-back", "10.9.1.9", "10.9.0.2"))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule("ingress", "drop", out_interface="netbox0"), "out by netbox0: drop"),
        (Rule("egress", "drop", in_interface="netbox0", source="!10.9.0.0/24"), "in by netbox0, not from 10.9.0.0/24: drop"),
        (Rule("ingress", "accept", out_interface="netbox0", states=("DNAT",)), "out by netbox0, redirected: accept"),
        (Rule("ingress", "accept", states=("RELATED", "ESTABLISHED")), "a reply: accept"),
        (Rule("publish", Redirect("10.9.0.2", 80), protocol="tcp", ports=(8080, 8080)), "tcp 8080: on to 10.9.0.2:80"),
        (
            Rule("publish", Redirect("10.9.0.2", 80), destination="127.0.0.1", protocol="udp", ports=(1, 9)),
            "to 127.0.0.1, udp 1-9: on to 10.9.0.2:80",
        ),
        (Rule("leave", "masquerade"), "anything: masquerade"),
        (PREROUTING, "from elsewhere to 127.0.0.0/8: not asked"),
    ],
)
def test_rules_in_words(rule: Rule, text: str) -> None:
    assert sentence(rule) == text
