"""``netbox verify``."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import click

from netbox.cli import output

if TYPE_CHECKING:
    from netbox.packet.verifying.run import Outcome

_MODES = ("bridge", "ipv6", "host", "container", "none", "macvlan", "ns")
_MARKS = {True: ("✓", "green"), False: ("✗", "red")}
_WIDTH = 110


@click.command(
    epilog="""\b
Examples:
  netbox verify                          # every mode
  netbox verify bridge
  netbox verify --format tap             # for a test harness
  netbox verify --format junit > verify.xml

The exit code is 0 when every promise was kept, else 1.
"""
)
@click.option("--format", "output_format", type=click.Choice(["text", "tap", "junit", "json"]), default="text", help="How to print it.")
@click.argument("modes", metavar="[MODE...]", nargs=-1, type=click.Choice(_MODES))
def verify(modes: tuple[str, ...], output_format: str) -> int:
    """Prove with packets that networks work on this machine.

    Builds sandboxes in every mode (bridge, the same with ipv6, host, container, none, on a LAN by macvlan, in somebody else's namespace)
    and another machine on the host's network, all of them temporary, and sends packets between them: what must arrive, and what must
    not. Everything is removed again, also after ctrl-c.
    A mode that this kernel cannot have (ipv6, macvlan) is left out, which is said, unless it is named: then it is an error.
    """
    from netbox.engine import Engine
    from netbox.packet.verifying import formats, run

    start = time.monotonic()
    progress = _Progress(output_format == "text")

    def finished(mode: str, outcomes: list[Outcome]) -> None:
        progress.clear()
        if output_format == "text":
            output.echo("\n".join(block(mode, outcomes)))
            output.echo()

    with Engine() as engine:
        outcomes = run.verify(engine, modes, progress.step, finished)
    flat = [outcome for group in outcomes.values() for outcome in group]
    if output_format == "text":
        output.echo(summary(flat, time.monotonic() - start))
    elif output_format == "json":
        output.echo_json({"passed": all(item.passed for item in flat), "outcomes": [item._asdict() for item in flat]})
    else:
        output.echo({"tap": formats.tap, "junit": formats.junit}[output_format](outcomes))
    return 0 if all(outcome.passed for outcome in flat) else 1


def block(mode: str, outcomes: list[Outcome]) -> list[str]:
    """A mode: its promises, and below each broken one what happened instead; or why it was left out."""
    if outcomes[0].skipped:
        return [output.style(mode, "bold"), f"  {output.style(f'{outcomes[0].title}: {outcomes[0].detail}', 'yellow')}"]
    width = max(len(outcome.title) for outcome in outcomes)
    lines = [output.style(mode, "bold")]
    for outcome in outcomes:
        mark, colour = _MARKS[outcome.passed]
        trip = f"{outcome.seconds * 1000:.3g} ms" if outcome.seconds is not None and outcome.passed and outcome.seconds < 0.1 else ""
        lines.append(f"  {output.style(mark, colour)} {outcome.title:<{width}}   {output.style(trip, 'dim')}".rstrip())
        if outcome.detail:
            lines += [f"      {output.style(line, 'red')}" for line in textwrap.wrap(outcome.detail, _WIDTH - 6)]
    return lines


def summary(outcomes: list[Outcome], seconds: float) -> str:
    """``33 of 33 promises kept in 2.4 s``, and what was left out."""
    judged = [outcome for outcome in outcomes if not outcome.skipped]
    kept = sum(outcome.passed for outcome in judged)
    left_out = ", ".join(outcome.mode for outcome in outcomes if outcome.skipped)
    text = f"{kept} of {len(judged)} promises kept in {seconds:.1f} s" + (f"; left out: {left_out}" if left_out else "")
    if kept == len(judged):
        return f"{output.style('this machine is sound', 'green')}: {text}"
    broken = ", ".join(dict.fromkeys(outcome.mode for outcome in judged if not outcome.passed))
    return f"{output.style('this machine is not sound', 'red')}: {text}; broken in {broken}; 'netbox check' says what is missing"


class _Progress:
    """One line on a terminal that says what is going on, and is gone afterwards."""

    def __init__(self, wanted: bool) -> None:
        self._shown = wanted and sys.stderr.isatty()

    def step(self, mode: str, step: str) -> None:
        """Shows it."""
        if self._shown:
            width = shutil.get_terminal_size((_WIDTH, 0)).columns
            sys.stderr.write("\r\x1b[K" + output.style(f"{mode}: {step} …"[:width], "dim", sys.stderr))
            sys.stderr.flush()

    def clear(self) -> None:
        """Takes it away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
