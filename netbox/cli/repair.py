"""``netbox repair``."""

from __future__ import annotations

import click

from netbox.cli import options, output


@click.command(epilog="\b\nExample:\n  sudo netbox repair")
@options.json_option
def repair(output_format: str) -> None:
    """Put netbox's firewall rules back as they should be.

    For when another program has flushed or edited them; 'netbox check' tells. Puts in what is missing for running sandboxes and their
    networks and takes out what others have put into netbox's own chains. Rules of others stay as they are, and connections go on.
    """
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        found = engine.repair()
    if output_format == "json":
        output.echo_json([difference._asdict() for difference in found])
    elif not found:
        output.echo("nothing to repair")
    else:
        for difference in found:
            verb = "put back" if difference.kind == "missing" else "took out"
            output.echo(f"{verb} ({difference.owner or 'nobody'}): {difference.what}")
