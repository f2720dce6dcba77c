"""rtnetlink with the standard library alone: what the start of a sandbox asks the kernel for, encoded by hand.

A request is a value made by one of the functions below; ``RouteSocket.request`` sends any number of them in one datagram, and the kernel
works them off in order. Sources: rtnetlink(7), netlink(7), ``<linux/rtnetlink.h>``, ``<linux/if_link.h>``, ``<linux/veth.h>``. Addresses
are strings, MTUs bytes, MACs six bytes as ``02:6e:0a:d2:00:02``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NamedTuple

    class Request(NamedTuple):
        """One message to the kernel, and how an error message names it."""

        kind: int
        flags: int
        body: bytes
        subject: str
        tolerated: tuple[int, ...] = ()

    Attributes = dict[int, bytes]
else:
    from collections import namedtuple

    Request = namedtuple("Request", "kind flags body subject tolerated", defaults=((),))

NETLINK_ROUTE, SOL_NETLINK = 0, 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK = 10, 11

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_CAPPED, NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG = 0x100, 0x200, 1

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEIGH = 24, 26, 28

IFF_UP, IFF_RUNNING = 0x1, 0x40
ARPHRD_ETHER = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
IFLA_IFALIAS, IFLA_STATS64, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_TARGET_NETNSID = 20, 23, 26, 28, 46
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_STATE, IFLA_BRPORT_MODE, BR_STATE_FORWARDING = 1, 4, 3
VETH_INFO_PEER = 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD, IFA_F_TENTATIVE = 0x02, 0x40
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
RT_TABLE_MAIN, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST, RTN_LOCAL = 254, 255, 3, 0, 253, 1, 2
NDA_DST, NDA_LLADDR, NUD_STALE = 1, 2, 0x04

LOOPBACK_METRIC = 1024
LOOPBACK_INDEX = 1  # always, <linux/net/loopback.c> registers it first

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_RECEIVE_BUFFER = 1 << 18
DUMPS_MAX = 4  # a host on which something changes all the time is taken as it is then
_BITS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute that holds 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def mac_bytes(mac: str) -> bytes:
    """``02:6e:…`` as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def packed(address: str) -> tuple[int, bytes]:
    """An address's family and bytes."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def parse_attributes(data: bytes) -> Attributes:
    """The attributes of a message's tail, or inside another attribute. A kind that comes twice keeps its last value."""
    found: Attributes = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


# -- requests ------------------------------------------------------------------------------------------------------------------------------


def add_veth(name: str, peer: str, *, netns_fd: int, mtu: int, peer_mac: str, master: int) -> Request:
    """A veth pair in one request: the host's end is up and a port of the bridge ``master``, its peer lies in the namespace ``netns_fd``,
    down.
    """
    peer_part = (
        _LINK.pack(0, 0, 0, 0, 0)
        + text(IFLA_IFNAME, peer)
        + number(IFLA_MTU, mtu)
        + attribute(IFLA_ADDRESS, mac_bytes(peer_mac))
        + number(IFLA_NET_NS_FD, netns_fd)
    )
    info = attribute(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer_part)))
    body = _LINK.pack(0, 0, 0, IFF_UP, IFF_UP) + text(IFLA_IFNAME, name) + number(IFLA_MTU, mtu) + number(IFLA_MASTER, master) + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"the veth pair {name}")


def configure_port(name: str) -> Request:
    """Makes a bridge port ready for sandboxes: hairpin mode, so that a sandbox reaches itself by a published port
    (``bridge-nf-call-iptables`` rewrites such a frame inside the bridge, which never sends it back to where it came from otherwise), and
    no IPv6 address of its own.
    """
    slave = text(IFLA_INFO_SLAVE_KIND, "bridge") + attribute(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, b"\x01"))
    body = _LINK.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + attribute(IFLA_LINKINFO, slave) + no_ipv6_address()
    return Request(RTM_NEWLINK, 0, body, f"the bridge port {name}")


