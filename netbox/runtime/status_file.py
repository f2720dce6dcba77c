"""Writing status.json without ``import json``: the monitor's part of ``status``."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

RUNNING = "running"
EXITED = "exited"
ABORTED = "aborted"
KEYS = ("state", "pid", "pid_start", "monitor_pid", "started_at", "exit_code", "signal", "finished_at")


def write_status(run_dir: str, values: Mapping[str, object]) -> None:
    """Replaces status.json by rename. Values are numbers, None or plain words; absent keys become null. Raises OSError."""
    fields = ", ".join(f'"{key}": {_render(values.get(key))}' for key in KEYS)
    path = f"{run_dir}/status.json"
    incoming = f"{path}.{os.getpid()}"
    fd = os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, f"{{{fields}}}\n".encode())
    finally:
        os.close(fd)
    os.rename(incoming, path)


def has_status(run_dir: str) -> bool:
    """Whether there is a status."""
    return os.path.exists(f"{run_dir}/status.json")


def remove_status(run_dir: str) -> None:
    """Forgets a status, if there is one. Raises OSError."""
    try:
        os.unlink(f"{run_dir}/status.json")
    except FileNotFoundError:
        pass


def _render(value: object) -> str:
    if value is None:
        return "null"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)). Raises OSError when there is none."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The second field is the command in parentheses, and may hold spaces and parentheses itself.
        return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
    finally:
        os.close(fd)
