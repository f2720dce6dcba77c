"""Moving what stands from one firewall backend to the other, and what should stand at all.

The journal answers both questions: a row ``network_rules`` says which backend holds a network's rules, a row ``rules`` what a sandbox
publishes; once a sandbox runs, its record says so better, for it may be connected to other networks. A move puts the new rules in before it
takes the old ones out, so no packet meets neither; connections are in the kernel's connection table and stay as they are. The lock of
``firewall_lock`` is held meanwhile: whoever removes an owner's rules does it before the move, and then they are not moved, or after it, and
then from both backends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from netbox import names
from netbox.network import firewall, firewall_choice, networks
from netbox.network.firewall import Rule, RuleGroup
from netbox.network.firewall_lock import exclusive
from netbox.network.plan import NetworkPlan
from netbox.spec import PortSpec
from netbox.state.journal import NETWORK, RUN, JournalRow
from netbox.state.store import Store

_NETWORK_PREFIX = "network:"
_STANDING = "standing"  # the state of an impairment that is in force


class Expected(NamedTuple):
    """The rules that the journal knows: those of networks, and those of sandboxes and of what their links lose. ``unfinished`` are the
    owners of rules that a killed process has left half done: they may stand or not.
    """

    networks: tuple[RuleGroup, ...]
    sandboxes: tuple[RuleGroup, ...]
    unfinished: frozenset[str]


def standing(store: Store) -> set[str]:
    """The backends that may hold rules of networks, as the journal says."""
    return {_backend(row.args) for row in _network_rows(store)}


def expected(store: Store) -> Expected:
    """What the journal says that stands, or is just being put in or taken away."""
    own: list[RuleGroup] = []
    for owner in dict.fromkeys(row.owner for row in _network_rows(store)):
        network = store.network(owner.removeprefix(_NETWORK_PREFIX))
        if network is not None:
            own.append(networks.standing_rules(store, network))
    groups: list[RuleGroup] = []
    unfinished: set[str] = set()
    plans = {names.sandbox_owner(row.id): row.details.get("network") for row in store.sandboxes() if row.state == "running"}
    for owner, _ in store.journal_owners(RUN):
        saved = plans.get(owner)
        plan = NetworkPlan.from_json(saved) if saved else None
        rows = store.journal(owner, RUN).rows()
        groups += [group for row in rows if row.kind == "rules" and (group := _published(row, plan)).rules]
        impairments = [row.args for row in rows if row.kind == "impairment"]
        unfinished |= {args["owner"] for args in impairments if args["state"] != _STANDING}
        if plan is not None and impairments:
            groups.append(_lost(plan, impairments))
    return Expected(tuple(own), tuple(group for group in groups if group.rules), frozenset(unfinished))


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


def published(plan: NetworkPlan) -> RuleGroup:
    """The rules of a sandbox's published ports; none where it has no way out by a bridge."""
    owner = names.sandbox_owner(plan.sandbox_id)
    return _publish_rules(owner, *plan.published_on, plan.ports, _neighbours(plan)) if plan.ports else RuleGroup(owner, ())


def published_row(plan: NetworkPlan, backend: str) -> dict[str, Any]:
    """What the journal's row ``rules`` says about a sandbox's published ports."""
    address, address6 = plan.published_on
    return {
        "owner": names.sandbox_owner(plan.sandbox_id),
        "backend": backend,
        "address": address,
        "address6": address6,
        "ports": [list(port) for port in plan.ports],
        "neighbours": _neighbours(plan),
    }


def _neighbours(plan: NetworkPlan) -> list[str]:
    """The subnets of further networks, where the sandbox answers to a client directly."""
    others = [endpoint for endpoint in plan.interfaces if not endpoint.internal]
    return [item.subnet for item in others if item is not plan.entrance] + [
        item.subnet6 for item in others if item.subnet6 and item is not plan.entrance6
    ]


def _publish_rules(owner: str, address: str, address6: str, ports: Iterable[PortSpec], neighbours: Iterable[str]) -> RuleGroup:
    """The rules of the ports whose family the sandbox has."""
    ports, neighbours = [its for port in ports for its in port.by_family], tuple(neighbours)
    rules: list[Rule] = []
    for own in filter(None, (address, address6)):
        is_ipv6 = ":" in own
        its = [port for port in ports if (":" in port.host_ip) == is_ipv6]
        if its:
            rules += firewall.publish_rules(owner, own, its, [item for item in neighbours if (":" in item) == is_ipv6]).rules
    return RuleGroup(owner, tuple(rules))


def replace(store: Store, group: RuleGroup) -> None:
    """Puts the group where the rules of networks stand, in place of the owner's old rules. Call it under the networks' lock.

    Raises what ``FirewallBackend.apply`` raises.
    """
    target = ""
    with exclusive():
        if group.rules:
            holders, chosen = standing(store), firewall_choice.choose().name
            target = chosen if chosen in holders or not holders else min(holders)
            firewall_choice.backend(target).apply([group], [group.owner])  # of either family
        firewall_choice.remove_everywhere([group.owner], but=target)


def publish_again(store: Store, plan: NetworkPlan) -> None:
    """Makes the rules of a running sandbox's published ports those of its plan. Call it under the networks' lock.

    Raises what ``FirewallBackend.apply`` raises.
    """
    replace(store, published(plan))
    row = store.sandbox(plan.sandbox_id)
    if row is None or row.state != "running":
        # It has ended since: its rules may have been removed before they were put in again. One that ends from here on removes them.
        firewall_choice.remove_everywhere([names.sandbox_owner(plan.sandbox_id)])


def _published(row: JournalRow, plan: NetworkPlan | None) -> RuleGroup:
    if plan is not None:
        return published(plan)
    args = row.args
    taken = [PortSpec(*port) for port in args["ports"]]
    return _publish_rules(args["owner"], args["address"], args.get("address6", ""), taken, args.get("neighbours", ()))


def _lost(plan: NetworkPlan, impairments: list[dict[str, Any]]) -> RuleGroup:
    """What the host's firewall loses of what comes out of a sandbox. One that is over stands until its row goes."""
    from netbox.network import shaping  # most sandboxes have none

    items = [shaping.Impairment.from_json(args["impairment"]) for args in impairments if args["state"] == _STANDING]
    return shaping.loss_rules(plan, shaping.OUT, items)


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
