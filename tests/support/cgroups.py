"""The cgroup hierarchies as directories: where they are mounted, what lies below a path, how to empty and remove it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.support.waiting import wait_until


def hierarchies() -> list[Path]:
    """The mount points of all cgroup hierarchies that the calling process sees, the unified one (version 2) first if there is one."""
    found: list[tuple[bool, Path]] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind = after.split()[0]
        if kind in ("cgroup", "cgroup2"):
            found.append((kind == "cgroup", Path(before.split()[4])))
    return list(dict.fromkeys(path for _, path in sorted(found)))


def marking_hierarchy() -> Path:
    """The hierarchy that no sandbox is moved in, if there is one: the unified one, else the one named systemd, else the first."""
    found = hierarchies()
    if not found:
        raise RuntimeError("no cgroup hierarchy is mounted; the tests need one to find left-over processes")
    if (found[0] / "cgroup.controllers").exists():
        return found[0]
    return next((path for path in found if path.name == "systemd"), found[0])


def below(parent: str) -> set[str]:
    """Every cgroup below ``parent`` in every hierarchy, as absolute paths. ``parent`` itself is not among them."""
    return {directory for hierarchy in hierarchies() for directory, _, _ in os.walk(hierarchy / parent)} - {
        str(hierarchy / parent) for hierarchy in hierarchies()
    }


def processes(directory: Path) -> set[int]:
    """The processes in a cgroup directory and all below it. Zombies are in no cgroup."""
    found: set[int] = set()
    for path, _, _ in os.walk(directory):
        with contextlib.suppress(FileNotFoundError, OSError):
            found.update(int(word) for word in Path(path, "cgroup.procs").read_text().split())
    return found - {0}


def kill_processes(pids: set[int]) -> None:
    """Ends processes and waits, boundedly, until they are gone. Ours are reaped."""
    handles = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    try:
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        wait_until(lambda: not _alive(pids), f"the end of killed processes {sorted(pids)}", timeout=30)
    finally:
        for handle in handles:
            os.close(handle)


def _alive(pids: set[int]) -> set[int]:
    alive = set()
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                alive.add(pid)
    return alive


def remove(parent: str) -> None:
    """Thaws, empties and removes the tree of ``parent`` in every hierarchy."""
    for hierarchy in hierarchies():
        tree = [Path(path) for path, _, _ in os.walk(hierarchy / parent, topdown=False)]
        for directory in tree:
            for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(FileNotFoundError):  # a clean-up may be removing it
                    if (directory / name).exists():
                        (directory / name).write_text(value)
        if tree:
            kill_processes(processes(hierarchy / parent) - {os.getpid()})
        for directory in tree:
            wait_until(lambda directory=directory: _removed(directory), f"the removal of {directory}", timeout=30)  # type: ignore[misc]


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
