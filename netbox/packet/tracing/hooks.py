"""The firewall's records of a packet, put in order: which hooks it passed in a namespace, and what it met on each. Pure.

nf_tables and the legacy tables report separately and without a time. Our own chains at both ends of each hook say where one begins and
ends; inside, chains run in the order of their priorities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from netbox.kernel.rule_trace import RuleRecord
from netbox.kernel.trace_tables import FIRST, HOOKS, LAST, OWN_PREFIX
from netbox.packet.tracing.headers import Header, parse
from netbox.packet.tracing.rules import Rules
from netbox.packet.tracing.values import RuleHit

Role = Callable[[Header | None], str | None]
BRIDGE = "bridge "  # how hooks of the family bridge begin


@dataclass
class Passage:
    """A packet on a hook of a namespace: ``forward``, of other families than inet ``bridge forward`` or ``netdev ingress``.

    ``before`` and ``after`` are its headers at both ends; no ``after``: it did not get through."""

    netns: int
    role: str
    hook: str
    in_device: str = ""
    out_device: str = ""
    before: Header | None = None
    after: Header | None = None
    chains: list[tuple[int, list[RuleHit]]] = field(default_factory=list)

    @property
    def hits(self) -> list[RuleHit]:
        """What it met, in the order of the chains' priorities."""
        return [hit for _, hits in sorted(self.chains, key=lambda item: item[0]) for hit in hits]

    @property
    def header(self) -> Header | None:
        """What it looked like, as late as is known."""
        return self.after or self.before


@dataclass
class _Stream:
    """Where one packet's records of nf_tables are: the current passage, the one around it, and the chain's hits.

    A bridge shows a packet to the hooks of inet from inside its own.
    """

    passage: Passage | None = None
    outer: Passage | None = None
    hits: list[RuleHit] | None = None


def passages(records: Iterable[RuleRecord], rules: Mapping[int, Rules], role: Role) -> list[Passage]:
    """The passages of the packets that ``role`` knows, in each namespace in their order."""
    records = list(records)
    found = _of_nftables(records, rules, role)
    _add_legacy(records, rules, role, found)
    return found


def _of_nftables(records: Iterable[RuleRecord], rules: Mapping[int, Rules], role: Role) -> list[Passage]:
    found: list[Passage] = []
    streams: dict[tuple[int, int], _Stream] = {}
    for record in records:
        if record.backend != "nftables":
            continue
        stream = streams.setdefault((record.netns, record.identity), _Stream())
        if record.table.startswith(OWN_PREFIX):
            _mark(record, stream, role, found)
            continue
        if stream.passage is None or (record.kind == "rule" and not record.number):
            continue  # not ours, or the end of a chain's rules, which the policy's record repeats
        if record.packet or stream.hits is None:
            stream.hits = []
            stream.passage.chains.append((rules[record.netns].priority(record) or 0, stream.hits))
        stream.hits.append(rules[record.netns].hit(record))
    return found


def _mark(record: RuleRecord, stream: _Stream, role: Role, found: list[Passage]) -> None:
    """A record of our own chains."""
    header = parse(record.packet) if record.packet else None
    stream.hits = None
    if header is None:
        return
    if record.chain == FIRST:
        known, before = role(header), stream.passage
        inside = before is not None and before.after is None and before.hook.startswith(BRIDGE) and not record.hook.startswith(BRIDGE)
        stream.outer = before if inside else None
        stream.passage = Passage(record.netns, known, record.hook, record.in_device, record.out_device, header) if known else None
        if stream.passage:
            found.append(stream.passage)
    elif record.chain == LAST and stream.passage is not None and stream.passage.hook == record.hook:
        stream.passage.after = header
        if stream.outer is not None:
            stream.passage, stream.outer = stream.outer, None


def _add_legacy(records: Iterable[RuleRecord], rules: Mapping[int, Rules], role: Role, found: list[Passage]) -> None:
    """Puts the legacy tables' records where they belong: to the next passage of their hook that they can be of."""
    current: dict[tuple[int, str], tuple[Passage, str, list[RuleHit]]] = {}
    for record in records:
        if record.backend != "iptables" or record.hook not in HOOKS:
            continue
        known = role(parse(record.packet))
        if known is None:
            continue
        key = (record.netns, known)
        passage, table, hits = current.get(key, (None, "", []))
        if passage is None or passage.hook != record.hook:
            passage = _next_passage(record, known, found, passage)
        elif table == record.table:
            hits.append(rules[record.netns].hit(record))
            continue
        hits = [rules[record.netns].hit(record)]
        passage.chains.append((rules[record.netns].priority(record) or 0, hits))
        current[key] = (passage, record.table, hits)


def _next_passage(record: RuleRecord, role: str, found: list[Passage], after: Passage | None) -> Passage:
    start = next((place for place, item in enumerate(found) if item is after), -1)
    for passage in found[start + 1 :]:
        if (passage.netns, passage.role, passage.hook) == (record.netns, role, record.hook):
            return passage
    made = Passage(record.netns, role, record.hook, record.in_device, record.out_device, parse(record.packet))
    found.append(made)
    return made
