"""The firewall backend on legacy iptables: stages are chains of our own, rules carry their owner as comment.

Built-in chains get one jump to each chain and are otherwise left alone, policies included::

    raw     PREROUTING   -> NETBOX-GUARD        (first)   from or for 127.0.0.0/8, but not by lo
                         -> NETBOX-LOSS         (first)   while some link loses packets
    filter  FORWARD      -> NETBOX-FENCE        (first)   -> NETBOX-INGRESS (second)   -> NETBOX-EGRESS (third)
    filter  INPUT        -> NETBOX-NAMES        (first)   while some network has names
    nat     PREROUTING   -> NETBOX-PUBLISH      for addresses of this host, but 127.0.0.0/8: a port published on 127.0.0.1 would be in
    reach of a
                                                neighbour that forges this destination, because DNAT comes before the check for such
                                                "martians"
    nat     OUTPUT       -> NETBOX-PUBLISH      for addresses of this host, 127.0.0.0/8 included
    nat     POSTROUTING  -> NETBOX-HAIRPIN   -> NETBOX-KEEP   -> NETBOX-LEAVE

The tables of IPv6 (``ip6tables``) hold the same where a network has IPv6, and nothing of ours where none has. Where ``[::1]:PORT`` of the
host cannot lead to a sandbox, the jump of OUTPUT leaves ::1 out, so that it refuses at once.

All packets of the host meet the jumps of raw and of INPUT, so these are few and narrow. Jumps have no comment: it would be matched for
every packet, which costs as much as the jump itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

from netbox.errors import NoPermission
from netbox.kernel.iptables import Installed, TableEditor, edit, editing, loaded_tables
from netbox.kernel.iptables_entry import Entry, arguments
from netbox.network.facts import answers_from_loopback
from netbox.network.firewall import (
    EGRESS,
    FENCE,
    GUARD,
    HAIRPIN,
    INGRESS,
    KEEP,
    LEAVE,
    LOOPBACK,
    LOOPBACK6,
    LOSS,
    NAMES,
    PUBLISH,
    STAGES,
    Difference,
    InstalledRule,
    Redirect,
    Rule,
    RuleGroup,
    is_owner,
)

PREFIX = "NETBOX-"
_OWN = "netbox"  # the owner of what is everybody's


class _Place(NamedTuple):
    table: str
    chain: str
    jumps: tuple[Entry, ...]
    first: int | None  # the jump's position in the built-in chain, None for the end
    always: bool = True  # else it is there only while it has rules


def _chain(stage: str) -> str:
    return f"{PREFIX}{stage.upper()}"


def _jump(hook: str, stage: str, **conditions: Any) -> Entry:
    return Entry(hook, _chain(stage), **conditions)


_PLACES = {
    GUARD: _Place(
        "raw",
        _chain(GUARD),
        (
            _jump("PREROUTING", GUARD, in_interface="!lo", destination=LOOPBACK),
            _jump("PREROUTING", GUARD, in_interface="!lo", source=LOOPBACK),
        ),
        0,
    ),
    LOSS: _Place("raw", _chain(LOSS), (_jump("PREROUTING", LOSS),), 0, always=False),
    FENCE: _Place("filter", _chain(FENCE), (_jump("FORWARD", FENCE),), 0),
    INGRESS: _Place("filter", _chain(INGRESS), (_jump("FORWARD", INGRESS),), 1),
    EGRESS: _Place("filter", _chain(EGRESS), (_jump("FORWARD", EGRESS),), 2),
    NAMES: _Place("filter", _chain(NAMES), (_jump("INPUT", NAMES),), 0, always=False),
    HAIRPIN: _Place("nat", _chain(HAIRPIN), (_jump("POSTROUTING", HAIRPIN),), None),
    KEEP: _Place("nat", _chain(KEEP), (_jump("POSTROUTING", KEEP),), None),
    LEAVE: _Place("nat", _chain(LEAVE), (_jump("POSTROUTING", LEAVE),), None),
    PUBLISH: _Place(
        "nat",
        _chain(PUBLISH),
        (_jump("PREROUTING", PUBLISH, destination=f"!{LOOPBACK}", local=True), _jump("OUTPUT", PUBLISH, local=True)),
        None,
    ),
}


class _Table(NamedTuple):
    name: str
    ipv6: bool = False

    @property
    def is_loaded(self) -> bool:
        """Whether somebody has used it: opening another one would create it in the kernel."""
        return self.name in loaded_tables(self.ipv6)

    def editing(self) -> AbstractContextManager[TableEditor]:
        """See ``netbox.kernel.iptables.editing``."""
        return editing(self.name, self.ipv6)

    def edit(self, change: Callable[[TableEditor], None]) -> None:
        """See ``netbox.kernel.iptables.edit``."""
        edit(self.name, change, self.ipv6)


_TABLES = tuple(_Table(name, ipv6) for name in ("raw", "filter", "nat") for ipv6 in (False, True))  # what protects comes first
_HOOKS = {"raw": ("PREROUTING",), "filter": ("FORWARD", "INPUT"), "nat": ("PREROUTING", "OUTPUT", "POSTROUTING")}


def entry(rule: Rule, owner: str) -> Entry:
    """A rule in the terms of iptables(8)."""
    target, to_destination = (rule.verdict.upper(), "") if isinstance(rule.verdict, str) else ("DNAT", _destination(rule, rule.verdict))
    return Entry(
        _PLACES[rule.stage].chain,
        target,
        rule.in_interface,
        rule.out_interface,
        rule.source,
        rule.destination,
        rule.protocol,
        rule.ports,
        rule.states,
        to_destination=to_destination,
        probability=rule.probability,
        comment=owner,
        ipv6=rule.ipv6,
    )


def _destination(rule: Rule, redirect: Redirect) -> str:
    """``--to-destination`` of DNAT, whose third revision shifts a range in one rule: ``ADDRESS:FIRST-LAST/BASE``, where BASE becomes
    FIRST.
    """
    address = f"[{redirect.address}]" if rule.ipv6 else redirect.address
    if rule.ports is None:
        raise ValueError("a redirect needs ports")
    first, last = rule.ports
    if first == last:
        return f"{address}:{redirect.port}"
    if first == redirect.port:
        return address  # the port stays
    return f"{address}:{redirect.port}-{redirect.port + last - first}/{first}"


class IptablesBackend:
    """See ``FirewallBackend``."""

    name = "iptables"

    def apply(self, add: Sequence[RuleGroup] = (), remove: Sequence[str] = ()) -> None:
        """See ``FirewallBackend.apply``. Tables that the change does not concern are not opened when only additions are asked for."""
        leaving = {*remove, *(group.owner for group in add)}
        entries = {table: _entries(table, add) for table in _TABLES}
        # Removal goes the other way round: what opens is closed before what protects is taken away.
        for table in _TABLES if add else reversed(_TABLES):
            if entries[table] or (remove and table.is_loaded):
                table.edit(partial(_change, entries=entries[table], leaving=leaving))

    def owners(self) -> set[str]:
        """See ``FirewallBackend.owners``."""
        return {rule.owner for rule in self.rules()}

    def rules(self) -> list[InstalledRule]:
        """See ``FirewallBackend.rules``."""
        found = []
        for table in _loaded():
            with table.editing() as editor:
                for rule in _own_rules(editor):
                    place = f"{rule.table} {rule.chain} {rule.number}"
                    found.append(InstalledRule(rule.comment, f"ip6 {place}" if table.ipv6 else place))
        return found

    def places(self, groups: Sequence[RuleGroup]) -> list[list[str | None]]:
        """See ``FirewallBackend.places``."""
        found: list[list[str | None]] = [[None] * len(group.rules) for group in groups]
        for table in _loaded():
            with table.editing() as editor:
                left = {
                    place.chain: list(enumerate(editor.contents(place.chain), 1))
                    for place in _places(editor)
                    if editor.has_chain(place.chain)
                }
                for row, group in zip(found, groups, strict=True):
                    for index, rule in enumerate(group.rules):
                        if _PLACES[rule.stage].table != table.name or rule.ipv6 != table.ipv6:
                            continue
                        item = entry(rule, group.owner)
                        numbered = left.get(item.chain, ())
                        match = next(
                            (pair for pair in numbered if pair[1].comment == group.owner and pair[1] == editor.rendered(item)), None
                        )
                        if match is not None:
                            left[item.chain].remove(match)
                            row[index] = f"{_title(editor)} {item.chain} {match[0]}"
        return found

    def take_down(self) -> None:
        """See ``FirewallBackend.take_down``."""
        for table in reversed(_loaded()):
            table.edit(_remove_base)

    def commands(self, add: Sequence[RuleGroup], base: bool, base6: bool = False) -> list[str]:
        """See ``FirewallBackend.commands``."""
        lines = []
        for table in _TABLES:
            places = [place for place in _PLACES.values() if place.table == table.name]
            used = {item.chain for item in _entries(table, add)}
            wanted = base6 if table.ipv6 else base
            places = [
                place for place in places if (wanted if place.always else place.chain in used and (wanted or _is_missing(table, place)))
            ]
            program = "ip6tables" if table.ipv6 else "iptables"
            lines += [f"{program} -t {table.name} -N {place.chain}" for place in places]
            lines += [_command(table.name, jump, place.first) for place in places for jump in _jumps(place, table.ipv6)]
        for stage in STAGES:
            for group in add:
                lines += [_command(_PLACES[stage].table, entry(rule, group.owner), None) for rule in group.rules if rule.stage == stage]
        return lines

    def differences(self, groups: Sequence[RuleGroup]) -> list[Difference]:
        """See ``FirewallBackend.differences``."""
        if not any(group.rules for group in groups):
            return []
        found = []
        for table in _TABLES:
            items = _entries(table, groups)
            if not items:
                continue
            if not table.is_loaded:
                found += [Difference("missing", item.comment, _command(table.name, item, None)) for item in items]
                continue
            with table.editing() as editor:
                found += _differences(editor, items, {group.owner for group in groups})
        return found

    def repair(self, groups: Sequence[RuleGroup]) -> None:
        """See ``FirewallBackend.repair``."""
        for table in _TABLES:
            items = _entries(table, groups)
            if items or table.is_loaded:
                table.edit(partial(_make_anew, items=items))


def _entries(table: _Table, groups: Sequence[RuleGroup]) -> list[Entry]:
    """The rules of the groups in one table, in the order in which they stand: ports of one address before those of all."""
    stages = [stage for stage in STAGES if _PLACES[stage].table == table.name]
    found = [
        entry(rule, group.owner)
        for stage in stages
        for group in groups
        for rule in group.rules
        if rule.stage == stage and rule.ipv6 == table.ipv6
    ]
    return sorted(found, key=lambda item: bool(item.to_destination) and not item.destination)


def _differences(editor: TableEditor, items: Sequence[Entry], asked: set[str]) -> list[Difference]:
    """``differences`` for one table. The rules as they should be are put into chains that are never committed, and read back: what the
    library and the kernel make of a rule is the same for both then.
    """
    found = []
    used = {item.chain for item in items}
    places = [place for place in _places(editor) if place.always or place.chain in used or editor.has_chain(place.chain)]
    jumps = [jump for place in places for jump in _jumps(place, editor.ipv6)]
    hooks = {hook: editor.contents(hook) for hook in _HOOKS[editor.name]}
    chains = {place.chain: editor.contents(place.chain) if editor.has_chain(place.chain) else None for place in _places(editor)}
    for item in [*jumps, *items]:
        if not editor.has_chain(item.target) and item.target.startswith(PREFIX):
            found.append(Difference("missing", _OWN, f"{item.program} -t {editor.name} -N {item.target}"))
            continue
        expected = editor.rendered(item)
        stands = hooks[item.chain] if item.chain in hooks else chains[item.chain]
        if stands and expected in stands:
            stands.remove(expected)
        else:
            found.append(Difference("missing", item.comment or _OWN, _command(editor.name, item, None)))
    foreign = [(name, stands or []) for name, stands in chains.items()]
    # In a chain that is not ours only jumps to ours are of interest: one that was moved, doubled or edited.
    foreign += [(name, [each for each in stands if each.target in chains]) for name, stands in hooks.items()]
    for name, rest in foreign:
        for each in rest:
            if each.comment in asked or not is_owner(each.comment):
                what = f"a rule of {_title(editor)} {name}: {each.target or 'no target'}"
                found.append(Difference("foreign", each.comment, what))
    return found or _misplaced(editor, items)


def _misplaced(editor: TableEditor, items: Sequence[Entry]) -> list[Difference]:
    """Where all rules are there, but an owner's stand in another order."""
    found = []
    for chain, owner in dict.fromkeys((item.chain, item.comment) for item in items):
        should = [editor.rendered(item) for item in items if (item.chain, item.comment) == (chain, owner)]
        if should != [each for each in editor.contents(chain) if each.comment == owner]:
            found.append(Difference("foreign", owner, f"the order of the rules of {_title(editor)} {chain}"))
    return found


