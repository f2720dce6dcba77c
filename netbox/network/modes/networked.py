"""``--network NAME``: an interface on each network that the sandbox is on, built by the network's driver."""

from __future__ import annotations

from collections.abc import Sequence

from netbox.errors import UsageError
from netbox.names import short_id
from netbox.network import drivers, naming, resolve
from netbox.network.modes import Facts, Request, none
from netbox.network.plan import Endpoint, NetworkPlan
from netbox.network.resolve import HostFiles
from netbox.spec import NetworkSpec
from netbox.state.journal import Recorder

uses_network = True


def check(spec: NetworkSpec, hostname: str | None) -> None:
    """See ``Mode.check``: nothing is refused."""


def prepare(request: Request, facts: Facts) -> NetworkPlan:
    """See ``Mode.prepare``. ``host-gateway`` becomes the addresses of the bridge."""
    spec = request.spec
    bridged = [endpoint for endpoint in facts.endpoints if not endpoint.on_lan]
    if not bridged and any(address == resolve.HOST_GATEWAY for _, address in spec.extra_hosts):
        if not facts.endpoints:
            raise UsageError("--add-host with host-gateway: the sandbox is on no network", "connect it first (netbox network connect)")
        raise UsageError("--add-host with host-gateway: this host is out of reach on a macvlan network", "add one with a bridge")
    return NetworkPlan(
        request.sandbox_id,
        "bridge",
        request.hostname or short_id(request.sandbox_id),
        endpoints=facts.endpoints,
        ports=facts.ports,
        dns=spec.dns,
        dns_search=spec.dns_search,
        dns_options=spec.dns_options,
        extra_hosts=tuple(
            (name, value)
            for name, address in spec.extra_hosts
            for value in (_gateways(bridged) if address == resolve.HOST_GATEWAY else (address,))
        ),
        standing=facts.standing,
        base_stands=facts.base_stands,
    )


def _gateways(bridged: Sequence[Endpoint]) -> tuple[str, ...]:
    """This host as the first of these networks knows it, and for IPv6 the first that has it."""
    return (bridged[0].gateway, *[endpoint.gateway6 for endpoint in bridged if endpoint.gateway6][:1])


def attach(plan: NetworkPlan, netns_fd: int, recorder: Recorder) -> None:
    """See ``Mode.attach``."""
    if not plan.endpoints:
        none.attach(plan, netns_fd, recorder)
    for endpoint in plan.interfaces:
        drivers.of(endpoint).connect(endpoint, netns_fd, recorder, is_default=endpoint is plan.way_out)
    if plan.way_out6 is not None:
        drivers.move_default_route(plan.way_out6, netns_fd, plan.way_out6.gateway6)


def files(plan: NetworkPlan, host: HostFiles) -> dict[str, str]:
    """See ``Mode.files``."""
    files = resolve.private_files(plan, host)
    named = naming.resolv_conf(plan, host)
    return files if named is None else {**files, "resolv.conf": named}


def describe(plan: NetworkPlan) -> list[str]:
    """See ``Mode.describe``."""
    netns = short_id(plan.sandbox_id)
    commands = [f"ip netns add {netns}", f"ip -n {netns} link set lo up"]
    for endpoint in plan.interfaces:
        commands += drivers.of(endpoint).describe(endpoint, netns, is_default=endpoint is plan.way_out)
    if plan.way_out6 is not None:
        commands.append(f"ip -6 -n {netns} route replace default via {plan.way_out6.gateway6} dev {plan.way_out6.interface}")
    return commands
