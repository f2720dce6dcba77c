"""Moving what stands from one firewall backend to the other, and what should stand at all.

The journal answers both questions: a row ``network_rules`` says which backend holds a network's rules, a row ``rules`` what a sandbox
publishes. A move puts the new rules in before it takes the old ones out, so no packet meets neither; connections are in the kernel's
connection table and stay as they are. The lock of ``firewall_lock`` is held meanwhile: whoever removes an owner's rules does it before the
move, and then they are not moved, or after it, and then from both backends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from netbox.network import firewall, firewall_choice, networks
from netbox.network.firewall import RuleGroup
from netbox.network.firewall_lock import exclusive
from netbox.spec import PortSpec
from netbox.state.journal import NETWORK, RUN, JournalRow
from netbox.state.store import Store

_NETWORK_PREFIX = "network:"


class Expected(NamedTuple):
    """The rules that the journal knows: those of networks, and those of sandboxes."""

    networks: tuple[RuleGroup, ...]
    sandboxes: tuple[RuleGroup, ...]


def standing(store: Store) -> set[str]:
    """The backends that may hold rules of networks, as the journal says."""
    return {_backend(row.args) for row in _network_rows(store)}


def expected(store: Store) -> Expected:
    """What the journal says that stands, or is just being put in or taken away."""
    own: list[RuleGroup] = []
    for owner in dict.fromkeys(row.owner for row in _network_rows(store)):
        network = store.network(owner.removeprefix(_NETWORK_PREFIX))
        if network is not None:
            own.append(networks.rule_group(network))
    published: list[RuleGroup] = []
    for owner, scope in store.journal_owners():
        if scope == RUN:
            published += [group for row in store.journal(owner, scope).rows() if (group := _published(row)) is not None]
    return Expected(tuple(own), tuple(published))


def follow(store: Store) -> bool:
    """Moves everything to the backend that is chosen now, if it stands in the other one. Call it under the networks' lock.

    Returns whether there was something to move.

    Raises:
        UsageError: ``NETBOX_FIREWALL`` names no backend.
        FirewallError, Unsupported, NoPermission: the rules cannot be moved; then they stay where they are.
    """
    rows = _network_rows(store)
    if not rows:
        return False
    target = firewall_choice.choose().name
    old = [row for row in rows if _backend(row.args) != target]
    if not old:
        return False
    with exclusive():
        new_backend = firewall_choice.backend(target)
        known = expected(store)
        for row in old:  # before the effect: from here on an undo looks into both
            store.journal(row.owner, NETWORK).record("network_rules", owner=row.owner, backend=target)
        for name in {_backend(row.args) for row in old}:
            old_backend = firewall_choice.backend(name)
            owners = old_backend.owners()
            # A network cannot go while its lock is held, so its rules go along even if somebody has flushed them. A sandbox may just be
            # ending: its rules go along if they stand.
            new_backend.apply([*known.networks, *(group for group in known.sandboxes if group.owner in owners)])
            old_backend.take_down()
        for row in old:
            store.journal(row.owner, NETWORK).forget([row])
    return True


def _published(row: JournalRow) -> RuleGroup | None:
    if row.kind != "rules" or "ports" not in row.args:
        return None
    return firewall.publish_rules(row.args["owner"], row.args["address"], [PortSpec(*port) for port in row.args["ports"]])


def _network_rows(store: Store) -> list[JournalRow]:
    return [
        row
        for owner, scope in store.journal_owners()
        if scope == NETWORK and owner.startswith(_NETWORK_PREFIX)
        for row in store.journal(owner, scope).rows()
        if row.kind == "network_rules"
    ]


def _backend(args: dict[str, Any]) -> str:
    return str(args.get("backend", firewall_choice.IPTABLES))
