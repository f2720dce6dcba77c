"""The packet of ``why`` that is followed, with a kernel and a clock that say what the test says."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from netbox.kernel.packet_event import DROP, TRANSMIT, PacketEvent
from netbox.packet.diagnosis import following, packets
from netbox.packet.diagnosis.gather import Opened
from netbox.packet.tracing import follow
from netbox.packet.tracing.assemble import Surroundings
from netbox.packet.tracing.spaces import Space
from tests.unit.why_facts import facts

HOST, WEB = 1, 2
STEP = 0.1  # seconds that waiting for news takes here


class Machine:
    """Holds the packet back for ``delay`` seconds, and drops it then."""

    tracer = "bpf"
    notes: tuple[str, ...] = ()
    records: tuple[Any, ...] = ()
    host = Space("host", -1, HOST)

    def __init__(self, delay: float) -> None:
        self.now, self._delay = 0.0, delay
        self.packet = b""

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, label: str, fd: int) -> Space:
        os.close(fd)
        return Space(label, -1, WEB)

    def surroundings(self, order: Any) -> Surroundings:
        return Surroundings({HOST: "host", WEB: "web"}, [space.inode for space in order], {}, frozenset(), {}, {})

    def rules_of(self, records: object) -> dict[int, Any]:
        return {}

    def take(self) -> None:
        pass

    def drain(self) -> None:
        pass

    def settle(self, quiet: float, limit: float) -> None:
        self.now += STEP

    @property
    def events(self) -> list[PacketEvent]:
        found = [PacketEvent(1, TRANSMIT, 7, WEB, 2, "eth0", 0x800, 44, self.packet)]
        if self.now >= self._delay:
            found.append(PacketEvent(2, DROP, 7, HOST, 3, "nbweb", 0x800, 44, self.packet, "NETFILTER_DROP", "nf_hook_slow"))
        return found

    def send(self, source: int, packet: packets.Crafted) -> None:
        self.packet = packets.build(packet)


@pytest.mark.parametrize(("delay", "place"), [(0.0, "on the host at nbweb"), (0.7, "on the host at nbweb"), (5.0, "")])
def test_a_packet_that_is_late(monkeypatch: pytest.MonkeyPatch, delay: float, place: str) -> None:
    """It is waited for as long as an answer is, which takes its time anyway."""
    machine = Machine(delay)
    monkeypatch.setattr(following, "Spaces", lambda _: machine)
    monkeypatch.setattr(follow, "Session", lambda *_: machine)
    monkeypatch.setattr(follow, "netns_counters", lambda *_: {})
    monkeypatch.setattr("netbox.packet.tracing.follow.time.monotonic", lambda: machine.now)
    monkeypatch.setattr(packets, "send", machine.send)
    opened = Opened(os.open("/dev/null", os.O_RDONLY))
    engine: Any = SimpleNamespace(settings=None)
    (found,) = following.follow_all(engine, [(facts(), opened)], lambda: machine.now < 0.8)
    opened.close()
    assert (found.dropped_at, machine.now < 1.0) == (place, True)
