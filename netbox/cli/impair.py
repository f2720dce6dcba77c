"""``netbox impair``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netbox.cli import options, output
from netbox.errors import UsageError

if TYPE_CHECKING:
    from netbox.network.shaping import Impairment


@click.command(
    epilog="""\b
Examples:
  netbox impair web --rate 1mbit                      # both directions, everybody
  netbox impair web --loss 5% --direction in --for 30s
  netbox impair web --to db --rate 500kbit --loss 1%
  netbox impair web --to 10.0.0.0/8 --delay 100ms --jitter 10ms
  netbox impair web                                   # what is in force
  netbox impair web --off --to db
  netbox impair web --off

Units are those of tc(8): bit, kbit, mbit, gbit, and bps, kbps, mbps for bytes; ms, us, s. Delay, jitter
and corruption need a kernel with CONFIG_NET_SCH_NETEM ('netbox check').
"""
)
@click.option("--to", metavar="PEER", help="Only towards and from PEER: a sandbox on the same network, an address or subnet.")
@click.option("--rate", metavar="RATE", help="Most that passes, such as 10mbit.")
@click.option("--loss", metavar="PERCENT", help="Share of packets that vanish.")
@click.option("--corrupt", metavar="PERCENT", help="Share of packets with a wrong bit.")
@click.option("--delay", metavar="TIME", help="How much later packets arrive, such as 100ms.")
@click.option("--jitter", metavar="TIME", help="How much the delay varies, up and down.")
@click.option("--direction", type=click.Choice(["in", "out", "both"]), help="in: to the sandbox; out: from it (default both).")
@click.option("--for", "duration", metavar="DURATION", help="Lift it by itself after this time, such as 30s.")
@click.option("--off", is_flag=True, help="Lift what is in force; with --to only for this peer.")
@options.json_option
@options.sandbox_argument(running=True)
def impair(name: str, off: bool, output_format: str, to: str | None, **values: Any) -> None:
    """Make the link of a running sandbox worse: slower, lossy, late. Without options: show what is in force.

    It holds until it is lifted, its time is over or the sandbox ends. The same peer and direction again replaces what was in force.
    """
    from netbox.engine import Engine

    given = {key: value for key, value in values.items() if value is not None}
    if off and given:
        raise UsageError("--off takes nothing but --to", "leave the other options out")
    if to is not None and not off and not given:
        raise UsageError("nothing to impair", "give --rate, --loss, --corrupt or --delay")
    with Engine(warm=False) as engine:
        sandbox = engine.get(name)
        if off:
            sandbox.lift_impairments(to)
        elif given:
            sandbox.impair(to, **given)
        else:
            document = sandbox.inspect()["impairments"]
            if output_format == "json":
                output.echo_json(document)
            else:
                output.echo("\n".join(lines(sandbox.impairments, document)) or "nothing is in force")


def lines(impairments: tuple[Impairment, ...], documents: list[dict[str, Any]]) -> list[str]:
    """``in   everybody  rate 10mbit, loss 1%, 12 s left``: one for each impairment."""
    left = {(item["direction"], tuple(item["prefixes"])): item["seconds_left"] for item in documents}
    rows = [
        (item.direction, item.to or "everybody", output.effects(item, left.get((item.direction, item.prefixes)))) for item in impairments
    ]
    width = max((len(peer) for _, peer, _ in rows), default=0)
    return [f"{direction:<3}  {peer:<{width}}  {effects}" for direction, peer, effects in rows]
