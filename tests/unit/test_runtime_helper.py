"""Ending a helper process whose end of the channel stays open."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from netbox.runtime import helper, interpreter
from netbox.runtime.helper import Helper

PID = 1 << 30  # there is none


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is killed from here on; whoever is waited for has ended."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(helper, "_PATIENCE", 0.0)
    monkeypatch.setattr(interpreter, "_STARTED", {PID})
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    monkeypatch.setattr(os, "waitpid", lambda pid, options: (pid, 0))
    return found


def end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        Helper("monitor", ours, PID).end()


def test_it_is_killed_once(killed: list[tuple[int, int]]) -> None:
    end()
    end()
    assert killed == [(PID, signal.SIGKILL)]


def test_a_pid_that_another_thread_has_collected_is_left_alone(killed: list[tuple[int, int]]) -> None:
    interpreter.reap()  # as every start of a helper does, for all that are dead
    end()
    assert killed == []
