"""Where packets go: what a name stands for, published ports, the host's side of a sandbox's link. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from netbox.packet.diagnosis.rules import DNAT, Packet, decide
from netbox.packet.diagnosis.values import HOST, LAN, Box, Facts, Interface
from netbox.spec import PortSpec

ANY = ("0.0.0.0", "::")
BRIDGE_NETFILTER, BRIDGE_NETFILTER6 = "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"
_OWN_TABLES = ("ip netbox", "ip6 netbox")
_DESTINATION = re.compile(r"\[?([0-9a-fA-F.:]+?)\]?(?::(\d+)(?:-\d+)?(?:/(\d+))?)?")


def address_of(facts: Facts, box: Box, host_address: Callable[[bool], str]) -> tuple[str, int]:
    """The address and port that a sandbox's name stands for, seen from the source. The address is empty when it has none.
    ``host_address`` says by which one the source reaches the host, of IPv6 or of IPv4.
    """
    port, ipv6 = facts.request.port, facts.request.ipv6
    if facts.source_box is not None and facts.source_box.id == box.id:
        return ("::1" if ipv6 else "127.0.0.1"), port
    if box.mode == HOST:
        return host_address(ipv6), port
    if facts.source is facts.host or facts.source_kind == LAN:
        published, way = _published(facts, box), way_out(box, ipv6)
        if published is not None:
            if not _within(published.host_port, published, port):
                port += published.host_port - published.port
            if published.host_ip not in ANY:
                return published.host_ip, port
            if facts.source is facts.host and ":" in published.host_ip and way is not None:
                return way.gateway6, port  # answers to ::1 are lost where bridged packets pass ip6tables
            return host_address(":" in published.host_ip), port
    own = {item.network for item in facts.source_box.interfaces} if facts.source_box else set()
    shared = [item for item in box.interfaces if item.network in own]
    interfaces = shared or list(box.interfaces)
    return (interfaces[0].address_for(facts.request.ipv6) if interfaces else ""), port


def _published(facts: Facts, box: Box) -> PortSpec | None:
    """The published port that is meant: by host port, for the lan else by port inside; of the wanted IP version where there are both."""
    port, ipv6 = facts.request.port, facts.request.ipv6 and any(item.address6 for item in box.interfaces)
    mine = [its for item in box.ports if item.protocol == facts.request.protocol and item.host_port for its in item.by_family]
    mine.sort(key=lambda item: (":" in item.host_ip) != ipv6)
    inside = (item for item in mine if facts.source_kind == LAN and _within(item.port, item, port))
    return next((item for item in mine if _within(item.host_port, item, port)), None) or next(inside, None)


def _within(first: int, item: PortSpec, port: int) -> bool:
    return first <= port < first + item.length


def source_interface(facts: Facts) -> Interface | None:
    """The interface by which the source sends, as its record has it."""
    if facts.source_box is None or facts.source_route is None:
        return None
    return next((item for item in facts.source_box.interfaces if item.interface == facts.source_route.interface), None)


def target_interface(facts: Facts) -> Interface | None:
    """The interface of the target that the packet is for, as its record has it."""
    if facts.target_box is None:
        return None
    return next((item for item in facts.target_box.interfaces if item.has(facts.destination[0])), None)


def next_hop(facts: Facts) -> str:
    """Whom the source hands the packet to on its link."""
    return (facts.source_route.gateway if facts.source_route else "") or facts.address


def host_interface(facts: Facts) -> str:
    """Where the host gets what the source sends: the bridge, or the link to the lan; empty when the host does not get it."""
    if facts.source is facts.host or facts.source_route is None or facts.source_route.kind == "local":
        return ""
    hop, end = next_hop(facts), source_interface(facts)
    if end is None:  # the lan, or a namespace that somebody else made
        return next((item.interface for item in facts.host.addresses if item.address == hop), "")
    return end.bridge if facts.host.has(hop) and not hop.startswith("127.") else ""


def first_packet(facts: Facts, out_interface: str = "", *, translated: bool = False) -> Packet:
    """The packet as the host's rules meet it."""
    address, port = facts.destination if translated else (facts.address, facts.port)
    return Packet(
        facts.source_address,
        address,
        facts.request.protocol,
        port,
        facts.host_interface,
        out_interface,
        translated and facts.translated is not None,
        facts.host.has(address),
    )


