"""Waiting for the end of a sandbox while others restart or remove it: whose exit code is told. The monitor is a pair of sockets here."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netbox.engine import ending, events
from netbox.engine.context import Context
from netbox.engine.locks import SandboxLock
from netbox.errors import NotFound, WrongState
from netbox.runtime import protocol
from netbox.runtime.client import Attachment
from netbox.runtime.status import write_status
from netbox.settings import Settings
from netbox.state.rows import SandboxRow

ID = "ab" * 32
FIRST, SECOND = 3, 9  # exit codes of two runs


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    context = Context(Settings(root=str(tmp_path / "root"), run=str(tmp_path / "run")))
    yield context
    context.close()


def record(context: Context, **values: Any) -> SandboxRow:
    """The record of a sandbox in its first run, unless ``values`` say otherwise."""
    given = {"state": "running", "created_at": time.time(), "started_at": time.time(), **values}
    context.store.insert_sandbox(SandboxRow(id=ID, name="box", spec={"labels": {}, "remove": False}, image={}, **given))
    return context.store.find_sandbox(ID)


def alive(context: Context) -> SandboxLock:
    """What a monitor holds."""
    lock = SandboxLock.acquire(context.settings.sandbox_run(ID))
    assert lock is not None
    return lock


def monitor(exit_code: int | None) -> Attachment:
    """The connection to a monitor that tells of an end, or is killed before it can."""
    ours, theirs = socket.socketpair()
    with theirs:
        if exit_code is not None:
            theirs.sendall(protocol.frame(protocol.EXIT, protocol.exit_payload(exit_code)))
    return Attachment(ours)


def answering(monkeypatch: pytest.MonkeyPatch, *answers: Callable[[], Attachment | None]) -> list[str]:
    """Connections to the monitor have these outcomes, one after the other: ``None`` where none listens. Returns where it was asked."""
    asked: list[str] = []

    def connect(run_directory: str) -> Attachment:
        asked.append(run_directory)
        attachment = answers[min(len(asked), len(answers)) - 1]()
        if attachment is None:
            raise WrongState("nobody listens")
        return attachment

    monkeypatch.setattr(ending, "connect", connect)
    return asked


def end(context: Context, code: int) -> None:
    """A run is over and settled."""
    row = context.store.find_sandbox(ID)
    context.store.update_sandbox(ID, state="exited", exit_code=code, finished_at=time.time())
    events.record(context, row, "die", exit_code=code)


def begin(context: Context) -> None:
    """Another run begins."""
    context.store.update_sandbox(ID, state="starting")
    context.store.update_sandbox(ID, state="running", exit_code=None, started_at=time.time())


def restart(context: Context) -> None:
    end(context, FIRST)
    begin(context)


def restart_and_end(context: Context) -> None:
    restart(context)
    end(context, SECOND)


def restart_halfway(context: Context) -> None:
    end(context, FIRST)
    context.store.update_sandbox(ID, state="starting")


def end_and_remove(context: Context) -> None:
    end(context, FIRST)
    context.store.delete_sandbox(ID)


@pytest.mark.parametrize("meanwhile", [restart, restart_and_end, restart_halfway, end_and_remove], ids=lambda action: action.__name__)
@pytest.mark.parametrize("outcome", ["nobody listens", "the next run's monitor", "killed"])
def test_the_code_is_that_of_the_run_that_was_waited_for(
    context: Context, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Context], None], outcome: str
) -> None:
    row = record(context)

    def connected() -> Attachment | None:
        meanwhile(context)
        if outcome == "nobody listens":
            return None
        return monitor(SECOND if outcome == "the next run's monitor" else None)

    asked = answering(monkeypatch, connected)
    with alive(context):  # somebody holds it: the next run, or who is about to start it
        assert ending.wait(context, row) == FIRST
    assert len(asked) == 1


def test_one_that_is_restarted_after_the_connection(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    row = record(context)
    answering(monkeypatch, lambda: monitor(None))
    hear = ending._hear_exit

    def killed(attachment: Attachment, deadline: float | None) -> int | None:
        restart(context)
        return hear(attachment, deadline)

    monkeypatch.setattr(ending, "_hear_exit", killed)
    with alive(context):
        assert ending.wait(context, row) == FIRST


def test_one_that_does_not_run_has_the_code_of_its_last_run(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    record(context, state="exited", exit_code=FIRST, finished_at=time.time())
    answering(monkeypatch, lambda: None)
    assert ending.wait(context, context.store.find_sandbox(ID)) == FIRST
    with alive(context):
        context.store.update_sandbox(ID, state="starting")  # a restart
        assert ending.wait(context, context.store.find_sandbox(ID)) == FIRST


def test_a_first_start_is_waited_for(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    row = record(context, state="creating", started_at=None)

    def runs() -> None:
        begin(context)

    answering(monkeypatch, lambda: None, runs, lambda: monitor(FIRST))
    with alive(context):
        assert ending.wait(context, row) == FIRST


def test_who_is_hung_up_on_asks_again(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor drops who does not read fast enough: that is no end of the sandbox."""
    row = record(context)
    asked = answering(monkeypatch, lambda: monitor(None), lambda: monitor(None), lambda: monitor(FIRST))
    with alive(context):
        assert ending.wait(context, row) == FIRST
    assert len(asked) == 3


def test_the_status_of_a_monitor_that_has_just_gone(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    row = record(context)
    answering(monkeypatch, lambda: None)
    alive(context).release()
    write_status(context.settings.sandbox_run(ID), {"state": "exited", "exit_code": FIRST})
    assert ending.wait(context, row) == FIRST


def test_a_killed_monitor_took_its_sandbox_along(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    row = record(context)
    answering(monkeypatch, lambda: monitor(None))
    assert ending.wait(context, row) == ending.KILLED


def test_a_removed_one_whose_end_nobody_wrote_down(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    row = record(context)
    context.store.delete_sandbox(ID)
    answering(monkeypatch, lambda: None)
    with pytest.raises(NotFound, match="removed before its exit code"):
        ending.wait(context, row)


def test_a_time_limit(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    row = record(context)
    ours, theirs = socket.socketpair()
    answering(monkeypatch, lambda: Attachment(ours))
    with theirs, alive(context):
        assert ending.wait(context, row, timeout=0) is None
