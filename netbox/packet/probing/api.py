"""``netbox.packet.probe`` and ``probe_many``: probes by name, for programs.

>>> report = probe(engine, "web", "db:5432")
>>> report.reachable, report.sentence
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from netbox.errors import UsageError
from netbox.packet import finding, places
from netbox.packet.places import HOST, SANDBOX, Place, Target
from netbox.packet.probing import values
from netbox.packet.probing.run import Worker, run_probes
from netbox.packet.probing.values import ProbeAnswer, ProbeReport, ProbeRequest

if TYPE_CHECKING:
    from typing import Unpack

    from netbox.engine import Engine


_FIELDS = {"source_address": "source"}
_CARRIERS = frozenset({values.TCP, values.UDP})  # what DNS goes by


class ProbeOptions(TypedDict, total=False):
    """What ``probe`` takes by name: at most one of ``tcp``, ``udp``, ``sctp`` (a port), ``icmp``, ``arp``, ``nd`` (true), ``dns`` (a
    name, with ``/TYPE`` for another record than A; an address for its name), but ``dns`` may have ``tcp`` or ``udp`` beside it;
    ``source_address`` to send from; the others as in ``ProbeRequest``. Without a protocol it is that of the target's port, TCP by default,
    or ICMP without a port.
    """

    tcp: int | None
    udp: int | None
    sctp: int | None
    dns: str | None
    icmp: bool
    arp: bool
    nd: bool
    size: int | None
    ttl: int | None
    count: int
    source_address: str | None
    timeout: float
    interval: float
    traceroute: bool
    pmtu: bool


class Probe(NamedTuple):
    """One of many: from where to where, and the question; ``None`` chooses by the target, as ``probe`` does."""

    source: str
    target: str
    request: ProbeRequest | None = None


def make_request(written_port: int | None, written_protocol: str | None, options: ProbeOptions) -> ProbeRequest:
    """The request that the options and the text of a target mean. Raises UsageError."""
    given = {key: options.get(key) for key in values.PROTOCOLS if options.get(key) not in (None, False)}
    asked = given.pop(values.DNS, None)
    if len(given) > 1 or (asked is not None and given.keys() - _CARRIERS):
        names = [*given, *([values.DNS] if asked is not None else [])]
        raise UsageError(f"{' and '.join(names)} exclude each other", "ask one after the other")
    protocol, value = next(iter(given.items()), (None, None))
    if written_protocol is not None and protocol not in (None, written_protocol):
        raise UsageError(f"the target says {written_protocol}, the option {protocol}", "write one of the two")
    port = written_port
    if protocol in values.WITH_PORT:
        port = int(str(value))
        if written_port not in (None, port):
            raise UsageError(f"the target says port {written_port}, the option {value}", "write one of the two")
    rest = {_FIELDS.get(key, key): value for key, value in options.items() if key not in values.PROTOCOLS and value is not None}
    protocol = protocol or written_protocol
    if asked is not None:
        if protocol not in (None, *_CARRIERS):
            raise UsageError(f"DNS does not go by {protocol}", "ask by UDP, or by TCP: --tcp 53")
        name, record = dns_question(str(asked))
        rest["over_tcp"] = protocol == values.TCP
        return ProbeRequest(values.DNS, port or values.DNS_PORT, name, record, **rest)  # type: ignore[arg-type]
    protocol = protocol or (values.ICMP if port is None else values.TCP)
    return ProbeRequest(protocol, port if protocol in values.WITH_PORT else None, **rest)  # type: ignore[arg-type]


def dns_question(text: str) -> tuple[str, str]:
    """The name and the type of record in ``db``, ``example.org/MX``, ``10.0.0.2`` (whose name is asked for). Raises UsageError."""
    name, _, written = text.partition("/")
    try:
        reverse = ipaddress.ip_address(name).reverse_pointer
    except ValueError:
        reverse = ""
    record = written.upper() or ("PTR" if reverse else "A")
    if record not in values.RECORDS:
        raise UsageError(f"--dns {text}: there is no type {written}", f"one of {', '.join(values.RECORDS)}")
    return (reverse if reverse and record == "PTR" else name), record


def request_for(target: str, options: ProbeOptions) -> ProbeRequest:
    """The request that ``probe`` would send to the target with these options. Raises UsageError."""
    return make_request(*_port_of(target), options)


def probe(
    engine: Engine,
    source: str,
    target: str | None = None,
    request: ProbeRequest | None = None,
    *,
    ipv6: bool = False,
    worker: Worker | None = None,
    **options: Unpack[ProbeOptions],
) -> ProbeReport:
    """Sends a probe: ``probe(engine, "web", "db:5432")``, ``probe(engine, "lan", "web:8080")``, ``probe(engine, "web", "db", udp=53)``.

    ``source`` is a sandbox, ``host`` or ``lan``; for ``target`` see ``netbox.packet.places``. Without a target a DNS probe asks the first
    name server of the source. ``ipv6`` prefers IPv6 addresses. ``worker`` is a process that was started ahead; it is used up.

    Raises:
        NotFound: no such sandbox or name.
        WrongState: a sandbox does not run, or has no address.
        UsageError: the options do not fit together.
        NoPermission, Unsupported, HostError: this process or machine cannot do it.
    """
    with ExitStack() as stack:
        if worker is not None:
            stack.callback(worker.close)
        own = request or make_request(*_port_of(target), options)
        if target is None and own.protocol != values.DNS:
            raise UsageError("a probe needs a target", "only --dns may do without")
        place, found = _placed(engine, stack, source, target, own, ipv6)
        return _run(engine, [(place, found, own)], worker)[0]


def probe_between(engine: Engine, place: Place, target: Target, request: ProbeRequest, worker: Worker | None = None) -> ProbeReport:
    """``probe`` between places that are known already.

    Raises:
        as ``probe``.
    """
    return _run(engine, [(place, target, request)], worker)[0]


def probe_many(engine: Engine, requests: Iterable[Probe], *, ipv6: bool = False) -> list[ProbeReport]:
    """Many probes at once: one process for all of them, one for each processor when there are many. The reports are in their order.

    Raises:
        as ``probe``, for the first that cannot be sent.
    """
    with ExitStack() as stack:
        sources: dict[str, Place] = {}
        targets: dict[tuple[str, str, str, int | None], Target] = {}
        items = []
        for item in requests:
            request = item.request or make_request(*_port_of(item.target), ProbeOptions())
            if item.source not in sources:
                sources[item.source] = stack.enter_context(places.source(engine, item.source))
            place = sources[item.source]
            # What a target means depends on the port only where that may be a published one.
            key = (item.source, item.target, *((request.protocol, request.port) if place.kind != SANDBOX else ("", None)))
            if key not in targets:
                targets[key] = target_for(engine, stack, place, item.target, request, ipv6)
            items.append((place, targets[key], fitted(request, targets[key])))
        return _run(engine, items, None)


def _port_of(target: str | None) -> tuple[int | None, str | None]:
    written = finding.parse(target) if target is not None else finding.Written("", None, None)
    return written.port, written.protocol


def _placed(engine: Engine, stack: ExitStack, source: str, target: str | None, request: ProbeRequest, ipv6: bool) -> tuple[Place, Target]:
    place = stack.enter_context(places.source(engine, source))
    found = target_for(engine, stack, place, target or _server(place), request, ipv6)
    return place, found


def _server(place: Place) -> str:
    address = finding.nameserver(place)
    return f"[{address}]" if ":" in address else address


def target_for(engine: Engine, stack: ExitStack, place: Place, text: str, request: ProbeRequest, ipv6: bool) -> Target:
    """The target of a request; what was made for it goes with the stack. Raises as ``places.target``."""
    wants = ipv6 or request.protocol == values.ND or (request.source is not None and ":" in request.source)
    protocol = request.protocol if request.protocol in (values.TCP, values.UDP, values.SCTP) else None
    port = request.port if protocol else None
    found = places.target(engine, place, text, protocol, port, ipv6=wants)
    if found.place is not None and found.place.neighbour is not place.neighbour:
        stack.callback(found.close)
    return found


def fitted(request: ProbeRequest, target: Target) -> ProbeRequest:
    """The request with the port that is really asked for: that of the host, where it is a published one."""
    if target.published is None or request.port == target.port:
        return request
    return dataclasses.replace(request, port=target.port)


def _run(engine: Engine, items: Sequence[tuple[Place, Target, ProbeRequest]], worker: Worker | None) -> list[ProbeReport]:
    ready = [(place, target, fitted(request, target)) for place, target, request in items]
    reports = run_probes(ready, worker)
    known = finding.names(engine, *(place for place, _, _ in items), *(target.place for _, target, _ in items if target.place))
    return [_named(dataclasses.replace(report, notes=_notes(report)), known) for report in reports]


def _notes(report: ProbeReport) -> tuple[str, ...]:
    notes = []
    target = report.target.place
    if target is not None and target.state == "paused":
        notes.append(f"{target.title} is paused: its kernel answers, its programs do not (netbox unpause {target.title})")
    if report.source.state == "paused" and report.source.title != (target.title if target else ""):
        notes.append(f"{report.source.title} is paused: probes leave its network all the same")
    return tuple(notes)


def _named(report: ProbeReport, known: dict[str, str]) -> ProbeReport:
    def name(address: str | None) -> str | None:
        if address is None:
            return None
        if address == report.target.address and report.target.place is not None:
            return report.target.place.title
        return known.get(address) or (HOST if report.source.kind == HOST and address.startswith("127.") else None)

    def with_name(answer: ProbeAnswer) -> ProbeAnswer:
        return dataclasses.replace(answer, from_name=name(answer.from_address))

    found = report.path_mtu
    if found is not None:
        found = found._replace(limited_by_name=name(found.limited_by), last_seen_name=name(found.last_seen))
    return dataclasses.replace(
        report,
        answers=tuple(map(with_name, report.answers)),
        hops=tuple(hop._replace(answers=tuple(map(with_name, hop.answers))) for hop in report.hops),
        path_mtu=found,
    )
