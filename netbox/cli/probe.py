"""``netbox probe``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netbox.cli import options, output

if TYPE_CHECKING:
    from netbox.packet.probing.values import ProbeAnswer, ProbeReport

_STYLES = {
    **dict.fromkeys(("open", "answered", "delivered"), "green"),
    **dict.fromkeys(("closed", "filtered", "open or filtered", "no answer", "no such name", "time exceeded"), "yellow"),
}


@click.command(
    epilog="""\b
Examples:
  netbox probe web db:5432               # does something listen there, and can web reach it
  netbox probe web db                    # ICMP echo
  netbox probe lan web:8080              # a published port, as another machine sees it
  netbox probe web db --udp 53
  netbox probe web --dns db              # what web's own name server says
  netbox probe web --dns example.org/MX
  netbox probe web --dns example.org/TXT --tcp 53
  netbox probe web 192.0.2.7 --traceroute
  netbox probe web lan --pmtu            # the largest packet that gets out
  netbox probe web 192.0.2.7 --udp 51820 --pmtu

The exit code is 0 when the target was reached, else 1; 125 when the probe could not be sent at all.
"""
)
@click.option("--icmp", is_flag=True, help="ICMP echo (the default without a port).")
@click.option("--tcp", type=int, metavar="PORT", help="A TCP SYN (the default with a port); with --dns the query, by TCP.")
@click.option("--udp", type=int, metavar="PORT", help="A UDP datagram.")
@click.option("--sctp", type=int, metavar="PORT", help="An SCTP INIT.")
@click.option("--arp", is_flag=True, help="An ARP request: who has the address (IPv4, same link).")
@click.option("--nd", is_flag=True, help="A neighbour solicitation: who has the address (IPv6, same link).")
@click.option(
    "--dns",
    metavar="NAME[/TYPE]",
    help="Ask the name server DST for NAME (A) or NAME/TYPE; for an address its name. Without DST, the first one of SRC. By UDP, and by"
    " TCP what is too long for that.",
)
@click.option("-6", "--ipv6", is_flag=True, help="Use DST's IPv6 address.")
@click.option("--size", type=int, metavar="BYTES", help="Payload behind the transport header.")
@click.option("--ttl", type=int, help="Time to live or hop limit (default 64); with --traceroute the most hops (default 30).")
@click.option("--count", type=int, default=1, show_default=True, help="How many packets, or packets for each hop.")
@click.option("--source", "source_address", metavar="IP", help="Address to send from, also a foreign one.")
@click.option("--timeout", type=float, default=1.0, show_default=True, metavar="SECONDS", help="How long to wait for each answer.")
@click.option("--interval", type=float, default=0.2, show_default=True, metavar="SECONDS", help="Time between packets.")
@click.option("--traceroute", is_flag=True, help="Show who is on the way.")
@click.option("--pmtu", is_flag=True, help="Find the path MTU, and who limits it.")
@options.json_option
@click.argument("source", metavar="SRC", shell_complete=options.complete_sandboxes(True))
@click.argument("target", metavar="DST", required=False, shell_complete=options.complete_sandboxes(True))
def probe(source: str, target: str | None, ipv6: bool, output_format: str, **asked: Any) -> int:
    """Send packets from SRC to DST and say what came back.

    SRC is a sandbox, 'host', or 'lan': another machine on the host's network, made for the moment. DST is one of these, an address or a
    name, with :PORT or :PORT/udp if wanted. Packets take the way that any packet of SRC takes, firewall rules included.
    """
    from netbox.engine import Engine
    from netbox.packet.probing.run import Worker

    worker = Worker()  # first of all: it loads scapy while this process finds out what to ask
    try:
        from netbox.packet.probing import api

        with Engine(warm=False) as engine:
            report = api.probe(engine, source, target, ipv6=ipv6, worker=worker, **asked)
    finally:
        worker.close()
    if output_format == "json":
        output.echo_json(report.to_json())
    else:
        output.echo("\n".join(lines(report)))
    return 0 if report.reachable else 1


def lines(report: ProbeReport) -> list[str]:
    """The report for people: the question, the answers, the verdict where there was more than one packet."""
    from netbox.packet.probing import text

    head = text.headline(report)
    notes = [output.style(f"note: {note}", "dim") for note in report.notes]
    if report.path_mtu is not None:
        return [head, *_sizes(report), f"  {output.style(text.path_mtu(report.path_mtu), _mtu_style(report))}", *notes]
    if report.hops:
        rows = [text.hop_row(hop) for hop in report.hops]
        table = output.table(("HOP", "ADDRESS", "TIME", ""), rows, right=("HOP",))
        return [head, *(f"  {line}" for line in table.splitlines()), *notes]
    if len(report.answers) == 1:
        return [f"{head}: {_answer(report, report.answers[0])}", *notes]
    body = [f"  {answer.sequence + 1:>3}  {_answer(report, answer)}" for answer in report.answers]
    return [head, *body, f"  {summary(report)}", *notes]


def _answer(report: ProbeReport, answer: ProbeAnswer) -> str:
    from netbox.packet.probing import text

    state, _, rest = text.answer_text(report, answer).partition(": ")
    figures = text.numbers(answer)
    return f"{output.style(state, _STYLES.get(answer.state, 'red'))}: {rest}" + (f", {figures}" if figures else "")


def _sizes(report: ProbeReport) -> list[str]:
    """The packets that were tried, but for the many of a search."""
    from netbox.packet.probing import text

    assert report.path_mtu is not None
    steps = [step for step in report.path_mtu.steps if step.answer.from_address or not report.path_mtu.black_hole][:12]
    return [f"  {step.size:>6} bytes: {text.answer_text(report, step.answer)}" for step in steps]


def _mtu_style(report: ProbeReport) -> str:
    assert report.path_mtu is not None
    return "red" if report.path_mtu.mtu is None else "yellow" if report.path_mtu.black_hole else "green"


def summary(report: ProbeReport) -> str:
    """``3 of 4 reached it, round trip 0.11/0.15/0.21 ms (min/mean/max)``."""
    reached = sum(answer.reached for answer in report.answers)
    times = [answer.rtt * 1000 for answer in report.answers if answer.rtt is not None]
    trip = f", round trip {min(times):.3g}/{sum(times) / len(times):.3g}/{max(times):.3g} ms (min/mean/max)" if times else ""
    return f"{reached} of {len(report.answers)} reached it{trip}"
