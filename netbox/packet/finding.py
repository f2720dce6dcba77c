"""Turns what a person writes into places and targets; see ``places`` for what it means."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from netbox.errors import NoPermission, NotFound, UsageError, WrongState
from netbox.kernel import namespaces, route_lookup, rtnetlink
from netbox.network.resolve import RESOLV_CONF
from netbox.packet import resolving
from netbox.packet.lan import Neighbour
from netbox.packet.places import HOST, LAN, SANDBOX, Place, Target
from netbox.runtime.status import read_status
from netbox.spec import PortSpec

if TYPE_CHECKING:
    from netbox.engine import Engine, Sandbox

_PROTOCOLS = ("tcp", "udp", "sctp")
_ANY = ("0.0.0.0", "::", "")
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_ELSEWHERE = {4: "203.0.113.1", 6: "2001:db8::1"}  # an address that only a default route leads to
_PORT = re.compile(r"(?P<host>.*):(?P<port>\d+)(?:/(?P<protocol>[a-z]+))?")


class Written(NamedTuple):
    """A target, taken apart."""

    host: str
    port: int | None
    protocol: str | None


def parse(text: str) -> Written:
    """Takes a target apart: ``db``, ``db:53/udp``, ``10.0.0.1:80``, ``[2001:db8::1]:80``, ``2001:db8::1``. Pure. Raises UsageError."""
    if _is_address(text):
        return Written(_usual(text), None, None)
    match = _PORT.fullmatch(text)
    host, port, protocol = (match["host"], int(match["port"]), match["protocol"]) if match else (text, None, None)
    if protocol is not None and protocol not in _PROTOCOLS:
        raise UsageError(f"{text}: {protocol} has no ports", f"one of {', '.join(_PROTOCOLS)}")
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"{text}: port {port} is out of range", "1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_address(host) or ":" not in host:
            raise UsageError(f"{text}: {host} is no IPv6 address", "write [2001:db8::1]:80")
        host = _usual(host)
    elif ":" in host or not host or "/" in host or host.startswith("-"):
        raise UsageError(f"{text} is no target", "write a sandbox, an address or a name, with :PORT if wanted; IPv6 as [2001:db8::1]:80")
    return Written(host, port, protocol)


def _usual(address: str) -> str:
    """The one form of an address that the kernel has too; ::ffff:10.0.0.1 is 10.0.0.1 (RFC 4291, 2.5.5.2)."""
    value = ipaddress.ip_address(address)
    return str(value.ipv4_mapped or value) if isinstance(value, ipaddress.IPv6Address) else str(value)


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6 and address.is_link_local:
        raise UsageError(f"{text}: a link-local address belongs to one link, which cannot be named here", "use a global address")
    return True


def source(engine: Engine, text: str) -> Place:
    """See ``places.source``."""
    if os.geteuid() != 0:
        raise NoPermission("cannot send packets: netbox needs root to enter the networks of others", "run it with sudo")
    if text == HOST:
        return Place(text, HOST, HOST)
    if text == LAN:
        subnets = [item.subnet for item in engine.networks.list() if item.subnet]
        return Place(text, LAN, LAN, neighbour=Neighbour(engine.settings.run, subnets))
    return sandbox_place(engine, engine.get(text), text)


def sandbox_place(engine: Engine, sandbox: Sandbox, text: str) -> Place:
    """The place of a sandbox. Raises WrongState when it does not run."""
    state = sandbox.state
    status = read_status(engine.settings.sandbox_run(sandbox.id)) if state in ("running", "paused") else None
    if status is None or status.pid is None:
        raise WrongState(f"{sandbox.name} does not run: it is {state}", f"start it first (netbox start {sandbox.name})")
    return Place(text, SANDBOX, sandbox.name, sandbox.id, status.pid, status.pid_start, state)


def target(engine: Engine, place: Place, text: str, protocol: str | None, port: int | None, *, ipv6: bool) -> Target:
    """See ``places.target``."""
    written = parse(text)
    port = written.port if written.port is not None else port
    protocol = written.protocol or protocol
    found = Target(text, written.host, port, written.protocol)
    if _is_address(written.host):
        return _owned(engine, place, found)
    if written.host == HOST:
        return replace(found, address=_host_address(engine, place, ipv6), place=Place(HOST, HOST, HOST))
    if written.host == LAN:
        return _lan_target(engine, place, found, ipv6)
    try:
        sandbox = engine.get(written.host)
    except NotFound:
        return replace(found, address=_resolve(place, written.host, ipv6), written_as_name=True)
    own = sandbox_place(engine, sandbox, written.host)
    return _sandbox_target(engine, place, replace(found, place=own), sandbox, protocol, ipv6)


# -- sandboxes -----------------------------------------------------------------------------------------------------------------------------


def _sandbox_target(engine: Engine, place: Place, found: Target, sandbox: Sandbox, protocol: str | None, ipv6: bool) -> Target:
    network, own = _address_for(engine, place, sandbox, found.place, ipv6)
    if place.kind != SANDBOX and found.port is not None:
        published = _published(sandbox.ports, found.port, protocol or "tcp", by_inside=place.kind == LAN, ipv6=":" in own)
        if published is not None:
            by_host_port = _holds(published.host_port, published, found.port)
            offset = found.port - (published.host_port if by_host_port else published.port)
            address = _published_address(place, published, ":" in own)
            inner = (own, published.port + offset)
            return replace(found, address=address, port=published.host_port + offset, published=published, inner=inner)
    return replace(found, address=own, network=network)


def _published(ports: Sequence[PortSpec], port: int, protocol: str, *, by_inside: bool, ipv6: bool) -> PortSpec | None:
    """The published port that is meant: by host port, or by the port inside."""
    versions = [item for item in ports if item.protocol == protocol and (item.host_ip == "0.0.0.0" or (":" in item.host_ip) == ipv6)]
    fitting = [item for item in versions if item.host_port]
    for item in fitting:
        if _holds(item.host_port, item, port):
            return item
    return next((item for item in fitting if by_inside and _holds(item.port, item, port)), None)


def _holds(first: int, item: PortSpec, port: int) -> bool:
    return first <= port < first + item.length


def _published_address(place: Place, item: PortSpec, ipv6: bool) -> str:
    if place.neighbour is not None:
        return (place.neighbour.host_address6 if ipv6 else None) or place.neighbour.host_address
    return _LOOPBACK[6 if ipv6 else 4] if item.host_ip in _ANY else item.host_ip


def _address_for(engine: Engine, place: Place, sandbox: Sandbox, own: Place | None, ipv6: bool) -> tuple[str | None, str]:
    """The sandbox's address as the place would use it, with the network that they share."""
    plan = sandbox.network_plan
    if plan.get("mode") == "host":
        return None, _host_address(engine, place, ipv6)
    endpoints = list(plan.get("endpoints") or [])
    if place.sandbox_id and place.sandbox_id != sandbox.id:
        mine = [item["network"] for item in engine.get(place.sandbox_id).network_plan.get("endpoints") or []]
        shared = [item for name in mine for item in endpoints if item["network"] == name]
        for item in shared:
            if address := _choose(item.get("address"), item.get("address6"), ipv6):
                return str(item["network"]), address
    for item in endpoints:
        if address := _choose(item.get("address"), item.get("address6"), ipv6):
            return None, address
    assert own is not None
    if address := _first_address(own, ipv6):
        return None, address
    kind = "IPv6 address" if ipv6 else "address"
    raise WrongState(
        f"{sandbox.name} has no {kind} that others could reach: its network is {sandbox.spec.network.title}",
        f"put it on a network (netbox network connect NETWORK {sandbox.name})",
    )


