"""The firewall backend on nf_tables: a table of our own, published ports as elements of maps.

::

    table ip netbox
      chain guard        filter, prerouting, raw       GUARD
      chain forward      filter, forward, filter       -> fence -> ingress -> egress
      chain prerouting   nat, prerouting, dstnat       -> publish, for addresses of this host but 127.0.0.0/8 (see the iptables backend)
      chain output       nat, output, dstnat           -> publish, for addresses of this host
      chain postrouting  nat, postrouting, srcnat      -> hairpin -> keep -> leave
      chain publish      asks the maps:
      map port           protocol . port            -> address . port
      map address_port   protocol . address . port  -> address . port
      map port_range     protocol . address . first-last -> address (the port stays; other ranges have an element for each port)
      set owned          the index: owner . number, with what the owner has as comment

``table ip6 netbox`` holds the same for IPv6, where a network has it.

An operation is one transaction. What an owner has is found by the index, so neither adding nor removing a port looks at the others' ports;
the first packet of a connection costs three lookups, however many ports are published.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from netbox.errors import FirewallError, NoPermission
from netbox.kernel import nftables
from netbox.network.firewall import STAGES, Difference, InstalledRule, RuleGroup
from netbox.network.firewall_lock import exclusive
from netbox.network.firewall_nftables_networks import Part, named_member, parts
from netbox.network.firewall_nftables_rules import OWN, OWNED, TABLES, named_element
from netbox.network.firewall_nftables_table import (
    BASE_KEY,
    CHAINS,
    IN_CHAINS,
    VERSION,
    Rendered,
    Table,
    base_rules,
    index_key,
    sets,
    typed,
)

_FAMILIES = {False: socket.AF_INET, True: socket.AF_INET6}
_FAMILY_NAMES = {ipv6: name.partition(" ")[0] for ipv6, name in TABLES.items()}


class NftablesBackend:
    """See ``FirewallBackend``."""

    name = "nftables"

    def apply(self, add: Sequence[RuleGroup] = (), remove: Sequence[str] = ()) -> None:
        """See ``FirewallBackend.apply``. Everything is one transaction."""
        groups = list({group.owner: group for group in add}.values())
        # Before anything else: a bad value is the caller's.
        rendered = {ipv6: [Rendered(group, ipv6) for group in groups] for ipv6 in TABLES}
        with exclusive():
            # The table of IPv6 is nobody's business who neither adds to it nor takes anything away.
            families = [ipv6 for ipv6, items in rendered.items() if not ipv6 or remove or any(item.entries for item in items)]
            families = [ipv6 for ipv6 in families if any(item.entries for item in rendered[ipv6]) or _stands(ipv6) or _has_table(ipv6)]
            try:
                _run(line for ipv6 in families for line in _change(rendered[ipv6], remove, ipv6, None))
            except FirewallError:
                # Somebody has changed a table behind its index: look at all of it, which costs more, and try once more.
                tables = {ipv6: _table(ipv6) for ipv6 in families}
                _run(line for ipv6 in families for line in _change(rendered[ipv6], remove, ipv6, tables[ipv6]))

    def owners(self) -> set[str]:
        """See ``FirewallBackend.owners``."""
        return {owner for ipv6 in TABLES for owner in _table(ipv6).owners()}

    def rules(self) -> list[InstalledRule]:
        """See ``FirewallBackend.rules``."""
        return [rule for ipv6 in TABLES for rule in _table(ipv6).installed()]

    def places(self, groups: Sequence[RuleGroup]) -> list[list[str | None]]:
        """See ``FirewallBackend.places``."""
        found = [_table(ipv6).places(groups) for ipv6 in TABLES]
        return [[first or second for first, second in zip(*rows, strict=True)] for rows in zip(*found, strict=True)]

    def take_down(self) -> None:
        """See ``FirewallBackend.take_down``."""
        with exclusive():
            _run(f"delete table {name}" for ipv6, name in TABLES.items() if _has_table(ipv6))

    def commands(self, add: Sequence[RuleGroup], base: bool, base6: bool = False) -> list[str]:
        """See ``FirewallBackend.commands``."""
        lines = []
        for ipv6, wanted in ((False, base), (True, base6)):
            rendered = [Rendered(group, ipv6) for group in add]
            lines += _base_commands(ipv6) if wanted else []
            lines += [line for part in _needed(rendered) if wanted or _is_missing(part, ipv6) for line in _part_commands(part, ipv6)]
            for batch in _by_stage(rendered):
                lines += batch
        return [typed(line) for line in lines]

    def differences(self, groups: Sequence[RuleGroup]) -> list[Difference]:
        """See ``FirewallBackend.differences``."""
        return [item for ipv6 in TABLES for item in _table(ipv6).differences(groups)]

    def repair(self, groups: Sequence[RuleGroup]) -> None:
        """See ``FirewallBackend.repair``. The tables are made anew in one transaction; connections do not live in them."""
        rendered = {ipv6: [Rendered(group, ipv6) for group in groups] for ipv6 in TABLES}
        with exclusive():
            lines = []
            for ipv6, items in rendered.items():
                lines += _cleared(ipv6) if not ipv6 or _has_table(ipv6) else []
                if any(group.entries for group in items):
                    lines += [*_base_commands(ipv6), _base_entry(ipv6, VERSION), *_part_lines(_needed(items), ipv6)]
                    lines += [line for batch in _by_stage(items) for line in batch]
                    lines += [line for group in items for line in group.index()]
            _run(lines)


def _run(lines: Iterable[str]) -> None:
    """One transaction; nothing for no lines."""
    text = "".join(f"{line}\n" for line in lines)
    if text:
        nftables.run(text)


def _table(ipv6: bool) -> Table:
    return Table(nftables.listing(table=TABLES[ipv6]) if not ipv6 or _has_table(ipv6) else [], ipv6)


def _has_table(ipv6: bool) -> bool:
    return nftables.has_table(OWN, _FAMILY_NAMES[ipv6])


def _cleared(ipv6: bool) -> list[str]:
    """Takes a table away, whether it is there or not."""
    return [f"add table {TABLES[ipv6]}", f"delete table {TABLES[ipv6]}"]


def _by_stage(groups: Sequence[Rendered]) -> Iterable[list[str]]:
    for stage in STAGES:
        yield [rule.command for group in groups for its_stage, rule in group.rules if its_stage == stage]
    yield [item.add() for group in groups for item in group.elements]


def _base_commands(ipv6: bool) -> list[str]:
    """The table with chains, sets and the rules that are everybody's. What is there already stays; those rules are made anew."""
    table = TABLES[ipv6]
    lines = [f"add table {table}"]
    lines += [f"add {kind} {table} {name} {{ {definition} }}" for name, (kind, definition) in sets(ipv6).items()]
    lines += [f"add chain {table} {name}" + (f" {{ {hook} }}" if hook else "") for name, hook in CHAINS.items()]
    lines += [rule.command for rule in base_rules(ipv6)]
    return lines