def add_bridge(name: str, mac: str, mtu: int) -> Request:
    """A bridge, down. Its MAC is set, so that it does not change with its ports. One that is there already is fine."""
    body = (
        _LINK.pack(0, 0, 0, 0, 0)
        + text(IFLA_IFNAME, name)
        + number(IFLA_MTU, mtu)
        + attribute(IFLA_ADDRESS, mac_bytes(mac))
        + attribute(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"))
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"the bridge {name}", (errno.EEXIST,))


def set_up(index: int) -> Request:
    """The link up."""
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, IFF_UP, IFF_UP), f"link {index}")


def set_mac(index: int, mac: str) -> Request:
    """The link's MAC, also while it is up."""
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + attribute(IFLA_ADDRESS, mac_bytes(mac)), f"the MAC {mac}")


def delete_link(name: str, netnsid: int | None = None) -> Request:
    """The link away. One that is not there is fine. ``netnsid`` is as for ``RouteSocket.link``."""
    body = _LINK.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + _target(netnsid)
    return Request(RTM_DELLINK, 0, body, f"the link {name}", (errno.ENODEV,) if netnsid is None else (errno.ENODEV, errno.EINVAL))


def add_address(index: int, address: str, prefix_length: int) -> Request:
    """An address: IPv4 with its broadcast address, IPv6 without duplicate address detection. One that is there already is fine."""
    family, value = packed(address)
    flags = IFA_F_NODAD if family == socket.AF_INET6 else 0
    body = _ADDRESS.pack(family, prefix_length, flags, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, value) + attribute(IFA_ADDRESS, value)
    if family == socket.AF_INET:
        body += attribute(IFA_BROADCAST, struct.pack("!I", struct.unpack("!I", value)[0] | (0xFFFFFFFF >> prefix_length)))
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"the address {address}/{prefix_length}", (errno.EEXIST,))


def add_default_route(index: int, gateway: str) -> Request:
    """The default route of the gateway's family."""
    family, value = packed(gateway)
    body = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    body += attribute(RTA_GATEWAY, value) + number(RTA_OIF, index)
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, f"the default route by {gateway}")


def replace_default_route(index: int, gateway: str) -> Request:
    """The default route of the gateway's family, in place of another one: there is no moment without."""
    return add_default_route(index, gateway)._replace(flags=NLM_F_CREATE | NLM_F_REPLACE)


def add_loopback_route(index: int) -> Request:
    """Lets answers to ::1 come in by a link, when connection tracking has made ::1 of their destination: the kernel looks for a route to
    ::1 on the link that a packet came by. A packet that comes with ::1 from a wire is dropped before (net/ipv6/ip6_input.c). Behind the
    route by lo in order, so that nothing else changes; every link has a metric of its own, because two routes cannot share one. One that
    is there already is fine.
    """
    family, value = packed("::1")
    body = _ROUTE.pack(family, 128, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_LOCAL, 0)
    body += attribute(RTA_DST, value) + number(RTA_OIF, index) + number(RTA_PRIORITY, LOOPBACK_METRIC + index)
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, "the route to ::1", (errno.EEXIST,))


def set_neighbour(index: int, address: str, mac: str) -> Request:
    """Tells the kernel a neighbour's MAC, so that the first packet need not wait for ARP or neighbour discovery. Stale: it is used at once
    and verified soon.
    """
    family, value = packed(address)
    body = _NEIGHBOUR.pack(family, index, NUD_STALE, 0, 0) + attribute(NDA_DST, value) + attribute(NDA_LLADDR, mac_bytes(mac))
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"the neighbour {address}")


def _target(netnsid: int | None) -> bytes:
    return b"" if netnsid is None else number(IFLA_TARGET_NETNSID, netnsid)


