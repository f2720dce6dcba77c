"""The sockets of the worker: a ``Station`` sends and receives in the namespace that probes leave from, a ``Watch`` looks at what arrives in
the one that they are for.

Packets go out through raw sockets with headers of their own (raw(7), IP_HDRINCL): the kernel routes them, finds the next hop and runs them
through the OUTPUT chains, as it does with anything that a program of that namespace sends. Answers come in through raw sockets too, behind
the INPUT chains and with NAT undone, so that an answer is what a program would see. A packet socket would see more than a program does.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from netbox.kernel import route_lookup, rtnetlink
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.socket_filter import attach, destination_ports, identifications

_SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>; SCM_TIMESTAMPNS is the same
_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PROBE = 10, 23, 3  # <linux/in.h>: the link's own MTU counts, not what was learnt of the path
_IPV6_HDRINCL = 36
_BUFFER = 4 << 20
_LARGEST = 1 << 16
_FIRST_PORT, _LAST_PORT = 32768, 60999
_SCTP = 132
_KINDS = {socket.IPPROTO_TCP: socket.SOCK_STREAM, socket.IPPROTO_UDP: socket.SOCK_DGRAM, _SCTP: socket.SOCK_STREAM}
_ETH_P_IP, _ETH_P_IPV6, _ETH_P_ARP = 0x0800, 0x86DD, 0x0806
_PACKET_OUTGOING = 4  # <linux/if_packet.h>
_MOST_FILTERED = 60
_FRAGMENT = 44  # RFC 8200, 4.5
_TRANSPORT = 20  # bytes behind the IP header that are looked at
_HEAD = 60 + _TRANSPORT


class Received(NamedTuple):
    """A packet as it came in. ``time`` is the kernel's, in seconds since the epoch; ``version`` 4 or 6, 0 for an ARP frame."""

    data: bytes
    time: float
    version: int


