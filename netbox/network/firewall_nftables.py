"""The firewall backend on nf_tables: a table of our own, published ports as elements of maps.

::

    table ip netbox
      chain guard        filter, prerouting, raw       GUARD
      chain forward      filter, forward, filter       -> ingress -> egress
      chain prerouting   nat, prerouting, dstnat       -> publish, for addresses of this host but 127.0.0.0/8 (see the iptables backend)
      chain output       nat, output, dstnat           -> publish, for addresses of this host
      chain leave        nat, postrouting, srcnat      LEAVE
      chain publish      asks the maps:
      map port           protocol . port            -> address . port
      map address_port   protocol . address . port  -> address . port
      map port_range     protocol . address . first-last -> address (the port stays; other ranges have an element for each port)
      set owned          the index: owner . number, with what the owner has as comment

An operation is one transaction. What an owner has is found by the index, so neither adding nor removing a port looks at the others' ports;
the first packet of a connection costs three lookups, however many ports are published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from netbox.errors import FirewallError
from netbox.kernel import nftables
from netbox.network.firewall import STAGES, Difference, InstalledRule, RuleGroup
from netbox.network.firewall_lock import exclusive
from netbox.network.firewall_nftables_rules import OWN, OWNED, TABLE, named_element
from netbox.network.firewall_nftables_table import (
    BASE_KEY,
    BASE_RULES,
    CHAINS,
    IN_CHAINS,
    SETS,
    VERSION,
    Rendered,
    Table,
    index_key,
    typed,
)

_ENTRY = re.compile(r'"([0-9a-z]+)" \. 0x([0-9a-f]+) comment "([^"]*)"')


class NftablesBackend:
    """See ``FirewallBackend``."""

    name = "nftables"

    def apply(self, add: Sequence[RuleGroup] = (), remove: Sequence[str] = ()) -> None:
        """See ``FirewallBackend.apply``. Everything is one transaction."""
        groups = list({group.owner: group for group in add}.values())
        rendered = [Rendered(group) for group in groups]  # before anything else: a bad value is the caller's
        with exclusive():
            base = _base_count()
            if base is None and not groups and not nftables.has_table(OWN):
                return
            try:
                _change(rendered, remove, base, None)
            except FirewallError:
                # Somebody has changed the table behind the index: look at all of it, which costs more, and try once more.
                table = Table(nftables.listing())
                _change(rendered, remove, base, table)

    def owners(self) -> set[str]:
        """See ``FirewallBackend.owners``."""
        return Table(nftables.listing()).owners()

    def rules(self) -> list[InstalledRule]:
        """See ``FirewallBackend.rules``."""
        return Table(nftables.listing()).installed()

    def take_down(self) -> None:
        """See ``FirewallBackend.take_down``."""
        with exclusive():
            if nftables.has_table(OWN):
                nftables.run(f"delete table {TABLE}")

    def commands(self, add: Sequence[RuleGroup], base: bool) -> list[str]:
        """See ``FirewallBackend.commands``."""
        lines = _base_commands() if base else []
        for group in _by_stage([Rendered(group) for group in add]):
            lines += group
        return [typed(line) for line in lines]

    def differences(self, groups: Sequence[RuleGroup]) -> list[Difference]:
        """See ``FirewallBackend.differences``."""
        return Table(nftables.listing()).differences(groups)

    def repair(self, groups: Sequence[RuleGroup]) -> None:
        """See ``FirewallBackend.repair``. The table is made anew in one transaction; connections do not live in it."""
        rendered = [Rendered(group) for group in groups]
        with exclusive():
            lines = [f"add table {TABLE}", f"delete table {TABLE}"]
            if any(group.entries for group in rendered):
                lines += [*_base_commands(), *(line for part in _by_stage(rendered) for line in part)]
                lines += [line for group in rendered for line in group.index()]
                lines.append(_base_entry(sum(bool(group.entries) for group in rendered)))
            nftables.run("\n".join(lines) + "\n")


def _by_stage(groups: Sequence[Rendered]) -> Iterable[list[str]]:
    for stage in STAGES:
        yield [rule.command for group in groups for its_stage, rule in group.rules if its_stage == stage]
    yield [item.add() for group in groups for item in group.elements]


def _base_commands() -> list[str]:
    """The table with chains, sets and the rules that are everybody's. What is there already stays; those rules are made anew."""
    lines = [f"add table {TABLE}"]
    lines += [f"add {kind} {TABLE} {name} {{ {definition} }}" for name, (kind, definition) in SETS.items()]
    lines += [f"add chain {TABLE} {name}" + (f" {{ {hook} }}" if hook else "") for name, hook in CHAINS.items()]
    lines += [rule.command for rule in BASE_RULES]
    return lines


