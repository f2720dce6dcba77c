"""What pyroute2 tells about a network namespace: the only importer of pyroute2, which takes 130 to 270 ms. Never on the path of a start."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import HostError, Unsupported, host_error

if TYPE_CHECKING:
    from pyroute2 import IPRoute

LOOPBACK = "lo"


class Interface(NamedTuple):
    """A network interface: ``kind`` is veth, bridge, … or empty, ``addresses`` are ``10.210.0.2/20``, ``traffic`` is as in ``traffic``."""

    name: str
    kind: str
    mac: str
    mtu: int
    is_up: bool
    addresses: tuple[str, ...]
    traffic: tuple[int, int, int, int, int, int, int, int]


def interfaces(pid: int | None = None) -> list[Interface]:
    """The interfaces of a process's network namespace, of the caller's own without ``pid``.

    Raises:
        HostError: the process is gone, or the kernel refuses.
        Unsupported: pyroute2 is missing.
    """
    with _connect(pid) as route:
        addresses: dict[int, list[str]] = {}
        for message in list(route.get_addr()):
            addresses.setdefault(message["index"], []).append(f"{message.get('address')}/{message['prefixlen']}")
        return [_interface(message, tuple(addresses.get(message["index"], ()))) for message in list(route.get_links())]


def traffic(pid: int) -> list[tuple[int, int, int, int, int, int, int, int]]:
    """For each interface but loopback of a process's network namespace: received bytes, packets, errors, drops, then the same of what was
    sent. Out of /proc/PID/net/dev (proc_pid_net(5)): pyroute2 would fork to get into the namespace.

    Raises:
        HostError: the process is gone, or the kernel refuses.
    """
    path = f"/proc/{pid}/net/dev"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()[2:]  # after the heads of the columns
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL):  # EINVAL: a zombie is in no namespace
            raise HostError(f"the process {pid} is gone", "the sandbox has just ended") from error
        raise host_error("read", path, error) from error
    found = []
    for name, _, columns in (line.rpartition(":") for line in lines):
        values = [int(word) for word in columns.split()]
        if name.strip() != LOOPBACK:
            found.append((*values[0:4], *values[8:12]))
    return found  # type: ignore[return-value]


def _connect(pid: int | None) -> IPRoute:
    try:
        from pyroute2 import IPRoute, NetlinkError
    except ImportError as error:
        raise Unsupported(f"pyroute2 cannot be used: {error}", "install it: pip install pyroute2") from error
    if pid is None:
        return IPRoute()
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise HostError(f"the process {pid} is gone", "the sandbox has just ended") from error
    except OSError as error:
        raise host_error("open", f"the network namespace of process {pid}", error) from error
    try:
        return IPRoute(netns=namespace)
    except NetlinkError as error:
        raise HostError(f"cannot open a netlink socket in the namespace of process {pid}: {error}") from error
    finally:
        os.close(namespace)


def _interface(message: object, addresses: tuple[str, ...]) -> Interface:
    get = message.get  # type: ignore[attr-defined]
    info, stats = get("linkinfo"), get("stats64") or {}
    keys = ("rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped")
    return Interface(
        get("ifname"),
        (info.get("kind") or "") if info else "",
        get("address") or "",
        get("mtu") or 0,
        bool(message["flags"] & 1),  # type: ignore[index]
        addresses,
        tuple(int(stats.get(key) or 0) for key in keys),  # type: ignore[arg-type]
    )
