"""``netbox publish`` and ``netbox unpublish``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from netbox.cli import notice, options, output

if TYPE_CHECKING:
    from netbox.spec import PortSpec


@click.command(
    epilog="""\b
Examples:
  netbox publish web 8080:80
  netbox publish web 127.0.0.1:8443:443 53/udp
  netbox publish web 8000-8010:8000-8010
"""
)
@options.json_option
@options.sandbox_argument()
@click.argument("ports", metavar="[[IP:]HOST:]PORT...", nargs=-1, required=True)
def publish(output_format: str, name: str, ports: tuple[str, ...]) -> None:
    """Publish ports of a sandbox, at once when it runs.

    The ports are written as those of 'netbox run -p'. A restart publishes them again.
    """
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        sandbox = engine.get(name)
        published = sandbox.publish(*ports)
        running = sandbox.state != "created" and bool(published) and all(port.is_settled for port in published)
    _print(published, output_format)
    if output_format != "json":
        notice.about_public_ports(ports, published, running)


@click.command(
    epilog="""\b
Examples:
  netbox unpublish web 80              # the port inside: every mapping of it
  netbox unpublish web 53/udp
  netbox unpublish web 127.0.0.1:8443:443
"""
)
@options.json_option
@options.sandbox_argument()
@click.argument("ports", metavar="PORT|[[IP:]HOST:]PORT...", nargs=-1, required=True)
def unpublish(output_format: str, name: str, ports: tuple[str, ...]) -> None:
    """Take published ports of a sandbox back, at once when it runs, and print them.

    PORT is a port inside, as 'netbox port' lists it, or a whole mapping. New connections find nothing; those that stand go on.
    """
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        gone = engine.get(name).unpublish(*ports)
    _print(gone, output_format)


def _print(ports: Sequence[PortSpec], output_format: str) -> None:
    if output_format == "json":
        output.echo_json([output.port_document(port) for port in ports])
        return
    for port in ports:
        output.echo(output.port_line(port))
