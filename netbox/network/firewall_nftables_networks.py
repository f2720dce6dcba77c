"""The rules of all networks at once, in the terms of nft(8): what differs from network to network is an element of a set. Pure.

A network's rules (``firewall.network_rules``) are the same for every network but for its bridge and its subnet. So each of them stands
once, for all networks, and asks sets instead of naming a bridge. However many networks there are, a packet meets as many rules as with
one, and a network comes and goes by elements. All sets are hash sets, whose cost does not depend on their size either; a set of
intervals would be read, or copied, as a whole for every change. That is why subnets are found by their first address, under the mask of
their length: each length that is in use has sets and rules of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from ipaddress import ip_network
from typing import Any, NamedTuple

from netbox.network.firewall import FENCE, GUARD, LEAVE, LOOPBACK, LOOPBACK6, STAGES, Rule, RuleGroup, dual_stack, network_rules
from netbox.network.firewall_nftables_rules import (
    CHAINS,
    FAMILIES,
    OWN,
    TABLES,
    ChainRule,
    Term,
    address_terms,
    connection_terms,
    match_term,
    verdict_term,
)

OPEN, INTERNAL = "open", "internal"
_BRIDGES, _PAIRS = "_bridges", "_pairs"  # behind the kind of network
_SUBNETS, _MEMBERS = "subnets_", "members_"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_OPEN_PART, _INTERNAL_PART = 200, 201  # above any prefix length
_KINDS = {_OPEN_PART: OPEN, _INTERNAL_PART: INTERNAL}
_ANY_BRIDGE, _ANY_SUBNET = "bridge", {False: "192.0.2.0", True: "2001:db8::"}
_FIELDS = {"source": "saddr", "destination": "daddr"}


class Member(NamedTuple):
    """An element of one of the sets of networks: a bridge, a subnet, or a bridge with what belongs to it."""

    set: str
    key: tuple[str, ...]
    owner: str = ""
    ipv6: bool = False

    @property
    def name(self) -> str:
        """What identifies it, in a comment that its owner's entry of the index keeps."""
        return f"{self.set} {' '.join(self.key)}"

    @property
    def comment(self) -> str:
        """Its owner."""
        return self.owner

    def keys(self) -> list[str]:
        """The one key."""
        return [" . ".join(self.key)]

    def values(self) -> list[str]:
        """A set has none."""
        return [""]

    def add(self) -> str:
        """The command that adds it."""
        return f'add element {TABLES[self.ipv6]} {self.set} {{ {self._typed()} comment "{self.owner}" }}'

    def delete(self) -> str:
        """The command that takes it away."""
        return f"delete element {TABLES[self.ipv6]} {self.set} {{ {self._typed()} }}"

    def _typed(self) -> str:
        """Interfaces are quoted: one may be called as a word of nft is."""
        return quoted(self.set, self.keys()[0])


def named_member(name: str, ipv6: bool = False) -> Member | None:
    """The element that ``Member.name`` named, good for ``delete``; ``None`` if it was none."""
    set_name, *key = name.split(" ")
    return Member(set_name, tuple(key), ipv6=ipv6) if is_network_set(set_name) else None


def quoted(set_name: str, key: str) -> str:
    """A key as it is typed; ``key`` is as it is listed."""
    if not is_network_set(set_name) or set_name.startswith(_SUBNETS):
        return key
    first, *rest = key.split(" . ")
    return " . ".join([f'"{first}"', *(rest if set_name.startswith(_MEMBERS) else (f'"{part}"' for part in rest))])


def is_network_set(name: str) -> bool:
    """Whether a set is one of those that tell networks apart."""
    return name.endswith((_BRIDGES, _PAIRS)) or name.startswith((_SUBNETS, _MEMBERS))


class Part(NamedTuple):
    """What comes into a family's table with the first network of a kind, or the first subnet with a prefix length: sets, and the rules that
    ask them. ``number`` is its entry in the index. ``first`` says that the rules come before those that stand: an accept for what is known
    comes before the drop of the rest.
    """

    number: int
    sets: dict[str, str]
    rules: tuple[ChainRule, ...]
    first: bool = False


