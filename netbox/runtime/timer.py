"""A small process that waits for a moment and then becomes a command: how an impairment ends when its time is over.

It ends early, and does nothing, when the sandbox is gone or when the file that stands for the moment is (somebody changed it). Killed, it
leaves its work to the next netbox command.
"""

from __future__ import annotations

import os
import select
import sys
import time

LOOK = 0.25  # seconds between two looks at the file
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def command(pidfd: int, path: str, moment: float, then: list[str]) -> list[str]:
    """The command line of such a process; it goes into the background by itself. ``pidfd`` is inherited, ``moment`` a time of
    CLOCK_BOOTTIME in seconds, ``then`` what it becomes.
    """
    code = f"import sys; sys.path[:0] = [{_PACKAGE_PARENT!r}]; from netbox.runtime.timer import main; main()"
    return [sys.executable, "-I", "-S", "-c", code, str(pidfd), path, repr(moment), *then]


def main() -> None:
    """Goes into the background, waits, and becomes the command."""
    pidfd, path, moment, then = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]
    if os.fork():
        os._exit(0)
    os.chdir("/")
    if wait(pidfd, path, moment):
        os.close(pidfd)
        os.execv(then[0], then)


def wait(pidfd: int, path: str, moment: float) -> bool:
    """Waits for the moment; false when the process behind ``pidfd`` ends first, or the file at ``path`` goes away."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    while os.path.exists(path):
        left = moment - time.clock_gettime(time.CLOCK_BOOTTIME)
        if left <= 0:
            return True
        # A little later rather than too early: poll counts in milliseconds.
        if poller.poll(min(left, LOOK) * 1000 + 1):
            return False
    return False
