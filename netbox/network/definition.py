"""Networks that users make: what was asked for, checked against the host and the other networks, becomes a record."""

from __future__ import annotations

import time

from netbox import names
from netbox.errors import Conflict, UsageError
from netbox.network import ipam, networks, parents
from netbox.network.facts import host_facts
from netbox.settings import Settings
from netbox.spec import NetworkRequest
from netbox.state.rows import NetworkRow
from netbox.state.store import Store

RESERVED_NAMES = ("bridge", "host", "none", "default", "container")


def define(store: Store, settings: Settings, request: NetworkRequest) -> NetworkRow:
    """Remembers a new network; nothing of it stands on the host before its first sandbox.

    Raises:
        UsageError: the addresses do not fit together.
        Conflict: the name or the subnet is taken; the message names by what.
        HostError: no subnet is free.
    """
    if request.name in RESERVED_NAMES:
        raise UsageError(f"network name {request.name}: it is one of netbox's own", "choose another name")
    with networks.locked(settings):
        _check_name(store, request.name)
        lan = _lan(request)
        row = _row(request, _subnet(store, request), lan)
        store.put_network(row)
    return row


def _check_name(store: Store, name: str) -> None:
    if store.network(name) is not None:
        raise Conflict(f"a network called {name} is there already", f"remove it (netbox network rm {name}), or choose another name")
    for row in store.networks():
        if row.bridge == names.bridge(name):
            raise Conflict(f"the bridge of a network called {name} would be {row.bridge}, that of {row.name}", "choose another name")


def _lan(request: NetworkRequest) -> parents.Lan | None:
    """The LAN of a macvlan network. Raises what ``parents.find`` raises."""
    if request.parent is None:
        return None
    link = parents.find(request.parent)
    if request.mtu is not None and request.mtu > link.mtu:
        raise UsageError(f"-o mtu={request.mtu} is more than that of {link.name}, {link.mtu}", f"raise that of {link.name}, or give less")
    return parents.lan(request.parent)


def _subnet(store: Store, request: NetworkRequest) -> ipam.Subnet:
    if request.parent is None:
        occupied = [*networks.reserved_subnets(store, request.name), *host_facts(frozenset()).occupied]
    else:  # the LAN's own subnet is this host's too, as are the routers and resolvers there
        occupied = [*networks.other_subnets(store, request.name), *host_facts(frozenset({request.parent})).occupied]
    if request.subnet is None:
        if request.gateway or request.ip_range or request.aux_addresses:
            raise UsageError("--gateway, --ip-range and --aux-address need --subnet", "give the subnet too, such as --subnet 10.20.30.0/24")
        return ipam.choose_subnet([item.subnet for item in occupied], ipam.USER_POOLS, ipam.USER_PREFIX_LENGTH)
    subnet = ipam.Subnet.parse(request.subnet)
    clash = networks.collision(subnet, occupied)
    if clash is not None:
        raise Conflict(f"the subnet {subnet} collides with {clash.description}", "choose another subnet, or let netbox choose one")
    return subnet


def _gateway(request: NetworkRequest, subnet: ipam.Subnet, lan: parents.Lan | None) -> str:
    """The one that was asked for; that of the host on the same LAN; the first address of the subnet."""
    if lan is None or request.gateway is not None:
        gateway = request.gateway or ipam.gateway(subnet)
    else:
        known = lan.gateway if lan.gateway and subnet.contains(ipam.number(lan.gateway)) else ""
        gateway = known or ipam.gateway(subnet)
    _check_inside(subnet, "--gateway", gateway)
    if lan is not None and gateway in lan.own:
        raise UsageError(
            f"--gateway {gateway} is this host's own address, which its macvlan sandboxes cannot reach", "give that of the LAN's router"
        )
    return gateway


def _row(request: NetworkRequest, subnet: ipam.Subnet, lan: parents.Lan | None) -> NetworkRow:
    gateway = _gateway(request, subnet, lan)
    if request.ip_range is not None:
        within = ipam.Subnet.parse(request.ip_range)
        if not (subnet.contains(within.base) and subnet.contains(within.last)):
            raise UsageError(f"--ip-range {within} is not a part of the subnet {subnet}", "choose a smaller one inside of it")
    for name, address in request.aux_addresses:
        _check_inside(subnet, f"--aux-address {name}={address}", address)
        if address == gateway:
            raise UsageError(f"--aux-address {name}={address} is the network's gateway", "choose another one")
    options = {
        "driver": request.driver,
        "ip_range": request.ip_range,
        "aux_addresses": dict(request.aux_addresses),
        "internal": request.internal,
        "labels": dict(request.labels),
        "mtu": request.mtu,
    }
    if request.parent is not None:
        options |= {"parent": request.parent, "macvlan_mode": request.macvlan_mode}
    mtu = request.mtu or 0  # 0: that of the way out, found out at every start
    return NetworkRow(request.name, names.bridge(request.name), str(subnet), gateway, mtu, time.time(), options)


def _check_inside(subnet: ipam.Subnet, option: str, address: str) -> None:
    value = ipam.number(address)
    if not subnet.contains(value):
        raise UsageError(f"{option}: {address} is outside of the subnet {subnet}", f"choose one of {subnet}")
    if value in (subnet.base, subnet.last):
        what = "address of the network itself" if value == subnet.base else "broadcast address"
        raise UsageError(f"{option}: {address} is the {what} ({subnet})", "choose another one")
