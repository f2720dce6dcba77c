"""``trace``: one probe, followed hop by hop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from netbox.kernel.packet_programs import Wanted
from netbox.packet.tracing import values
from netbox.packet.tracing.assemble import hops
from netbox.packet.tracing.hooks import passages
from netbox.packet.tracing.identity import Identity
from netbox.packet.tracing.session import Session, netns_counters
from netbox.packet.tracing.spaces import Space, Spaces
from netbox.packet.tracing.values import DELIVERED, DROPPED, LOST, REPLY, REQUEST, Hop, Trace

if TYPE_CHECKING:
    from netbox.settings import Settings

_QUIET, _LIMIT = 0.03, 1.0  # seconds
COUNTERS = ("ListenOverflows", "ListenDrops")


class Sent(NamedTuple):
    """What the prober says: what came back, in words, and whether that counts as reached."""

    answer: str
    reachable: bool


def follow(
    settings: Settings, spaces: Spaces, way: Sequence[Space], identity: Identity, send: Callable[[], Sent], tracer: str | None = None
) -> tuple[tuple[Hop, ...], Sent, str, dict[str, int], tuple[str, ...]]:
    """Sends a probe and follows it. ``way`` are the namespaces from the source to the destination.

    Returns the hops, what the prober said, the tracer, the counters that grew, notes. Raises as ``Session``, and what ``send`` raises.
    """
    end = way[-1]
    before = netns_counters(end.fd, COUNTERS)
    with Session(settings, spaces, way, identity.words(), Wanted(matches=identity.matches()), tracer) as session:
        sent = send()
        session.settle(_QUIET, _LIMIT)
        rules = session.rules()
    after = netns_counters(end.fd, COUNTERS)
    grown = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
    found = hops(session.events, passages(session.records, rules, identity.role), identity.role, spaces.surroundings(way))
    return found, sent, session.tracer, grown, tuple(session.notes)


def outcome(hops: Sequence[Hop], reachable: bool) -> str:
    """How it ended: see ``Trace``."""
    if any(hop.kind == values.DROP and hop.direction == REQUEST for hop in hops):
        return DROPPED
    if any(hop.kind == values.DROP for hop in hops):
        return DROPPED
    arrived = any(hop.kind == values.SOCKET or hop.direction == REPLY for hop in hops)
    return DELIVERED if arrived or reachable else LOST


__all__ = ["Trace", "follow", "outcome"]
