"""What is known, what is expected, what is answered. Frozen; the answer is JSON-able.

``Facts`` is what the state and the kernel say before a packet is sent. ``Finding`` is what one cause has to say about them, ``Prediction``
the first of these along the packet's path, ``Observation`` what packets did, ``Answer`` all of it in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from netbox.kernel.inspection import AddressFact, ForwardingFact, LinkFact, NeighbourFact, QueueFact, RouteFact
from netbox.kernel.socket_diag import SocketFact
from netbox.packet.diagnosis.rules import Chain
from netbox.packet.resolving import Resolution
from netbox.spec import PortSpec

if TYPE_CHECKING:
    from netbox.kernel.connections import Connection

SANDBOX, HOST, LAN, ADDRESS = "sandbox", "host", "lan", "address"
ICMP, TCP, UDP, SCTP = "icmp", "tcp", "udp", "sctp"

OPEN, ANSWERED, DELIVERED = "open", "answered", "delivered"
REFUSED, SILENT, NO_ROUTE, UNREACHABLE, EXPIRED = "refused", "silent", "no route", "unreachable", "expired"
ANSWER = "the answer, "  # how the place of a drop begins that befell not the packet but its answer
NO_PORT, NOT_ASKED = "no source port", "not asked"
REACHED = (OPEN, ANSWERED, DELIVERED)
"""What packets did: a handshake; an answer; taken by a socket that says nothing (UDP). Else a RST or port unreachable; nothing; no way
found by the sender's kernel; an ICMP error; TTL exceeded; no port to send from; nothing was sent."""


@dataclass(frozen=True)
class Request:
    """What is asked: ``protocol`` is icmp, tcp, udp or sctp; ``ttl`` and ``size`` (bytes of the whole IP packet) are the kernel's own when
    ``None``. ``timeout`` is in seconds, for each packet; ``ipv6`` prefers an IPv6 address where there are both.
    """

    protocol: str
    port: int = 0
    ttl: int | None = None
    size: int | None = None
    source_address: str = ""
    timeout: float = 1.0
    ipv6: bool = False

    @property
    def title(self) -> str:
        """``TCP port 80`` or ``ICMP echo``."""
        return f"{self.protocol.upper()} port {self.port}" if self.port else f"{self.protocol.upper()} echo"


class Interface(NamedTuple):
    """An interface of a sandbox, as its record says. On a LAN (driver macvlan) it has no ``bridge`` and no ``host_interface``, but a
    ``parent``, a link of the host."""

    network: str
    bridge: str
    subnet: str
    gateway: str
    address: str
    mac: str
    interface: str
    host_interface: str
    internal: bool = False
    parent: str = ""
    address6: str = ""
    gateway6: str = ""
    aliases: tuple[str, ...] = ()

    def has(self, address: str) -> bool:
        """Whether the address is its own."""
        return bool(address) and address in (self.address, self.address6)

    def address_for(self, ipv6: bool) -> str:
        """Its address of that version; of the other where it has none."""
        return (self.address6 or self.address) if ipv6 else (self.address or self.address6)

    def gateway_for(self, address: str) -> str:
        """The host's address on the network, of the same version as ``address``."""
        return self.gateway6 if ":" in address else self.gateway

    @property
    def medium(self) -> str:
        """``bridge nb-0123abcd``, or ``LAN of eth0``."""
        return f"bridge {self.bridge}" if self.bridge else f"LAN of {self.parent}"


class Throttle(NamedTuple):
    """Something that makes a sandbox's link worse: ``in`` or ``out`` of it, for everybody or one peer, as ``netbox impair`` shows it.
    ``own`` says that it is the link's own rate (``--net-rate-in``), which stays with the sandbox."""

    sandbox: str
    direction: str
    effects: str
    loss: float = 0.0
    prefixes: tuple[str, ...] = ()
    own: bool = False


