"""Which of the packets seen are one and the same: a packet that passes several interfaces keeps its number (epb_packetid). Pure.

A packet is known by its identification and its bytes from the addresses of its IP header on: time to live, checksum and MAC addresses,
which routing changes, come before. Address translation makes a new packet of it.
"""

from __future__ import annotations

_GENERATION_TIME = 1_000_000_000  # nanoseconds: no copy is later, short of an impaired link
_GENERATION_SIZE = 20_000

_Entry = tuple[list[int], dict[int, int]]


class Copies:
    """Numbers packets from 1. They must come in the order of time."""

    def __init__(self) -> None:
        self._last = 0
        self._young: dict[bytes, _Entry] = {}
        self._old: dict[bytes, _Entry] = {}
        self._since = 0

    def identify(self, interface: int, data: bytes, time: int) -> int:
        """The number of the packet: that of its first sighting. The n-th time that equal bytes pass an interface is the n-th packet."""
        if time - self._since > _GENERATION_TIME or len(self._young) > _GENERATION_SIZE:
            self._old, self._young, self._since = self._young, {}, time
        key = data[18:20] + data[26:100]
        entry = self._young.get(key) or self._old.get(key)
        if entry is None:
            self._last += 1
            self._young[key] = ([self._last], {interface: 1})
            return self._last
        numbers, seen = entry
        times = seen.get(interface, 0)
        seen[interface] = times + 1
        if times < len(numbers):
            return numbers[times]
        self._last += 1
        numbers.append(self._last)
        return self._last