def _needed(groups: Iterable[Rendered]) -> list[Part]:
    """What the groups need beside what is always there, each once."""
    return list({part.number: part for group in groups for part in group.parts}.values())


def _part_commands(part: Part, ipv6: bool) -> list[str]:
    """The sets and rules of a part."""
    table = TABLES[ipv6]
    lines = [f"add set {table} {name} {{ {definition} }}" for name, definition in part.sets.items()]
    return lines + ([rule.first_command for rule in reversed(part.rules)] if part.first else [rule.command for rule in part.rules])


def _part_lines(wanted: Iterable[Part], ipv6: bool) -> list[str]:
    """Parts with their entries in the index."""
    return [line for part in wanted for line in (*_part_commands(part, ipv6), _base_entry(ipv6, part.number))]


def _base_entry(ipv6: bool, number: int) -> str:
    """The entry of the index for what is everybody's."""
    return f'add element {TABLES[ipv6]} {OWNED} {{ "{BASE_KEY}" . {number} comment "stands" }}'


def _is_missing(part: Part, ipv6: bool) -> bool:
    """Whether a person would have to add a part; yes where this process must not look."""
    try:
        return not _stands(ipv6, part.number)
    except NoPermission:
        return True


def _raw_key(key: str, number: int) -> bytes:
    """A key of the index as the kernel has it: an interface's name and a mark."""
    return key.encode().ljust(16, b"\0") + struct.pack("=I", number)


