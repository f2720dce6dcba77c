"""Links that are down, and frames that go to the wrong one."""

from __future__ import annotations

from netbox.kernel.inspection import LinkFact
from netbox.packet.diagnosis import path
from netbox.packet.diagnosis.publishing import source_interface, target_interface
from netbox.packet.diagnosis.values import NO_ROUTE, NOT_ASKED, SILENT, UNREACHABLE, Box, Facts, Finding, Interface, Namespace

_LOST = (SILENT, UNREACHABLE, NO_ROUTE)


def source_link_down(facts: Facts) -> Finding | None:
    """One end of the source's link, or its bridge."""
    box = facts.source_box
    if box is None or not facts.source.links:
        return None
    if not box.interfaces and facts.source is not facts.host and (facts.source_route is None or facts.source_route.error):
        with_address = {item.interface for item in facts.source.addresses}
        down = [link.name for link in facts.source.links if not link.up and link.name in with_address]
        return _foreign_down(box, facts.source, down[0]) if down else None
    end = source_interface(facts)
    if end is not None:
        ends: tuple[Interface, ...] = (end,)
    elif facts.source_route is not None and facts.source_route.error:
        ends = box.interfaces  # the routes over a link go with it
    else:
        return None
    return next((found for item in ends if (found := _down(facts, box, item, facts.source))), None)


def source_address_missing(facts: Facts) -> Finding | None:
    """The source's interface has lost the address that netbox gave it: IPv6 addresses go when a link goes down."""
    box, route = facts.source_box, facts.source_route
    if box is None or route is None or facts.source is facts.host or not facts.source.links:
        return None
    for end in box.interfaces:
        if route.error or route.interface == end.interface:
            found = _lost_address(box, end, facts.source, end.address6 if ":" in facts.address else end.address)
            if found is not None:
                return found
    return None


def target_address_missing(facts: Facts) -> Finding | None:
    """The same of the target."""
    end = target_interface(facts)
    if facts.target_box is None or end is None or facts.target is None or facts.target in (facts.host, facts.source):
        return None
    return _lost_address(facts.target_box, end, facts.target, facts.destination[0])


def _lost_address(box: Box, end: Interface, space: Namespace, address: str) -> Finding | None:
    if not address or space.has(address):
        return None
    have = ", ".join(item.address for item in space.addresses if item.interface == end.interface) or "none"
    return Finding(
        "address-missing",
        f"{end.interface} of {box.name} has lost the address {address} that netbox gave it",
        f"at {end.interface} of {box.name}",
        evidence=(("addresses", f"{end.interface} of {box.name}: {have}"),),
        command=f"netbox restart {box.name}",
        expect=_LOST,
    )


def beside_its_parent(facts: Facts) -> Finding | None:
    """The host and what is on a LAN by its link: the kernel keeps a link and the macvlan links on it apart."""
    inward, end = source_interface(facts), target_interface(facts)
    if inward is not None and inward.parent and facts.host.has(facts.address):
        box, item = facts.source_box, inward
    elif end is not None and end.parent and facts.host_route is not None and facts.host_route.interface == end.parent:
        box, item = facts.target_box, end
    else:
        return None
    if box is None:
        return None
    return Finding(
        "beside-its-parent",
        f"{box.name} is on network {item.network}, a LAN by {item.parent}, and the kernel keeps the host apart from those on its link",
        f"at {item.parent}",
        evidence=(("network", f"{item.network}: macvlan on {item.parent}"),),
        command=f"netbox network connect bridge {box.name}",
        expect=_LOST,
    )


def target_link_down(facts: Facts) -> Finding | None:
    """One end of the target's link, or its bridge."""
    end = target_interface(facts)
    if facts.target_box is None or facts.target is None or facts.target in (facts.host, facts.source):
        return None
    if end is not None:
        return _down(facts, facts.target_box, end, facts.target)
    name = next((item.interface for item in facts.target.addresses if item.address == facts.destination[0]), "")
    link = facts.target.link(name)
    return _foreign_down(facts.target_box, facts.target, name) if link is not None and not link.up else None


def _foreign_down(box: Box, space: Namespace, name: str) -> Finding:
    """A link of a namespace that somebody else made (mode ns)."""
    return Finding(
        "link-down",
        f"{name} of {box.name} is down",
        f"at {name}",
        evidence=(("link", f"{name} in {space.label}: down"),),
        command=f"nsenter -t {box.pid} -n ip link set {name} up",
        expect=(*_LOST, NOT_ASKED),
    )