def _choose(address: str | None, address6: str | None, ipv6: bool) -> str | None:
    return (address6 or None) if ipv6 else (address or address6 or None)


def _first_address(place: Place, ipv6: bool) -> str | None:
    """The first address of a namespace that is not loopback's: of one that a sandbox shares, or that somebody else made."""
    if ipv6:
        return _source_for(place, _ELSEWHERE[6])
    fd = place.open()
    try:
        with namespaces.inside_netns(fd), rtnetlink.RouteSocket() as route:
            addresses = [str(item).partition("/")[0] for item in route.addresses() if item.index != rtnetlink.LOOPBACK_INDEX]
    finally:
        os.close(fd)
    return next((address for address in addresses if ":" not in address), None)


# -- the host and its lan ------------------------------------------------------------------------------------------------------------------


def _host_address(engine: Engine, place: Place, ipv6: bool) -> str:
    """The address by which the host is reached: on the lan, by loopback, or as gateway of a sandbox's network."""
    version = 6 if ipv6 else 4
    if place.neighbour is not None:
        address = place.neighbour.host_address6 if ipv6 else place.neighbour.host_address
        if address is not None:
            return address
    here = Place(HOST, HOST, HOST)
    if place.kind == HOST or _same_namespace(place, here):
        return _LOOPBACK[version]
    if place.sandbox_id:
        for item in engine.get(place.sandbox_id).network_plan.get("endpoints") or []:
            if address := _choose(None if ipv6 else item.get("gateway"), item.get("gateway6"), ipv6):
                return address
    found = _source_for(here, _ELSEWHERE[version]) or _first_address(here, ipv6)
    if found is None:
        raise WrongState(f"the host has no IPv{version} address that {place.title} could ask for", "write an address")
    return found


