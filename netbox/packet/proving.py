"""``netbox exposure --probe``: every cell of the report is asked with packets, from a simulated neighbour on a LAN, from this host, and
from sandboxes on the same and on other networks. A cell is proven by whether the packet was seen in the sandbox's namespace, not by an
answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from netbox.engine.exposing import HOST, LAN, OTHER, OWN, Cell, Proof, Report, Row
from netbox.network.firewall import ANY_ADDRESS, ANY_ADDRESS6
from netbox.packet import places
from netbox.packet.places import Place, Target
from netbox.packet.probing.run import run_probes
from netbox.packet.probing.values import NO_ROUTE, TCP, ProbeRequest

if TYPE_CHECKING:
    from netbox.engine import Engine, Sandbox

_PACKETS = 2  # the first may be lost where a bridge is just learning
_DISCARD = 9  # the port that stands for "every port": nobody need listen there


class _Asked(NamedTuple):
    row: int
    cell: int
    source: str
    expected: bool
    place: Place
    target: Target


def prove(engine: Engine, report: Report) -> Report:
    """The report with proofs. Cells that nobody can be asked from have none: a network without a second sandbox.

    Raises:
        WrongState: a sandbox has ended meanwhile.
        Conflict, Unsupported, HostError: there is no room for a neighbour, scapy is missing, a namespace cannot be entered.
    """
    with ExitStack() as stack:
        stations = _Stations(engine, stack)
        asked = [
            _Asked(row_number, cell_number, title, _expected(cell, network), place, stations.target(row, cell, place, gateway))
            for row_number, row in enumerate(report.rows)
            for cell_number, cell in enumerate(row.cells)
            for title, network, place, gateway in stations.sources(row, cell)
        ]
        answers = run_probes([(item.place, item.target, _request(item.target)) for item in asked])
    proofs: dict[tuple[int, int], list[Proof]] = {}
    for item, answer in zip(asked, answers, strict=True):
        # What cannot be sent does not arrive.
        seen = {one.arrived for one in answer.answers}
        arrived = False if answer.state == NO_ROUTE else True if True in seen else None if None in seen else False
        to = f"{item.target.address}, {_request(item.target).title}"
        proofs.setdefault((item.row, item.cell), []).append(Proof(item.source, to, item.expected, arrived, answer.state))
    return dataclasses.replace(report, rows=tuple(_proven(number, row, proofs) for number, row in enumerate(report.rows)))


def _proven(number: int, row: Row, proofs: dict[tuple[int, int], list[Proof]]) -> Row:
    cells = (dataclasses.replace(cell, proofs=tuple(proofs.get((number, index), ()))) for index, cell in enumerate(row.cells))
    return dataclasses.replace(row, cells=tuple(cells))


def _expected(cell: Cell, network: str) -> bool:
    return network in cell.reached_by if cell.reachable is None else cell.reachable


def _request(target: Target) -> ProbeRequest:
    return ProbeRequest(target.protocol or TCP, target.port, count=_PACKETS)


class _Stations:
    """Where packets are sent from."""

    def __init__(self, engine: Engine, stack: ExitStack) -> None:
        self._engine = engine
        self._stack = stack
        self._places: dict[str, Place] = {}
        self._running: list[Sandbox] = sorted(engine.list(), key=lambda item: (len(item.networks), item.name))

    def _place(self, name: str) -> Place:
        if name not in self._places:
            self._places[name] = self._stack.enter_context(places.source(self._engine, name))
        return self._places[name]

    def sources(self, row: Row, cell: Cell) -> Iterator[tuple[str, str, Place, str]]:
        """From where a cell is asked: the title, the network, the place, and the host's address of the row's family on that network."""
        is_ipv6 = ":" in row.address
        if cell.source == HOST:
            # Whether ::1 leads to a sandbox depends on the host's bridge netfilter.
            own = _gateway(self._engine.get(row.sandbox), row.network, is_ipv6) if is_ipv6 else "127.0.0.1"
            yield "this host", "", self._place("host"), own
        elif cell.source == LAN:
            lan = self._place("lan")
            assert lan.neighbour is not None
            address = lan.neighbour.host_address6 if is_ipv6 else lan.neighbour.host_address
            if address is not None:
                yield "a neighbour on the LAN", "", lan, address
        else:
            for network, sandbox in self._members(row, cell.source):
                yield sandbox.name, network, self._place(sandbox.id), _gateway(sandbox, network, is_ipv6)

    def _members(self, row: Row, source: str) -> Iterator[tuple[str, Sandbox]]:
        if source == OWN:
            there = [item for item in self._running if row.network in item.networks]
            others = [item for item in there if item.name != row.sandbox]
            # A port that it publishes it can ask for itself; its own address would not leave it.
            for item in (others or (there if row.port is not None else []))[:1]:
                yield row.network, item
            return
        assert source == OTHER
        seen = set()
        for item in self._running:
            for network in item.networks:
                if row.network not in item.networks and network not in seen and _gateway(item, network, ":" in row.address):
                    seen.add(network)
                    yield network, item

    def target(self, row: Row, cell: Cell, place: Place, gateway: str) -> Target:
        """What a cell is about, as it is asked for from a place. A port of 127.0.0.1 is asked for at the host's address from elsewhere."""
        there = self._place(row.sandbox)
        if row.port is None:
            return Target(row.address, row.address, _DISCARD, TCP, there, inner=(row.address, _DISCARD))
        port = row.port
        anywhere = port.host_ip in (ANY_ADDRESS, ANY_ADDRESS6) or (ip_address(port.host_ip).is_loopback and cell.source != HOST)
        address = gateway if anywhere else port.host_ip
        return Target(address, address, port.host_port, port.protocol, there, published=port, inner=(row.address, port.port))


def _gateway(sandbox: Sandbox, network: str, is_ipv6: bool) -> str:
    key, endpoints = "gateway6" if is_ipv6 else "gateway", sandbox.network_plan.get("endpoints") or []
    return next((str(item.get(key) or "") for item in endpoints if item["network"] == network and item.get("bridge")), "")
