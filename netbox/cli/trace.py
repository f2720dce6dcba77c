"""``netbox trace``."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import click

from netbox.cli import options, output
from netbox.cli.watching import announce, show_each
from netbox.errors import UsageError

if TYPE_CHECKING:
    from netbox.packet.tracing.values import Hop, Trace
    from netbox.packet.tracing.watching import Followed

_STYLES = {"delivered": "green", "dropped": "red", "lost": "yellow", "passed": "dim"}


@click.command(
    epilog="""\b
Examples:
  netbox trace web db --tcp 5432
  netbox trace lan web:80 --tcp 80
  netbox trace host 127.0.0.1:8080
  netbox trace web 192.0.2.7 --icmp --ttl 3
  netbox trace --watch web -f 'tcp port 80' -c 10

The exit code is 0 when the probe reached the target, else 1; 125 when nothing could be sent. docs/trace.md
explains the lines.
"""
)
@click.option("--icmp", is_flag=True, help="ICMP echo (the default without a port).")
@click.option("--tcp", type=int, metavar="PORT", help="A TCP SYN (the default with a port).")
@click.option("--udp", type=int, metavar="PORT", help="A UDP datagram.")
@click.option("--sctp", type=int, metavar="PORT", help="An SCTP INIT.")
@click.option("--dns", metavar="NAME", help="A DNS query for NAME.")
@click.option("-6", "--ipv6", is_flag=True, help="Use DST's IPv6 address.")
@click.option("--size", type=int, metavar="BYTES", help="Payload behind the transport header.")
@click.option("--ttl", type=int, help="Time to live or hop limit (default 64).")
@click.option("--source", "source_address", metavar="IP", help="Address to send from, also a foreign one.")
@click.option("--timeout", type=float, default=0.5, show_default=True, metavar="SECONDS", help="How long to wait for an answer.")
@click.option("--watch", is_flag=True, help="Follow the live traffic of the sandbox SRC instead of a probe, until ctrl-c.")
@click.option("-f", "--filter", "expression", metavar="FILTER", help="With --watch: only packets that pass this libpcap filter.")
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="With --watch: end after N packets.")
@options.tracer_option("bpf", "tracefs", "none")
@click.option("-v", "--verbose", is_flag=True, help="Also show jumps, chains that end without a verdict and policies that accept.")
@options.json_option
@click.argument("source", metavar="SRC", shell_complete=options.complete_sandboxes(True))
@click.argument("target", metavar="DST", required=False, shell_complete=options.complete_sandboxes(True))
def trace(source: str, target: str | None, watch: bool, verbose: bool, output_format: str, **given: Any) -> int:
    """Follow a packet through namespaces, devices, firewall rules, NAT and routing to a socket or to its drop.

    SRC and DST are as for 'netbox probe'. The packet is real: it is sent, and its answer is followed too.
    """
    watching = {key: given.pop(key) for key in ("expression", "count")}
    if watch:
        _watch(source, target, given, watching, verbose, output_format)
        return 0
    if watching["expression"] is not None or watching["count"] is not None:
        raise UsageError("-f and -c are for --watch", "a probe is one packet")
    if target is None:
        raise UsageError("no destination given", "netbox trace SRC DST, or --watch for live traffic")
    return _probe(source, target, given, verbose, output_format)


def _probe(source: str, target: str, given: dict[str, Any], verbose: bool, output_format: str) -> int:
    from netbox.packet.probing.run import Worker

    worker = Worker()  # first of all: it loads scapy while this process finds out what to ask
    try:
        from netbox.engine import Engine
        from netbox.packet.probing.api import ProbeOptions, request_for
        from netbox.packet.tracing.follow import trace as follow

        tracer, ipv6 = given.pop("tracer"), given.pop("ipv6")
        request = request_for(target, cast(ProbeOptions, given))
        with Engine(warm=False) as engine:
            found = follow(engine, source, target, request, ipv6=ipv6, tracer=tracer, worker=worker)
    finally:
        worker.close()
    if output_format == "json":
        output.echo_json(found.to_json())
    else:
        show(found, request.title, verbose)
    return 0 if found.reachable else 1


def show(found: Trace, title: str, verbose: bool) -> None:
    """The trace for people."""
    from netbox.packet.tracing.text import sentence

    output.echo(f"{output.style(found.source, 'bold')} → {output.style(found.destination, 'bold')}, {title}")
    for row in lines(found.hops, verbose):
        output.echo(row)
    output.echo(output.style(sentence(found), _STYLES[found.outcome]))
    for note in found.notes:
        output.report("note", note)


def lines(hops: Iterable[Hop], verbose: bool = False) -> list[str]:
    """One aligned line for each hop: microseconds since the start, namespace, device, what happened. A blank line before the answer."""
    from netbox.packet.tracing.text import is_detail, what
    from netbox.packet.tracing.values import REPLY

    shown = [hop for hop in hops if verbose or not is_detail(hop)]
    rows = [(f"{hop.time / 1000:.0f} µs", hop.netns, hop.device) for hop in shown]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    found: list[str] = []
    before = None
    for hop, (clock, netns, device) in zip(shown, rows, strict=True):
        if before is not None and hop.direction == REPLY != before.direction:
            found.append("")
            before = None
        time = clock if before is None or hop.time != before.time else ""
        cells = (output.style(time.rjust(widths[0]), "dim"), netns.ljust(widths[1]), device.ljust(widths[2]), _coloured(hop, what(hop)))
        found.append("  ".join(cells).rstrip())
        before = hop
    return found


def _coloured(hop: Hop, text: str) -> str:
    styles = {"drop": "red", "nat": "cyan", "socket": "green"}
    return output.style(text, styles[hop.kind]) if hop.kind in styles else text


def _watch(name: str, target: str | None, given: dict[str, Any], watching: dict[str, Any], verbose: bool, output_format: str) -> None:
    probing = [
        key for key in ("icmp", "tcp", "udp", "sctp", "dns", "ipv6", "size", "ttl", "source_address") if given[key] not in (None, False)
    ]
    if target is not None or probing:
        wrong = "DST" if target is not None else f"--{probing[0].removesuffix('_address')}"
        raise UsageError(f"--watch takes no {wrong}: it sends nothing", "choose packets with -f, such as -f 'tcp port 80'")
    from netbox.engine import Engine
    from netbox.packet.tracing.filters import acceptor
    from netbox.packet.tracing.watching import watch

    accepts = acceptor(watching["expression"]) if watching["expression"] else None
    with Engine(warm=False) as engine:
        notes: list[str] = []
        ready = functools.partial(announce, notes)
        found = watch(engine, name, accepts=accepts, tracer=given["tracer"], notes=notes, ready=ready)
        show_each(found, lambda packet: _show_packet(packet, verbose, output_format), watching["count"])


def _show_packet(packet: Followed, verbose: bool, output_format: str) -> None:
    if output_format == "json":
        output.echo_json(packet.to_json(), compact=True)
        return
    from netbox.packet.tracing.assemble import described

    title = f"{output.timestamp(packet.time)}  {described(packet.flow)}: "
    print(output.style(title, "bold") + output.style(packet.outcome, _STYLES[packet.outcome]))
    for row in lines(packet.hops, verbose):
        print(f"  {row}")
    print(flush=True)
