"""Packet events that tell neither headers nor namespace (tracefs): whose they are, found by devices and lengths. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netbox.kernel.packet_event import CONSUME, DELIVER, DROP, TRANSMIT, PacketEvent
from netbox.packet.tracing.assemble import Surroundings
from netbox.packet.tracing.hooks import Passage
from netbox.packet.tracing.values import REQUEST

_ETHERNET = 14  # bytes in front of the packet, which net_dev_queue counts
_REMEMBERED = 8192


class Locator:
    """Where each packet is: what leaves by a device of the host that leads to a sandbox arrives there, and the other way round."""

    def __init__(self, around: Surroundings, host: int, home: int | None = None) -> None:
        self._around = around
        self._host = host
        self._home = home
        self._where: dict[int, tuple[int, str]] = {}

    def netns(self, event: PacketEvent) -> int:
        """The namespace that an event is in; 0 where it cannot be told."""
        before, device = self._where.get(event.skb, (0, ""))
        on_host = event.device in self._around.peers or (self._host, event.device) in self._around.bridges
        if event.kind == DELIVER and before == self._host and device in self._around.peers and not on_host:
            found = self._around.peers[device]
        elif event.kind in (TRANSMIT, DELIVER) and on_host:
            found = self._host
        else:
            found = before or self._home or 0
        self._where[event.skb] = found, event.device
        if len(self._where) > _REMEMBERED:
            self._where.pop(next(iter(self._where)))
        return found


def followed(events: Iterable[PacketEvent], passages: Sequence[Passage], around: Surroundings, host: int) -> list[PacketEvent]:
    """The events of the request: of the packet that left by the device and with the length that the firewall saw, and then came by a device
    of a sandbox on the host: other namespaces have an eth0 too.
    """
    sent = next((passage for passage in passages if passage.role == REQUEST and passage.hook == "postrouting"), None)
    if sent is None or sent.header is None or not around.order:
        return []
    lengths = (sent.header.length, sent.header.length + _ETHERNET)
    ways = _ways(events, sent.out_device, lengths)
    chosen = next((way for way in ways if any(event.device in around.peers for event in way)), ways[0] if ways else [])
    locator = Locator(around, host, around.order[0])
    return [event._replace(netns=locator.netns(event)) for event in chosen]


def _ways(events: Iterable[PacketEvent], device: str, lengths: Sequence[int]) -> list[list[PacketEvent]]:
    """The ways of all packets that were sent by the device with one of the lengths, each to its end."""
    open_ways: dict[int, list[PacketEvent]] = {}
    found = []
    for event in sorted(events, key=lambda event: event.time):
        way = open_ways.get(event.skb)
        if way is None and event.kind == TRANSMIT and event.device == device and event.length in lengths:
            way = open_ways[event.skb] = []
            found.append(way)
        if way is not None:
            way.append(event)
            if event.kind in (DROP, CONSUME):
                del open_ways[event.skb]  # the address is another packet's from now on
    return found
