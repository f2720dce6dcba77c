"""Sending and waiting, with a namespace, an arrival and a clock of our own."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP

from netbox.kernel.route_lookup import Route
from netbox.packet.probing.exchange import Exchange, Order
from netbox.packet.probing.station import Received
from netbox.packet.probing.values import ProbeRequest

OWN, TARGET = "192.0.2.1", "192.0.2.9"
TIMEOUT = 0.01


class Station:
    """A namespace where an echo is answered in time, and the process that asked is stopped when it has just looked in vain."""

    identifier = 7

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self._answer = b""
        self._looks = 0

    def route(self, address: str, source: str | None = None) -> Route:
        return Route("unicast", 2, None, OWN)

    def link(self, index: int) -> Any:
        return SimpleNamespace(mtu=1500, mac="")

    def missing_neighbour(self, address: str) -> None:
        return None

    def listen(self, version: int, protocol: int) -> None:
        pass

    def sockets(self) -> list[Any]:
        return []

    def send(self, data: bytes, address: str, index: int = 0) -> None:
        asked = IP(data)[ICMP]
        self._answer = bytes(IP(src=TARGET, dst=OWN) / ICMP(type=0, id=asked.id, seq=asked.seq))

    def received(self) -> Iterator[Received]:
        self._looks += 1
        if self._looks > 1:
            yield Received(self._answer, 0.0, 4)
        self._clock[0] = 10 * TIMEOUT


def test_an_answer_that_came_while_the_process_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("netbox.packet.probing.exchange.time.monotonic", lambda: clock[0])
    station: Any = Station(clock)
    (answer,) = Exchange().run([Order(station, ProbeRequest(timeout=TIMEOUT), TARGET)])
    assert (answer.state, answer.from_address) == ("answered", TARGET)


class Silence(Station):
    """A namespace that nothing comes back to."""

    def received(self) -> Iterator[Received]:
        return iter(())


class Arrivals:
    """The namespace of a target on a busy host."""

    netns = -1

    def __init__(self) -> None:
        self.looks = 0

    def read(self) -> None:
        self.looks += 1

    def has_seen(self, packet: bytes) -> bool:
        assert self.looks  # there is not room for all that comes while an answer is waited for
        return bool(IP(packet).dst == TARGET)


def test_what_arrives_is_looked_at_meanwhile() -> None:
    station: Any = Silence([])
    watch: Any = Arrivals()
    (answer,) = Exchange().run([Order(station, ProbeRequest(timeout=0.12), TARGET, watch=watch)])
    assert (answer.state, answer.arrived) == ("filtered", True)
