"""What a trace found: hops in the order of time, and how it ended. Frozen, JSON-able.

A ``Hop`` is one thing that happened to the packet: it was sent by a process, passed a device, met a rule, was translated, routed, handed to
a socket, dropped. ``Drop`` is what ``drops`` yields: one packet that the kernel threw away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

SENT, DEVICE, BRIDGE, RULE, NAT, ROUTE, SOCKET, DROP = "sent", "device", "bridge", "rule", "nat", "route", "socket", "drop"
DELIVERED, DROPPED, LOST = "delivered", "dropped", "lost"
REQUEST, REPLY = "request", "reply"


class Owner(NamedTuple):
    """Whose rule it is. ``kind`` is ``sandbox``, ``network``, ``impair``, ``policy`` or, for rules that netbox did not make,
    ``foreign``; ``name`` is the sandbox's name, the network's name, …; empty for a foreign one and for rules that are everybody's
    (kind ``netbox``).
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


class RuleHit(NamedTuple):
    """A rule that a packet met.

    ``backend`` is ``iptables`` (legacy) or ``nftables``; ``family`` is nf_tables' (``ip``, ``ip6``, ``inet``, ``bridge``; ``ip`` or ``ip6``
    for legacy). ``position`` counts from 1 in its chain; it is 0 for a chain's policy or end. ``text`` is the rule as ``iptables -S`` or
    ``nft list`` show it, where it could be read. ``verdict`` is lower case: accept, drop, reject, dnat, masquerade, jump, return, continue.
    """

    backend: str
    family: str
    table: str
    chain: str
    position: int
    verdict: str
    text: str
    owner: Owner

    @property
    def place(self) -> str:
        """``filter NETBOX-INGRESS rule 3``, or ``filter FORWARD policy``."""
        where = f"{self.table} {self.chain}" if self.backend == "iptables" else f"{self.family} {self.table} {self.chain}"
        if self.position:
            return f"{where} rule {self.position}"
        return f"{where} end" if self.verdict == "return" else f"{where} policy"

    def to_json(self) -> dict[str, Any]:
        """The rule as plain JSON values."""
        return {**self._asdict(), "owner": self.owner._asdict(), "place": self.place}


class Flow(NamedTuple):
    """The addresses of a packet. ``protocol`` is ``tcp``, ``udp``, ``sctp``, ``icmp``, ``icmpv6``, ``arp`` or a number; ports are 0 where
    the protocol has none. ``detail`` is what a reader wants to know besides: TCP flags (``SYN``), the ICMP type (``echo request``).
    """

    protocol: str
    source: str
    destination: str
    source_port: int = 0
    destination_port: int = 0
    detail: str = ""

    def __str__(self) -> str:
        return f"{endpoint(self.source, self.source_port)} → {endpoint(self.destination, self.destination_port)}"

    @property
    def reversed(self) -> Flow:
        """The same flow as answers have it."""
        return Flow(self.protocol, self.destination, self.source, self.destination_port, self.source_port)


@dataclass(frozen=True)
class Hop:
    """One thing that happened to the packet.

    ``time`` is in nanoseconds since the first hop. ``direction`` is ``request`` or ``reply``. ``netns`` names the network namespace as
    netbox does: a sandbox's name, ``host``, ``lan``, else ``netns:INODE``. ``kind``: see the constants of this module. ``text`` says what
    happened, in words. ``device`` is empty where none is concerned. ``flow`` is what the packet looked like there; for ``nat`` ``before``
    is what it looked like until then. ``rule`` is set for ``rule``, and for ``nat`` and ``drop`` where the rule is known. ``reason`` and
    ``function`` are the kernel's, for a ``drop`` (``NETFILTER_DROP``, ``nf_hook_slow``).
    """

    time: int
    netns: str
    kind: str
    text: str
    device: str = ""
    direction: str = REQUEST
    flow: Flow | None = None
    before: Flow | None = None
    rule: RuleHit | None = None
    reason: str = ""
    function: str = ""

    def to_json(self) -> dict[str, Any]:
        """The hop as plain JSON values, without what is empty."""
        values: dict[str, Any] = {
            **asdict(self),
            "flow": self.flow and self.flow._asdict(),
            "before": self.before and self.before._asdict(),
            "rule": self.rule and self.rule.to_json(),
        }
        return {key: value for key, value in values.items() if value not in (None, "")}


@dataclass(frozen=True)
class Trace:
    """The way of one probe.

    ``outcome``: ``delivered`` (a socket, or the receiver's stack, got it), ``dropped`` (the kernel threw it away; ``drop`` is that hop) or
    ``lost`` (nothing more was seen of it). ``answer`` says in words what came back (``SYN-ACK``, ``RST``, ``nothing``); ``reachable`` is
    the probe's judgement. ``tracer`` is how it was followed: ``bpf``, ``tracefs`` or ``none`` (rules only). ``counters`` are the kernel's
    counters that grew meanwhile in the receiver's namespace where a packet is refused without being dropped (``ListenOverflows``).
    ``notes`` are things that the reader has to know about the trace itself.
    """

    source: str
    destination: str
    hops: tuple[Hop, ...]
    outcome: str
    answer: str
    reachable: bool
    tracer: str
    counters: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def drop(self) -> Hop | None:
        """The hop where the request was dropped, or else the reply."""
        return next((hop for hop in self.hops if hop.kind == DROP), None)

    @property
    def rule(self) -> RuleHit | None:
        """The rule that dropped it."""
        return self.drop.rule if self.drop else None

    @property
    def socket(self) -> Hop | None:
        """The hop where a socket or the receiver's stack got the request."""
        return next((hop for hop in self.hops if hop.kind == SOCKET and hop.direction == REQUEST), None)

    def to_json(self) -> dict[str, Any]:
        """The trace as plain JSON values."""
        return {
            "source": self.source,
            "destination": self.destination,
            "outcome": self.outcome,
            "answer": self.answer,
            "reachable": self.reachable,
            "tracer": self.tracer,
            "counters": dict(self.counters),
            "notes": list(self.notes),
            "hops": [hop.to_json() for hop in self.hops],
        }


@dataclass(frozen=True)
class Drop:
    """A packet that the kernel threw away. ``time`` is in seconds since the epoch, ``length`` in bytes. ``rule`` is the rule that a
    firewall's drop is due to, where the kernel named it. ``sandbox`` is the sandbox that it concerns; empty: only its network does.
    """

    time: float
    netns: str
    device: str
    flow: Flow | None
    length: int
    reason: str
    function: str
    rule: RuleHit | None = None
    sandbox: str = ""

    def to_json(self) -> dict[str, Any]:
        """The drop as plain JSON values."""
        return {**asdict(self), "flow": self.flow and self.flow._asdict(), "rule": self.rule and self.rule.to_json()}


def endpoint(address: str, port: int) -> str:
    """``10.0.0.2:80``, ``[fd00::2]:80``, or the address alone."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
