"""Where everything of a picture is: four columns, from the outside to the sandboxes. Pixels, y downward. Pure.

The sandboxes stand below one another, in an order that lets few cables cross; every network stands at the height of its members, as far as
the others leave it room, and every link of the host at that of its networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from netbox.packet.drawing.values import Box, Net, Topology, Uplink

CHARACTER = 7.4  # of the monospaced 12 px font: 0.6 em, and a little for fonts that are wider
MARGIN, GAP = 28.0, 18.0
HEADER, ROW, PADDING, PILL = 34.0, 22.0, 10.0, 26.0
OUTSIDE, UPLINK, NETWORK, SANDBOX = 92.0, 176.0, 212.0, 300.0  # widths of the columns
CABLE, SHORT = 110.0, 62.0  # widths between them
CABLE_MAX, CABLE_SHARE = 340.0, 0.12
TITLE = 46.0  # the host's name
_SWEEPS = 4


class Rect(NamedTuple):
    """A rectangle by its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """The height of its middle."""
        return self.y + self.height / 2

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width


class Card(NamedTuple):
    """A sandbox: where it is, the lines of its published ports, and those that share its network."""

    box: Box
    rect: Rect
    port_lines: tuple[tuple[str, ...], ...]
    sharing: tuple[Box, ...]

    def socket(self, number: int) -> float:
        """The height at which the cable of the n-th attachment ends."""
        return self.rect.y + HEADER + ROW * (number + 0.5)


class Layout(NamedTuple):
    """Everything placed. ``outside`` is ``None`` on a host without links to anywhere."""

    width: float
    height: float
    host: Rect
    outside: Rect | None
    uplinks: tuple[tuple[Uplink, Rect], ...]
    networks: tuple[tuple[Net, Rect], ...]
    cards: tuple[Card, ...]


def arrange(topology: Topology) -> Layout:
    """The layout of a topology."""
    order, networks = _orders(topology)
    left = MARGIN + (OUTSIDE + SHORT if topology.uplinks else 0.0)
    uplink_x = left + MARGIN
    network_x = uplink_x + (UPLINK + SHORT if topology.uplinks else 0.0)
    top = MARGIN + TITLE
    cards, y = [], top
    for box in order:
        card = _card(topology, box, 0.0, y)
        cards.append(card)
        y += card.rect.height + GAP
    cable = max(CABLE, min(CABLE_MAX, y * CABLE_SHARE))  # the higher the picture, the more room for its cables
    card_x = network_x + (NETWORK + cable if networks else 0.0)
    cards = [card._replace(rect=card.rect._replace(x=card_x)) for card in cards]
    heights = {network.name: _sockets(cards, network.name) for network in networks}
    network_rects = _stack([(heights[item.name], 74.0 if item.device else 58.0) for item in networks], network_x, NETWORK, top)
    placed = dict(zip((item.name for item in networks), network_rects, strict=True))
    uplink_rects = _stack([(_served(topology, item, placed), _uplink_height(item)) for item in topology.uplinks], uplink_x, UPLINK, top)
    bottom = max([y - GAP, top + 60.0, *(rect.y + rect.height for rect in (*network_rects, *uplink_rects))])
    if not cards:
        bottom += 30.0  # for the words that say so
    right = (card_x + SANDBOX if cards else network_x + NETWORK if networks else uplink_x + UPLINK) + MARGIN
    host = Rect(left, MARGIN, right - left, bottom + 22.0 - MARGIN)
    middle = sum(rect.middle for rect in uplink_rects) / len(uplink_rects) if uplink_rects else 0.0
    outside = Rect(MARGIN, middle - 30.0, OUTSIDE, 60.0) if topology.uplinks else None
    return Layout(
        right + MARGIN,
        host.y + host.height + MARGIN,
        host,
        outside,
        tuple(zip(topology.uplinks, uplink_rects, strict=True)),
        tuple(zip(networks, network_rects, strict=True)),
        tuple(cards),
    )


def _orders(topology: Topology) -> tuple[list[Box], list[Net]]:
    """Sandboxes and networks, each in the order of the mean position of those of the other kind (Sugiyama's barycentre method)."""
    boxes = [box for box in topology.boxes if not box.joined or box in topology.elsewhere]
    networks = list(topology.networks)
    for _ in range(_SWEEPS):
        position = {network.name: float(number) for number, network in enumerate(networks)}
        boxes.sort(key=lambda box: (_mean([position[item.network] for item in box.attachments if item.network in position], 1e9), box.name))
        place = {box.id: float(number) for number, box in enumerate(boxes)}
        networks.sort(key=lambda net: (_mean([place[box.id] for box, _ in topology.members(net.name) if box.id in place], 1e9), net.name))
    return boxes, networks


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _card(topology: Topology, box: Box, x: float, y: float) -> Card:
    lines = _port_lines(box.ports)
    sharing = tuple(topology.sharing(box))
    rows = len(box.attachments) + len(sharing) + (1 if box.joined else 0)
    height = HEADER + ROW * rows + PILL * len(lines) + PADDING
    return Card(box, Rect(x, y, SANDBOX, height), lines, sharing)


def _port_lines(ports: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The ports in as many lines as they need."""
    lines: list[list[str]] = []
    used = SANDBOX
    for port in ports:
        width = pill_width(port)
        if used + width > SANDBOX - 2 * PADDING:
            lines.append([])
            used = 0.0
        lines[-1].append(port)
        used += width + 6.0
    return tuple(tuple(line) for line in lines)


def pill_width(text: str) -> float:
    """The width of a text with a rounded frame around it."""
    return len(text) * CHARACTER + 16.0


def shortened(text: str, most: int) -> str:
    """The text, cut where it would not fit."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _sockets(cards: Sequence[Card], network: str) -> list[float]:
    return [card.socket(number) for card in cards for number, item in enumerate(card.box.attachments) if item.network == network]


def _served(topology: Topology, uplink: Uplink, placed: Mapping[str, Rect]) -> list[float]:
    return [placed[item.name].middle for item in topology.networks if topology.uplink_of(item) is uplink]


def _uplink_height(uplink: Uplink) -> float:
    return 40.0 + 16.0 * (max(1, len(uplink.addresses)) + bool(uplink.gateway))


def _stack(wanted: Sequence[tuple[list[float], float]], x: float, width: float, top: float) -> list[Rect]:
    """Rectangles in this order, each as near to the mean of its heights as those above allow; a pile that hangs too low moves up."""
    rects: list[Rect] = []
    lowest = top
    for heights, height in wanted:
        y = max(_mean(heights, lowest + height / 2) - height / 2, lowest)
        rects.append(Rect(x, y, width, height))
        lowest = y + height + GAP
    # From the bottom: what was pushed below its place by others takes the room that is free above.
    for number in range(len(rects) - 1, -1, -1):
        ideal = _mean(wanted[number][0], rects[number].middle) - rects[number].height / 2
        above = rects[number - 1].y + rects[number - 1].height + GAP if number else top
        if rects[number].y > ideal:
            rects[number] = rects[number]._replace(y=max(ideal, above))
    return rects
