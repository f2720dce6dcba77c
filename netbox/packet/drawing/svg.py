"""The drawing as a picture: SVG 1.1 with its own style sheet, for browsers, for documents, and inside of HTML pages.

Colours are custom properties of CSS that follow the reader's light or dark scheme; a page may set them on ``.netbox-topology``. Elements
carry ``data-sandbox`` and ``data-network`` with the names, for scripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from netbox.packet.drawing import layout
from netbox.packet.drawing.layout import Card, Layout, Rect, pill_width, shortened
from netbox.packet.drawing.values import INTERNAL, LAN, NAT, Net, Topology, Uplink

_STYLE = """
.netbox-topology{--ground:#f6f7f9;--frame:#fdfdfe;--card:#fff;--line:#cfd5de;--text:#1b2330;--soft:#5d6878;--port:#e8f1fd;--port-text:#0b57a4;
--c0:#2f6fde;--c1:#0d8f72;--c2:#b4561b;--c3:#8a44c2;--c4:#b62f62;--c5:#6b7a10;--c6:#16808f;--c7:#6a6f7b;--run:#1f9d55;--pause:#c98a04;
font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;font-size:12px}
@media (prefers-color-scheme:dark){.netbox-topology{--ground:#0e1116;--frame:#141921;--card:#1b222c;--line:#38424f;--text:#e8edf4;
--soft:#98a4b3;--port:#12304f;--port-text:#9ccbff;--c0:#6ea8ff;--c1:#3fcfa6;--c2:#f0985b;--c3:#c08cf0;--c4:#f07ba4;--c5:#c0cf55;--c6:#57c7d6;
--c7:#a6adb8;--run:#42c97c;--pause:#e9b949}}
.netbox-topology .ground{fill:var(--ground)}
.netbox-topology .frame{fill:var(--frame);stroke:var(--line)}
.netbox-topology .card{fill:var(--card);stroke:var(--line)}
.netbox-topology text{fill:var(--text)}
.netbox-topology .soft{fill:var(--soft)}
.netbox-topology .name{font-size:14px;font-weight:600}
.netbox-topology .title{font-size:15px;font-weight:600}
.netbox-topology .port{fill:var(--port)}
.netbox-topology .port-text{fill:var(--port-text)}
.netbox-topology .cable{fill:none;stroke-width:2}
.netbox-topology .way{fill:none;stroke:var(--soft);stroke-width:1.5}
.netbox-topology .badge{fill:none;stroke-opacity:.5}
.netbox-topology .stopped{opacity:.55}
.netbox-topology .stopped .card,.netbox-topology .dashed{stroke-dasharray:5 4}
"""
_COLOURS = 8
_NOTE_MAX = 14  # characters
_NAME_CHARACTER = 8.6  # pixels, of a name's font
_WAYS = {NAT: "NAT", LAN: "macvlan", INTERNAL: "internal"}
_STATES = {"running": "--run", "paused": "--pause"}


def svg(topology: Topology, title: str | None = None) -> str:
    """The picture as one ``<svg>`` element, without a final newline. ``title`` is its name for readers who do not see it."""
    placed = layout.arrange(topology)
    colours = {network.name: number % _COLOURS for number, network in enumerate(topology.networks)}
    size = f'width="{_n(placed.width)}" height="{_n(placed.height)}" viewBox="0 0 {_n(placed.width)} {_n(placed.height)}"'
    name = title or f"Networks of {topology.host}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="netbox-topology" role="img" aria-label={quoteattr(name)} {size}>',
        f"<title>{escape(name)}</title><desc>{escape(_description(topology))}</desc><style>{_STYLE}</style>",
        f'<rect class="ground" width="{_n(placed.width)}" height="{_n(placed.height)}"/>',
        _rect(placed.host, "frame", 14),
        _text(placed.host.x + 20, placed.host.y + 28, topology.host, "title"),
        *_cables(placed, colours),
        *_ways(topology, placed),
    ]
    if placed.outside is not None:
        parts += [
            _rect(placed.outside, "card", 30),
            _text(placed.outside.x + placed.outside.width / 2, placed.outside.middle + 4, "outside", "name", "middle"),
        ]
    parts += [_uplink(item, rect) for item, rect in placed.uplinks]
    parts += [_network(item, rect, colours[item.name]) for item, rect in placed.networks]
    parts += [_card(card, colours) for card in placed.cards]
    if not topology.boxes:
        rect = placed.host
        parts.append(_text(rect.x + 20, rect.y + rect.height - 16, "no sandbox is running", "soft"))
    return "\n".join([*parts, "</svg>"])


def _description(topology: Topology) -> str:
    """The picture in words."""
    sentences = []
    for network in topology.networks:
        names = ", ".join(box.name for box, _ in topology.members(network.name)) or "nobody"
        sentences.append(f"{network.name}: {names}.")
    return " ".join(sentences) or "No networks."


def _cables(placed: Layout, colours: dict[str, int]) -> Iterator[str]:
    """From each network to its members."""
    ends = {network.name: rect for network, rect in placed.networks}
    for card in placed.cards:
        for number, item in enumerate(card.box.attachments):
            start = ends.get(item.network)
            if start is None:
                continue
            y = card.socket(number)
            dashed = "" if card.box.running else " dashed"
            data = f"data-network={quoteattr(item.network)} data-sandbox={quoteattr(card.box.name)}"
            path = _curve(start.right, start.middle, card.rect.x, y)
            yield f'<path class="cable{dashed}" style="stroke:var(--c{colours[item.network]})" {data} d="{path}"/>'


def _ways(topology: Topology, placed: Layout) -> Iterator[str]:
    """From the outside to the host's links, and from there to the networks."""
    ends = {item.name: rect for item, rect in placed.uplinks}
    for _, rect in placed.uplinks:
        if placed.outside is not None:
            yield f'<path class="way" d="{_trunk(placed.outside.right, placed.outside.middle, rect.x, rect.middle)}"/>'
    for network, rect in placed.networks:
        found = topology.uplink_of(network)
        if found is not None:
            start = ends[found.name]
            yield f'<path class="way" d="{_trunk(start.right, start.middle, rect.x, rect.middle)}"/>'


def _uplink(uplink: Uplink, rect: Rect) -> str:
    lines = [_text(rect.x + 14, rect.y + 24, shortened(uplink.name, 18), "name")]
    for number, address in enumerate(uplink.addresses or ("no address",)):
        lines.append(_text(rect.x + 14, rect.y + 43 + 16 * number, shortened(address, 20), "soft"))
    if uplink.gateway:
        lines.append(_text(rect.x + 14, rect.y + 43 + 16 * max(1, len(uplink.addresses)), f"→ {uplink.gateway}", "soft"))
    title = f"<title>default route by {escape(uplink.gateway)}</title>" if uplink.gateway else ""
    return f"<g>{title}{_rect(rect, 'card', 10)}{''.join(lines)}</g>"


def _network(network: Net, rect: Rect, colour: int) -> str:
    dashed = " dashed" if network.way_out == INTERNAL else ""
    stopped = "" if network.standing else ' class="stopped"'
    first = {"host": "the host's own links", "null": "loopback only"}.get(network.driver, network.subnet or "no subnet yet")
    second = f"on {network.device}" if network.way_out == LAN else network.device
    badge, x, stroke = _WAYS.get(network.way_out, ""), rect.x + 18, f"var(--c{colour})"
    parts = [
        f"<g{stopped} data-network={quoteattr(network.name)}><title>{escape(_network_title(network))}</title>",
        f'<rect class="card{dashed}" style="stroke:{stroke};stroke-width:1.5" {_position(rect)} rx="10"/>',
        f'<rect style="fill:{stroke}" {_position(Rect(rect.x + 6, rect.y + 10, 4, rect.height - 20))} rx="2"/>',
        _text(x, rect.y + 26, shortened(network.name, _fitting(rect.width - 36 - (pill_width(badge) if badge else 0))), "name"),
        _text(x, rect.y + 45, shortened(first, 25)),
        _text(x, rect.y + 62, shortened(second, 25), "soft"),
        f'<circle style="fill:{stroke}" cx="{_n(rect.right)}" cy="{_n(rect.middle)}" r="4"/>',
    ]
    if badge:
        width = pill_width(badge)
        parts.append(
            f'<rect class="badge" style="stroke:{stroke}" {_position(Rect(rect.right - width - 10, rect.y + 11, width, 20))} rx="10"/>'
        )
        parts.append(_text(rect.right - width / 2 - 10, rect.y + 25, badge, "soft", "middle"))
    return "".join([*parts, "</g>"])


def _fitting(width: float) -> int:
    """How many characters of a name have room in a width."""
    return int(width / _NAME_CHARACTER)


def _network_title(network: Net) -> str:
    gateway = f", gateway {network.gateway}" if network.gateway else ""
    return f"network {network.name}, driver {network.driver}{gateway}"


def _card(card: Card, colours: dict[str, int]) -> str:
    box, rect = card.box, card.rect
    state = _STATES.get(box.state, "--soft")
    note = box.state if box.state != "running" else shortened(box.image.rpartition("/")[2], _NOTE_MAX)
    parts = [
        f"<g{'' if box.running else ' class=' + quoteattr('stopped')} data-sandbox={quoteattr(box.name)}>",
        f"<title>{escape(f'{box.name}, {box.state}, image {box.image}, id {box.id[:12]}')}</title>",
        _rect(rect, "card", 10),
        f'<circle style="fill:var({state})" cx="{_n(rect.x + 18)}" cy="{_n(rect.y + 19)}" r="5"/>',
        _text(rect.x + 32, rect.y + 24, shortened(box.name, _fitting(rect.width - 56 - len(note) * layout.CHARACTER)), "name"),
    ]
    parts.append(_text(rect.right - 14, rect.y + 24, note, "soft", "end"))
    for number, item in enumerate(box.attachments):
        y = card.socket(number)
        tooltip = f"{item.network}: {' '.join(item.addresses)} {item.mac_address}" + (f", other end {item.link}" if item.link else "")
        parts.append(f"<g data-network={quoteattr(item.network)}><title>{escape(tooltip)}</title>")
        if item.network in colours:
            parts.append(f'<circle style="fill:var(--c{colours[item.network]})" cx="{_n(rect.x)}" cy="{_n(y)}" r="4"/>')
        parts.append(_text(rect.x + 18, y + 4, item.interface, "soft"))
        parts.append(_text(rect.x + (60 if item.interface else 18), y + 4, item.addresses[0] if item.addresses else item.network))
        if item.default and len(box.attachments) > 1:
            parts.append(_text(rect.right - 14, y + 4, "default route", "soft", "end"))
        parts.append("</g>")
    y = rect.y + layout.HEADER + layout.ROW * len(box.attachments)
    for text in [*([f"in {box.joined}"] if box.joined else []), *(f"+ {other.name} shares this network" for other in card.sharing)]:
        parts.append(_text(rect.x + 18, y + 15, shortened(text, 37), "soft"))
        y += layout.ROW
    for line in card.port_lines:
        x = rect.x + 14
        for port in line:
            width = pill_width(port)
            parts.append(f'<rect class="port" x="{_n(x)}" y="{_n(y + 2)}" width="{_n(width)}" height="20" rx="10"/>')
            parts.append(_text(x + width / 2, y + 16, port.replace("->", "→"), "port-text", "middle"))
            x += width + 6
        y += layout.PILL
    return "".join([*parts, "</g>"])


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    bend = (x2 - x1) / 2
    return f"M{_n(x1)} {_n(y1)}C{_n(x1 + bend)} {_n(y1)} {_n(x2 - bend)} {_n(y2)} {_n(x2)} {_n(y2)}"


def _trunk(x1: float, y1: float, x2: float, y2: float) -> str:
    """Level, upright, level, with round corners: several from one place share the most of their way."""
    middle, radius = (x1 + x2) / 2, min(12.0, abs(y2 - y1) / 2)
    if radius < 1:
        return f"M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}"
    turn = radius if y2 > y1 else -radius
    return (
        f"M{_n(x1)} {_n(y1)}H{_n(middle - radius)}Q{_n(middle)} {_n(y1)} {_n(middle)} {_n(y1 + turn)}"
        f"V{_n(y2 - turn)}Q{_n(middle)} {_n(y2)} {_n(middle + radius)} {_n(y2)}H{_n(x2)}"
    )


def _position(rect: Rect) -> str:
    return f'x="{_n(rect.x)}" y="{_n(rect.y)}" width="{_n(rect.width)}" height="{_n(rect.height)}"'


def _rect(rect: Rect, kind: str, radius: float) -> str:
    return f'<rect class="{kind}" {_position(rect)} rx="{_n(radius)}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{_n(x)}" y="{_n(y)}"{attributes}>{escape(text)}</text>' if text else ""


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
