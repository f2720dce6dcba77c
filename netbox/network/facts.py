"""What the host's network is like: asked over one rtnetlink socket, in the calling thread's network namespace."""

from __future__ import annotations

import socket
from typing import NamedTuple

from netbox.errors import host_error
from netbox.kernel.rtnetlink import Prefix, RouteSocket
from netbox.network.ipam import Subnet

DEFAULT_MTU = 1500  # bytes, of Ethernet
MACHINE_ID = "/etc/machine-id"
BRIDGE_NETFILTER6 = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def answers_from_loopback() -> bool:
    """Whether a connection from ::1 to a sandbox gets its answers: not where bridged packets pass ip6tables. There the answer has ::1 for
    its destination before it gets to the IPv6 layer, which drops what comes with it from a wire.
    """
    try:
        with open(BRIDGE_NETFILTER6, encoding="ascii") as file:
            return file.read().strip() == "0"
    except FileNotFoundError:
        return True  # no br_netfilter


def machine_id() -> str:
    """What is this machine's alone, and the same after a reboot where there is a machine-id(5)."""
    try:
        with open(MACHINE_ID, encoding="ascii") as file:
            return file.read().strip() or boot_id()
    except (OSError, UnicodeDecodeError):
        return boot_id()


class Occupied(NamedTuple):
    """A prefix of the host and how a message names it: ``route 10.0.0.0/8 dev tun0``."""

    subnet: Subnet
    description: str


class HostFacts(NamedTuple):
    """``occupied`` are the destinations of all routes and the networks of all addresses; ``mtu`` is that of the link with the default
    route.
    """

    occupied: tuple[Occupied, ...]
    mtu: int


def boot_id() -> str:
    """The random identity of this boot (random(4)): a lease of another one is void."""
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def host_facts(own_bridges: frozenset[str], ipv6: bool = False) -> HostFacts:
    """The facts, without what lies on our own bridges; IPv6 prefixes too with ``ipv6``.

    Raises:
        HostError: the kernel refuses to tell.
    """
    try:
        with RouteSocket() as netlink:
            links, addresses, routes = netlink.links(), netlink.addresses(), netlink.routes()
            if ipv6:
                addresses += netlink.addresses(socket.AF_INET6)
                routes += netlink.routes(socket.AF_INET6)
    except OSError as error:
        raise host_error("ask the kernel for", "routes and addresses", error) from error
    names = {link.index: link.name for link in links}
    own = {link.index for link in links if link.name in own_bridges}
    occupied = [Occupied(_subnet(item), f"route {item} dev {names.get(item.index, '?')}") for item in routes if item.index not in own]
    occupied += [Occupied(_subnet(item), f"address {item} of {names.get(item.index, '?')}") for item in addresses if item.index not in own]
    mtus = {link.index: link.mtu for link in links}
    default = min(
        (item for item in routes if item.length == 0 and item.index and item.bits == 32),
        key=lambda item: (item.table != 254, item.metric),
        default=None,
    )
    return HostFacts(tuple(occupied), mtus.get(default.index, DEFAULT_MTU) if default else DEFAULT_MTU)


def _subnet(item: Prefix) -> Subnet:
    mask = ((1 << item.length) - 1) << (item.bits - item.length)
    return Subnet(item.network & mask, item.length, item.bits)
