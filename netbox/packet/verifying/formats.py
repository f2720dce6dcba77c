"""Outcomes for machines: TAP version 13 (testanything.org) and JUnit XML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netbox.packet.verifying.run import Outcome


def tap(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """The outcomes as TAP; what went wrong stands in a YAML block, what was left out has the directive SKIP."""
    flat = [outcome for group in outcomes.values() for outcome in group]
    lines = ["TAP version 13", f"1..{len(flat)}"]
    for number, outcome in enumerate(flat, 1):
        skip = f" # SKIP {outcome.detail}" if outcome.skipped else ""
        lines.append(f"{'ok' if outcome.passed else 'not ok'} {number} - {outcome.mode}: {outcome.title.replace('#', '')}{skip}")
        if not outcome.passed:
            lines += ["  ---", f"  message: {_quoted(outcome.detail)}", "  ..."]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)  # a JSON string is one of YAML, too


def junit(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """The outcomes as JUnit XML: a test suite for each mode."""
    from xml.sax.saxutils import quoteattr

    flat = [outcome for group in outcomes.values() for outcome in group]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<testsuites name="netbox verify" {_counts(flat)}>']
    for mode, group in outcomes.items():
        lines.append(f"  <testsuite name={quoteattr(mode)} {_counts(group)}>")
        for outcome in group:
            names = f"classname={quoteattr('netbox.verify.' + mode)} name={quoteattr(outcome.title)}"
            head = f'    <testcase {names} time="{outcome.seconds or 0:.6f}"'
            if outcome.passed and not outcome.skipped:
                lines.append(f"{head}/>")
            else:
                verdict = "skipped" if outcome.skipped else "failure"
                lines += [f"{head}>", f"      <{verdict} message={quoteattr(outcome.detail)}/>", "    </testcase>"]
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>"])


def _counts(outcomes: Sequence[Outcome]) -> str:
    failures, skipped = sum(not outcome.passed for outcome in outcomes), sum(outcome.skipped for outcome in outcomes)
    return f'tests="{len(outcomes)}" failures="{failures}" errors="0" skipped="{skipped}"'
