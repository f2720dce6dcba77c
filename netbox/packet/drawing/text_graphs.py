"""The drawing for other programs: Mermaid's flowcharts (mermaid.js.org) and Graphviz's language (graphviz.org/doc/info/lang.html)."""

from __future__ import annotations

from collections.abc import Sequence

from netbox.packet.drawing.values import LAN, NAT, Attachment, Box, Net, Topology

_SHAPES = {NAT: ("(", ")"), LAN: ("{{", "}}")}


def mermaid(topology: Topology) -> str:
    """A flowchart, without a final newline."""
    lines = ["flowchart LR", f"  outside(({_quoted('outside')}))", f"  subgraph host[{_quoted(topology.host)}]"]
    for number, uplink in enumerate(topology.uplinks):
        lines.append(f"    u{number}[/{_quoted(uplink.name, *uplink.addresses)}/]")
    for number, network in enumerate(topology.networks):
        opening, closing = _SHAPES.get(network.way_out, ("[[", "]]"))
        lines.append(f"    n{number}{opening}{_quoted(*_network_lines(network))}{closing}")
    for number, box in enumerate(topology.boxes):
        lines.append(f"    s{number}[{_quoted(*_box_lines(box))}]")
    lines.append("  end")
    for number, uplink in enumerate(topology.uplinks):
        lines.append(f"  outside ---|{_quoted(uplink.gateway)}| u{number}" if uplink.gateway else f"  outside --- u{number}")
    for start, end, label in _edges(topology):
        lines.append(f"  {start} ---|{_quoted(label)}| {end}" if label else f"  {start} -.- {end}")
    stopped = ",".join(f"s{number}" for number, box in enumerate(topology.boxes) if not box.running)
    if stopped:
        lines += ["  classDef stopped stroke-dasharray:4,opacity:0.6", f"  class {stopped} stopped"]
    return "\n".join(lines)


def dot(topology: Topology) -> str:
    """An undirected graph, without a final newline."""
    lines = [
        f"graph {_string(topology.host)} {{",
        "  rankdir=LR",
        '  node [shape=box, style=rounded, fontname="sans-serif"]',
        '  edge [fontname="sans-serif", fontsize=10]',
        "  outside [shape=ellipse]",
        "  subgraph cluster_host {",
        f"    label={_string(topology.host)}",
    ]
    for number, uplink in enumerate(topology.uplinks):
        lines.append(f"    u{number} [shape=cds, label={_string(uplink.name, *uplink.addresses)}]")
    for number, network in enumerate(topology.networks):
        shape = {NAT: "box3d", LAN: "hexagon"}.get(network.way_out, "component")
        lines.append(f"    n{number} [shape={shape}, label={_string(*_network_lines(network))}]")
    for number, box in enumerate(topology.boxes):
        style = "" if box.running else ', style="rounded,dashed"'
        lines.append(f"    s{number} [label={_string(*_box_lines(box))}{style}]")
    lines.append("  }")
    for number, uplink in enumerate(topology.uplinks):
        lines.append(f"  outside -- u{number} [label={_string(uplink.gateway)}]")
    for start, end, label in _edges(topology):
        lines.append(f"  {start} -- {end} [label={_string(label)}]" if label else f"  {start} -- {end} [style=dashed]")
    return "\n".join([*lines, "}"])


def _edges(topology: Topology) -> list[tuple[str, str, str]]:
    """Start, end, label; without one for what shares a network."""
    found = []
    for number, network in enumerate(topology.networks):
        uplink = topology.uplink_of(network)
        if uplink is not None:
            label = {NAT: "NAT", LAN: "macvlan"}.get(network.way_out, "shared")
            found.append((f"u{topology.uplinks.index(uplink)}", f"n{number}", label))
        for box, item in topology.members(network.name):
            found.append((f"n{number}", f"s{topology.boxes.index(box)}", _attachment_label(item)))
    for box in topology.boxes:
        found += [(f"s{topology.boxes.index(box)}", f"s{topology.boxes.index(other)}", "") for other in topology.sharing(box)]
    return found


def _attachment_label(item: Attachment) -> str:
    return " ".join((item.interface, *item.addresses)) if item.interface else item.network


def _network_lines(network: Net) -> Sequence[str]:
    words = {"host": "the host's own links", "null": "loopback only"}.get(network.driver, "")
    detail = words or " ".join(filter(None, (network.device, network.subnet, "internal" if network.way_out == "internal" else "")))
    return (network.name, detail)


def _box_lines(box: Box) -> Sequence[str]:
    joined = f"shares {box.joined}" if box.joined else ""
    return tuple(filter(None, (box.name, "" if box.state == "running" else box.state, *box.ports, joined)))


def _quoted(*lines: str) -> str:
    """A string of Mermaid: what has a meaning there becomes an entity."""
    text = "<br>".join(line.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;") for line in lines if line)
    return f'"{text}"'


def _string(*lines: str) -> str:
    """A string of Graphviz."""
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines if line) + '"'
