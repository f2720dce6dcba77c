"""Who can reach what: a connection walked through rule values, stage by stage, as a packet would be. Pure.

The kernel's own order is in ``netbox.network.firewall``. What this host sends itself passes PUBLISH only: netbox filters forwarded packets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from netbox.network import firewall
from netbox.network.firewall import LOOPBACK, LOOPBACK6, Redirect, Rule, RuleGroup

THIS_HOST = ""
"""The interface by which what this host sends itself comes in: none."""
PREROUTING, PREROUTING6 = (Rule("prerouting", firewall.DROP, destination=item, ipv6=":" in item) for item in (LOOPBACK, LOOPBACK6))
"""Not rules but what the jump to PUBLISH leaves out, for packets that come from elsewhere."""


@dataclass(frozen=True)
class Connection:
    """The first packet of a connection, where it comes in. ``in_interface`` is ``THIS_HOST`` for what this host sends itself."""

    in_interface: str
    source: str
    destination: str
    protocol: str = "tcp"
    port: int = 0
    out_interface: str = ""
    translated: bool = False


@dataclass(frozen=True)
class Step:
    """A rule that decided something, and whose it is."""

    owner: str
    rule: Rule


@dataclass(frozen=True)
class Walk:
    """Where a connection ends: whether it gets through, the rules that say so, and whether the sandbox sees the client's own address."""

    passes: bool
    steps: tuple[Step, ...]
    keeps_source: bool


def walk(groups: Sequence[RuleGroup], connection: Connection, local: bool, bridges: dict[str, str]) -> Walk:
    """Walks a connection to the sandbox that it leads to. ``local`` says that its destination is an address of this host, ``bridges`` gives
    the subnets of the bridges, of the family that the connection has.
    """
    ipv6 = ":" in connection.destination
    rules = [Step(group.owner, rule) for group in groups for rule in group.rules if rule.probability >= 1 and rule.ipv6 == ipv6]
    here = connection.in_interface == THIS_HOST
    if not here and (step := _first(rules, firewall.GUARD, connection)):
        return Walk(False, (step,), True)
    steps: list[Step] = []
    if local:
        left_out = PREROUTING6 if ipv6 else PREROUTING
        if not here and inside(connection.destination, left_out.destination):
            return Walk(False, (Step("netbox", left_out),), True)
        step = _first(rules, firewall.PUBLISH, connection)
        if step is None:
            return Walk(False, (), True)  # this host itself answers, and refuses
        steps.append(step)
        connection = _redirected(connection, step.rule)
    connection = dataclasses.replace(connection, out_interface=_bridge_of(connection.destination, bridges))
    if not here:
        verdict = _forwarded(rules, connection)
        if verdict is not None:
            steps.append(verdict)
            if verdict.rule.verdict == firewall.DROP:
                return Walk(False, (verdict,), True)
    changed = _first(rules, firewall.HAIRPIN, connection)
    if changed is None and not _first(rules, firewall.KEEP, connection):
        changed = _first(rules, firewall.LEAVE, connection)
    return Walk(True, tuple(steps), changed is None or changed.rule.verdict != firewall.MASQUERADE)


def _forwarded(rules: Sequence[Step], connection: Connection) -> Step | None:
    """The rule that lets a forwarded connection through or drops it; ``None`` when no rule of ours says anything."""
    return next((step for stage in (firewall.FENCE, firewall.INGRESS, firewall.EGRESS) if (step := _first(rules, stage, connection))), None)


def _redirected(connection: Connection, rule: Rule) -> Connection:
    assert isinstance(rule.verdict, Redirect)
    assert rule.ports is not None
    port = rule.verdict.port + connection.port - rule.ports[0]
    return dataclasses.replace(connection, destination=rule.verdict.address, port=port, translated=True)


def _bridge_of(address: str, bridges: dict[str, str]) -> str:
    return next((bridge for bridge, subnet in bridges.items() if inside(address, subnet)), "elsewhere")


def _first(rules: Iterable[Step], stage: str, connection: Connection) -> Step | None:
    return next((step for step in rules if step.rule.stage == stage and matches(step.rule, connection)), None)


def matches(rule: Rule, connection: Connection) -> bool:
    """Whether the rule is about the connection's first packet."""
    states = {"NEW", "DNAT"} if connection.translated else {"NEW"}
    return (
        _interface(rule.in_interface, connection.in_interface)
        and _interface(rule.out_interface, connection.out_interface)
        and _network(rule.source, connection.source)
        and _network(rule.destination, connection.destination)
        and rule.protocol in ("", connection.protocol)
        and (rule.ports is None or rule.ports[0] <= connection.port <= rule.ports[1])
        and (not rule.states or not states.isdisjoint(rule.states))
    )


def _interface(wanted: str, name: str) -> bool:
    bare = wanted.removeprefix("!")
    found = name.startswith(bare[:-1]) if bare.endswith("+") else name == bare
    return not wanted or found != wanted.startswith("!")


def _network(wanted: str, address: str) -> bool:
    return not wanted or inside(address, wanted.removeprefix("!")) != wanted.startswith("!")


def inside(address: str, network: str) -> bool:
    """Whether an address is in a network."""
    return ip_address(address) in ip_network(network, strict=False)


def sentence(rule: Rule) -> str:
    """The rule in words: ``out by netbox0, redirected: accept``."""
    if rule in (PREROUTING, PREROUTING6):
        return f"from elsewhere to {rule.destination}: not asked"
    ports = rule.ports and (str(rule.ports[0]) if rule.ports[0] == rule.ports[1] else f"{rule.ports[0]}-{rule.ports[1]}")
    named = (
        ("in by", rule.in_interface),
        ("out by", rule.out_interface),
        ("from", rule.source),
        ("to", rule.destination),
        (rule.protocol, ports or ""),
    )
    words = [f"{'not ' if value.startswith('!') else ''}{name} {value.removeprefix('!')}" for name, value in named if value]
    if rule.states:
        words.append("redirected" if rule.states == ("DNAT",) else "a reply")
    if isinstance(rule.verdict, Redirect):
        verdict = f"on to {rule.verdict.address}:{rule.verdict.port}"
    else:
        verdict = {firewall.ACCEPT: "accept", firewall.DROP: "drop"}.get(rule.verdict, rule.verdict)
    return f"{', '.join(words) or 'anything'}: {verdict}"
