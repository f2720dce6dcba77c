"""Recorded events and firewall passages into the hops of a trace. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import NamedTuple

from netbox.kernel.packet_event import CONSUME, DELIVER, DROP, TRANSMIT, PacketEvent
from netbox.packet.tracing import values
from netbox.packet.tracing.headers import Header, parse
from netbox.packet.tracing.hooks import Passage, Role
from netbox.packet.tracing.values import REPLY, REQUEST, Flow, Hop, Owner, RuleHit

_SOCKET_FUNCTIONS = ("tcp_", "udp_", "udpv6_", "icmp_rcv", "icmpv6_rcv", "sctp_", "raw_", "ping_", "skb_consume_udp")
_FIREWALL_REASON = "NETFILTER_DROP"
_ELSEWHERE = ("OTHERHOST",)  # copies that a bridge flooded: not this packet's end
_COPY_REASONS = ("QUEUE_PURGE", "PACKET_SOCK_ERROR")
_COPY_FUNCTIONS = ("raw_rcv", "rawv6_rcv", "raw_rcv_skb", "packet_rcv", "tpacket_rcv")
_DECISIONS = ("accept", "drop", "masquerade")
_ON_A_PORT = ("netdev ingress", "bridge prerouting", "prerouting", "bridge input")
_NAT_VERDICTS = ("dnat", "snat", "masquerade", "redirect")


class Surroundings(NamedTuple):
    """What the assembly has to know about the machine.

    ``labels`` are the names of network namespaces by inode, ``order`` the namespaces from the source to the destination. ``devices`` says
    in words what a device is, by namespace and name (``network front``, ``link of db``); ``bridges`` are those that are one. ``addresses``
    are those of sandboxes, with their names; ``peers`` are the namespaces that the host's devices lead to; ``subnets`` are those of
    networks, with their names; ``ports`` are the bridges by their ports.
    """

    labels: Mapping[int, str]
    order: Sequence[int]
    devices: Mapping[tuple[int, str], str]
    bridges: frozenset[tuple[int, str]]
    addresses: Mapping[str, str]
    peers: Mapping[str, int]
    subnets: Mapping[str, str] = MappingProxyType({})
    ports: Mapping[tuple[int, str], str] = MappingProxyType({})

    def label(self, netns: int) -> str:
        """A namespace's name."""
        return self.labels.get(netns) or (f"netns:{netns}" if netns else "?")

    def owned(self, hit: RuleHit, flow: Flow | None, netns: int, in_device: str, out_device: str = "") -> RuleHit:
        """A rule of netbox's may stand for all networks and ask a set which one it is about. It is that network's here: the one of the
        source's subnet or of the device that it asks about; of a device that is not known, the one that the address is in.
        """
        if hit.owner.kind != "netbox" or "@" not in hit.text or hit.verdict not in _DECISIONS or flow is None:
            return hit
        out = "oifname" in hit.text
        device, address = (out_device, flow.destination) if out else (in_device, flow.source)
        kind, _, name = self.devices.get((netns, device), "").partition(" ")
        if "@subnets_" in hit.text:
            kind, address = "", flow.source
        if kind != "network":
            name = next((name for subnet, name in self.subnets.items() if ip_address(address) in ip_network(subnet)), "")
        return hit._replace(owner=Owner("network", name)) if name else hit


@dataclass
class _Direction:
    """The state of one direction while hops are made."""

    role: str
    flow: Flow | None = None
    nat: RuleHit | None = None
    last: dict[int, RuleHit] = field(default_factory=dict)
    out: dict[int, str] = field(default_factory=dict)
    came: tuple[int, str] = (0, "")  # where it came in last: namespace and device
    stayed: tuple[int, str] | None = None  # the bridge that it has stayed on since
    ended: bool = False


