"""``netbox stats`` and ``netbox top``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from netbox.cli import options, output, terminal
from netbox.errors import NotFound, WrongState

if TYPE_CHECKING:
    from netbox.engine import Engine, Sandbox
    from netbox.engine.observing import Stats
    from netbox.kernel.processes import ProcessRow

INTERVAL = 1.0  # seconds between two lines of a live display
_FIRST_SAMPLE = 0.25  # seconds that the first measurement of the load takes
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_HEADERS = ("ID", "NAME", "CPU %", "MEMORY / LIMIT", "MEM %", "NET IN / OUT", "PACKETS IN / OUT", "BLOCK READ / WRITTEN", "PIDS")
_RIGHT = ("CPU %", "MEM %", "PIDS")


@click.command(
    epilog="""\b
Examples:
  netbox stats
  netbox stats web db
  netbox stats --no-stream --format json web

100 % CPU is one processor. Without a terminal a live display prints a table (or, with --format json, a line) each second.
"""
)
@click.option("--no-stream", is_flag=True, help="Measure once and end.")
@options.no_trunc_option
@options.format_option
@options.sandboxes_argument(running=True, required=False)
def stats(no_stream: bool, no_trunc: bool, output_format: str, names: tuple[str, ...]) -> None:
    """Show what running sandboxes use: CPU, memory, network, block I/O, processes."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        meter = Meter(engine, names)
        meter.measure()
        time.sleep(_FIRST_SAMPLE)
        if no_stream:
            found = meter.measure()
            if output_format == "json":
                output.echo_json([document(item) for item in found])
            else:
                output.echo(table(found, no_trunc))
        else:
            _live(meter, output_format, no_trunc)


class Meter:
    """Measures the named sandboxes, or all that run, again and again; the load is that since the last time."""

    def __init__(self, engine: Engine, names: Sequence[str]) -> None:
        self._engine = engine
        # Named ones are looked up once: a name that does not exist is an error, one that ends later is not.
        self._named = [engine.get(name) for name in names]
        self._before: dict[str, Stats] = {}
        for sandbox in self._named:
            self._before[sandbox.id] = sandbox.stats()

    @property
    def finished(self) -> bool:
        """Whether sandboxes were named and none of them runs any more."""
        return bool(self._named) and not self._before

    def measure(self) -> list[Stats]:
        """One measurement of each that runs."""
        found = [item for item in map(self._one, self._named or self._engine.list()) if item is not None]
        self._before = {item.id: item for item in found}
        return found

    def _one(self, sandbox: Sandbox) -> Stats | None:
        try:
            return sandbox.stats(self._before.get(sandbox.id))
        except (WrongState, NotFound):
            return None  # it has ended


def document(item: Stats) -> dict[str, Any]:
    """A measurement for JSON output: bytes, nanoseconds, percent."""
    from netbox.cli.listing import _STATS_FIELDS

    return {"id": item.id, "name": item.name, "time": item.time, **{key: getattr(item, key) for key in _STATS_FIELDS}}


def table(found: Sequence[Stats], no_trunc: bool) -> str:
    """Measurements as a table."""
    size = output.human_size
    rows = [
        (
            item.id if no_trunc else item.id[:12],
            item.name,
            f"{item.cpu_percent:.2f}",
            f"{size(item.memory)} / {'-' if item.memory_limit is None else size(item.memory_limit)}",
            f"{item.memory_percent:.2f}",
            f"{size(item.rx_bytes)} / {size(item.tx_bytes)}",
            f"{item.rx_packets} / {item.tx_packets}",
            f"{size(item.block_read)} / {size(item.block_written)}",
            str(item.pids) if item.pids_limit is None else f"{item.pids}/{item.pids_limit}",
        )
        for item in found
    ]
    return output.table(_HEADERS, rows, _RIGHT)


def _live(meter: Meter, output_format: str, no_trunc: bool) -> None:
    """Until ctrl-c, or until the named ones have ended."""
    redraw = output_format == "table" and sys.stdout.isatty()
    lines = 0
    try:
        if redraw:
            sys.stdout.write(_HIDE_CURSOR)
        while True:
            found = meter.measure()
            if meter.finished:
                return
            if output_format == "json":
                output.echo_json([document(item) for item in found], compact=True)
            elif redraw:
                lines = _redraw(table(found, no_trunc), lines)
            else:
                print(table(found, no_trunc), flush=True)
            time.sleep(INTERVAL)
    except KeyboardInterrupt:
        if redraw:
            print()  # ends the line on which the terminal showed ^C
    finally:
        if redraw:
            sys.stdout.write(_SHOW_CURSOR)
            sys.stdout.flush()


def _redraw(text: str, before: int) -> int:
    """Puts the text where the ``before`` lines of the last one are, cut to what the terminal shows. Returns how many lines it has."""
    rows, columns = terminal.console_size() or (24, 80)
    lines = [line[:columns] for line in text.split("\n")[: rows - 1]]
    back = f"\x1b[{before}A\r\x1b[J" if before else ""
    print(back + "\n".join(lines), flush=True)
    return len(lines)


@click.command(
    epilog="""\b
Examples:
  netbox top web
  netbox top --format json web
"""
)
@options.format_option
@options.sandbox_argument(running=True)
def top(output_format: str, name: str) -> None:
    """List the processes of a sandbox. PID is the host's, INSIDE the sandbox's own."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        rows = engine.get(name).top()
    if output_format == "json":
        output.echo_json([row._asdict() for row in rows])
        return
    headers = ("PID", "INSIDE", "USER", "STATE", "%CPU", "TIME", "MEMORY", "STARTED", "COMMAND")
    output.echo(output.table(headers, [_process(row, time.time()) for row in rows], ("PID", "INSIDE", "%CPU", "TIME", "MEMORY")))


def _process(row: ProcessRow, now: float) -> tuple[str, ...]:
    minutes, seconds = divmod(int(row.cpu_seconds), 60)
    return (
        str(row.pid),
        str(row.inner_pid),
        row.user,
        row.state,
        f"{row.cpu_percent:.1f}",
        f"{minutes}:{seconds:02d}",
        output.human_size(row.resident),
        f"{output.human_duration(now - row.started_at)} ago",
        output.shortened(row.command, 100),
    )
