"""Our table of nf_tables as it stands in the kernel, and how it differs from what should stand. Pure, but for one look at a
sysctl.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from netbox.network.facts import answers_from_loopback
from netbox.network.firewall import (
    EGRESS,
    FENCE,
    HAIRPIN,
    INGRESS,
    KEEP,
    LEAVE,
    NAMES,
    PUBLISH,
    Difference,
    InstalledRule,
    Rule,
    RuleGroup,
    is_owner,
)
from netbox.network.firewall_nftables_networks import Member, Network, Part, is_network_set, network_from, network_of, parts, quoted
from netbox.network.firewall_nftables_rules import (
    ADDRESS_PORT,
    LOCAL,
    OWN,
    OWNED,
    PORT,
    PORT_RANGE,
    TABLES,
    ChainRule,
    Element,
    chain_rule,
    element,
    jump,
    lookup,
    not_loopback,
)

IN_CHAINS = "rules"  # an entry of the index: the owner has rules in chains
BASE_KEY, VERSION = "base", 300  # behind the numbers of parts
_PRIME = (1 << 60) - 93

# Name, and what hangs it on a hook; "-100" is "dstnat", a name that the hook output does not have.
CHAINS = {
    "guard": "type filter hook prerouting priority -300 ; policy accept ;",
    "fence": "",
    "ingress": "",
    "egress": "",
    "forward": "type filter hook forward priority 0 ; policy accept ;",
    "hairpin": "",
    "keep": "",
    "leave": "",
    "postrouting": "type nat hook postrouting priority 100 ; policy accept ;",
    "publish": "",
    "prerouting": "type nat hook prerouting priority -100 ; policy accept ;",
    "output": "type nat hook output priority -100 ; policy accept ;",
}
_SETS = {
    OWNED: ("set", "type ifname . mark ;"),
    PORT: ("map", "type inet_proto . inet_service : {address} . inet_service ;"),
    ADDRESS_PORT: ("map", "type inet_proto . {address} . inet_service : {address} . inet_service ;"),
    PORT_RANGE: ("map", "type inet_proto . {address} . inet_service : {address} ; flags interval ;"),
}


def sets(ipv6: bool) -> dict[str, tuple[str, str]]:
    """The sets and maps of a family's table: kind and definition."""
    address = "ipv6_addr" if ipv6 else "ipv4_addr"
    return {name: (kind, definition.format(address=address)) for name, (kind, definition) in _SETS.items()}


def base_rules(ipv6: bool) -> tuple[ChainRule, ...]:
    """The rules of a family's table that are everybody's. What is sent to ::1 is left out where no answer would come back."""
    return (
        jump("forward", FENCE, ipv6=ipv6),
        jump("forward", INGRESS, ipv6=ipv6),
        jump("forward", EGRESS, ipv6=ipv6),
        lookup(ADDRESS_PORT, ipv6),
        lookup(PORT, ipv6),
        lookup(PORT_RANGE, ipv6),
        jump("prerouting", PUBLISH, LOCAL, not_loopback(ipv6), ipv6=ipv6),
        jump("output", PUBLISH, LOCAL, *(() if not ipv6 or answers_from_loopback() else (not_loopback(True),)), ipv6=ipv6),
        jump("postrouting", HAIRPIN, ipv6=ipv6),
        jump("postrouting", KEEP, ipv6=ipv6),
        jump("postrouting", LEAVE, ipv6=ipv6),
    )


class Rendered:
    """What a group has in the table of a family, in the terms of nft."""

    def __init__(self, group: RuleGroup, ipv6: bool = False) -> None:
        self.owner = group.owner
        self.ipv6 = ipv6
        self.rules: list[tuple[str, ChainRule]] = []
        self.elements: list[Element | Member] = []
        self.parts: list[Part] = []
        network = network_of(group, ipv6)
        if network is not None:
            self.elements += network.members(group.owner)
            self.parts += network.parts()
        for rule in group.rules:
            if rule.ipv6 != ipv6 or rule.stage == NAMES:
                continue  # names: an accept in a table of our own overrules nobody's drop
            if network is not None and rule in network.rules:
                continue
            item = element(rule, group.owner)
            if item is not None:
                self.elements.append(item)
            else:
                self.rules.append((rule.stage, chain_rule(rule, group.owner)))

    @property
    def entries(self) -> list[str]:
        """What the index says about the owner."""
        return [*([IN_CHAINS] if self.rules else []), *(item.name for item in self.elements)]

    def index(self) -> list[str]:
        """The commands that put it into the index."""
        return [index_command(self.owner, self.entries, self.ipv6)] if self.entries else []


