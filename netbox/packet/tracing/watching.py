"""``watch``: the live traffic of one sandbox, each packet followed like a probe.

Packets are reported where the sandbox's namespace or one of its addresses is involved, or a port that it publishes on the host. Behind the
translation of its source address a packet of its own is no longer told from the host's. Rules are traced for new connections (TCP: SYN and
SYN-ACK) and other protocols, at most some hundred packets a second.
"""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from netbox.errors import NotFound, Unsupported, WrongState
from netbox.kernel.packet_event import CONSUME, DROP, PacketEvent
from netbox.kernel.packet_programs import Match, Wanted
from netbox.kernel.packet_source import BPF, NONE, TRACEFS
from netbox.kernel.rule_trace import RuleRecord
from netbox.kernel.trace_tables import OWN_PREFIX
from netbox.packet.tracing import values
from netbox.packet.tracing.assemble import hops
from netbox.packet.tracing.headers import Header, parse
from netbox.packet.tracing.hooks import Passage, passages
from netbox.packet.tracing.session import Session
from netbox.packet.tracing.spaces import Space, Spaces
from netbox.packet.tracing.values import DELIVERED, DROPPED, REQUEST, Flow, Hop

if TYPE_CHECKING:
    from netbox.engine import Engine
    from netbox.engine.sandbox import Sandbox
    from netbox.spec import PortSpec

_LIMIT = "limit rate 200/second burst 400 packets"
_SETTLED = 50_000_000  # nanoseconds after which no more is heard of a packet
_PAUSE = 0.1  # seconds
_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_MAXIMUM_MATCHES = 100
SIGHTING = "sighting"  # a kind of event: the firewall has seen the packet


@dataclass(frozen=True)
class Followed:
    """A packet of live traffic. ``time`` is in seconds since the epoch, ``flow`` what it looked like first. ``outcome``: ``dropped``,
    ``delivered`` (a socket took it), or ``passed`` (nothing more was heard of it).
    """

    time: float
    flow: Flow
    hops: tuple[Hop, ...]
    outcome: str

    def to_json(self) -> dict[str, Any]:
        """The packet as plain JSON values."""
        return {"time": self.time, "flow": self.flow._asdict(), "outcome": self.outcome, "hops": [hop.to_json() for hop in self.hops]}


@dataclass
class _Group:
    """The events of one packet."""

    events: list[PacketEvent] = field(default_factory=list)
    contents: set[tuple[object, ...]] = field(default_factory=set)
    ended: bool = False


