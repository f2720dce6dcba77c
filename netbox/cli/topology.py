"""``netbox topology``."""

from __future__ import annotations

import click

from netbox.cli import output
from netbox.engine import Engine


@click.command(
    epilog="""\b
Examples:
  netbox topology
  netbox topology --format svg > networks.svg      # opens in any browser
  netbox topology --format mermaid                 # for Markdown documents
  netbox topology --format dot | dot -Tpng > networks.png
"""
)
@click.option("-a", "--all", "everything", is_flag=True, help="Also sandboxes that do not run, and networks without any.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["tree", "svg", "mermaid", "dot", "json"]),
    default="tree",
    help="A tree for the terminal (default), a picture, a flowchart for Markdown, Graphviz, or JSON for programs.",
)
def topology(everything: bool, output_format: str) -> None:
    """Draw the networks: who is on which, with what address, and the way out.

    Without -a: what runs now. In the tree, 'eth0 = nb0123456789' are the two ends of a sandbox's cable: its own interface, and the host's.
    """
    from netbox.packet.drawing import facts

    with Engine(warm=False) as engine:
        found = facts.topology(engine, everything)
    if output_format == "json":
        output.echo_json(found.to_json())
    elif output_format == "tree":
        from netbox.packet.drawing.tree import tree

        output.echo(tree(found, output.can_show("├─└│→"), output.style))
    elif output_format == "svg":
        from netbox.packet.drawing.svg import svg

        output.echo(svg(found))
    else:
        from netbox.packet.drawing import text_graphs

        output.echo(text_graphs.mermaid(found) if output_format == "mermaid" else text_graphs.dot(found))