def typed(line: str) -> str:
    """A command as it is typed into a shell: braces, semicolons, quotes and ``@`` are words of nft's, not of the shell's."""
    return f"nft '{line}'" if any(sign in line for sign in '{;"*<>[') else f"nft {line}"


def index_key(owner: str) -> str:
    """The owner as a key of the index: at most 15 characters, which is what the type holds. 60 bits never meet by chance."""
    return f"{int.from_bytes(owner.encode(), 'big') % _PRIME:x}"


def index_command(owner: str, entries: Sequence[str], ipv6: bool) -> str:
    """The command that puts what an owner has into the index of a family's table."""
    key, count = index_key(owner), len(entries)
    items = ", ".join(f'"{key}" . {number} comment "{count} {entry}"' for number, entry in enumerate(entries))
    return f"add element {TABLES[ipv6]} {OWNED} {{ {items} }}"


class Table:
    """Our table of a family as the kernel has it."""

    def __init__(self, listed: Iterable[dict[str, Any]], ipv6: bool = False) -> None:
        self.ipv6 = ipv6
        self.rules: list[dict[str, Any]] = []
        self.chains: dict[str, dict[str, Any]] = {}
        self.elements: dict[tuple[str, str], tuple[str, str]] = {}  # (set, key) -> (value, comment)
        self.sets: set[str] = set()
        for item in listed:
            if "rule" in item:
                self.rules.append(item["rule"])
            elif "chain" in item:
                self.chains[item["chain"]["name"]] = item["chain"]
            elif "map" in item or "set" in item:
                self._read_set(item.get("map") or item["set"])

    def _read_set(self, item: dict[str, Any]) -> None:
        self.sets.add(item["name"])
        for entry in item.get("elem", ()):
            key, value = entry if isinstance(entry, list) else (entry, None)
            inner = key["elem"] if isinstance(key, dict) and "elem" in key else {"val": key}
            self.elements[item["name"], _joined(inner["val"])] = (_joined(value), str(inner.get("comment", "")))

    def owners(self) -> set[str]:
        """Whose rules and published ports stand."""
        found = {str(rule.get("comment", "")) for rule in self.rules}
        found |= {comment.partition(" ")[0] for (name, _), (_, comment) in self.elements.items() if name != OWNED}
        return {owner for owner in found if is_owner(owner)}

    def installed(self) -> list[InstalledRule]:
        """The rules with an owner; a range is one."""
        found, number, chain = [], 0, ""
        for rule in self.rules:
            number = number + 1 if rule["chain"] == chain else 1
            chain = rule["chain"]
            if is_owner(str(rule.get("comment", ""))):
                found.append(InstalledRule(rule["comment"], f"{'ip6 ' if self.ipv6 else ''}{chain} {number}"))
        for owner, network in self._networks().items():
            places = (self._shared_place(value, network, owner) for value in network.rules)
            found += [InstalledRule(owner, place) for place in places if place]
        ranges = set()
        for (name, key), (_, comment) in self.elements.items():
            owner, _, ports = comment.partition(" ")
            if name == OWNED or not owner or is_network_set(name):
                continue
            place = f"{'ip6 ' if self.ipv6 else ''}{name} {key if not ports else key.rpartition(' . ')[0] + ' . ' + ports}"
            if place not in ranges:
                ranges.add(place)
                found.append(InstalledRule(owner, place))
        return found

    def places(self, groups: Sequence[RuleGroup]) -> list[list[str | None]]:
        """See ``FirewallBackend.places``."""
        left: dict[tuple[str, str, str], list[int]] = {}
        counts: dict[str, int] = {}
        for rule in self.rules:
            counts[rule["chain"]] = counts.get(rule["chain"], 0) + 1
            key = (rule["chain"], str(rule.get("comment", "")), _significant(rule["expr"]))
            left.setdefault(key, []).append(counts[rule["chain"]])
        networks = [network_of(group, self.ipv6) for group in groups]
        return [
            [self._place(rule, group.owner, network, left) for rule in group.rules] for group, network in zip(groups, networks, strict=True)
        ]

    def _place(self, rule: Rule, owner: str, network: Network | None, left: dict[tuple[str, str, str], list[int]]) -> str | None:
        if rule.ipv6 != self.ipv6 or rule.stage == NAMES:
            return None  # names: there is none, see Rendered
        family = "ip6 " if self.ipv6 else ""
        if network is not None and rule in network.rules:
            return self._shared_place(rule, network, owner)
        item = element(rule, owner)
        if item is not None:
            stands = all(self.elements.get((item.set, key)) == (value, item.comment) for key, value in _pairs(item))
            keys = item.keys()
            shown = keys[0] if len(keys) == 1 else f"{keys[0].rpartition(' . ')[0]} . {item.first}-{item.last}"
            return f"{family}map {item.set} {shown}" if stands else None
        wanted = chain_rule(rule, owner)
        numbers = left.get((wanted.chain, owner, _significant(wanted.listed)))
        return f"{family}{wanted.chain} {numbers.pop(0)}" if numbers else None

    def _networks(self) -> dict[str, Network]:
        """The networks that have elements, by their owners."""
        found: dict[str, list[tuple[str, str]]] = {}
        for (name, key), (_, comment) in self.elements.items():
            if is_network_set(name) and is_owner(comment):
                found.setdefault(comment, []).append((name, key))
        return {owner: network for owner, members in found.items() if (network := network_from(members, self.ipv6)) is not None}

    def _shared_place(self, rule: Rule, network: Network, owner: str) -> str | None:
        """Where a rule of all networks stands, and for which bridge; ``None`` if it, or an element that it asks for, is missing."""
        wanted = network.standing(rule)
        asked = [term.listed["match"]["right"] for term in wanted.terms if "match" in term.listed]
        for member in network.members(owner):
            if f"@{member.set}" in asked and self.elements.get((member.set, member.keys()[0])) != ("", owner):
                return None
        number = 0
        for standing in self.rules:
            if standing["chain"] == wanted.chain:
                number += 1
                if _significant(standing["expr"]) == _significant(wanted.listed):
                    return f"{'ip6 ' if self.ipv6 else ''}{wanted.chain} {number} {network.bridge}"
        return None

    def removal(self, owner: str) -> list[str]:
        """The commands that take away everything of an owner's."""
        table = TABLES[self.ipv6]
        lines = [f"delete rule {table} {rule['chain']} handle {rule['handle']}" for rule in self.rules if rule.get("comment") == owner]
        keys: dict[str, list[str]] = {}
        for (name, key), (_, comment) in self.elements.items():
            if name == OWNED:
                first, _, number = key.partition(" . ")
                if first == index_key(owner):
                    keys.setdefault(name, []).append(f'"{first}" . {number}')
            elif comment.partition(" ")[0] == owner:
                keys.setdefault(name, []).append(quoted(name, key))
        return [*lines, *(f"delete element {table} {name} {{ {', '.join(found)} }}" for name, found in keys.items())]

    def differences(self, groups: Sequence[RuleGroup]) -> list[Difference]:
        """See ``FirewallBackend.differences``."""
        rendered = [Rendered(group, self.ipv6) for group in groups]
        if not any(group.entries for group in rendered):
            return []  # a table without any of our owners is none of the running ones' business
        asked = {group.owner for group in rendered}
        needed = {part.number: part for part in parts(self.sets, self.ipv6)}
        needed |= {part.number: part for group in rendered for part in group.parts}
        found = self._base_differences(needed.values())
        shared = [*base_rules(self.ipv6), *(rule for part in needed.values() for rule in part.rules)]
        wanted = [*shared, *(rule for group in rendered for _, rule in group.rules)]
        standing = [ChainRule(rule["chain"], (), str(rule.get("comment", ""))) for rule in self.rules]
        bodies = [_significant(rule["expr"]) for rule in self.rules]
        left = list(zip(standing, bodies, strict=True))
        for rule in wanted:
            match = (ChainRule(rule.chain, (), rule.comment), _significant(rule.listed))
            if match in left:
                left.remove(match)
            else:
                found.append(Difference("missing", _owner(rule.comment), typed(rule.command)))
        for rule, body in left:
            if rule.comment in asked or not is_owner(rule.comment):
                found.append(Difference("foreign", _owner(rule.comment), f"a rule of the chain {rule.chain}: {body}"))
        if not found:
            found += self._misplaced(wanted)
        return found + self._element_differences(rendered, asked, needed)

    def _base_differences(self, needed: Iterable[Part]) -> list[Difference]:
        found = []
        for name, definition in CHAINS.items():
            chain = self.chains.get(name)
            command = f"add chain {TABLES[self.ipv6]} {name}" + (f" {{ {definition} }}" if definition else "")
            if chain is None:
                found.append(Difference("missing", OWN, typed(command)))
            elif definition and chain.get("policy", "accept") != "accept":
                found.append(Difference("foreign", OWN, f"the policy of the chain {name}: {chain['policy']}"))
        of_parts = {name: ("set", definition) for part in needed for name, definition in part.sets.items()}
        for name, (kind, definition) in {**sets(self.ipv6), **of_parts}.items():
            if name not in self.sets:
                found.append(Difference("missing", OWN, typed(f"add {kind} {TABLES[self.ipv6]} {name} {{ {definition} }}")))
        return found

    def _misplaced(self, wanted: Sequence[ChainRule]) -> list[Difference]:
        """Where all rules are there, but an owner's stand in another order."""
        found = []
        for place in dict.fromkeys((rule.chain, rule.comment) for rule in wanted):
            should = [_significant(rule.listed) for rule in wanted if (rule.chain, rule.comment) == place]
            stands = [_significant(rule["expr"]) for rule in self.rules if (rule["chain"], rule.get("comment", "")) == place]
            if should != stands:
                found.append(Difference("foreign", _owner(place[1]), f"the order of the rules of the chain {place[0]}"))
        return found

    def _element_differences(self, groups: Sequence[Rendered], asked: set[str], needed: Iterable[int]) -> list[Difference]:
        found = []
        left = dict(self.elements)
        for group in groups:
            for number, entry in enumerate(group.entries):
                place = (OWNED, f"{index_key(group.owner)} . {number}")
                if left.get(place, ("", ""))[1] != f"{len(group.entries)} {entry}":
                    found.append(Difference("missing", group.owner, f"the index's entry for {entry}"))
                left.pop(place, None)
            for item in group.elements:
                stands = [left.pop((item.set, key), None) == (value, item.comment) for key, value in _pairs(item)]
                if not all(stands):
                    found.append(Difference("missing", group.owner, typed(item.add())))
        for number in (VERSION, *needed):
            if left.pop((OWNED, f"{BASE_KEY} . {number}"), None) is None:
                found.append(Difference("missing", OWN, "the index's entry for the table"))
        keys = {index_key(owner): owner for owner in asked}
        for (name, key), (value, comment) in left.items():
            owner = keys.get(key.partition(" . ")[0], "") if name == OWNED else comment.partition(" ")[0]
            if (name != OWNED and (owner in asked or not is_owner(owner))) or (name == OWNED and owner):
                found.append(Difference("foreign", owner, f"an element of {name}: {key}{f' : {value}' if value else ''}"))
        return found


def _owner(comment: str) -> str:
    """Whose a rule is: what is everybody's has the length of a prefix behind our name, if it is about subnets."""
    return OWN if comment.startswith(f"{OWN}/") else comment


def _pairs(item: Element | Member) -> Iterable[tuple[str, str]]:
    return zip(item.keys(), item.values(), strict=True)


def _significant(expressions: Iterable[dict[str, Any]]) -> str:
    """Expressions as text, to be compared."""
    return " ".join(str(item) for item in expressions)


def _joined(value: Any) -> str:
    """A key or value of an element as it is typed."""
    if isinstance(value, dict):
        if "concat" in value:
            return " . ".join(_joined(part) for part in value["concat"])
        if "prefix" in value:
            return f"{value['prefix']['addr']}/{value['prefix']['len']}"
        if "range" in value:
            return "-".join(_joined(part) for part in value["range"])
    return "" if value is None else str(value)