class Station:
    """A network namespace that probes leave from."""

    def __init__(self, netns_fd: int) -> None:
        self._netns = netns_fd
        self._netlink = self._socket(socket.AF_NETLINK, socket.SOCK_RAW, rtnetlink.NETLINK_ROUTE)
        self._senders: dict[int, socket.socket] = {}
        self._receivers: dict[tuple[int, int], socket.socket] = {}
        self._reserved: dict[tuple[int, int], list[tuple[int, socket.socket | None]]] = {}
        self._used: dict[tuple[int, str, int], int] = {}
        self._links: dict[int, rtnetlink.Link] = {}
        self.identifier = random.randrange(1, 1 << 16)

    def _socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        with inside_netns(self._netns):
            return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)

    # -- what the kernel knows -----------------------------------------------------------------------------------------------------------

    def route(self, address: str, source: str | None = None) -> route_lookup.Route:
        """The route that a packet would take. Raises OSError when there is none."""
        return route_lookup.lookup(address, source, self._netlink)

    def missing_neighbour(self, address: str) -> str | None:
        """The next hop on the way there, if the kernel has asked for its MAC in vain."""
        with contextlib.suppress(OSError):
            route = self.route(address)
            hop = route.gateway or address
            entry = route_lookup.neighbour(hop, route.link, self._netlink) if route.kind == "unicast" else None
            if entry is not None and entry.state in ("incomplete", "failed"):
                return hop
        return None

    def link(self, index: int) -> rtnetlink.Link:
        """A link of the namespace. Raises OSError when there is none with this index."""
        if index not in self._links:
            with inside_netns(self._netns), rtnetlink.RouteSocket() as route:
                self._links = {link.index: link for link in route.links()}
        if index not in self._links:
            raise OSError(19, "no such device", str(index))
        return self._links[index]

    # -- ports ---------------------------------------------------------------------------------------------------------------------------

    def own_port(self, protocol: int, address: str, port: int, wanted: int | None = None) -> int:
        """A source port for a packet to ``port`` of ``address``, another one each time for the same; ``wanted`` if it is free.

        A socket is bound to it and never listens, so that no program of the namespace has it; the kernel answers a SYN-ACK for it with RST.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        index = self._used.get((protocol, address, port), 0)
        self._used[protocol, address, port] = index + 1
        pool = self._reserved.setdefault((family, protocol), [])
        if index == len(pool):
            pool.append(self._reserve(family, protocol, wanted))
            self._refilter(family, protocol)
        return pool[index][0]

    def _reserve(self, family: int, protocol: int, wanted: int | None) -> tuple[int, socket.socket | None]:
        try:
            sock = self._socket(family, _KINDS[protocol], protocol)
        except OSError:  # a kernel without SCTP has nobody to take the port either
            return wanted or random.randrange(_FIRST_PORT, _LAST_PORT), None
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind(("", wanted or 0))
        except OSError:  # it is taken
            sock.bind(("", 0))
        return sock.getsockname()[1], sock

    # -- sending and receiving -------------------------------------------------------------------------------------------------------------

    def listen(self, version: int, protocol: int) -> None:
        """Makes ready for answers of an IP protocol; protocol 0 stands for ARP."""
        key = (version, protocol)
        if key in self._receivers:
            return
        if not protocol:
            sock = self._socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
        elif version == 4:
            sock = self._socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        else:
            sock = self._socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
            for option in (socket.IPV6_RECVHOPLIMIT, socket.IPV6_RECVPKTINFO):
                sock.setsockopt(socket.IPPROTO_IPV6, option, 1)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._receivers[key] = sock
        if protocol in _KINDS:
            self._refilter(socket.AF_INET if version == 4 else socket.AF_INET6, protocol)

    def _refilter(self, family: int, protocol: int) -> None:
        """Leaves the traffic of other programs in the kernel: on a busy host it would be much."""
        version = 4 if family == socket.AF_INET else 6
        receiver = self._receivers.get((version, protocol))
        ports = [port for port, _ in self._reserved.get((family, protocol), [])]
        if receiver is not None and 0 < len(ports) <= _MOST_FILTERED:
            attach(receiver, destination_ports(ports, version))
        elif receiver is not None and len(ports) == _MOST_FILTERED + 1:
            attach(receiver, None)

    def send(self, data: bytes, address: str, index: int = 0) -> None:
        """Sends a whole IP packet. Raises OSError with the kernel's reason."""
        if ":" in address:
            self._sender(socket.AF_INET6).sendto(data, (address, 0, 0, index))
        else:
            self._sender(socket.AF_INET).sendto(data, (address, 0))

    def _sender(self, family: int) -> socket.socket:
        if family not in self._senders:
            sock = self._socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PROBE)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            self._senders[family] = sock
        return self._senders[family]

    def connection(self, address: str, port: int, source: str | None, ttl: int | None) -> socket.socket:
        """A TCP connection that the kernel is about to make. Raises OSError when it cannot even try."""
        ipv6 = ":" in address
        sock = self._socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        try:
            if ttl is not None:
                level, option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if ipv6 else (socket.IPPROTO_IP, socket.IP_TTL)
                sock.setsockopt(level, option, ttl)
            if source is not None:
                sock.bind((source, 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def send_frame(self, frame: bytes, index: int) -> None:
        """Sends a whole Ethernet frame by a link. Raises OSError."""
        with self._socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.sendto(frame, (self.link(index).name, 0))

    def sockets(self) -> list[socket.socket]:
        """Those on which answers arrive."""
        return list(self._receivers.values())

    def received(self) -> Iterator[Received]:
        """What has come in and was not read yet."""
        for (version, protocol), sock in self._receivers.items():
            while True:
                try:
                    data, ancillary, _, sender = sock.recvmsg(_LARGEST, 256)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an error of an earlier packet that the kernel reports on the socket: the ICMP packet itself tells more
                if not protocol:
                    if sender[2] != _PACKET_OUTGOING:
                        yield Received(data, _time(ancillary), 0)
                elif version == 4:
                    yield Received(data, _time(ancillary), 4)
                else:
                    yield Received(_ipv6_header(data, protocol, sender[0], ancillary) + data, _time(ancillary), 6)


def _time(ancillary: list[tuple[int, int, bytes]]) -> float:
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("=qq", value[:16])
            return float(seconds + nanoseconds / 1e9)
    return 0.0


def _ipv6_header(data: bytes, protocol: int, sender: str, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The header that a raw socket of IPv6 does not hand over (ipv6(7)): put together from what it says besides."""
    hop_limit, own = 0, bytes(16)
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_HOPLIMIT:
            (hop_limit,) = struct.unpack("=i", value[:4])
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            own = value[:16]
    source = socket.inet_pton(socket.AF_INET6, sender.partition("%")[0])
    return struct.pack("!IHBB", 6 << 28, len(data), protocol, hop_limit) + source + own


class Watch:
    """Notes which packets of ours arrive in a namespace, before any firewall of it. The kernel chooses them by IP id, or by flow label for
    IPv6, which packets of others have as well.
    """

    def __init__(self, netns_fd: int, first: int, count: int) -> None:
        self.netns = netns_fd
        self._seen: set[tuple[int, ...]] = set()
        self._sockets: list[socket.socket] = []
        for version, ethertype in ((4, _ETH_P_IP), (6, _ETH_P_IPV6)):
            with inside_netns(netns_fd):
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(ethertype))
            attach(sock, identifications(first, count, version))  # what came in before it is one more packet, and does no harm
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._sockets.append(sock)

    def read(self) -> None:
        """Takes in what has arrived. On a busy host there is not room for much."""
        for sock in self._sockets:
            while True:
                try:
                    self._seen.add(lasting(sock.recv(_HEAD)))
                except BlockingIOError:
                    break
                except IndexError:
                    continue  # it is too short to be one of ours

    def has_seen(self, packet: bytes) -> bool:
        """Whether this IP packet has arrived."""
        self.read()
        return lasting(packet) in self._seen


def lasting(packet: bytes) -> tuple[int, ...]:
    """What tells an IP packet from others and no address translation changes. Pure. Raises IndexError for one that is too short."""
    if packet[0] >> 4 == 4:
        number, protocol, start, end = packet[4] << 8 | packet[5], packet[9], (packet[0] & 15) * 4, packet[2] << 8 | packet[3]
    else:
        number, protocol, start, end = int.from_bytes(packet[1:4], "big") & 0xFFFFF, packet[6], 40, 40 + (packet[4] << 8 | packet[5])
        if protocol == _FRAGMENT:
            protocol, start = packet[40], 48
    body = packet[start : min(start + _TRANSPORT, end)]  # behind the end there may be padding
    kept = {
        socket.IPPROTO_TCP: body[4:8],  # the sequence number
        socket.IPPROTO_UDP: body[4:6] + body[8:],  # length, data
        _SCTP: body[12:20],  # the first chunk's head, with its tag
    }.get(protocol, body[:1] + body[6:])  # ICMP: type, sequence, data
    return packet[0] >> 4, number, protocol, int.from_bytes(kept, "big")
