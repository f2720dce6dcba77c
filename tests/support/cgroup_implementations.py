"""The implementations of ``netbox.kernel.cgroups`` that can be tested on this host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from netbox.kernel.cgroups import Cgroups
from netbox.kernel.cgroups.hierarchies import parse_mountinfo, v1_hierarchies, v2_hierarchy
from netbox.kernel.cgroups.v1 import V1
from netbox.kernel.cgroups.v2 import V2
from tests.support.waiting import wait_until


def _mounts() -> tuple[dict[str, str], str | None]:
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    return v1_hierarchies(mounts, os.path.exists), v2_hierarchy(mounts, os.path.exists)


def _controllers() -> set[str]:
    unified = _mounts()[1]
    return set(Path(unified, "cgroup.controllers").read_text().split()) if unified else set()


HAS_V1 = {"freezer", "memory", "pids", "cpu", "cpuset", "devices"} <= set(_mounts()[0])
HAS_V2 = _mounts()[1] is not None
HAS_V2_LIMITS = {"memory", "pids", "cpu", "cpuset"} <= _controllers()

KERNEL = ["v1"] * HAS_V1 + ["v2"] * HAS_V2
LIMITING = ["v1"] * HAS_V1 + ["v2"] * HAS_V2_LIMITS + ["v2-files"]


def named(name: str, sys_block: str = "/sys/block") -> Cgroups:
    """The implementation called ``v1`` or ``v2``, on this host's own hierarchies."""
    hierarchies, unified = _mounts()
    if name == "v1":
        return V1(hierarchies, sys_block)
    assert unified is not None
    return V2(unified, sys_block)


@contextlib.contextmanager
def on_kernel(name: str, sys_block: str = "/sys/block") -> Iterator[Cgroups]:
    """The same; what version 2 has enabled at the root of the hierarchy in the meantime is disabled afterwards.

    The root is one for all: a lock on it keeps other tests from disabling what this one has enabled.
    """
    unified = _mounts()[1]
    if unified is None:
        yield named(name, sys_block)
        return
    root = os.open(unified, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(root, fcntl.LOCK_EX)
        control = Path(unified, "cgroup.subtree_control")
        before = set(control.read_text().split())
        yield named(name, sys_block)
        for controller in set(control.read_text().split()) - before:
            control.write_text(f"-{controller}")
    finally:
        os.close(root)


def on_files(directory: Path, path: str) -> V2:
    """Version 2 on a directory that looks like a hierarchy with the cgroup ``path`` in it, just made."""
    controllers = "cpuset cpu io memory pids"
    files = {"cgroup.controllers": controllers, "cgroup.subtree_control": "", "cgroup.procs": "1\n", "cpuset.cpus.effective": "0-3\n"}
    _fill(directory, files)
    current = directory
    for name in path.split("/"):
        current = current / name
        current.mkdir()
        _fill(
            current,
            {
                "cgroup.controllers": controllers,
                "cgroup.subtree_control": "",
                "cgroup.type": "domain",
                "cgroup.procs": "",
                "cpu.max": "max 100000",
                "cpu.weight": "100",
                "cpu.stat": "usage_usec 0",
                "cpuset.cpus": "",
                "memory.max": "max",
                "memory.swap.max": "max",
                "memory.current": "0",
                "memory.stat": "anon 0\nactive_file 0\ninactive_file 0\nslab_reclaimable 0",
                "memory.events": "oom 0\noom_kill 0",
                "pids.max": "max",
                "pids.current": "0",
                "io.weight": "default 100",
                "io.stat": "",
            },
        )
    return V2(str(directory), str(directory / "block"))


def _fill(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).write_text(text)


def inside(cgroups: Cgroups, path: str, *command: str) -> list[str]:
    """The command, preceded by a shell that joins the cgroup first."""
    targets = [target if cgroups.version == 1 else f"{target}/cgroup.procs" for target in cgroups.join(path)]
    joins = " && ".join(f"echo 0 > {target}" for target in targets)
    return ["sh", "-c", f'{joins} && exec "$@"', "sh", *command]


def await_join(cgroups: Cgroups, path: str, pid: int) -> None:
    """Returns when the shell of ``inside`` has joined every hierarchy and become the command."""
    wait_until(lambda: pid in cgroups.processes(path) and b"echo 0 >" not in Path(f"/proc/{pid}/cmdline").read_bytes(), "a process to join")


def is_throttled_to_a_tenth(cgroups: Cgroups, path: str) -> None:
    """A busy process in the cgroup is held back, and gets about a tenth of a processor however the machine is doing."""
    begun = time.monotonic()
    with subprocess.Popen(inside(cgroups, path, "sh", "-c", "while :; do :; done")) as process:
        try:

            def held_back() -> bool:
                usage = cgroups.measure(path)
                return usage.throttled_periods > 0 and usage.throttled_ns > 100_000_000 and time.monotonic() - begun > 0.5

            wait_until(held_back, "a process that is held back", timeout=60)
            used = cgroups.measure(path).cpu_ns / 1e9
            # A slice of a few milliseconds more for each processor, and the part of a period that is just running.
            assert used < 0.2 * (time.monotonic() - begun) + 0.1
        finally:
            process.kill()
