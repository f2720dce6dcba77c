"""``netbox exposure``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netbox.cli import options, output

if TYPE_CHECKING:
    from netbox.engine.exposing import Cell, Reason, Report, Row

_NOTE_LENGTH = 200  # characters; a rule for many ports is longer than anybody reads
_HEADERS = ("SANDBOX", "NETWORK", "WHAT", "OWN NETWORK", "OTHER NETWORKS", "THIS HOST", "LAN, OUTSIDE")


@click.command(epilog="\b\nExamples:\n  netbox exposure\n  netbox exposure web\n  netbox exposure --format json")
@options.format_option
@options.sandboxes_argument(running=True, required=False)
def exposure(output_format: str, names: tuple[str, ...]) -> None:
    """Show who can reach what: each sandbox by its own address, and each published port.

    For every place a connection may come from: whether it gets through, and the rules that say so, by number. The answer comes from the
    rules that stand in the kernel; it sends no packets.
    """
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        report = engine.exposure(*names)
    if output_format == "json":
        output.echo_json(report.to_json())
        return
    output.echo(text(report))


def text(report: Report) -> str:
    """The table, the rules that it refers to, and the warnings."""
    if not report.rows and not report.warnings:
        return "nothing runs"
    numbers: dict[Reason, int] = {}
    rows = [
        _cells(row, numbers, repeated=index > 0 and report.rows[index - 1].sandbox == row.sandbox) for index, row in enumerate(report.rows)
    ]
    parts = [output.table(_HEADERS, rows)] if rows else []
    if numbers:
        listed = [(str(number), item.place or "-", item.owner or "-", item.text) for item, number in numbers.items()]
        parts.append(output.table(("RULE", "PLACE", "OWNER", "WHAT IT SAYS"), listed, right=("RULE",)))
    if report.warnings:
        parts.append("\n".join(f"{output.style('note:', 'yellow')} {output.shortened(line, _NOTE_LENGTH)}" for line in report.warnings))
    return "\n\n".join(parts)


def _cells(row: Row, numbers: dict[Reason, int], repeated: bool) -> list[str]:
    what = f"{row.address}, every port" if row.port is None else output.port_text(row.port)
    name, network = ("", "") if repeated and row.port is not None else ("" if repeated else row.sandbox, row.network)
    return [name, network, what, *(_cell(cell, numbers) for cell in row.cells)]


def _cell(cell: Cell, numbers: dict[Reason, int]) -> str:
    """``yes [1 2]``, ``no [3]``, ``front [1 4]``: who gets through, and the numbers of the rules."""
    if cell.reachable is None:
        answer = f"only {', '.join(cell.reached_by)}"
    else:
        answer = "yes" if cell.reachable else "no"
    cited = " ".join(str(numbers.setdefault(reason, len(numbers) + 1)) for reason in cell.reasons)
    return f"{answer} [{cited}]"
