"""The outcomes of several pytest runs as one closing line: ``python -m tests.support.counts FILE SECONDS``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

_ORDER = ("failed", "passed", "skipped", "xfailed", "xpassed", "error")


def write(path: str, reporter: pytest.TerminalReporter) -> None:
    """Adds the outcomes of one run to the file, as a line of JSON."""
    counts = {outcome: len(reporter.stats.get(outcome, ())) for outcome in _ORDER}
    with Path(path).open("a") as file:
        file.write(json.dumps(counts) + "\n")


def closing_line(lines: list[str], seconds: float) -> str:
    """The sum in the form of pytest's own last line."""
    total: Counter[str] = Counter()
    for line in lines:
        total.update(json.loads(line))
    words = ", ".join(f"{total[outcome]} {outcome}" for outcome in _ORDER if total[outcome]) or "no tests ran"
    return f" {words} in {seconds:.2f}s ".center(80, "=")


if __name__ == "__main__":
    print(closing_line(Path(sys.argv[1]).read_text().splitlines(), float(sys.argv[2])))
