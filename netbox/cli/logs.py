"""``netbox logs``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from netbox.cli import options, output

if TYPE_CHECKING:
    from netbox.runtime.log_reader import LogLine


@click.command(
    epilog="""\b
Examples:
  netbox logs web
  netbox logs -f --tail 20 web
  netbox logs --since 10m --until 5m -t web
  netbox logs web 2>/dev/null        # only what it wrote to stdout

Times are durations before now (10m, 1h30m), dates (2024-05-01T12:00:00Z) or seconds since 1970.
"""
)
@click.option("-f", "--follow", is_flag=True, help="Go on until the sandbox ends.")
@click.option("--since", metavar="TIME", help="Only what was written since.")
@click.option("--until", metavar="TIME", help="Only what was written until then.")
@click.option("-n", "--tail", metavar="LINES", default="all", help="Only the last LINES lines (default all).")
@click.option("-t", "--timestamps", is_flag=True, help="Put the time before each line.")
@options.sandbox_argument()
def logs(follow: bool, since: str | None, until: str | None, tail: str, timestamps: bool, name: str) -> None:
    """Print what a sandbox wrote: its stdout to stdout, its stderr to stderr."""
    from netbox.engine import Engine
    from netbox.parse import parse_time
    from netbox.parse.text import parse_integer

    now = time.time()
    after = None if since is None else parse_time(since, now, "since")
    before = None if until is None else parse_time(until, now, "until")
    lines = None if tail in ("all", "-1") else parse_integer(tail, "tail", 0, 1_000_000_000, "write a number of lines, or all")
    with Engine(warm=False) as engine:
        copy(engine.get(name).logs(follow=follow, since=after, until=before, tail=lines), timestamps, flush=follow)


def copy(lines: Iterable[LogLine], timestamps: bool, flush: bool) -> None:
    """Writes each line to the stream that it came from. Between the streams the order is kept, for a terminal that shows both."""
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    last = streams["stdout"]
    for line in lines:
        stream = streams[line.stream]
        if stream is not last:
            last.flush()
            last = stream
        stream.write(f"{output.timestamp(line.time)} ".encode() + line.data if timestamps else line.data)
        if flush:
            stream.flush()
    last.flush()