class _Assembly:
    def __init__(self, surroundings: Surroundings, start: int) -> None:
        self.around = surroundings
        self.hops: list[Hop] = []
        self.time = start
        self.start = start
        self.directions = {role: _Direction(role) for role in (REQUEST, REPLY)}

    def add(self, direction: _Direction, netns: int, kind: str, text: str, device: str = "", **more: object) -> None:
        hop = Hop(self.time - self.start, self.around.label(netns), kind, text, device, direction.role, **more)  # type: ignore[arg-type]
        self.hops.append(hop)

    # -- addresses -----------------------------------------------------------------------------------------------------------------

    def look(self, direction: _Direction, netns: int, header: Header | None) -> None:
        """Notes what the packet looks like now; a change since the last look was NAT."""
        if header is None or header.flow.protocol == "arp":
            return
        before, now = direction.flow, header.flow
        direction.flow = now
        if before is None:
            verb = "sends" if direction.role == REQUEST else "answers with"
            self.add(direction, netns, values.SENT, f"{verb} {described(now)}", flow=now)
        if before is None or _addresses(before) == _addresses(now) or header.is_error or before.protocol != now.protocol:
            return
        sides = [
            name for name, changed in (("source", before[1:4:2] != now[1:4:2]), ("destination", before[2:5:2] != now[2:5:2])) if changed
        ]
        rule, direction.nat = self._owned(direction.nat, now), None
        back = " back (known connection)" if rule is None else ""
        self.add(direction, netns, values.NAT, f"{' and '.join(sides)} translated{back}", before=before, flow=now, rule=rule)

    def _owned(self, rule: RuleHit | None, now: Flow) -> RuleHit | None:
        """A published port may be an element of a map that one rule for all of them asks: it is the sandbox's that it leads to."""
        name = self.around.addresses.get(now.destination)
        if rule is None or name is None or rule.verdict != "dnat" or rule.owner.kind != "netbox":
            return rule
        owned = rule._replace(owner=Owner("sandbox", name))
        self.hops = [replace(hop, rule=owned) if hop.rule is rule else hop for hop in self.hops]
        return owned

    # -- the firewall --------------------------------------------------------------------------------------------------------------

    def passage(self, passage: Passage) -> None:
        """The rules of a hook, and what was decided around them."""
        direction, netns = self.directions[passage.role], passage.netns
        self.look(direction, netns, passage.before)
        if passage.hook == "forward":
            self._forward(direction, passage)
        elif passage.hook == "bridge forward":
            self._switched(direction, (netns, passage.in_device), (netns, passage.out_device))
        elif passage.hook == "input":
            self.add(direction, netns, values.ROUTE, f"for {self.around.label(netns)} itself")
        elif passage.hook == "output":
            self._route(direction, netns, f"routed out by {self._described(netns, passage.out_device)}", passage.out_device)
        elif passage.hook == "postrouting" and direction.out.get(netns, passage.out_device) != passage.out_device:
            # A new destination address is a new way.
            self._route(direction, netns, f"routed anew, out by {self._described(netns, passage.out_device)}", passage.out_device)
        for found in passage.hits:
            hit = self.around.owned(found, direction.flow, netns, passage.in_device, passage.out_device)
            direction.last[netns] = hit
            if hit.verdict in _NAT_VERDICTS:
                direction.nat = hit
            self.add(direction, netns, values.RULE, f"{passage.hook}: {hit.verdict}", rule=hit, flow=direction.flow)
        self.look(direction, netns, passage.after)

    def _forward(self, direction: _Direction, passage: Passage) -> None:
        into, out = passage.in_device, passage.out_device
        if into == out and (passage.netns, into) in self.around.bridges:
            self._stays(direction, passage.netns, into)
        else:
            names = self._described(passage.netns, into), self._described(passage.netns, out)
            self._route(direction, passage.netns, f"routed from {names[0]} to {names[1]}", out)

    def _switched(self, direction: _Direction, came: tuple[int, str], goes: tuple[int, str]) -> None:
        """From one port to another: without br_netfilter no hook of inet tells that a bridge has done it."""
        bridge = self.around.ports.get(came)
        if bridge is not None and bridge == self.around.ports.get(goes):
            self._stays(direction, goes[0], bridge)

    def _stays(self, direction: _Direction, netns: int, bridge: str) -> None:
        if direction.stayed != (netns, bridge):
            direction.stayed = netns, bridge
            self.add(direction, netns, values.BRIDGE, f"stays on {self._described(netns, bridge)}", bridge)

    def _route(self, direction: _Direction, netns: int, text: str, device: str) -> None:
        direction.out[netns] = device
        self.add(direction, netns, values.ROUTE, text, device, flow=direction.flow)

    def _described(self, netns: int, device: str) -> str:
        words = self.around.devices.get((netns, device))
        return f"{device} ({words})" if words else device

    def conclude(self) -> None:
        """Without the kernel's drops, a rule that dropped the packet is the last thing that it met."""
        last = self.hops[-1] if self.hops else None
        if last is not None and last.rule is not None and last.kind == values.RULE and last.rule.verdict in ("drop", "reject"):
            self.hops.append(replace(last, kind=values.DROP, text=f"dropped: {last.rule.verdict}"))

    # -- devices, sockets, drops ---------------------------------------------------------------------------------------------------

    def event(self, event: PacketEvent, role: str, header: Header | None) -> None:
        """Something that the kernel did with the packet."""
        direction = self.directions[role]
        if event.kind in (TRANSMIT, DELIVER):
            self.look(direction, event.netns, header)
            device = event.netns, event.device
            if event.kind == DELIVER:
                direction.came, direction.stayed = device, None
            else:
                self._switched(direction, direction.came, device)
            kind = values.BRIDGE if device in self.around.bridges else values.DEVICE
            verb = "out by" if event.kind == TRANSMIT else "in by"
            text = f"{verb} {self._described(event.netns, event.device)}"
            self.add(direction, event.netns, kind, text, event.device, flow=direction.flow)
        elif event.kind == DROP:
            self._drop(event, direction)
        elif not direction.ended:
            text = "the answer has arrived" if self._is_home(direction, event.netns) else "taken by a socket"
            direction.ended = True
            self.add(direction, event.netns, values.SOCKET, text, function=event.function, flow=direction.flow)

    def _is_home(self, direction: _Direction, netns: int) -> bool:
        """Whether an answer is back where the question came from."""
        return direction.role == REPLY and netns == (self.around.order[0] if self.around.order else 0)

    def _drop(self, event: PacketEvent, direction: _Direction) -> None:
        if direction.ended:
            return
        direction.ended = True
        if self._is_home(direction, event.netns) and event.reason != _FIREWALL_REASON:
            # The prober reads answers beside the kernel, which has no socket for them.
            self.add(direction, event.netns, values.SOCKET, "the answer has arrived", function=event.function, flow=direction.flow)
            return
        rule = direction.last.get(event.netns) if event.reason == _FIREWALL_REASON else None
        self.add(
            direction,
            event.netns,
            values.DROP,
            f"dropped: {event.reason or 'no reason given'}",
            event.device,
            reason=event.reason,
            function=event.function,
            flow=direction.flow,
            rule=rule,
        )


