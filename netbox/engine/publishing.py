"""Publishing ports of a sandbox and taking them back, while it runs or not.

A change of a running sandbox writes the journal's row ``republish`` in the scope ``link`` first. Then the host ports are claimed, the
monitor gets the sockets that hold them, and one sqlite transaction changes the record and what the end of the run undoes. Replaying the row
makes rules, sockets and claims agree with the record: that is the last step of every change, and what mends one that was killed half way.
As with ``connect`` all of it happens under the lock of the networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from netbox import names
from netbox.engine import ending, events
from netbox.engine.connecting import settle_links, stopped, undo_after
from netbox.engine.holding import REPUBLISH, hold, renew_row
from netbox.errors import NotFound, UsageError, WrongState
from netbox.network import firewall_switch, networks, ports
from netbox.network.manager import check_endpoints
from netbox.network.plan import NetworkPlan
from netbox.parse.ports import check_overlaps, format_port, parse_port, selects
from netbox.spec import PortSpec, SandboxSpec
from netbox.state.journal import LINK, RUN
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context


def publish(context: Context, row: SandboxRow, asked: Sequence[str | int | PortSpec]) -> tuple[PortSpec, ...]:
    """Publishes further ports, at once when the sandbox runs. Returns them, when it runs with the host ports that were chosen.

    Raises:
        Conflict: a sandbox or another program has a port; the message names it.
        UsageError: a port is malformed or asked for twice, or the sandbox has no network by which it could be reached.
    """
    context.require_root("publish a port")
    ending.after_start(context, row)
    wanted = tuple(parse_port(port) for port in asked)
    with networks.locked(context.settings):
        settle_links(context, row.id)
        fresh = _reachable(context, row, wanted)
        check_overlaps([*_spec_ports(fresh), *wanted])
        if fresh.state == "running":
            wanted = _publish_running(context, fresh, wanted)
        else:
            with stopped(context, fresh):
                _save_stopped(context, fresh, [*_spec_ports(fresh), *wanted])
    events.record(context, fresh, "publish", ports=[format_port(port) for port in wanted])
    return wanted


def unpublish(context: Context, row: SandboxRow, selectors: Sequence[str | int | PortSpec]) -> tuple[PortSpec, ...]:
    """Takes published ports back, at once when the sandbox runs: new connections find nothing, those that stand go on. A selector is a port
    inside (``80``, ``53/udp``) or a whole mapping (``127.0.0.1:8080:80``). Returns what was taken back.

    Raises:
        NotFound: a selector fits nothing that is published.
    """
    context.require_root("take a published port back")
    ending.after_start(context, row)
    with networks.locked(context.settings):
        settle_links(context, row.id)
        fresh = context.store.find_sandbox(row.id)
        asked = _spec_ports(fresh)
        actual = _plan(fresh).ports if fresh.state == "running" else asked
        gone = _selected(fresh.name, list(zip(asked, actual, strict=True)), selectors)
        left = [index for index in range(len(asked)) if index not in gone]
        if fresh.state == "running":
            journal = context.store.journal(names.sandbox_owner(fresh.id), LINK)
            with context.store.database.transaction():
                journal.record(REPUBLISH, sandbox_id=fresh.id, gone=[list(actual[index]) for index in gone])
                _save(context, fresh, [asked[index] for index in left], [actual[index] for index in left])
            settle_links(context, fresh.id)
        else:
            with stopped(context, fresh):
                _save_stopped(context, fresh, [asked[index] for index in left])
    taken = tuple(actual[index] for index in gone)
    events.record(context, fresh, "unpublish", ports=[format_port(port) for port in taken])
    return taken


def agree(context: Context, args: dict[str, Any]) -> None:
    """The journal's ``republish``: rules, sockets and claims of a running sandbox as its record says. ``gone`` are ports whose connections
    the kernel is to forget.
    """
    row = context.store.sandbox(args["sandbox_id"])
    if row is not None and row.state == "running":
        plan = _plan(row)
        firewall_switch.publish_again(context.store, plan)
        ports.forget(plan.ports, keep_translated=True)
        try:
            hold(context, row, plan.ports)
        except WrongState:
            pass  # it has just ended, and its sockets with it
        context.store.keep_ports(row.id, plan.ports)
    elif row is None or row.state not in (ending.CREATING, "starting"):
        context.store.release_ports(args["sandbox_id"])
    ports.forget(PortSpec(*port) for port in args.get("gone", ()))


def _publish_running(context: Context, row: SandboxRow, wanted: tuple[PortSpec, ...]) -> tuple[PortSpec, ...]:
    standing = _plan(row).ports
    try:
        context.store.journal(names.sandbox_owner(row.id), LINK).record(REPUBLISH, sandbox_id=row.id)
        taken, sockets = ports.reserve(context.store, row.id, wanted, _plan(row).entrance6 is not None)
        try:
            hold(context, row, (*standing, *taken), sockets)
        finally:
            for sock in sockets:
                sock.close()
        with context.store.database.transaction():
            _save(context, row, [*_spec_ports(row), *wanted], [*standing, *taken])
    except BaseException as error:
        undo_after(context, row.id, error)
        raise
    settle_links(context, row.id)
    return taken


def _save(context: Context, row: SandboxRow, asked: Sequence[PortSpec], actual: Sequence[PortSpec]) -> None:
    """Writes down what a running sandbox publishes, and what its end has to undo. Inside a transaction."""
    fresh = context.store.sandbox(row.id)
    if fresh is None or fresh.state != "running" or fresh.started_at != row.started_at:
        raise WrongState(f"{row.name} has just ended", "try again")
    details = {**fresh.details, "network": {**fresh.details["network"], "ports": actual}}
    context.store.update_sandbox(row.id, spec=_changed_spec(fresh.spec, asked), details=details)
    run = context.store.journal(names.sandbox_owner(row.id), RUN)
    if not any(item.kind == "port" for item in run.rows()):
        run.record("port", sandbox_id=row.id)
    renew_row(context, NetworkPlan.from_json(details["network"]))


def _selected(name: str, published: Sequence[tuple[PortSpec, PortSpec]], selectors: Iterable[str | int | PortSpec]) -> list[int]:
    """The numbers of the mappings that the selectors name. Each mapping is given as it was asked for and as it is."""
    found: list[int] = []
    for selector in selectors:
        chosen = [index for index, forms in enumerate(published) if any(selects(selector, form) for form in forms)]
        if not chosen:
            text = format_port(parse_port(selector))
            listed = ", ".join(format_port(actual) for _, actual in published)
            raise NotFound(f"{name} does not publish {text}", f"it publishes {listed}" if listed else "it publishes nothing")
        found += [index for index in chosen if index not in found]
    return found


def _reachable(context: Context, row: SandboxRow, wanted: Sequence[PortSpec]) -> SandboxRow:
    """The record as it is now. Raises ``UsageError`` unless the sandbox has a link by which a published port can be reached."""
    fresh = context.store.find_sandbox(row.id)
    spec = SandboxSpec.from_json(fresh.spec).network
    if spec.mode != "bridge":
        raise UsageError(f"cannot publish a port: {fresh.name} is on network {spec.mode}", "make it anew with --network bridge")
    if fresh.state == "running":
        check_endpoints(_plan(fresh).endpoints, dataclasses.replace(spec, ports=tuple(wanted), rate_in=None))
    rows = [context.store.network(item.network) for item in spec.attachments]
    if all(item is not None and networks.is_internal(item) for item in rows):
        where = f"on internal networks only ({spec.title})" if rows else "on no network"
        hint = "connect it to a network with a way out (netbox network connect)"
        raise UsageError(f"cannot publish a port: {fresh.name} is {where}", hint)
    return fresh


def _spec_ports(row: SandboxRow) -> tuple[PortSpec, ...]:
    return tuple(PortSpec(*port) for port in row.spec["network"]["ports"])


def _plan(row: SandboxRow) -> NetworkPlan:
    return NetworkPlan.from_json(row.details["network"])


def _save_stopped(context: Context, row: SandboxRow, asked: Sequence[PortSpec]) -> None:
    context.store.change_spec(row.id, lambda spec: _changed_spec(spec, asked))


def _changed_spec(spec: dict[str, Any], published: Sequence[PortSpec]) -> dict[str, Any]:
    return {**spec, "network": {**spec["network"], "ports": list(published)}}
