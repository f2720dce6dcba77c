"""Gathers the facts: the state, then the kernel in the namespaces of the source, the host and the target. Read only.

Questions whose answers depend on each other are asked in the order in which a packet would: where does the source send it, is it a
published port, which way does the host take, where would the answer go.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeVar

from netbox.errors import NetboxError, NotFound, UsageError
from netbox.kernel import connections, namespaces, socket_diag, sysctl
from netbox.kernel.inspection import InspectionSocket, LinkFact, RouteFact
from netbox.packet.diagnosis import boxes as records
from netbox.packet.diagnosis import publishing, resolving
from netbox.packet.diagnosis.firewalls import read_chains
from netbox.packet.diagnosis.publishing import BRIDGE_NETFILTER, BRIDGE_NETFILTER6
from netbox.packet.diagnosis.rules import Chain
from netbox.packet.diagnosis.values import HOST, ICMP, LAN, SANDBOX, Box, Facts, Mac, Namespace, Request
from netbox.packet.resolving import read_inside

if TYPE_CHECKING:
    from netbox.engine import Engine, Sandbox
    from netbox.packet.lan import Neighbour

T = TypeVar("T")
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
_ELSEWHERE, _ELSEWHERE6 = "203.0.113.1", "2001:db8::1"  # addresses that only a default route leads to
_LINKS_MAX = 64
_NEIGHBOURS_MAX = 64  # sandboxes on one network whose MACs are compared


@dataclass
class Opened:
    """The namespaces that were opened on the way; -1 where there is none. ``close`` it."""

    source: int = -1
    target: int = -1

    def close(self) -> None:
        """Closes the descriptors."""
        for fd in (self.source, self.target):
            if fd >= 0:
                os.close(fd)
        self.source = self.target = -1


class Gatherer:
    """Collects the facts about one question. ``lan`` is the simulated neighbour, where it is one of the ends."""

    def __init__(self, engine: Engine, source: str, target: str, request: Request, lan: Neighbour | None = None) -> None:
        self._engine = engine
        self._source_text, self._target_text, self._request = source, target, request
        self._lan = lan
        self._family = "ip"
        self._problems: list[str] = []
        self._sandboxes: dict[str, Sandbox] = {}
        self.opened = Opened()

    def gather(self) -> Facts:
        """The facts.

        Raises:
            NotFound: there is no such source.
            UsageError: the target is an address of many.
            NetboxError: the state cannot be read.
        """
        self._sandboxes = {item.id: item for item in self._engine.list(all=True)}
        boxes = tuple(records.box(item) for item in self._sandboxes.values())
        source_box = self._source_box(boxes)
        kind = SANDBOX if source_box else (LAN if self._source_text == LAN else HOST)
        if source_box is not None and source_box.runs:
            self.opened.source = self._open(source_box)
            if self.opened.source < 0:
                source_box = replace(source_box, state="exited")  # since it was listed
        host = self._snapshot(HOST, -1)
        source = host
        if self.opened.source >= 0 and source_box is not None:
            source = self._snapshot(source_box.name, self.opened.source)
        elif kind == LAN and self._lan is not None:
            self.opened.source = os.dup(self._lan.fd)
            source = self._snapshot(LAN, self.opened.source)
        if source.identity == host.identity:
            source = host
        facts = Facts(self._request, kind, "", self._target_text, source, host, source_box=source_box, boxes=boxes)
        if source_box is not None and self.opened.source < 0:
            return self._with_target_only(facts)
        facts = self._with_target(facts)
        if ":" in facts.address:
            facts = self._with_rules_of_ipv6(facts)
        if facts.address:
            facts = self._with_way(facts)
        return replace(facts, problems=tuple(self._problems))

    # -- who ---------------------------------------------------------------------------------------------------------------------------

    def _source_box(self, boxes: tuple[Box, ...]) -> Box | None:
        if self._source_text in (HOST, LAN):
            return None
        return self._known(self._engine.get(self._source_text), boxes)

    def _known(self, sandbox: Sandbox, boxes: tuple[Box, ...]) -> Box:
        """A sandbox that was named; it may be younger than the list."""
        self._sandboxes[sandbox.id] = sandbox
        return self._detailed(records.box(sandbox), boxes)

    def _detailed(self, box: Box, boxes: tuple[Box, ...]) -> Box:
        """With what throttles its links, and the interfaces of the sandbox whose network it shares."""
        return records.detailed(box, self._sandboxes[box.id], boxes)

    def _with_target_only(self, facts: Facts) -> Facts:
        """For a source that sends nothing: who the target is, and nothing else."""
        box = self._named_box(facts, self._target_text)
        return replace(facts, target_kind=SANDBOX if box else "address", target_box=box)

    def _named_box(self, facts: Facts, name: str) -> Box | None:
        try:
            return self._known(self._engine.get(name), facts.boxes)
        except NotFound:
            return None

    def _with_target(self, facts: Facts) -> Facts:
        name = self._target_text
        if name == HOST:
            address = self._host_address(facts, self._request.ipv6)
            return replace(facts, target_kind=HOST, address=address, port=self._request.port)
        if name == LAN and self._lan is not None:
            address = (self._lan.address6 if self._request.ipv6 else None) or self._lan.address
            return replace(facts, target_kind=LAN, address=address, port=self._request.port)
        if resolving.is_address(name):
            return replace(facts, target_kind="address", address=name, port=self._request.port)
        box = self._named_box(facts, name)
        if box is not None:
            facts = replace(facts, target_kind=SANDBOX, target_box=box)
            address, port = publishing.address_of(facts, box, lambda ipv6: self._host_address(facts, ipv6))
            return replace(facts, address=address or self._foreign_address(box), port=port)
        hosts, config = (self._file(facts, path) for path in ("etc/hosts", "etc/resolv.conf"))
        found = resolving.resolve(name, hosts, config, self.opened.source, self._request.timeout)
        addresses = [item for item in found.addresses if (":" in item) == self._request.ipv6] or list(found.addresses)
        return replace(facts, target_kind="address", resolution=found, address=addresses[0] if addresses else "", port=self._request.port)

    def _foreign_address(self, box: Box) -> str:
        """The first address of a namespace that somebody else made (mode ns)."""
        fd = self._open(box) if box.runs and box.mode == "ns" else -1
        if fd < 0:
            return ""
        try:
            return self._ask(fd, _first_address, "")
        finally:
            os.close(fd)

    def _file(self, facts: Facts, path: str) -> str:
        """A file as the source sees it; empty where there is none."""
        sandbox = self._sandboxes.get(facts.source_box.id) if facts.source_box else None
        if sandbox is not None and sandbox.pid:
            return read_inside(sandbox.pid, path)
        try:
            with open(f"/{path}", encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def _host_address(self, facts: Facts, ipv6: bool) -> str:
        """By which address the source reaches the host; empty when by none."""
        if facts.source is facts.host:
            return "::1" if ipv6 else "127.0.0.1"
        if facts.source_kind == LAN:
            return ((self._lan.host_address6 if ipv6 else None) or self._lan.host_address) if self._lan else ""
        end = next(iter(facts.source_box.interfaces), None) if facts.source_box else None
        if end is None:  # a namespace that somebody else made: the host may be its way out
            gateway = self._route(self.opened.source, _ELSEWHERE6 if ipv6 else _ELSEWHERE).gateway
            return gateway if facts.host.has(gateway) else ""
        if end.parent:  # a LAN: its gateway is another machine
            own = [item.address for item in facts.host.addresses if item.interface == end.parent and (":" in item.address) == ipv6]
            return next(iter(own), "")
        return end.gateway6 if ipv6 else end.gateway

    # -- which way ---------------------------------------------------------------------------------------------------------------------

    def _with_rules_of_ipv6(self, facts: Facts) -> Facts:
        """The rules that were read are those of IPv4."""
        self._family = "ip6"
        host = replace(facts.host, chains=self._chains())
        if facts.source is facts.host:
            return replace(facts, host=host, source=host)
        with namespaces.inside_netns(self.opened.source):
            return replace(facts, host=host, source=replace(facts.source, chains=self._chains()))

    def _with_way(self, facts: Facts) -> Facts:
        route = self._route(self.opened.source, facts.address)
        if route.kind in ("broadcast", "multicast") or ip_address(facts.address).is_multicast:
            kind = "multicast" if ip_address(facts.address).is_multicast else "broadcast"
            raise UsageError(f"{facts.address} is a {kind} address, and the question is about one target", "give the address of one")
        own = facts.request.source_address or route.source
        facts = replace(facts, source_route=route, source_address=own)
        inward = publishing.host_interface(facts)
        facts = replace(facts, host_interface=inward, connections=self._connections())
        if inward or facts.source is facts.host:
            facts = publishing.with_translation(facts)
            address = facts.destination[0]
            if not facts.host.has(address) or facts.translated is None:
                own_address = facts.source_address if inward else ""
                facts = replace(facts, host_route=self._route(-1, address, own_address, inward))
            if inward and own:
                facts = replace(facts, back_route=self._route(-1, own))
        box = facts.target_box
        holder = publishing.holder(facts, facts.destination[0])
        if holder is not None and (box is None or box.id != holder.id) and facts.target_kind != SANDBOX:
            facts = replace(facts, target_box=self._detailed(holder, facts.boxes))
        return self._with_arrival(facts)

    def _with_arrival(self, facts: Facts) -> Facts:
        box = facts.target_box
        if facts.host.has(facts.destination[0]) and (facts.source is facts.host or facts.host_interface):
            facts = replace(facts, target=facts.host)
        elif facts.translated is None and facts.source_route is not None and facts.source_route.kind == "local":
            facts = replace(facts, target=facts.source)
        if box is None or not box.runs or facts.target is not None:
            return replace(facts, macs=self._macs(facts))
        self.opened.target = self._open(box)
        if self.opened.target < 0:
            return facts
        target = self._snapshot(box.name, self.opened.target)
        if target.identity in (facts.host.identity, facts.source.identity):
            target = facts.host if target.identity == facts.host.identity else facts.source
        facts = replace(facts, target=target, macs=self._macs(facts))
        end = publishing.target_interface(facts)
        if end is None or target is facts.source or not facts.source_address:
            return facts
        seen = publishing.source_seen(facts, end)
        return replace(
            facts,
            source_seen=seen,
            arrival_route=self._route(self.opened.target, facts.destination[0], seen, end.interface),
            return_route=self._route(self.opened.target, seen),
        )

    def _macs(self, facts: Facts) -> tuple[Mac, ...]:
        """The MACs that the sandboxes on the networks concerned really have."""
        ends = {item.network for box in (facts.source_box, facts.target_box) if box for item in box.interfaces}
        found: list[Mac] = []
        for box in facts.boxes:
            if len(found) >= _NEIGHBOURS_MAX or not box.runs or not ends & set(box.networks) or not box.interfaces:
                continue
            fd = self._open(box)
            if fd < 0:
                continue
            try:
                none: list[LinkFact] = []
                links = {link.name: link for link in self._ask(fd, InspectionSocket.link_facts, none)}
            finally:
                os.close(fd)
            found += [
                Mac(box.name, item.network, item.interface, links[item.interface].mac)
                for item in box.interfaces
                if item.network in ends and item.interface in links
            ]
        return tuple(found)

    # -- the kernel --------------------------------------------------------------------------------------------------------------------

    def _open(self, box: Box) -> int:
        sandbox = self._sandboxes.get(box.id)
        if sandbox is None or not sandbox.pid:
            return -1
        try:
            return os.open(f"/proc/{sandbox.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1  # it has just ended

    def _ask(self, fd: int, question: Callable[[InspectionSocket], T], default: T) -> T:
        try:
            with InspectionSocket(netlink_socket(fd)) as netlink:
                return question(netlink)
        except OSError as error:
            self._problems.append(f"the kernel did not tell everything: {error}")
            return default

    def _route(self, fd: int, destination: str, source: str = "", interface: str = "") -> RouteFact:
        def question(netlink: InspectionSocket) -> RouteFact:
            netlink.link_facts()  # for the names
            return netlink.route(destination, source, interface)

        return self._ask(fd, question, RouteFact(destination))

    def _connections(self) -> tuple[connections.Connection, ...]:
        number = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP, "sctp": 132}.get(self._request.protocol)
        if number is None:
            return ()
        try:
            return tuple(connections.connections(number, socket.AF_INET if self._family == "ip" else socket.AF_INET6))
        except OSError as error:
            self._problems.append(f"the table of connections cannot be read: {error.strerror or error}")
            return ()

    def _snapshot(self, label: str, fd: int) -> Namespace:
        def question(netlink: InspectionSocket) -> Namespace:
            return Namespace(
                label,
                links=tuple(netlink.link_facts()),
                addresses=tuple(netlink.address_facts()),
                neighbours=tuple(netlink.neighbour_facts()),
                forwarding=tuple(netlink.forwarding_facts()),
                queues=tuple(netlink.queue_facts()),
            )

        found = self._ask(fd, question, Namespace(label))
        with namespaces.inside_netns(fd) if fd >= 0 else _Here():
            return replace(
                found,
                identity=namespaces.identity("/proc/thread-self/ns/net"),
                sockets=self._sockets(),
                sysctls={name: value for name in self._names(found) if (value := _sysctl(name))},
                chains=self._chains(),
            )

    def _names(self, found: Namespace) -> list[str]:
        names = [link.name for link in found.links[:_LINKS_MAX]]
        interfaces = [f"net/ipv4/conf/{name}/{key}" for name in names for key in ("rp_filter", "forwarding")]
        return [*_SYSCTLS, *interfaces, *(f"net/ipv6/conf/{name}/hop_limit" for name in names)]

    def _sockets(self) -> tuple[socket_diag.SocketFact, ...]:
        if self._request.protocol == ICMP:
            return ()
        try:
            return tuple(socket_diag.sockets(self._request.protocol))
        except OSError as error:
            self._problems.append(f"the sockets cannot be read: {error.strerror or error}")
            return ()

    def _chains(self) -> tuple[Chain, ...]:
        found, problems = read_chains(self._family)
        self._problems += [problem for problem in problems if problem not in self._problems]
        return found


def _first_address(netlink: InspectionSocket) -> str:
    netlink.link_facts()  # for the names
    found = [item.address for item in netlink.address_facts() if item.interface != "lo" and not item.address.startswith("fe80:")]
    return next((address for address in found if ":" not in address), next(iter(found), ""))


class _Here:
    """A block in the namespace where one is."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def netlink_socket(fd: int) -> socket.socket | None:
    """A socket of the route family in a network namespace; ``None`` stands for the calling thread's own (-1)."""
    return namespaces.socket_in(fd, socket.AF_NETLINK, socket.SOCK_RAW, 0) if fd >= 0 else None


def _sysctl(name: str) -> str:
    try:
        return sysctl.read(name)
    except NetboxError:
        return ""
