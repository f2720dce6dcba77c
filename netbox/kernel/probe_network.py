"""The probes of links, queueing disciplines and netfilter, in network namespaces that end with the child (see ``probe``)."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from netbox.kernel import namespaces, rtnetlink, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netbox.kernel.probe import Group

_RTM_NEWQDISC = 36  # <linux/rtnetlink.h>
_TC_H_ROOT = 0xFFFFFFFF  # <linux/pkt_sched.h>
_TCA_KIND = 1
_CREATE = rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL

# getsockopt of ip_tables, <linux/netfilter_ipv4/ip_tables.h>; ip6_tables has 68 and 69 for the last two.
_IPT_SO_GET_INFO, _IPT_SO_GET_REVISION_MATCH, _IPT_SO_GET_REVISION_TARGET = 64, 66, 67
_TABLE_INFO_SIZE = 84  # struct ipt_getinfo
_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_CTNETLINK, _NFNL_SUBSYS_ULOG, _NFNL_SUBSYS_NFTABLES = 1, 4, 10  # <linux/netfilter/nfnetlink.h>
_IPCTNL_MSG_CT_GET_STATS = 5
_NFT_MSG_GETGEN = 16
_NFULNL_MSG_CONFIG, _NFULA_CFG_CMD, _NFULNL_CFG_CMD_BIND = 1, 1, 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_WAIT = 2.0  # seconds for an answer of the kernel, which comes at once


def links(group: Group) -> None:
    """Kinds of links, the queueing disciplines on them, packet sockets."""
    syscalls.unshare(namespaces.CLONE_NEWNET)
    group.probe("network.packet_socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(), "af_packet")
    with rtnetlink.RouteSocket() as route:
        group.probe("network.bridge", lambda: route.request(_new_link("bridge", "bridge0")), "bridge")
        group.probe("network.veth", lambda: _veth(route), "veth")
        for kind in ("macvlan", "vlan"):
            group.probe(f"network.{kind}", lambda kind=kind: _upper(route, kind), "8021q" if kind == "vlan" else kind)  # type: ignore[misc]
        for kind in ("tbf", "htb", "netem"):
            group.probe(f"network.{kind}", lambda kind=kind: _qdisc(route, kind), f"sch_{kind}")  # type: ignore[misc]


def _new_link(kind: str, name: str, data: bytes = b"") -> rtnetlink.Request:
    information = rtnetlink.text(rtnetlink.IFLA_INFO_KIND, kind)
    if data:
        information += rtnetlink.attribute(rtnetlink.IFLA_INFO_DATA, data)
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + rtnetlink.text(rtnetlink.IFLA_IFNAME, name)
    return rtnetlink.Request(rtnetlink.RTM_NEWLINK, _CREATE, body + rtnetlink.attribute(rtnetlink.IFLA_LINKINFO, information), kind)


def _veth(route: rtnetlink.RouteSocket) -> None:
    """Makes a pair and hangs one end into the bridge, if there is one."""
    peer = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + rtnetlink.text(rtnetlink.IFLA_IFNAME, "veth1")
    route.request(_new_link("veth", "veth0", rtnetlink.attribute(rtnetlink.VETH_INFO_PEER, peer)))
    bridge = route.link("bridge0")
    if bridge is not None:
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + rtnetlink.text(rtnetlink.IFLA_IFNAME, "veth0")
        master = rtnetlink.number(rtnetlink.IFLA_MASTER, bridge.index)
        route.request(rtnetlink.Request(rtnetlink.RTM_NEWLINK, 0, body + master, "bridge port"))


def _upper(route: rtnetlink.RouteSocket, kind: str) -> None:
    """Makes a link on the end of the pair that is not in the bridge; a VLAN needs a number."""
    lower = route.link("veth1")
    if lower is None:
        raise OSError(errno.ENODEV, "could not be tried without veth")
    data = rtnetlink.attribute(1, struct.pack("=H", 2)) if kind == "vlan" else b""  # IFLA_VLAN_ID
    request = _new_link(kind, f"{kind}0", data)
    route.request(request._replace(body=request.body + rtnetlink.number(rtnetlink.IFLA_LINK, lower.index)))


def _qdisc(route: rtnetlink.RouteSocket, kind: str) -> None:
    """Asks for the discipline on lo without its parameters: EINVAL means that the kernel has it and misses those."""
    body = struct.pack("=BxxxiIII", 0, rtnetlink.LOOPBACK_INDEX, 0, _TC_H_ROOT, 0) + rtnetlink.text(_TCA_KIND, kind)
    try:
        route.request(rtnetlink.Request(_RTM_NEWQDISC, _CREATE, body, kind))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def firewall(group: Group) -> None:
    """Legacy tables with the extensions that the rules use, nf_tables, connection tracking, the log of packets."""
    syscalls.unshare(namespaces.CLONE_NEWNET)
    for table in ("filter", "nat", "raw"):
        group.probe(f"firewall.{table}", lambda table=table: _table(socket.AF_INET, table), "ip_tables", f"iptable_{table}")  # type: ignore[misc]
    group.probe("firewall.ip6_filter", lambda: _table(socket.AF_INET6, "filter"), "ip6_tables", "ip6table_filter")
    for name in ("MASQUERADE", "DNAT", "TRACE", "NFLOG"):
        module = "xt_nat" if name == "DNAT" else f"xt_{name}"
        group.probe(f"firewall.{name}", lambda name=name: _extension(name, _IPT_SO_GET_REVISION_TARGET), "ip_tables", module)  # type: ignore[misc]
    for name in ("tcp", "udp", "addrtype", "conntrack", "comment", "statistic"):
        module = "xt_tcpudp" if name in ("tcp", "udp") else f"xt_{name}"
        group.probe(f"firewall.{name}", lambda name=name: _extension(name, _IPT_SO_GET_REVISION_MATCH), "ip_tables", module)  # type: ignore[misc]
    tracking = _netfilter_request(_NFNL_SUBSYS_CTNETLINK, _IPCTNL_MSG_CT_GET_STATS, rtnetlink.NLM_F_ACK)
    group.probe("firewall.ctnetlink", lambda: _ask(tracking), "nf_conntrack", "nf_conntrack_netlink")
    group.probe("firewall.nf_tables", lambda: _ask(_netfilter_request(_NFNL_SUBSYS_NFTABLES, _NFT_MSG_GETGEN, 0)), "nf_tables")
    command = rtnetlink.attribute(_NFULA_CFG_CMD, struct.pack("=B", _NFULNL_CFG_CMD_BIND))
    listening = _netfilter_request(_NFNL_SUBSYS_ULOG, _NFULNL_MSG_CONFIG, rtnetlink.NLM_F_ACK, command)
    group.probe("firewall.nfnetlink_log", lambda: _ask(listening), "nfnetlink_log")


def _table(family: int, table: str) -> None:
    level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        _get_option(sock, level, _IPT_SO_GET_INFO, table.encode().ljust(_TABLE_INFO_SIZE, b"\0"))


def _extension(name: str, option: int) -> None:
    """Asks for revision 0 (struct xt_get_revision): EPROTONOSUPPORT means that the kernel has other revisions of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        try:
            _get_option(sock, socket.IPPROTO_IP, option, name.encode().ljust(29, b"\0") + b"\0")
        except OSError as error:
            if error.errno != errno.EPROTONOSUPPORT:
                raise


def _get_option(sock: socket.socket, level: int, option: int, value: bytes) -> None:
    """getsockopt(2) with a value to read and to write, which Python's own does not have."""
    buffer = ctypes.create_string_buffer(value, len(value))
    length = ctypes.c_uint(len(value))
    if _LIBC.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _netfilter_request(subsystem: int, message: int, flags: int, attributes: bytes = b"") -> bytes:
    """A message of nfnetlink for the group or table 0 (<linux/netfilter/nfnetlink.h>)."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), subsystem << 8 | message, flags | rtnetlink.NLM_F_REQUEST, 1, 0) + body


def _ask(message: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_WAIT)
        sock.send(message)
        answer = sock.recv(1 << 16)
    kind, code = struct.unpack_from("=4xH10xi", answer)
    if kind == rtnetlink.NLMSG_ERROR and code:
        raise OSError(-code, os.strerror(-code))
