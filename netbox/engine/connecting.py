"""Connecting sandboxes to networks and disconnecting them, while they run or not.

A change of a running sandbox writes its journal rows in the scope ``link`` first. When the interface is there, one sqlite transaction
changes the record and moves the rows to the scope ``run``, where they wait for the end of the sandbox; the row ``reroute`` stays until the
default route, the published ports and /etc/hosts agree with the record. Whatever is killed in between, replaying the scope ``link`` makes
the sandbox agree with its record again: the next connect or disconnect does that, every start, ``netbox gc``, and the sandbox's end.
Changes happen under the lock of the networks, so such rows belong to somebody who is at work only as long as that lock is held.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from netbox import names
from netbox.engine import ending, events, holding, impairing
from netbox.engine.locks import SandboxLock, acquire_or_conflict
from netbox.engine.undo import replay_rows
from netbox.errors import Conflict, NetboxError, NotFound, UsageError, WrongState
from netbox.network import drivers, networks
from netbox.network.plan import NetworkPlan
from netbox.network.resolve import own_addresses, renewed_hosts
from netbox.spec import NetworkAttachment, NetworkSpec, SandboxSpec
from netbox.state.journal import LINK, RUN
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context

REROUTE = "reroute"


def connect(context: Context, row: SandboxRow, attachment: NetworkAttachment) -> None:
    """Puts a sandbox on a further network; its default route may change.

    Raises:
        NotFound: there is no such network.
        Conflict: it is on the network already, or an address or MAC is taken; the message names its holder.
        UsageError: its network is not its own, or the address does not fit.
    """
    context.require_root("connect a sandbox to a network")
    ending.after_start(context, row)
    with networks.locked(context.settings):
        settle_links(context, row.id)
        fresh = _own_network(context, row)
        spec = SandboxSpec.from_json(fresh.spec).network
        if any(item.network == attachment.network for item in spec.attachments):
            raise Conflict(f"{fresh.name} is on network {attachment.network} already", "disconnect it first to change its address")
        if context.store.network(attachment.network) is None and attachment.network != names.DEFAULT_NETWORK:
            raise networks.not_found(context.store, attachment.network)
        if fresh.state == "running":
            _connect_running(context, fresh, attachment)
        else:
            _connect_stopped(context, fresh, attachment)
    events.record(context, fresh, "connect", network=attachment.network)


def disconnect(context: Context, row: SandboxRow, network: str) -> None:
    """Takes a sandbox off a network; its default route may change.

    Raises:
        NotFound: it is not on the network.
    """
    context.require_root("disconnect a sandbox from a network")
    ending.after_start(context, row)
    with networks.locked(context.settings):
        settle_links(context, row.id)
        fresh = _own_network(context, row)
        spec = SandboxSpec.from_json(fresh.spec).network
        left = tuple(item for item in spec.attachments if item.network != network)
        if len(left) == len(spec.attachments):
            on = ", ".join(item.network for item in spec.attachments) or "none"
            raise NotFound(f"{fresh.name} is not on network {network}", f"it is on {on}")
        if fresh.state == "running":
            _disconnect_running(context, fresh, network)
        else:
            _disconnect_stopped(context, fresh, network)
    events.record(context, fresh, "disconnect", network=network)


def settle_links(context: Context, sandbox_id: str) -> None:
    """Finishes or undoes what an interrupted connect or disconnect has left. The caller holds the networks' lock, or the sandbox's.

    Raises:
        CleanupError: some undo steps failed.
    """
    journal = context.store.journal(names.sandbox_owner(sandbox_id), LINK)
    rows = journal.rows()
    if rows:
        # Not in the background: when this returns, the interface is gone.
        replay_rows(journal, list(reversed(rows)), context)


def recover(context: Context) -> list[str]:
    """Settles the links of every sandbox whose connect or disconnect was interrupted; returns a line for each. Costs a query otherwise.

    Raises:
        CleanupError: some undo steps failed.
    """
    owners = [owner for owner, _ in context.store.journal_owners(LINK)]
    if not owners:
        return []
    done = []
    known = {names.sandbox_owner(row.id): row for row in context.store.sandboxes()}
    with networks.locked(context.settings):
        for owner in owners:
            journal = context.store.journal(owner, LINK)
            rows = journal.rows()  # again, under the lock: whoever was at work has finished
            replay_rows(journal, list(reversed(rows)), context)
            if rows:
                done.append(f"an unfinished change of networks or ports of {known[owner].name if owner in known else owner}")
    return done


def reroute(context: Context, args: dict[str, Any]) -> None:
    """The journal's ``reroute``: default route, published ports and /etc/hosts of a running sandbox as its record says."""
    row = context.store.sandbox(args["sandbox_id"])
    if row is None or row.state != "running":
        return
    plan = NetworkPlan.from_json(row.details["network"])
    try:
        namespace = ending.open_namespace(context, row, "net")
    except WrongState:
        return  # it has just ended
    try:
        context.network.reroute(plan, namespace, args["published_on"])
        impairing.follow_links(context, row, plan, namespace)
    finally:
        os.close(namespace)
    renew_hosts(context, plan)
    renew_resolvers(context, plan)


