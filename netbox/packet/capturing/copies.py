"""Which of the packets seen are one and the same: a packet that passes several interfaces keeps its number (epb_packetid). Pure.

A packet is known by its identification and its bytes from the addresses of its IP header on: time to live, checksum and MAC addresses,
which routing changes, come before. Address translation makes a new packet of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from netbox.packet.capturing.values import Packet

_GENERATION_TIME = 1_000_000_000  # nanoseconds: no copy is later, short of an impaired link
_GENERATION_SIZE = 20_000


_Content = list[Any]
"""Equal packets: the number of the first and a bit for each interface that has seen it. Once they come again also all their numbers, and
how often each interface has seen them. A bare list: there are some 100,000 a second."""


class Copies:
    """Numbers packets from 1. They must come in the order of time."""

    def __init__(self) -> None:
        self._last = 0
        self._young: dict[bytes, _Content] = {}
        self._old: dict[bytes, _Content] = {}
        self._since = 0

    def identify(self, packets: Iterable[Packet]) -> list[int]:
        """The number of each packet: that of its first sighting. The n-th time that equal bytes pass an interface is the n-th packet."""
        found: list[int] = []
        add, young, old = found.append, self._young, self._old
        for time, (interface, _, _), data, _ in packets:
            if time - self._since > _GENERATION_TIME or len(young) > _GENERATION_SIZE:
                old, young, self._since = young, {}, time
            key = data[18:20] + data[26:100]
            content = young.get(key) or old.get(key)
            if content is None:
                self._last = number = self._last + 1
                young[key] = [number, 1 << interface]
                add(number)
            elif content[1] >> interface & 1:
                add(self._again(content, interface))
            else:
                content[1] |= 1 << interface
                add(content[0])
        self._young, self._old = young, old
        return found

    def _again(self, content: _Content, interface: int) -> int:
        """The number of a packet with the bytes of one that the interface has seen already."""
        if len(content) == 2:
            content += [[content[0]], {}]
        numbers: list[int] = content[2]
        times: int = content[3].get(interface, 1)
        content[3][interface] = times + 1
        if times == len(numbers):
            self._last += 1
            numbers.append(self._last)
        return numbers[times]
