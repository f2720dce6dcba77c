"""Why a recorded packet went no further: the kernel's drops, matched with the packets that wait to be written.

The kernel tells of a drop with the packet's first bytes, from the network header on. Known again it is by addresses and ports or, where
its destination was translated meanwhile, by identification, source and source port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from netbox.kernel.packet_event import PacketEvent

_KEPT = 20_000
_HEADER = 14  # bytes before the network header of an Ethernet frame
_EXACT = slice(26, 54)  # of the frame: addresses and the first bytes of what is above, for both IPv4 and IPv6
_SHORTEST = 40
_FIREWALL = "NETFILTER_DROP"
# A copy that was not meant for who dropped it: the packet itself goes on.
_HARMLESS = frozenset({"OTHERHOST", "UNHANDLED_PROTO", "CONSUMED", "NOT_SPECIFIED", "PACKET_SOCK_ERROR"})


class DropSource(Protocol):
    """A running stream of the kernel's drops."""

    def read(self) -> Sequence[PacketEvent]:
        """Those that are there."""

    def close(self) -> None:
        """Ends it."""


class Verdicts:
    """``namespaces`` gives the names of network namespaces by inode number; it may grow."""

    def __init__(self, source: DropSource, namespaces: Mapping[int, str]) -> None:
        self._source = source
        self._namespaces = namespaces
        self._exact: dict[bytes, str] = {}
        self._translated: dict[bytes, str] = {}

    def read(self) -> None:
        """Takes in what the kernel has dropped."""
        for event in self._source.read():
            if event.kind == "drop" and event.reason not in _HARMLESS and len(event.packet) >= _SHORTEST:
                self._add(event)
        if len(self._exact) > _KEPT:
            self._exact.clear()
            self._translated.clear()

    def of(self, data: bytes) -> str:
        """What became of a frame: empty, or why it was dropped. Said once for each interface that it was seen on."""
        if not self._exact:
            return ""
        found = self._exact.get(data[18:20] + data[_EXACT])
        if found is None and data[12:14] == b"\x08\x00":
            found = self._translated.get(data[18:20] + data[26:30] + data[34:36])
        return found or ""

    def close(self) -> None:
        """Ends the stream."""
        self._source.close()

    def _add(self, event: PacketEvent) -> None:
        packet = event.packet
        where = self._namespaces.get(event.netns, "")
        place = f" in {where}" if where else ""
        function = f", {event.function}" if event.function else ""
        if event.reason == _FIREWALL:
            text = f"dropped by the firewall{place} ({event.reason}{function})"
        else:
            text = f"dropped{place} ({event.reason}{function})"
        self._exact[packet[4:6] + packet[_EXACT.start - _HEADER : _EXACT.stop - _HEADER]] = text
        if packet[0] >> 4 == 4 and packet[4:6] != b"\0\0":
            self._translated[packet[4:6] + packet[12:16] + packet[20:22]] = text
