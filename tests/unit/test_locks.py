"""The lock of a sandbox."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from netbox.engine import locks
from netbox.engine.locks import SandboxLock
from netbox.errors import Conflict


def test_only_one_holds_it(tmp_path: Path) -> None:
    directory = str(tmp_path / "run")
    first = SandboxLock.acquire(directory)
    assert first is not None
    assert not locks.is_free(directory)
    assert SandboxLock.acquire(directory) is None
    with pytest.raises(Conflict, match="working on web"):
        locks.acquire_or_conflict(directory, "web")
    first.release()
    assert locks.is_free(directory)


def test_it_is_held_as_long_as_any_copy_is_open(tmp_path: Path) -> None:
    directory = str(tmp_path / "run")
    first = SandboxLock.acquire(directory)
    assert first is not None
    copy = os.dup(first.fd)
    first.release()
    assert not locks.is_free(directory)
    os.close(copy)
    assert locks.is_free(directory)


def test_no_directory_means_free(tmp_path: Path) -> None:
    assert locks.is_free(str(tmp_path / "nothing"))


def test_a_lock_on_a_removed_file_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = str(tmp_path / "run")
    real = fcntl.flock
    removed: list[int] = []

    def remove_first(fd: int, operation: int) -> None:
        if not removed:
            shutil.rmtree(directory)
            removed.append(fd)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    lock = SandboxLock.acquire(directory)
    assert lock is not None
    assert os.fstat(lock.fd).st_ino == os.stat(f"{directory}/lock").st_ino
    lock.release()


def test_an_onlooker_does_not_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``is_free`` of another process has its shared lock for as long as it looks."""
    directory = str(tmp_path / "run")
    first = SandboxLock.acquire(directory)
    assert first is not None
    first.release()
    onlooker = os.open(f"{directory}/lock", os.O_RDWR)
    fcntl.flock(onlooker, fcntl.LOCK_SH)
    monkeypatch.setattr("netbox.engine.locks.time.sleep", lambda seconds: os.close(onlooker))
    lock = SandboxLock.acquire(directory)
    assert lock is not None
    lock.release()


def test_a_restart_is_seen_and_those_who_look_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = str(tmp_path / "run")
    assert not locks.is_restarting(directory)
    with locks.restarting(directory), locks.restarting(directory):
        assert locks.is_restarting(directory)
    close = os.close
    seen: list[bool] = []

    def close_late(fd: int) -> None:
        """Before the first onlooker is gone a second one looks."""
        if not seen:
            seen.append(True)
            seen.append(locks.is_restarting(directory))
        close(fd)

    monkeypatch.setattr(os, "close", close_late)
    assert not locks.is_restarting(directory)
    assert seen == [True, False]
