"""``netbox events``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from netbox.cli import options, output
from netbox.parse import parse_filters, parse_time

if TYPE_CHECKING:
    from netbox.state.rows import Event

FILTERS = ("event", "sandbox", "container", "label")


@click.command(
    epilog="""\b
Examples:
  netbox events
  netbox events --since 1h --until 0s
  netbox events --filter event=die --filter sandbox=web
  netbox events --format json --since 10m

Without --until it goes on until ctrl-c. --until in the past ends at once.
"""
)
@click.option("--since", metavar="TIME", help="Also what happened since then.")
@click.option("--until", metavar="TIME", help="End at that time.")
@options.filter_option
@options.json_option
def events(since: str | None, until: str | None, filters: tuple[str, ...], output_format: str) -> None:
    """Print what happens to sandboxes, one line for each event, as it happens."""
    from netbox.engine import Engine

    now = time.time()
    after = None if since is None else parse_time(since, now, "since")
    before = None if until is None else parse_time(until, now, "until")
    wanted = [("sandbox" if key == "container" else key, value) for key, value in parse_filters(filters, FILTERS)]
    follow = before is None or before > now
    with Engine(warm=False) as engine:
        try:
            for event in engine.events(since=after, until=before, follow=follow, filters=wanted):
                if output_format == "json":
                    output.echo_json(_document(event), compact=True)
                else:
                    print(line(event), flush=True)
        except KeyboardInterrupt:
            return  # the way to end it


def _document(event: Event) -> dict[str, Any]:
    return {
        "time": event.time,
        "action": event.action,
        "id": event.sandbox_id,
        "name": event.name,
        "attributes": dict(event.attributes),
    }


def line(event: Event) -> str:
    """``2024-05-01T12:00:00.250000000Z sandbox die 0123456789ab (name=web, exit_code=0)``."""
    attributes = ", ".join(f"{key}={value}" for key, value in {"name": event.name, **event.attributes}.items())
    return f"{output.timestamp(event.time)} sandbox {event.action} {event.sandbox_id[:12]} ({attributes})"
