"""Advisory locks on open files, waited for with a bound (flock(2))."""

from __future__ import annotations

import fcntl
import time

_POLL_INTERVAL = 0.002  # seconds


def acquire(fd: int, timeout: float) -> bool:
    """Takes the exclusive lock of the open file; false when another held it for ``timeout`` seconds.

    Raises:
        OSError: the file system has no locks.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_INTERVAL)