def described(flow: Flow) -> str:
    """``TCP SYN 10.0.0.2:40000 → 10.0.0.3:80``."""
    return " ".join(filter(None, (flow.protocol.upper().replace("ICMPV6", "ICMPv6"), flow.detail, str(flow))))


def is_copy(event: PacketEvent) -> bool:
    """Whether a drop is that of a copy which a packet socket or a raw socket had: the packet itself goes on."""
    return event.reason in _COPY_REASONS or event.function in _COPY_FUNCTIONS


def _addresses(flow: Flow) -> tuple[object, ...]:
    return flow[1:5]


def hops(events: Iterable[PacketEvent], passages: Sequence[Passage], role: Role, surroundings: Surroundings) -> tuple[Hop, ...]:
    """The hops of a probe and of its answer. ``events`` may hold other packets too; ``role`` knows which are ours. Events without
    headers are the request's, see ``located``.
    """
    chosen = _chosen(events, role, surroundings)
    assembly = _Assembly(surroundings, chosen[0][0].time if chosen else 0)
    pending: dict[tuple[int, str], list[Passage]] = {}
    for passage in passages:
        pending.setdefault((passage.netns, passage.role), []).append(passage)
    previous: dict[tuple[int, str], str] = {}
    for event, its_role, header in chosen:
        key = (event.netns, its_role)
        if its_role == REPLY and key not in previous:
            # Whatever is answered has been taken in before.
            for passage in pending.pop((event.netns, REQUEST), []):
                assembly.passage(passage)
        for passage in _due(pending.get(key, []), event, header, previous.get(key, ""), surroundings):
            assembly.passage(passage)
        previous[key] = event.kind
        assembly.time = event.time
        assembly.event(event, its_role, header)
    for its_role in (REQUEST, REPLY):
        for netns in surroundings.order if its_role == REQUEST else reversed(surroundings.order):
            for passage in pending.pop((netns, its_role), []):
                assembly.passage(passage)
    assembly.conclude()
    return tuple(assembly.hops)


