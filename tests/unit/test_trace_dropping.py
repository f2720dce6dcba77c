"""Drops of sandboxes that start while drops are watched, with a kernel, a state and a clock that say what the test says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from netbox.kernel.packet_event import DROP, PacketEvent
from netbox.packet.tracing import dropping
from netbox.packet.tracing.assemble import Surroundings
from netbox.packet.tracing.spaces import Space
from netbox.packet.tracing.values import Drop
from tests.unit.test_trace_hops import AFTER, event

HOST, OWN, STRANGER = 1, 2, 3
TURN = 0.1  # seconds that a turn takes here


class Machine:
    """``starts`` is the look at which its sandbox is among those that run; ``turns`` are the drops of each turn."""

    tracer = "bpf"
    notes: tuple[str, ...] = ()
    host = Space("host", -1, HOST)

    def __init__(self, starts: int, turns: Sequence[Sequence[PacketEvent]]) -> None:
        self._starts, self._turns = starts, iter(turns)
        self.looks, self.now = 0, 0.0
        self.sandboxes: list[Any] = []
        self.of_sandbox: dict[str, Space] = {}

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    # as the session

    def require_events(self) -> None:
        pass

    def collect(self, timeout: float) -> None:
        self.now += TURN

    def drain(self) -> tuple[list[PacketEvent], list[Any]]:
        return list(next(self._turns, ())), []

    def add(self, traced: object) -> None:
        pass

    # as the namespaces

    def refresh(self, engine: object) -> None:
        self.looks += 1
        if self.looks == self._starts:
            plan = {"endpoints": [{"network": "n", "host_interface": "nb1", "bridge": "nb-n", "address": "10.0.0.2", "interface": "eth0"}]}
            self.sandboxes = [SimpleNamespace(id="id", name="brief", network_plan=plan, networks={"n": "10.0.0.2"})]
            self.of_sandbox = {"id": Space("brief", -1, OWN)}

    def label(self, inode: int) -> str:
        return {HOST: "host", OWN: "brief"}[inode]

    def surroundings(self, order: object) -> Surroundings:
        labels = {space.inode: space.label for space in (self.host, *self.of_sandbox.values())}
        devices = {(HOST, "nb1"): "link of brief"} if self.sandboxes else {}
        return Surroundings(labels, [], devices, frozenset(), {}, {})


def drops(monkeypatch: pytest.MonkeyPatch, machine: Machine, timeout: float | None = None) -> Iterator[Drop]:
    monkeypatch.setattr(dropping, "Spaces", lambda _: machine)
    monkeypatch.setattr(dropping, "Session", lambda *_: machine)
    monkeypatch.setattr("netbox.packet.tracing.dropping.time.monotonic", lambda: machine.now)
    engine: Any = SimpleNamespace(settings=None)
    return dropping._drops(engine, [], None, None, timeout, [], None)


def dropped(netns: int, device: str) -> PacketEvent:
    return event(0, DROP, netns, device, AFTER, "NO_SOCKET")


@pytest.mark.parametrize("starts", [1, 3])
@pytest.mark.parametrize(("netns", "device", "label"), [(OWN, "lo", "brief"), (HOST, "nb1", "host")])
def test_a_drop_of_a_sandbox_that_has_just_started(
    monkeypatch: pytest.MonkeyPatch, starts: int, netns: int, device: str, label: str
) -> None:
    """It is not among those that run before it does, and may have ended by the next regular look."""
    machine = Machine(starts, [[], [dropped(netns, device)]])
    (found,) = drops(monkeypatch, machine, timeout=0.9)  # the first regular look is after 1 s
    assert (found.sandbox, found.netns, found.device) == ("brief", label, device)


def test_strangers_are_not_looked_for_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(0, [[dropped(STRANGER, "eth0")]] * 100)
    assert list(drops(monkeypatch, machine, timeout=10.0)) == []
    assert 10 <= machine.looks <= 25
