"""Links that ride on another link, and the numbers of namespaces: rtnetlink requests beyond those of every start.

Sources: ``<linux/if_link.h>``, ``<linux/net_namespace.h>``, ip-link(8), ip-netns(8). Values are those of ``rtnetlink``.
"""

from __future__ import annotations

import errno
import struct

from netbox.kernel import rtnetlink
from netbox.kernel.rtnetlink import RouteSocket

MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}

_IFLA_MACVLAN_MODE, _IFLA_VLAN_ID = 1, 1
_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_LINK = struct.Struct("=BxHiII")


def add_macvlan(name: str, *, parent: int, netns_fd: int, mtu: int, mac: str, mode: str) -> rtnetlink.Request:
    """A macvlan link on the link ``parent``, made in the namespace ``netns_fd``, down. ``mode`` is one of ``MACVLAN_MODES``; with
    ``passthru`` it has the parent's MAC whatever ``mac`` says. Kernels before 6.14 refuse a ``name`` that a link of this namespace has.
    """
    data = rtnetlink.attribute(rtnetlink.IFLA_INFO_DATA, rtnetlink.number(_IFLA_MACVLAN_MODE, MACVLAN_MODES[mode]))
    body = (
        _LINK.pack(0, 0, 0, 0, 0)
        + rtnetlink.text(rtnetlink.IFLA_IFNAME, name)
        + rtnetlink.number(rtnetlink.IFLA_MTU, mtu)
        + rtnetlink.number(rtnetlink.IFLA_LINK, parent)
        + rtnetlink.number(rtnetlink.IFLA_NET_NS_FD, netns_fd)
        + rtnetlink.attribute(rtnetlink.IFLA_ADDRESS, rtnetlink.mac_bytes(mac))
        + rtnetlink.attribute(rtnetlink.IFLA_LINKINFO, rtnetlink.text(rtnetlink.IFLA_INFO_KIND, "macvlan") + data)
    )
    return rtnetlink.Request(rtnetlink.RTM_NEWLINK, rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL, body, f"the macvlan link {name}")


def add_vlan(name: str, *, parent: int, vlan: int) -> rtnetlink.Request:
    """A link that sends and receives what is tagged with the number ``vlan`` (IEEE 802.1Q) on the link ``parent``, down."""
    data = rtnetlink.attribute(rtnetlink.IFLA_INFO_DATA, rtnetlink.attribute(_IFLA_VLAN_ID, struct.pack("=H", vlan)))
    info = rtnetlink.attribute(rtnetlink.IFLA_LINKINFO, rtnetlink.text(rtnetlink.IFLA_INFO_KIND, "vlan") + data)
    body = _LINK.pack(0, 0, 0, 0, 0) + rtnetlink.text(rtnetlink.IFLA_IFNAME, name) + rtnetlink.number(rtnetlink.IFLA_LINK, parent) + info
    return rtnetlink.Request(rtnetlink.RTM_NEWLINK, rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL, body, f"the VLAN {name}")


def mark(name: str, alias: str) -> rtnetlink.Request:
    """Brings a link up that has no IPv6 address of its own, with an alias (ip-link(8)) that says whose it is."""
    body = (
        _LINK.pack(0, 0, 0, rtnetlink.IFF_UP, rtnetlink.IFF_UP)
        + rtnetlink.text(rtnetlink.IFLA_IFNAME, name)
        + rtnetlink.text(rtnetlink.IFLA_IFALIAS, alias)
        + rtnetlink.no_ipv6_address()
    )
    return rtnetlink.Request(rtnetlink.RTM_NEWLINK, 0, body, f"the link {name}")


def set_down(index: int) -> rtnetlink.Request:
    """The link down."""
    return rtnetlink.Request(rtnetlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, rtnetlink.IFF_UP), f"link {index}")


def rename(index: int, name: str) -> rtnetlink.Request:
    """Another name for a link that is down."""
    return rtnetlink.Request(
        rtnetlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + rtnetlink.text(rtnetlink.IFLA_IFNAME, name), f"the interface {name}"
    )


def lacks_kind(kind: str) -> bool:
    """Whether this kernel, with the modules that lie ready, says that it has no such kind of Ethernet links (``macvlan``, ``vlan``).

    It is asked for one with an address of a single byte, which it refuses whatever the kind: nothing is made.
    """
    info = rtnetlink.attribute(rtnetlink.IFLA_LINKINFO, rtnetlink.text(rtnetlink.IFLA_INFO_KIND, kind))
    body = _LINK.pack(0, 0, 0, 0, 0) + rtnetlink.attribute(rtnetlink.IFLA_ADDRESS, b"\0") + info
    try:
        with RouteSocket() as route:
            route.request(rtnetlink.Request(rtnetlink.RTM_NEWLINK, rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL, body, f"a link {kind}"))
    except OSError as error:
        return error.errno == errno.EOPNOTSUPP
    return False


def namespace_id(route: RouteSocket, netns_fd: int) -> int:
    """A number by which the socket's namespace knows another one as long as that lives, also when no process is left in it; it is given
    one unless it has. Numbers are used again.

    Raises:
        OSError: the kernel refuses.
    """
    what = "the number of the namespace"
    family = bytes(4)  # struct rtgenmsg, padded
    subject = rtnetlink.number(_NETNSA_FD, netns_fd)
    any_number = rtnetlink.number(_NETNSA_NSID, 0xFFFFFFFF)  # -1
    route.request(rtnetlink.Request(_RTM_NEWNSID, 0, family + any_number + subject, what, (errno.EEXIST,)))
    answer = rtnetlink.parse_attributes(route.ask(_RTM_GETNSID, _RTM_NEWNSID, family + subject, what)[4:])
    return int(struct.unpack("=i", answer[_NETNSA_NSID])[0])
