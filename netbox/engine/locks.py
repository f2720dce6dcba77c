"""The lock of a sandbox: whoever works on it, or runs it, holds it.

Liveness is this lock, not a pid: pids are reused, locks are not. The engine takes it and hands the same open file description to the
monitor, so there is no gap between the two; the kernel lets go of it when the last holder is dead (flock(2)).
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from netbox.errors import Conflict, host_error

LOCK_FILE = "lock"
RESTART_FILE = "restart"
POLL_INTERVAL = 0.0002  # seconds at first: who ends lets go within a millisecond
LONGEST_POLL_INTERVAL = 0.005
_WHOLE_FILE = struct.Struct("@hhqqi0q")  # struct flock: type, whence, start, length, pid (fcntl(2), open file description locks)


class SandboxLock:
    """An exclusive lock on a sandbox, held until ``release`` and by every process that was given ``fd``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def acquire(cls, run_directory: str, timeout: float = 0.0) -> SandboxLock | None:
        """Takes the lock, making the run directory when it is not there; ``None`` when another process held it for ``timeout`` seconds.

        Raises:
            HostError: the directory cannot be made.
        """
        deadline, interval = time.monotonic() + timeout, POLL_INTERVAL
        path = f"{run_directory}/{LOCK_FILE}"
        while True:
            fd = _open(run_directory, path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                looked_at = _is_looked_at(fd)
                os.close(fd)
                if not looked_at and time.monotonic() >= deadline:
                    return None
                time.sleep(interval)
                interval = min(2 * interval, LONGEST_POLL_INTERVAL)
                continue
            # Between open and flock a clean-up may have removed the directory: then the lock is on a file that nobody else will find.
            if _is_same_file(fd, path):
                return cls(fd)
            os.close(fd)

    def release(self) -> None:
        """Lets go of this process's hold."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> SandboxLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def acquire_or_conflict(run_directory: str, name: str, timeout: float = 0.0) -> SandboxLock:
    """Takes the lock.

    Raises:
        Conflict: another process works on the sandbox.
    """
    lock = SandboxLock.acquire(run_directory, timeout)
    if lock is None:
        raise held(name)
    return lock


def held(name: str) -> Conflict:
    """The error for a sandbox whose lock stays taken."""
    return Conflict(f"another netbox command is working on {name}", "try again in a moment")


def is_free(run_directory: str) -> bool:
    """Whether nobody holds the lock (also when there is no lock file)."""
    try:
        fd = os.open(f"{run_directory}/{LOCK_FILE}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        # A shared attempt, so that two onlookers do not see each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


@contextmanager
def restarting(run_directory: str) -> Iterator[None]:
    """Says that a sandbox is being restarted, so that its end does not remove it. Several may say so at once; it goes with the process."""
    fd = _open(run_directory, f"{run_directory}/{RESTART_FILE}")
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _WHOLE_FILE.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        yield
    finally:
        os.close(fd)


def is_restarting(run_directory: str) -> bool:
    """Whether somebody restarts the sandbox. It is asked without taking a lock, so that two onlookers do not see each other."""
    try:
        fd = os.open(f"{run_directory}/{RESTART_FILE}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        in_the_way = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE_FILE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(_WHOLE_FILE.unpack(in_the_way)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def _is_looked_at(fd: int) -> bool:
    """Whether only onlookers (``is_free``) stand in the way of the exclusive lock: they are gone at once. Takes a shared lock then."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(run_directory: str, path: str) -> int:
    try:
        while True:
            os.makedirs(run_directory, mode=0o711, exist_ok=True)
            try:
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # a clean-up removed the directory in between
    except OSError as error:
        raise host_error("make", path, error) from error


def _is_same_file(fd: int, path: str) -> bool:
    try:
        here, there = os.fstat(fd), os.stat(path)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
