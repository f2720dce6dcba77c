"""Who reaches whom, mode by mode, as the table of ``networks.md`` says: asked with packets from every place, by either firewall backend."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from netbox.spec import NetworkAttachment, PortSpec
from tests.kernel.network_lab import Guest, Lab, serve
from tests.support.documents import DOCUMENTS
from tests.support.host import Neighbour, PrivateHost

PORT, PUBLISHED = 7000, 18080
PATIENCE = 60.0  # seconds for what should be reached
SILENCE = 0.6  # seconds without an answer, when all that should answer have done so, after which something counts as out of reach
AGAIN = 0.3  # seconds after which a datagram is sent again
PROTOCOLS = ("tcp", "udp", "icmp")


class Question(NamedTuple):
    """From a place to an address; ``column`` is that of the document's table."""

    place: str
    column: str
    address: str
    port: int
    expected: bool


class Asked:
    """One question by one protocol, under way."""

    def __init__(self, question: Question, protocol: str, number: int) -> None:
        self.question, self.protocol, self.number = question, protocol, number
        kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "icmp": socket.SOCK_RAW}[protocol]
        self.socket = socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP if protocol == "icmp" else 0)
        self.socket.setblocking(False)
        self.answered = False
        with contextlib.suppress(OSError):  # no route at all: it will be silent
            self.socket.connect((question.address, question.port))
        self.send()

    def send(self) -> None:
        with contextlib.suppress(OSError):
            if self.protocol == "udp":
                self.socket.send(b"?")
            elif self.protocol == "icmp":
                body = struct.pack("!BBHHH", 8, 0, 0, self.number, 1)
                words = sum(struct.unpack("!4H", body))
                checksum = ~((words >> 16) + (words & 0xFFFF)) & 0xFFFF
                self.socket.send(struct.pack("!BBHHH", 8, 0, checksum, self.number, 1))

    def receive(self) -> None:
        with contextlib.suppress(OSError):
            data = self.socket.recv(2048)
            if self.protocol == "icmp":
                header = (data[0] & 15) * 4
                kind, _, _, number = struct.unpack_from("!BBHH", data, header)
                self.answered |= (kind, number) == (0, self.number)
            else:
                self.answered |= bool(data)

    def __str__(self) -> str:
        item = self.question
        return f"{item.place} to {item.address}:{item.port} ({item.column}) by {self.protocol}"


def settle(asked: list[Asked]) -> None:
    """Waits until everything that should answer has, and then for what should not."""
    deadline = time.monotonic() + PATIENCE
    silent_until: float | None = None
    again = time.monotonic() + AGAIN
    while True:
        now = time.monotonic()
        if all(item.answered for item in asked if item.question.expected):
            silent_until = silent_until or now + SILENCE
        if now > min(deadline, silent_until or deadline):
            return
        if now > again:
            again = now + AGAIN
            for item in asked:
                if not item.answered:
                    item.send()
        waiting = {item.socket: item for item in asked if not item.answered}
        for sock in select.select(list(waiting), [], [], 0.05)[0] if waiting else ():
            waiting[sock].receive()


class World(NamedTuple):
    """Sandboxes of every kind, a server in each and on the host and the LAN."""

    guests: dict[str, Guest]
    outside: Neighbour


