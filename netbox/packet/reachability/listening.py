"""What listens in a network namespace: the doors of a sandbox."""

from __future__ import annotations

import contextlib

from netbox.kernel import socket_table
from netbox.packet.reachability.values import Column

_LISTEN, _UNCONNECTED = 0x0A, 0x07  # include/net/tcp_states.h: TCP_LISTEN, and TCP_CLOSE for a datagram socket without a peer
_FILES = {"tcp": ("tcp", "tcp6"), "udp": ("udp", "udp6")}


def columns(target: str, pid: int) -> list[Column]:
    """The TCP and UDP ports on which something listens in the network namespace of a process, in order. UDP ports of the ephemeral range
    belong to clients and are left out. A process that has ended listens to nothing.
    """
    first_ephemeral = _first_ephemeral(pid)
    found: set[Column] = set()
    for protocol, names in _FILES.items():
        for name in names:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{name}", encoding="utf-8") as file:
                for row in socket_table.parse(file.read()):
                    if (protocol == "tcp" and row.state == _LISTEN) or (
                        protocol == "udp" and row.state == _UNCONNECTED and row.port < first_ephemeral
                    ):
                        found.add(Column(target, protocol, row.port))
    return sorted(found, key=lambda column: (column.port or 0, column.protocol))


def _first_ephemeral(pid: int) -> int:
    """The sysctl is the reader's own namespace's, so this is read where the process is; the kernel's default where that fails."""
    import os

    from netbox.kernel.namespaces import inside_netns

    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with inside_netns(fd), open("/proc/sys/net/ipv4/ip_local_port_range", encoding="utf-8") as file:
                return int(file.read().split()[0])
        finally:
            os.close(fd)
    except OSError:
        return 32768
