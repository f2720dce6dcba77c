"""The host between the two: published ports, translation, routing, forwarding, TTL, MTU."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from netbox.packet.diagnosis import path, publishing
from netbox.packet.diagnosis.publishing import ANY, endpoint, source_interface, target_interface
from netbox.packet.diagnosis.values import (
    EXPIRED,
    HOST,
    ICMP,
    LAN,
    REFUSED,
    SANDBOX,
    SILENT,
    TCP,
    UNREACHABLE,
    Facts,
    Finding,
)

if TYPE_CHECKING:
    from netbox.kernel.connections import Connection

_OPEN_STATES = ("SYN_SENT", "SYN_RECV", "ESTABLISHED")  # of connection tracking; in others nothing is expected to come any more


def stale_connection(facts: Facts) -> Finding | None:
    """An entry of the connection table that sends packets of this source and destination somewhere else than they should go now."""
    wanted = facts.destination
    for item in facts.connections:
        to = (item.original.destination, item.original.port)
        if item.original.source != facts.source_address or to != (facts.address, facts.port):
            continue
        goes = (item.reply.source, item.reply.source_port)
        if goes == wanted or (goes == to == (facts.address, facts.port) and facts.declared is None):
            continue
        protocol = facts.request.protocol
        old = publishing.holder(facts, goes[0])
        if protocol == TCP and (item.state not in _OPEN_STATES or old is not None or facts.host.has(goes[0])):
            continue  # it is over, or goes on with the one that it was made with
        flow = endpoint(item.original.source, item.original.source_port)
        whose = f" ({old.name})" if old else ", which nobody has any more" if not facts.host.has(goes[0]) else " (the host itself)"
        return Finding(
            "stale-connection",
            f"connection tracking still sends what comes from {flow} for {endpoint(*to)} to {endpoint(*goes)}{whose},"
            f" instead of {endpoint(*wanted)}",
            "connection tracking on the host",
            evidence=(
                ("connection", f"{protocol} {flow} → {endpoint(*to)}, answers expected from {endpoint(*goes)}{_state(item)}"),
                ("now", f"{endpoint(*to)} leads to {endpoint(*wanted)}" if facts.translated else f"{endpoint(*to)} is not translated"),
                ("others", "a connection from another source port is not concerned"),
            ),
            command=f"conntrack -D -p {protocol} --orig-src {item.original.source} --orig-port-src {item.original.source_port}"
            f" --orig-dst {to[0]} --orig-port-dst {to[1]}",
            source_port=item.original.source_port,
            expect=(SILENT, UNREACHABLE, REFUSED),
        )
    return None


def _state(item: Connection) -> str:
    return f", {item.state}" * bool(item.state) + f", {item.timeout} s left"


def reverse_path(facts: Facts) -> Finding | None:
    """The host would send an answer to the source by another interface, and rp_filter is strict; or it has no way back at all."""
    name = facts.host_interface
    found = path.filtered_by_reverse_path(facts.host, name, facts.host_route, facts.back_route)
    if not found or facts.back_route is None:
        return None
    scope, value = found
    back = facts.back_route.interface or "no interface"
    return Finding(
        "reverse-path-filter",
        f"the host's reverse path filter drops it: it came in by {name}, and an answer to {facts.source_address} would leave by {back}",
        f"coming in by {name} of the host",
        evidence=(("route", f"on the host, for {facts.source_address}: {back}"), ("rp_filter", f"{value} on {scope} of the host")),
        command=f"sysctl -w net.ipv4.conf.{scope}.rp_filter={'2' if value == '1' else '0'}",
        expect=(SILENT,),
    )


def _to_host(facts: Facts) -> bool:
    """Whether the packet is for the host itself, on a port that nobody there listens on."""
    if facts.request.protocol == ICMP or not facts.port or facts.translated is not None or not facts.host.has(facts.address):
        return False
    if facts.source is not facts.host and not facts.host_interface:
        return False
    return not any(item.takes(facts.address) for item in facts.host.sockets if item.port == facts.port and not item.peer_port)


def published_elsewhere(facts: Facts) -> Finding | None:
    """A sandbox publishes the port, on another address of the host."""
    if not _to_host(facts) or facts.declared is not None:
        return None
    for box in facts.boxes:
        found = publishing.publication(box, facts.request.protocol, facts.port)
        if found is None or not box.runs:
            continue
        only, inner = endpoint(found.host_ip, facts.port), found.port + facts.port - found.host_port
        other = "another address of the host"
        if found.host_ip in ANY:
            other = "one of IPv6" if ":" in facts.address else "one of IPv4"
        because = f"{box.name} publishes port {facts.port} on {found.host_ip} only, and {facts.address} is {other}"
        command = f"netbox publish {box.name} {endpoint(facts.address, facts.port)}:{inner}{_suffix(found.protocol)}"
        mend = ""
        way = publishing.way_out(box, ":" in facts.address)
        if publishing.loses_answers(facts):
            because = f"{box.name} publishes port {facts.port} on every address but ::1: answers to that are lost where bridged"
            because += " packets pass ip6tables"
            command, mend = "", f"ask for 127.0.0.1:{facts.port}" + (f" or {endpoint(way.gateway6, facts.port)}" if way else "")
        elif way is None:
            command, mend = "", f"put {box.name} on a network with IPv6 (netbox network create --ipv6)"
        return Finding(
            "published-elsewhere",
            because,
            "at the host",
            evidence=(("published", f"{only} → {box.name}:{inner}/{found.protocol}"),),
            command=command,
            mend=mend,
            expect=(REFUSED, SILENT),
        )
    return None


def not_published(facts: Facts) -> Finding | None:
    """Nobody publishes the port, or the target does not."""
    from_outside = facts.source_kind == LAN and facts.target_kind == SANDBOX and facts.translated is None
    if not _to_host(facts) and not from_outside:
        return None
    if facts.declared is not None or facts.target_kind == HOST:
        return None
    box = facts.target_box if facts.target_kind == SANDBOX else None
    if box is not None and not box.interfaces:
        return None
    protocol, command = _suffix(facts.request.protocol), ""
    evidence = [("published", "nothing on " + endpoint(facts.address, facts.port) + f"/{facts.request.protocol}")]
    if box is None:
        because = f"no sandbox publishes port {facts.port}{protocol}, and nothing on the host listens there"
        mend = f"publish it: netbox publish NAME {facts.port}:PORT{protocol}"
    elif facts.request.protocol == ICMP:
        because = f"only the ports that {box.name} publishes lead to it from other machines, and ICMP has no ports"
        mend = f"ask from this host, or from a sandbox on {' or '.join(box.networks)}"
    else:
        have = ", ".join(f"{item.host_port}→{item.port}" for item in box.ports)
        because = f"{box.name} does not publish port {facts.request.port}{protocol}" + (f" (it publishes {have})" if have else "")
        mend, command = "", f"netbox publish {box.name} {facts.request.port}:{facts.request.port}{protocol}"
        evidence.append(("ports", have or f"{box.name} publishes none"))
    return Finding(
        "not-published", because, "at the host", evidence=tuple(evidence), command=command, mend=mend, expect=(REFUSED, SILENT, UNREACHABLE)
    )


def _suffix(protocol: str) -> str:
    """How ``-p`` writes the protocol."""
    return "" if protocol == "tcp" else f"/{protocol}"


def rules_missing(facts: Facts) -> Finding | None:
    """A sandbox publishes the port, and no rule leads there."""
    if facts.declared is None or facts.translated == facts.declared:
        return None
    if facts.source is not facts.host and not facts.host_interface:
        return None
    where = endpoint(*facts.declared)
    if facts.translated is not None:
        because = f"{facts.published_by} publishes port {facts.port}, but a rule of others sends it to {endpoint(*facts.translated)}"
    else:
        because = f"{facts.published_by} publishes port {facts.port}, but netbox's rule for it is gone"
    return Finding(
        "rules-missing",
        because,
        "translation on the host",
        evidence=(("published", f"{endpoint(facts.address, facts.port)} should lead to {where}"), ("rules", "none does")),
        command="netbox repair",
        expect=(REFUSED, SILENT, UNREACHABLE),
    )


def forwarding_off(facts: Facts) -> Finding | None:
    """The host does not forward at all, or not what comes in there."""
    if facts.host_route is None or path.kind(facts) != path.FORWARDED:
        return None
    version6 = ":" in facts.address
    name = "net.ipv6.conf.all.forwarding" if version6 else "net.ipv4.ip_forward"
    inner = f"net.ipv4.conf.{facts.host_interface}.forwarding"
    if facts.host.sysctl(name, "1") == "0":
        because, command = f"the host does not forward packets: {name} is 0", f"sysctl -w {name}=1"
    elif not version6 and facts.host_route.error and facts.host.sysctl(f"net/ipv4/conf/{facts.host_interface}/forwarding") == "0":
        because, command = f"the host does not forward what comes in by {facts.host_interface}: {inner} is 0", f"sysctl -w {inner}=1"
    else:
        return None
    return Finding(
        "forwarding-off",
        because,
        "routing on the host",
        evidence=(("forwarding", because.rpartition(": ")[2]),),
        command=command,
        expect=(SILENT, UNREACHABLE),
    )


def no_route(facts: Facts) -> Finding | None:
    """The host knows no way on."""
    route = facts.host_route
    if route is None or route.error == 0 or path.kind(facts) not in (path.FORWARDED, path.FROM_HOST):
        return None
    address = facts.destination[0]
    martian = route.error in (errno.EINVAL, errno.EXDEV)
    return Finding(
        "no-route",
        f"the host refuses a packet from {facts.source_address} that comes in there" if martian else f"the host has no route to {address}",
        "routing on the host",
        evidence=(("route", f"on the host, for {address}: {os.strerror(route.error)}"),),
        mend=f"give the host a route to {address}",
        expect=(SILENT, UNREACHABLE),
    )


def time_to_live(facts: Facts) -> Finding | None:
    """The packet's TTL is used up at the host."""
    value, name = facts.time_to_live
    if path.kind(facts) != path.FORWARDED or value > 1:
        return None
    word = "hop limit" if ":" in facts.address else "TTL"
    because = f"its {word} of {value} runs out at the host, which forwards it"
    box = facts.source_box
    prefix = f"nsenter -t {box.pid} -n " if box is not None and box.pid else ""
    origin = f"{name} of {facts.source.label}" if name else "as asked for"
    return Finding(
        "ttl-expired",
        because,
        "forwarding on the host",
        evidence=((word, f"{value}, {origin}"),),
        command=f"{prefix}sysctl -w {name}=64" if name else "",
        mend="" if name else f"send with a larger {word} (--ttl)",
        expect=(EXPIRED, SILENT),
    )


