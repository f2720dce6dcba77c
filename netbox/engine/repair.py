"""Whether netbox's firewall rules stand as they should, and putting them back when another program has flushed or edited them.

Only what runs is looked at: networks that stand and sandboxes that are recorded as running. What is just being started or ended has rules
that come and go by themselves; they are left as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from netbox import names
from netbox.engine import losses
from netbox.engine.impairing import KIND
from netbox.network import docker_user, firewall_choice, firewall_switch, networks
from netbox.network.firewall import PUBLISH, Difference
from netbox.network.firewall_lock import exclusive
from netbox.state.journal import NETWORK, of_kind

if TYPE_CHECKING:
    from netbox.network.firewall import RuleGroup
    from netbox.state.store import Store

__all__ = ["Difference", "differences", "repair"]


class _Wanted(NamedTuple):
    """``certain`` rules must stand; ``coming_or_going`` ones may."""

    certain: list[RuleGroup]
    coming_or_going: list[RuleGroup]


def differences(store: Store) -> list[Difference]:
    """What is missing or foreign among the rules of running sandboxes and their networks. Changes nothing.

    Raises:
        NoPermission: not root.
        FirewallError, Unsupported: the rules cannot be read.
    """
    if not _has_links(store):
        return []
    found: list[Difference] = []
    with networks.locked(store.settings):
        if firewall_switch.standing(store):
            with exclusive():
                for name in sorted(firewall_switch.standing(store)):
                    found += firewall_choice.backend(name).differences(_wanted(store).certain)
                found += docker_user.differences(store)
        found += losses.differences(store)
    return found


def repair(store: Store) -> list[Difference]:
    """Puts back what is missing, takes out what is foreign; returns what that was. Rules of others in their chains are not touched.

    Connections go on: they are in the kernel's connection table, and each table of rules changes at one blow.

    Raises:
        NoPermission: not root.
        FirewallError, Unsupported: the rules cannot be read or changed.
    """
    if not _has_links(store):
        return []
    found: list[Difference] = []
    with networks.locked(store.settings):
        firewall_switch.follow(store)
        if firewall_switch.standing(store):
            with exclusive():
                for name in sorted(firewall_switch.standing(store)):
                    found += _repair(store, name)
                found += docker_user.differences(store)
                docker_user.repair(store)
        found += losses.repair(store)
    return found


def _has_links(store: Store) -> bool:
    """Whether there is something that may have rules: a network that stands, an impaired link."""
    return bool(store.journal_owners(NETWORK) or of_kind(store.database, KIND))


def _repair(store: Store, name: str) -> list[Difference]:
    backend = firewall_choice.backend(name)
    wanted = _wanted(store)
    found = backend.differences(wanted.certain)
    if found:
        owners = backend.owners()
        backend.repair([*wanted.certain, *(group for group in wanted.coming_or_going if group.owner in owners)])
        _take_back(store, name, wanted.certain)
        _forget_untranslated([group for group in wanted.certain if group.owner in {item.owner for item in found}])
    return found


def _wanted(store: Store) -> _Wanted:
    expected = firewall_switch.expected(store)
    certain = _running(store) - expected.unfinished
    return _Wanted(
        [*expected.networks, *(group for group in expected.sandboxes if group.owner in certain)],
        [group for group in expected.sandboxes if group.owner not in certain],
    )


def _take_back(store: Store, backend: str, groups: list[RuleGroup]) -> None:
    """A sandbox may have ended since it was asked, its rules gone before they were put back. One that ends from here on removes them."""
    running = _running(store)
    ended = [group.owner for group in groups if not group.owner.startswith("network:") and group.owner not in running]
    if ended:
        firewall_choice.remove(ended, [backend])


def _forget_untranslated(groups: list[RuleGroup]) -> None:
    """Datagrams that came while a rule was missing made entries that bypass it, and that every further one keeps alive."""
    from netbox.kernel import conntrack

    for group in groups:
        for rule in group.rules:
            if rule.stage == PUBLISH and rule.protocol in conntrack.PROTOCOLS and rule.ports is not None:
                first, last = rule.ports
                address = rule.destination or ("::" if rule.ipv6 else "0.0.0.0")
                conntrack.flush(rule.protocol, address, first, last - first + 1, keep_translated=True)


def _running(store: Store) -> set[str]:
    """The owners of what runs."""
    running = [row.id for row in store.sandboxes() if row.state == "running"]
    return {*map(names.sandbox_owner, running), *map(names.impairment_owner, running)}
