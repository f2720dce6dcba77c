"""``netbox why``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from netbox.cli import options, output
from netbox.errors import UsageError

if TYPE_CHECKING:
    from netbox.packet.diagnosis.values import Answer

_WIDTH_MAX = 110
_STYLES = {"title": "bold", "command": "cyan", "surprise": "yellow", "mend": "cyan"}


@click.command(
    epilog="""\b
Examples:
  netbox why web db:5432                # TCP port 5432 of the sandbox db
  netbox why web db --udp 53
  netbox why web example.org:443
  netbox why host web                   # ICMP echo
  netbox why lan web:8080               # from a neighbour of this machine

SRC is a sandbox, host or lan; DST one of these, an address or a name. The exit code is 0 when DST is
reached, else 1.
"""
)
@click.option("--tcp", "tcp", type=click.IntRange(1, 65535), metavar="PORT", help="A TCP connection to PORT (as DST:PORT).")
@click.option("--udp", "udp", type=click.IntRange(1, 65535), metavar="PORT", help="A UDP datagram to PORT (as DST:PORT/udp).")
@click.option("--sctp", "sctp", type=click.IntRange(1, 65535), metavar="PORT", help="An SCTP association with PORT.")
@click.option("--icmp", is_flag=True, help="An ICMP echo (default without a port).")
@click.option("--ttl", type=click.IntRange(1, 255), metavar="N", help="TTL of the packets (default: that of SRC).")
@click.option("--size", type=click.IntRange(68, 65535), metavar="BYTES", help="Also ask for packets of this size, unfragmented.")
@click.option("-6", "--ipv6", is_flag=True, help="IPv6 where there is a choice.")
@options.json_option
@click.argument("source", metavar="SRC", shell_complete=options.complete_sandboxes(True))
@click.argument("target", metavar="DST[:PORT]", shell_complete=options.complete_sandboxes(True))
def command(
    source: str,
    target: str,
    tcp: int | None,
    udp: int | None,
    sctp: int | None,
    icmp: bool,
    ttl: int | None,
    size: int | None,
    ipv6: bool,
    output_format: str,
) -> int:
    """Why does SRC reach DST, or not: in one sentence, with the evidence, and the command that mends it.

    Works out from networks, routes, rules and sockets what should happen, sends packets and follows them, and compares the two.
    """
    asked = [(name, port) for name, port in (("tcp", tcp), ("udp", udp), ("sctp", sctp), ("icmp", 0 if icmp else None)) if port is not None]
    if len(asked) > 1:
        raise UsageError("more than one protocol", "give one of --tcp, --udp, --sctp and --icmp")
    from netbox.engine import Engine
    from netbox.packet.diagnosis.api import why

    protocol, port = asked[0] if asked else (None, None)
    with Engine(warm=False) as engine:
        answer = why(engine, source, target, protocol=protocol, port=port or None, ttl=ttl, size=size, ipv6=ipv6)
    if output_format == "json":
        output.echo_json(answer.to_json())
    else:
        output.echo(render(answer, min(shutil.get_terminal_size((_WIDTH_MAX, 0)).columns, _WIDTH_MAX)))
    return 0 if answer.reachable else 1


def render(answer: Answer, width: int) -> str:
    """The answer with colours, where the terminal takes them."""
    from netbox.packet.diagnosis.text import lines

    sentence = "green" if answer.reachable and answer.cause == "reachable" else "yellow" if answer.reachable else "red"
    styles = {**_STYLES, "sentence": sentence}
    return "\n".join(output.style(line, styles[style]) if style in styles and line else line for style, line in lines(answer, width))
