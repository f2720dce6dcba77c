"""Following events until a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.engine import events
from netbox.engine.context import Context
from netbox.settings import Settings
from netbox.state import store
from netbox.state.rows import SandboxRow


class Clock:
    """Time passes in sleep, and the longer one looks the more happens."""

    def __init__(self, context: Context) -> None:
        self.now = 100.0
        self._context = context

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        for action in ("early", "late"):
            self.now += 0.8 * seconds
            row = SandboxRow(id="ab" * 32, name="box", spec={"labels": {}}, image={}, state="running", created_at=1.0)
            events.record(self._context, row, action)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    context = Context(Settings(root=str(tmp_path / "root"), run=str(tmp_path / "run")))
    yield context
    context.close()


def test_what_happens_just_before_the_end_is_told(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(context)
    monkeypatch.setattr(events, "time", clock)
    monkeypatch.setattr(store, "time", clock)
    found = events.read(context, since=None, until=100.0 + events.POLL_INTERVAL, follow=True, filters=(), stop=None)
    assert [event.action for event in found] == ["early"]
