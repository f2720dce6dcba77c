"""One packet, followed: where it went and where it died."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from netbox.packet.diagnosis import packets
from netbox.packet.diagnosis.gather import Opened
from netbox.packet.diagnosis.values import ANSWER, HOST, LAN, TCP, Facts, Observation
from netbox.packet.tracing import values
from netbox.packet.tracing.values import Hop, RuleHit

if TYPE_CHECKING:
    from netbox.engine import Engine


def follow(engine: Engine, facts: Facts, opened: Opened, waits: Callable[[], bool] = lambda: False) -> Observation:
    """Sends one packet like those of the request and says what became of it. While ``waits`` says so, an end is waited for that has not
    come yet.

    Raises:
        NetboxError: packets cannot be followed here.
    """
    from netbox.packet.tracing.follow import follow, outcome, own_port
    from netbox.packet.tracing.identity import Identity
    from netbox.packet.tracing.spaces import Spaces

    source = opened.source if facts.source is not facts.host else -1
    with Spaces(engine) as spaces:
        start = spaces.host if source < 0 else spaces.add(LAN if facts.source_kind == LAN else facts.source.label, os.dup(source))
        way = [start, spaces.host]
        if opened.target >= 0:
            way.append(spaces.add(facts.target.label if facts.target else HOST, os.dup(opened.target)))
        way = list(dict.fromkeys(way))
        version, ports = 6 if ":" in facts.address else 4, (facts.port, facts.destination[1])
        crafted = _crafted(facts, own_port(start.fd, version, facts.request.protocol))
        identity = Identity(version, facts.request.protocol, crafted.number, crafted.source_port, ports)

        def send() -> None:
            try:
                packets.send(source, crafted)
            except OSError as error:
                if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENETDOWN):
                    raise

        seen = follow(engine.settings, spaces, way, identity, send, waits=waits)
    # A namespace that several sandboxes share has the name of one of them: here it is that of whom was asked about.
    names = {start.label: facts.source.label} if facts.source is not facts.host else {}
    if opened.target >= 0 and facts.target is not None and facts.target not in (facts.host, facts.source):
        names[way[-1].label] = facts.target.label
    hops = tuple(replace(hop, netns=names.get(hop.netns, hop.netns)) for hop in seen.hops)
    document = {
        "outcome": outcome(hops, False),
        "tracer": seen.tracer,
        "counters": dict(seen.counters),
        "notes": list(seen.notes),
        "hops": [hop.to_json() for hop in hops],
    }
    counted = tuple(f"{name} grew by {count}" for name, count in seen.counters.items())
    return replace(observed(hops, document, facts), notes=tuple(seen.notes), counters=counted)


def _crafted(facts: Facts, port: int) -> packets.Crafted:
    number = random.randrange(1, 1 << 16)
    return packets.Crafted(facts.request.protocol, facts.source_address, facts.address, port, facts.port, number, facts.time_to_live[0])


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
