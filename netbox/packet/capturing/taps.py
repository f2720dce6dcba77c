"""A tap: one ring, on a whole network namespace or on one device of the host, and the interfaces that its packets belong to."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence

from netbox.errors import host_error
from netbox.kernel import packet_ring
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.packet_ring import PacketRing
from netbox.kernel.rtnetlink import LOOPBACK_INDEX, Link, RouteSocket
from netbox.packet.capturing import pcapng
from netbox.packet.capturing.pcapng import LINKTYPE_ETHERNET, LINKTYPE_RAW, Statistics
from netbox.packet.capturing.values import Interface, Packet, Way

_RECEIVE_DROPS = 6  # in struct rtnl_link_stats64
_GONE = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN)
_LINK_TYPES = {
    packet_ring.ARPHRD_ETHER: LINKTYPE_ETHERNET,
    packet_ring.ARPHRD_LOOPBACK: LINKTYPE_ETHERNET,
    packet_ring.ARPHRD_NONE: LINKTYPE_RAW,
}

_FLAGS = {
    packet_ring.HOST: pcapng.INBOUND | pcapng.UNICAST << 2,
    packet_ring.BROADCAST: pcapng.INBOUND | pcapng.BROADCAST << 2,
    packet_ring.MULTICAST: pcapng.INBOUND | pcapng.MULTICAST << 2,
    packet_ring.OTHER_HOST: pcapng.INBOUND | pcapng.PROMISCUOUS << 2,
    packet_ring.OUTGOING: pcapng.OUTBOUND,
}

Named = tuple[str, str]
"""Name and description of an interface in the capture."""
Label = Callable[[str], Named | None]
"""What an interface of the kernel's name is called; ``None`` for one that is not recorded."""
Add = Callable[[Named, int], Interface]
"""Adds an interface with its link type to the capture."""


class _Ways(dict[int, Way | None]):
    """What a ring asks for each packet: the way that belongs to its place, looked up once."""

    def __init__(self, find: Callable[[int], Way | None]) -> None:
        self._find = find

    def __missing__(self, place: int) -> Way | None:
        return self._find(place)


class Tap:
    """``users`` are the sandboxes that it is for, by number: it ends with the last. ``device`` is empty for a whole namespace."""

    def __init__(self, ring: PacketRing, route: RouteSocket, label: Label, add: Add, device: str = "") -> None:
        self.ring = ring
        self._add = add
        self._ways = _Ways(self._way)
        self.users: set[int] = set()
        self._route = route
        self._label = label
        self._device = device
        self._began = time.time_ns()
        self._interfaces: dict[int, Interface | None] = {}
        self._refused: dict[int, int] = {}

    @classmethod
    def on_namespace(cls, netns: int, program: bytes, size: int, label: Label, add: Add) -> Tap:
        """Hears every interface of a namespace, those that come later too.

        Raises:
            HostError: the kernel refuses.
        """
        try:
            with inside_netns(netns):
                ring, route = PacketRing(0, program, size), RouteSocket()
        except OSError as error:
            raise host_error("record packets in", "the network namespace", error) from error
        return cls(ring, route, label, add)

    @classmethod
    def on_device(cls, name: str, program: bytes, size: int, named: Named, add: Add) -> Tap | None:
        """Hears one device of the calling thread's namespace; ``None`` when there is no such device.

        Raises:
            HostError: the kernel refuses.
        """
        route = RouteSocket()
        try:
            link = route.link(name)
            ring = PacketRing(link.index, program, size) if link is not None else None
        except OSError as error:
            route.close()
            if error.errno in _GONE:
                return None
            raise host_error("record packets on", name, error) from error
        if ring is None:
            route.close()
            return None
        return cls(ring, route, lambda _: named, add, name)

    def read(self, found: list[Packet]) -> None:
        """Appends the packets that are there."""
        self.ring.read(self._ways, found)

    def read_rest(self, found: list[Packet]) -> None:
        """Appends all packets that are there; no more come."""
        self.ring.stop()
        self.ring.read_rest(self._ways, found)

    def _way(self, place: int) -> Way | None:
        """That of the packets of a place; ``None``: they are not recorded."""
        ifindex, hardware, kind = packet_ring.place_parts(place)
        if kind == packet_ring.OUTGOING and ifindex == LOOPBACK_INDEX:
            self._ways[place] = None  # what passes lo is seen again on its way in
            return None
        if ifindex not in self._interfaces:
            link = next((link for link in self._links() if link.index == ifindex), None)
            if link is None:
                return None  # it is gone already; an index is not used again soon
            self._learn(link, hardware)
        interface = self._interfaces[ifindex]
        way = self._ways[place] = Way(interface.number, _FLAGS.get(kind, 0), interface) if interface is not None else None
        return way

    def announce(self) -> None:
        """Adds the interfaces that are there already, so that the file has them before their first packet."""
        for link in self._links():
            if link.index not in self._interfaces and (link.is_up or self._device):
                self._learn(link, link.type)

    def interfaces(self) -> list[Interface]:
        """Those that are recorded."""
        return [interface for interface in self._interfaces.values() if interface is not None]

    def statistics(self, packets: Mapping[int, int]) -> list[tuple[Interface, Statistics]]:
        """The counters of each interface; ``packets`` is how many each has had, by its number.

        What the ring lost is said with the first: it is not known whose it was.
        """
        now = time.time_ns()
        _, lost = self.ring.counters()
        refused = {link.index: link.traffic[_RECEIVE_DROPS] for link in self._links()}
        result = []
        for ifindex, interface in self._interfaces.items():
            if interface is not None:
                more = max(0, refused.get(ifindex, 0) - self._refused[ifindex])
                result.append((interface, Statistics(self._began, now, packets.get(interface.number, 0) + lost, lost, more)))
                lost = 0
        return result

    def is_gone(self) -> bool:
        """Whether its device is no more."""
        return bool(self._device) and not self._links()

    def close(self) -> None:
        """Lets go of the namespace."""
        self.ring.close()
        self._route.close()

    def _learn(self, link: Link, hardware: int) -> None:
        link_type = _LINK_TYPES.get(hardware)
        named = self._label(link.name) if link_type is not None else None
        self._interfaces[link.index] = None
        if named is not None and link_type is not None:
            self._interfaces[link.index] = self._add(named, link_type)
            self._refused[link.index] = link.traffic[_RECEIVE_DROPS]

    def _links(self) -> Sequence[Link]:
        try:
            if not self._device:
                return self._route.links()
            link = self._route.link(self._device)
        except OSError:
            return []
        return [link] if link is not None else []
