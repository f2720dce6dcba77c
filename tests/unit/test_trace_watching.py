"""Live traffic of a sandbox that ends, with a kernel that says what the test says, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from netbox.errors import NotFound
from netbox.kernel.packet_event import DELIVER, TRANSMIT, PacketEvent
from netbox.kernel.rule_trace import RuleRecord
from netbox.packet.tracing import watching
from netbox.packet.tracing.rules import Rules
from netbox.packet.tracing.spaces import Space
from netbox.packet.tracing.values import Hop
from netbox.packet.tracing.watching import Followed
from tests.unit.test_trace_hops import AFTER, AROUND, BEFORE, CLIENT, HOST, RECORDS, RULES, event

Turn = tuple[Sequence[PacketEvent], Sequence[RuleRecord]]
OWN, AT_HOST = Space("client", -1, CLIENT), Space("host", -1, HOST)


class Session:
    """Has in each turn what happened in it."""

    tracer = "bpf"
    notes: tuple[str, ...] = ()

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = list(turns)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        assert not self._turns

    def collect(self, timeout: float) -> None:
        pass

    def drain(self) -> tuple[list[PacketEvent], list[RuleRecord]]:
        events, records = self._turns.pop(0)
        return list(events), list(records)

    def rules_of(self, records: Sequence[RuleRecord]) -> Mapping[int, Rules]:
        return RULES


class Spaces:
    """Those of a client and the host."""

    host = AT_HOST

    def __init__(self, engine: object) -> None:
        self.of_sandbox = {"id": OWN}

    def __enter__(self) -> Spaces:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def all(self) -> list[Space]:
        return [OWN, AT_HOST]

    def surroundings(self, order: object) -> Any:
        return AROUND


class Sandbox:
    """Runs for so many turns."""

    id, name, networks, ports = "id", "client", {"front": "10.0.0.2"}, ()

    def __init__(self, turns: int, removed: bool) -> None:
        self._turns, self._removed = turns, removed

    def refresh(self) -> SimpleNamespace:
        self._turns -= 1
        if self._turns < 0 and self._removed:
            raise NotFound("no such sandbox: client")
        return SimpleNamespace(state="running" if self._turns >= 0 else "exited")


def watched(monkeypatch: pytest.MonkeyPatch, turns: Sequence[Turn], removed: bool = False, timeout: float | None = None) -> list[Followed]:
    monkeypatch.setattr(watching, "Spaces", Spaces)
    monkeypatch.setattr(watching, "_listening", lambda *_: Session(turns))
    engine: Any = SimpleNamespace(settings=None)
    sandbox: Any = Sandbox(len(turns) - 1, removed)
    return list(watching._watch(engine, sandbox, None, None, timeout, [], None))


def rules(hops: Sequence[Hop]) -> list[str]:
    return [hop.rule.chain for hop in hops if hop.rule is not None]


@pytest.mark.parametrize("removed", [False, True])
def test_the_last_packets_of_a_sandbox(monkeypatch: pytest.MonkeyPatch, removed: bool) -> None:
    """Nothing was heard for long enough to know that no more comes of them."""
    last = event(10**15, TRANSMIT, CLIENT, "eth0", BEFORE)
    (found,) = watched(monkeypatch, [([], []), ([last], [])], removed)
    assert found.flow.source == "10.0.0.2"


def test_the_last_packets_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = watched(monkeypatch, [([event(10**15, TRANSMIT, CLIENT, "eth0", BEFORE)], [])], timeout=-1.0)
    assert found.flow.source == "10.0.0.2"


def test_a_rule_that_is_told_before_its_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two kinds of news are read one after the other, and the packet passed in between."""
    way = [event(10, DELIVER, HOST, "nbc", BEFORE, skb=2), event(20, DELIVER, HOST, "br", AFTER, skb=2)]
    (found,) = watched(monkeypatch, [([], RECORDS), (way, []), ([], [])])
    assert "NETBOX-PUBLISH" in rules(found.hops)