def _down(facts: Facts, box: Box, end: Interface, space: Namespace) -> Finding | None:
    inner = f"nsenter -t {box.pid} -n ip link set {end.interface} up"
    places: list[tuple[str, str, LinkFact | None, str]] = [
        (end.interface, f"{end.interface} of {box.name}", space.link(end.interface), inner)
    ]
    if end.bridge:
        host_end = f"{end.host_interface}, the host's end of {box.name}'s link,"
        places.append((end.host_interface, host_end, facts.host.link(end.host_interface), ""))
        places.append((end.bridge, f"{end.bridge}, the bridge of network {end.network},", facts.host.link(end.bridge), ""))
    else:
        places.append(
            (end.parent, f"{end.parent}, the link of the host that network {end.network} is on,", facts.host.link(end.parent), "")
        )
    for name, title, link, command in places:
        if link is not None and link.up:
            continue
        how = "is gone" if link is None else "is down"
        where = space.label if name == end.interface else "host"
        command = command or f"ip link set {name} up"
        return Finding(
            "link-down",
            f"{title} {how}",
            f"at {name}",
            evidence=(("link", f"{name} in {where}: {how.removeprefix('is ')}"),),
            command=command if link is not None else f"netbox restart {box.name}",
            expect=_LOST,
        )
    port = facts.host.link(end.host_interface)
    bridge = facts.host.link(end.bridge)
    if port is not None and bridge is not None and port.master != bridge.number:
        return Finding(
            "link-down",
            f"{end.host_interface}, the host's end of {box.name}'s link, is no longer a port of the bridge {end.bridge}",
            f"at {end.host_interface}",
            evidence=(("link", f"{end.host_interface} in host: not on {end.bridge}"),),
            command=f"ip link set {end.host_interface} master {end.bridge}",
            expect=_LOST,
        )
    return None


def duplicate_mac(facts: Facts) -> Finding | None:
    """Another sandbox on the network has the MAC of one of the ends: the bridge sends its frames to whoever spoke last."""
    ends = ((facts.source_box, source_interface(facts)), (facts.target_box, target_interface(facts)))
    for box, end in ends:
        if box is None or end is None:
            continue
        own = next((item for item in facts.macs if (item.sandbox, item.interface) == (box.name, end.interface)), None)
        twins = [item for item in facts.macs if own and item.network == end.network and item.mac == own.mac and item is not own]
        twins = [item for item in twins if item.sandbox != box.name and not _same_namespace(facts, box.name, item.sandbox)]
        if own is None or not twins:
            continue
        port = next((item.port for item in facts.host.forwarding if item.mac == own.mac and not item.permanent), "")
        evidence = [("MAC", f"{own.mac}: {end.interface} of {box.name}, and {twins[0].interface} of {twins[0].sandbox}")]
        if port:
            evidence.append(("bridge", f"{end.bridge} sends frames for it to {port}"))
        culprit, wanted = _who_changed(facts, box, end, twins[0].sandbox, own.mac)
        return Finding(
            "duplicate-mac",
            f"{box.name} and {twins[0].sandbox} have the same MAC {own.mac} on network {end.network}, so frames for one go to the other",
            f"on bridge {end.bridge}",
            evidence=tuple(evidence),
            command=wanted,
            mend="" if wanted else f"give {culprit} a MAC of its own",
            expect=("silent", "unreachable", "refused", "open", "answered"),
        )
    return None


def _same_namespace(facts: Facts, one: str, other: str) -> bool:
    """Whether two sandboxes share a network namespace: they have the same interfaces then."""
    found = {box.name: box for box in facts.boxes if box.name in (one, other)}
    return len(found) == 2 and (found[one].joined == found[other].id or found[other].joined == found[one].id)


def _who_changed(facts: Facts, box: Box, end: Interface, twin: str, mac: str) -> tuple[str, str]:
    """Which of the two has another MAC than netbox gave it, and the command that gives it back."""
    other = next((item for item in facts.boxes if item.name == twin), None)
    for candidate in (box, other):
        mine = candidate.on(end.network) if candidate else None
        if candidate is not None and mine is not None and mine.mac != mac and candidate.pid:
            command = f"nsenter -t {candidate.pid} -n ip link set {mine.interface} address {mine.mac}"
            return candidate.name, command
    return twin, ""


def neighbour_entries(facts: Facts) -> Finding | None:
    """A neighbour entry on the way, or on the way back, that has another MAC than the neighbour."""
    for edge in path.edges(facts):
        entry = edge.space.neighbour(edge.interface, edge.address)
        if entry is None or not edge.mac or not entry.mac or entry.mac == edge.mac:
            continue
        permanent = entry.state == "permanent"
        where = "the host" if edge.space is facts.host else edge.space.label
        because = f"{where} has a {'permanent' if permanent else 'stale'} neighbour entry for {edge.address}: it says {entry.mac}"
        box = next((item for item in (facts.source_box, facts.target_box) if item and item.name == edge.space.label), None)
        prefix = f"nsenter -t {box.pid} -n " if box is not None and box.pid and edge.space is not facts.host else ""
        return Finding(
            "wrong-mac" if permanent else "stale-neighbour",
            f"{because}, but {edge.who} has {edge.mac}",
            f"on {edge.interface} of {where}",
            evidence=(
                ("neighbour", f"{edge.address} on {edge.interface} of {where}: {entry.mac}, {entry.state}"),
                ("MAC", f"{edge.who}: {edge.mac}"),
            ),
            command=f"{prefix}ip neighbour del {edge.address} dev {edge.interface}",
            expect=(SILENT, UNREACHABLE),
        )
    return None
