"""The firewall backend on legacy iptables: stages are chains of our own, rules carry their owner as comment.

Built-in chains get one jump to each chain and are otherwise left alone, policies included::

    raw     PREROUTING   -> NETBOX-GUARD        (first)
    filter  FORWARD      -> NETBOX-FENCE        (first)   -> NETBOX-INGRESS (second)   -> NETBOX-EGRESS (third)
    nat     PREROUTING   -> NETBOX-PUBLISH      for addresses of this host, but 127.0.0.0/8: a port published on 127.0.0.1 would be in
    reach of a
                                                neighbour that forges this destination, because DNAT comes before the check for such
                                                "martians"
    nat     OUTPUT       -> NETBOX-PUBLISH      for addresses of this host, 127.0.0.0/8 included
    nat     POSTROUTING  -> NETBOX-LEAVE
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from netbox.kernel.iptables import Installed, TableEditor, editing, loaded_tables
from netbox.kernel.iptables_entry import Entry, arguments
from netbox.network.firewall import (
    EGRESS,
    FENCE,
    GUARD,
    INGRESS,
    LEAVE,
    LOOPBACK,
    PUBLISH,
    STAGES,
    InstalledRule,
    Redirect,
    Rule,
    RuleGroup,
)

PREFIX = "NETBOX-"
_JUMP_COMMENT = "netbox"


class _Place(NamedTuple):
    table: str
    chain: str
    jumps: tuple[Entry, ...]
    first: int | None  # the jump's position in the built-in chain, None for the end


def _chain(stage: str) -> str:
    return f"{PREFIX}{stage.upper()}"


def _jump(hook: str, stage: str, destination: str = "", local: bool = False) -> Entry:
    return Entry(hook, _chain(stage), destination=destination, local=local, comment=_JUMP_COMMENT)


_PLACES = {
    GUARD: _Place("raw", _chain(GUARD), (_jump("PREROUTING", GUARD),), 0),
    FENCE: _Place("filter", _chain(FENCE), (_jump("FORWARD", FENCE),), 0),
    INGRESS: _Place("filter", _chain(INGRESS), (_jump("FORWARD", INGRESS),), 1),
    EGRESS: _Place("filter", _chain(EGRESS), (_jump("FORWARD", EGRESS),), 2),
    LEAVE: _Place("nat", _chain(LEAVE), (_jump("POSTROUTING", LEAVE),), None),
    PUBLISH: _Place("nat", _chain(PUBLISH), (_jump("PREROUTING", PUBLISH, f"!{LOOPBACK}", True), _jump("OUTPUT", PUBLISH, "", True)), None),
}
_TABLES = ("raw", "filter", "nat")  # what protects comes first
_HOOKS = {"raw": ("PREROUTING",), "filter": ("FORWARD",), "nat": ("PREROUTING", "OUTPUT", "POSTROUTING")}


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
    )


def _destination(rule: Rule, redirect: Redirect) -> str:
    """``--to-destination`` of DNAT, whose third revision shifts a range in one rule: ``ADDRESS:FIRST-LAST/BASE``, where BASE becomes
    FIRST.
    """
    if rule.ports is None:
        raise ValueError("a redirect needs ports")
    first, last = rule.ports
    if first == last:
        return f"{redirect.address}:{redirect.port}"
    if first == redirect.port:
        return redirect.address  # the port stays
    return f"{redirect.address}:{redirect.port}-{redirect.port + last - first}/{first}"


class IptablesBackend:
    """See ``FirewallBackend``."""

    name = "iptables"

    def apply(self, add: Sequence[RuleGroup] = (), remove: Sequence[str] = ()) -> None:
        """See ``FirewallBackend.apply``. Tables that the change does not concern are not opened when only additions are asked for."""
        leaving = {*remove, *(group.owner for group in add)}
        entries: dict[str, list[Entry]] = {table: [] for table in _TABLES}
        for stage in STAGES:
            for group in add:
                entries[_PLACES[stage].table] += [entry(rule, group.owner) for rule in group.rules if rule.stage == stage]
        # Removal goes the other way round: what opens is closed before what protects is taken away.
        for table in _TABLES if add else reversed(_TABLES):
            if entries[table] or (remove and table in loaded_tables()):
                with editing(table) as editor:
                    _change(editor, entries[table], leaving)

    def owners(self) -> set[str]:
        """See ``FirewallBackend.owners``."""
        return {rule.owner for rule in self.rules()}

    def rules(self) -> list[InstalledRule]:
        """See ``FirewallBackend.rules``."""
        found = []
        for table in _loaded():
            with editing(table) as editor:
                for rule in _own_rules(editor):
                    found.append(InstalledRule(rule.comment, f"{rule.table} {rule.chain} {rule.number}"))
        return found

    def take_down(self) -> None:
        """See ``FirewallBackend.take_down``."""
        for table in reversed(_loaded()):
            with editing(table) as editor:
                _remove_base(editor)

    def commands(self, add: Sequence[RuleGroup], base: bool) -> list[str]:
        """See ``FirewallBackend.commands``."""
        lines = []
        if base:
            for table in _TABLES:
                for place in _PLACES.values():
                    if place.table == table:
                        lines.append(f"iptables -t {table} -N {place.chain}")
                for place in _PLACES.values():
                    if place.table == table:
                        lines += [_command(table, jump, place.first) for jump in place.jumps]
        for stage in STAGES:
            for group in add:
                lines += [_command(_PLACES[stage].table, entry(rule, group.owner), None) for rule in group.rules if rule.stage == stage]
        return lines


def _loaded() -> list[str]:
    """Our tables that are in use: opening another one would create it in the kernel."""
    loaded = loaded_tables()
    return [table for table in _TABLES if table in loaded]


def _command(table: str, item: Entry, position: int | None) -> str:
    verb = f"-A {item.chain}" if position is None else f"-I {item.chain} {position + 1}"
    return f"iptables -t {table} {verb} {' '.join(arguments(item))}"


def _change(editor: TableEditor, entries: Iterable[Entry], leaving: set[str]) -> None:
    standing = _own_rules(editor)
    gone = [rule for rule in standing if rule.comment in leaving]
    for rule in reversed(gone):  # numbers behind a deleted rule move up
        editor.delete(rule.chain, rule.number)
    entries = list(entries)
    if entries:
        _ensure_base(editor)
        for item in entries:
            editor.append(item)
    elif gone and len(gone) == len(standing):
        _remove_base(editor)


def _own_rules(editor: TableEditor) -> list[Installed]:
    return [rule for place in _places(editor) if editor.has_chain(place.chain) for rule in editor.rules(place.chain)]


def _ensure_base(editor: TableEditor) -> None:
    for place in _places(editor):
        if not editor.has_chain(place.chain):
            editor.create_chain(place.chain)
    standing = {(rule.chain, rule.target) for hook in _HOOKS[editor.name] for rule in editor.rules(hook)}
    for place in _places(editor):
        for jump in place.jumps:
            if (jump.chain, jump.target) in standing:
                continue
            if place.first is None:
                editor.append(jump)
            else:
                editor.insert(jump, place.first)


def _remove_base(editor: TableEditor) -> None:
    chains = [place.chain for place in _places(editor)]
    for hook in _HOOKS[editor.name]:
        for rule in reversed(editor.rules(hook)):
            if rule.target in chains:
                editor.delete(hook, rule.number)
    for chain in chains:
        if editor.has_chain(chain):
            editor.delete_chain(chain)


def _places(editor: TableEditor) -> list[_Place]:
    return [place for place in _PLACES.values() if place.table == editor.name]
