"""The path that a packet takes according to the facts: its kind, the rules that it meets, who hands it to whom. Pure."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from netbox.kernel.inspection import RouteFact
from netbox.packet.diagnosis import publishing
from netbox.packet.diagnosis.publishing import BRIDGE_NETFILTER, BRIDGE_NETFILTER6, endpoint, source_interface, target_interface
from netbox.packet.diagnosis.rules import ACCEPT, EGRESS, INGRESS, Decision, Packet, decide
from netbox.packet.diagnosis.values import Facts, Namespace, Throttle

INSIDE, BRIDGED, TO_HOST, FORWARDED, FROM_HOST, NOWHERE = "inside", "bridged", "to the host", "forwarded", "from the host", "nowhere"


class Edge(NamedTuple):
    """One neighbour hands the packet to the next: on ``interface`` of ``space``, for ``address``, whose MAC really is ``mac`` (empty when
    that is not known)."""

    space: Namespace
    interface: str
    address: str
    mac: str
    who: str


class Ruling(NamedTuple):
    """What the rules on one hook say, and in which namespace."""

    space: Namespace
    hook: str
    packet: Packet
    decision: Decision


def kind(facts: Facts) -> str:
    """How the packet goes."""
    route = facts.source_route
    if route is None or route.error:
        return NOWHERE
    if facts.source is facts.host:
        if facts.translated is not None:
            return FROM_HOST
        return INSIDE if route.kind == "local" else FROM_HOST
    if route.kind == "local":
        return INSIDE
    if not facts.host_interface:
        return BRIDGED if source_interface(facts) is not None else NOWHERE
    return TO_HOST if facts.host.has(facts.destination[0]) else FORWARDED


def out_interface(facts: Facts) -> str:
    """By which interface of the host the packet leaves it; the bridge for what stays inside one."""
    if kind(facts) == BRIDGED:
        end = source_interface(facts)
        return end.bridge if end else ""
    return facts.host_route.interface if facts.host_route and not facts.host_route.error else ""


@lru_cache(8)
def rulings(facts: Facts) -> tuple[Ruling, ...]:
    """What the firewall rules say along the path, hook by hook."""
    return tuple(_rulings(facts))


def _rulings(facts: Facts) -> Iterator[Ruling]:
    way, out = kind(facts), out_interface(facts)
    before, after = publishing.first_packet(facts, out), publishing.first_packet(facts, out, translated=True)
    if facts.source is not facts.host:
        own = replace(before, in_interface="", out_interface=facts.source_route.interface if facts.source_route else "", local=False)
        yield _ruling(facts.source, "output", own)
    if way in (INSIDE, FROM_HOST) and facts.source is facts.host:
        yield _ruling(facts.host, "output", replace(after, in_interface=""))
    yield from _through_the_host(facts, way, out)
    if facts.target is not None and facts.target is not facts.host and way != NOWHERE:
        end = target_interface(facts)
        inner = Packet(facts.source_seen or facts.source_address, *_arrival(facts), in_interface=end.interface if end else "lo", local=True)
        for hook in ("prerouting", "input"):
            yield _ruling(facts.target, hook, inner)


def _through_the_host(facts: Facts, way: str, out: str) -> Iterator[Ruling]:
    """The hooks of the host: those of links, of its bridges, and of IP."""
    before, after = publishing.first_packet(facts, out), publishing.first_packet(facts, out, translated=True)
    inward, end = source_interface(facts), target_interface(facts)
    first, last = (inward.host_interface if inward else facts.host_interface), (end.host_interface if end else "")
    if way in (BRIDGED, TO_HOST, FORWARDED):
        frame = replace(before, in_interface=first, out_interface="")
        yield _ruling(facts.host, INGRESS, frame)
        yield _ruling(facts.host, "bridge prerouting", frame)
    if way == BRIDGED:
        if out and facts.host.sysctl(BRIDGE_NETFILTER6 if ":" in facts.address else BRIDGE_NETFILTER) != "0":
            inside = replace(before, in_interface=out)
            for hook in ("prerouting", "forward"):
                yield _ruling(facts.host, hook, replace(inside, out_interface=out if hook == "forward" else "", local=False))
        yield _ruling(facts.host, "bridge forward", replace(before, in_interface=first, out_interface=last))
    elif way in (TO_HOST, FORWARDED):
        if inward is not None:
            yield _ruling(facts.host, "bridge input", frame)
            yield _ruling(facts.host, INGRESS, replace(before, out_interface=""))
        yield _ruling(facts.host, "prerouting", replace(before, out_interface=""))
        yield _ruling(facts.host, "input" if way == TO_HOST else "forward", after)
    if way in (FORWARDED, FROM_HOST):
        yield _ruling(facts.host, "postrouting", replace(after, in_interface=""))
        yield _ruling(facts.host, EGRESS, replace(after, in_interface=""))
    if way in (BRIDGED, FORWARDED, FROM_HOST) and last:
        leaving = replace(after, in_interface="", out_interface=last)
        for hook in (*(() if way == BRIDGED else ("bridge output",)), "bridge postrouting", EGRESS):
            yield _ruling(facts.host, hook, leaving)


def _arrival(facts: Facts) -> tuple[str, str, int]:
    address, port = facts.destination
    return address, facts.request.protocol, port


def _ruling(space: Namespace, hook: str, packet: Packet) -> Ruling:
    return Ruling(space, hook, packet, decide(space.chains, hook, packet))


def refusal(facts: Facts) -> Ruling | None:
    """The first hook at which rules stop the packet."""
    return next((item for item in rulings(facts) if item.decision.verdict != ACCEPT), None)


def edges(facts: Facts) -> list[Edge]:
    """Who hands the packet to whom, on links of which the other end is known; the way back of the last one too."""
    found = []
    end, inward, route = target_interface(facts), source_interface(facts), facts.source_route
    if route is not None and not route.error and facts.source is not facts.host and route.kind == "unicast":
        hop = publishing.next_hop(facts)
        found.append(Edge(facts.source, route.interface, hop, _mac_of(facts, hop), _who(facts, hop)))
    if kind(facts) in (FORWARDED, FROM_HOST) and facts.host_route is not None and facts.host_route.kind == "unicast":
        hop = facts.host_route.gateway or facts.destination[0]
        found.append(Edge(facts.host, facts.host_route.interface, hop, _mac_of(facts, hop), _who(facts, hop)))
    back = facts.return_route
    if back is not None and not back.error and end is not None and facts.target is not None and back.kind == "unicast":
        hop = back.gateway or facts.source_seen
        if inward is None or not end.has(hop):
            found.append(Edge(facts.target, back.interface, hop, _mac_of(facts, hop), _who(facts, hop)))
    return found


def _mac_of(facts: Facts, address: str) -> str:
    """The MAC that belongs to an address, from where it really is."""
    for item in facts.host.addresses:
        if item.address == address:
            link = facts.host.link(item.interface)
            return link.mac if link else ""
    box = publishing.holder(facts, address)
    if box is None:
        return ""
    interface = next(item.interface for item in box.interfaces if item.has(address))
    return next((item.mac for item in facts.macs if (item.sandbox, item.interface) == (box.name, interface)), "")


def _who(facts: Facts, address: str) -> str:
    if facts.host.has(address):
        return "the host"
    box = publishing.holder(facts, address)
    return box.name if box else address


def filtered_by_reverse_path(space: Namespace, interface: str, arrival: RouteFact | None, back: RouteFact | None) -> tuple[str, str] | None:
    """Whose rp_filter drops what comes in by an interface (``all`` or the interface), and its value; ``None`` when none does.

    The larger of the two values counts: 1 wants the way back by the same interface, 2 any way back (ip-sysctl, rp_filter). Kernels before
    6.13 answer a lookup with EXDEV then, later ones with EINVAL.
    """
    if not interface or arrival is None or back is None or arrival.error not in (errno.EXDEV, errno.EINVAL):
        return None
    if ":" in arrival.destination:
        return None  # IPv6 has no such filter but in firewall rules
    own, everywhere = space.sysctl(f"net/ipv4/conf/{interface}/rp_filter", "0"), space.sysctl("net.ipv4.conf.all.rp_filter", "0")
    scope, value = (interface, own) if own >= everywhere else ("all", everywhere)
    if (value == "1" and (back.error or back.interface != interface)) or (value == "2" and back.error):
        return scope, value
    return None


def throttles(facts: Facts) -> list[Throttle]:
    """What slows this packet or its answer down, or loses it: at the source and at the target."""
    found = []
    for box, other in ((facts.source_box, facts.destination[0]), (facts.target_box, facts.source_address)):
        if box is not None and kind(facts) != INSIDE:
            found += [item for item in box.throttles if not item.prefixes or _covers(item, other)]
    return found


def _covers(item: Throttle, address: str) -> bool:
    return bool(address) and any(ipaddress.ip_address(address) in ipaddress.ip_network(prefix) for prefix in item.prefixes)


def describe(facts: Facts) -> tuple[tuple[str, str], ...]:
    """The path in words, leg by leg."""
    way, inward, end = kind(facts), source_interface(facts), target_interface(facts)
    legs: list[tuple[str, str]] = []
    if way == NOWHERE or facts.source_route is None:
        return ()
    if way == INSIDE:
        return (("path", f"inside {facts.source.label}, over {facts.source_route.interface}"),)
    names = [facts.source_name]
    if way == BRIDGED and inward is not None:
        names.append(f"network {inward.network} ({inward.medium})")
    elif inward is not None:
        names += [f"network {inward.network} ({inward.medium})", "the host"]
    elif facts.source is not facts.host:
        names.append("the host")
    if way in (FORWARDED, FROM_HOST):
        names.append(f"network {end.network} ({end.medium})" if end else out_interface(facts))
    if way != TO_HOST:
        names.append(facts.target_box.name if facts.target_box and end else facts.destination[0])
    legs.append(("path", " → ".join(names)))
    if facts.translated is not None:
        legs.append(("DNAT", f"{endpoint(facts.address, facts.port)} → {endpoint(*facts.translated)}, published by {facts.published_by}"))
    if end is not None and facts.source_seen and facts.source_seen != facts.source_address:
        legs.append(("masquerade", f"{facts.source_address} → {facts.source_seen}"))
    return tuple(legs)
