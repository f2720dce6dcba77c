"""Captures in tests: a ``netbox capture`` in the background, and what tshark reads in its file."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.cli import Cli


class Running:
    """A capture that listens. ``stderr`` and ``stdout`` are what it wrote, once it has ended."""

    def __init__(self, process: subprocess.Popen[str], beginning: str) -> None:
        self.process = process
        self.beginning = beginning
        self.stdout = self.stderr = ""

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, waits for the end, returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Waits for its own end."""
        self.stdout, self.stderr = self.process.communicate(timeout=60)
        return self.process.returncode


@contextlib.contextmanager
def capturing(cli: Cli, *arguments: str) -> Iterator[Running]:
    """``netbox capture ARGUMENTS`` from the moment on when it has said that it listens."""
    with cli.popen("capture", *arguments) as process:
        assert process.stderr is not None
        assert select.select([process.stderr], [], [], 60)[0], "the capture did not begin"
        running = Running(process, process.stderr.readline())
        if "ctrl-c ends" not in running.beginning:
            process.kill()
            raise AssertionError(f"netbox capture {' '.join(arguments)}: {running.beginning}")
        try:
            yield running
        finally:
            if process.poll() is None:
                running.stop()


def tshark(path: Path | str, *fields: str, filter: str = "", check: bool = True) -> list[list[str]]:
    """The values of fields, one list for each packet; addresses are resolved by the file's own records."""
    command = ["tshark", "-r", str(path), "-N", "n", "-T", "fields", *(part for field in fields for part in ("-e", field))]
    result = subprocess.run([*command, "-Y", filter] if filter else command, capture_output=True, text=True, timeout=60, check=check)
    return [line.split("\t") for line in result.stdout.splitlines()]
