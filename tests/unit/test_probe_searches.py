"""The search for the path MTU, on a path that says nothing and loses a packet now and then."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from netbox.packet.probing.exchange import HEADERS, Order
from netbox.packet.probing.searches import path_mtu
from netbox.packet.probing.values import ANSWERED, FILTERED, ICMP, ProbeAnswer, ProbeRequest

LARGEST = 1400


class Path:
    """Carries ``LARGEST`` bytes. What is in ``lost`` gets lost the first time."""

    def __init__(self, lost: Sequence[int]) -> None:
        self._lost = list(lost)

    def run(self, orders: Sequence[Order]) -> list[ProbeAnswer]:
        return [self._answer(order.sequence, (order.request.size or 0) + HEADERS[ICMP] + 20) for order in orders]

    def _answer(self, sequence: int, size: int) -> ProbeAnswer:
        if size in self._lost or size > LARGEST:
            self._lost = [other for other in self._lost if other != size]
            return ProbeAnswer(sequence, FILTERED, "nothing came back")
        return ProbeAnswer(sequence, ANSWERED, "echo reply", "192.0.2.9", rtt=0.0001)


@pytest.mark.parametrize("lost", [[], [LARGEST], range(1000, 1401), range(1399, 1401)])
def test_a_black_hole(lost: Sequence[int]) -> None:
    station: Any = SimpleNamespace(route=lambda _: SimpleNamespace(link=2), link=lambda _: SimpleNamespace(mtu=1500))
    exchange: Any = Path(lost)
    found = path_mtu(exchange, Order(station, ProbeRequest(), "192.0.2.9"))
    assert (found["mtu"], found["black_hole"]) == (LARGEST, True)
