"""Firewall rules as values, whoever made them, and what they decide about one packet. Pure.

A rule is matched in three values: what cannot be known about a packet that was not sent yet (its source port, a mark, a chance) is
``None``. Such a rule does not decide. It is kept as a doubt, so that a packet that does vanish, or does get through, is not a surprise.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

ACCEPT, DROP, REJECT, RETURN, JUMP, GOTO, CONTINUE, DNAT = "accept", "drop", "reject", "return", "jump", "goto", "continue", "dnat"
INGRESS, EGRESS = "ingress", "egress"
FINAL = (ACCEPT, DROP, REJECT, DNAT)
_DEPTH = 64  # chains inside chains; the kernel allows 16 (nf_tables), and as many as there are chains (iptables)


class Match(NamedTuple):
    """One condition. ``kind`` is one of ``_TESTS``, or unknown; ``values`` are alternatives, those of ``every`` tuples of matches that have
    to hold together.
    """

    kind: str
    values: tuple[Any, ...] = ()
    negated: bool = False


class FirewallRule(NamedTuple):
    """``verdict`` is one of the constants above; ``target`` the chain of a jump or the address[:port] of a dnat; ``owner`` the comment of a
    rule of netbox; ``text`` what a person would recognise it by.
    """

    number: int
    matches: tuple[Match, ...]
    verdict: str
    target: str = ""
    owner: str = ""
    text: str = ""


class Chain(NamedTuple):
    """``table`` is ``filter`` for the legacy tables and ``inet filter`` for nf_tables; ``hook`` is empty for a chain that is only jumped
    to; those of the bridge family are called ``bridge forward`` and so on. ``kind`` is filter, nat or route. A chain on ``ingress`` or
    ``egress`` is about ``devices``."""

    backend: str
    table: str
    name: str
    rules: tuple[FirewallRule, ...]
    hook: str = ""
    priority: int = 0
    policy: str = ACCEPT
    kind: str = "filter"
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packet:
    """What is known about the first packet of a connection where it meets the rules. ``local``: the destination is the host's own."""

    source: str
    destination: str
    protocol: str
    port: int = 0
    in_interface: str = ""
    out_interface: str = ""
    translated: bool = False
    local: bool = False
    state: str = "NEW"


@dataclass(frozen=True)
class Decision:
    """What the rules say. ``rule`` is ``None`` for a chain's policy; ``doubts`` are the rules that might have decided otherwise before."""

    verdict: str
    chain: Chain | None = None
    rule: FirewallRule | None = None
    doubts: tuple[tuple[Chain, FirewallRule], ...] = ()

    @property
    def place(self) -> str:
        """``filter NETBOX-INGRESS rule 4`` or ``ip filter FORWARD policy``."""
        return place(self.chain, self.rule) if self.chain else ""

    @property
    def owner(self) -> str:
        """Whose rule decided: ``network:front``, ``sandbox:…``; empty for a rule that is not netbox's."""
        return self.rule.owner if self.rule else ""


def place(chain: Chain, rule: FirewallRule | None) -> str:
    """Where a rule stands, in words."""
    return f"{chain.table} {chain.name} rule {rule.number}" if rule else f"{chain.table} {chain.name} policy"


def decide(chains: Iterable[Chain], hook: str, packet: Packet, kind: str = "") -> Decision:
    """What becomes of a packet on a hook: every chain there has to let it pass, in the order of their priorities. Chains of kind ``nat``
    are asked only when ``kind`` says so, and nothing else is then.
    """
    known = tuple(chains)
    doubts: list[tuple[Chain, FirewallRule]] = []
    device = packet.out_interface if hook == EGRESS else packet.in_interface
    on_hook = (chain for chain in known if chain.hook == hook and (hook not in (INGRESS, EGRESS) or device in chain.devices))
    for base in sorted(on_hook, key=lambda chain: chain.priority):
        if (base.kind == "nat") != (kind == "nat"):
            continue
        by_name = {chain.name: chain for chain in known if (chain.backend, chain.table) == (base.backend, base.table)}
        found = _run(base, by_name, packet, doubts, 0)
        if found is None:
            found = Decision(base.policy, base)
        if found.verdict != ACCEPT:
            return Decision(found.verdict, found.chain, found.rule, tuple(doubts))
    return Decision(ACCEPT, None, None, tuple(doubts))


