"""``--network host``: the sandbox shares the host's interfaces, addresses and ports. Nothing is built."""

from __future__ import annotations

from netbox.network import resolve
from netbox.network.modes import Facts, Request, refuse
from netbox.network.plan import NetworkPlan
from netbox.network.resolve import HostFiles
from netbox.spec import NetworkSpec
from netbox.state.journal import Recorder

uses_network = False


def check(spec: NetworkSpec, hostname: str | None) -> None:
    """See ``Mode.check``."""
    refuse(spec, "host", {"--publish": spec.ports}, "every port that it listens on is the host's own already: leave -p out")
    refuse(spec, "host", {"--ip": spec.ip, "--mac-address": spec.mac_address}, "the interfaces are the host's: leave it out")


def prepare(request: Request, facts: Facts) -> NetworkPlan:
    """See ``Mode.prepare``. The host is its own gateway: ``host-gateway`` becomes 127.0.0.1."""
    spec = request.spec
    return NetworkPlan(
        request.sandbox_id,
        "host",
        request.hostname or facts.host_name,
        dns=spec.dns,
        dns_search=spec.dns_search,
        dns_options=spec.dns_options,
        extra_hosts=tuple((name, "127.0.0.1" if address == resolve.HOST_GATEWAY else address) for name, address in spec.extra_hosts),
    )


def attach(plan: NetworkPlan, netns_fd: int, recorder: Recorder) -> None:
    """Nothing to do."""


def files(plan: NetworkPlan, host: HostFiles) -> dict[str, str]:
    """See ``Mode.files``: the host's own."""
    return resolve.host_mode_files(plan, host)


def describe(plan: NetworkPlan) -> list[str]:
    """See ``Mode.describe``: nothing."""
    return []
