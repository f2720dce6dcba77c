"""SIGKILL at a chosen step of what the code under test does, in a child process."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

GOT_THROUGH = 0


def kill() -> None:
    """The end of this process, as ``kill -9`` makes it."""
    os.kill(os.getpid(), signal.SIGKILL)


def install(functions: Iterable[tuple[Any, str]], number: int) -> None:
    """Kills this process at the n-th step; a step is before and after each call of the functions (owner, name)."""
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            kill()

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            step()
            result = function(*arguments, **options)
            step()
            return result

        return call

    for owner, name in functions:
        setattr(owner, name, wrapped(getattr(owner, name)))


def in_child(body: Callable[[], int]) -> int:
    """Runs ``body`` in a forked child; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            code = body()
        except BaseException:  # noqa: BLE001 — the top of the child
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
