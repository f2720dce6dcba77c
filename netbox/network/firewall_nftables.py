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

An operation is one transaction. What an owner has is found by the index, so neither adding nor removing a port looks at the others' ports;
the first packet of a connection costs three lookups, however many ports are published.
"""

from __future__ import annotations

import struct
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


class NftablesBackend:
    """See ``FirewallBackend``."""

    name = "nftables"

    def apply(self, add: Sequence[RuleGroup] = (), remove: Sequence[str] = ()) -> None:
        """See ``FirewallBackend.apply``. Everything is one transaction."""
        groups = list({group.owner: group for group in add}.values())
        rendered = [Rendered(group) for group in groups]  # before anything else: a bad value is the caller's
        with exclusive():
            stands = _stands()
            if not stands and not groups and not nftables.has_table(OWN):
                return
            try:
                _change(rendered, remove, stands, None)
            except FirewallError:
                # Somebody has changed the table behind the index: look at all of it, which costs more, and try once more.
                table = Table(nftables.listing())
                _change(rendered, remove, stands, table)

    def owners(self) -> set[str]:
        """See ``FirewallBackend.owners``."""
        return Table(nftables.listing()).owners()

    def rules(self) -> list[InstalledRule]:
        """See ``FirewallBackend.rules``."""
        return Table(nftables.listing()).installed()

    def places(self, groups: Sequence[RuleGroup]) -> list[list[str | None]]:
        """See ``FirewallBackend.places``."""
        return Table(nftables.listing()).places(groups)

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
                lines.append(_base_entry())
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


def _base_entry() -> str:
    return f'add element {TABLE} {OWNED} {{ "{BASE_KEY}" . {VERSION} comment "the table is complete" }}'


def _raw_key(key: str, number: int) -> bytes:
    """A key of the index as the kernel has it: an interface's name and a mark."""
    return key.encode().ljust(16, b"\0") + struct.pack("=I", number)


def _stands() -> bool:
    """Whether the index says that the base is complete."""
    return nftables.elements(OWN, OWNED, [_raw_key(BASE_KEY, VERSION)]) is not None


def _indexed(owner: str) -> list[str]:
    """What the index says that the owner has. Two questions at most, whatever others have."""
    key = index_key(owner)
    found = nftables.elements(OWN, OWNED, [_raw_key(key, 0)])
    if not found:
        return []
    count, _, entry = found[0].comment.partition(" ")
    if count == "1" or not count.isdecimal():
        return [entry]
    found = nftables.elements(OWN, OWNED, [_raw_key(key, number) for number in range(int(count))])
    return [item.comment.partition(" ")[2] for item in found or []]


def _others(leaving: Iterable[str]) -> bool:
    """Whether the index knows an owner that does not leave. Reads no further than to the first one."""
    keys = {BASE_KEY.encode(), *(index_key(owner).encode() for owner in leaving)}
    return any(item.key[:16].rstrip(b"\0") not in keys for item in nftables.some_elements(OWN, OWNED))


def _change(add: Sequence[Rendered], remove: Sequence[str], stands: bool, table: Table | None) -> None:
    """One transaction: old ones out, new ones in. ``table`` is everything that stands, ``None``: the index is enough.

    Nothing is deleted that need not be: the kernel waits for RCU after a deletion.
    """
    lines: list[str] = []
    leaving = dict.fromkeys([*(group.owner for group in add), *remove])
    entries = {owner: _indexed(owner) if stands else [] for owner in leaving}
    if table is None and not all(entries[owner] for owner in remove):
        table = Table(nftables.listing())  # nothing is in the index, but the caller thinks that something stands
    for owner in leaving:
        lines += table.removal(owner) if table is not None else _removal(owner, entries[owner])
    if not any(group.entries for group in add):
        # What the index has forgotten may stand as well: only the whole table can say that nobody is left.
        if (lines or table is not None) and not _others(leaving) and not Table(nftables.listing()).owners() - set(leaving):
            lines = [f"add table {TABLE}", f"delete table {TABLE}"]
    else:
        if not stands:
            lines = [*_cleared_base(), *_base_commands(), *lines, _base_entry()]
        for part in _by_stage(add):
            lines += part
        lines += [line for group in add for line in group.index()]
    if lines:
        nftables.run("\n".join(lines) + "\n")


def _cleared_base() -> list[str]:
    """Takes what is left of a base that somebody has damaged out of the way, so that its rules do not stand twice."""
    if not nftables.has_table(OWN):
        return []
    there = {item["rule"]["handle"]: item["rule"]["chain"] for item in nftables.listing(terse=True) if _comment(item) == OWN}
    return [f"delete rule {TABLE} {chain} handle {handle}" for handle, chain in there.items()]


def _comment(item: dict[str, Any]) -> str:
    return str(item.get("rule", {}).get("comment", ""))


def _removal(owner: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    lines = []
    for entry in entries:
        if entry == IN_CHAINS:
            rules = (item["rule"] for item in nftables.listing(terse=True) if _comment(item) == owner)
            lines += [f"delete rule {TABLE} {rule['chain']} handle {rule['handle']}" for rule in rules]
        else:
            lines.append(named_element(entry).delete())
    keys = ", ".join(f'"{index_key(owner)}" . {number}' for number in range(len(entries)))
    return [*lines, f"delete element {TABLE} {OWNED} {{ {keys} }}"]
