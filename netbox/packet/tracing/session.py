"""Listening to the kernel while packets pass: its packet events and, in each namespace, the firewall's trace."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from netbox.errors import FirewallError, Unsupported, host_error
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.packet_event import PacketEvent
from netbox.kernel.packet_programs import Wanted
from netbox.kernel.packet_source import NONE, TRACEFS, WAY, PacketSource, open_source
from netbox.kernel.rule_trace import RuleRecord, RuleTracer, has_legacy_tables
from netbox.packet.tracing.footprint import FAMILIES, Footprint
from netbox.packet.tracing.rules import Rules
from netbox.packet.tracing.spaces import Space, Spaces, legacy_listing
from netbox.packet.tracing.values import RuleHit

if TYPE_CHECKING:
    from netbox.settings import Settings

CACHE = "cache/kernel"
_KEPT = 200_000
_LIST_AGAIN, _LIST_NEW = 1.0, 0.1  # seconds between two listings of the rules; for one that is not among them


class Session:
    """Open it before packets are sent, ``collect`` while and after they are, read ``events`` and ``records`` then.

    ``words`` are nft matches of the packets whose rules are to be known (none: rules are not traced), in all namespaces or by the inode
    of each; ``wanted`` is the same for packet events. ``tracer`` asks for ``bpf``, ``tracefs`` or ``none``, by default the best there is;
    the attribute is what it came to. ``notes`` says what does not work here.

    Raises:
        Unsupported: the tracer that was asked for cannot be had.
        NoPermission: not root.
    """

    def __init__(
        self,
        settings: Settings,
        spaces: Spaces,
        traced: Sequence[Space],
        words: Sequence[str] | Mapping[int, Sequence[str]],
        wanted: Wanted | None = None,
        tracer: str | None = None,
        tracepoints: Sequence[str] = WAY,
    ) -> None:
        self._spaces = spaces
        self._tracers: dict[int, RuleTracer] = {}
        self._rules: dict[int, Rules] = {}
        self._footprint = Footprint(settings, spaces.host.inode)
        self._source: PacketSource | None = None
        self.events: list[PacketEvent] = []
        self.records: list[RuleRecord] = []
        self.notes: list[str] = []
        self.lost = 0
        self._listed_at: dict[int, float] = {}
        self._words: Sequence[str] | Mapping[int, Sequence[str]] = ()
        self.tracer = NONE
        try:
            self._source, notes = open_source(
                tracer, tracepoints, wanted, f"{settings.root}/{CACHE}", lambda name: self._footprint.record("tracefs", name=name)
            )
            self.tracer = self._source.name if self._source else NONE
            self.notes += notes
            # What tells no headers cannot be matched with rules.
            self._words = words if self.tracer != TRACEFS or tracepoints is WAY else ()
            self.add(traced)
        except BaseException:
            self.close()
            raise

    def require_events(self) -> None:
        """Raises ``Unsupported`` when nothing tells about packets here."""
        if self._source is None:
            raise Unsupported(
                f"drops cannot be seen: {'; '.join(self.notes)}", "'netbox trace' names the rules that packets meet all the same"
            )

    def add(self, traced: Sequence[Space]) -> None:
        """Listens to the firewall of further namespaces, and no longer to that of those that are not among ``traced``."""
        for inode in self._tracers.keys() - {space.inode for space in traced}:
            self._tracers.pop(inode).close()
            self._footprint.forget(inode)
        for space in traced if self._words else ():
            if space.inode not in self._tracers:
                self._trace_rules(space)

    def _trace_rules(self, space: Space) -> None:
        try:
            words = self._words.get(space.inode, ()) if isinstance(self._words, Mapping) else self._words
            tracer = RuleTracer(space.fd, words, self._footprint.route_log(space.fd))
        except (Unsupported, FirewallError) as error:
            note = f"firewall rules are not named: {error.message}"
            if note not in self.notes:
                self.notes.append(note)
            return
        except OSError as error:
            raise host_error("trace the firewall of", space.label, error) from error
        self._tracers[space.inode] = tracer
        self.notes += [note for note in tracer.notes if note not in self.notes]

    def collect(self, timeout: float) -> bool:
        """Waits up to ``timeout`` seconds for something to happen, and takes it in; whether something did."""
        poll = select.poll()
        for descriptor in self.filenos():
            poll.register(descriptor, select.POLLIN)
        happened = bool(poll.poll(max(0.0, timeout) * 1000))
        self.take()
        return happened

    def take(self) -> None:
        """Takes in what there is."""
        if self._source is not None:
            found = self._source.read()
            room = max(0, _KEPT - len(self.events))
            self.lost += max(0, len(found) - room)
            self.events += found[:room]
        for tracer in self._tracers.values():
            self.records += tracer.read()
            self.notes += [note for note in tracer.notes if note not in self.notes]

    def drain(self) -> tuple[list[PacketEvent], list[RuleRecord]]:
        """Hands over what was collected."""
        events, records = self.events, self.records
        self.events, self.records = [], []
        return events, records

    def settle(self, quiet: float, limit: float) -> None:
        """Collects until nothing has happened for ``quiet`` seconds, ``limit`` seconds at most."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if not self.collect(quiet):
                return

    def filenos(self) -> list[int]:
        """What to poll."""
        found = [] if self._source is None else [self._source.fileno()]
        return found + [descriptor for tracer in self._tracers.values() for descriptor in tracer.filenos()]

    def rules_of(self, records: Sequence[RuleRecord]) -> dict[int, Rules]:
        """The rules that stand, of every namespace that a record is of: as they were a second ago at most, as places shift."""
        for record in records:
            known, age = self._rules.get(record.netns), time.monotonic() - self._listed_at.get(record.netns, 0)
            if known is None or age > (_LIST_AGAIN if known.knows(record) else _LIST_NEW):
                self._rules[record.netns] = self._listed(record.netns)
                self._listed_at[record.netns] = time.monotonic()
        return self._rules

    def rule(self, record: RuleRecord) -> RuleHit:
        """One record as a rule."""
        return self.rules_of([record])[record.netns].hit(record)

    def _listed(self, inode: int) -> Rules:
        space = next((space for space in self._spaces.all() if space.inode == inode), None)
        tracer = self._tracers.get(inode)
        if space is None or tracer is None:
            return Rules()  # it has ended meanwhile
        try:
            nftables = tracer.listing()
        except FirewallError as error:
            self.notes.append(f"the rules of {space.label} cannot be listed: {error.message}")
            nftables = ""
        legacy = {family: legacy_listing(space.fd, family) if has_legacy_tables_in(space.fd, family) else "" for family in FAMILIES}
        return Rules(nftables, legacy[4], legacy[6], self._spaces.sandbox_name)

    def close(self) -> None:
        """Stops listening and puts everything back."""
        if self._source is not None:
            self._source.close()
            self._source = None
        for tracer in self._tracers.values():
            tracer.close()
        self._tracers.clear()
        self._footprint.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def netns_counters(fd: int, names: Sequence[str]) -> dict[str, int]:
    """Counters of /proc/net/netstat of a namespace (proc_net(5)); those that this kernel lacks are not there."""
    with inside_netns(fd):
        descriptor = os.open("/proc/thread-self/net/netstat", os.O_RDONLY | os.O_CLOEXEC)
    with open(descriptor, encoding="ascii") as file:
        lines = file.read().splitlines()
    found: dict[str, int] = {}
    for titles, numbers in zip(lines[::2], lines[1::2], strict=False):
        found.update(zip(titles.split()[1:], map(int, numbers.split()[1:]), strict=False))
    return {name: found[name] for name in names if name in found}


def has_legacy_tables_in(fd: int, family: int) -> bool:
    """``has_legacy_tables`` for another namespace."""
    with inside_netns(fd):
        return has_legacy_tables(family)
