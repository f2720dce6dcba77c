"""``--network ns:PATH``: the sandbox joins a network namespace that somebody else made, such as one of ip-netns(8). Nothing is built in it.

``ip netns add lab`` makes one that ``ns:/run/netns/lab`` joins; so does any other bind mount of a namespace, and ``/proc/PID/ns/net``.
"""

from __future__ import annotations

import os

from netbox.errors import NotFound, UsageError, host_error
from netbox.kernel import namespaces
from netbox.network import resolve
from netbox.network.modes import Facts, Request, refuse
from netbox.network.plan import NetworkPlan
from netbox.network.resolve import HostFiles
from netbox.spec import NetworkSpec
from netbox.state.journal import Recorder

uses_network = False

PREFIX = "ns:"


def path_of(mode: str) -> str:
    """The path in ``ns:PATH``; empty for another mode."""
    return mode.removeprefix(PREFIX) if mode.startswith(PREFIX) else ""


def open_namespace(path: str) -> int:
    """A file descriptor of the network namespace at ``path``.

    Raises:
        NotFound: there is nothing.
        UsageError: it is not a network namespace, or it is this machine's own.
        HostError: it cannot be opened.
    """
    try:
        # Not a FIFO that nobody writes to, nor a terminal.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"cannot join {path}: it does not exist", f"'ip netns add {os.path.basename(path)}' makes a namespace") from error
    except OSError as error:
        raise host_error("join", path, error) from error
    try:
        if not namespaces.is_network_namespace(fd):
            raise UsageError(f"cannot join {path}: it is not a network namespace", "'ip netns list' lists those in /run/netns")
        if namespaces.identity(fd) == namespaces.identity("/proc/thread-self/ns/net"):
            raise UsageError(f"cannot join {path}: it is this machine's own network", "use --network host")
    except BaseException:
        os.close(fd)
        raise
    return fd


def check(spec: NetworkSpec, hostname: str | None) -> None:
    """See ``Mode.check``."""
    refuse(spec, spec.mode, {"--publish": spec.ports}, "publish it where the namespace is connected: netbox does not know its addresses")
    options = {"--ip": spec.ip, "--mac-address": spec.mac_address, "--net-rate-in": spec.rate_in, "--net-rate-out": spec.rate_out}
    refuse(spec, spec.mode, options, "the interfaces belong to whoever made the namespace: leave it out")
    for name, address in spec.extra_hosts:
        if address == resolve.HOST_GATEWAY:
            raise UsageError(
                f"--add-host {name}:host-gateway: netbox does not know the way from {spec.mode} to the host", "write an address"
            )


def prepare(request: Request, facts: Facts) -> NetworkPlan:
    """See ``Mode.prepare``."""
    spec = request.spec
    return NetworkPlan(
        request.sandbox_id,
        "ns",
        request.hostname or facts.host_name,
        dns=spec.dns,
        dns_search=spec.dns_search,
        dns_options=spec.dns_options,
        extra_hosts=spec.extra_hosts,
        namespace_path=path_of(spec.mode),
        standing=True,
    )


def attach(plan: NetworkPlan, netns_fd: int, recorder: Recorder) -> None:
    """Nothing to do."""


def files(plan: NetworkPlan, host: HostFiles) -> dict[str, str]:
    """See ``Mode.files``: the host's own."""
    return resolve.host_mode_files(plan, host)


def describe(plan: NetworkPlan) -> list[str]:
    """See ``Mode.describe``."""
    return [f"nsenter --net={plan.namespace_path}"]
