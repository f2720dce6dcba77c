"""``--network none``: a namespace with a loopback interface and no way out."""

from __future__ import annotations

from netbox.errors import UsageError, host_error
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import LOOPBACK_INDEX, RouteSocket, set_up
from netbox.names import short_id
from netbox.network import resolve
from netbox.network.modes import Facts, Request, refuse
from netbox.network.plan import NetworkPlan
from netbox.network.resolve import HostFiles
from netbox.spec import NetworkSpec
from netbox.state.journal import Recorder

uses_network = False


def check(spec: NetworkSpec, hostname: str | None) -> None:
    """See ``Mode.check``."""
    options = {"--publish": spec.ports, "--ip": spec.ip, "--mac-address": spec.mac_address}
    refuse(spec, "none", options, "it has loopback only: use --network bridge")
    for name, address in spec.extra_hosts:
        if address == resolve.HOST_GATEWAY:
            raise UsageError(f"--add-host {name}:host-gateway: with --network none there is no way to the host", "use --network bridge")


def prepare(request: Request, facts: Facts) -> NetworkPlan:
    """See ``Mode.prepare``."""
    spec = request.spec
    return NetworkPlan(
        request.sandbox_id,
        "none",
        request.hostname or short_id(request.sandbox_id),
        dns=spec.dns,
        dns_search=spec.dns_search,
        dns_options=spec.dns_options,
        extra_hosts=spec.extra_hosts,
    )


def attach(plan: NetworkPlan, netns_fd: int, recorder: Recorder) -> None:
    """See ``Mode.attach``: the loopback interface up."""
    try:
        with inside_netns(netns_fd):
            netlink = RouteSocket()
        with netlink:
            netlink.request(set_up(LOOPBACK_INDEX))
    except OSError as error:
        raise host_error("bring up", "the loopback interface of the sandbox", error) from error


def files(plan: NetworkPlan, host: HostFiles) -> dict[str, str]:
    """See ``Mode.files``: no resolver but those that were asked for."""
    return resolve.private_files(plan, host)


def describe(plan: NetworkPlan) -> list[str]:
    """See ``Mode.describe``."""
    netns = short_id(plan.sandbox_id)
    return [f"ip netns add {netns}", f"ip -n {netns} link set lo up"]
