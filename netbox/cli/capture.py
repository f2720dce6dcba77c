"""``netbox capture``."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from netbox.cli import options, output
from netbox.errors import UsageError

if TYPE_CHECKING:
    from netbox.packet.capturing.session import Capture
    from netbox.packet.capturing.sinks import Sink
    from netbox.packet.capturing.values import InterfaceSummary, Selection

_NICENESS = -10  # see nice(2)


@click.command(
    epilog="""\b
Examples:
  netbox capture web                                  # a line for each packet
  netbox capture web db -f 'tcp port 5432'
  netbox capture --network front -w front.pcapng      # both ends of every link, and the bridge
  netbox capture web --verdicts                       # which rule accepted or dropped it
  netbox capture --all -w trace.pcapng --ring 10x50MB
  netbox capture --from-start web -w first.pcapng     # then, elsewhere: netbox run --name web ...
  netbox capture web -w - | tshark -r -

\b
Interfaces are called SANDBOX/eth0, SANDBOX/host-end (the other end of its link) and NETWORK/bridge.
Filters are libpcap's (man pcap-filter). ctrl-c ends a capture; the file is complete then."""
)
@click.option("-n", "--network", "networks", multiple=True, metavar="NAME", shell_complete=options.complete_networks,
              help="Every sandbox on this network, and its bridge; repeatable.")  # fmt: skip
@click.option("-a", "--all", "everything", is_flag=True, help="Every sandbox.")
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Every sandbox with this label; repeatable.")
@click.option("-i", "--interface", "interfaces", multiple=True, metavar="NAME",
              help="Only eth0, eth1, lo, host-end, bridge, or any (lo too); repeatable. Default: all but lo.")  # fmt: skip
@click.option("-f", "--filter", "filter_", metavar="FILTER", default="", help="Only packets that match, such as 'tcp port 80'.")
@click.option("-w", "--write", "path", metavar="FILE", help="Write a pcapng file; - is stdout.")
@click.option("--ring", metavar="COUNTxSIZE", help="Write FILE_00001, FILE_00002, …, and keep the last COUNT, such as 10x50MB.")
@click.option("--print", "show", is_flag=True, help="Print lines although a file is written.")
@click.option("--from-start", is_flag=True, help="Wait for sandboxes of these names, and record from their first packet on.")
@click.option("-c", "--count", type=int, metavar="NUMBER", help="End after so many packets.")
@click.option("--duration", metavar="TIME", help="End after this time, such as 30s.")
@click.option(
    "-s", "--snapshot-length", metavar="BYTES", type=click.IntRange(64, 262144), default=262144, help="Keep so much of each packet."
)
@click.option("-B", "--buffer-size", metavar="SIZE", default="8m", help="Memory for packets that wait, for each interface (default 8m).")
@click.option("--verdicts", is_flag=True, help="Name the firewall rules that packets met, and whose they are.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and packets.")
@options.sandboxes_argument(required=False)
def capture(
    names: tuple[str, ...],
    networks: tuple[str, ...],
    everything: bool,
    labels: tuple[str, ...],
    interfaces: tuple[str, ...],
    filter_: str,
    path: str | None,
    ring: str | None,
    show: bool,
    from_start: bool,
    count: int | None,
    duration: str | None,
    snapshot_length: int,
    buffer_size: str,
    verdicts: bool,
    quiet: bool,
) -> None:
    """Record or print the packets of sandboxes, on both ends of their links.

    One capture spans every chosen interface in every network namespace. Files are pcapng, for Wireshark and tshark: nanoseconds,
    interfaces and addresses with the names of sandboxes, direction, one number for all sightings of a packet, and why a packet was
    dropped.
    """
    from netbox.engine import Engine
    from netbox.packet.capturing.session import Capture
    from netbox.packet.capturing.sinks import open_output
    from netbox.packet.capturing.values import Selection, parse_limits, parse_rotation
    from netbox.parse import parse_size
    from netbox.parse.text import pairs

    if not (names or networks or everything or labels):
        raise UsageError("nothing to capture", "name sandboxes, or use --network NAME or --all")
    if ring is not None and path is None:
        raise UsageError("--ring needs a file name", "use -w FILE")
    wanted_labels = tuple((key, value or "") for key, value in pairs(labels, "--label"))
    selection = Selection(names, networks, everything, wanted_labels, interfaces, from_start)
    limits, rotation = parse_limits(count, duration), parse_rotation(ring) if ring is not None else None
    with Engine(warm=False) as engine:
        recording = Capture(
            engine,
            selection,
            filter=filter_,
            snapshot_length=snapshot_length,
            ring_size=parse_size(buffer_size, "--buffer-size", 512 << 10),
            limits=limits,
            verdicts=verdicts,
        )
        try:
            sinks: list[Sink] = [] if path is None else [open_output(path, rotation, snapshot_length, filter_)]
            if path is None or show:
                sinks.append(_lines(to_stderr=path == "-"))
            _record(recording, sinks, selection, quiet)
        finally:
            recording.close()


def _lines(to_stderr: bool) -> Sink:
    from netbox.packet.capturing.sinks import Lines

    stream = sys.stderr if to_stderr else sys.stdout
    return Lines(stream, output.coloured(stream))


def hurry() -> None:
    """Lets the capture keep up with its packets: it goes before what it watches on a busy processor, and Python looks for reference cycles
    among millions of packets less often.
    """
    gc.set_threshold(100_000)
    with suppress(OSError):
        os.nice(_NICENESS)


def _record(recording: Capture, sinks: list[Sink], selection: Selection, quiet: bool) -> None:
    with ended_by_signals(recording):
        hurry()
        recording.open(*sinks)
        if not quiet:
            for note in recording.notes:
                output.report("note", note)
            _say(_beginning(recording, selection))
        recording.run()
        summary = recording.close()
    if not quiet:
        _say(summary_text(recording.total, summary))


@contextmanager
def ended_by_signals(recording: Capture) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the capture between two packets, not in the middle of one; a second one does so at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def end(number: int, _: object) -> None:
        recording.stop()
        signal.signal(number, before[signal.Signals(number)])

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _beginning(recording: Capture, selection: Selection) -> str:
    names = [interface.name for interface in recording.interfaces]
    if not names:
        return f"waiting for {', '.join(selection.names) or 'sandboxes'} to start; ctrl-c ends"
    more = ", and what starts later" if selection.waits else ""
    return f"recording {', '.join(names)}{more}; ctrl-c ends"


def summary_text(total: int, summary: list[InterfaceSummary]) -> str:
    """What was recorded, in words and as a table."""
    lost = sum(item.lost for item in summary)
    head = f"{total} packet{'' if total == 1 else 's'} recorded, {lost} dropped by the kernel"
    if lost:
        head += " because the capture was too slow (use -w, -f, -s, or a larger -B)"
    if not summary:
        return head
    rows = [(item.name, str(item.packets), str(item.lost), str(item.refused)) for item in summary]
    return head + "\n" + output.table(("INTERFACE", "PACKETS", "DROPPED", "REFUSED BY IT"), rows, ("PACKETS", "DROPPED", "REFUSED BY IT"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
