"""What a probe asks and what came back. Frozen, JSON-able. Times are seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from netbox.packet.places import Place, Target

ICMP, TCP, UDP, SCTP, ARP, ND, DNS = "icmp", "tcp", "udp", "sctp", "arp", "nd", "dns"
PROTOCOLS = (ICMP, TCP, UDP, SCTP, ARP, ND, DNS)
WITH_PORT = (TCP, UDP, SCTP, DNS)

OPEN, CLOSED, FILTERED, OPEN_OR_FILTERED, DELIVERED = "open", "closed", "filtered", "open or filtered", "delivered"
ANSWERED, NO_ANSWER, NO_SUCH_NAME, FAILED = "answered", "no answer", "no such name", "failed"
NO_ROUTE, UNREACHABLE, TIME_EXCEEDED, TOO_BIG = "no route", "unreachable", "time exceeded", "too big"
REACHABLE = (OPEN, ANSWERED, DELIVERED)
"""The states that count as reached."""

RECORDS = ("A", "AAAA", "PTR", "CNAME", "MX", "NS", "SOA", "SRV", "TXT", "CAA", "HTTPS", "SVCB", "DS", "DNSKEY", "ANY")
"""The types that a DNS probe may ask for."""

DEFAULT_TIMEOUT = 1.0
DNS_PORT = 53
MAXIMUM_HOPS = 30


@dataclass(frozen=True)
class ProbeRequest:
    """One question.

    ``protocol`` is one of ``PROTOCOLS``; ``port`` is needed by tcp, udp and sctp (dns: 53 if not given); ``name`` and ``record`` (one of
    ``RECORDS``) are what dns asks for, with ``over_tcp`` by TCP (RFC 7766); by UDP it asks again by TCP when the answer is cut off.
    ``size`` counts bytes of payload behind the transport header (ICMP: behind its eight bytes); ``None`` lets the protocol choose. ``ttl``
    is also the hop limit. ``source`` is the address to send from, any address: with a foreign one, answers go elsewhere. ``count`` packets
    are sent, ``interval`` seconds apart, each waited for ``timeout`` seconds. ``traceroute`` sends with rising ttl, ``pmtu`` looks for the
    largest packet that passes. Who follows a packet chooses its ``ip_id`` (IPv6: flow label) and ``own_port`` (ICMP: identifier).
    """

    protocol: str = ICMP
    port: int | None = None
    name: str | None = None
    record: str = "A"
    over_tcp: bool = False
    size: int | None = None
    ttl: int | None = None
    count: int = 1
    source: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    interval: float = 0.2
    traceroute: bool = False
    pmtu: bool = False
    ip_id: int | None = None
    own_port: int | None = None

    @property
    def title(self) -> str:
        """``TCP port 80``, ``ICMP echo``, ``DNS query for db``: how a sentence names it."""
        if self.protocol in (TCP, UDP, SCTP):
            return f"{self.protocol.upper()} port {self.port}"
        words = {ICMP: "ICMP echo", ARP: "ARP request", ND: "neighbour solicitation", DNS: f"DNS query for {self._question}"}
        return words[self.protocol]

    @property
    def _question(self) -> str:
        return f"{self.name}" + (f" {self.record}" if self.record != "A" else "") + (" by TCP" if self.over_tcp else "")

    def to_json(self) -> dict[str, Any]:
        """The request as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ProbeAnswer:
    """What came back for one packet.

    ``state`` is ``open``, ``closed``, ``answered``, ``delivered`` (it was handed to a listening UDP socket, which said nothing),
    ``filtered`` (nothing came back), ``open or filtered`` (UDP to somebody whom we cannot ask), ``no answer`` (arp, nd, dns),
    ``no such name`` and ``failed`` (dns), ``no route``, ``unreachable``, ``time exceeded``, ``too big``. ``answer`` says in words what came
    back; ``icmp`` is (type, code) when that was an ICMP error or reply. ``from_address`` sent it, ``from_name`` says who that is where we
    know: a sandbox, ``host``, ``lan``. ``rtt`` is in seconds (dns by TCP: from the query on); ``ttl`` is that of the answer when it
    arrived.

    ``arrived`` says whether the packet was seen in the namespace of the target, before any firewall there; ``listening`` whether a socket
    listens on the port there; ``None`` where we could not look. ``records`` are the answers of a name server, ``truncated`` says that
    they did not fit into a datagram (TC, RFC 1035) and were asked for by TCP then. ``mac_address`` is what arp and nd found, ``next_mtu``
    the size that an ICMP error asked for. ``ip_id`` is the packet's IP id (IPv6: its flow label).
    """

    sequence: int
    state: str
    answer: str
    from_address: str | None = None
    from_name: str | None = None
    rtt: float | None = None
    ttl: int | None = None
    icmp: tuple[int, int] | None = None
    arrived: bool | None = None
    listening: bool | None = None
    mac_address: str | None = None
    next_mtu: int | None = None
    records: tuple[str, ...] = ()
    truncated: bool = False
    ip_id: int | None = None

    @property
    def reached(self) -> bool:
        """Whether the target was reached."""
        return self.state in REACHABLE

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ProbeAnswer:
        """An answer out of plain JSON values."""
        icmp = data.get("icmp")
        return cls(**{**data, "icmp": tuple(icmp) if icmp else None, "records": tuple(data.get("records", ()))})


