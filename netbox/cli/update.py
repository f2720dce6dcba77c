"""``netbox update``."""

from __future__ import annotations

import click

from netbox.cli import options
from netbox.errors import UsageError


@click.command(
    epilog="""\b
Examples:
  netbox update -m 128m web
  netbox update --cpus 0.5 --pids-limit 100 web db
  netbox update -m 0 --cpus 0 web      # no limits
"""
)
@options.RESOURCE_OPTIONS
@options.sandboxes_argument()
def update(names: tuple[str, ...], **limits: str | None) -> int:
    """Change the limits of sandboxes, at once where they run. What is not given stays as it is."""
    from netbox.engine import Engine
    from netbox.parse import parse_resources

    given = {key: value for key, value in limits.items() if value is not None}
    if not given:
        raise UsageError("nothing to change", "give a limit such as --memory 128m")
    resources = parse_resources(**given, lift=True)
    with Engine(warm=False) as engine:
        return options.for_each(engine, names, lambda sandbox: sandbox.update(resources))
