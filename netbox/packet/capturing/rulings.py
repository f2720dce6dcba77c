"""Which firewall rules the recorded packets met: they are traced while the capture runs, in the host's namespace and in the sandboxes'."""

from __future__ import annotations

import os
from collections.abc import Sequence

from netbox.engine import Engine
from netbox.errors import Unsupported
from netbox.kernel.packet_event import PacketEvent
from netbox.kernel.packet_source import BPF, DROPS, NONE
from netbox.packet.tracing.decisions import WORDS, Decisions, dropper
from netbox.packet.tracing.headers import parse
from netbox.packet.tracing.session import Session
from netbox.packet.tracing.spaces import Space, Spaces
from netbox.packet.tracing.text import rule
from netbox.packet.tracing.values import RuleHit

_WORDS = {
    "accept": "accepted",
    "drop": "dropped",
    "reject": "rejected",
    "dnat": "destination translated",
    "redirect": "destination translated",
    "snat": "source translated",
    "masquerade": "source translated",
    "queue": "queued for a program",
}


class Rulings:
    """Traces from now on until it is closed. It is a source of drops, too. ``notes`` says what does not work on this host.

    Raises:
        HostError, NoPermission: the kernel refuses.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._spaces = Spaces(engine)
        self._own: dict[int, Space] = {}
        self._decisions = Decisions()
        self._events: list[PacketEvent] = []
        try:
            self._around = self._spaces.surroundings([])
            self._session = self._opened()
        except BaseException:
            self._spaces.close()
            raise

    def _opened(self) -> Session:
        host = [self._spaces.host]
        try:
            return Session(self._engine.settings, self._spaces, host, WORDS, None, BPF, DROPS)
        except Unsupported:  # what was dropped is known from the rules then
            return Session(self._engine.settings, self._spaces, host, WORDS, None, NONE)

    @property
    def notes(self) -> list[str]:
        """What of it does not work here."""
        return self._session.notes

    def add(self, name: str, netns: int) -> None:
        """Traces in the namespace of a sandbox as well."""
        self._spaces.refresh(self._engine)  # for the names of rules' owners
        self._around = self._spaces.surroundings([])
        space = self._spaces.add(name, os.dup(netns))
        self._own[space.inode] = space
        self._session.add([self._spaces.host, *self._own.values()])

    def forget(self, inode: int) -> None:
        """Lets go of a namespace."""
        if self._own.pop(inode, None) is not None:
            self._session.add([self._spaces.host, *self._own.values()])
            self._spaces.forget(inode)

    def read(self) -> Sequence[PacketEvent]:
        """Takes in what was reported; what was dropped."""
        self._session.take()
        events, records = self._session.drain()
        self._decisions.take(records)
        return events

    def on(self, packet: bytes, dropped_in: int = 0) -> str:
        """What was decided about a packet (from its network header on), in words; empty where nothing is known.

        ``dropped_in`` is the namespace where the kernel says that it was dropped: the rule that did it is there.
        """
        hits: dict[int, list[RuleHit]] = {}
        header = parse(packet)
        for record in self._decisions.of(packet):
            hit = self._around.owned(self._session.rule(record), header and header.flow, record.netns, record.in_device, record.out_device)
            hits.setdefault(record.netns, []).append(hit)
        if dropped_in:
            found = dropper(hits.get(dropped_in, []))
            return f"dropped in {self._spaces.label(dropped_in)} by {rule(found)}" if found else ""
        told = [
            f"{_WORDS.get(hit.verdict, hit.verdict)} in {self._spaces.label(netns)} by {rule(hit)}"
            for netns, met in hits.items()
            for hit in _decisive(met)
        ]
        return ", ".join(dict.fromkeys(told))

    def close(self) -> None:
        """Ends it; nothing stays."""
        self._session.close()
        self._spaces.close()


def _decisive(hits: Sequence[RuleHit]) -> list[RuleHit]:
    """The rules that decided, or else the last policy: jumps and what went on are left out."""
    rules = [hit for hit in hits if hit.verdict in _WORDS and (hit.position or hit.verdict == "drop")]
    return rules or [hit for hit in hits if hit.verdict == "accept" and (hit.backend, hit.table) not in _NO_POLICIES][-1:]


_NO_POLICIES = tuple(("iptables", table) for table in ("raw", "mangle", "nat"))