def _title(editor: TableEditor) -> str:
    return f"ip6 {editor.name}" if editor.ipv6 else editor.name


def _jumps(place: _Place, ipv6: bool) -> list[Entry]:
    """The jumps to a chain, in the words of a family."""
    if not ipv6:
        return list(place.jumps)
    jumps = [
        jump._replace(source=jump.source.replace(LOOPBACK, LOOPBACK6), destination=jump.destination.replace(LOOPBACK, LOOPBACK6), ipv6=True)
        for jump in place.jumps
    ]
    if answers_from_loopback():
        return jumps
    return [jump._replace(destination=f"!{LOOPBACK6}") if jump.chain == "OUTPUT" else jump for jump in jumps]


def _loaded() -> list[_Table]:
    """Our tables that are in use."""
    loaded = {ipv6: loaded_tables(ipv6) for ipv6 in (False, True)}
    return [table for table in _TABLES if table.name in loaded[table.ipv6]]


def _command(table: str, item: Entry, position: int | None) -> str:
    verb = f"-A {item.chain}" if position is None else f"-I {item.chain} {position + 1}"
    return f"{item.program} -t {table} {verb} {' '.join(arguments(item))}"


def _change(editor: TableEditor, entries: Iterable[Entry], leaving: set[str]) -> None:
    standing = _own_rules(editor)
    gone = [rule for rule in standing if rule.comment in leaving]
    for rule in reversed(gone):  # numbers behind a deleted rule move up
        editor.delete(rule.chain, rule.number)
    entries = list(entries)
    if entries:
        _ensure_base(editor, entries)
        first = [item for item in entries if item.to_destination and item.destination]
        for item in entries:
            if item not in first:
                editor.append(item)
        for item in reversed(first):
            editor.insert(item)
    elif not any(is_owner(rule.comment) for rule in standing if rule.comment not in leaving):
        _remove_base(editor)  # also when somebody else has flushed the table before, or put a rule into a chain of ours
        return
    used = {item.chain for item in entries}
    for place in _places(editor):
        if not (place.always or place.chain in used) and editor.has_chain(place.chain) and not editor.rules(place.chain):
            _remove_place(editor, place)


