"""The arithmetic of the benchmark: order of the rounds, percentiles, verdicts, the two formats."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.measure import Progress, Results, Sample, Task, interleave, percentile
from tests.bench.processes import Failed
from tests.bench.report import Report, as_json, as_text, verdicts


def results(values: dict[tuple[str, str], list[float]]) -> Results:
    found = Results()
    for (figure, subject), samples in values.items():
        for sample in samples:
            found.add(subject, (figure, sample))
    return found


MET = {
    ("run-p", "netbox"): [100.0, 110.0, 105.0],
    ("run-p", "docker"): [210.0, 300.0, 220.0],
    ("run-bridge", "netbox API"): [20.0],
    ("run-bridge", "floor"): [4.0],
    ("http", "netbox"): [90.0],
    ("http", "docker"): [900.0],
    ("http", "podman"): [180.0],
    **{
        (f"{what}-{way}", subject): [value]
        for what in ("stream", "requests")
        for way in ("local", "host")
        for subject, value in (("by hand", 100.0), ("by hand, NAT", 99.0), ("netbox iptables", 95.0), ("netbox nftables", 104.0))
    },
}
GOALS = 20


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_percentile_is_a_sample_that_most_do_not_exceed(samples: list[float]) -> None:
    value = percentile(samples, 0.95)
    assert value in samples
    assert sum(sample <= value for sample in samples) >= 0.95 * len(samples)


def test_all_goals_are_met() -> None:
    assert [verdict.met for verdict in verdicts(results(MET))] == [True] * GOALS


@pytest.mark.parametrize(
    ("figure", "subject", "value", "number"),
    [
        ("run-p", "docker", 209.0, 0),
        ("run-bridge", "floor", 3.9, 1),
        ("http", "docker", 80.0, 2),
        ("http", "podman", 89.0, 3),
        ("requests-host", "netbox nftables", 94.9, 11),
        ("requests-host", "by hand, NAT", 100.1, 18),
    ],
)
def test_a_goal_is_missed(figure: str, subject: str, value: float, number: int) -> None:
    found = verdicts(results({**MET, (figure, subject): [value]}))
    assert [verdict.met for verdict in found].count(False) == 1
    assert found[number].met is False


def test_what_was_not_measured_is_open() -> None:
    assert [verdict.met for verdict in verdicts(Results())] == [None] * GOALS


def test_the_rounds_are_interleaved_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def task(name: str, rounds: int = 1000) -> Task:
        def once() -> Iterator[Sample]:
            order.append(name)
            yield "exec", float(len(order))

        return Task(name, ("exec",), once, rounds)

    found = interleave([task("a"), task("b"), task("once", rounds=1)], 3, Progress(io.StringIO()))
    assert order == ["a", "b", "b", "once", "a", "a", "b", "a", "b"]
    assert {subject: len(samples) for (_, subject), samples in found.samples.items()} == {"a": 3, "b": 3, "once": 1}


def test_a_task_that_keeps_failing_is_told_and_dropped() -> None:
    calls: list[int] = []

    def once() -> list[Sample]:
        calls.append(1)
        raise Failed("no such thing")

    found = interleave([Task("docker", ("exec", "stop"), once)], 10, Progress(io.StringIO()))
    assert len(calls) == 2
    assert found.failures == {("exec", "docker"): "no such thing", ("stop", "docker"): "no such thing"}


def test_both_formats_hold_the_figures() -> None:
    report = Report({"kernel": "6.1"}, {"netbox": "0.1"}, {"podman": "not installed"}, results(MET))
    lines = as_text(report).splitlines()
    row = next(line for line in lines if line.startswith("run --rm -p"))
    assert "105.0 (110.0) " in row
    assert "220.0 (300.0) 2.10x" in row
    assert "podman: not measured, not installed" in lines
    assert sum(line.startswith("met ") for line in lines) == GOALS
    document = json.loads(as_json(report))
    figure = next(figure for figure in document["figures"] if figure["name"] == "run-p")
    assert figure["subjects"]["netbox"] == {"median": 105.0, "p95": 110.0, "taken": 3, "samples": [100.0, 110.0, 105.0]}
    assert [verdict["met"] for verdict in document["verdicts"]] == [True] * GOALS