def _connect_running(context: Context, row: SandboxRow, attachment: NetworkAttachment) -> None:
    plan = NetworkPlan.from_json(row.details["network"])
    journal = context.store.journal(names.sandbox_owner(row.id), LINK)
    try:
        if plan.ports:
            journal.record(holding.REPUBLISH, sandbox_id=row.id)
        journal.record(REROUTE, sandbox_id=row.id, published_on=_published_on(plan))
        taken = {endpoint.interface for endpoint in plan.endpoints}
        endpoint = context.network.connect(row.id, attachment, taken, journal)
        endpoints = tuple(sorted((*plan.endpoints, endpoint), key=lambda item: item.precedence))
        after = holding.in_families(dataclasses.replace(plan, endpoints=endpoints))
        if plan.ports and any(was and not now for was, now in zip(plan.published_on, after.published_on, strict=True)):
            raise Conflict(f"{row.name} publishes ports, for which its default route must stay with a bridge", "give a lower --gw-priority")
        namespace = ending.open_namespace(context, row, "net")
        try:
            context.network.build(endpoint, namespace, journal)
            impairing.shape(context, row, after, namespace)
        finally:
            os.close(namespace)
        more = holding.of_ipv6(after, plan)
        if more:
            holding.take(context, row, more, after.ports)
        with context.store.database.transaction():
            _save(context, row, after, add=attachment)
            rows = journal.rows()
            journal.move([item for item in rows if drivers.of(endpoint).is_row_of(endpoint, item)], RUN)
            journal.forget([item for item in rows if item.kind == "lease"])  # the run's own row is about every address
    except BaseException as error:
        undo_after(context, row.id, error)
        raise
    settle_links(context, row.id)


def undo_after(context: Context, sandbox_id: str, error: BaseException) -> None:
    """Undoes a change that failed; a failure of this is noted with the error."""
    try:
        settle_links(context, sandbox_id)
    except NetboxError as failure:
        error.add_note(str(failure))


def _disconnect_running(context: Context, row: SandboxRow, network: str) -> None:
    plan = NetworkPlan.from_json(row.details["network"])
    endpoint = next(item for item in plan.endpoints if item.network == network)
    owner = names.sandbox_owner(row.id)
    journal, run = context.store.journal(owner, LINK), context.store.journal(owner, RUN)
    with context.store.database.transaction():
        after = holding.in_families(dataclasses.replace(plan, endpoints=tuple(item for item in plan.endpoints if item is not endpoint)))
        _save(context, row, after, drop=network)
        mine = [item for item in run.rows() if drivers.of(endpoint).is_row_of(endpoint, item)]
        run.forget(mine)
        journal.record("lease", sandbox_id=row.id, network=network)
        journal.record_all([(item.kind, item.args) for item in mine])
        if after.ports != plan.ports:
            journal.record(holding.REPUBLISH, sandbox_id=row.id, gone=[list(port) for port in holding.of_ipv6(plan, after)])
        journal.record(REROUTE, sandbox_id=row.id, published_on=_published_on(plan))  # the last row is the first that is replayed
    settle_links(context, row.id)