def _stands(ipv6: bool, number: int = VERSION) -> bool:
    """Whether the index says that the base, or a part, is there."""
    return nftables.elements(OWN, OWNED, [_raw_key(BASE_KEY, number)], _FAMILIES[ipv6]) is not None


def _indexed(owner: str, ipv6: bool) -> list[str]:
    """What the index says that the owner has. Two questions at most, whatever others have."""
    key = index_key(owner)
    found = nftables.elements(OWN, OWNED, [_raw_key(key, 0)], _FAMILIES[ipv6])
    if not found:
        return []
    count, _, entry = found[0].comment.partition(" ")
    if count == "1" or not count.isdecimal():
        return [entry]
    found = nftables.elements(OWN, OWNED, [_raw_key(key, number) for number in range(int(count))], _FAMILIES[ipv6])
    return [item.comment.partition(" ")[2] for item in found or []]


def _others(leaving: Iterable[str], ipv6: bool) -> bool:
    """Whether the index knows an owner that does not leave. Reads no further than to the first one."""
    keys = {BASE_KEY.encode(), *(index_key(owner).encode() for owner in leaving)}
    return any(item.key[:16].rstrip(b"\0") not in keys for item in nftables.some_elements(OWN, OWNED, _FAMILIES[ipv6]))


def _change(add: Sequence[Rendered], remove: Sequence[str], ipv6: bool, table: Table | None) -> list[str]:
    """What changes in the table of a family: old ones out, new ones in. ``table`` is everything that stands, ``None``: the index is enough.

    Nothing is deleted that need not be: the kernel waits for RCU after a deletion.
    """
    lines: list[str] = []
    stands = _stands(ipv6)
    leaving = dict.fromkeys([*(group.owner for group in add), *remove])
    entries = {owner: _indexed(owner, ipv6) if stands else [] for owner in leaving}
    if table is None and not all(entries[owner] or (ipv6 and stands and _indexed(owner, False)) for owner in remove):
        table = _table(ipv6)  # nothing is in the index, but the caller thinks that something stands: in IPv6 it need not
    for owner in leaving:
        lines += table.removal(owner) if table is not None else _removal(owner, entries[owner], ipv6)
    if not any(group.entries for group in add):
        # What the index has forgotten may stand as well: only the whole table can say that nobody is left.
        if (lines or table is not None) and not _others(leaving, ipv6) and not _table(ipv6).owners() - set(leaving):
            lines = _cleared(ipv6)
    else:
        if stands:
            lines += _part_lines([part for part in _needed(add) if not _stands(ipv6, part.number)], ipv6)
        else:
            lines = [*_new_base(add, ipv6), *lines]
        for batch in _by_stage(add):
            lines += batch
        lines += [line for group in add for line in group.index()]
    return lines


def _new_base(add: Sequence[Rendered], ipv6: bool) -> list[str]:
    """The base, where there is none or somebody has damaged it: what is left of it goes, so that its rules do not stand twice."""
    lines, needed = [], {part.number: part for part in _needed(add)}
    if _has_table(ipv6):
        name, listed = TABLES[ipv6], nftables.listing(True, TABLES[ipv6])
        there = [item["rule"] for item in listed if _comment(item).partition("/")[0] == OWN]
        lines = [f"delete rule {name} {rule['chain']} handle {rule['handle']}" for rule in there]
        needed |= {part.number: part for part in parts({item["set"]["name"] for item in listed if "set" in item}, ipv6)}
    return [*lines, *_base_commands(ipv6), _base_entry(ipv6, VERSION), *_part_lines(needed.values(), ipv6)]


def _comment(item: dict[str, Any]) -> str:
    return str(item.get("rule", {}).get("comment", ""))


def _removal(owner: str, entries: Sequence[str], ipv6: bool) -> list[str]:
    if not entries:
        return []
    lines, name = [], TABLES[ipv6]
    for entry in entries:
        if entry == IN_CHAINS:
            rules = (item["rule"] for item in nftables.listing(True, name) if _comment(item) == owner)
            lines += [f"delete rule {name} {rule['chain']} handle {rule['handle']}" for rule in rules]
        else:
            lines.append((named_member(entry, ipv6) or named_element(entry, ipv6)).delete())
    keys = ", ".join(f'"{index_key(owner)}" . {number}' for number in range(len(entries)))
    return [*lines, f"delete element {name} {OWNED} {{ {keys} }}"]