def no_ipv6_address() -> bytes:
    """An attribute of a link: it makes no IPv6 address for itself."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, struct.pack("=B", IN6_ADDR_GEN_MODE_NONE))
    return attribute(IFLA_AF_SPEC, attribute(socket.AF_INET6, mode))


# -- answers -------------------------------------------------------------------------------------------------------------------------------


class Link:
    """A network device. ``kind`` is veth, bridge, … or empty, ``type`` that of its hardware (``ARPHRD_ETHER``, netdevice(7)); ``traffic``
    the counters of ``struct rtnl_link_stats64``, in its order; ``port_state`` that of a bridge's port (``BR_STATE_FORWARDING``).
    """

    def __init__(self, body: bytes) -> None:
        self.index: int
        self.flags: int
        self.type: int
        _, self.type, self.index, self.flags, _ = _LINK.unpack_from(body)
        attributes = parse_attributes(body[_LINK.size :])
        self.name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        self.mtu: int = _number(attributes, IFLA_MTU)
        self.mac = attributes.get(IFLA_ADDRESS, b"").hex(":")
        self.master: int = _number(attributes, IFLA_MASTER)
        self.alias = attributes.get(IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")
        info = parse_attributes(attributes.get(IFLA_LINKINFO, b""))
        self.kind = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
        port = parse_attributes(info.get(IFLA_INFO_SLAVE_DATA, b"")).get(IFLA_BRPORT_STATE, b"\0")
        self.port_state = port[0]
        counters = attributes.get(IFLA_STATS64, b"")
        self.traffic: tuple[int, ...] = struct.unpack_from("=8Q", counters) if len(counters) >= 64 else (0,) * 8

    @property
    def is_running(self) -> bool:
        """Whether the kernel has taken note of its carrier: what is sent before is lost."""
        return bool(self.flags & IFF_RUNNING)

    @property
    def is_up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


class Prefix:
    """A route's destination or an address of a link: a number and a prefix length, the link's index, the gateway ("" without), metric and
    table, and the length of an address in bits: 32 for IPv4, 128 for IPv6.
    """

    def __init__(self, network: int, length: int, index: int, gateway: str = "", metric: int = 0, table: int = 0, bits: int = 32) -> None:
        self.network, self.length, self.index, self.gateway, self.metric, self.table = network, length, index, gateway, metric, table
        self.bits = bits

    def __str__(self) -> str:
        return f"{_written(self.network.to_bytes(self.bits // 8, 'big'))}/{self.length}"


def _number(attributes: Attributes, kind: int) -> int:
    value = attributes.get(kind, b"")
    return int(struct.unpack("=I", value)[0]) if len(value) == 4 else 0


def _written(value: bytes) -> str:
    """Four or sixteen bytes as an address, others as nothing."""
    family = {4: socket.AF_INET, 16: socket.AF_INET6}.get(len(value))
    return socket.inet_ntop(family, value) if family is not None else ""


class RouteSocket:
    """A netlink socket of the route family, in the calling thread's network namespace unless ``sock`` was opened in another one."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._socket = sock if sock is not None else open_socket()
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def request(self, *requests: Request) -> None:
        """Sends requests in one datagram and waits for every acknowledgement. The kernel goes on after one that failed.

        Raises:
            OSError: the first request that failed; ``filename`` says what it was about, ``strerror`` has the kernel's own words where it
            gave some.
        """
        first = self._sequence + 1
        datagram = b"".join(self._message(item.kind, item.flags | NLM_F_ACK, item.body) for item in requests)
        self._socket.send(datagram)
        failure: OSError | None = None
        missing = len(requests)
        while missing:
            for kind, flags, sequence, body in _messages(self._socket.recv(_RECEIVE_BUFFER)):
                if kind != NLMSG_ERROR or not first <= sequence <= self._sequence:
                    continue
                missing -= 1
                code = -struct.unpack_from("=i", body)[0]
                item = requests[sequence - first]
                if code and code not in item.tolerated and failure is None:
                    failure = OSError(code, _explanation(flags, body) or os.strerror(code), item.subject)
        if failure is not None:
            raise failure

    def link(self, name: str, netnsid: int | None = None) -> Link | None:
        """The link of this name; with ``netnsid``, a number of ``sublinks.namespace_id``, in another namespace. In one that has gone
        there is none.

        Raises:
            OSError: the kernel refuses the question.
        """
        try:
            return Link(self.ask(RTM_GETLINK, RTM_NEWLINK, _LINK.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + _target(netnsid), name))
        except OSError as error:
            if error.errno == errno.ENODEV or (netnsid is not None and error.errno == errno.EINVAL):  # EINVAL: nothing has this number
                return None
            raise

    def ask(self, kind: int, answer: int, body: bytes, subject: str) -> bytes:
        """Sends one question and returns the body of its answer, a message of the kind ``answer``.

        Raises:
            OSError: the kernel refuses the question; ``filename`` is ``subject``.
        """
        self._socket.send(self._message(kind, 0, body))
        while True:
            for found, _, sequence, payload in _messages(self._socket.recv(_RECEIVE_BUFFER)):
                if sequence != self._sequence:
                    continue
                if found == answer:
                    return payload
                code = -struct.unpack_from("=i", payload)[0]
                raise OSError(code, os.strerror(code), subject)

    def links(self) -> list[Link]:
        """Every link of the namespace."""
        return [Link(body) for body in self._dump(RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0))]

    def addresses(self, family: int = socket.AF_INET) -> list[Prefix]:
        """Every address of a family, with the length of its network."""
        found = []
        for body in self._dump(RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0)):
            its_family, length, _, _, index = _ADDRESS.unpack_from(body)
            attributes = parse_attributes(body[_ADDRESS.size :])
            if its_family == family:
                value = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS, b"")
                found.append(Prefix(int.from_bytes(value, "big"), length, index, bits=_BITS[family]))
        return found

    def is_usable(self, index: int, address: str) -> bool:
        """Whether a link has the IPv6 address, its link-local one, and all its others for use: the kernel checks them off one by one in a
        work queue, also where nothing is to be checked.
        """
        found: dict[bytes, int] = {}
        for body in self._dump(RTM_GETADDR, _ADDRESS.pack(socket.AF_INET6, 0, 0, 0, 0)):
            _, _, flags, _, its_index = _ADDRESS.unpack_from(body)
            if its_index == index:
                found[parse_attributes(body[_ADDRESS.size :]).get(IFA_ADDRESS, b"")] = flags
        local = any(value.startswith(b"\xfe\x80") for value in found)
        return packed(address)[1] in found and local and not any(flags & IFA_F_TENTATIVE for flags in found.values())

    def routes(self, family: int = socket.AF_INET) -> list[Prefix]:
        """Every route of a family, in every table."""
        found = []
        for body in self._dump(RTM_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            its_family, length, _, _, table, *_ = _ROUTE.unpack_from(body)
            attributes = parse_attributes(body[_ROUTE.size :])
            if its_family == family:
                destination = int.from_bytes(attributes.get(RTA_DST, b""), "big")
                index, metric = _number(attributes, RTA_OIF), _number(attributes, RTA_PRIORITY)
                gateway, table = _written(attributes.get(RTA_GATEWAY, b"")), _number(attributes, RTA_TABLE) or table
                found.append(Prefix(destination, length, index, gateway, metric, table, _BITS[family]))
        return found

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        """Everything of a kind; asked for anew when it has changed meanwhile, for then something that stands may have been left out."""
        for _ in range(DUMPS_MAX):
            *answers, end = self._dumped(kind, body)
            if not any(flags & NLM_F_DUMP_INTR for _, flags in (*answers, end)):
                break
        return [payload for payload, _ in answers]

    def _dumped(self, kind: int, body: bytes) -> Iterator[tuple[bytes, int]]:
        """The answers of one dump and its end, with their flags."""
        self._socket.send(self._message(kind, NLM_F_DUMP, body))
        while True:
            for answer, flags, sequence, payload in _messages(self._socket.recv(_RECEIVE_BUFFER)):
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    raise OSError(code, os.strerror(code), "netlink dump")
                yield payload, flags
                if answer == NLMSG_DONE:
                    return

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0) + body


def open_socket() -> socket.socket:
    """A netlink socket of the route family in the calling thread's network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _explanation(flags: int, body: bytes) -> str:
    """The kernel's own words in an acknowledgement (NETLINK_EXT_ACK); empty when there are none."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # struct nlmsgerr: the error, then the request's header; its body follows unless the acknowledgement is capped.
    offset = 4 + _HEADER.size
    if not flags & NLM_F_CAPPED:
        offset += struct.unpack_from("=I", body, 4)[0] - _HEADER.size
    return parse_attributes(body[offset:]).get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
