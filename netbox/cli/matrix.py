"""``netbox matrix``."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from netbox.cli import options, output
from netbox.cli.progress import ProgressLine
from netbox.errors import UsageError, host_error

if TYPE_CHECKING:
    from netbox.engine import Engine
    from netbox.packet.reachability.values import Matrix

FORMATS = ("table", "json", "junit", "html", "expect")


@click.command(
    epilog="""\b
Examples:
  netbox matrix                                     # all running sandboxes, by what listens in them
  netbox matrix --network back --ports 5432,53/udp,icmp
  netbox matrix --lan --host --format html -o matrix.html
  netbox matrix --format expect > expected          # declare what is; edit it
  netbox matrix --expect expected --format junit    # and fail when something differs

A line of the file of --expect is 'web -> db:5432 yes'; names may hold * and ?, the last line that fits decides.
"""
)
@click.option("--network", metavar="NETWORK", shell_complete=options.complete_networks, help="Only sandboxes on this network.")
@click.option(
    "--ports", metavar="PORTS", help="Ask everybody for these, such as 80,53/udp,icmp (default: what listens; ICMP where nothing does)."
)
@click.option("--host", is_flag=True, help="Ask from this host too.")
@click.option("--lan", is_flag=True, help="Ask from a simulated neighbour on the LAN too.")
@click.option("--expect", "expected", metavar="FILE", type=click.Path(dir_okay=False), help="Compare with what FILE declares.")
@click.option("--no-why", is_flag=True, help="Do not look for the reasons of what is not reachable.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.05, 60), default=1.0, help="How long a probe waits (1).")
@click.option("--format", "output_format", type=click.Choice(FORMATS), default="table", help="How to print it (table).")
@click.option("-o", "--output", "path", metavar="FILE", type=click.Path(dir_okay=False, writable=True), help="Write to FILE.")
@click.argument("names", metavar="[SANDBOX]...", nargs=-1, shell_complete=options.complete_sandboxes(running=True))
def matrix(
    names: tuple[str, ...],
    network: str | None,
    ports: str | None,
    host: bool,
    lan: bool,
    expected: str | None,
    no_why: bool,
    timeout: float,
    output_format: str,
    path: str | None,
) -> int:
    """Show who reaches whom: every running sandbox asks every other one, with real packets.

    The exit code is 0, or 1 when --expect is given and something differs.
    """
    from netbox.engine import Engine
    from netbox.packet.reachability import expectation, measure

    statements = None if expected is None else expectation.parse(_read(expected), expected)
    wanted = parse_ports(ports) if ports else ()
    sources = [name for name, given in ((measure.HOST, host), (measure.LAN, lan)) if given]
    drawing = ""
    with Engine(warm=False) as engine, ProgressLine() as line:
        found = measure.matrix(
            engine,
            network=network,
            names=names,
            ports=wanted,
            sources=sources,
            statements=statements,
            timeout=timeout,
            explain=not no_why and output_format != "expect",
            progress=lambda what, done, total: line.show(f"{what}: {done} of {total}" if done else f"{what} {total} pairs"),
        )
        if output_format == "html":
            drawing = _drawing(engine)
    _write(render(found, output_format, drawing), path)
    if path is not None:
        print(f"{path}: {found.summary}", file=sys.stderr)
    return 1 if found.differences else 0


def parse_ports(text: str) -> list[tuple[str, int | None]]:
    """``80,53/udp,icmp`` as pairs of protocol and port.

    Raises:
        UsageError: something else.
    """
    found: dict[tuple[str, int | None], None] = {}
    for item in text.split(","):
        number, _, protocol = item.strip().lower().partition("/")
        if number == "icmp" and not protocol:
            found["icmp", None] = None
        elif number.isdecimal() and 1 <= int(number) <= 65535 and protocol in ("", "tcp", "udp", "sctp"):
            found[protocol or "tcp", int(number)] = None
        else:
            raise UsageError(f"--ports {text}: not a port: {item.strip() or 'nothing'}", "write it as 80, 53/udp or icmp")
    return list(found)


def render(found: Matrix, output_format: str, drawing: str) -> str:
    """The matrix as text, or as one document."""
    if output_format == "json":
        import json

        return json.dumps(found.to_json(), indent=2)
    if output_format == "junit":
        from netbox.packet.reachability import junit

        return junit.render(found)
    if output_format == "html":
        from netbox.packet.reachability import page

        return page.render(found, drawing)
    if output_format == "expect":
        from netbox.packet.reachability import expectation

        return expectation.render(found)
    return _table(found)


def _table(found: Matrix) -> str:
    from netbox.packet.reachability import text

    signs = text.UNICODE if output.can_show("✓✗·→") else text.ASCII
    told = [difference.cell for difference in found.differences]
    if not found.compared:
        told = found.unreachable
    parts = [text.table(found, shutil.get_terminal_size((100, 0)).columns, signs, output.style)]
    if told:
        parts.append(text.reasons(found, told, signs, output.style))
    return "\n\n".join([*parts, found.summary])


def _drawing(engine: Engine) -> str:
    from netbox.packet.drawing.facts import topology
    from netbox.packet.drawing.svg import svg

    return svg(topology(engine))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise host_error("read", path, error) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text", "write lines such as: web -> db:5432 yes") from error


def _write(text: str, path: str | None) -> None:
    if path is None:
        output.echo(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")
    except OSError as error:
        raise host_error("write", path, error) from error
