"""Networks that users make: what was asked for, checked against the host and the other networks, becomes a record."""

from __future__ import annotations

import time
from collections.abc import Sequence

from netbox import names
from netbox.errors import Conflict, Unsupported, UsageError
from netbox.network import forwarding, ipam, networks, parents
from netbox.network.facts import Occupied, host_facts, machine_id
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
        row = _row(request, _subnet(store, request), _subnet6(store, request), lan)
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
    return parents.lan(request.parent, request.ipv6)


def _subnet6(store: Store, request: NetworkRequest) -> ipam.Subnet | None:
    """A /64 of this host's unique local addresses, unless one was asked for."""
    if not request.ipv6:
        for option, value in (("--gateway", request.gateway6), ("--ip-range", request.ip_range6)):
            if value:
                raise UsageError(f"{option} {value} needs IPv6 on the network", "give --ipv6 or an IPv6 --subnet too")
        return None
    if not forwarding.is_supported():
        raise Unsupported("this kernel has no IPv6", "start it without ipv6.disable=1, or leave --ipv6 out")
    occupied = _occupied(store, request, ipv6=True)
    if request.subnet6 is None:
        for option, value in (("--gateway", request.gateway6), ("--ip-range", request.ip_range6)):
            if value:
                raise UsageError(f"{option} {value} needs an IPv6 --subnet", "give the subnet too, such as --subnet fd00:1::/64")
        return ipam.choose_subnet([item.subnet for item in occupied], [ipam.ula_prefix(machine_id())], ipam.USER_PREFIX_LENGTH6)
    return _free(request.subnet6, occupied)


def _subnet(store: Store, request: NetworkRequest) -> ipam.Subnet:
    occupied = _occupied(store, request)
    if request.subnet is None:
        if request.gateway or request.ip_range or any(":" not in address for _, address in request.aux_addresses):
            raise UsageError("--gateway, --ip-range and --aux-address need --subnet", "give the subnet too, such as --subnet 10.20.30.0/24")
        return ipam.choose_subnet([item.subnet for item in occupied], ipam.USER_POOLS, ipam.USER_PREFIX_LENGTH)
    return _free(request.subnet, occupied)


def _occupied(store: Store, request: NetworkRequest, ipv6: bool = False) -> list[Occupied]:
    if request.parent is None:
        return [*networks.reserved_subnets(store, request.name), *host_facts(frozenset(), ipv6).occupied]
    # The LAN's own subnet is this host's too, as are the routers and resolvers there.
    return [*networks.other_subnets(store, request.name), *host_facts(frozenset({request.parent}), ipv6).occupied]


def _free(wanted: str, occupied: Sequence[Occupied]) -> ipam.Subnet:
    subnet = ipam.Subnet.parse(wanted)
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
    _refuse_own(gateway, lan)
    return gateway


def _gateway6(request: NetworkRequest, subnet6: ipam.Subnet | None, lan: parents.Lan | None) -> str | None:
    """As that of IPv4. A LAN's router usually has a link-local address, which is what its advertisements tell."""
    if subnet6 is None:
        return None
    known = lan.gateway6 if lan is not None else ""
    if known and not ipam.is_link_local(known) and not subnet6.contains(ipam.number(known)):
        known = ""
    gateway = request.gateway6 or known or ipam.gateway(subnet6)
    if lan is None or not ipam.is_link_local(gateway):
        _check_inside(subnet6, "--gateway", gateway)
    _refuse_own(gateway, lan)
    return gateway


def _refuse_own(gateway: str, lan: parents.Lan | None) -> None:
    if lan is not None and gateway in lan.own:
        raise UsageError(
            f"--gateway {gateway} is this host's own address, which its macvlan sandboxes cannot reach", "give that of the LAN's router"
        )


def _check_range(ip_range: str | None, subnet: ipam.Subnet | None) -> None:
    if ip_range is not None and subnet is not None:
        within = ipam.Subnet.parse(ip_range)
        if not (within.bits == subnet.bits and subnet.contains(within.base) and subnet.contains(within.last)):
            raise UsageError(f"--ip-range {within} is not a part of the subnet {subnet}", "choose a smaller one inside of it")


def _row(request: NetworkRequest, subnet: ipam.Subnet, subnet6: ipam.Subnet | None, lan: parents.Lan | None) -> NetworkRow:
    gateway, gateway6 = _gateway(request, subnet, lan), _gateway6(request, subnet6, lan)
    _check_range(request.ip_range, subnet)
    _check_range(request.ip_range6, subnet6)
    for name, address in request.aux_addresses:
        its = subnet6 if ":" in address else subnet
        if its is None:
            raise UsageError(f"--aux-address {name}={address}: the network has no IPv6", "give --ipv6 or an IPv6 --subnet too")
        _check_inside(its, f"--aux-address {name}={address}", address)
        if address in (gateway, gateway6):
            raise UsageError(f"--aux-address {name}={address} is the network's gateway", "choose another one")
    options = {
        "driver": request.driver,
        "ip_range": request.ip_range,
        "aux_addresses": dict(request.aux_addresses),
        "internal": request.internal,
        "labels": dict(request.labels),
        "mtu": request.mtu,
    }
    if subnet6 is not None:
        options |= {"subnet6": str(subnet6), "gateway6": gateway6, "ip_range6": request.ip_range6}
    if request.parent is not None:
        options |= {"parent": request.parent, "macvlan_mode": request.macvlan_mode}
    mtu = request.mtu or 0  # 0: that of the way out, found out at every start
    return NetworkRow(request.name, names.bridge(request.name), str(subnet), gateway, mtu, time.time(), options)


def _check_inside(subnet: ipam.Subnet, option: str, address: str) -> None:
    value = ipam.number(address)
    if not subnet.contains(value):
        raise UsageError(f"{option}: {address} is outside of the subnet {subnet}", f"choose one of {subnet}")
    if value in ipam.unusable(subnet):
        raise UsageError(f"{option}: {address} is {ipam.unusable(subnet)[value]} ({subnet})", "choose another one")
