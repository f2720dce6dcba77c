"""The kernel's floor: ``floor.c``, compiled here, one long-lived process that does a round for every line."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.bench import processes
from tests.bench.measure import Sample, Task
from tests.bench.place import Place
from tests.bench.processes import Failed

_SOURCE = Path(__file__).with_name("floor.c")
_V1_USED = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")


class Floor:
    """Makes the same objects as netbox by raw system calls. No firewall rule is among them."""

    name = "floor"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.directory = place.directory / self.name
        self._process: subprocess.Popen[str] | None = None

    def missing(self) -> str | None:
        """It needs a C compiler."""
        return None if shutil.which("gcc") else "gcc is not installed (apt-get install gcc libc6-dev)"

    def version(self) -> str:
        """The kernel is the subject."""
        return f"raw system calls, {len(self._cgroups()[1])} cgroup hierarchies"

    def open(self) -> None:
        """Compiles and starts it."""
        (self.directory / "work").mkdir(parents=True)
        binary = self.directory / "floor"
        processes.run(["gcc", "-O2", "-o", str(binary), str(_SOURCE)])
        version, cgroups = self._cgroups()
        for cgroup in cgroups:
            _make_cgroup(cgroup)
        argv = [str(binary), "/bin/true", str(self.place.directory / "rootfs"), str(self.directory / "work"), "floorbridge", f"v{version}"]
        self._process = subprocess.Popen([*argv, *map(str, cgroups)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def _cgroups(self) -> tuple[int, list[Path]]:
        """The cgroup version that netbox would use, and the benchmark's directory in each of its hierarchies."""
        found: dict[Path, None] = {}
        unified: list[Path] = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, path = after.split(), Path(before.split()[4])
            if kind[0] == "cgroup" and set(kind[2].split(",")) & set(_V1_USED):
                found[path] = None
            elif kind[0] == "cgroup2":
                unified = [path]
        roots = list(found) or unified
        return (1 if found else 2), [root / self.place.cgroup / "floor" for root in roots]

    def tasks(self) -> list[Task]:
        """One round of each kind of figure."""
        return [Task(self.name, ("floor-exit", "run-bridge"), self._once)]

    def _once(self) -> Iterator[Sample]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None or process.poll() is not None:
            raise Failed("floor ended")
        process.stdin.write("\n")
        line = process.stdout.readline().split()
        if len(line) != 2:
            raise Failed("floor failed, see above")
        yield "floor-exit", int(line[0]) / 1e6
        yield "run-bridge", int(line[1]) / 1e6

    def close(self) -> None:
        """Ends it; it removes its bridge."""
        if self._process is not None:
            self._process.communicate(timeout=20)
            self._process = None


def _make_cgroup(path: Path) -> None:
    """Makes the directory and what is missing above it; a v1 cpuset has to be given processors and memory on every level."""
    if path.exists():
        return
    _make_cgroup(path.parent)
    path.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (path / name).exists() and not (path / "cgroup.controllers").exists():
            (path / name).write_text((path.parent / name).read_text())
    if os.path.exists(path.parent / "cgroup.subtree_control"):
        controllers = (path.parent / "cgroup.controllers").read_text().split()
        (path.parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