class Grouping:
    """Tells packets apart: by the address of their structure, copies by what is in them."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._by_skb: dict[int, _Group] = {}
        self._by_content: dict[tuple[object, ...], _Group] = {}

    def add(self, event: PacketEvent) -> None:
        """One more event; they come in the order of time."""
        header = parse(event.packet)
        if header is None:
            return
        content = content_of(header)
        group = self._by_skb.get(event.skb)
        if group is None or group.ended or event.time - group.events[-1].time > _SETTLED or not _same_packet(group, header):
            group = self._by_content.get(content)
        if group is None or event.time - group.events[-1].time > _SETTLED:
            group = _Group()
            self._groups.append(group)
        group.events.append(event)
        group.contents.add(content)
        group.ended = event.kind in (DROP, CONSUME)
        self._by_skb[event.skb] = self._by_content[content] = group

    @property
    def waits(self) -> bool:
        """Whether there are packets of which more may be heard."""
        return bool(self._groups)

    def settled(self, before: int) -> list[_Group]:
        """Takes out the packets of which nothing was heard since ``before`` (nanoseconds)."""
        done = [group for group in self._groups if group.events[-1].time < before]
        if done:
            gone = set(map(id, done))
            self._groups = [group for group in self._groups if id(group) not in gone]
            self._by_skb = {skb: group for skb, group in self._by_skb.items() if id(group) not in gone}
            self._by_content = {content: group for content, group in self._by_content.items() if id(group) not in gone}
        return done


def content_of(header: Header) -> tuple[object, ...]:
    """What tells a packet from others of its connection."""
    return (*header.flow, header.identity, header.length)


def _same_packet(group: _Group, header: Header) -> bool:
    """NAT changes addresses and ports, and nothing else of these."""
    first = parse(group.events[0].packet)
    return first is not None and (first.flow.protocol, first.flow.detail, first.identity, first.length) == (
        header.flow.protocol,
        header.flow.detail,
        header.identity,
        header.length,
    )


def watch(
    engine: Engine,
    name: str,
    *,
    accepts: Callable[[bytes], bool] | None = None,
    tracer: str | None = None,
    timeout: float | None = None,
    notes: list[str] | None = None,
    ready: Callable[[], object] | None = None,
) -> Generator[Followed, None, None]:
    """Yields the packets of a running sandbox as they pass, for ``timeout`` seconds or until the iterator is closed.

    ``accepts`` gets a packet as it was seen first, from its network header on, and chooses. ``tracer`` asks for ``bpf``, or for ``none``:
    what the firewall sees, of packets whose rules are traced. ``notes`` gets
    sentences about what does not work on this host, ``ready`` is called as soon as nothing is missed any more.

    Raises:
        NotFound: no such sandbox.
        WrongState: it does not run.
        Unsupported: this host does not tell about packets.
        NoPermission: not root.
    """
    engine._context.require_root("watch packets")
    sandbox = engine.get(name)
    if sandbox.state not in ("running", "paused"):
        raise WrongState(f"cannot watch {sandbox.name}: it is {sandbox.state}", f"start it first (netbox start {sandbox.name})")
    return _watch(engine, sandbox, accepts, tracer, timeout, [] if notes is None else notes, ready)


def _watch(
    engine: Engine,
    sandbox: Sandbox,
    accepts: Callable[[bytes], bool] | None,
    tracer: str | None,
    timeout: float | None,
    notes: list[str],
    ready: Callable[[], object] | None,
) -> Generator[Followed, None, None]:
    deadline = None if timeout is None else time.monotonic() + timeout
    with Spaces(engine) as spaces:
        own = spaces.of_sandbox.get(sandbox.id)
        if own is None:
            raise WrongState(f"{sandbox.name} has just ended")
        addresses = [address for address in sandbox.networks.values() if address]
        order = [own, spaces.host] if own is not spaces.host else [own]
        wanted = Wanted([own.inode], _matches(addresses, sandbox.ports))
        words = _words(addresses, sandbox.ports)
        with _listening(lambda kind: Session(engine.settings, spaces, order, words, wanted, kind), tracer) as session:
            notes += session.notes
            if ready is not None:
                ready()
            grouping = Grouping()
            records: list[RuleRecord] = []
            goes_on = True
            while goes_on:
                goes_on = _runs(sandbox) and (deadline is None or time.monotonic() <= deadline)
                session.collect(_PAUSE)  # after the end once more
                events, fresh = session.drain()
                records += fresh
                if session.tracer == NONE:
                    events = _sightings(fresh)
                for event in sorted(events, key=lambda event: event.time):
                    grouping.add(event)
                before = time.monotonic_ns() - _SETTLED if goes_on else sys.maxsize
                yield from _followed(grouping, before, records, session, spaces, order, accepts)
                if not grouping.waits:
                    records = fresh  # the first event of a packet may come after its first record


def _runs(sandbox: Sandbox) -> bool:
    try:
        return sandbox.refresh().state in ("running", "paused")
    except NotFound:  # it goes when it ends
        return False


def _listening(opened: Callable[[str], Session], tracer: str | None) -> Session:
    """By BPF or, where that is not allowed, through the firewall alone: it sees the headers as well, which tracefs does not tell."""
    session, notes = None, []
    if tracer in (None, BPF):
        try:
            session = opened(BPF)
        except Unsupported as error:
            if tracer == BPF:
                raise
            notes = [f"only what the firewall sees is shown, of packets that open a connection: {error.message}"]
    if session is None:
        if tracer == TRACEFS:
            raise Unsupported("live packets cannot be followed: tracefs tells too little about packets", "leave --tracer out")
        session = opened(NONE)
        if not session.filenos():
            session.close()
            raise Unsupported(f"live packets cannot be seen: {'; '.join([*notes, *session.notes])}")
    session.notes[:0] = notes
    return session


def _sightings(records: Sequence[RuleRecord]) -> list[PacketEvent]:
    """The packets that the firewall has shown, as events without a time of their own."""
    now = time.monotonic_ns()
    return [
        PacketEvent(now, SIGHTING, record.identity, record.netns, 0, record.in_device, 0, 0, record.packet)
        for record in records
        if record.packet and record.table.startswith(OWN_PREFIX)
    ]


def _in_order(passages: Sequence[Passage], order: Sequence[Space]) -> list[Space]:
    """The namespaces from source to destination: a packet leaves its source by the hook output."""
    start = next((passage.netns for passage in passages if passage.hook == "output"), None)
    return sorted(order, key=lambda space: space.inode != start) if start else list(reversed(order))


def _followed(
    grouping: Grouping,
    before: int,
    records: list[RuleRecord],
    session: Session,
    spaces: Spaces,
    order: Sequence[Space],
    accepts: Callable[[bytes], bool] | None,
) -> Iterator[Followed]:
    # The same addresses may be in use in namespaces that are none of ours.
    known = {space.inode for space in spaces.all()}
    settled = [group for group in grouping.settled(before) if any(event.netns in known for event in group.events)]
    groups = [group for group in settled if accepts is None or accepts(group.events[0].packet)]
    if not groups:
        return
    names = _Names(groups)
    found = passages(records, session.rules_of(records), names.role)
    around, by_rules = spaces.surroundings(order), session.tracer == NONE
    offset = time.time() - time.monotonic()
    for number, group in enumerate(groups):
        mine = [passage for passage in found if passage.role == str(number)]
        for passage in mine:
            passage.role = REQUEST
        if by_rules:
            around = around._replace(order=[space.inode for space in _in_order(mine, order)])
        way = hops([] if by_rules else group.events, mine, lambda header: REQUEST if header else None, around)
        first = parse(group.events[0].packet)
        if way and first is not None:
            yield Followed(offset + group.events[0].time / 1e9, first.flow, way, _outcome(way))


class _Names:
    """Which of the packets a header is of: exactly, or else by what NAT leaves alone."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        self._exact = {content: str(number) for number, group in enumerate(groups) for content in group.contents}
        self._lasting: dict[tuple[object, ...], str] = {}
        for content, name in self._exact.items():
            kept = _lasting(content)
            self._lasting[kept] = name if self._lasting.get(kept, name) == name else ""

    def role(self, header: Header | None) -> str | None:
        """The packet's number."""
        if header is None:
            return None
        content = content_of(header)
        return self._exact.get(content) or (self._lasting.get(_lasting(content)) if header.identity else None) or None