def _make_anew(editor: TableEditor, items: Sequence[Entry]) -> None:
    _remove_base(editor)
    if items:
        _ensure_base(editor, items)
        for item in items:
            editor.append(item)


def _own_rules(editor: TableEditor) -> list[Installed]:
    return [rule for place in _places(editor) if editor.has_chain(place.chain) for rule in editor.rules(place.chain)]


def _ensure_base(editor: TableEditor, entries: Iterable[Entry]) -> None:
    used = {item.chain for item in entries}
    for place in _places(editor):
        if not (place.always or place.chain in used):
            continue
        if not editor.has_chain(place.chain):
            editor.create_chain(place.chain)
        jumps = _jumps(place, editor.ipv6)
        standing = [rule.chain for rule in _standing_jumps(editor, place)]
        if sorted(standing) == sorted(jump.chain for jump in jumps):
            continue
        _remove_jumps(editor, place)
        for jump in jumps:
            if place.first is None:
                editor.append(jump)
            else:
                editor.insert(jump, place.first)


def _standing_jumps(editor: TableEditor, place: _Place) -> list[Installed]:
    return [rule for hook in _HOOKS[editor.name] for rule in editor.rules(hook) if rule.target == place.chain]


def _remove_jumps(editor: TableEditor, place: _Place) -> None:
    for rule in reversed(_standing_jumps(editor, place)):
        editor.delete(rule.chain, rule.number)


def _remove_place(editor: TableEditor, place: _Place) -> None:
    _remove_jumps(editor, place)
    if editor.has_chain(place.chain):
        editor.delete_chain(place.chain)


def _remove_base(editor: TableEditor) -> None:
    for place in _places(editor):
        _remove_place(editor, place)


def _is_missing(table: _Table, place: _Place) -> bool:
    """Whether a person would have to make a chain; yes where this process must not look."""
    if not table.is_loaded:
        return True
    try:
        with table.editing() as editor:
            return not editor.has_chain(place.chain)
    except NoPermission:
        return True


def _places(editor: TableEditor) -> list[_Place]:
    return [place for place in _PLACES.values() if place.table == editor.name]
