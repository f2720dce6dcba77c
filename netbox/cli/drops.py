"""``netbox drops``."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import click

from netbox.cli import options, output, watching

if TYPE_CHECKING:
    from netbox.packet.tracing.values import Drop

_WIDTHS = (12, 15)  # where, device: wide enough for most names, so that lines stay aligned while they come


@click.command(
    epilog="""\b
Examples:
  netbox drops                     # until ctrl-c
  netbox drops web db
  netbox drops --network back -c 1
  netbox drops --format json | jq -r .reason

A line says when, in whose network namespace, on which device, which packet, and why: the kernel's reason
and function, and for a firewall the rule. docs/trace.md has the reasons in words.
"""
)
@click.option("--network", metavar="NETWORK", help="Only what concerns this network.", shell_complete=options.complete_networks)
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="End after N drops.")
@click.option("--for", "duration", metavar="DURATION", help="End after this time, such as 30s.")
@options.tracer_option("bpf", "tracefs")
@options.json_option
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=options.complete_sandboxes(running=True))
def drops(
    network: str | None, count: int | None, duration: str | None, tracer: str | None, output_format: str, names: tuple[str, ...]
) -> None:
    """Print every packet that the kernel drops for running sandboxes, as it happens.

    Rules are named by the kernel's trace of the packet. It traces new connections, some hundred a second, so that the rule behind the drop
    of a packet in the middle of a connection is not named. A full listen backlog is no drop on every kernel: 'netbox trace' tells.
    """
    from netbox.engine import Engine
    from netbox.packet.tracing.dropping import drops as stream
    from netbox.parse.quantities import parse_duration

    with Engine(warm=False) as engine:
        notes: list[str] = []
        seconds = None if duration is None else parse_duration(duration, "for")
        ready = functools.partial(watching.announce, notes)
        found = stream(engine, names, network, tracer=tracer, timeout=seconds, notes=notes, ready=ready)
        watching.show_each(found, lambda drop: _show(drop, output_format), count)


def _show(drop: Drop, output_format: str) -> None:
    if output_format == "json":
        output.echo_json(drop.to_json(), compact=True)
    else:
        print(line(drop), flush=True)


def line(drop: Drop) -> str:
    """``12:00:00.123456  host  nb-fefb62f6  tcp 10.0.0.3:4000 → 10.0.1.2:80 SYN  NETFILTER_DROP in nf_hook_slow: …``."""
    from netbox.packet.tracing.text import drop_line

    where, device, what, why = drop_line(drop)
    whole = int(drop.time)
    clock = time.strftime("%H:%M:%S", time.localtime(whole)) + f".{int((drop.time - whole) * 1e6):06d}"
    columns = (output.style(clock, "dim"), where.ljust(_WIDTHS[0]), device.ljust(_WIDTHS[1]), f"{what}  {output.style(why, 'red')}")
    return "  ".join(columns)
