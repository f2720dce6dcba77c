"""Questions to the kernel: what a network namespace is like, and what it would do with a packet. Read only.

One question about two places asks each thing once anyway. Whoever has hundreds of questions at one moment lets the answers be remembered.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from netbox.errors import NetboxError
from netbox.kernel import connections, namespaces, socket_diag, sysctl
from netbox.kernel.connections import Connection
from netbox.kernel.inspection import InspectionSocket, LinkFact, RouteFact
from netbox.packet.diagnosis.firewalls import read_chains
from netbox.packet.diagnosis.publishing import BRIDGE_NETFILTER, BRIDGE_NETFILTER6
from netbox.packet.diagnosis.rules import Chain
from netbox.packet.diagnosis.values import ICMP, Namespace

T = TypeVar("T")
HERE = -1
"""Stands for the calling thread's own namespace where a descriptor is wanted."""
_SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_default_ttl",
    "net.ipv4.icmp_echo_ignore_all",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv6.conf.all.forwarding",
    BRIDGE_NETFILTER,
    BRIDGE_NETFILTER6,
)
_NUMBERS = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP, "sctp": 132}
_FAMILIES = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
_LINKS_MAX = 64


class Kernel:
    """Asks, in namespaces that are given as descriptors. With ``remember`` it asks everything but routes once: for some seconds, not for
    longer. A context manager. ``problems`` are in words what could not be had.
    """

    def __init__(self, *, remember: bool = False) -> None:
        self.problems: list[str] = []
        self._remember = remember
        self._known: dict[tuple[Any, ...], Any] = {}
        self._sockets: dict[int, InspectionSocket] = {}
        self._descriptors: dict[int, int] = {}

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Forgets everything."""
        for netlink in self._sockets.values():
            netlink.__exit__(None, None, None)
        for fd in self._descriptors.values():
            os.close(fd)
        self._sockets.clear()
        self._descriptors.clear()
        self._known.clear()

    def open(self, pid: int | None) -> int:
        """The namespace of a process; the caller closes it. ``HERE`` when there is no such process."""
        if not pid:
            return HERE
        try:
            if not self._remember:
                return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            if pid not in self._descriptors:
                self._descriptors[pid] = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            return os.dup(self._descriptors[pid])
        except OSError:
            return HERE  # it has just ended

    def ask(self, fd: int, question: Callable[[InspectionSocket], T], default: T) -> T:
        """What the kernel answers over rtnetlink in a namespace; the names of links are known to the socket."""
        try:
            if self._remember:
                key = _inode(fd)
                if key not in self._sockets:
                    self._sockets[key] = _named(fd)
                return question(self._sockets[key])
            with _named(fd) as netlink:
                return question(netlink)
        except OSError as error:
            self._complain(f"the kernel did not tell everything: {error}")
            return default

    def route(self, fd: int, destination: str, source: str = "", interface: str = "") -> RouteFact:
        """See ``InspectionSocket.route``."""
        return self.ask(fd, lambda netlink: netlink.route(destination, source, interface), RouteFact(destination))

    def links(self, fd: int) -> dict[str, LinkFact]:
        """The links of a namespace, by name."""
        none: list[LinkFact] = []
        return self._once(("links", _inode(fd)), lambda: {link.name: link for link in self.ask(fd, InspectionSocket.link_facts, none)})

    def connections(self, protocol: str, family: str) -> tuple[Connection, ...]:
        """The table of connections of the calling thread's namespace."""
        return self._once(("connections", protocol, family), lambda: self._connections(protocol, family))

    def snapshot(self, label: str, fd: int, protocol: str) -> Namespace:
        """What a namespace is like, with the sockets of a protocol and the firewall rules that IPv4 meets."""
        return replace(self._once(("snapshot", _inode(fd), protocol), lambda: self._snapshot(fd, protocol)), label=label)

    def chains(self, fd: int, family: str) -> tuple[Chain, ...]:
        """The firewall rules that packets of a family (``ip``, ``ip6``) meet in a namespace."""
        return self._once(("chains", _inode(fd), family), lambda: self._chains(fd, family))

    # ------------------------------------------------------------------------------------------------------------------------------------

    def _once(self, key: tuple[Any, ...], question: Callable[[], T]) -> T:
        if not self._remember:
            return question()
        if key not in self._known:
            self._known[key] = question()
        found: T = self._known[key]
        return found

    def _complain(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _connections(self, protocol: str, family: str) -> tuple[Connection, ...]:
        if protocol not in _NUMBERS:
            return ()
        try:
            return tuple(connections.connections(_NUMBERS[protocol], _FAMILIES[family]))
        except OSError as error:
            self._complain(f"the table of connections cannot be read: {error.strerror or error}")
            return ()

    def _snapshot(self, fd: int, protocol: str) -> Namespace:
        def question(netlink: InspectionSocket) -> Namespace:
            return Namespace(
                "",
                links=tuple(netlink.link_facts()),
                addresses=tuple(netlink.address_facts()),
                neighbours=tuple(netlink.neighbour_facts()),
                forwarding=tuple(netlink.forwarding_facts()),
                queues=tuple(netlink.queue_facts()),
            )

        found = self.ask(fd, question, Namespace(""))
        with _inside(fd):
            return replace(
                found,
                identity=namespaces.identity("/proc/thread-self/ns/net"),
                sockets=self._sockets_of(protocol),
                sysctls={name: value for name in _names(found) if (value := _sysctl(name))},
                chains=self.chains(fd, "ip"),
            )

    def _sockets_of(self, protocol: str) -> tuple[socket_diag.SocketFact, ...]:
        if protocol == ICMP:
            return ()
        try:
            return tuple(socket_diag.sockets(protocol))
        except OSError as error:
            self._complain(f"the sockets cannot be read: {error.strerror or error}")
            return ()

    def _chains(self, fd: int, family: str) -> tuple[Chain, ...]:
        with _inside(fd):
            found, problems = read_chains(family)
        for problem in problems:
            self._complain(problem)
        return found


def netlink_socket(fd: int) -> socket.socket | None:
    """A socket of the route family in a network namespace; ``None`` stands for the calling thread's own (``HERE``)."""
    return namespaces.socket_in(fd, socket.AF_NETLINK, socket.SOCK_RAW, 0) if fd >= 0 else None


def _named(fd: int) -> InspectionSocket:
    """A socket that knows the names of the links."""
    netlink = InspectionSocket(netlink_socket(fd))
    try:
        netlink.link_facts()
    except BaseException:
        netlink.__exit__(None, None, None)
        raise
    return netlink


def _inside(fd: int) -> Any:
    return namespaces.inside_netns(fd) if fd >= 0 else nullcontext()


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino if fd >= 0 else 0


def _names(found: Namespace) -> list[str]:
    names = [link.name for link in found.links[:_LINKS_MAX]]
    interfaces = [f"net/ipv4/conf/{name}/{key}" for name in names for key in ("rp_filter", "forwarding")]
    return [*_SYSCTLS, *interfaces, *(f"net/ipv6/conf/{name}/hop_limit" for name in names)]


def _sysctl(name: str) -> str:
    try:
        return sysctl.read(name)
    except NetboxError:
        return ""
