"""What people and programs read: tables, JSON, sizes, durations, ports, one-line errors.

Colours only on a terminal, never with NO_COLOR.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from typing import IO, TYPE_CHECKING, Any, TypeVar

from netbox.spec import PortSpec

if TYPE_CHECKING:
    from netbox.network.shaping import Impairment

T = TypeVar("T")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STATE_STYLES = {"running": "green", "paused": "yellow", "exited": "dim", "created": "cyan", "starting": "cyan"}


def coloured(stream: IO[str]) -> bool:
    """Whether colours may be written to the stream: a terminal, and ``NO_COLOR`` not set (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def style(text: str, name: str, stream: IO[str] | None = None) -> str:
    """The text in a style, where the stream (stdout if not given) takes colours."""
    return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if coloured(stream or sys.stdout) else text


def state_style(state: str) -> str:
    """The name of the style in which a state is shown."""
    return _STATE_STYLES.get(state, "bold")


def report(label: str, message: str) -> None:
    """One line on stderr: who says it, what failed, why, what would do."""
    line = " ".join(message.splitlines())
    sys.stdout.flush()
    print(f"{style(label + ':', 'red', sys.stderr)} {_printable(line)}", file=sys.stderr)


def _printable(text: str) -> str:
    """Names from a command line may hold bytes that are no UTF-8, and escape sequences: shown, not sent."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def echo(text: str = "") -> None:
    """One line on stdout."""
    print(text)


def echo_json(value: object, compact: bool = False) -> None:
    """One JSON document on stdout."""
    import json

    print(json.dumps(value, separators=(",", ":")) if compact else json.dumps(value, indent=2), flush=compact)


def can_show(text: str) -> bool:
    """Whether the encoding of stdout has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Rows below their headers in aligned columns, three blanks between them; the columns named in ``right`` are flush right."""
    lines = [list(headers), *(list(map(_printable, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    flush_right = [header in right for header in headers]

    def aligned(line: list[str]) -> str:
        cells = zip(line, widths, flush_right, strict=True)
        return "   ".join(cell.rjust(width) if last else cell.ljust(width) for cell, width, last in cells).rstrip()

    return "\n".join(map(aligned, lines))


def listing(
    items: Sequence[T],
    columns: Sequence[tuple[str, Callable[[T], str]]],
    document: Callable[[T], dict[str, Any]],
    *,
    output_format: str,
    quiet: Callable[[T], str] | None = None,
) -> None:
    """Prints a listing: ids alone, one JSON document, or a table."""
    if quiet is not None:
        for item in items:
            echo(quiet(item))
    elif output_format == "json":
        echo_json([document(item) for item in items])
    else:
        echo(table([name for name, _ in columns], [[value(item) for _, value in columns] for item in items]))


def human_size(size: float) -> str:
    """``17B``, ``1.5MiB``, ``640KiB``: three digits or four, binary units."""
    value = float(size)
    for unit in _UNITS:
        if value < 1023.95 or unit == _UNITS[-1]:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 99.95 else f"{value:.3g}{unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit takes every size")


def human_duration(seconds: float) -> str:
    """``5 seconds``, ``2 minutes``, ``3 hours``, ``4 days``: the largest unit alone, as docker ps has it."""
    whole = max(0, int(seconds))
    if whole < 1:
        return "less than a second"
    for unit, length, until in (("second", 1, 60), ("minute", 60, 3600), ("hour", 3600, 48 * 3600), ("day", 86400, 14 * 86400)):
        if whole < until:
            return _counted(whole // length, unit)
    if whole < 60 * 86400:
        return _counted(whole // (7 * 86400), "week")
    if whole < 730 * 86400:
        return _counted(whole // (30 * 86400), "month")
    return _counted(whole // (365 * 86400), "year")


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with nanoseconds: ``2024-05-01T12:00:00.250000000Z``."""
    from datetime import datetime

    whole = int(seconds // 1)
    fraction = min(999_999_999, round((seconds - whole) * 1_000_000_000))
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def merged_ports(ports: Iterable[PortSpec]) -> list[PortSpec]:
    """The ports in order, for IPv4 and IPv6 by themselves, neighbours of one protocol and address joined to ranges."""
    ports = [its for port in ports for its in port.by_family]
    result: list[PortSpec] = []
    for port in sorted(ports, key=lambda item: (item.protocol, item.host_ip, item.port, item.host_port)):
        last = result[-1] if result else None
        if last is not None and _continues(last, port):
            result[-1] = PortSpec(last.port, last.host_port, last.length + port.length, last.protocol, last.host_ip)
        else:
            result.append(port)
    return result


def _continues(last: PortSpec, port: PortSpec) -> bool:
    if (last.protocol, last.host_ip, last.choices, last.host_port > 0) != (port.protocol, port.host_ip, 1, port.host_port > 0):
        return False
    next_host_port = last.host_port + last.length if last.host_port else 0
    return port.port == last.port + last.length and port.host_port == next_host_port


def port_text(port: PortSpec) -> str:
    """``0.0.0.0:8080->80/tcp``; without a host port, which a sandbox that does not run may lack, ``80/tcp``."""
    inside = f"{port_range(port.port, port.length)}/{port.protocol}"
    return f"{host_side(port)}->{inside}" if port.is_settled else inside


def port_line(port: PortSpec) -> str:
    """``80/tcp -> 0.0.0.0:8080``."""
    return f"{port_range(port.port, port.length)}/{port.protocol} -> {host_side(port)}"


def host_side(port: PortSpec) -> str:
    """``0.0.0.0:8080``: where the port is reached on the host; without a number where it is still to be chosen."""
    address = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    if not port.is_settled:
        return f"{address}:{port_range(port.host_port, port.choices) if port.host_port else '*'}"
    return f"{address}:{port_range(port.host_port, port.length)}"


def port_range(first: int, count: int) -> str:
    """``80`` or ``80-90``."""
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def ports_text(ports: Iterable[PortSpec]) -> str:
    """Every port, ranges joined, separated by commas."""
    return ", ".join(port_text(port) for port in merged_ports(ports))


def port_document(port: PortSpec) -> dict[str, Any]:
    """A port for JSON output."""
    return {"host_ip": port.host_ip, "host_port": port.host_port, "port": port.port, "length": port.length, "protocol": port.protocol}


def shortened(text: str, length: int) -> str:
    """The text, cut with an ellipsis where it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def card(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A box with a title and aligned lines of name and value."""
    names = max((len(name) for name, _ in rows), default=0)
    lines = [f"{name.ljust(names)}   {_printable(value)}" for name, value in rows]
    width = max([len(title) + 4, *(len(line) + 2 for line in lines)])
    body = [f"│ {line.ljust(width - 2)} │" for line in lines]
    top = f"╭─ {title} {'─' * (width - len(title) - 3)}╮"
    return "\n".join([top, *body, f"╰{'─' * width}╯"])


def effects(item: Impairment, seconds_left: float | None) -> str:
    """``rate 10mbit, loss 1%, 12 s left``."""
    text = ", ".join(f"{key} {value}" for key, value in item.effects.items())
    return text if seconds_left is None else f"{text}, {seconds_left:.0f} s left"
