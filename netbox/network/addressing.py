"""Which addresses and which MAC a sandbox gets on a network. Takes nothing: the caller does, inside the transaction that made it ask."""

from __future__ import annotations

from typing import NamedTuple

from netbox import names
from netbox.errors import Conflict, UsageError
from netbox.network import ipam, parents
from netbox.spec import NetworkAttachment
from netbox.state.rows import NetworkRow
from netbox.state.store import Store


class Chosen(NamedTuple):
    """What a sandbox has on a network; ``address6`` is empty without IPv6."""

    address: str
    mac: str
    address6: str


def choose(store: Store, row: NetworkRow, sandbox_id: str, wanted: NetworkAttachment, taken: dict[str, str], released: list[str]) -> Chosen:
    """What was asked for, or what comes next. ``taken`` are the addresses of others with the ids of their sandboxes, ``released`` those
    that were used before, the longest free first.

    Raises:
        UsageError: what was asked for makes no sense on the network.
        Conflict: it is taken, or nothing is free.
    """
    subnet = ipam.Subnet.parse(row.subnet)
    auxiliary = {address: name for name, address in row.options.get("aux_addresses", {}).items()}
    if row.parent:
        auxiliary = {**_check_lan(row, wanted).taken, **auxiliary}
    if wanted.ip is None:
        address = ipam.next_address(subnet, row.gateway, taken, released, reserved=auxiliary, within=_range(row, "ip_range"))
    else:
        address = ipam.dotted(ipam.number(wanted.ip))
        ipam.check_address(subnet, row.gateway, address, auxiliary)
        _refuse_taken(store, address, taken)
    return Chosen(address, _mac(store, row, sandbox_id, wanted, address, taken), _address6(store, row, wanted, address, taken, auxiliary))


def _mac(store: Store, row: NetworkRow, sandbox_id: str, wanted: NetworkAttachment, address: str, taken: dict[str, str]) -> str:
    if row.options.get("macvlan_mode") == "passthru":
        return parents.find(row.parent).mac
    mac = ipam.mac_for(address) if wanted.mac_address is None else ipam.check_mac(wanted.mac_address)
    for lease in store.leases(row.name):
        if lease.mac == mac and lease.sandbox_id != sandbox_id and taken.get(lease.address) == lease.sandbox_id:
            raise Conflict(
                f"the MAC {mac} is taken by sandbox {_name(store, lease.sandbox_id)}", "choose another one, or stop that sandbox"
            )
    if mac == ipam.mac_for(row.gateway) and not row.parent:
        raise Conflict(f"the MAC {mac} is that of the bridge {row.bridge}", "choose another one")
    return mac


def _address6(
    store: Store, row: NetworkRow, wanted: NetworkAttachment, address: str, taken: dict[str, str], auxiliary: dict[str, str]
) -> str:
    """The IPv6 address that goes with ``address``; nothing on a network without IPv6."""
    if not row.subnet6:
        if wanted.ip6 is not None:
            hint = "make one that has (netbox network create --ipv6)"
            if row.name == names.DEFAULT_NETWORK:
                hint += ", or set NETBOX_IPV6=1 while no sandbox is on it"
            raise UsageError(f"--ip6 {wanted.ip6}: network {row.name} has no IPv6", hint)
        return ""
    subnet6 = ipam.Subnet.parse(row.subnet6)
    if wanted.ip6 is None:
        within, within6, value = _range(row, "ip_range"), _range(row, "ip_range6"), ipam.number(address)
        # Two ranges are walked side by side.
        start = within if within6 is not None and within is not None and within.contains(value) else ipam.Subnet.parse(row.subnet)
        return ipam.next_address6(subnet6, row.gateway6, value - start.base, taken, reserved=auxiliary, within=within6)
    address6 = subnet6.written(ipam.number(wanted.ip6))
    ipam.check_address(subnet6, row.gateway6, address6, auxiliary)
    _refuse_taken(store, address6, taken)
    return address6


def _range(row: NetworkRow, option: str) -> ipam.Subnet | None:
    text = row.options.get(option)
    return ipam.Subnet.parse(text) if text else None


def _check_lan(row: NetworkRow, wanted: NetworkAttachment) -> parents.Lan:
    """What is known about the LAN of a macvlan network. Raises ``UsageError`` for what cannot be had there."""
    if wanted.aliases:
        raise UsageError(f"network {row.name} has no name service, being a macvlan network", "leave the alias out, or add a bridge network")
    if wanted.mac_address is not None and row.options.get("macvlan_mode") == "passthru":
        raise UsageError(f"--mac-address on network {row.name}: with macvlan_mode=passthru it is that of {row.parent}", "leave it out")
    lan = parents.lan(row.parent, ipv6=bool(row.subnet6))
    for address, gateway in ((wanted.ip, row.gateway), (wanted.ip6, row.gateway6)):
        if address != gateway and address in lan.taken:
            raise Conflict(f"the address {address} is taken: it is {lan.taken[address]}", "choose another one")
    return lan


def _refuse_taken(store: Store, address: str, taken: dict[str, str]) -> None:
    if address in taken:
        raise Conflict(
            f"the address {address} is taken by sandbox {_name(store, taken[address])}", "choose another one, or remove that sandbox"
        )


def _name(store: Store, sandbox_id: str) -> str:
    row = store.sandbox(sandbox_id)
    return row.name if row is not None else names.short_id(sandbox_id)
