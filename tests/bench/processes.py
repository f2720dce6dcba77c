"""Processes as the benchmark sees them: running, waiting, weighing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TIMEOUT = 120.0


class Failed(Exception):
    """A command of a subject failed; the message is one line."""


def run(argv: Sequence[str], env: dict[str, str] | None = None, timeout: float = TIMEOUT, text: str = "") -> str:
    """Runs a command to its end with ``text`` on its standard input and returns what it printed. Raises ``Failed``."""
    try:
        result = subprocess.run(argv, env=env, input=text, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{' '.join(argv)}: {error}") from error
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise Failed(f"{' '.join(argv)}: exit code {result.returncode}: {lines[-1] if lines else ''}")
    return result.stdout


def timed(argv: Sequence[str], env: dict[str, str] | None = None) -> float:
    """How many seconds the command takes."""
    begun = time.perf_counter()
    run(argv, env)
    return time.perf_counter() - begun


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    """Waits for the condition. Raises ``Failed``."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited {timeout:g} s in vain for {what}")
        time.sleep(0.005)


def end(process: subprocess.Popen[bytes], timeout: float = 20.0) -> None:
    """Ends a child: SIGTERM, then SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(timeout)


def pids() -> set[int]:
    """Every process of the benchmark's PID namespace."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def executable(pid: int) -> str:
    """The name of the program that the process runs; empty for one that is gone."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def is_inside(pid: int) -> bool:
    """Whether the process is in another PID namespace than this one: it is what runs in a sandbox."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False


def weight(pid: int) -> int:
    """The resident memory of the process in bytes, shared pages counted in parts (PSS)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A file that is gone afterwards."""
    yield path
    path.unlink(missing_ok=True)
