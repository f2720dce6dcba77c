"""Questions that take several rounds of packets: who is on the way (traceroute), and how large a packet may be (path MTU).

A part of the worker process.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from netbox.packet.probing import values
from netbox.packet.probing.exchange import HEADERS, Exchange, Order
from netbox.packet.probing.values import ProbeAnswer

_HOPS_AT_ONCE = 5
_SMALLEST, _SMALLEST_6 = 68, 1280  # bytes that every link carries: RFC 791, RFC 8200
_IP_HEADER, _IP_HEADER_6 = 20, 40
_SIZES_AT_ONCE = 32
_ANNOUNCEMENTS = 8
_DOUBTS = 8
_PATIENCE = 0.3  # seconds at least for a packet that may have vanished
_REFUSAL_INTERVAL = 1.1  # seconds after which Linux says again to the same machine that a port is closed: icmp_ratelimit, icmp(7)
_LARGEST = 65535


def traceroute(exchange: Exchange, first: Order) -> list[list[ProbeAnswer]]:
    """The answers for each ttl, up to and with the first that the target itself, or nobody further on, answers."""
    hops: list[list[ProbeAnswer]] = []
    last = first.request.ttl or values.MAXIMUM_HOPS
    while len(hops) < last:
        ttls = range(len(hops) + 1, min(len(hops) + _HOPS_AT_ONCE, last) + 1)
        orders = [
            dataclasses.replace(first, request=dataclasses.replace(first.request, ttl=ttl), sequence=number)
            for ttl in ttls
            for number in range(first.request.count)
        ]
        answers = exchange.run(orders)
        for index in range(len(ttls)):
            hop = answers[index * first.request.count : (index + 1) * first.request.count]
            hops.append(hop)
            if any(_ends(answer, first.address) for answer in hop):
                return hops
    return hops


def _ends(answer: ProbeAnswer, address: str) -> bool:
    """Whether no packet goes further than this one did: somebody said so, or it was seen at the target."""
    if answer.state == values.TIME_EXCEEDED:
        return answer.from_address == address
    return bool(answer.from_address or answer.arrived) or answer.state not in (values.FILTERED, values.OPEN_OR_FILTERED)


def path_mtu(exchange: Exchange, first: Order) -> dict[str, Any]:
    """Finds the largest packet that passes with DF set: as RFC 1191 and RFC 8201 do, and by trying sizes where nobody says anything.

    What nobody asks for by UDP is refused with an ICMP error, and of those a machine sends few. Where nothing else tells that a datagram
    arrived, one is sent at a time, and silence counts when it is there again after the machine may speak again.
    """
    return _Search(exchange, first).run()


def _passed(answer: ProbeAnswer) -> bool:
    """Whether the packet got there: the target answered, with a refusal perhaps, or it was seen to arrive."""
    return answer.reached or answer.state == values.CLOSED or bool(answer.arrived)


def _is_silent(answer: ProbeAnswer) -> bool:
    return answer.state in (values.FILTERED, values.OPEN_OR_FILTERED)


class _Search:
    def __init__(self, exchange: Exchange, first: Order) -> None:
        self._exchange = exchange
        self._first = first
        ipv6 = ":" in first.address
        self._headers = HEADERS[first.request.protocol] + (_IP_HEADER_6 if ipv6 else _IP_HEADER)
        self._smallest = _SMALLEST_6 if ipv6 else _SMALLEST
        self._timeout = first.request.timeout
        self._steps: list[dict[str, Any]] = []
        self._may_be_mute = first.request.protocol == values.UDP and first.watch is None
        self._last_refusal = time.monotonic()  # another search may have ended just now

    def run(self) -> dict[str, Any]:
        small = self._try(self._smallest) if self._may_be_mute else self._send([self._smallest])[self._smallest]
        if small.state == values.NO_ROUTE:
            return self._result(None, 0)
        link_mtu = self._link_mtu()
        if not _passed(small):
            return self._result(None, link_mtu)
        self._may_be_mute = self._may_be_mute and small.icmp is not None
        self._timeout = min(self._timeout, max(_PATIENCE, 10 * (small.rtt or 0)))
        size, limit = link_mtu, None
        for _ in range(_ANNOUNCEMENTS):
            answer = self._try(size)
            if _passed(answer):
                return self._result(size, link_mtu, limit)
            if answer.state != values.TOO_BIG:
                break
            limit = answer
            if not answer.next_mtu or not self._smallest <= answer.next_mtu < size:
                break
            size = answer.next_mtu
        found, silent = self._between(self._smallest, size)
        # The one that was too large may have been late or lost by chance. Where the target may be mute it was asked for again already.
        for _ in range(0 if self._may_be_mute else _DOUBTS):
            if not silent or found + 1 >= size or not _passed(self._send([found + 1], timeout=self._first.request.timeout)[found + 1]):
                break
            found, silent = self._between(found + 1, size)
        seen = self._last_seen(found + 1) if silent else None
        return self._result(found, link_mtu, limit, silent, seen)

    def _link_mtu(self) -> int:
        route = self._first.station.route(self._first.address)
        return min(self._first.station.link(route.link).mtu, _LARGEST)

    def _try(self, size: int) -> ProbeAnswer:
        """What comes back for a packet of this size. What was lost by chance, perhaps, is sent again."""
        answer = self._send([size])[size]
        if _is_silent(answer):
            if self._may_be_mute:
                self._exchange.pause(self._last_refusal + _REFUSAL_INTERVAL - time.monotonic())
            answer = self._send([size])[size]
        if answer.icmp is not None:
            self._last_refusal = time.monotonic()
        return answer

    def _send(self, sizes: list[int], ttl: int | None = None, timeout: float = 0.0) -> dict[int, ProbeAnswer]:
        orders = [
            dataclasses.replace(
                self._first,
                sequence=len(self._steps) + number,
                dont_fragment=True,
                request=dataclasses.replace(
                    self._first.request,
                    size=size - self._headers,
                    timeout=timeout or self._timeout,
                    ttl=ttl or self._first.request.ttl,
                ),
            )
            for number, size in enumerate(sizes)
        ]
        answers = dict(zip(sizes, self._exchange.run(orders), strict=True))
        if ttl is None:
            self._steps += [
                {"size": size, "passed": _passed(answer), "answer": dataclasses.asdict(answer)} for size, answer in answers.items()
            ]
        return answers

    def _between(self, good: int, bad: int) -> tuple[int, bool]:
        """The largest size that passes, and whether the one above it vanished without a word."""
        silent = True
        while bad - good > 1:
            if self._may_be_mute:
                sizes = [(good + bad) // 2]
                answers = {size: self._try(size) for size in sizes}
            else:
                stride = max(1, (bad - good) // (_SIZES_AT_ONCE + 1))
                sizes = list(range(good + stride, bad, stride))
                answers = self._send(sizes)
            passed = [size for size, answer in answers.items() if _passed(answer)]
            good = max(passed, default=good)
            failed = [size for size in sizes if size > good]
            if failed:
                bad = failed[0]
                silent = answers[bad].from_address is None
        return good, silent

    def _last_seen(self, size: int) -> str | None:
        """The last hop that still answered for a packet that is too large."""
        seen = None
        for ttl in range(1, values.MAXIMUM_HOPS + 1):
            answer = self._send([size], ttl)[size]
            if answer.state != values.TIME_EXCEEDED:
                return seen
            seen = answer.from_address
        return seen

    def _result(
        self, mtu: int | None, link_mtu: int, limit: ProbeAnswer | None = None, black_hole: bool = False, last_seen: str | None = None
    ) -> dict[str, Any]:
        return {
            "mtu": mtu,
            "link_mtu": link_mtu,
            "limited_by": limit.from_address if limit else None,
            "local": limit is not None and limit.from_address is None,
            "black_hole": black_hole,
            "last_seen": last_seen,
            "steps": self._steps,
        }