class Hop(NamedTuple):
    """One line of a traceroute: who let the packet's life end at this ``ttl``; the answers of all its packets, silent ones too."""

    ttl: int
    answers: tuple[ProbeAnswer, ...]

    @property
    def address(self) -> str | None:
        """Who answered first."""
        return next((answer.from_address for answer in self.answers if answer.from_address), None)

    @property
    def name(self) -> str | None:
        """A name of who answered, where it is known."""
        return next((answer.from_name for answer in self.answers if answer.from_name), None)


class SizeStep(NamedTuple):
    """One packet of the search for the path MTU: its size (whole IP packet), whether it got through, and what came back."""

    size: int
    passed: bool
    answer: ProbeAnswer


class PathMtu(NamedTuple):
    """The largest IP packet that passes unfragmented: ``None`` when not even the smallest got an answer.

    ``link_mtu`` is that of the first link. ``limited_by`` (``limited_by_name``) said that a packet was too big; ``local`` means that the
    source's own link did. ``black_hole`` means that larger packets vanish and nobody says so; ``last_seen`` is then the last hop that such
    a packet was seen at.
    """

    mtu: int | None
    link_mtu: int
    limited_by: str | None = None
    limited_by_name: str | None = None
    local: bool = False
    black_hole: bool = False
    last_seen: str | None = None
    last_seen_name: str | None = None
    steps: tuple[SizeStep, ...] = ()


@dataclass(frozen=True)
class ProbeReport:
    """A probe, answered. ``notes`` are sentences about what may mislead (a paused sandbox, an answer by somebody else)."""

    request: ProbeRequest
    source: Place
    target: Target
    answers: tuple[ProbeAnswer, ...] = ()
    hops: tuple[Hop, ...] = ()
    path_mtu: PathMtu | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def reachable(self) -> bool:
        """Whether at least one packet reached the target."""
        if self.path_mtu is not None:
            return self.path_mtu.mtu is not None
        return any(answer.reached for answer in self.all_answers)

    @property
    def all_answers(self) -> tuple[ProbeAnswer, ...]:
        """The answers, or those of the last hop of a traceroute."""
        return self.hops[-1].answers if self.hops else self.answers

    @property
    def best(self) -> ProbeAnswer | None:
        """The answer that tells most: the first that reached the target, else the first with any answer, else the first."""
        ranked = sorted(self.all_answers, key=lambda item: (not item.reached, item.from_address is None, item.sequence))
        return ranked[0] if ranked else None

    @property
    def state(self) -> str:
        """The state of the best answer."""
        return self.best.state if self.best else NO_ANSWER

    @property
    def sentence(self) -> str:
        """One line: ``web → db (10.20.30.3), TCP port 5432: open, SYN-ACK from db, 0.21 ms``."""
        from netbox.packet.probing.text import sentence

        return sentence(self)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "reachable": self.reachable,
            "state": self.state,
            "sentence": self.sentence,
            "source": self.source.to_json(),
            "target": self.target.to_json(),
            "request": self.request.to_json(),
            "answers": [asdict(answer) for answer in self.answers],
            "hops": [{"ttl": hop.ttl, "answers": [asdict(answer) for answer in hop.answers]} for hop in self.hops],
            "path_mtu": None if self.path_mtu is None else _path_mtu_json(self.path_mtu),
            "notes": list(self.notes),
        }


def _path_mtu_json(found: PathMtu) -> dict[str, Any]:
    steps = [{"size": step.size, "passed": step.passed, "answer": asdict(step.answer)} for step in found.steps]
    return {**found._asdict(), "steps": steps}
