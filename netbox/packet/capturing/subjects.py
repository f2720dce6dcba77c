"""The sandboxes that a capture is about: who they are, where their packets can be heard, what their addresses are called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from netbox.engine import Engine, ending
from netbox.engine.watchers import Arrival
from netbox.errors import NetboxError, NotFound, WrongState
from netbox.kernel.namespaces import identity
from netbox.kernel.rtnetlink import RouteSocket
from netbox.network.plan import Endpoint, NetworkPlan
from netbox.packet.capturing.values import BRIDGE, HOST_END, Selection
from netbox.state.rows import SandboxRow

_OWN = ("nb", "netbox")
HOST_NAME = "host"  # how the addresses of the bridges are called: they are this machine's


class Subject(NamedTuple):
    """A sandbox that runs, or is about to. ``netns`` and ``pidfd`` are descriptors that belong to whoever has this."""

    id: str
    name: str
    plan: NetworkPlan
    netns: int
    pidfd: int

    def close(self) -> None:
        """Closes the descriptors."""
        os.close(self.netns)
        os.close(self.pidfd)


class Device(NamedTuple):
    """A device of the host that is recorded: its name there, its name in the capture, and a description."""

    device: str
    name: str
    description: str


def check(engine: Engine, selection: Selection) -> None:
    """Raises:
    NotFound: there is no such sandbox or network.
    WrongState: a sandbox does not run, and the capture does not wait for it.
    """
    for network in selection.networks:
        engine.networks.get(network)
    for name in selection.names:
        try:
            sandbox = engine.get(name)
        except NotFound as error:
            if selection.from_start:
                continue
            raise NotFound(error.message, "'netbox ps' lists those that run; --from-start waits for one that is to come") from error
        if sandbox.state not in ("running", "paused") and not selection.from_start:
            raise WrongState(f"cannot capture {sandbox.name}: it does not run", "start it, or use --from-start to wait for its start")


def running(engine: Engine, selection: Selection, known: set[str]) -> Iterator[Subject]:
    """The wanted sandboxes that run, without those whose id is ``known``."""
    context = engine._context
    for row in context.store.sandboxes():
        if row.state != "running" or row.id in known or not row.details.get("network"):
            continue
        plan = NetworkPlan.from_json(row.details["network"])
        if not _wanted(selection, row, plan):
            continue
        try:
            pidfd = ending.open_pidfd(context, row)
        except WrongState:
            continue  # it has just ended
        try:
            netns = ending.open_namespace(context, row, "net")
        except WrongState:
            os.close(pidfd)
            continue
        yield Subject(row.id, row.name, plan, netns, pidfd)


def arriving(arrival: Arrival) -> Subject:
    """A sandbox that is just starting."""
    return Subject(arrival.id, arrival.name, NetworkPlan.from_json(arrival.plan), arrival.netns, arrival.pidfd)


def current_plan(engine: Engine, sandbox_id: str) -> NetworkPlan | None:
    """The network of a sandbox as it is now: it may have been connected to another one."""
    row = engine._context.store.sandbox(sandbox_id)
    return NetworkPlan.from_json(row.details["network"]) if row and row.state == "running" and row.details.get("network") else None


def namespace_name(engine: Engine, subject: Subject) -> str:
    """Whose the interfaces are: the sandbox's own, or those of the one whose namespace it shares."""
    if not subject.plan.target_id:
        return subject.name
    try:
        return engine.get(subject.plan.target_id).name
    except NetboxError:
        return subject.name  # the owner of the namespace has gone; who shares it keeps it


def is_on_host(subject: Subject) -> bool:
    """Whether the sandbox's interfaces are this machine's."""
    return identity(subject.netns) == identity("/proc/thread-self/ns/net")


def host_devices(subject: Subject, selection: Selection) -> list[Device]:
    """The host's ends of a sandbox's links, and the bridges of the networks that were asked for."""
    found = []
    for position, endpoint in enumerate(subject.plan.interfaces):
        end = HOST_END if position == 0 else f"{HOST_END}{position}"
        if endpoint.host_interface and selection.wants_interface(end):
            text = f"the host's end ({endpoint.host_interface}) of {endpoint.interface} of {subject.name}, network {endpoint.network}"
            found.append(Device(endpoint.host_interface, f"{subject.name}/{end}", text))
        if endpoint.network in selection.networks and endpoint.bridge and selection.wants_interface(BRIDGE):
            found.append(Device(endpoint.bridge, f"{endpoint.network}/{BRIDGE}", f"bridge {endpoint.bridge} of network {endpoint.network}"))
    return found


def shared_devices(subject: Subject, selection: Selection) -> list[Device]:
    """The host's own interfaces, for a sandbox that shares them: those that are up and not netbox's."""
    with RouteSocket() as route:
        links = [link for link in route.links() if link.is_up and not (link.kind in ("veth", "bridge") and link.name.startswith(_OWN))]
    text = f"of this machine, which {subject.name} shares"
    return [
        Device(link.name, f"{HOST_NAME}/{link.name}", f"{link.name} {text}")
        for link in links
        if selection.wants_interface(link.name, subject.plan.mode)
    ]


def names_of(subject: Subject) -> list[tuple[str, str]]:
    """The addresses of a sandbox and of the bridges that it is on, with what they are called."""
    found = []
    for endpoint in subject.plan.endpoints:
        found += [(address, subject.name) for address in _both(endpoint, "address")]
        if not endpoint.on_lan:  # else it is the LAN's own router
            found += [(address, HOST_NAME) for address in _both(endpoint, "gateway")]
    return found


def _both(endpoint: Endpoint, field: str) -> list[str]:
    """The IPv4 and the IPv6 value of a field, where there are any."""
    return [value for value in (getattr(endpoint, field), getattr(endpoint, f"{field}6", "")) if value]


def _wanted(selection: Selection, row: SandboxRow, plan: NetworkPlan) -> bool:
    return selection.wants(row.id, row.name, dict(row.spec["labels"]), plan)
