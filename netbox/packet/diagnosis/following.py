"""Packets, followed: where they went and where they died."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from netbox.errors import NetboxError
from netbox.packet.diagnosis import packets
from netbox.packet.diagnosis.gather import Opened
from netbox.packet.diagnosis.values import ANSWER, HOST, LAN, TCP, Facts, Observation
from netbox.packet.tracing import follow as tracing
from netbox.packet.tracing import values
from netbox.packet.tracing.identity import Identity
from netbox.packet.tracing.spaces import Spaces
from netbox.packet.tracing.values import Hop, RuleHit

if TYPE_CHECKING:
    from netbox.engine import Engine

_ATTEMPTS = 100


def follow_all(engine: Engine, cases: Sequence[tuple[Facts, Opened]], waits: Callable[[], bool]) -> list[Observation]:
    """Sends one packet like those of the request for each of the cases, all at once, and says what became of them; where they cannot be
    followed, the notes say why. While ``waits`` says so, an end is waited for that has not come yet.
    """
    numbers = random.sample(range(1, 1 << 16), len(cases))
    try:
        with Spaces(engine) as spaces:
            ports: set[int] = set()
            sendings = [_Sending(*case, number, ports, spaces) for case, number in zip(cases, numbers, strict=True)]
            parcels = [tracing.Parcel(item.way, item.identity, item.send) for item in sendings]
            seen = tracing.follow_all(engine.settings, spaces, parcels, waits=waits)
    except (NetboxError, OSError) as error:
        return [_not_followed(error)] * len(cases)
    return [item.observation(found) for item, found in zip(sendings, seen, strict=True)]


def _not_followed(error: NetboxError | OSError) -> Observation:
    return Observation(notes=(f"the packet could not be followed: {error}",))


class _Sending:
    """One packet on its way. ``taken`` are the source ports of others that are followed at the same time."""

    def __init__(self, facts: Facts, opened: Opened, number: int, taken: set[int], spaces: Spaces) -> None:
        self._facts = facts
        self._failure: OSError | None = None
        self._source = opened.source if facts.source is not facts.host else -1
        name = LAN if facts.source_kind == LAN else facts.source.label
        start = spaces.host if self._source < 0 else spaces.add(name, os.dup(self._source))
        way = [start, spaces.host]
        if opened.target >= 0:
            way.append(spaces.add(facts.target.label if facts.target else HOST, os.dup(opened.target)))
        self.way = list(dict.fromkeys(way))
        version, protocol, ports = 6 if ":" in facts.address else 4, facts.request.protocol, (facts.port, facts.destination[1])
        for _ in range(_ATTEMPTS):  # where the source has very few ports, two packets have the same
            port = tracing.own_port(start.fd, version, protocol)
            if port not in taken:
                break
        taken.add(port)
        self.identity = Identity(version, protocol, number, port, ports)
        self._packet = packets.Crafted(protocol, facts.source_address, facts.address, port, facts.port, number, facts.time_to_live[0])
        # A namespace that several sandboxes share has the name of one of them: here it is that of whom was asked about.
        self._names = {start.label: facts.source.label} if facts.source is not facts.host else {}
        if opened.target >= 0 and facts.target is not None and facts.target not in (facts.host, facts.source):
            self._names[self.way[-1].label] = facts.target.label

    def send(self) -> None:
        """Sends it. What the source's kernel says against it is seen otherwise."""
        try:
            packets.send(self._source, self._packet)
        except OSError as error:
            if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENETDOWN):
                self._failure = error

    def observation(self, seen: tracing.Observed) -> Observation:
        """What was seen of it."""
        if self._failure is not None:
            return _not_followed(self._failure)
        hops = tuple(replace(hop, netns=self._names.get(hop.netns, hop.netns)) for hop in seen.hops)
        document = {
            "outcome": tracing.outcome(hops, False),
            "tracer": seen.tracer,
            "counters": dict(seen.counters),
            "notes": list(seen.notes),
            "hops": [hop.to_json() for hop in hops],
        }
        counted = tuple(f"{name} grew by {count}" for name, count in seen.counters.items())
        return replace(observed(hops, document, self._facts), notes=tuple(seen.notes), counters=counted)


def observed(hops: Sequence[Hop], document: Mapping[str, Any], facts: Facts) -> Observation:
    """What the hops say. Pure."""
    dropped = next((hop for hop in hops if hop.kind == values.DROP and not _is_our_own_reset(hop, facts)), None)
    requests = [hop for hop in hops if hop.direction == values.REQUEST]
    # A datagram that waits in a socket's queue is no event yet: that it is in and was not dropped has to do.
    inside = facts.target is not None and any(hop.netns == facts.target.label and hop.kind == values.ROUTE for hop in requests)
    taken = any(hop.kind == values.SOCKET for hop in requests) or (inside and dropped is None)
    if dropped is None:
        return Observation(taken=taken, trace=document)
    rule = dropped.rule
    return Observation(
        dropped_at=_where(dropped),
        reason=dropped.reason,
        function=dropped.function,
        place=place(rule) if rule else "",
        owner="" if rule is None or rule.owner.kind == "foreign" else str(rule.owner),
        foreign=rule is not None and rule.owner.kind == "foreign",
        taken=taken,
        trace=document,
    )


def place(rule: RuleHit) -> str:
    """Where a rule stands, in the words of ``rules.place``."""
    return rule.place


def _is_our_own_reset(hop: Hop, facts: Facts) -> bool:
    """The source's kernel knows nothing of a handshake that was begun by hand: what comes back is dropped there, which means nothing."""
    return hop.direction == values.REPLY and hop.netns == facts.source.label and facts.request.protocol == TCP


def _where(hop: Hop) -> str:
    where = f"in {hop.netns}" if hop.netns not in ("host", "?") else "on the host"
    if hop.netns.startswith("netns:"):
        where = f"in a network namespace that is not netbox's ({hop.netns})"
    what = ANSWER if hop.direction == values.REPLY else ""
    return f"{what}{where}" + (f" at {hop.device}" if hop.device else "")
