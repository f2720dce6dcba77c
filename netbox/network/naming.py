"""Where the life of networks meets the name service: who is told what, and when. The network ``bridge`` has no names, as with Docker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from netbox.names import DEFAULT_NETWORK, short_id
from netbox.network import resolve
from netbox.network.facts import boot_id
from netbox.network.plan import Endpoint, NetworkPlan
from netbox.network.resolve import HostFiles
from netbox.settings import Settings
from netbox.state.journal import Recorder
from netbox.state.rows import NetworkRow
from netbox.state.store import Store

if TYPE_CHECKING:
    from netbox.network.nameservice.hooks import Status, StoredMembers
    from netbox.network.nameservice.zone import Served


PORT = 53


def serve(store: Store, row: NetworkRow, recorder: Recorder) -> int:
    """Serves the names of a network that stands, unless they are served. The networks' lock is held. Returns the port if it has just been
    taken, else 0.

    Raises:
        Conflict: other programs have every port of the gateway's address that could be used.
        HostError: the kernel refuses.
    """
    if row.name == DEFAULT_NETWORK or is_served(store.settings, row.name):
        return 0
    from netbox.network.nameservice import hooks

    return hooks.network_up(store.settings, _served(row), _members(store), recorder)


def expected_port(settings: Settings, row: NetworkRow) -> int:
    """The port where ``serve`` would serve the names of a network. Has no effect.

    Raises:
        Conflict, HostError: as ``serve``.
    """
    if row.name == DEFAULT_NETWORK or is_served(settings, row.name):
        return port(settings, row.name)
    from netbox.network.nameservice import hooks

    return hooks.free_port(_served(row))


def describe(row: NetworkRow, port: int) -> list[str]:
    """How a person would serve the names of a network, with dnsmasq(8); netbox has a process of its own for it. No effects."""
    if row.name == DEFAULT_NETWORK:
        return []
    from netbox.network.nameservice.zone import domain

    where = f"--bind-interfaces --listen-address={row.gateway} --port={port} --pid-file=/run/{row.bridge}.pid"
    what = f"--no-hosts --hostsdir={_hosts(row.bridge)} --expand-hosts --domain={domain(row.name)}"
    others = " --no-resolv" if row.options.get("internal") else ""
    return [f"mkdir -p {_hosts(row.bridge)}", f"dnsmasq --conf-file=/dev/null {where} {what}{others}  # netbox: the process netbox-names"]


def describe_member(plan: NetworkPlan, name: str) -> list[str]:
    """How the names of a sandbox would be added to what ``describe`` serves. No effects."""
    identity = short_id(plan.sandbox_id)
    lines = []
    for endpoint in plan.endpoints:
        if endpoint.network != DEFAULT_NETWORK and not endpoint.on_lan:
            said = " ".join(dict.fromkeys(filter(None, (name, *endpoint.aliases, identity))))
            entries = " ".join(f"'{address} {said}'" for address in endpoint.addresses)
            lines.append(f"printf '%s\\n' {entries} >{_hosts(endpoint.bridge)}/{identity}")
    return lines


def _hosts(bridge: str) -> str:
    return f"/run/{bridge}.hosts"


def _served(row: NetworkRow) -> Served:
    from netbox.network.nameservice.zone import Served

    return Served(row.name, row.bridge, (row.gateway,), tuple(filter(None, (row.subnet, row.subnet6))), bool(row.options.get("internal")))


def port(settings: Settings, network: str) -> int:
    """The port where the names of a network are served; 53 where they are not, or not yet."""
    if network == DEFAULT_NETWORK or not is_served(settings, network):
        return PORT
    from netbox.network.nameservice import files

    try:
        known = files.read(settings.run, network)
    except (OSError, ValueError):
        return PORT
    return known.served.port if known is not None else PORT


def is_served(settings: Settings, network: str) -> bool:
    """Whether the names of a network are served."""
    from netbox.network.nameservice import files

    return network in files.networks(settings.run)


def changed(store: Store, networks: Iterable[str]) -> None:
    """Publishes who is on these networks now.

    Raises:
        HostError: a file cannot be written.
    """
    for network in networks:
        if network != DEFAULT_NETWORK:
            from netbox.network.nameservice import hooks

            hooks.zone_changed(store.settings, network, _members(store))


def ensure_running(settings: Settings) -> bool:
    """Puts a killed name service back; whether there was one. Costs one look at the file system where there is none.

    Raises:
        HostError: it cannot be started.
    """
    if not _ever_served(settings):
        return False
    from netbox.network.nameservice import hooks

    return hooks.ensure_running(settings)


def stop_if_idle(settings: Settings) -> bool:
    """Ends what a killed command left of a name service without networks; whether there was something.

    Raises:
        HostError: it does not end.
    """
    if not _ever_served(settings):
        return False
    from netbox.network.nameservice import hooks

    return hooks.stop_if_idle(settings)


def status(settings: Settings) -> Status:
    """Who serves names for which networks. Changes nothing."""
    from netbox.network.nameservice import hooks

    return hooks.status(settings)


def resolv_conf(plan: NetworkPlan, host: HostFiles) -> str | None:
    """The resolv.conf of a sandbox that is on networks with names; ``None`` for others."""
    named: Sequence[Endpoint] = [endpoint for endpoint in plan.endpoints if endpoint.network != DEFAULT_NETWORK and not endpoint.on_lan]
    if not named:
        return None
    from netbox.network.nameservice import hooks

    gateways = [endpoint.gateway for endpoint in named]
    if plan.way_out is not None and all(endpoint.internal for endpoint in named):
        # The way out is on a network without names. The service of an internal network refuses what is not its own: the next one is asked.
        gateways += resolve.nameservers(resolve.resolv_conf(host, plan.dns, (), (), ipv6=plan.way_out6 is not None))
    return hooks.resolv_conf(host, gateways, [endpoint.network for endpoint in named], plan.dns_search, plan.dns_options)


def _ever_served(settings: Settings) -> bool:
    return os.path.exists(f"{settings.run}/nameservice")


def _members(store: Store) -> StoredMembers:
    from netbox.network.nameservice.hooks import StoredMembers

    boot = boot_id()

    def resolvers(sandbox_id: str) -> Sequence[str]:
        row = store.sandbox(sandbox_id)
        return tuple(row.spec["network"]["dns"]) if row is not None else ()

    return StoredMembers(lambda network: store.network_members(network, boot), resolvers)
