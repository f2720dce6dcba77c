"""Listening to the kernel while packets pass: its packet events and, in each namespace, the firewall's trace."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from netbox.errors import FirewallError, Unsupported, host_error
from netbox.kernel.packet_event import PacketEvent
from netbox.kernel.packet_programs import Wanted
from netbox.kernel.packet_source import NONE, WAY, PacketSource, open_source
from netbox.kernel.rule_trace import RuleRecord, RuleTracer
from netbox.packet.tracing.log_routing import LogRouting
from netbox.packet.tracing.rules import Rules
from netbox.packet.tracing.spaces import Space, Spaces, legacy_listing

if TYPE_CHECKING:
    from netbox.settings import Settings

CACHE = "cache/kernel"
_KEPT = 200_000


class Session:
    """Open it before packets are sent, ``collect`` while and after they are, read ``events`` and ``records`` then.

    ``words`` are nft matches of the packets whose rules are to be known (none: rules are not traced), ``wanted`` the same for packet events.
    ``tracer`` asks for ``bpf``, ``tracefs`` or ``none``, by default the best there is; the attribute is what it came to. ``notes`` says what does not work here.

    Raises:
        Unsupported: the tracer that was asked for cannot be had.
        NoPermission: not root.
    """

    def __init__(
        self,
        settings: Settings,
        spaces: Spaces,
        traced: Sequence[Space],
        words: Sequence[str],
        wanted: Wanted | None = None,
        tracer: str | None = None,
        tracepoints: Sequence[str] = WAY,
    ) -> None:
        self._spaces = spaces
        self._tracers: dict[int, RuleTracer] = {}
        self._rules: dict[int, Rules] = {}
        self._routing = LogRouting(settings, spaces.host.inode)
        self._source: PacketSource | None = None
        self.events: list[PacketEvent] = []
        self.records: list[RuleRecord] = []
        self.notes: list[str] = []
        self.lost = 0
        self.tracer = NONE
        try:
            self._source, notes = open_source(tracer, tracepoints, wanted, f"{settings.root}/{CACHE}")
            self.tracer = self._source.name if self._source else NONE
            self.notes += notes
            for space in traced if words else ():
                self._trace_rules(space, words)
        except BaseException:
            self.close()
            raise

    def _trace_rules(self, space: Space, words: Sequence[str]) -> None:
        if space.inode in self._tracers:
            return
        try:
            tracer = RuleTracer(space.fd, words, self._routing.add(space.fd))
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

    def rules(self) -> dict[int, Rules]:
        """The rules that stand, of every namespace in which one was met."""
        for inode in {record.netns for record in self.records} - self._rules.keys():
            self._rules[inode] = self._listed(inode)
        return self._rules

    def forget_rules(self) -> None:
        """The next ``rules`` looks again."""
        self._rules.clear()

    def _listed(self, inode: int) -> Rules:
        space = next(space for space in self._spaces.all() if space.inode == inode)
        of_this = [record for record in self.records if record.netns == inode]
        families = {record.family for record in of_this if record.backend == "iptables"}
        try:
            nftables = self._tracers[inode].listing() if any(record.backend == "nftables" for record in of_this) else ""
        except FirewallError as error:
            self.notes.append(f"the rules of {space.label} cannot be listed: {error.message}")
            nftables = ""
        return Rules(
            nftables,
            legacy_listing(space.fd, 4) if "ip" in families else "",
            legacy_listing(space.fd, 6) if "ip6" in families else "",
            self._spaces.sandbox_name,
        )

    def close(self) -> None:
        """Stops listening and puts everything back."""
        if self._source is not None:
            self._source.close()
            self._source = None
        for tracer in self._tracers.values():
            tracer.close()
        self._tracers.clear()
        self._routing.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def netns_counters(fd: int, names: Sequence[str]) -> dict[str, int]:
    """Counters of /proc/net/netstat of a namespace (proc_net(5)); those that this kernel lacks are not there."""
    from netbox.kernel.namespaces import inside_netns

    with inside_netns(fd):
        descriptor = os.open("/proc/thread-self/net/netstat", os.O_RDONLY | os.O_CLOEXEC)
    with open(descriptor, encoding="ascii") as file:
        lines = file.read().splitlines()
    found: dict[str, int] = {}
    for titles, numbers in zip(lines[::2], lines[1::2], strict=False):
        found.update(zip(titles.split()[1:], map(int, numbers.split()[1:]), strict=False))
    return {name: found[name] for name in names if name in found}
