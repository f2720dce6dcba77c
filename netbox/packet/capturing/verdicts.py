"""What became of a recorded packet: the kernel's drops and, where they are asked for, the firewall's rules, matched with the packets that
wait to be written.

The kernel tells of a drop with the packet's first bytes, from the network header on. Known again it is by what stays the same wherever it
is or, where its destination was translated meanwhile, by identification, source and source port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from netbox.kernel.packet_event import PacketEvent
from netbox.packet.capturing.pcapng import LINKTYPE_RAW
from netbox.packet.tracing.decisions import content

_KEPT = 20_000
_ETHERNET = 14  # bytes before the network header
_VLAN_TAG, _VLAN_TYPES = 4, (b"\x81\x00", b"\x88\xa8")
_SHORTEST = 28
_FIREWALL = "NETFILTER_DROP"
# Raw sockets, such as those of ping(8), have had their copy by then.
_AFTER_RAW_SOCKETS = ("NO_SOCKET", "ping_rcv")
# A copy that was not meant for who dropped it, or was kept to be sent again: the packet itself goes on.
_HARMLESS = frozenset({"OTHERHOST", "UNHANDLED_PROTO", "CONSUMED", "NOT_SPECIFIED", "PACKET_SOCK_ERROR", "QUEUE_PURGE"})


class DropSource(Protocol):
    """A running stream of the kernel's drops."""

    def read(self) -> Sequence[PacketEvent]:
        """Those that are there."""

    def close(self) -> None:
        """Ends it."""


class Rules(Protocol):
    """What firewall rules decided."""

    def on(self, packet: bytes, dropped_in: int = 0) -> str:
        """About a packet, in words; in the namespace (by inode) where it was dropped, or else everywhere."""


class _Drop(NamedTuple):
    text: str
    by_firewall_in: int
    kernel: str


class Verdicts:
    """``namespaces`` gives the names of network namespaces by inode number; it may grow."""

    def __init__(self, source: DropSource, namespaces: Mapping[int, str], rules: Rules | None = None) -> None:
        self._source = source
        self._namespaces = namespaces
        self._rules = rules
        self._exact: dict[bytes, _Drop] = {}
        self._translated: dict[bytes, _Drop] = {}

    def read(self) -> None:
        """Takes in what the kernel has told."""
        for event in self._source.read():
            if event.kind == "drop" and len(event.packet) >= _SHORTEST and not _is_harmless(event):
                self._add(event)
        if len(self._exact) > _KEPT:
            self._exact.clear()
            self._translated.clear()

    @property
    def some(self) -> bool:
        """Whether anything is known of any packet."""
        return bool(self._exact) or self._rules is not None

    def of(self, data: bytes, link_type: int) -> str:
        """What became of a frame: empty, or why it was dropped. Said once for each interface that it was seen on."""
        packet = data[_network_header(data, link_type) :]
        found = self._exact.get(content(packet))
        if found is None and packet[:1] and packet[0] >> 4 == 4:
            found = self._translated.get(_source(packet))
        if self._rules is None:
            return found.text if found is not None else ""
        if found is None:
            return self._rules.on(packet)
        rule = self._rules.on(packet, found.by_firewall_in) if found.by_firewall_in else ""
        return f"{rule}: {found.kernel}" if rule else found.text

    def close(self) -> None:
        """Ends the stream."""
        self._source.close()

    def _add(self, event: PacketEvent) -> None:
        packet = event.packet
        where = self._namespaces.get(event.netns, "")
        place = f" in {where}" if where else ""
        function = f", {event.function}" if event.function else ""
        kernel = f"{event.reason} in {event.function}" if event.function else event.reason
        by_firewall = event.reason == _FIREWALL
        drop = _Drop(
            f"dropped{' by the firewall' if by_firewall else ''}{place} ({event.reason}{function})",
            event.netns if by_firewall else 0,
            kernel,
        )
        self._exact[content(packet)] = drop
        if packet[0] >> 4 == 4 and packet[4:6] != b"\0\0":
            self._translated[_source(packet)] = drop


def _network_header(data: bytes, link_type: int) -> int:
    """Where the network header of a frame begins."""
    if link_type == LINKTYPE_RAW:
        return 0
    return _ETHERNET + (_VLAN_TAG if data[12:14] in _VLAN_TYPES else 0)


def _source(packet: bytes) -> bytes:
    """Identification, source address and source port of an IPv4 packet."""
    return packet[4:6] + packet[12:16] + packet[20:22]


def _is_harmless(event: PacketEvent) -> bool:
    """Whether the packet has gone its way all the same."""
    if event.reason == _FIREWALL:
        return False
    is_group = event.packet[0] >> 4 == 4 and event.packet[16] >= 224  # each member has a copy, whoever else has no use for his
    function = event.function.partition("+")[0]
    return event.reason in _HARMLESS or is_group or (event.reason, function) == _AFTER_RAW_SOCKETS
