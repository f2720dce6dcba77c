"""Rounds, samples, medians."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TextIO

from tests.bench.processes import Failed

Sample = tuple[str, float]  # a figure's name and a value in its unit


class Figure(NamedTuple):
    """A row of the table. ``unit`` is ``ms``, ``MiB`` and so on."""

    name: str
    title: str
    unit: str = "ms"


class Task(NamedTuple):
    """What one subject does in one round. ``once`` yields samples; ``rounds`` bounds how often, when the run has more."""

    subject: str
    figures: tuple[str, ...]
    once: Callable[[], Iterable[Sample]]
    rounds: int = 1000


class Value(NamedTuple):
    """What the samples of one figure and one subject amount to."""

    median: float
    p95: float
    taken: int


class Results:
    """Samples by figure and subject, and what failed."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], list[float]] = {}
        self.failures: dict[tuple[str, str], str] = {}

    def add(self, subject: str, sample: Sample) -> None:
        """Keeps a sample."""
        self.samples.setdefault((sample[0], subject), []).append(sample[1])

    def value(self, figure: str, subject: str) -> Value | None:
        """Median and 95th percentile; ``None`` without samples."""
        samples = self.samples.get((figure, subject))
        if not samples:
            return None
        return Value(statistics.median(samples), percentile(samples, 0.95), len(samples))

    def subjects(self) -> list[str]:
        """Who has samples, in the order of the first one."""
        return list(dict.fromkeys(subject for _, subject in self.samples))


def percentile(samples: Sequence[float], part: float) -> float:
    """The smallest sample that ``part`` of all do not exceed (the nearest-rank method)."""
    ordered = sorted(samples)
    return ordered[max(0, min(len(ordered) - 1, -(-int(part * 100) * len(ordered) // 100) - 1))]


def interleave(tasks: Sequence[Task], rounds: int, progress: Progress) -> Results:
    """Runs every task once a round, each round starting with another one, after a first round that does not count.

    A task that fails twice in a row is dropped; its failure is told in the results.
    """
    results = Results()
    failed: dict[int, int] = {}
    for number in range(rounds + 1):
        for index in _rotated(range(len(tasks)), number):
            task = tasks[index]
            if failed.get(index, 0) > 1 or number > task.rounds or (number == 0 and task.rounds == 1):
                continue
            progress.show(f"round {number}/{rounds}  {task.subject}  {task.figures[0]}" if number else f"warming up  {task.subject}")
            try:
                samples = list(task.once())
            except Failed as error:
                failed[index] = failed.get(index, 0) + 1
                for figure in task.figures:
                    results.failures[figure, task.subject] = str(error)
                continue
            failed[index] = 0
            for sample in samples if number else ():
                results.add(task.subject, sample)
    progress.clear()
    return results


def _rotated(items: Sequence[int], by: int) -> Iterator[int]:
    for position in range(len(items)):
        yield items[(position + by) % len(items)]


class Progress:
    """One line on a terminal that is overwritten; nothing elsewhere."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._on = stream.isatty()
        self._begun = time.monotonic()

    def show(self, text: str) -> None:
        """Replaces the line."""
        if self._on:
            self._stream.write(f"\r\x1b[K{time.monotonic() - self._begun:5.0f} s  {text}")
            self._stream.flush()

    def clear(self) -> None:
        """Takes the line away."""
        if self._on:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