@pytest.fixture(params=["iptables", "nftables"])
def world(
    request: pytest.FixtureRequest, private_host: PrivateHost, outside: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setenv("NETBOX_FIREWALL", request.param)
    lab = Lab()
    servers = []
    outside.execute("ip", "route", "add", "10.0.0.0/8", "via", outside.host_address)  # it knows the way to every sandbox
    try:
        for name in ("front", "back"):
            lab.define(name)
        lab.define("inner", internal=True)
        lab.define("hidden", internal=True)
        lab.define("lan", driver="macvlan", parent=outside.host_link, subnet=outside.network, macvlan_mode="bridge")
        guests = {name: lab.guest() for name in ("default", "default 2")}
        for name, network in (("front", "front"), ("back", "back"), ("inner", "inner"), ("inner 2", "inner"), ("hidden", "hidden")):
            guests[name] = lab.guest(networks=(NetworkAttachment(network),))
        ports = tuple(PortSpec(PORT, PUBLISHED, protocol=protocol) for protocol in ("tcp", "udp"))
        guests["web"] = lab.guest(networks=(NetworkAttachment("front"),), ports=ports)
        for name in ("lan", "lan 2"):
            guests[name] = lab.guest(networks=(NetworkAttachment("lan"),))
        guests["none"] = lab.guest(mode="none")
        guests["joined"] = lab.guest(guests["front"], mode="container:target")
        for name, guest in guests.items():
            if name != "joined":
                guest.serve("tcp", PORT)
                guest.serve("udp", PORT)
        servers.append(serve("tcp", PORT))
        # One for each address: a server of datagrams on all of them answers with the address that is nearest to the client.
        gateways = {endpoint.gateway for guest in guests.values() for endpoint in guest.plan.endpoints if not endpoint.on_lan}
        servers += [serve("udp", PORT, address) for address in (outside.host_address, *gateways)]
        with outside.inside():
            servers += [serve(protocol, PORT) for protocol in ("tcp", "udp")]
        yield World(guests, outside)
    finally:
        for server in servers:
            server.close()
        lab.close()


SAME, OTHER, BY_PORT, HOST, OUTSIDE = "same network", "another network", "a published port, by the host's address", "the host", "outside"
ROWS = {  # a row of the table, and the places that it is about
    "a sandbox on a network": ("default", "front", "joined"),
    "a sandbox on an `--internal` network": ("inner",),
    "a sandbox on a `macvlan` network": ("lan",),
    "the host": ("host",),
    "outside": ("outside",),
}
PEERS = {"default": "default 2", "front": "web", "joined": "web", "inner": "inner 2", "lan": "lan 2"}
BRIDGES = ("default 2", "back", "web", "inner", "hidden")


def table() -> dict[str, dict[str, str]]:
    """The table of the document: row, column, cell."""
    text = (DOCUMENTS / "networks.md").read_text()
    lines = [
        line.strip("|").split("|") for line in text.partition("## Who reaches whom")[2].partition("\n- ")[0].splitlines() if "|" in line
    ]
    header = [cell.strip() for cell in lines[0]]
    return {row[0].strip(): dict(zip(header, (cell.strip() for cell in row), strict=True)) for row in lines[2:]}


def test_the_table_has_the_rows_and_columns_that_are_asked_about() -> None:
    found = table()
    assert set(found) == set(ROWS)
    assert all(list(cells)[1:] == [SAME, OTHER, BY_PORT, HOST, OUTSIDE] for cells in found.values())


def questions(world: World) -> list[Question]:
    """What the table says, about every place."""
    cells, found = table(), []
    for row, places in ROWS.items():
        says = {column: cell.startswith("yes") for column, cell in cells[row].items()}
        for place in places:
            found += in_networks(world, place, says, cells[row][OTHER])
            found.append(Question(place, BY_PORT, world.outside.host_address, PUBLISHED, says[BY_PORT]))
            if place not in ("host", "outside"):
                found += to_the_host(world, place, says[HOST], cells[row][HOST])
                found.append(Question(place, OUTSIDE, world.outside.address, PORT, says[OUTSIDE]))
    nowhere = [(world.guests["web"].address, PORT), (world.outside.host_address, PUBLISHED), (world.outside.address, PORT)]
    return found + [Question("none", "anything", address, port, False) for address, port in nowhere]


def in_networks(world: World, place: str, says: dict[str, bool], cell: str) -> list[Question]:
    found = []
    own = {"joined": "front", "default": "default"}.get(place, place)
    own_network = world.guests[own].plan.endpoints[0].network if own in world.guests else ""
    for name in (*BRIDGES, "lan 2"):
        target = world.guests[name]
        if target.plan.endpoints[0].network == own_network:
            continue
        if place in ("host", "outside"):
            excepted = name == "lan 2" and "but" in cell and "a `macvlan` network" in cell
            found.append(Question(place, OTHER, target.address, PORT, says[OTHER] is not excepted))
        elif name != "lan 2":
            found.append(Question(place, OTHER, target.address, PORT, says[OTHER]))
    if place in PEERS:
        found.append(Question(place, SAME, world.guests[PEERS[place]].address, PORT, says[SAME]))
    return found


def to_the_host(world: World, place: str, says: bool, cell: str) -> list[Question]:
    guest = world.guests[place]
    found = [Question(place, HOST, world.outside.host_address, PORT, says)]
    if not guest.plan.endpoints or not guest.plan.endpoints[0].on_lan:
        gateway = world.guests["front"].gateway if place == "joined" else guest.gateway
        found.append(Question(place, HOST, gateway, PORT, says or cell == "by the gateway's address"))
    return found


def test_who_reaches_whom(world: World) -> None:
    asked: list[Asked] = []
    try:
        for question in questions(world):
            for protocol in PROTOCOLS:
                if protocol == "icmp" and question.port == PUBLISHED:
                    continue
                with contextlib.ExitStack() as stack:
                    if question.place == "outside":
                        stack.enter_context(world.outside.inside())
                    elif question.place != "host":
                        stack.enter_context(world.guests[question.place].inside())
                    asked.append(Asked(question, protocol, 1000 + len(asked)))
        settle(asked)
        assert len(asked) > 100
        wrong = [
            f"{'no answer' if item.question.expected else 'an answer'}: {item}" for item in asked if item.answered != item.question.expected
        ]
        assert wrong == []
    finally:
        for item in asked:
            item.socket.close()
