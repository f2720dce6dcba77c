"""``netbox gc``."""

from __future__ import annotations

import click

from netbox.cli import options, output


@click.command(epilog="\b\nExample:\n  sudo netbox gc")
@options.json_option
def gc(output_format: str) -> None:
    """Collect what killed processes left behind: links, rules, addresses, cgroups, mounts, files.

    Every start does the same on its way; this is for doing it now, and for seeing what was found.
    """
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        collected = engine.gc()
    if output_format == "json":
        output.echo_json(collected)
    elif not collected:
        output.echo("nothing to collect")
    else:
        for thing in collected:
            output.echo(f"collected {thing}")
