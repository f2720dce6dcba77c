"""Where packets go: what a name stands for, published ports, the host's side of a sandbox's link. Pure."""

from __future__ import annotations

import re
from dataclasses import replace

from netbox.packet.diagnosis.rules import DNAT, Packet, decide
from netbox.packet.diagnosis.values import HOST, LAN, SANDBOX, Box, Facts, Interface
from netbox.spec import PortSpec

ANY = ("0.0.0.0", "::")
BRIDGE_NETFILTER, BRIDGE_NETFILTER6 = "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"
_OWN_TABLES = ("ip netbox", "ip6 netbox")
_DESTINATION = re.compile(r"\[?([0-9a-fA-F.:]+?)\]?(?::(\d+)(?:-\d+)?(?:/(\d+))?)?")


def address_of(facts: Facts, box: Box, lan_address: str = "") -> tuple[str, int]:
    """The address and port that a sandbox's name stands for, seen from the source. The address is empty when it has none."""
    port, ipv6 = facts.request.port, facts.request.ipv6 and any(item.address6 for item in box.interfaces)
    if facts.source_box is not None and facts.source_box.id == box.id:
        return ("::1" if facts.request.ipv6 else "127.0.0.1"), port
    if box.mode == HOST:
        return (lan_address or "127.0.0.1" if facts.source_kind != SANDBOX else _gateway(facts)), port
    if facts.source is facts.host or facts.source_kind == LAN:
        published = next((item for item in box.ports if _within(item.host_port, item, port, facts)), None)
        if published is None and facts.source_kind == LAN:
            published = next((item for item in box.ports if _within(item.port, item, port, facts)), None)
            port = port - published.port + published.host_port if published else port
        if published is not None:
            way = way_out(box)
            local = way.gateway6 if ipv6 and way else "127.0.0.1"  # answers to ::1 are lost where bridged packets pass ip6tables
            here = lan_address if facts.source_kind == LAN else local
            return (here if published.host_ip in ANY else published.host_ip), port
    own = {item.network for item in facts.source_box.interfaces} if facts.source_box else set()
    shared = [item for item in box.interfaces if item.network in own]
    interfaces = shared or list(box.interfaces)
    return (interfaces[0].address_for(facts.request.ipv6) if interfaces else ""), port


def _within(first: int, item: PortSpec, port: int, facts: Facts) -> bool:
    return bool(first) and item.protocol == facts.request.protocol and first <= port < first + item.length


def _gateway(facts: Facts) -> str:
    interfaces = facts.source_box.interfaces if facts.source_box else ()
    return interfaces[0].gateway if interfaces else "127.0.0.1"


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
    if not facts.host.has(facts.address) or (facts.address == "::1" and facts.host.sysctl(BRIDGE_NETFILTER6, "0") == "1"):
        return "", None
    for box in facts.boxes:
        published = publication(box, facts.request.protocol, facts.port, facts.address)
        way = way_out(box)
        if published is not None and way is not None and box.runs:
            return box.name, (way.address_for(":" in facts.address), published.port + facts.port - published.host_port)
    return "", None


def publication(box: Box, protocol: str, port: int, address: str = "") -> PortSpec | None:
    """The published port that a host port belongs to; with ``address`` only one that is published there."""
    for item in box.ports:
        fits = item.protocol == protocol and item.host_port and item.host_port <= port < item.host_port + item.length
        if fits and (not address or item.host_ip in ANY or item.host_ip == address):
            return item
    return None


def way_out(box: Box) -> Interface | None:
    """The interface with the default route, on which ports are published."""
    return next((item for item in box.interfaces if not item.internal), None)


def source_seen(facts: Facts, end: Interface) -> str:
    """The source address that the target sees: the gateway's where the host masquerades, because the answer would not come back by it."""
    inward, end_address = source_interface(facts), facts.destination[0]
    if facts.source is facts.host:
        return end.gateway_for(end_address) if facts.source_address.startswith("127.") else facts.source_address
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