def _same_namespace(one: Place, other: Place) -> bool:
    fds = []
    try:
        fds = [place.open() for place in (one, other)]
        return namespaces.identity(fds[0]) == namespaces.identity(fds[1])
    finally:
        for fd in fds:
            os.close(fd)


def _source_for(place: Place, address: str) -> str | None:
    """The address that a place would send from to this one."""
    fd = place.open()
    try:
        with namespaces.inside_netns(fd):
            return route_lookup.lookup(address).source
    except OSError:
        return None
    finally:
        os.close(fd)


def _lan_target(engine: Engine, place: Place, found: Target, ipv6: bool) -> Target:
    """The neighbour itself: the place's own, or one that is made now."""
    lan = place if place.kind == LAN else source(engine, LAN)
    assert lan.neighbour is not None
    address = lan.neighbour.address6 if ipv6 else lan.neighbour.address
    if address is None:
        lan.close()
        raise WrongState("the simulated neighbour has no IPv6 address: this host has no IPv6", "leave -6 out")
    return replace(found, address=address, place=lan)


# -- addresses and names -------------------------------------------------------------------------------------------------------------------


def _owned(engine: Engine, place: Place, found: Target) -> Target:
    """An address, with the place that has it where that is one of ours."""
    address = str(ipaddress.ip_address(found.address))
    for sandbox in engine.list():
        for item in sandbox.network_plan.get("endpoints") or []:
            if address in (item.get("address"), item.get("address6")):
                own = sandbox_place(engine, sandbox, found.name)
                return replace(found, address=address, place=own, network=_shared(engine, place, str(item["network"])))
    return replace(found, address=address)


def _shared(engine: Engine, place: Place, network: str) -> str | None:
    plan: Mapping[str, Any] = engine.get(place.sandbox_id).network_plan if place.sandbox_id else {}
    return network if any(item["network"] == network for item in plan.get("endpoints") or []) else None


def _resolve(place: Place, name: str, ipv6: bool) -> str:
    if place.pid is None:
        return resolving.resolve_here(name, ipv6)
    fd = place.open()
    try:
        return resolving.resolve_in(place.pid, fd, place.title, name, ipv6)
    finally:
        os.close(fd)


def nameserver(place: Place) -> str:
    """The address of the resolver that a place asks first. Raises NotFound."""
    if place.pid is not None:
        server = resolving.nameserver_of(place.pid)
    else:
        with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            server = next(iter(resolving.parse_config(file.read()).servers), None)
    if server is None:
        raise NotFound(f"{place.title} has no name server", "name one: netbox probe SRC SERVER --dns NAME")
    return server


def names(engine: Engine, *places: Place) -> dict[str, str]:
    """Who has which address, as far as netbox knows: sandboxes, gateways and the host, neighbours."""
    known: dict[str, str] = {}
    for place in places:
        if place.neighbour is not None:
            known |= {address: LAN for address in (place.neighbour.address, place.neighbour.address6) if address}
            known |= {address: HOST for address in (place.neighbour.host_address, place.neighbour.host_address6) if address}
    for sandbox in engine.list():
        for item in sandbox.network_plan.get("endpoints") or []:
            known |= {item[key]: sandbox.name for key in ("address", "address6") if item.get(key)}
            known |= {item[key]: HOST for key in ("gateway", "gateway6") if item.get(key)}
    return known