def too_large(facts: Facts) -> Finding | None:
    """A link on the way takes less than the source's own, and nobody says so: inside a bridge there is no router that could."""
    inward, end = source_interface(facts), target_interface(facts)
    first = facts.host_route if facts.source is facts.host else facts.source_route
    start = facts.source.link(first.interface) if first and not first.error else None
    if start is None or path.kind(facts) in (path.INSIDE, path.NOWHERE, path.TO_HOST):
        return None
    links = []
    if inward is not None:
        links += [("host", facts.host.link(inward.host_interface)), ("host", facts.host.link(inward.bridge))]
    if end is not None and facts.target is not None:
        links += [("host", facts.host.link(end.bridge)), ("host", facts.host.link(end.host_interface))]
        links.append((facts.target.label, facts.target.link(end.interface)))
    known = [(where, link) for where, link in links if link is not None]
    size = facts.request.size or start.mtu
    if size > start.mtu:
        return Finding(
            "mtu",
            f"{start.name} of {facts.source.label} takes packets of {start.mtu} bytes at most",
            f"at {start.name} of {facts.source.label}",
            evidence=(("MTU", f"{start.name} of {facts.source.label}: {start.mtu}"),),
            mend="send smaller packets",
            expect=(UNREACHABLE,),
            size=size,
        )
    narrow = next(((where, link) for where, link in known if link.mtu < size), None)
    if narrow is None:
        return None
    where, link = narrow
    wide = max(item.mtu for _, item in known)
    prefix = f"nsenter -t {facts.target_box.pid} -n " if where != "host" and facts.target_box and facts.target_box.pid else ""
    evidence = tuple(("MTU", f"{item.name} of {place}: {item.mtu}") for place, item in ((facts.source.label, start), *dict.fromkeys(known)))
    return Finding(
        "mtu",
        f"packets of more than {link.mtu} bytes vanish at {link.name} of {where}, whose MTU is {link.mtu},"
        f" while {facts.source_name} sends up to {start.mtu}",
        f"at {link.name} of {where}",
        blocks=facts.request.size is not None,
        evidence=evidence,
        command=f"{prefix}ip link set {link.name} mtu {max(wide, start.mtu)}",
        expect=(SILENT, UNREACHABLE),
        size=size,
    )
