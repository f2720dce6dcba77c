"""What gets lost on its way into a sandbox: rules that stand in the sandbox's own network namespace, and putting them back there.

Programs of this host that go there can flush them, and so can a sandbox with NET_ADMIN. Call everything here under the networks' lock: it
keeps others from impairing a link meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from netbox import names
from netbox.engine import ending
from netbox.engine.context import Context
from netbox.engine.impairing import KIND, STANDING
from netbox.errors import WrongState
from netbox.kernel.namespaces import inside_netns
from netbox.network import firewall_choice
from netbox.network.firewall import Difference
from netbox.network.firewall_lock import exclusive
from netbox.state import journal

if TYPE_CHECKING:
    from netbox.network.firewall import FirewallBackend, RuleGroup
    from netbox.state.rows import SandboxRow
    from netbox.state.store import Store


def differences(store: Store) -> list[Difference]:
    """What is missing or foreign in the namespaces of running sandboxes. Changes nothing.

    Raises:
        FirewallError, Unsupported, NoPermission: the rules cannot be read.
    """
    found = []
    for row, group in _expected(store):
        with _inside(store, row) as there:
            found += _differences(row, group) if there else []
    return found


def repair(store: Store) -> list[Difference]:
    """Puts back what is missing there and takes out what is foreign; returns what that was.

    Raises:
        FirewallError, Unsupported, NoPermission: the rules cannot be read or changed.
    """
    found = []
    for row, group in _expected(store):
        with _inside(store, row) as there:
            damage = _differences(row, group) if there else []
            if damage:
                backend = _backend(group)
                backend.apply([group], [group.owner])
                if backend.differences([group]):  # not the rules alone: the chains or what leads to them
                    backend.repair([group])
            found += damage
    return found


def _expected(store: Store) -> Iterator[tuple[SandboxRow, RuleGroup]]:
    """The running sandboxes whose incoming packets get lost, and the rules for it. What is half done is left to who is at it."""
    entries: dict[str, list[journal.JournalRow]] = {}
    for entry in journal.of_kind(store.database, KIND):
        entries.setdefault(entry.owner, []).append(entry)
    for row in store.sandboxes() if entries else ():
        its = entries.get(names.sandbox_owner(row.id), [])
        if not its or row.state != "running" or any(entry.args["state"] != STANDING for entry in its):
            continue
        from netbox.network import shaping
        from netbox.network.plan import NetworkPlan

        items = [shaping.Impairment.from_json(entry.args["impairment"]) for entry in its]
        group = shaping.loss_rules(NetworkPlan.from_json(row.details["network"]), shaping.IN, items)
        if group.rules:
            yield row, group


@contextmanager
def _inside(store: Store, row: SandboxRow) -> Iterator[bool]:
    """The calling thread is in the sandbox's network namespace inside the block; false when the sandbox has just ended."""
    with closing(Context(store.settings)) as context:
        try:
            netns = ending.open_namespace(context, row, "net")
        except WrongState:
            yield False
            return
        try:
            with inside_netns(netns), exclusive():
                yield True
        finally:
            os.close(netns)


def _differences(row: SandboxRow, group: RuleGroup) -> list[Difference]:
    return [item._replace(what=f"in {row.name}: {item.what}") for item in _backend(group).differences([group])]


def _backend(group: RuleGroup) -> FirewallBackend:
    """The one that holds the rules in this namespace; the one that is chosen now where none does any more."""
    standing = [name for name in sorted(firewall_choice.occupied()) if group.owner in firewall_choice.backend(name).owners()]
    return firewall_choice.backend(standing[0] if standing else firewall_choice.choose().name)