def _run(
    chain: Chain, by_name: Mapping[str, Chain], packet: Packet, doubts: list[tuple[Chain, FirewallRule]], depth: int
) -> Decision | None:
    """The decision of a chain, or ``None`` when it has none."""
    for rule in chain.rules:
        matched = matches(rule, packet)
        if matched is None and rule.verdict != CONTINUE:
            doubts.append((chain, rule))
        if not matched:
            continue
        if rule.verdict in FINAL:
            return Decision(rule.verdict, chain, rule)
        if rule.verdict == RETURN:
            return None
        if rule.verdict in (JUMP, GOTO) and rule.target in by_name and depth < _DEPTH:
            found = _run(by_name[rule.target], by_name, packet, doubts, depth + 1)
            if found is not None or rule.verdict == GOTO:
                return found
    return None


def matches(rule: FirewallRule, packet: Packet) -> bool | None:
    """Whether the packet is one of those that a rule is about; ``None`` when that cannot be known."""
    unknown = False
    for match in rule.matches:
        found = _holds(match, packet)
        if found is False:
            return False
        unknown = unknown or found is None
    return None if unknown else True


def _holds(match: Match, packet: Packet) -> bool | None:
    test = _TESTS.get(match.kind)
    if test is None:
        return None
    unknown = False
    for value in match.values:
        found = test(value, packet)
        if found:
            return not match.negated
        unknown = unknown or found is None
    return None if unknown else match.negated


def _interface(value: str, name: str) -> bool:
    return name.startswith(value[:-1]) if value[-1:] in ("+", "*") else value == name


@lru_cache(1024)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text)


@lru_cache(1024)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


@lru_cache(1 << 14)
def _contains(network: str, address: str) -> bool | None:
    """Whether an address, a network or a range FIRST-LAST contains the address."""
    try:
        number = _address(address)
        if "-" in network:
            first, last = (_address(part) for part in network.split("-"))
            return first.version == number.version and int(first) <= int(number) <= int(last)
        return number in _network(network)
    except ValueError:
        return None


def _protocol(value: str, packet: Packet) -> bool:
    own = "icmpv6" if packet.protocol == "icmp" and ":" in packet.destination else packet.protocol
    return value in ("all", "0") or _PROTOCOLS.get(value, value) == own


def _version(value: str, packet: Packet) -> bool:
    return value in (("ip6", "ipv6", "34525") if ":" in packet.destination else ("ip", "ipv4", "2048"))


def _port(value: tuple[int, int], packet: Packet) -> bool:
    return value[0] <= packet.port <= value[1]


def _status(value: str, packet: Packet) -> bool | None:
    return {"DNAT": packet.translated, "SNAT": False}.get(value.upper())


def _every(parts: tuple[Match, ...], packet: Packet) -> bool | None:
    unknown = False
    for part in parts:
        found = _holds(part, packet)
        if found is False:
            return False
        unknown = unknown or found is None
    return None if unknown else True


_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "132": "sctp", "ipv6-icmp": "icmpv6"}
_ECHO_REQUEST = {"icmp": ("8", "8/0", "echo-request"), "icmpv6": ("128", "128/0", "echo-request")}
_TESTS: dict[str, Callable[[Any, Packet], bool | None]] = {
    "in": lambda value, packet: _interface(value, packet.in_interface),
    "out": lambda value, packet: _interface(value, packet.out_interface),
    "source": lambda value, packet: _contains(value, packet.source),
    "destination": lambda value, packet: _contains(value, packet.destination),
    "protocol": _protocol,
    "version": _version,
    "icmp": lambda value, packet: value in (*_ECHO_REQUEST["icmp"], "any", "255"),
    "icmpv6": lambda value, packet: value in _ECHO_REQUEST["icmpv6"],
    "port": _port,
    "state": lambda value, packet: value.upper() == packet.state,
    "status": _status,
    "local": lambda value, packet: value.upper() == "LOCAL" if packet.local else (False if value.upper() == "LOCAL" else None),
    "every": _every,
    "never": lambda value, packet: False,
    "always": lambda value, packet: True,
}
