"""The source's own kernel: no route, no port left to send from."""

from __future__ import annotations

import errno
import os

from netbox.packet.diagnosis import path
from netbox.packet.diagnosis.publishing import endpoint
from netbox.packet.diagnosis.values import NO_PORT, NO_ROUTE, TCP, UDP, Facts, Finding

_REFUSALS = {"blackhole": "drops it without a word", "unreachable": "says unreachable", "prohibit": "says prohibited"}


def no_route(facts: Facts) -> Finding | None:
    """The source knows no way to the address, or has a route that refuses."""
    route = facts.source_route
    if route is None or not facts.address:
        return None
    if route.error == 0 and route.kind not in _REFUSALS:
        return None
    if route.error == errno.EINVAL or route.kind == "blackhole":
        because = f"{facts.source_name} has a blackhole route for {facts.address}"
    elif route.kind in _REFUSALS or route.error == errno.EACCES:
        because = f"{facts.source_name} has a route for {facts.address} that {_REFUSALS.get(route.kind, 'says prohibited')}"
    elif route.error == errno.EHOSTUNREACH:
        because = f"{facts.source_name} has a route that says that {facts.address} is unreachable"
    else:
        because = f"{facts.source_name} has no route to {facts.address}"
    answer = os.strerror(route.error) if route.error else route.kind
    if route.error == errno.ENETUNREACH and (without := _without_ipv6(facts)) is not None:
        return without
    box, end = facts.source_box, next(iter(facts.source_box.interfaces), None) if facts.source_box else None
    command = ""
    gateway = end.gateway_for(facts.address) if end else ""
    if box is not None and end is not None and box.pid and gateway and route.error == errno.ENETUNREACH and not end.internal:
        command = f"nsenter -t {box.pid} -n ip route add default via {gateway}"
    return Finding(
        "no-route",
        because,
        f"routing in {facts.source.label}",
        evidence=(("route", f"in {facts.source.label}, for {facts.address}: {answer}"),),
        command=command,
        mend="" if command else f"give {facts.source_name} a route to {facts.address}",
        expect=(NO_ROUTE, "unreachable", "silent"),
    )


def _without_ipv6(facts: Facts) -> Finding | None:
    """The source is on networks that have no IPv6."""
    box = facts.source_box
    if box is None or ":" not in facts.address or not box.interfaces or any(item.address6 for item in box.interfaces):
        return None
    networks = [item.network for item in box.interfaces]
    have = "has" if len(networks) == 1 else "have"
    return Finding(
        "no-route",
        f"{box.name} has no IPv6: its network{'s' * (len(networks) > 1)} {' and '.join(networks)} {have} none",
        f"routing in {facts.source.label}",
        evidence=(("route", f"in {facts.source.label}, for {facts.address}: none"),),
        mend=f"put {box.name} on a network that has IPv6 (netbox network create --ipv6 NAME, netbox network connect NAME {box.name})",
        expect=(NO_ROUTE,),
    )


def source_ports_used_up(facts: Facts) -> Finding | None:
    """Every port of ip_local_port_range is taken for this destination (TCP), or at all (UDP)."""
    if facts.request.protocol not in (TCP, UDP) or path.kind(facts) == path.NOWHERE:
        return None
    first, last = _range(facts.source.sysctl("net.ipv4.ip_local_port_range", "32768 60999"))
    reserved = _reserved(facts.source.sysctl("net.ipv4.ip_local_reserved_ports"))
    usable = last - first + 1 - len({port for port in reserved if first <= port <= last})
    to = (facts.address, facts.port)
    taken = {
        item.port
        for item in facts.source.sockets
        if first <= item.port <= last
        and item.port not in reserved
        and (facts.request.protocol == UDP or not item.peer_port or (item.peer, item.peer_port) == to)
    }
    if usable < 1 or len(taken) < usable:
        return None
    count = f"{usable} port{'s' if usable > 1 else ''}"
    box = facts.source_box
    prefix = f"nsenter -t {box.pid} -n " if box is not None and box.pid else ""
    return Finding(
        "source-ports-used-up",
        f"{facts.source_name} has no port left to send from: connections to {endpoint(*to)} use all {count} of {first}-{last}",
        f"opening a socket in {facts.source.label}",
        evidence=(
            ("ports", f"{len(taken)} of {usable} taken in {facts.source.label}"),
            ("range", f"ip_local_port_range {first} {last}"),
        ),
        command=f'{prefix}sysctl -w net.ipv4.ip_local_port_range="1024 65535"' if last - first < 60000 else "",
        mend="" if last - first < 60000 else "close connections sooner, or reuse them",
        expect=(NO_PORT,),
    )


def _range(text: str) -> tuple[int, int]:
    words = text.split()
    return (int(words[0]), int(words[1])) if len(words) == 2 and all(word.isdigit() for word in words) else (32768, 60999)


def _reserved(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            found |= set(range(int(first), int(last or first) + 1))
    return found
