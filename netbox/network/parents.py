"""The links of the host that macvlan networks are on: found, judged, and made where it is a VLAN (``eth0.100``) that is not there yet."""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import NamedTuple

from netbox.errors import HostError, NotFound, Unsupported, UsageError, host_error
from netbox.kernel import rtnetlink, sublinks
from netbox.kernel.rtnetlink import Link, RouteSocket
from netbox.network import ipam
from netbox.network.resolve import host_files, nameservers
from netbox.state.journal import Recorder

MARK = "netbox"  # the alias of a VLAN link that is ours
_VLAN = re.compile(r"(.+)\.([0-9]{1,4})")
_VLAN_MAX = 4094  # 0 and 4095 are reserved (IEEE 802.1Q)


class Lan(NamedTuple):
    """What this host knows about the LAN of a parent: all addresses of the host's ``own``, its gateways there ("" for none; that of IPv6 is
    a link-local address where router advertisements told of it), and addresses that are somebody's, with the words for whose.
    """

    own: frozenset[str]
    gateway: str
    taken: dict[str, str]
    gateway6: str = ""


def find(name: str) -> Link:
    """The parent, or the link that it will be a VLAN of.

    Raises:
        NotFound: there is no such link.
        UsageError: no macvlan link can be on it.
    """
    with RouteSocket() as netlink:
        link, vlan = netlink.link(name), _vlan(name)
        if link is None and vlan is not None:
            link = netlink.link(vlan[0])
        if link is None:
            usual = [item.name for item in netlink.links() if item.type == rtnetlink.ARPHRD_ETHER and not item.master]
            raise NotFound(f"parent {name}: this host has no such link", f"there are {', '.join(usual)}" if usual else "see 'ip link'")
    if link.type != rtnetlink.ARPHRD_ETHER:
        raise UsageError(f"parent {name}: it is not an Ethernet link", "choose another one, see 'ip link'")
    if os.path.exists(f"/sys/class/net/{link.name}/phy80211"):
        raise UsageError(
            f"parent {name}: it is a wireless link, whose access point drops the frames of any MAC but its own", "use --driver bridge"
        )
    return link


def lan(name: str, ipv6: bool = False) -> Lan:
    """The LAN of a parent, IPv6 too with ``ipv6``. One that is not there yet has none."""
    with RouteSocket() as netlink:
        links, addresses, routes = netlink.links(), netlink.addresses(), netlink.routes()
        if ipv6:
            addresses += netlink.addresses(socket.AF_INET6)
            routes += netlink.routes(socket.AF_INET6)
    names = {link.index: link.name for link in links}
    own = {str(item).partition("/")[0]: f"this host's own, on {names.get(item.index)}" for item in addresses}
    by_parent = [item for item in routes if item.gateway and names.get(item.index) == name]
    default = [item for item in sorted(by_parent, key=lambda item: item.metric) if item.length == 0]
    taken = dict.fromkeys(nameservers(host_files().resolv_conf), "a resolver of this host")
    taken |= dict.fromkeys((item.gateway for item in by_parent), "a router of this host")
    return Lan(
        frozenset(address for address in own if not ipam.is_link_local(address)),
        next((item.gateway for item in default if item.bits == 32), ""),
        {**taken, **own},
        next((item.gateway for item in default if item.bits == 128), ""),
    )


def stands(name: str) -> bool:
    """Whether the parent is there, so that nothing has to be made."""
    with RouteSocket() as netlink:
        return netlink.link(name) is not None


def bring_up(name: str, network: str, recorder: Recorder, recorded: bool) -> None:
    """Has the parent there and up; one that is not ours is left as it is. ``recorded`` says that the journal of the network has its row.

    Raises:
        HostError: it is down, or the kernel refuses.
        Unsupported: the kernel has no VLANs.
    """
    vlan = _vlan(name)
    with RouteSocket() as netlink:
        link = netlink.link(name)
        if not recorded and vlan is not None and (link is None or link.alias == MARK):
            recorder.record("vlan", name=name)
        if link is None and vlan is not None:
            base = netlink.link(vlan[0])
            if base is None:
                raise HostError(f"the link {vlan[0]} is gone", "another program removed it")
            try:
                netlink.request(sublinks.add_vlan(name, parent=base.index, vlan=vlan[1]), sublinks.mark(name, MARK))
            except OSError as error:
                raise _vlan_error(name, error) from error
            link = base
    if link is None or not link.is_up:
        shown = link.name if link is not None else name
        raise HostError(f"the parent {shown} of network {network} is down", f"bring it up: ip link set {shown} up")


def remove_vlan(name: str) -> None:
    """Removes a VLAN link that is ours.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        with RouteSocket() as netlink:
            link = netlink.link(name)
            if link is not None and link.alias == MARK:
                netlink.request(rtnetlink.delete_link(name))
    except OSError as error:
        raise host_error("delete", f"the link {name}", error) from error


def describe(name: str) -> list[str]:
    """The commands that a person would type to have the parent."""
    vlan = _vlan(name)
    if vlan is None:
        return []
    return [
        f"ip link add link {vlan[0]} name {name} type vlan id {vlan[1]}",
        f"ip link set {name} alias {MARK} addrgenmode none up",
    ]


def _vlan(name: str) -> tuple[str, int] | None:
    """``eth0.100`` as the link that the VLAN is on and the VLAN's number."""
    found = _VLAN.fullmatch(name)
    return (found[1], int(found[2])) if found is not None and 1 <= int(found[2]) <= _VLAN_MAX else None


def _vlan_error(name: str, error: OSError) -> HostError | Unsupported:
    if error.errno == errno.EOPNOTSUPP:
        return Unsupported(f"parent {name}: this kernel has no VLANs (CONFIG_VLAN_8021Q)", "modprobe 8021q, or use a kernel that has them")
    return host_error("make", f"the VLAN {name}", error)
