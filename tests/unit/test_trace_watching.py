"""Live traffic: what the firewall tells of a packet may be read before what the devices tell of it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from netbox.packet.tracing import watching

ROUNDS = 4


class Context:
    """Spaces and a session at once: two records of the firewall come, one after the other, and no event."""

    notes: tuple[str, ...] = ()
    tracer = "bpf"
    host = SimpleNamespace(inode=1)
    of_sandbox = {"web": host}

    def __init__(self) -> None:
        self._records = iter([["first"], ["second"], [], []])

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def collect(self, timeout: float) -> None:
        pass

    def drain(self) -> tuple[list[object], list[str]]:
        return [], next(self._records)


def test_records_wait_for_their_events(monkeypatch: pytest.MonkeyPatch) -> None:
    context: Any = Context()
    seen = []

    def followed(grouping: object, before: int, records: list[str], *_: object) -> Iterator[None]:
        seen.append(list(records))
        yield None

    monkeypatch.setattr(watching, "Spaces", lambda engine: context)
    monkeypatch.setattr(watching, "_listening", lambda opened, tracer: context)
    monkeypatch.setattr(watching, "_followed", followed)
    states = iter([SimpleNamespace(state="running")] * ROUNDS + [SimpleNamespace(state="exited")])
    sandbox: Any = SimpleNamespace(id="web", name="web", ports=(), networks={}, refresh=lambda: next(states))
    list(watching._watch(context, sandbox, None, None, None, [], None))
    assert seen == [["first"], ["first", "second"], ["second"], []]
