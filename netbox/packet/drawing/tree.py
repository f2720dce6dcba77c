"""The drawing for terminals: a tree with aligned columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from netbox.packet.drawing.values import INTERNAL, LAN, NAT, Attachment, Box, Net, Topology, Uplink

Style = Callable[[str, str], str]

_LINES = {True: ("├─ ", "└─ ", "│  ", "→"), False: ("|- ", "`- ", "|  ", "->")}
_WORDS = {NAT: "out by the host's address", LAN: "on the LAN", INTERNAL: "internal, no way out"}


class _Row(NamedTuple):
    """A line: what is left of the names, its cells, and the style of the first one."""

    prefix: str
    cells: tuple[str, ...]
    style: str = ""


def tree(topology: Topology, unicode: bool = True, style: Style = lambda text, _: text) -> str:
    """The drawing as text, without a final newline. ``unicode`` false confines it to ASCII; ``style`` puts a text into a style of the
    given name (``bold``, ``dim``, ``green``, …).
    """
    branch, last, bar, arrow = _LINES[unicode]
    groups = [_uplink_rows(topology.uplinks)] if topology.uplinks else []
    groups += [_network_rows(topology, network, unicode) for network in topology.networks]
    groups += [
        [_Row("", ("elsewhere", f"the network of {box.joined}"), "bold"), *_member_rows([(box, None)], topology, unicode)]
        for box in topology.elsewhere
    ]
    rows: list[_Row] = []
    for number, group in enumerate(groups):
        final = number == len(groups) - 1
        rows.append(group[0]._replace(prefix=last if final else branch))
        rows += [row._replace(prefix=("   " if final else bar) + row.prefix) for row in group[1:]]
    lines = [style(topology.host, "bold"), *_aligned(rows, style)]
    if not topology.boxes:
        lines.append("no sandbox is running" if not topology.networks else "")
    text = "\n".join(lines).rstrip()
    return text if unicode else text.replace("→", arrow)


def _uplink_rows(uplinks: tuple[Uplink, ...]) -> list[_Row]:
    """One group of one line for all: the outside is not a network."""
    texts = [f"{item.name} {' '.join(item.addresses)}".rstrip() + (f" → {item.gateway}" if item.gateway else "") for item in uplinks]
    return [_Row("", ("outside", "; ".join(texts)), "cyan")]


def _network_rows(topology: Topology, network: Net, unicode: bool) -> list[_Row]:
    head = {"host": "the host's own links", "null": "loopback only"}.get(network.driver, "")
    if not head:
        where = f"{network.device} {network.gateway}/{network.subnet.partition('/')[2]}" if network.way_out != LAN else ""
        where = where or f"{network.driver} on {network.device} {network.subnet}"
        head = f"{where}, {_WORDS[network.way_out]}" if network.subnet else "not made yet"
    return [_Row("", (network.name, head), "bold"), *_member_rows(topology.members(network.name), topology, unicode)]


def _member_rows(members: list[tuple[Box, Attachment]] | list[tuple[Box, None]], topology: Topology, unicode: bool) -> list[_Row]:
    branch, last, bar, _ = _LINES[unicode]
    rows = []
    for number, (box, item) in enumerate(members):
        final = number == len(members) - 1
        rows.append(_Row(last if final else branch, _cells(box, item), _STATES.get(box.state, "")))
        shared = topology.sharing(box) if item is None or item is box.attachments[0] else []
        for position, other in enumerate(shared):
            stem = ("   " if final else bar) + (last if position == len(shared) - 1 else branch)
            rows.append(_Row(stem, (other.name, f"shares the network of {box.name}"), _STATES.get(other.state, "")))
    return rows


_STATES = {"running": "green", "paused": "yellow", "exited": "dim", "created": "dim"}


def _cells(box: Box, item: Attachment | None) -> tuple[str, ...]:
    state = "" if box.state == "running" else f"({box.state})"
    if item is None or not item.interface:
        return (box.name, state, "", "", ", ".join(box.ports) if box.ports and item is not None else "")
    ports = ", ".join(box.ports) if item.default else ""
    route = "default route" if item.default and len(box.attachments) > 1 else ""
    cable = f"{item.interface} {'on' if item.on_parent else '='} {item.link}"
    return (box.name, ",".join(item.addresses), cable, " ".join(filter(None, (state, route))), ports.replace("->", "→"))


def _aligned(rows: list[_Row], style: Style) -> list[str]:
    """Lines whose columns stand below one another. The second cell of a line with two runs free: it is a sentence."""
    first = max((len(row.prefix) + len(row.cells[0]) for row in rows), default=0)
    widths = [max((len(row.cells[column]) for row in rows if len(row.cells) > 2), default=0) for column in range(1, 5)]
    lines = []
    for row in rows:
        name = row.cells[0]
        gap = " " * (first - len(row.prefix) - len(name))
        rest = row.cells[1:]
        if len(rest) > 1:
            rest = tuple(cell.ljust(width) for cell, width in zip(rest, widths, strict=True) if width)
        lines.append(f"{row.prefix}{style(name, row.style) if row.style else name}{gap}  {'  '.join(rest)}".rstrip())
    return lines