@dataclass(frozen=True)
class Box:
    """A sandbox as it is recorded. ``state`` is created, starting, running, paused or exited; ``joined`` is the id of the sandbox whose
    network it shares."""

    id: str
    name: str
    state: str
    mode: str = "bridge"
    interfaces: tuple[Interface, ...] = ()
    ports: tuple[PortSpec, ...] = ()
    throttles: tuple[Throttle, ...] = ()
    wanted_networks: tuple[str, ...] = ()
    exit_code: int | None = None
    error: str = ""
    joined: str = ""
    pid: int | None = None

    @property
    def runs(self) -> bool:
        """Whether it has processes."""
        return self.state in ("running", "paused")

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that it is on now, or will be when it starts."""
        return tuple(item.network for item in self.interfaces) if self.runs else self.wanted_networks

    def on(self, network: str) -> Interface | None:
        """Its interface on a network."""
        return next((item for item in self.interfaces if item.network == network), None)


@dataclass(frozen=True)
class Namespace:
    """The network of a place. ``label`` is the sandbox's name, ``host`` or ``lan``; ``identity`` is equal for the same namespace."""

    label: str
    identity: tuple[int, int] = (0, 0)
    links: tuple[LinkFact, ...] = ()
    addresses: tuple[AddressFact, ...] = ()
    neighbours: tuple[NeighbourFact, ...] = ()
    forwarding: tuple[ForwardingFact, ...] = ()
    queues: tuple[QueueFact, ...] = ()
    sockets: tuple[SocketFact, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    chains: tuple[Chain, ...] = ()

    def link(self, name: str) -> LinkFact | None:
        """The link of this name."""
        return next((item for item in self.links if item.name == name), None)

    def has(self, address: str) -> bool:
        """Whether the address is one of its own."""
        return address.startswith("127.") or address == "::1" or address in self._own

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(item.address for item in self.addresses)

    def neighbour(self, interface: str, address: str) -> NeighbourFact | None:
        """What it believes about a neighbour."""
        return next((item for item in self.neighbours if (item.interface, item.address) == (interface, address)), None)

    def sysctl(self, name: str, default: str = "") -> str:
        """The value of a sysctl that was read."""
        return self.sysctls.get(name, default)


class Mac(NamedTuple):
    """The MAC that an interface of a sandbox really has."""

    sandbox: str
    network: str
    interface: str
    mac: str


@dataclass(frozen=True, eq=False)  # equal is only what is the same, so that what follows from facts can be remembered with them
class Facts:
    """Everything that a prediction is made of.

    ``address`` and ``port`` are where the source sends to. ``translated`` is where the host's rules lead such a packet, ``declared`` where
    the published port of a sandbox should lead it. ``host_interface`` is where what the source sends comes to the host, empty when it does
    not. The routes: of the source; of the host, and its own way back to the source; of the target for what arrives (from ``source_seen``)
    and for the answer; ``None`` where there is none of the kind. ``boxes`` are all sandboxes of this machine. ``problems`` are facts that
    could not be had, in words.
    """

    request: Request
    source_kind: str
    target_kind: str
    target_name: str
    source: Namespace
    host: Namespace
    target: Namespace | None = None
    source_box: Box | None = None
    target_box: Box | None = None
    address: str = ""
    port: int = 0
    source_address: str = ""
    translated: tuple[str, int] | None = None
    published_by: str = ""
    declared: tuple[str, int] | None = None
    source_route: RouteFact | None = None
    host_interface: str = ""
    host_route: RouteFact | None = None
    back_route: RouteFact | None = None
    source_seen: str = ""
    arrival_route: RouteFact | None = None
    return_route: RouteFact | None = None
    connections: tuple[Connection, ...] = ()
    macs: tuple[Mac, ...] = ()
    boxes: tuple[Box, ...] = ()
    resolution: Resolution | None = None
    problems: tuple[str, ...] = ()

    @property
    def source_name(self) -> str:
        """How a sentence names the source."""
        return self.source_box.name if self.source_box else self.source_kind

    @property
    def destination(self) -> tuple[str, int]:
        """The address and port where the packet arrives: behind the translation, if there is one."""
        return self.translated or (self.address, self.port)

    @property
    def time_to_live(self) -> tuple[int, str]:
        """The TTL (IPv6: hop limit) that the source's kernel gives a packet, and the sysctl that says so; or what was asked for."""
        if self.request.ttl is not None:
            return self.request.ttl, ""
        name, default = "net.ipv4.ip_default_ttl", 64
        if ":" in self.address:
            name = f"net/ipv6/conf/{self.source_route.interface if self.source_route else 'all'}/hop_limit"
        own = self.source.sysctl(name)
        return int(own) if own.isdigit() else default, name.replace("/", ".")

    @property
    def target_title(self) -> str:
        """How a sentence names the target: ``db:5432``, as it was typed."""
        name = self.target_box.name if self.target_box and self.target_kind == SANDBOX else self.target_name
        port = self.request.port
        return (f"[{name}]:{port}" if ":" in name else f"{name}:{port}") if port else name


@dataclass(frozen=True)
class Finding:
    """What a cause says. ``cause`` is its id; ``blocks`` says that packets do not get through (else they do, and this is worth knowing).

    ``because`` completes the sentence "A cannot reach B: …". ``evidence`` are (what, how it is) pairs. ``command`` mends it, ``mend`` says
    in words what would where no command does. ``expect`` are the observations that fit; empty: any that is not a success. ``place`` and
    ``owner`` are those of a firewall rule. A cause that concerns only packets from one ``source_port``, or of one ``size``, says which.
    ``uncertain``: a rule that cannot be judged beforehand may let the packet pass before.
    """

    cause: str
    because: str
    step: str
    blocks: bool = True
    evidence: tuple[tuple[str, str], ...] = ()
    command: str = ""
    mend: str = ""
    expect: tuple[str, ...] = ()
    place: str = ""
    owner: str = ""
    source_port: int = 0
    size: int = 0
    uncertain: bool = False


@dataclass(frozen=True)
class Prediction:
    """What should happen: ``blocked`` is the first cause along the path that stops packets, ``notes`` are the others that were found."""

    blocked: Finding | None
    notes: tuple[Finding, ...] = ()
    path: tuple[tuple[str, str], ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def reachable(self) -> bool:
        """Whether packets should get through."""
        return self.blocked is None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "reachable": self.reachable,
            "cause": self.blocked.cause if self.blocked else None,
            "step": self.blocked.step if self.blocked else None,
            "notes": [item.cause for item in self.notes],
            "doubts": list(self.doubts),
        }


@dataclass(frozen=True)
class Observation:
    """What packets did. ``outcome`` is one of the constants above; ``said`` puts it into words. ``dropped_at`` is where a trace saw the
    packet die, ``reason`` the kernel's name for it, ``place`` and ``owner`` the rule, if one did it. ``large`` is the outcome for a packet
    as large as the source's link, ``special`` that from the source port of a finding, where these were tried. ``taken``: it was handed to a
    socket; ``nobody``: whom ARP or neighbour discovery asked for in vain; ``counters`` of the kernel at the target grew. ``trace`` is the
    trace itself, as JSON values.
    """

    outcome: str = NOT_ASKED
    said: str = ""
    rtt: float | None = None
    large: str = ""
    large_said: str = ""
    special: str = ""
    dropped_at: str = ""
    reason: str = ""
    function: str = ""
    place: str = ""
    owner: str = ""
    foreign: bool = False
    taken: bool = False
    nobody: str = ""
    counters: tuple[str, ...] = ()
    trace: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether the target answered."""
        return self.outcome in REACHED

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "outcome": self.outcome,
            "said": self.said,
            "rtt": self.rtt,
            "large": self.large or None,
            "dropped_at": self.dropped_at or None,
            "reason": self.reason or None,
            "rule": self.place or None,
            "owner": self.owner or None,
            "trace": None if self.trace is None else dict(self.trace),
        }


@dataclass(frozen=True)
class Answer:
    """Why, in words. ``sentence`` is one sentence without a full stop at its end; ``evidence`` are (what, how it is) pairs; ``command``
    mends it, or is ``None``; ``mend`` says in words what would. ``cause`` is the id of the cause, ``reachable`` when there is none.
    ``agreed`` is false when packets did something else than was expected, and then ``disagreement`` says so.
    """

    reachable: bool
    sentence: str
    cause: str
    evidence: tuple[tuple[str, str], ...]
    command: str | None
    mend: str
    agreed: bool
    disagreement: str
    source: str
    target: str
    request: Request
    prediction: Prediction
    observation: Observation

    def to_json(self) -> dict[str, Any]:
        """The answer as plain JSON values."""
        return {
            "reachable": self.reachable,
            "sentence": self.sentence,
            "cause": self.cause,
            "evidence": [{"what": what, "is": value} for what, value in self.evidence],
            "command": self.command,
            "mend": self.mend or None,
            "agreed": self.agreed,
            "disagreement": self.disagreement or None,
            "source": self.source,
            "target": self.target,
            "protocol": self.request.protocol,
            "port": self.request.port or None,
            "prediction": self.prediction.to_json(),
            "observation": self.observation.to_json(),
        }