def _base_entry(count: int) -> str:
    return f'add element {TABLE} {OWNED} {{ "{BASE_KEY}" . {VERSION} comment "{count} owners" }}'


def _base_count() -> int | None:
    """How many owners the index knows; ``None`` when the base does not stand."""
    text = nftables.get_elements(f"{TABLE} {OWNED}", f'"{BASE_KEY}" . {VERSION}')
    found = _ENTRY.search(text) if text else None
    if found is None:
        return None
    number = found[3].partition(" ")[0]
    return int(number) if number.isdecimal() else 0


def _indexed(owner: str) -> list[str]:
    """What the index says that the owner has. Two questions at most, whatever others have."""
    place, key = f"{TABLE} {OWNED}", index_key(owner)
    text = nftables.get_elements(place, f'"{key}" . 0')
    found = _ENTRY.search(text) if text else None
    if found is None:
        return []
    count, _, entry = found[3].partition(" ")
    if count == "1" or not count.isdecimal():
        return [entry]
    text = nftables.get_elements(place, ", ".join(f'"{key}" . {number}' for number in range(int(count))))
    entries = {int(number, 16): comment.partition(" ")[2] for _, number, comment in _ENTRY.findall(text or "")}
    return [entries[number] for number in sorted(entries)]


def _change(add: Sequence[Rendered], remove: Sequence[str], base: int | None, table: Table | None) -> None:
    """One transaction: old ones out, new ones in. ``table`` is everything that stands, ``None``: the index is enough."""
    lines: list[str] = []
    count = base or 0
    leaving = dict.fromkeys([*(group.owner for group in add), *remove])
    unknown = [owner for owner in remove if base is None or (table is None and not _indexed(owner))]
    if table is None and unknown:
        table = Table(nftables.listing())  # nothing is in the index, but the caller thinks that something stands
    standing = table.owners() if table else set()
    for owner in leaving:
        entries = [] if base is None else _indexed(owner)
        if table is not None:
            lines += table.removal(owner)
            count -= owner in standing or bool(entries)
        elif entries:
            lines += _removal(owner, entries)
            count -= 1
    if base is None and add:
        lines = [*_cleared_base(), *_base_commands(), *lines]
    for part in _by_stage(add):
        lines += part
    for group in add:
        lines += group.index()
        count += bool(group.entries)
    if table is not None:
        count = len((standing - set(leaving)) | {group.owner for group in add if group.entries})
    if count <= 0 and not any(group.entries for group in add) and not (_owners_now() - set(leaving)):
        nftables.run(f"add table {TABLE}\ndelete table {TABLE}\n")
    elif lines:
        if base is not None:
            lines.append(f'delete element {TABLE} {OWNED} {{ "{BASE_KEY}" . {VERSION} }}')
        if base is not None or add:
            lines.append(_base_entry(count))
        nftables.run("\n".join(lines) + "\n")


def _owners_now() -> set[str]:
    return Table(nftables.listing()).owners()


def _cleared_base() -> list[str]:
    """Takes what is left of a base that somebody has damaged out of the way, so that its rules do not stand twice."""
    if not nftables.has_table(OWN):
        return []
    there = {item["rule"]["handle"]: item["rule"]["chain"] for item in nftables.listing(terse=True) if _comment(item) == OWN}
    return [f"delete rule {TABLE} {chain} handle {handle}" for handle, chain in there.items()]


def _comment(item: dict[str, Any]) -> str:
    return str(item.get("rule", {}).get("comment", ""))


def _removal(owner: str, entries: Sequence[str]) -> list[str]:
    lines = []
    for entry in entries:
        if entry == IN_CHAINS:
            rules = (item["rule"] for item in nftables.listing(terse=True) if _comment(item) == owner)
            lines += [f"delete rule {TABLE} {rule['chain']} handle {rule['handle']}" for rule in rules]
        else:
            lines.append(named_element(entry).delete())
    keys = ", ".join(f'"{index_key(owner)}" . {number}' for number in range(len(entries)))
    return [*lines, f"delete element {TABLE} {OWNED} {{ {keys} }}"]