def _lasting(content: tuple[object, ...]) -> tuple[object, ...]:
    return content[0], content[5], content[6], content[7]


def _outcome(way: Sequence[Hop]) -> str:
    if any(hop.kind == values.DROP for hop in way):
        return DROPPED
    return DELIVERED if any(hop.kind == values.SOCKET for hop in way) else "passed"


def _matches(addresses: Sequence[str], ports: Sequence[PortSpec]) -> tuple[Match, ...]:
    """For BPF: packets with one of the addresses, or to and from a published port."""
    found = []
    for address in addresses:
        packed = ipaddress.ip_address(address).packed
        if len(packed) == 4:
            found += [Match(offset, 4, int.from_bytes(packed, "big"), 0, 0xF0, 0x40) for offset in (12, 16)]
        else:  # the last four bytes tell a subnet's addresses apart
            found += [Match(offset + 12, 4, int.from_bytes(packed[12:], "big"), 0, 0xF0, 0x60) for offset in (8, 24)]
    for port in ports:
        for number in range(port.host_port, port.host_port + port.length):
            if len(found) < _MAXIMUM_MATCHES and port.protocol in _NUMBERS:
                found += [Match(offset, 2, number, 9, 0xFF, _NUMBERS[port.protocol]) for offset in (20, 22)]
    return tuple(found)


def _words(addresses: Sequence[str], ports: Sequence[PortSpec]) -> tuple[str, ...]:
    """For nft: new connections and other protocols with one of the addresses, or to a published port."""
    kinds = ("tcp flags & syn == syn", "meta l4proto != tcp")
    found = []
    for address in addresses:
        family = "ip" if ipaddress.ip_address(address).version == 4 else "ip6"
        found += [f"{family} {field} {address} {kind} {_LIMIT}" for field in ("saddr", "daddr") for kind in kinds]
    for port in ports:
        last = port.host_port + port.length - 1
        numbers = str(port.host_port) if last == port.host_port else f"{port.host_port}-{last}"
        kind = "tcp flags & syn == syn " if port.protocol == "tcp" else ""
        found.append(f"fib daddr type local meta l4proto {port.protocol} th dport {numbers} {kind}{_LIMIT}")
    return tuple(found)
