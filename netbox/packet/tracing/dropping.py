"""``drops``: every packet that the kernel throws away for our sandboxes, as it happens.

What counts as a sandbox's: it was dropped in its network namespace, or on the host on one of its devices or its network's bridge, or with
one of its addresses in it. The rule behind a firewall's drop is the kernel's own word, from its trace of that very packet. At most some
hundred packets a second are traced, those that open a connection first: in a flood a rule may stay unnamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from netbox.errors import NotFound
from netbox.kernel.packet_event import DROP, PacketEvent
from netbox.kernel.packet_source import DROPS, TRACEFS
from netbox.packet.tracing.assemble import Surroundings, is_copy
from netbox.packet.tracing.decisions import WORDS, Decisions, dropper
from netbox.packet.tracing.headers import Header, parse
from netbox.packet.tracing.located import Locator
from netbox.packet.tracing.session import Session
from netbox.packet.tracing.spaces import Space, Spaces
from netbox.packet.tracing.values import Drop, RuleHit

if TYPE_CHECKING:
    from netbox.engine import Engine
    from netbox.engine.sandbox import Sandbox

_REFRESH = 1.0  # seconds between looks for new sandboxes
_SOON = 0.05  # the same while there are drops of which it is not known whose they are
_FORGOTTEN = 10.0
_OWN_DEVICES = ("nb", "netbox0")  # see ``netbox.names``
_FIREWALL = "NETFILTER_DROP"
_TRACEFS = "tracefs tells neither addresses nor rules, and of a packet that a sandbox drops itself only what came to it through the host"


class Scope:
    """Which drops are of interest: those of all sandboxes, of some, or of a network."""

    def __init__(self, spaces: Spaces, names: Sequence[str], network: str | None) -> None:
        self._spaces = spaces
        self.chosen = [sandbox for sandbox in spaces.sandboxes if self._wanted(sandbox, names, network)]
        self._devices: dict[tuple[int, str], str] = {}
        self._addresses: dict[str, str] = {}
        self._whole = set[int]()
        for sandbox in self.chosen:
            space = spaces.of_sandbox.get(sandbox.id)
            if space is not None and space is not spaces.host and network is None:
                self._whole.add(space.inode)
            for endpoint in sandbox.network_plan.get("endpoints") or []:
                if network is not None and endpoint["network"] != network:
                    continue
                self._devices[spaces.host.inode, endpoint["host_interface"]] = sandbox.name
                self._addresses[endpoint["address"]] = sandbox.name
                if not names:
                    self._devices.setdefault((spaces.host.inode, endpoint["bridge"]), "")
                if space is not None:
                    self._devices[space.inode, endpoint["interface"]] = sandbox.name

    @staticmethod
    def _wanted(sandbox: Sandbox, names: Sequence[str], network: str | None) -> bool:
        if names and sandbox.name not in names and not any(sandbox.id.startswith(name) for name in names):
            return False
        return network is None or network in sandbox.networks

    def sandbox(self, event: PacketEvent, header: Header | None) -> str | None:
        """The sandbox that a drop concerns: empty when only its network does, ``None`` when it is none of ours."""
        if event.netns in self._whole:
            return self._spaces.label(event.netns)
        found = self._devices.get((event.netns, event.device))
        if found:
            return found
        if header is not None:
            for address in (header.flow.destination, header.flow.source):
                if address in self._addresses and event.netns in (self._spaces.host.inode, 0):
                    return self._addresses[address]
        return found

    def spaces(self) -> list[Space]:
        """The namespaces to look into."""
        own = [self._spaces.of_sandbox[sandbox.id] for sandbox in self.chosen if sandbox.id in self._spaces.of_sandbox]
        return [self._spaces.host, *own]


def drops(
    engine: Engine,
    names: Sequence[str] = (),
    network: str | None = None,
    *,
    tracer: str | None = None,
    timeout: float | None = None,
    notes: list[str] | None = None,
    ready: Callable[[], object] | None = None,
) -> Generator[Drop, None, None]:
    """Yields drops as they happen, for ``timeout`` seconds or until the iterator is closed. ``names`` are sandboxes (name, id, prefix of
    an id), ``network`` is a network: only what concerns these. Nothing costs anything before the first ``next``.

    ``tracer`` asks for ``bpf`` or ``tracefs``; ``notes`` gets sentences about what does not work on this host, ``ready`` is called as
    soon as nothing is missed any more.

    Raises:
        NotFound: no such sandbox or network.
        Unsupported: this host lets nobody see drops, or not by that tracer.
        NoPermission: not root.
    """
    engine._context.require_root("see what the kernel drops")
    for name in names:
        engine.get(name)
    if network is not None and network not in {row.name for row in engine.networks.list()}:
        raise NotFound(f"no such network: {network}", "'netbox network ls' lists them all")
    return _drops(engine, names, network, tracer, timeout, [] if notes is None else notes, ready)


def _drops(
    engine: Engine,
    names: Sequence[str],
    network: str | None,
    tracer: str | None,
    timeout: float | None,
    notes: list[str],
    ready: Callable[[], object] | None,
) -> Generator[Drop, None, None]:
    offset = time.time() - time.monotonic()
    deadline = None if timeout is None else time.monotonic() + timeout
    with Spaces(engine) as spaces:
        scope = Scope(spaces, names, network)
        with Session(engine.settings, spaces, scope.spaces(), WORDS, None, tracer, DROPS) as session:
            session.require_events()
            notes += [*session.notes, *([_TRACEFS] if session.tracer == TRACEFS else [])]
            if ready is not None:
                ready()
            rules, newcomers, looked = Decisions(), _Newcomers(), time.monotonic()
            around = spaces.surroundings([])
            locator = Locator(around, spaces.host.inode)

            def shown(events: Iterable[PacketEvent]) -> Iterator[Drop]:
                for event in sorted(events, key=lambda event: event.time):
                    found = _drop(event, scope, around, session, rules, offset)
                    if found is not None:
                        yield found

            goes_on = True
            while goes_on:
                wait = _SOON if newcomers.events else _REFRESH
                session.collect(wait if deadline is None else min(wait, deadline - time.monotonic()))
                goes_on = deadline is None or time.monotonic() < deadline
                events, records = session.drain()
                rules.take(records)
                if session.tracer == TRACEFS:
                    events = [event._replace(netns=locator.netns(event)) for event in sorted(events, key=lambda event: event.time)]
                yield from shown(newcomers.without(events, spaces, around))
                if newcomers.events or time.monotonic() - looked > _REFRESH:
                    spaces.refresh(engine)
                    scope, looked = Scope(spaces, names, network), time.monotonic()
                    session.add(scope.spaces())
                    around = spaces.surroundings([])
                    locator = Locator(around, spaces.host.inode)
                    yield from shown(newcomers.known(spaces, around))


class _Newcomers:
    """Drops in namespaces and on devices that are not known: they may be those of a sandbox that has just started, which is among those
    that run a moment later. ``events`` are those that wait for it.
    """

    def __init__(self) -> None:
        self.events: list[PacketEvent] = []
        self._since: dict[object, float] = {}
        self._heard: dict[object, float] = {}

    def without(self, events: Iterable[PacketEvent], spaces: Spaces, around: Surroundings) -> list[PacketEvent]:
        """Keeps those that are to wait; the others. Who stays unknown for long is a stranger until nothing is heard of him."""
        now = time.monotonic()
        rest: list[PacketEvent] = []
        for stranger in [key for key, heard in self._heard.items() if now - heard > _FORGOTTEN]:
            del self._heard[stranger], self._since[stranger]
        for event in events:
            key = _unknown(event, spaces, around)
            waits = key is not None and now - self._since.setdefault(key, now) <= _REFRESH
            if key is not None:
                self._heard[key] = now
            (self.events if waits else rest).append(event)
        return rest

    def known(self, spaces: Spaces, around: Surroundings) -> list[PacketEvent]:
        """Hands out those that need not wait any longer, as their place is known now, or has not been for long."""
        waiting, self.events = self.events, []
        return self.without(waiting, spaces, around)


def _unknown(event: PacketEvent, spaces: Spaces, around: Surroundings) -> object:
    """Where it happened, if nobody knows whose that is."""
    if event.netns and event.netns not in around.labels:
        return event.netns
    ours = event.netns == spaces.host.inode and event.device.startswith(_OWN_DEVICES)
    return event.device if ours and (event.netns, event.device) not in around.devices else None


def _drop(event: PacketEvent, scope: Scope, around: Surroundings, session: Session, rules: Decisions, offset: float) -> Drop | None:
    if event.kind != DROP or is_copy(event):
        return None
    header = parse(event.packet)
    sandbox = scope.sandbox(event, header)
    if sandbox is None:
        return None
    rule: RuleHit | None = None
    if event.reason == _FIREWALL:
        rule = dropper([session.rule(record) for record in rules.of(event.packet) if record.netns == event.netns])
    if rule is not None:
        rule = around.owned(rule, header.flow if header else None, event.netns, event.device)
    return Drop(
        offset + event.time / 1e9,
        around.label(event.netns),
        event.device,
        header.flow if header else None,
        header.length if header else event.length,
        event.reason,
        event.function,
        rule,
        sandbox,
    )