def with_translation(facts: Facts) -> Facts:
    """Adds where published ports, and others' rules of the kind, lead the packet."""
    owner, declared = declared_translation(facts)
    hook = "prerouting" if facts.host_interface else "output"
    decision = decide(facts.host.chains, hook, first_packet(facts), "nat")
    translated = None
    if decision.verdict == DNAT and decision.rule is not None:
        translated = destination(decision.rule.target, facts.address, facts.port)
        if decision.owner.startswith("sandbox:"):
            identity = decision.owner.partition(":")[2]
            owner = next((item.name for item in facts.boxes if item.id.startswith(identity)), owner)
    # nf_tables holds ours in maps, which are not followed rule by rule.
    translated = translated or (declared if any(chain.table in _OWN_TABLES for chain in facts.host.chains) else None)
    return replace(facts, translated=translated, declared=declared, published_by=owner)


def destination(text: str, address: str, port: int) -> tuple[str, int] | None:
    """Where ``--to-destination`` leads a packet to ``address`` and ``port``: ``10.0.0.2``, ``10.0.0.2:80``, ``10.0.0.2:80-89/8080``."""
    found = _DESTINATION.fullmatch(text)
    if found is None or not text:
        return None
    first, base = found[2], found[3]
    if first is None:
        return found[1], port
    return found[1], int(first) + (port - int(base) if base else 0)


def declared_translation(facts: Facts) -> tuple[str, tuple[str, int] | None]:
    """The sandbox that publishes what the packet is for, and where that leads."""
    if not facts.host.has(facts.address) or loses_answers(facts):
        return "", None
    for box in facts.boxes:
        published = publication(box, facts.request.protocol, facts.port, facts.address)
        way = way_out(box, ":" in facts.address)
        if published is not None and way is not None and box.runs:
            return box.name, (way.address_for(":" in facts.address), published.port + facts.port - published.host_port)
    return "", None


def loses_answers(facts: Facts) -> bool:
    """Whether the packet is for ::1 where bridged packets pass ip6tables: nothing is published there, as answers would be lost."""
    return facts.address == "::1" and facts.host.sysctl(BRIDGE_NETFILTER6, "0") == "1"


def publication(box: Box, protocol: str, port: int, address: str = "") -> PortSpec | None:
    """The published port that a host port belongs to; with ``address`` only one that is published there."""
    for item in (its for port_spec in box.ports for its in port_spec.by_family):
        if item.protocol != protocol or not item.host_port or not _within(item.host_port, item, port):
            continue
        if not address or item.host_ip == address or (item.host_ip in ANY and (":" in item.host_ip) == (":" in address)):
            return item
    return None


def way_out(box: Box, ipv6: bool = False) -> Interface | None:
    """The interface with the default route of the IP version, on which ports are published."""
    return next((item for item in box.interfaces if not item.internal and (item.address6 or not ipv6)), None)


def source_seen(facts: Facts, end: Interface) -> str:
    """The source address that the target sees: the gateway's where the host masquerades, because the answer would not come back by it."""
    inward, end_address = source_interface(facts), facts.destination[0]
    if facts.source is facts.host:
        return end.gateway_for(end_address) if facts.source_address.startswith(("127.", "::1")) else facts.source_address
    if inward is not None and facts.translated is not None and inward.bridge == end.bridge:
        return end.gateway_for(end_address)
    return facts.source_address


def holder(facts: Facts, address: str) -> Box | None:
    """The running sandbox that has an address."""
    return next((box for box in facts.boxes if box.runs and any(item.has(address) for item in box.interfaces)), None)


def endpoint(address: str, port: int) -> str:
    """``10.0.0.2:80``, ``[fd00::2]:80``, or the address alone."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
