"""``trace``: one probe, followed hop by hop."""

from __future__ import annotations

import dataclasses
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import UsageError
from netbox.kernel.namespaces import socket_in
from netbox.kernel.packet_programs import Wanted
from netbox.kernel.packet_source import NONE, TRACEFS
from netbox.packet import places
from netbox.packet.probing import api
from netbox.packet.probing.text import answer_text
from netbox.packet.probing.values import ARP, DNS, ICMP, ND, SCTP, TCP, UDP, ProbeReport, ProbeRequest
from netbox.packet.tracing import values
from netbox.packet.tracing.assemble import hops
from netbox.packet.tracing.hooks import passages
from netbox.packet.tracing.identity import Identity
from netbox.packet.tracing.located import followed
from netbox.packet.tracing.session import Session, netns_counters
from netbox.packet.tracing.spaces import Space, Spaces
from netbox.packet.tracing.values import DELIVERED, DROPPED, LOST, REPLY, REQUEST, Hop, Trace

if TYPE_CHECKING:
    from netbox.engine import Engine
    from netbox.packet.places import Place, Target
    from netbox.packet.probing.run import Worker
    from netbox.settings import Settings

_QUIET, _LIMIT = 0.03, 1.0  # seconds
PATIENCE = 0.3  # seconds
COUNTERS = ("ListenOverflows", "ListenDrops")
_FIRST_PORT, _LAST_PORT = 32768, 60999
_FIRST_ID, _LAST_ID = 1 << 10, 1 << 15
_KINDS = {
    TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    SCTP: (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


class Observed(NamedTuple):
    """What was seen: the hops, the tracer, the counters that grew at the far end, and notes."""

    hops: tuple[Hop, ...]
    tracer: str
    counters: Mapping[str, int]
    notes: tuple[str, ...]


def trace(
    engine: Engine,
    source: Place | str,
    target: Target | str,
    request: ProbeRequest | None = None,
    *,
    ipv6: bool = False,
    tracer: str | None = None,
    worker: Worker | None = None,
    patience: float = PATIENCE,
) -> Trace:
    """Sends one probe and follows it and its answer through every namespace of this host: ``trace(engine, "web", "db:5432", …)``.

    ``source``, ``target`` and ``ipv6`` are as for ``probe``. ``request`` is sent once, whatever its count. ``tracer`` asks for ``bpf``,
    ``tracefs`` or ``none``; by default the best that this host allows. ``worker`` is a process for the probe that was started ahead. A
    packet of which neither a drop nor an answer was heard is waited for ``patience`` seconds longer than the probe waits.

    Raises:
        UsageError: the request makes no sense, or is none of IP.
        NotFound, WrongState: as ``places.source`` and ``places.target``.
        Unsupported: the tracer that was asked for cannot be had.
        NoPermission: not root.
    """
    request = request or (api.request_for(target, {}) if isinstance(target, str) else ProbeRequest(ICMP))
    if request.protocol in (ARP, ND) or request.traceroute or request.pmtu or request.over_tcp:
        raise UsageError(f"a trace follows one IP packet, and {_named(request)} is none", "use 'netbox probe' for it")
    with ExitStack() as stack:
        start = stack.enter_context(places.source(engine, source)) if isinstance(source, str) else source
        end = api.target_for(engine, stack, start, target, request, ipv6) if isinstance(target, str) else target
        return _trace(engine, start, end, api.fitted(request, end), _Means(tracer, worker, patience))


class _Means(NamedTuple):
    tracer: str | None
    worker: Worker | None
    patience: float


def _trace(engine: Engine, source: Place, target: Target, request: ProbeRequest, means: _Means) -> Trace:
    version, protocol = 6 if target.is_ipv6 else 4, UDP if request.protocol == DNS else request.protocol
    reports: list[ProbeReport] = []
    with Spaces(engine) as spaces:
        way = [_space(spaces, source), spaces.host]
        if target.place is not None:
            way.append(_space(spaces, target.place))
        identity = Identity(
            version,
            protocol,
            random.randrange(_FIRST_ID, _LAST_ID),
            own_port(way[0].fd, version, protocol),
            tuple(port for port in (request.port, target.port, target.inner[1] if target.inner else None) if port),
        )
        request = dataclasses.replace(request, count=1, ip_id=identity.number, own_port=identity.port)
        seen = follow(
            engine.settings,
            spaces,
            way,
            identity,
            lambda: reports.append(api.probe_between(engine, source, target, request, means.worker)),
            means.tracer,
            means.patience,
        )
    report = reports[0]
    answer = answer_text(report, report.best) if report.best else "nothing"
    found = seen.hops or _unsent(source, report)
    return Trace(
        source.title,
        target.title,
        found,
        outcome(found, report.reachable),
        answer,
        report.reachable,
        seen.tracer,
        seen.counters,
        (*seen.notes, *report.notes),
    )


def own_port(netns: int, version: int, protocol: str) -> int:
    """A source port that no socket of a namespace has, so that the probe gets it; for ICMP any identifier."""
    if protocol in _KINDS:
        try:
            with socket_in(netns, socket.AF_INET6 if version == 6 else socket.AF_INET, *_KINDS[protocol]) as sock:
                if version == 6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("", 0))
                return int(sock.getsockname()[1])
        except OSError:
            pass  # a kernel without SCTP has nobody to take a port either
    return random.randrange(_FIRST_PORT, _LAST_PORT)


def _named(request: ProbeRequest) -> str:
    return "a traceroute" if request.traceroute else "a search for the path MTU" if request.pmtu else request.title


def _space(spaces: Spaces, place: Place) -> Space:
    return spaces.add(place.title, place.open())


def _unsent(source: Place, report: ProbeReport) -> tuple[Hop, ...]:
    """The one hop of a packet that the source's kernel refused to send."""
    best = report.best
    return () if best is None else (Hop(0, source.title, values.DROP, f"not sent: {best.answer}"),)


def follow(
    settings: Settings,
    spaces: Spaces,
    way: Sequence[Space],
    identity: Identity,
    send: Callable[[], object],
    tracer: str | None = None,
    patience: float = PATIENCE,
    waits: Callable[[], bool] = lambda: False,
) -> Observed:
    """Calls ``send``, which sends one packet of that identity, and follows it. ``way`` are the namespaces from source to destination;
    ``patience`` is as for ``trace``, and goes on as long as ``waits`` says so.

    Raises as ``Session``, and what ``send`` raises.
    """
    end, around = way[-1], spaces.surroundings(way)
    before = netns_counters(end.fd, COUNTERS)
    with Session(settings, spaces, way, identity.words(), Wanted(matches=identity.matches()), tracer) as session:
        send()
        deadline = time.monotonic() + patience
        while True:
            session.settle(_QUIET, _LIMIT)
            met = passages(session.records, session.rules_of(session.records), identity.role)
            events = followed(session.events, met, around, spaces.host.inode) if session.tracer == TRACEFS else session.events
            found = hops(events, met, identity.role, around)
            # A packet that was sent has left a trace by now; on a busy host the rest of its way, or why it ended, may take a while.
            unexplained = session.tracer != NONE and any(hop.kind == values.DROP and not hop.reason for hop in found)
            if not found or (outcome(found, False) != LOST and not unexplained) or (time.monotonic() > deadline and not waits()):
                break
    after = netns_counters(end.fd, COUNTERS)
    grown = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
    return Observed(found, session.tracer, grown, tuple(session.notes))


def outcome(hops: Sequence[Hop], reachable: bool) -> str:
    """How it ended: see ``Trace``."""
    if any(hop.kind == values.DROP for hop in hops):
        return DROPPED
    arrived = any(hop.kind == values.SOCKET and hop.direction == REQUEST for hop in hops)
    return DELIVERED if arrived or reachable or any(hop.direction == REPLY for hop in hops) else LOST
