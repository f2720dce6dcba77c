"""``python -m tests.bench``: see ``--help``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Protocol

from tests.bench import place, report, rootfs, scenarios
from tests.bench.datapath import DataPath
from tests.bench.floor import Floor
from tests.bench.measure import Progress, Task, interleave
from tests.bench.networks import ManyNetworks
from tests.bench.place import Place
from tests.bench.processes import Failed
from tests.bench.subjects import Docker, Netbox, Podman, Subject
from tests.bench.warm import Firewall, Warm

SUBJECTS = ("netbox", "api", "docker", "podman", "floor", "firewall", "networks", "datapath")


class Opened(Protocol):
    """What can be made ready and taken down."""

    name: str

    def missing(self) -> str | None: ...

    def version(self) -> str: ...

    def open(self) -> None: ...

    def close(self) -> None: ...


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures netbox beside docker, podman and the kernel's floor, interleaved, in namespaces of their own.",
    )
    names = ", ".join((*SUBJECTS, *(figure.name for figure in scenarios.FIGURES)))
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="how often everything is measured (10)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=f"subjects and figures, may be given again: {names}")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="a table, or one document with all samples")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a goal is missed or could not be measured")
    options = parser.parse_args()
    unknown = set(options.only) - set(SUBJECTS) - {figure.name for figure in scenarios.FIGURES}
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))}: no such subject or figure; choose from {names}")
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def main() -> int:
    """Checks what can be checked outside, then works inside."""
    options = arguments()
    if os.geteuid() != 0:
        print("scripts/bench: this needs root: sudo scripts/bench", file=sys.stderr)
        return 2
    if rootfs.busybox() is None:
        print("scripts/bench: busybox is not installed: apt-get install busybox-static", file=sys.stderr)
        return 2
    return place.run_inside(lambda where: work(where, options))


def work(where: Place, options: argparse.Namespace) -> int:
    """Opens the subjects, measures, closes them in reverse, prints."""
    progress = Progress()
    rootfs.make(where.directory / "rootfs")
    opened: list[Opened] = []
    versions: dict[str, str] = {}
    absent: dict[str, str] = {}
    try:
        for key, subject in _chosen(where, options.only).items():
            progress.show(f"starting {key}")
            why = subject.missing()
            try:
                if why is None:
                    opened.append(subject)
                    subject.open()
                    versions[subject.name] = subject.version()
            except Failed as error:
                why = str(error)
                opened.remove(subject)
                subject.close()
            if why is not None:
                absent[subject.name] = why
        tasks = _tasks(opened, options.only)
        try:
            tasks += _firewall_tasks(options.only)
        except Failed as error:
            absent["firewall"] = str(error)
        results = interleave(tasks, options.rounds, progress)
    finally:
        progress.show("cleaning up")
        for subject in reversed(opened):
            subject.close()
        progress.clear()
    told = report.Report(_host(), versions, absent, results)
    print(report.as_json(told) if options.format == "json" else report.as_text(told))
    missed = any(not verdict.met for verdict in report.verdicts(results))
    return 1 if options.check and missed else 0


def _chosen(where: Place, only: list[str]) -> dict[str, Opened]:
    """The subjects that were asked for: all, unless some are named."""
    everything: dict[str, Opened] = {
        "netbox": Netbox(where),
        "api": Warm(),
        "docker": Docker(where),
        "podman": Podman(where),
        "floor": Floor(where),
        "networks": ManyNetworks(),
        "datapath": DataPath(where),
    }
    named = set(only) & set(SUBJECTS)
    return {key: subject for key, subject in everything.items() if not named or key in named}


def _tasks(opened: list[Opened], only: list[str]) -> list[Task]:
    tasks: list[Task] = []
    for subject in opened:
        if isinstance(subject, Subject):
            tasks += scenarios.command_tasks(subject)
        elif isinstance(subject, Floor | Warm | ManyNetworks | DataPath):
            tasks += subject.tasks()
    return _wanted(tasks, only)


def _firewall_tasks(only: list[str]) -> list[Task]:
    named = set(only)
    wanted = not named & set(SUBJECTS) or "firewall" in named
    return _wanted(Firewall().tasks(), only) if wanted else []


def _wanted(tasks: list[Task], only: list[str]) -> list[Task]:
    figures = set(only) - set(SUBJECTS)
    return [task for task in tasks if not figures or figures & set(task.figures)]


def _host() -> dict[str, str]:
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    return {
        "kernel": f"{platform.release()}, {os.cpu_count()} processors, {int(memory) // 1024} MiB",
        "system": _system(),
    }


def _system() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


if __name__ == "__main__":
    sys.exit(main())
