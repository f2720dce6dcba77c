"""What is held for the published ports of a running sandbox: sockets by its monitor, claims in the database, and the journal's row of what
its end takes away. Ports for every address follow the sandbox's networks: they are published for IPv6 as long as one of those has it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from netbox import names
from netbox.errors import HostError
from netbox.network import firewall_choice, firewall_switch, ports
from netbox.network.firewall import ANY_ADDRESS6
from netbox.network.plan import NetworkPlan
from netbox.runtime import client
from netbox.spec import PortSpec
from netbox.state.journal import RUN
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context

REPUBLISH = "republish"


def hold(context: Context, row: SandboxRow, published: Sequence[PortSpec], sockets: Sequence[Any] = ()) -> None:
    """Has the monitor hold the ports and no others; ``sockets`` are those of new ones.

    Raises:
        WrongState: the sandbox has just ended.
        HostError: the monitor does not answer, or may not open that many files.
    """
    wanted = ports.held(published)
    held = client.keep_ports(context.settings.sandbox_run(row.id), wanted, sockets)
    if sockets and not held.issuperset(wanted):
        raise HostError(f"the monitor of {row.name} holds {len(held)} of {len(wanted)} ports", "see whether it may open more files")


def renew_row(context: Context, plan: NetworkPlan) -> None:
    """Writes down what the end of a run takes away of its published ports. Inside a transaction."""
    run = context.store.journal(names.sandbox_owner(plan.sandbox_id), RUN)
    old = [item for item in run.rows() if item.kind == "rules"]
    run.record("rules", **firewall_switch.published_row(plan, firewall_choice.choose().name))
    run.forget(old)


def in_families(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its published ports for the families that its networks have. Pure."""
    return dataclasses.replace(plan, ports=ports.in_families(plan.ports, plan.entrance6 is not None))


def of_ipv6(plan: NetworkPlan, other: NetworkPlan) -> list[PortSpec]:
    """The ports that are published for IPv6 too by ``plan``, and not by ``other``: by themselves. Pure."""
    pairs = zip(plan.ports, other.ports, strict=True)
    return [port._replace(host_ip=ANY_ADDRESS6, with_ipv6=False) for port, its in pairs if port.with_ipv6 and not its.with_ipv6]


def take(context: Context, row: SandboxRow, wanted: Sequence[PortSpec], published: Sequence[PortSpec]) -> None:
    """Takes further host ports for a running sandbox that then has those ``published``. The journal has the row ``republish`` already.

    Raises:
        Conflict: a sandbox or another program has a port; the message names it.
        WrongState, HostError: as ``hold``.
    """
    _, sockets = ports.reserve(context.store, row.id, wanted, ipv6=True)
    try:
        hold(context, row, published, sockets)
    finally:
        for sock in sockets:
            sock.close()