def _save(context: Context, row: SandboxRow, after: NetworkPlan, add: NetworkAttachment | None = None, drop: str | None = None) -> None:
    """Writes the networks and ports of a running sandbox down. Inside a transaction."""
    fresh = context.store.sandbox(row.id)
    if fresh is None or fresh.state != "running":
        raise WrongState(f"{row.name} has just ended", "try again")
    plan = {**fresh.details["network"], "endpoints": [dataclasses.asdict(item) for item in after.endpoints], "ports": after.ports}
    context.store.update_sandbox(row.id, spec=_changed_spec(fresh.spec, add, drop), details={**fresh.details, "network": plan})
    if after.ports:
        holding.renew_row(context, after)


def _changed_spec(spec: dict[str, Any], add: NetworkAttachment | None, drop: str | None) -> dict[str, Any]:
    network: NetworkSpec = SandboxSpec.from_json(spec).network
    attachments = [item for item in network.attachments if item.network != drop]
    if add is not None:
        attachments.append(add)
    return {**spec, "network": {**spec["network"], "ip": None, "mac_address": None, "networks": attachments}}


def _connect_stopped(context: Context, row: SandboxRow, attachment: NetworkAttachment) -> None:
    with stopped(context, row), context.store.database.transaction():
        context.store.change_spec(row.id, lambda spec: _changed_spec(spec, attachment, None))
        context.network.reserve(row.id, NetworkSpec(networks=(attachment,)))


def _disconnect_stopped(context: Context, row: SandboxRow, network: str) -> None:
    with stopped(context, row), context.store.database.transaction():
        context.store.change_spec(row.id, lambda spec: _changed_spec(spec, None, network))
        context.store.release_leases(row.id, network)


def stopped(context: Context, row: SandboxRow) -> SandboxLock:
    """The lock of a sandbox that does not run."""
    return acquire_or_conflict(context.settings.sandbox_run(row.id), row.name, timeout=1.0)


def _own_network(context: Context, row: SandboxRow) -> SandboxRow:
    """The record as it is now. Raises ``UsageError`` unless the sandbox has links of its own."""
    fresh = context.store.find_sandbox(row.id)
    mode = fresh.spec["network"]["mode"]
    if mode != "bridge":
        raise UsageError(f"{fresh.name} is on network {mode}, which cannot be combined with others", "make it anew with --network")
    return fresh


def _published_on(plan: NetworkPlan) -> str:
    return ",".join(plan.published_on)


def renew_hosts(context: Context, plan: NetworkPlan) -> None:
    """In place: the sandbox has this very file mounted."""
    _rewrite(context, plan, "hosts", lambda text: renewed_hosts(text, plan.hostname, own_addresses(plan)))


def renew_resolvers(context: Context, plan: NetworkPlan) -> None:
    """The resolvers of the networks that the sandbox is on now, in place as well."""
    _rewrite(context, plan, "resolv.conf", lambda _: context.network.files(plan)["resolv.conf"])


def _rewrite(context: Context, plan: NetworkPlan, name: str, renew: Callable[[str], str]) -> None:
    path = f"{context.settings.sandbox_run(plan.sandbox_id)}/{name}"
    try:
        with open(path, "r+b", buffering=0) as file:
            old = file.read()
            new = renew(old.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
            if new != old:
                # One write over all of the old text: who reads just then, or after this process was killed here, finds no rest of a line.
                file.seek(0)
                file.write(new.ljust(len(old), b"\n"))
                file.truncate(len(new))
    except FileNotFoundError:
        return  # the sandbox is being removed
