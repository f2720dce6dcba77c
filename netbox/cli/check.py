"""``netbox check``."""

from __future__ import annotations

import shutil
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

import click

from netbox.cli import output
from netbox.cli.options import format_option

if TYPE_CHECKING:
    from netbox.engine.check import Fact

_DASH = "\N{EN DASH}"
_MARKS = {"ok": ("✓", "green"), "limited": (_DASH, "yellow"), "missing": ("✗", "red")}
_MARK_OF_EXTRA = (_DASH, "yellow")  # missing, and the main job does without
_WIDTH_MAX = 110
_MARGIN = 4


@click.command("check")
@format_option
def command(output_format: str) -> int:
    """Check what this machine offers and what is missing.

    Lists every kernel feature and tool that netbox needs or can use, with what it is for and how to get it: ✓ is there, ✗ is needed and
    missing, – is limited or missing and not needed for the main job. Tries things out in namespaces that vanish; nothing on the machine
    changes.

    The exit code is 0 when the main job, a sandbox with a published port, can run, else 1.
    """
    from netbox.engine import check

    facts = check.facts()
    usable = check.usable(facts)
    if output_format == "json":
        output.echo_json({"usable": usable, "facts": [fact._asdict() for fact in facts]})
    else:
        output.echo(render(facts, min(shutil.get_terminal_size((_WIDTH_MAX, 0)).columns, _WIDTH_MAX)))
        output.echo()
        output.echo(summary(facts, usable))
    return 0 if usable else 1


def render(facts: list[Fact], width: int) -> str:
    """The facts as aligned lines under the titles of their groups; below what is not all right, how to get it."""
    names = max(len(fact.name) for fact in facts)
    purposes = max(len(fact.purpose) for fact in facts)
    blocks = []
    for group, members in groupby(facts, key=lambda fact: fact.group):
        lines = [line for fact in members for line in _lines(fact, names, purposes, width)]
        blocks.append("\n".join([output.style(group, "bold"), *lines]))
    return "\n\n".join(blocks)


def _lines(fact: Fact, names: int, purposes: int, width: int) -> list[str]:
    mark, colour = _MARK_OF_EXTRA if fact.state == "missing" and not fact.required else _MARKS[fact.state]
    start = f"  {output.style(mark, colour)} {fact.name.ljust(names)}   "
    indent = " " * (_MARGIN + names + 3)
    note = fact.detail or ("missing" if fact.state == "missing" else "")
    if not note:
        return [f"{start}{fact.purpose}"]
    column = len(indent) + purposes + 3
    if fact.state == "ok" and column + len(note) <= width:
        return [f"{start}{fact.purpose.ljust(purposes)}   {output.style(note, 'dim')}"]
    text = f"{note} → {fact.remedy}" if fact.remedy else note
    style = "dim" if fact.state == "ok" else colour
    wrapped = textwrap.wrap(text, max(width - len(indent), 20), break_long_words=False, break_on_hyphens=False)
    return [f"{start}{fact.purpose}", *(f"{indent}{output.style(line, style)}" for line in wrapped)]


def summary(facts: list[Fact], usable: bool) -> str:
    """One line: how many are there, and whether netbox can run."""
    there = sum(fact.state == "ok" for fact in facts)
    counts = f"{there} of {len(facts)} there"
    if usable:
        lacking = [fact.name for fact in facts if fact.state != "ok"]
        rest = f"; not all there, and not needed: {', '.join(lacking)}" if lacking else ""
        return f"{output.style('netbox can run here', 'green')}: {counts}{rest}"
    needed = ", ".join(fact.name for fact in facts if fact.required and fact.state == "missing")
    return f"{output.style('netbox cannot run here', 'red')}: {counts}; needed and missing: {needed}"
