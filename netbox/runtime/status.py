"""What a sandbox leaves in its run directory: status.json, and the lock that says whether anybody looks after it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from typing import NamedTuple

from netbox.runtime.status_file import ABORTED, EXITED, KEYS, RUNNING, start_time, write_status

__all__ = ["ABORTED", "EXITED", "RUNNING", "Status", "acquire_lock", "is_locked", "read_status", "start_time", "write_status"]

_LOCK_PATIENCE = 0.05
_LOCK_PAUSE = 0.002


class Status(NamedTuple):
    """status.json.

    ``state`` is running, exited or aborted; times are seconds since the epoch, ``pid_start`` is field 22 of /proc/PID/stat.
    """

    state: str
    pid: int | None
    pid_start: int | None
    monitor_pid: int | None
    started_at: float | None
    exit_code: int | None
    signal: int | None
    finished_at: float | None


def read_status(run_dir: str) -> Status | None:
    """The status, None when none was ever written or the file is damaged. Raises OSError."""
    try:
        with open(f"{run_dir}/status.json", encoding="utf-8") as file:
            data = json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return Status(*(data.get(key) for key in KEYS))


def acquire_lock(run_dir: str) -> int | None:
    """A descriptor with the exclusive lock on ``run_dir/lock``; None when another holds it. The file is made if absent. Raises OSError.

    Waits a moment, because ``is_locked`` of another process holds a shared lock for as long as it looks.
    """
    fd = os.open(f"{run_dir}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                os.close(fd)
                raise
        if time.monotonic() > give_up:
            os.close(fd)
            return None
        time.sleep(_LOCK_PAUSE)


def is_locked(run_dir: str) -> bool:
    """Whether an engine in the middle of a start, or a monitor, holds the lock. Raises OSError."""
    try:
        fd = os.open(f"{run_dir}/lock", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