@dataclass(frozen=True)
class Network:
    """What tells a network from others. An internal one has no subnet here: its rules ask for none."""

    bridge: str
    subnet: str = ""
    ipv6: bool = False

    @property
    def kind(self) -> str:
        """``open`` or ``internal``."""
        return OPEN if self.subnet else INTERNAL

    @property
    def length(self) -> int:
        """Of the subnet's prefix; 0 for an internal one."""
        return ip_network(self.subnet).prefixlen if self.subnet else 0

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """Its rules."""
        group = network_rules("", self.bridge, self.subnet, internal=not self.subnet)
        if self.ipv6:
            group = dual_stack(group, self.subnet, self.subnet)
        return tuple(rule for rule in group.rules if rule.ipv6 == self.ipv6)

    def members(self, owner: str) -> list[Member]:
        """Its elements."""
        found: list[tuple[str, tuple[str, ...]]] = [
            (f"{self.kind}{_BRIDGES}", (self.bridge,)),
            (f"{self.kind}{_PAIRS}", (self.bridge, self.bridge)),
        ]
        if self.subnet:
            first = str(ip_network(self.subnet).network_address)
            found += [(f"{_SUBNETS}{self.length}", (first,)), (f"{_MEMBERS}{self.length}", (self.bridge, first))]
        return [Member(name, key, owner, self.ipv6) for name, key in found]

    def parts(self) -> list[Part]:
        """What its elements need."""
        if not self.subnet:
            return [part(_INTERNAL_PART, self.ipv6)]
        return [part(_OPEN_PART, self.ipv6), part(self.length, self.ipv6)]

    def standing(self, rule: Rule) -> ChainRule:
        """The rule of everybody's that stands for one of ``rules``."""
        return _shared(rule, self)


def network_of(group: RuleGroup, ipv6: bool) -> Network | None:
    """The network whose rules of a family the group has; ``None`` if they are not those of any, or edited ones."""
    rules = [rule for rule in group.rules if rule.ipv6 == ipv6]
    bridge = next((rule.in_interface for rule in rules if rule.stage == GUARD), "")
    if not _NAME.fullmatch(bridge):
        return None
    fenced = (LOOPBACK, LOOPBACK6, "")
    subnet = next((rule.source for rule in rules if rule.stage in (FENCE, LEAVE) and rule.source not in fenced), "")
    try:
        found = Network(bridge, subnet, ipv6)
        known = (not subnet or found.length > 0) and set(found.rules) <= set(rules)
    except ValueError:
        return None
    return found if known else None


def network_from(members: Iterable[tuple[str, str]], ipv6: bool) -> Network | None:
    """The network that has these elements: names of sets, and keys as they are listed."""
    found = dict(members)
    for name, key in found.items():
        if name.startswith(_MEMBERS):
            bridge, first = key.split(" . ")
            return Network(bridge, f"{first}/{name.removeprefix(_MEMBERS)}", ipv6)
    internal = found.get(f"{INTERNAL}{_BRIDGES}")
    return Network(internal, "", ipv6) if internal else None


@cache
def part(number: int, ipv6: bool) -> Part:
    """A part by its number: that of open networks, of internal ones, or of the subnets with a prefix length."""
    if number in _KINDS:
        network = _any(24, ipv6) if _KINDS[number] == OPEN else Network(_ANY_BRIDGE, "", ipv6)
        return Part(
            number,
            {f"{network.kind}{_BRIDGES}": "type ifname ;", f"{network.kind}{_PAIRS}": "type ifname . ifname ;"},
            _rules(network, False),
        )
    address = "ipv6_addr" if ipv6 else "ipv4_addr"
    return Part(
        number,
        {f"{_SUBNETS}{number}": f"type {address} ;", f"{_MEMBERS}{number}": f"type ifname . {address} ;"},
        _rules(_any(number, ipv6), True),
        first=True,
    )


