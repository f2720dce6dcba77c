"""The drawings of networks: every form says the same, whatever names there are."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import string
import subprocess
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbox.packet.drawing import layout, text_graphs
from netbox.packet.drawing.facts import port_texts
from netbox.packet.drawing.layout import Rect
from netbox.packet.drawing.svg import svg
from netbox.packet.drawing.tree import tree
from netbox.packet.drawing.values import INTERNAL, LAN, NAT, NONE, Attachment, Box, Net, Topology, Uplink
from netbox.spec import PortSpec

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'a"<b>&\\#;]'


def attached(network: str, number: int, address: str, default: bool = False, **values: bool) -> Attachment:
    return Attachment(network, f"eth{number}", (address,), "02:00:00:00:00:01", f"nb0{number}" if not values else "eth0", default, **values)


SMALL = Topology(
    "workshop",
    (Uplink("eth0", ("192.0.2.2/24",), "192.0.2.1"),),
    (
        Net("bridge", "bridge", NAT, "netbox0", "10.210.0.0/20", "10.210.0.1", True),
        Net("inner", "bridge", INTERNAL, "nb-1", "10.211.0.0/24", "10.211.0.1", True),
        Net("lan", "macvlan", LAN, "eth0", "192.0.2.0/24", "192.0.2.1", True),
        Net("none", "null", NONE, standing=True),
    ),
    (
        Box("1" * 64, "api", "running", "busybox", (attached("bridge", 0, "10.210.0.3", True), attached("inner", 1, "10.211.0.2"))),
        Box("2" * 64, "debug", "running", "busybox", joined="api"),
        Box("3" * 64, "job", "exited", "busybox", (Attachment("none"),)),
        Box("4" * 64, "printer", "paused", "busybox", (attached("lan", 0, "192.0.2.99", True, on_parent=True),)),
        Box("5" * 64, "web", "running", "busybox", (attached("bridge", 0, "10.210.0.2", True),), ("8080->80/tcp", "53->53/udp")),
        Box("6" * 64, "wild", "running", "busybox", joined="/run/netns/lab"),
    ),
)

TREE = """\
workshop
├─ outside      eth0 192.0.2.2/24 → 192.0.2.1
├─ bridge       netbox0 10.210.0.1/20, out by the host's address
│  ├─ api       10.210.0.3  eth0 = nb00   default route
│  │  └─ debug  shares the network of api
│  └─ web       10.210.0.2  eth0 = nb00                  8080→80/tcp, 53→53/udp
├─ inner        nb-1 10.211.0.1/24, internal, no way out
│  └─ api       10.211.0.2  eth1 = nb01
├─ lan          macvlan on eth0 192.0.2.0/24, on the LAN
│  └─ printer   192.0.2.99  eth0 on eth0  (paused)
├─ none         loopback only
│  └─ job       (exited)
└─ elsewhere    the network of /run/netns/lab
   └─ wild"""


def test_the_tree() -> None:
    assert tree(SMALL) == TREE


def test_the_tree_in_ascii() -> None:
    text = tree(SMALL, unicode=False)
    assert text.isascii()
    assert "|  |- api" in text
    assert "`- wild" in text
    assert "8080->80/tcp" in text


def test_the_tree_of_nothing() -> None:
    assert tree(Topology("workshop")) == "workshop\nno sandbox is running"


def test_styles_do_not_move_columns() -> None:
    styled = tree(SMALL, style=lambda text, name: f"\x1b[{name}]{text}\x1b[0]")
    assert re.sub(r"\x1b\[[^\]]*\]", "", styled) == TREE


NAMES = st.text(string.ascii_letters + string.digits + "_.-" + HOSTILE, min_size=1, max_size=30)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    networks = draw(st.lists(NAMES, max_size=6, unique=True))
    ways = [draw(st.sampled_from((NAT, LAN, INTERNAL, NONE))) for _ in networks]
    drivers = {LAN: "macvlan", NONE: "null"}
    nets = tuple(Net(name, drivers.get(way, "bridge"), way, "eth0", "10.0.0.0/24") for name, way in zip(networks, ways, strict=True))
    boxes: list[Box] = []
    for number, name in enumerate(draw(st.lists(NAMES, max_size=12, unique=True))):
        on = draw(st.lists(st.sampled_from(networks), max_size=4, unique=True)) if networks else []
        ports = draw(st.lists(st.sampled_from(("80->80/tcp", "127.0.0.1:8000-8010->9000-9010/udp")), max_size=5))
        items = tuple(attached(network, place, "10.0.0.2", place == 0) for place, network in enumerate(on))
        joined = draw(st.sampled_from((boxes[0].name, "gone", ""))) if boxes and not on else ""
        boxes.append(Box(f"{number:064x}", name, draw(st.sampled_from(("running", "exited"))), "busybox", items, tuple(ports), joined))
    uplinks = (Uplink("eth0", ("192.0.2.2/24",), "192.0.2.1"),) if draw(st.booleans()) else ()
    return Topology(draw(NAMES), uplinks, nets, tuple(boxes))


def overlap(a: Rect, b: Rect) -> bool:
    return a.x < b.right - 0.01 and b.x < a.right - 0.01 and a.y < b.y + b.height - 0.01 and b.y < a.y + a.height - 0.01


@settings(max_examples=30, deadline=None)
@given(topologies())
def test_nothing_overlaps_and_everything_is_inside(topology: Topology) -> None:
    placed = layout.arrange(topology)
    rects = [card.rect for card in placed.cards] + [rect for _, rect in (*placed.networks, *placed.uplinks)]
    assert not any(overlap(one, other) for one, other in itertools.combinations(rects, 2))
    frame = placed.host
    for rect in rects:
        assert rect.x >= frame.x
        assert rect.right <= frame.right
        assert rect.y >= frame.y
        assert rect.y + rect.height <= frame.y + frame.height
    assert frame.right <= placed.width
    assert frame.y + frame.height <= placed.height


@settings(max_examples=30, deadline=None)
@given(topologies())
def test_every_form_is_well_formed_whatever_the_names(topology: Topology) -> None:
    root = ElementTree.fromstring(svg(topology))
    assert root.tag == f"{SVG}svg"
    drawn = {item.get("data-sandbox") for item in root.iter(f"{SVG}g")} - {None}
    assert drawn == {card.box.name for card in layout.arrange(topology).cards}
    cables = [item for item in root.iter(f"{SVG}path") if item.get("data-sandbox")]
    assert len(cables) == sum(len(card.box.attachments) for card in layout.arrange(topology).cards)
    check_mermaid(text_graphs.mermaid(topology), topology)
    check_dot(text_graphs.dot(topology), topology)
    json.dumps(topology.to_json())
    tree(topology)


def check_mermaid(text: str, topology: Topology) -> None:
    """Its grammar, as far as it is used: nodes with quoted labels in one subgraph, then edges between nodes that exist."""
    lines = text.splitlines()
    assert lines[0] == "flowchart LR"
    label = r'"[^"\n]*"'
    node = re.compile(rf"\s*(\w+)(\(\({label}\)\)|\[/{label}/\]|\({label}\)|\[\[{label}\]\]|\{{\{{{label}\}}\}}|\[{label}\])")
    edge = re.compile(rf"  (\w+) (?:---(?:\|{label}\|)?|-\.-) (\w+)")
    declared: set[str] = set()
    edges = 0
    for line in lines[1:]:
        if found := edge.fullmatch(line):
            assert set(found.groups()) <= declared, line
            edges += 1
        elif found := node.fullmatch(line):
            declared.add(found[1])
        else:
            assert re.fullmatch(rf"  subgraph host\[{label}\]|  end|  classDef .*|  class [s\d,]+ stopped", line), line
    assert len(declared) == 1 + len(topology.uplinks) + len(topology.networks) + len(topology.boxes)
    assert edges >= sum(len(box.attachments) for box in topology.boxes)


def check_dot(text: str, topology: Topology) -> None:
    quoted = r'"(?:[^"\\]|\\.)*"'
    bare = re.sub(quoted, "Q", text)
    assert '"' not in bare
    assert bare.count("{") == bare.count("}") == 2
    declared = set(re.findall(r"^\s+(\w+) \[", bare, re.M)) - {"node", "edge"}
    assert len(declared) == 1 + len(topology.uplinks) + len(topology.networks) + len(topology.boxes)
    for start, end in re.findall(r"^  (\w+) -- (\w+)", bare, re.M):
        assert {start, end} <= declared


def test_graphviz_reads_it() -> None:
    program = shutil.which("dot")
    if program is not None:  # the grammar was checked above; where the program is, it is asked too
        subprocess.run([program, "-Tplain"], input=text_graphs.dot(SMALL), text=True, check=True, capture_output=True, timeout=60)


def test_the_picture_needs_nothing_else() -> None:
    text = svg(SMALL)
    assert "<script" not in text
    assert "<image" not in text
    assert re.findall(r"https?://[^\"<]*", text) == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme:dark" in text
    assert svg(SMALL) == text
    words = {"".join(item.itertext()) for item in ElementTree.fromstring(text).iter(f"{SVG}text")}
    expected = {"workshop", "outside", "bridge", "NAT", "macvlan", "internal", "10.210.0.2", "8080→80/tcp", "default route"}
    assert expected <= words
    assert "+ debug shares this network" in words
    assert "in /run/netns/lab" in words
    rules = re.search(r"<style>(.*?)</style>", text, re.S)
    assert rules is not None
    for rule in re.findall(r"^([^{}@\n-][^{}\n]*)\{", rules[1], re.M):  # inside of a page it styles nothing but itself
        assert all(part.strip().startswith(".netbox-topology") for part in rule.split(",")), rule


def test_a_title() -> None:
    assert 'aria-label="A &quot;B&quot;"' in svg(SMALL, 'A "B"') or "aria-label='A \"B\"'" in svg(SMALL, 'A "B"')


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (PortSpec(80, 8080), "8080->80/tcp"),
        (PortSpec(80, 8080, host_ip="127.0.0.1"), "127.0.0.1:8080->80/tcp"),
        (PortSpec(80, 8080, host_ip="2001:db8::1"), "[2001:db8::1]:8080->80/tcp"),
        (PortSpec(80, 8000, 3, "udp"), "8000-8002->80-82/udp"),
        (PortSpec(80), "80/tcp"),
    ],
)
def test_ports(port: PortSpec, text: str) -> None:
    assert port_texts([port, port._replace(host_ip="::") if port.host_ip == "0.0.0.0" else port]) == [text]
