"""``netbox trace``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from netbox.cli import options, output
from netbox.errors import UsageError

if TYPE_CHECKING:
    from netbox.packet.probing.values import ProbeRequest
    from netbox.packet.tracing.values import Hop, Trace
    from netbox.packet.tracing.watching import Followed

_STYLES = {"delivered": "green", "dropped": "red", "lost": "yellow", "passed": "dim"}
_DEFAULT_TIMEOUT = 0.5  # seconds


@click.command(
    epilog="""\b
Examples:
  netbox trace web db --tcp 5432
  netbox trace lan web:80 --tcp 80
  netbox trace host 127.0.0.1:8080
  netbox trace web 192.0.2.7 --icmp --ttl 3
  netbox trace --watch web -f 'tcp port 80' -c 10

SRC is a sandbox, 'host', or 'lan' (a neighbour of this machine, made for the occasion). DST is a sandbox,
an address or a name, with a port if there is one: db:5432, 10.0.0.1:80, [2001:db8::1]:80. Without a port or
an option it is an ICMP echo. The exit code is 0 when the probe got through and was answered.
"""
)
@click.option("--icmp", "kinds", flag_value="icmp", multiple=True, help="An ICMP echo (the default without a port).")
@click.option("--tcp", type=click.IntRange(1, 65535), metavar="PORT", help="A TCP SYN.")
@click.option("--udp", type=click.IntRange(1, 65535), metavar="PORT", help="A UDP datagram.")
@click.option("--sctp", type=click.IntRange(1, 65535), metavar="PORT", help="An SCTP INIT.")
@click.option("--dns", metavar="NAME", help="A DNS query for NAME.")
@click.option("--size", type=click.IntRange(0, 65000), metavar="BYTES", help="Bytes of payload.")
@click.option("--ttl", type=click.IntRange(1, 255), metavar="N", help="Time to live, hop limit.")
@click.option("--source", metavar="ADDRESS", help="The address that it is sent from.")
@click.option("--timeout", default=_DEFAULT_TIMEOUT, type=click.FloatRange(0.01, 60), metavar="SECONDS", help="Wait so long for an answer.")
@click.option("--watch", is_flag=True, help="Follow the live traffic of the sandbox SRC instead of a probe, until ctrl-c.")
@click.option("-f", "--filter", "expression", metavar="FILTER", help="With --watch: only packets that pass this libpcap filter.")
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="With --watch: end after N packets.")
@options.tracer_option("bpf", "tracefs", "none")
@click.option("-v", "--verbose", is_flag=True, help="Also show jumps, chains that end without a verdict and policies that accept.")
@options.json_option
@click.argument("source_name", metavar="SRC", shell_complete=options.complete_sandboxes(running=True))
@click.argument("target_name", metavar="[DST]", required=False, shell_complete=options.complete_sandboxes(running=True))
def trace(source_name: str, target_name: str | None, watch: bool, verbose: bool, output_format: str, **given: Any) -> int:
    """Follow a packet through namespaces, devices, firewall rules, NAT and routing to a socket or to its drop."""
    if watch:
        _watch(source_name, target_name, given, verbose, output_format)
        return 0
    if given["expression"] is not None or given["count"] is not None:
        raise UsageError("-f and -c are for --watch", "a probe is one packet")
    if target_name is None:
        raise UsageError("no destination given", "netbox trace SRC DST, or --watch for live traffic")
    return _probe(source_name, target_name, given, verbose, output_format)


def request_of(given: dict[str, Any], target_name: str) -> ProbeRequest:
    """The request that the options ask for. Raises UsageError."""
    from netbox.packet.finding import parse
    from netbox.packet.probing.values import ProbeRequest

    chosen = [(kind, given[kind]) for kind in ("tcp", "udp", "sctp", "dns") if given[kind] is not None]
    chosen += [("icmp", None) for _ in given["kinds"][:1]]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0][0]} and --{chosen[1][0]} exclude each other", "one trace follows one packet")
    written = parse(target_name)
    kind, value = chosen[0] if chosen else (written.protocol or ("tcp" if written.port else "icmp"), None)
    port = value if kind in ("tcp", "udp", "sctp") and value is not None else written.port
    return ProbeRequest(
        kind,
        port=port if kind != "icmp" else None,
        name=value if kind == "dns" else None,
        size=given["size"],
        ttl=given["ttl"],
        source=given["source"],
        timeout=given["timeout"],
    )


def _probe(source_name: str, target_name: str, given: dict[str, Any], verbose: bool, output_format: str) -> int:
    from netbox.packet.probing.run import Worker

    request = request_of(given, target_name)
    with Worker() as worker:  # it loads scapy while this process looks for the places
        from netbox.engine import Engine
        from netbox.packet.tracing.follow import trace as follow

        with Engine(warm=False) as engine:
            found = follow(engine, source_name, target_name, request, tracer=given["tracer"], worker=worker)
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
    rows = [(f"{hop.time / 1000:.0f} µs", hop.netns, hop.device, what(hop), hop) for hop in shown]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    found: list[str] = []
    before = None
    for clock, netns, device, text, hop in rows:
        if before is not None and hop.direction == REPLY != before.direction:
            found.append("")
        time = clock if before is None or hop.time != before.time else ""
        cells = (output.style(time.rjust(widths[0]), "dim"), netns.ljust(widths[1]), device.ljust(widths[2]), _coloured(hop, text))
        found.append("  ".join(cells).rstrip())
        before = hop
    return found


def _coloured(hop: Hop, text: str) -> str:
    styles = {"drop": "red", "nat": "cyan", "socket": "green"}
    return output.style(text, styles[hop.kind]) if hop.kind in styles else text


def _watch(name: str, target: str | None, given: dict[str, Any], verbose: bool, output_format: str) -> None:
    probing = [key for key in ("tcp", "udp", "sctp", "dns", "size", "ttl", "source") if given[key] is not None]
    if target is not None or probing or given["kinds"]:
        wrong = "DST" if target is not None else f"--{(probing or ['icmp'])[0]}"
        raise UsageError(f"--watch takes no {wrong}: it sends nothing", "choose packets with -f, such as -f 'tcp port 80'")
    from netbox.engine import Engine
    from netbox.packet.tracing.filters import acceptor
    from netbox.packet.tracing.watching import watch

    accepts = acceptor(given["expression"]) if given["expression"] else None
    left = given["count"]
    with Engine(warm=False) as engine:
        notes: list[str] = []
        found = watch(engine, name, accepts=accepts, tracer=given["tracer"], notes=notes, ready=lambda: _report(notes))
        try:
            for packet in found:
                _show_packet(packet, verbose, output_format)
                if left is not None:
                    left -= 1
                    if not left:
                        return
        except KeyboardInterrupt:
            return  # the way to end it
        finally:
            found.close()


def _report(notes: Sequence[str]) -> None:
    for note in notes:
        output.report("netbox trace", note)


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
