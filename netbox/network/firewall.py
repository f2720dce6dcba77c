"""Firewall rules as values, and what a backend does with them. Pure.

A ``Rule`` says what is matched and what happens, not how: ``iptables`` renders it as a rule of a chain, another backend may hold it as an
element of a map. Rules come in groups of what changes together, each with an owner: a network, or a sandbox's published ports.

The stages that a packet passes, in this order::

    GUARD     before anything else: packets from our bridges that are forged to be from, or for, 127.0.0.0/8
    LOSS      then: what an impaired link loses
    PUBLISH   a new connection to an address of this host: is it a published port?
    NAMES     to this host itself: sandboxes may ask for names
    FENCE     forwarded into or out of an internal network, or with the source address of a network that it does not come from: never
    INGRESS   forwarded towards one of our bridges: may it come in?
    EGRESS    forwarded away from one of our bridges: may it go out?
    HAIRPIN   about to leave for a published port whose sandbox would answer by another way: its source address has to change
    KEEP      about to leave for a published port: its source address stays
    LEAVE     about to leave: does its source address have to change?

FENCE comes first: else a port that another network publishes would be a way out. INGRESS is decided for all networks before EGRESS is
asked, so two networks are strangers whatever the order in which they were made. KEEP is decided for all before LEAVE is asked: a port of
one network that is reached from another by the host's address sees who asks. NAMES is for hosts that drop what comes to
them; it does something only where an accept is final, so a backend for which it is not has no such stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from netbox.spec import PortSpec

GUARD, LOSS, PUBLISH, FENCE, INGRESS, EGRESS = "guard", "loss", "publish", "fence", "ingress", "egress"
HAIRPIN, KEEP, LEAVE, NAMES = "hairpin", "keep", "leave", "names"
STAGES = (GUARD, LOSS, FENCE, INGRESS, EGRESS, HAIRPIN, KEEP, LEAVE, NAMES, PUBLISH)
"""In the order in which rules are put in place: what protects comes before what opens."""

NAMES_PORT = 53
LOOPBACK, LOOPBACK6 = "127.0.0.0/8", "::1/128"
ANY_ADDRESS, ANY_ADDRESS6 = "0.0.0.0", "::"

ACCEPT, DROP, MASQUERADE = "accept", "drop", "masquerade"
ESTABLISHED = ("RELATED", "ESTABLISHED")
TRANSLATED = ("DNAT",)


class Redirect(NamedTuple):
    """The verdict of a published port: on to ``address``; the first matched port becomes ``port``, the second ``port + 1``, …"""

    address: str
    port: int


@dataclass(frozen=True)
class Rule:
    """What is matched, and the verdict: accept, drop, masquerade or a ``Redirect``. Empty means any; a leading ``!`` negates an address
    or interface.

    ``ports`` are the first and last destination port. ``states`` are conntrack's: ESTABLISHED, RELATED, DNAT. ``probability`` is the share
    of packets that match, above 0 and up to 1. It is about IPv4, or with ``ipv6`` about IPv6.
    """

    stage: str
    verdict: str | Redirect
    in_interface: str = ""
    out_interface: str = ""
    source: str = ""
    destination: str = ""
    protocol: str = ""
    ports: tuple[int, int] | None = None
    states: tuple[str, ...] = ()
    probability: float = 1.0
    ipv6: bool = False


@dataclass(frozen=True)
class RuleGroup:
    """The rules of one owner. They come and go together."""

    owner: str
    rules: tuple[Rule, ...]


class InstalledRule(NamedTuple):
    """A rule that stands in the kernel: whose it is and where it stands (``nat NETBOX-PUBLISH 3``)."""

    owner: str
    place: str


class Difference(NamedTuple):
    """Something about our rules that is not as it should be: ``missing``, or ``foreign`` (somebody put it among them, or edited it)."""

    kind: str
    owner: str
    what: str


class FirewallBackend(Protocol):
    """Puts groups of rules into the kernel. What nobody uses is not there: the first group brings the base (chains, jumps), the last
    takes it along. It works in the calling thread's network namespace, which may be a sandbox's.

    Every method raises ``FirewallError`` when the kernel refuses, ``Unsupported`` when this host cannot, ``NoPermission`` without root.
    """

    name: str

    def apply(self, add: Sequence[RuleGroup] = (), remove: Sequence[str] = ()) -> None:
        """Takes away the groups of the owners ``remove`` and puts in the groups ``add``; a group whose owner has rules already replaces
        them.

        Owners without rules are fine. Per table it is one commit: readers see all of it or nothing.
        """

    def owners(self) -> set[str]:
        """The owners that have rules."""

    def rules(self) -> list[InstalledRule]:
        """Our rules as the kernel has them."""

    def places(self, groups: Sequence[RuleGroup]) -> list[list[str | None]]:
        """Where each rule of each group stands in the kernel, ``None`` for one that is missing. Changes nothing."""

    def take_down(self) -> None:
        """Takes everything of ours away."""

    def commands(self, add: Sequence[RuleGroup], base: bool, base6: bool = False) -> list[str]:
        """The commands that a person would type to put the groups in, with ``base`` including chains and jumps for IPv4, with ``base6``
        for IPv6. Has no effect.
        """

    def differences(self, groups: Sequence[RuleGroup]) -> list[Difference]:
        """What is missing of the groups and of the base, and what is foreign among them. Rules of owners that are not asked about, and
        rules in others' chains, are none. Changes nothing.
        """

    def repair(self, groups: Sequence[RuleGroup]) -> None:
        """Makes our chains anew, holding the groups and nothing else; per table it is one commit, and connections go on."""


def is_owner(comment: str) -> bool:
    """Whether a comment names an owner of rules."""
    return comment.startswith(("network:", "sandbox:", "impair:")) and " " not in comment


def backend() -> FirewallBackend:
    """The backend for this host; see ``netbox.network.firewall_choice``."""
    from netbox.network import firewall_choice

    return firewall_choice.backend(firewall_choice.choose().name)


def network_rules(owner: str, bridge: str, subnet: str, internal: bool = False) -> RuleGroup:
    """What a network needs, whoever is on it.

    - Its sandboxes reach one another and the outside; from outside only replies and published ports reach them. They cannot send with a
      foreign source address. Nobody else is forwarded with one of theirs, or with 127.0.0.1: a forged frame could slip into a conversation
      of theirs, or of this host with a port published on 127.0.0.1. Packets from or to 127.0.0.0/8 do not come in by the bridge:
      ``route_localnet`` would let them through to the host's own services.
    - Towards the outside they have the host's address. A published port sees the client's own address; only when it is reached from the
      same network (the answer would take the short way otherwise, and the client would not know it) or from the host by 127.0.0.1 it sees
      the host's.
    - An ``internal`` one: its sandboxes reach one another and the host, and nothing is forwarded into it or out of it.
    """
    if internal:
        return RuleGroup(
            owner,
            (
                Rule(GUARD, DROP, in_interface=bridge, destination=LOOPBACK),
                Rule(GUARD, DROP, in_interface=bridge, source=LOOPBACK),
                Rule(FENCE, DROP, in_interface=bridge, out_interface=f"!{bridge}"),
                Rule(FENCE, DROP, in_interface=f"!{bridge}", out_interface=bridge),
                Rule(INGRESS, ACCEPT, in_interface=bridge, out_interface=bridge),
            ),
        )
    return RuleGroup(
        owner,
        (
            Rule(GUARD, DROP, in_interface=bridge, destination=LOOPBACK),
            Rule(GUARD, DROP, in_interface=bridge, source=LOOPBACK),
            Rule(FENCE, DROP, in_interface=f"!{bridge}", source=subnet),
            Rule(FENCE, DROP, out_interface=bridge, source=LOOPBACK),
            Rule(INGRESS, ACCEPT, out_interface=bridge, states=ESTABLISHED),
            Rule(INGRESS, ACCEPT, in_interface=bridge, out_interface=bridge),
            Rule(INGRESS, ACCEPT, out_interface=bridge, states=TRANSLATED),
            Rule(INGRESS, DROP, out_interface=bridge),
            Rule(EGRESS, ACCEPT, in_interface=bridge, source=subnet),
            Rule(EGRESS, DROP, in_interface=bridge),
            Rule(HAIRPIN, MASQUERADE, source=subnet, destination=subnet, out_interface=bridge, states=TRANSLATED),
            Rule(HAIRPIN, MASQUERADE, source=LOOPBACK, out_interface=bridge),
            Rule(KEEP, ACCEPT, out_interface=bridge, states=TRANSLATED),
            Rule(LEAVE, MASQUERADE, source=subnet, out_interface=f"!{bridge}"),
        ),
    )


def dual_stack(group: RuleGroup, subnet: str, subnet6: str) -> RuleGroup:
    """The rules of a network for IPv4, and the same for IPv6. ICMPv6 needs none of its own: neighbour discovery between sandboxes stays
    inside of the bridge, and that with the host is not forwarded.
    """
    counterparts = {subnet: subnet6, LOOPBACK: LOOPBACK6}

    def turned(value: str) -> str:
        sign, plain = ("!", value[1:]) if value.startswith("!") else ("", value)
        return sign + counterparts.get(plain, plain)

    return RuleGroup(
        group.owner,
        (
            *group.rules,
            *(replace(rule, source=turned(rule.source), destination=turned(rule.destination), ipv6=True) for rule in group.rules),
        ),
    )


def with_names(group: RuleGroup, bridge: str, gateways: Iterable[str], port: int) -> RuleGroup:
    """The rules of a network with names, which are served at a port of its gateway addresses: what comes from the bridge gets there, and
    questions for port 53 do if it is another one.
    """
    rules = list(group.rules)
    for gateway in gateways:
        for protocol in ("udp", "tcp"):
            rules.append(Rule(NAMES, ACCEPT, in_interface=bridge, destination=gateway, protocol=protocol, ports=(port, port)))
            if port != NAMES_PORT:
                rules.append(Rule(PUBLISH, Redirect(gateway, port), destination=gateway, protocol=protocol, ports=(NAMES_PORT, NAMES_PORT)))
    return RuleGroup(group.owner, tuple(rules))


def publish_rules(owner: str, address: str, ports: Iterable[PortSpec], neighbours: Iterable[str] = ()) -> RuleGroup:
    """A sandbox's published ports on its address of one family: one rule for each, also for a range. The client's source address stays as
    it is.

    ``neighbours`` are the subnets of further networks that the sandbox is on: it would answer to a client there directly.
    """
    ipv6 = ":" in address
    return RuleGroup(
        owner,
        (
            *(Rule(HAIRPIN, MASQUERADE, source=subnet, destination=address, states=TRANSLATED, ipv6=ipv6) for subnet in neighbours),
            *_redirects(address, ports),
        ),
    )


def _redirects(address: str, ports: Iterable[PortSpec]) -> Iterable[Rule]:
    return (
        Rule(
            PUBLISH,
            Redirect(address, port.port),
            destination="" if port.host_ip in (ANY_ADDRESS, ANY_ADDRESS6) else port.host_ip,
            protocol=port.protocol,
            ports=(port.host_port, port.host_port + port.length - 1),
            ipv6=":" in address,
        )
        for port in ports
    )
