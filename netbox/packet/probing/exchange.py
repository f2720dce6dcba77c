"""Sends packets and waits for their answers, many at once from many namespaces. A part of the worker process."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import random
import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from netbox.kernel import socket_table
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.socket_table import SocketRow
from netbox.packet.probing import classify, packets, values
from netbox.packet.probing.classify import Observed, Question
from netbox.packet.probing.packets import Key, Outline, Reply
from netbox.packet.probing.station import Station, Watch
from netbox.packet.probing.values import ProbeAnswer, ProbeRequest

_PROTOCOLS = {values.TCP: socket.IPPROTO_TCP, values.UDP: socket.IPPROTO_UDP, values.SCTP: 132, values.DNS: socket.IPPROTO_UDP}
_BURST = 32
_GLANCE = 0.05  # seconds between two looks at what arrives
_DEFAULT_TTL = 64
HEADERS = {values.ICMP: 8, values.UDP: 8, values.TCP: 24, values.SCTP: 32}  # bytes in front of the payload
IDENTIFICATIONS = 1 << 14


@dataclass(frozen=True)
class Order:
    """One packet to send, ``start`` seconds after the first. ``inner`` is (address, port) where the target listens behind NAT."""

    station: Station
    request: ProbeRequest
    address: str
    sequence: int = 0
    start: float = 0.0
    watch: Watch | None = None
    inner: tuple[str, int | None] | None = None
    reached_by: str = ""
    dont_fragment: bool | None = None


class _Way(NamedTuple):
    """How a packet leaves: the address that it is from, the link and its MTU."""

    source: str
    link: int
    mtu: int


@dataclass
class _Flight:
    """A packet under way."""

    order: Order
    outline: Outline
    way: _Way | None = None
    sent: float = 0.0
    deadline: float = 0.0
    data: bytes = b""
    answer: ProbeAnswer | None = field(default=None)

    @property
    def question(self) -> Question:
        request = self.order.request
        return Question(
            self.order.sequence, request.protocol, self.order.address, request.port, self.outline.id or None, self.order.reached_by
        )


class Exchange:
    """Sends and waits. ``control`` is the channel to the process that asked: when that ends, so does this one. ``ip_id`` is the first
    packet's.
    """

    def __init__(self, control: socket.socket | None = None, ip_id: int | None = None) -> None:
        self._control = control
        self.first_id = ip_id - 1 if ip_id else random.randrange(1, 65535 - IDENTIFICATIONS)
        self._ids = 0
        self._serial = random.randrange(1 << 14)

    def watch(self, netns_fd: int) -> Watch:
        """A look at what arrives in a namespace."""
        return Watch(netns_fd, self.first_id, IDENTIFICATIONS)

    def pause(self, seconds: float) -> None:
        """Lets time pass, as long as somebody waits for the answers."""
        until = time.monotonic() + seconds
        poll, _ = self._poll([])
        while time.monotonic() < until:
            self._wait(poll, until)

    def ready(self, sock: socket.socket, event: int, until: float) -> bool:
        """Waits for an event (poll(2)) of a socket until a moment of ``time.monotonic``; false when it did not come."""
        poll, _ = self._poll([])
        poll.register(sock, event)
        while not (come := sock.fileno() in self._wait(poll, until)) and time.monotonic() < until:
            pass
        return come

    def run(self, orders: Iterable[Order]) -> list[ProbeAnswer]:
        """Sends every packet, waits for the answers, and returns them in the order of the orders."""
        orders = list(orders)
        flights = [self._prepare(order) for order in orders]
        waiting: dict[tuple[int, Key], list[_Flight]] = {}
        poll, stations = self._poll(flights)
        watches = {id(order.watch): order.watch for order in orders if order.watch is not None}.values()
        start = time.monotonic()
        glance = start + _GLANCE
        queue = deque(sorted((flight for flight in flights if flight.answer is None), key=lambda item: item.order.start))
        sent: deque[_Flight] = deque()
        while queue or sent:
            for _ in range(_BURST):
                if not queue or queue[0].order.start > time.monotonic() - start:
                    break
                flight = queue.popleft()
                waiting.setdefault((id(flight.order.station), flight.outline.key), []).append(flight)
                sent.append(flight)
                self._send(flight)
            until = queue[0].order.start + start if queue else sent[0].deadline
            self._wait(poll, min(until, glance) if watches else until)
            looked = time.monotonic()  # what came in time is read, also when this process was stopped meanwhile
            if looked >= glance:
                glance = looked + _GLANCE
                for watch in watches:
                    watch.read()
            for station in stations:
                self._read(station, waiting)
            while sent and (sent[0].answer is not None or sent[0].deadline <= looked):
                sent.popleft()
        tables = _Tables()
        return [self._settled(flight, tables) for flight in flights]

    def _poll(self, flights: list[_Flight]) -> tuple[select.poll, list[Station]]:
        stations = list({id(flight.order.station): flight.order.station for flight in flights}.values())
        poll = select.poll()
        for station in stations:
            for sock in station.sockets():
                poll.register(sock, select.POLLIN)
        if self._control is not None:
            poll.register(self._control, select.POLLHUP | select.POLLRDHUP)
        return poll, stations

    def _wait(self, poll: select.poll, until: float) -> list[int]:
        """The descriptors that are ready."""
        pause = max(0.0, until - time.monotonic())
        ready = poll.poll(pause * 1000 + (0.5 if pause else 0))
        for fd, event in ready:
            if self._control is not None and fd == self._control.fileno() and event & (select.POLLHUP | select.POLLRDHUP):
                os._exit(1)  # whoever asked is gone
        return [fd for fd, _ in ready]

    # -- one packet ------------------------------------------------------------------------------------------------------------------------

    def _prepare(self, order: Order) -> _Flight:
        """Chooses ports and numbers. A packet that cannot be sent is answered at once."""
        request = order.request
        flight = _Flight(order, Outline(request.protocol, request.source or "", order.address, 0, request.port or 0, 0, 0))
        try:
            way = self._way(order)
        except OSError as error:
            flight.answer = classify.not_sent(flight.question, error)
            return flight
        version = 6 if ":" in order.address else 4
        self._listen(order.station, request.protocol, version)
        protocol = _PROTOCOLS.get(request.protocol)
        self._ids = (self._ids + 1) % IDENTIFICATIONS
        self._serial = (self._serial + 1) & 0xFFFF
        serial = random.getrandbits(32) if request.protocol in (values.TCP, values.SCTP) else self._serial
        neighbour_probe = request.protocol in (values.ARP, values.ND)
        flight.way = way
        flight.outline = Outline(
            request.protocol,
            request.source or way.source,
            order.address,
            _own_port(order, protocol),
            request.port or 0,
            serial or 1,
            self.first_id + self._ids,
            request.ttl or _DEFAULT_TTL,
            request.size or 0,
            self._dont_fragment(order, way.mtu, version),
            request.name or "",
            request.record,
            order.station.link(way.link).mac if neighbour_probe else "",
        )
        return flight

    @staticmethod
    def _dont_fragment(order: Order, mtu: int, version: int) -> bool:
        """What fits goes out as most programs send it, with DF; what does not is cut here."""
        if order.dont_fragment is not None:
            return order.dont_fragment
        header = HEADERS.get(order.request.protocol, 0) + (20 if version == 4 else 40)
        return header + (order.request.size or 0) <= mtu

    @staticmethod
    def _way(order: Order) -> _Way:
        own = order.request.source
        try:
            route = order.station.route(order.address, own)
        except OSError:
            if not own:
                raise
            route = order.station.route(order.address)  # a foreign source: the kernel knows no route from it
        source = route.source or ("127.0.0.1" if ":" not in order.address else "::1")
        return _Way(source, route.link, order.station.link(route.link).mtu)

    @staticmethod
    def _listen(station: Station, protocol: str, version: int) -> None:
        if protocol == values.ARP:
            station.listen(0, 0)
            return
        station.listen(version, socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6)
        if protocol in _PROTOCOLS:
            station.listen(version, _PROTOCOLS[protocol])

    def _send(self, flight: _Flight) -> None:
        station, outline, way = flight.order.station, flight.outline, flight.way
        assert way is not None  # only what has a way is queued
        parts = packets.build(outline, way.mtu)
        flight.data = parts[0]
        flight.deadline = time.monotonic() + flight.order.request.timeout
        try:
            flight.sent = time.time()
            for part in parts:
                if outline.protocol == values.ARP:
                    station.send_frame(part, way.link)
                elif outline.protocol == values.ND:
                    station.send(part, packets.solicited_node(outline.address), way.link)
                else:
                    station.send(part, outline.address, way.link if ipaddress.ip_address(outline.address).is_link_local else 0)
        except OSError as error:
            flight.answer = classify.not_sent(flight.question, error)

    def _read(self, station: Station, waiting: dict[tuple[int, Key], list[_Flight]]) -> None:
        for packet in station.received():
            reply = packets.read_arp(packet.data) if packet.version == 0 else packets.read(packet.data, packet.version)
            if reply is None:
                continue
            for flight in waiting.get((id(station), reply.key), []):
                if flight.answer is None and _belongs(reply, flight):
                    told = packets.with_dns(reply, flight.outline.serial) if flight.outline.protocol == values.DNS else reply
                    flight.answer = classify.answered(flight.question, told, max(0.0, packet.time - flight.sent))
                    break

    # -- silence ---------------------------------------------------------------------------------------------------------------------------

    def _settled(self, flight: _Flight, tables: _Tables) -> ProbeAnswer:
        if flight.answer is None:
            return classify.silent(flight.question, self._observed(flight, tables))
        watch = flight.order.watch
        if watch is None or not flight.sent or flight.order.request.protocol in (values.ARP, values.ND):
            return flight.answer
        return dataclasses.replace(flight.answer, arrived=watch.has_seen(flight.data))

    def _observed(self, flight: _Flight, tables: _Tables) -> Observed:
        order, request = flight.order, flight.order.request
        if request.protocol in (values.ARP, values.ND):
            return Observed()
        missing = order.station.missing_neighbour(order.address)
        if order.watch is None:
            return Observed(neighbour=missing)
        arrived = order.watch.has_seen(flight.data)
        listening = tables.listening(order.watch.netns, request.protocol, order.inner or (order.address, request.port))
        return Observed(arrived, listening, None if arrived else missing)


def _own_port(order: Order, protocol: int | None) -> int:
    """The source port, or the identifier of an ICMP echo."""
    request = order.request
    if protocol:
        return order.station.own_port(protocol, order.address, request.port or 0, request.own_port)
    return request.own_port or order.station.identifier


def _belongs(reply: Reply, flight: _Flight) -> bool:
    """Whether a TCP segment confirms the very SYN: one of an older connection with the same ports does not. A RST confirms its data too."""
    outline = flight.outline
    return reply.acknowledges in (None, outline.serial, (outline.serial + outline.payload) & 0xFFFFFFFF)


class _Tables:
    """The sockets of namespaces at one moment, each table read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], list[SocketRow]] = {}

    def listening(self, netns_fd: int, protocol: str, inner: tuple[str, int | None]) -> bool | None:
        """Whether a socket is there for what comes to an address and port; ``None`` where the protocol has no tables."""
        address, port = inner
        kind = values.UDP if protocol == values.DNS else protocol
        if port is None or kind not in (values.TCP, values.UDP):
            return None
        if (netns_fd, kind) not in self._known:
            with inside_netns(netns_fd):
                self._known[netns_fd, kind] = socket_table.read(kind)
        return bool(socket_table.holders(self._known[netns_fd, kind], kind, port, address))