def parts(sets: set[str], ipv6: bool) -> list[Part]:
    """The parts whose sets are among these."""
    numbers = [number for number, kind in _KINDS.items() if f"{kind}{_BRIDGES}" in sets]
    lengths = sorted(int(name.removeprefix(_SUBNETS)) for name in sets if name.startswith(_SUBNETS))
    return [part(number, ipv6) for number in (*numbers, *lengths)]


def _any(length: int, ipv6: bool) -> Network:
    return Network(_ANY_BRIDGE, str(ip_network(f"{_ANY_SUBNET[ipv6]}/{length}", strict=False)), ipv6)


def _rules(network: Network, about_subnets: bool) -> tuple[ChainRule, ...]:
    """The rules that stand for all networks like this one, those about subnets or the others, in the order of the stages."""
    rules = sorted(network.rules, key=lambda rule: STAGES.index(rule.stage))
    return tuple(_shared(rule, network) for rule in rules if _is_about_subnet(rule, network) == about_subnets)


def _is_about_subnet(rule: Rule, network: Network) -> bool:
    return bool(network.subnet) and network.subnet in (rule.source, rule.destination)


def _shared(rule: Rule, network: Network) -> ChainRule:
    ipv6 = rule.ipv6
    subnet, loopback = network.subnet, LOOPBACK6 if ipv6 else LOOPBACK
    terms: list[Term] = []
    for value, field in ((rule.source, "saddr"), (rule.destination, "daddr")):
        if value == loopback:
            terms += address_terms(field, value, ipv6)  # it costs the least, and says no to nearly all
    about = [_FIELDS[name] for name in _FIELDS if subnet and getattr(rule, name) == subnet]
    terms += _asked(rule, network, about)
    terms += connection_terms(rule.states)
    comment = f"{OWN}/{network.length}" if about else OWN
    return ChainRule(CHAINS[rule.stage], (*terms, verdict_term(rule)), comment, ipv6)


def _asked(rule: Rule, network: Network, about: list[str]) -> list[Term]:
    """The sets that a rule asks in place of its bridge and its subnet."""
    bridges, pairs = f"{network.kind}{_BRIDGES}", f"{network.kind}{_PAIRS}"
    way_in, way_out = _key("iifname") if rule.in_interface else [], _key("oifname") if rule.out_interface else []
    elsewhere = [key for key, name in ((way_in, rule.in_interface), (way_out, rule.out_interface)) if name.startswith("!")]
    if about:
        subnets, members = f"{_SUBNETS}{network.length}", f"{_MEMBERS}{network.length}"
        fields = [_masked(field, network) for field in about]
        of = way_in or way_out
        if elsewhere:
            return [_in_set(fields[:1], subnets), _in_set([*of, fields[0]], members, negated=True)]
        return [_in_set([*of, field], members) for field in fields]
    if way_in and way_out:
        pair = _in_set([*way_in, *way_out], pairs, negated=bool(elsewhere))
        own = way_out if elsewhere == [way_in] else way_in
        return [_in_set(own, bridges), pair] if elsewhere else [pair]
    return [_in_set(way_in or way_out, bridges)]


def _key(name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, {"meta": {"key": name}})]


def _masked(field: str, network: Network) -> tuple[str, dict[str, Any]]:
    """An address under the mask of a prefix length."""
    ip, mask = FAMILIES[network.ipv6], str(ip_network(network.subnet).netmask)
    return f"{ip} {field} & {mask}", {"&": [{"payload": {"protocol": ip, "field": field}}, mask]}


def _in_set(keys: list[tuple[str, dict[str, Any]]], name: str, negated: bool = False) -> Term:
    left = keys[0][1] if len(keys) == 1 else {"concat": [listed for _, listed in keys]}
    return match_term(f"{' . '.join(text for text, _ in keys)} {'!= ' if negated else ''}@{name}", left, f"@{name}", negated)
