"""Gathers the facts: the state, then the kernel in the namespaces of the source, the host and the target. Read only.

Questions whose answers depend on each other are asked in the order in which a packet would: where does the source send it, is it a
published port, which way does the host take, where would the answer go.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from netbox.errors import NotFound, UsageError
from netbox.kernel.inspection import InspectionSocket
from netbox.packet import resolving
from netbox.packet.diagnosis import publishing
from netbox.packet.diagnosis.asking import HERE, Kernel
from netbox.packet.diagnosis.boxes import Records
from netbox.packet.diagnosis.values import HOST, LAN, SANDBOX, Box, Facts, Mac, Namespace, Request

if TYPE_CHECKING:
    from netbox.engine import Sandbox
    from netbox.packet.lan import Neighbour

_ELSEWHERE, _ELSEWHERE6 = "203.0.113.1", "2001:db8::1"  # addresses that only a default route leads to
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

    def __init__(self, records: Records, kernel: Kernel, source: str, target: str, request: Request, lan: Neighbour | None = None) -> None:
        self._records, self._kernel = records, kernel
        self._source_text, self._target_text, self._request = source, target, request
        self._lan = lan
        self.opened = Opened()

    def gather(self) -> Facts:
        """The facts.

        Raises:
            NotFound: there is no such source.
            UsageError: the target is an address of many.
            NetboxError: the state cannot be read.
        """
        boxes = self._records.boxes
        source_box = self._source_box()
        kind = SANDBOX if source_box else (LAN if self._source_text == LAN else HOST)
        if source_box is not None and source_box.runs:
            self.opened.source = self._open(source_box)
            if self.opened.source < 0:
                source_box = replace(source_box, state="exited")  # since it was listed
        host = self._snapshot(HOST, HERE)
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
        return replace(facts, problems=tuple(self._kernel.problems))

    # -- who ---------------------------------------------------------------------------------------------------------------------------

    def _source_box(self) -> Box | None:
        return None if self._source_text in (HOST, LAN) else self._records.named(self._source_text)

    def _with_target_only(self, facts: Facts) -> Facts:
        """For a source that sends nothing: who the target is, and nothing else."""
        box = self._named_box(self._target_text)
        return replace(facts, target_kind=SANDBOX if box else "address", target_box=box)

    def _named_box(self, name: str) -> Box | None:
        try:
            return self._records.named(name)
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
        box = self._named_box(name)
        if box is not None:
            facts = replace(facts, target_kind=SANDBOX, target_box=box)
            address, port = publishing.address_of(facts, box, lambda ipv6: self._host_address(facts, ipv6))
            return replace(facts, address=address or self._foreign_address(box), port=port)
        hosts, config = (self._file(facts, path) for path in ("etc/hosts", "etc/resolv.conf"))
        found = resolving.resolve(name, hosts, config, self.opened.source, self._request.timeout, self._request.ipv6)
        return replace(facts, target_kind="address", resolution=found, address=next(iter(found.addresses), ""), port=self._request.port)

    def _foreign_address(self, box: Box) -> str:
        """The first address of a namespace that somebody else made (mode ns)."""
        fd = self._open(box) if box.runs and box.mode == "ns" else -1
        if fd < 0:
            return ""
        try:
            return self._kernel.ask(fd, _first_address, "")
        finally:
            os.close(fd)

    def _file(self, facts: Facts, path: str) -> str:
        """A file as the source sees it; empty where there is none."""
        pid = self._sandbox(facts.source_box).pid if facts.source_box else None
        if pid:
            return resolving.read_inside(pid, path)
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
            gateway = self._kernel.route(self.opened.source, _ELSEWHERE6 if ipv6 else _ELSEWHERE).gateway
            return gateway if facts.host.has(gateway) else ""
        if end.parent:  # a LAN: its gateway is another machine
            own = [item.address for item in facts.host.addresses if item.interface == end.parent and (":" in item.address) == ipv6]
            return next(iter(own), "")
        return end.gateway6 if ipv6 else end.gateway

    # -- which way ---------------------------------------------------------------------------------------------------------------------

    def _with_rules_of_ipv6(self, facts: Facts) -> Facts:
        """The rules that were read are those of IPv4."""
        host = replace(facts.host, chains=self._kernel.chains(HERE, "ip6"))
        if facts.source is facts.host:
            return replace(facts, host=host, source=host)
        return replace(facts, host=host, source=replace(facts.source, chains=self._kernel.chains(self.opened.source, "ip6")))

    def _with_way(self, facts: Facts) -> Facts:
        route = self._kernel.route(self.opened.source, facts.address)
        if route.kind in ("broadcast", "multicast") or ip_address(facts.address).is_multicast:
            kind = "multicast" if ip_address(facts.address).is_multicast else "broadcast"
            raise UsageError(f"{facts.address} is a {kind} address, and the question is about one target", "give the address of one")
        own = facts.request.source_address or route.source
        facts = replace(facts, source_route=route, source_address=own)
        inward = publishing.host_interface(facts)
        family = "ip6" if ":" in facts.address else "ip"
        facts = replace(facts, host_interface=inward, connections=self._kernel.connections(self._request.protocol, family))
        if inward or facts.source is facts.host:
            facts = publishing.with_translation(facts)
            address = facts.destination[0]
            if not facts.host.has(address) or facts.translated is None:
                own_address = facts.source_address if inward else ""
                facts = replace(facts, host_route=self._kernel.route(HERE, address, own_address, inward))
            if inward and own:
                facts = replace(facts, back_route=self._kernel.route(HERE, own))
        box = facts.target_box
        holder = publishing.holder(facts, facts.destination[0])
        if holder is not None and (box is None or box.id != holder.id) and facts.target_kind != SANDBOX:
            facts = replace(facts, target_box=self._records.detailed(holder))
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
        if ":" in facts.address:
            target = replace(target, chains=self._kernel.chains(self.opened.target, "ip6"))
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
            arrival_route=self._kernel.route(self.opened.target, facts.destination[0], seen, end.interface),
            return_route=self._kernel.route(self.opened.target, seen),
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
                links = self._kernel.links(fd)
            finally:
                os.close(fd)
            found += [
                Mac(box.name, item.network, item.interface, links[item.interface].mac)
                for item in box.interfaces
                if item.network in ends and item.interface in links
            ]
        return tuple(found)

    def _open(self, box: Box) -> int:
        return self._kernel.open(self._sandbox(box).pid)

    def _sandbox(self, box: Box) -> Sandbox:
        return self._records.sandboxes[box.id]

    def _snapshot(self, label: str, fd: int) -> Namespace:
        return self._kernel.snapshot(label, fd, self._request.protocol)


def _first_address(netlink: InspectionSocket) -> str:
    found = [item.address for item in netlink.address_facts() if item.interface != "lo" and not item.address.startswith("fe80:")]
    return next((address for address in found if ":" not in address), next(iter(found), ""))
