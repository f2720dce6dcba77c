"""The search for the path MTU on a path that is made up: what passes, what is said about it, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from netbox.packet.probing import searches, values
from netbox.packet.probing.exchange import HEADERS, Order
from netbox.packet.probing.values import ProbeAnswer, ProbeRequest

TARGET, ROUTER = "192.0.2.9", "198.51.100.1"
BURST = 6  # ICMP errors that Linux sends to one machine at once; then one a second (net/ipv4/icmp.c, inet_peer_xrlim_allow)
LINK, LARGEST = 1500, 1400


class Path:
    """Answers as a target behind a router with a smaller link does; time is made up, too.

    ``says`` whether the router speaks of what is too large, ``service`` whether the target answers datagrams instead of refusing them,
    ``errors`` how many refusals it may still send at the beginning.
    """

    def __init__(self, mtu: int, *, says: bool = True, service: bool = False, errors: float = BURST) -> None:
        self.mtu, self.says, self.service, self.errors = mtu, says, service, errors
        self.now = 0.0
        self.most_at_once = 0

    def pause(self, seconds: float) -> None:
        self._pass(max(0.0, seconds))

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.errors = min(BURST, self.errors + seconds)

    def run(self, orders: Sequence[Order]) -> list[ProbeAnswer]:
        self.most_at_once = max(self.most_at_once, len(orders))
        answers = [self._answer(order) for order in orders]
        silent = any(answer.from_address is None for answer in answers)
        self._pass(orders[0].request.timeout if silent else 0.001)
        return answers

    def _answer(self, order: Order) -> ProbeAnswer:
        assert order.dont_fragment
        size = (order.request.size or 0) + 28
        if order.request.ttl == 1:
            return ProbeAnswer(0, values.TIME_EXCEEDED, "ttl", ROUTER, icmp=(11, 0))
        if size > self.mtu and self.says:
            return ProbeAnswer(0, values.TOO_BIG, "too big", ROUTER, icmp=(3, 4), next_mtu=self.mtu)
        if size <= self.mtu and self.service:
            return ProbeAnswer(0, values.OPEN, "datagram", TARGET, rtt=0.001)
        if size <= self.mtu and self.errors >= 1:
            self.errors -= 1
            return ProbeAnswer(0, values.CLOSED, "refused", TARGET, rtt=0.001, icmp=(3, 3))
        return ProbeAnswer(0, values.OPEN_OR_FILTERED, "nothing came back")


def found(path: Path, monkeypatch: pytest.MonkeyPatch, watch: Any = None) -> dict[str, Any]:
    monkeypatch.setattr(searches, "time", SimpleNamespace(monotonic=lambda: path.now))
    route = SimpleNamespace(link=1)
    station: Any = SimpleNamespace(route=lambda address: route, link=lambda index: SimpleNamespace(mtu=LINK))
    exchange: Any = path
    return searches.path_mtu(exchange, Order(station, ProbeRequest("udp", 9, pmtu=True), TARGET, watch=watch))


def test_a_router_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(Path(1400), monkeypatch)
    assert (result["mtu"], result["limited_by"], result["black_hole"]) == (1400, ROUTER, False)


@pytest.mark.parametrize("errors", [BURST, 3, 0])
@pytest.mark.parametrize("mtu", [69, 576, 1280, 1400, 1499])
def test_a_target_that_may_refuse_but_now_and_then(monkeypatch: pytest.MonkeyPatch, mtu: int, errors: int) -> None:
    path = Path(mtu, says=False, errors=errors)
    result = found(path, monkeypatch)
    assert (result["mtu"], result["black_hole"], result["last_seen"]) == (mtu, True, ROUTER)
    assert path.most_at_once == 1
    assert path.now < 20


def test_a_target_that_answers_is_asked_for_many_sizes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(1400, says=False, service=True)
    result = found(path, monkeypatch)
    assert (result["mtu"], result["black_hole"]) == (1400, True)
    assert path.most_at_once > 1


def test_a_target_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(Path(0, says=False), monkeypatch)["mtu"] is None


class Lossy:
    """Carries ``LARGEST`` bytes, and says nothing about more. What is in ``lost`` gets lost the first time."""

    def __init__(self, lost: Sequence[int]) -> None:
        self._lost = list(lost)

    def run(self, orders: Sequence[Order]) -> list[ProbeAnswer]:
        return [self._answer(order.sequence, (order.request.size or 0) + HEADERS[values.ICMP] + 20) for order in orders]

    def _answer(self, sequence: int, size: int) -> ProbeAnswer:
        if size in self._lost or size > LARGEST:
            self._lost = [other for other in self._lost if other != size]
            return ProbeAnswer(sequence, values.FILTERED, "nothing came back")
        return ProbeAnswer(sequence, values.ANSWERED, "echo reply", TARGET, rtt=0.0001)


@pytest.mark.parametrize("lost", [[], [LARGEST], range(1000, 1401), range(1399, 1401)])
def test_a_packet_that_was_lost_by_chance(lost: Sequence[int]) -> None:
    station: Any = SimpleNamespace(route=lambda _: SimpleNamespace(link=2), link=lambda _: SimpleNamespace(mtu=LINK))
    exchange: Any = Lossy(lost)
    result = searches.path_mtu(exchange, Order(station, ProbeRequest(), TARGET))
    assert (result["mtu"], result["black_hole"]) == (LARGEST, True)