def _chosen(events: Iterable[PacketEvent], role: Role, around: Surroundings) -> list[tuple[PacketEvent, str, Header | None]]:
    """Our packets' events in the order of time, those without a device in the namespace where the packet was last."""
    found: list[tuple[PacketEvent, str, Header | None]] = []
    where: dict[object, int] = {}  # by packet, and by role for copies that were never seen on a device
    arrived: dict[int, int] = {}  # by packet, the namespace that it has come to and not left
    for event in sorted(events, key=lambda event: event.time):
        header = parse(event.packet)
        known = role(header) if event.packet else REQUEST  # chosen already, see ``located``
        if known is None:
            continue
        event = event._replace(netns=event.netns or where.get(event.skb) or where.get(known, 0))
        where[event.skb] = event.netns
        where.setdefault(known, event.netns)
        if event.kind in (TRANSMIT, DELIVER):  # a copy may be freed anywhere meanwhile
            where[known] = event.netns
            arrived[event.skb] = event.netns if event.kind == DELIVER else 0
        if event.kind == CONSUME and not _is_taken(event, known, around, arrived.get(event.skb, 0)):
            continue
        if event.kind == DROP and (is_copy(event) or (event.reason in _ELSEWHERE and event.netns not in around.order)):
            continue
        found.append((event, known, header))
    return _answered_first(found)


def _is_taken(event: PacketEvent, role: str, around: Surroundings, arrived: int) -> bool:
    """Whether it is a socket that has freed the packet. Linux before 6.4 does not say who: there it is, in a sandbox or where the packet's
    way ends, when the packet has come in and not gone out again; a copy of it, which a packet socket has had, never came in.
    """
    if event.function:
        return event.function.startswith(_SOCKET_FUNCTIONS)
    ends = around.order[-1:] if role == REQUEST else around.order[:1]
    return arrived == event.netns != 0 and arrived in (*around.peers.values(), *ends)


def _answered_first(found: list[tuple[PacketEvent, str, Header | None]]) -> list[tuple[PacketEvent, str, Header | None]]:
    """The kernel frees a request after it has sent the answer: what became of it is told before the answer all the same."""
    first = next((place for place, (_, role, _) in enumerate(found) if role == REPLY), None)
    if first is None:
        return found
    answer = found[first][0]
    for place in range(first + 1, len(found)):
        event, role, header = found[place]
        if role == REQUEST and event.kind in (DROP, CONSUME) and event.netns == answer.netns:
            return [*found[:first], (event._replace(time=answer.time), role, header), *found[first:place], *found[place + 1 :]]
    return found


def _due(pending: list[Passage], event: PacketEvent, header: Header | None, previous: str, around: Surroundings) -> list[Passage]:
    """Takes out of ``pending`` the passages that came before the event."""
    count = 0
    if event.kind == TRANSMIT:
        for place, passage in enumerate(pending):
            out = passage.out_device
            if passage.hook.endswith("postrouting") and (out == event.device or (event.netns, out) in around.bridges):
                count = place + 1
            elif count:
                break
    elif event.kind == DELIVER:
        count = _before_handed_up(pending, header) if previous == DELIVER else 0
    else:
        count = len(pending)
    taken = pending[:count]
    del pending[:count]
    return taken


def _before_handed_up(pending: Sequence[Passage], header: Header | None) -> int:
    """How many passages are those of a bridge's port: it shows the packet to the firewall there, before it hands it up. The hook
    prerouting is among them with br_netfilter only: what it translates was translated then.
    """
    seen: list[str] = []
    for passage in pending:
        if passage.hook not in _ON_A_PORT or passage.hook in seen or "bridge input" in seen or _is_ahead(passage, header):
            break
        seen.append(passage.hook)
    return len(seen)


def _is_ahead(passage: Passage, header: Header | None) -> bool:
    """Whether the packet still looks as it did before a translation."""
    if header is None or passage.before is None or passage.after is None:
        return False
    now, before, after = (_addresses(seen.flow) for seen in (header, passage.before, passage.after))
    return now == before != after
