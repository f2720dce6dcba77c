"""``--network container:NAME``: the sandbox joins the namespace of a running one, with its name, hosts file and resolvers. Nothing is
built.
"""

from __future__ import annotations

from netbox.errors import UsageError
from netbox.network.modes import Facts, Request, refuse
from netbox.network.plan import NetworkPlan
from netbox.network.resolve import HostFiles
from netbox.spec import NetworkSpec
from netbox.state.journal import Recorder

uses_network = False


def check(spec: NetworkSpec, hostname: str | None) -> None:
    """See ``Mode.check``."""
    options = {
        "--publish": spec.ports,
        "--ip": spec.ip,
        "--mac-address": spec.mac_address,
        "--dns": spec.dns,
        "--dns-search": spec.dns_search,
        "--dns-option": spec.dns_options,
        "--add-host": spec.extra_hosts,
        "--hostname": hostname,
    }
    refuse(spec, "container:NAME", options, "give it to the sandbox whose network is joined")


def prepare(request: Request, facts: Facts) -> NetworkPlan:
    """See ``Mode.prepare``."""
    if request.target is None:
        raise UsageError(f"--network {request.spec.mode}: no sandbox to join", "write it as container:NAME")
    target = request.target
    return NetworkPlan(
        request.sandbox_id, "container", target.hostname, shared_files=dict(target.files), target_id=target.sandbox_id, standing=True
    )


def attach(plan: NetworkPlan, netns_fd: int, recorder: Recorder) -> None:
    """Nothing to do."""


def files(plan: NetworkPlan, host: HostFiles) -> dict[str, str]:
    """See ``Mode.files``: the target's, by ``plan.shared_files``."""
    return {}


def describe(plan: NetworkPlan) -> list[str]:
    """See ``Mode.describe``: nothing."""
    return []
