"""The results as a table for people or one JSON document, and the goals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.bench import datapath
from tests.bench.measure import Results, Value
from tests.bench.scenarios import FIGURES

_THROUGH = {
    "stream-local": "throughput by 127.0.0.1",
    "stream-host": "throughput by the host's address",
    "requests-local": "requests by 127.0.0.1",
    "requests-host": "requests by the host's address",
}
_BY_HAND = {
    datapath.BY_HAND: "a veth and bridge made by hand",
    datapath.BY_HAND_NAT: "one with a DNAT rule",
}


class Verdict(NamedTuple):
    """A goal; ``met`` is ``None`` when it could not be measured."""

    goal: str
    met: bool | None
    told: str


class Report(NamedTuple):
    """Everything that is printed. ``versions`` maps a subject to what it is, ``absent`` to why it was not measured."""

    host: dict[str, str]
    versions: dict[str, str]
    absent: dict[str, str]
    results: Results


def verdicts(results: Results) -> list[Verdict]:
    """What was promised, and what came out."""
    return [
        _faster(results, "the command with -p is at least 2 times faster than docker", "run-p", "docker", 2.0),
        _within(results, "the warm API is within 5 times of the floor", 5.0),
        _faster(results, "the first HTTP answer comes sooner than docker's", "http", "docker", 1.0),
        _faster(results, "the first HTTP answer comes sooner than podman's", "http", "podman", 1.0),
        *(
            _as_by_hand(results, figure, f"netbox {backend}", by_hand)
            for by_hand in _BY_HAND
            for figure in _THROUGH
            for backend in datapath.BACKENDS
        ),
    ]


def _as_by_hand(results: Results, figure: str, subject: str, by_hand: str) -> Verdict:
    goal = f"{subject}: {_THROUGH[figure]} within 5 % of {_BY_HAND[by_hand]}"
    ours, theirs = results.value(figure, subject), results.value(figure, by_hand)
    if ours is None or theirs is None or not theirs.median:
        return Verdict(goal, None, "not measured")
    ratio = ours.median / theirs.median
    return Verdict(goal, ratio >= 0.95, f"{ratio:.1%} ({ours.median:.1f} and {theirs.median:.1f})")


def _faster(results: Results, goal: str, figure: str, peer: str, factor: float) -> Verdict:
    return _compared(goal, results.value(figure, peer), results.value(figure, "netbox"), lambda ratio: ratio >= factor, f"{peer} takes")


def _within(results: Results, goal: str, factor: float) -> Verdict:
    value, floor = results.value("run-bridge", "netbox API"), results.value("run-bridge", "floor")
    return _compared(goal, value, floor, lambda ratio: ratio <= factor, "the API takes")


def _compared(goal: str, one: Value | None, other: Value | None, good: Callable[[float], bool], who: str) -> Verdict:
    if one is None or other is None or not other.median:
        return Verdict(goal, None, "not measured")
    ratio = one.median / other.median
    return Verdict(goal, good(ratio), f"{who} {ratio:.2f} times as long ({one.median:.1f} and {other.median:.1f} ms)")


def as_json(report: Report) -> str:
    """One document: host, versions, figures with all samples, verdicts."""
    results = report.results
    figures = []
    for figure in FIGURES:
        values = {}
        for subject in results.subjects():
            value = results.value(figure.name, subject)
            if value is not None:
                values[subject] = {**value._asdict(), "samples": results.samples[figure.name, subject]}
        if values:
            figures.append({"name": figure.name, "title": figure.title, "unit": figure.unit, "subjects": values})
    failures = [{"figure": figure, "subject": subject, "error": error} for (figure, subject), error in results.failures.items()]
    document = {
        "host": report.host,
        "versions": report.versions,
        "absent": report.absent,
        "figures": figures,
        "failures": failures,
        "verdicts": [verdict._asdict() for verdict in verdicts(results)],
    }
    return json.dumps(document, indent=2)


def as_text(report: Report) -> str:
    """Medians, 95th percentiles and how many times netbox's median, then the goals."""
    results = report.results
    subjects = results.subjects()
    rows = [["", *subjects]]
    for figure in FIGURES:
        values = [results.value(figure.name, subject) for subject in subjects]
        if any(values):
            base = next((value for subject, value in zip(subjects, values, strict=True) if subject == "netbox" and value), None)
            rows.append([f"{figure.title}, {figure.unit}", *(_cell(value, base) for value in values)])
    lines = [f"{key}: {value}" for key, value in {**report.host, **report.versions}.items()]
    lines += [f"{subject}: not measured, {why}" for subject, why in report.absent.items()]
    lines += ["", "median (95th percentile), times netbox's median", "", *_aligned(rows), ""]
    lines += [f"failed: {subject} {figure}: {error}" for (figure, subject), error in results.failures.items()]
    marks = {True: "met", False: "MISSED", None: "open"}
    lines += [f"{marks[verdict.met]:6}  {verdict.goal}: {verdict.told}" for verdict in verdicts(results)]
    return "\n".join(lines)


def _cell(value: Value | None, base: Value | None) -> str:
    if value is None:
        return "-"
    text = f"{value.median:.1f} ({value.p95:.1f})"
    return text if base is None or base is value or not base.median else f"{text} {value.median / base.median:.2f}x"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
