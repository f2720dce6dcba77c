"""What makes a sandbox's link worse than the machine: rates, loss, delay. Values, and what they become on the two ends of a veth pair.

Both directions are shaped where packets leave a device: the host's end for what goes into the sandbox, the sandbox's end for what comes
out of it. A packet passes, in this order::

    1:  tbf     the link's own rate (--net-rate-in, --net-rate-out)
    2:  netem   delay, jitter, corruption and queued loss for everybody
    3:  tbf     the rate for everybody
    4:  htb     tells the peers apart; below it, for each peer, again netem and tbf

Only what was asked for is there. Loss is a firewall rule with a probability: for what comes out, at the host's PREROUTING; for what goes
in, at the sandbox's, in its own network namespace. Neither tells the sender, unlike a drop where a packet is sent. What goes to sandboxes
of the same network passes the host's firewall only with bridge netfilter; without it netem loses what comes out, in the queue.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from netbox import names
from netbox.errors import Conflict, HostError, Unsupported, UsageError, host_error
from netbox.kernel import traffic_control as tc
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import Request, RouteSocket
from netbox.network import firewall, firewall_choice
from netbox.network.firewall import Rule, RuleGroup
from netbox.network.firewall_lock import exclusive
from netbox.network.plan import Endpoint, NetworkPlan
from netbox.parse.shaping import format_delay, format_rate, format_share

IN, OUT = "in", "out"
_BASE, _NETEM, _RATE, _PEERS, _LEAF = 1, 2, 3, 4, 16  # major numbers of the handles
_PEERS_MAX = 1000
_NEEDS = {
    "tbf": ("a rate needs", "sch_tbf", "CONFIG_NET_SCH_TBF"),
    "htb": ("telling peers apart needs", "sch_htb", "CONFIG_NET_SCH_HTB"),
    "u32": ("telling peers apart needs", "cls_u32", "CONFIG_NET_CLS_U32"),
    "netem": ("delay, jitter and corruption need", "sch_netem", "CONFIG_NET_SCH_NETEM"),
}
_BRIDGE_NETFILTER = "/proc/sys/net/bridge/bridge-nf-call-iptables"


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Impairment(NamedTuple):
    """What happens to the packets of one direction (``in`` to the sandbox, ``out`` of it), as the sandbox sees it.

    ``to`` is the peer as it was asked for, empty for everybody; ``prefixes`` are its addresses. ``rate`` is in bytes a second, ``loss`` and
    ``corrupt`` in percent, ``delay`` and ``jitter`` in nanoseconds; 0 means none. ``until`` is a time of CLOCK_BOOTTIME, ``None`` means as
    long as the sandbox runs. ``in_queue``: netem loses the packets, no rule does; ``placed`` decides it.
    """

    direction: str
    to: str = ""
    prefixes: tuple[str, ...] = ()
    rate: int = 0
    loss: float = 0.0
    corrupt: float = 0.0
    delay: int = 0
    jitter: int = 0
    until: float | None = None
    in_queue: bool = False

    @property
    def queued_loss(self) -> float:
        """What netem is to lose, in percent."""
        return self.loss if self.in_queue else 0.0

    @property
    def needs_netem(self) -> bool:
        """Whether it is more than a rate and rules."""
        return bool(self.delay or self.corrupt or self.queued_loss)

    @property
    def effects(self) -> dict[str, str]:
        """What it does, in the words of the command line: ``{"rate": "10mbit", "loss": "1%"}``."""
        found = {
            "rate": format_rate(self.rate) if self.rate else "",
            "loss": format_share(self.loss) if self.loss else "",
            "corrupt": format_share(self.corrupt) if self.corrupt else "",
            "delay": format_delay(self.delay) if self.delay else "",
            "jitter": format_delay(self.jitter) if self.jitter else "",
        }
        return {key: value for key, value in found.items() if value}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` reverses it."""
        return self._asdict()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Impairment:
        """An impairment out of what ``to_json`` gave."""
        return cls(**{**data, "prefixes": tuple(data["prefixes"])})


def merged(standing: Sequence[Impairment], new: Sequence[Impairment]) -> list[Impairment]:
    """All of them, where a new one replaces that of the same direction and peer.

    Raises:
        Conflict: two peers of one direction overlap, so that it would be unclear what holds for both.
    """
    replaced = {(item.direction, item.prefixes) for item in new}
    result = [item for item in standing if (item.direction, item.prefixes) not in replaced] + list(new)
    for direction in (IN, OUT):
        seen: list[tuple[_Network, str]] = []
        for item in (item for item in result if item.direction == direction):
            for network in map(ipaddress.ip_network, item.prefixes):
                for other, label in seen:
                    if _overlap(network, other):
                        raise Conflict(f"the peer {item.to} overlaps {label}, which is impaired already", "lift that first (--off --to)")
                seen.append((network, item.to))
        if len(seen) > _PEERS_MAX:
            raise Conflict(f"{len(seen)} peers are too many", f"{_PEERS_MAX} can be told apart")
    return result


def _overlap(one: _Network, other: _Network) -> bool:
    return int(one[0]) <= int(other[-1]) and int(other[0]) <= int(one[-1]) and one.version == other.version


# -- queueing disciplines ------------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A request to the kernel and how a person would type it, without ``tc``; ``DEV`` stands for the device."""

    request: Request
    command: str


def steps(index: int, mtu: int, direction: str, base_rate: int, impairments: Sequence[Impairment]) -> list[Step]:
    """What builds one direction of a link on the device ``index``. Pure."""
    wanted = [item for item in impairments if item.direction == direction]
    builder = _Builder(index, mtu)
    at = _At(tc.TC_H_ROOT, 0)
    if base_rate:
        at = builder.add_tbf(at, _BASE, base_rate)
    for item in wanted:
        if not item.prefixes:
            at = builder.add_effects(at, (_NETEM, _RATE), item)
    queued = [item for item in wanted if item.prefixes and (item.rate or item.needs_netem)]
    if queued:
        builder.add_peers(at, direction, queued)
    return builder.made


class _At(NamedTuple):
    """A place in the tree: the parent of what comes next, and the lowest rate of the token buckets above it (0 for none)."""

    parent: int
    rate: int


class _Builder:
    """Collects the steps for one device."""

    def __init__(self, index: int, mtu: int) -> None:
        self._index = index
        self._mtu = mtu
        self.made: list[Step] = []

    def add_tbf(self, at: _At, major: int, rate: int) -> _At:
        burst, limit = tc.tbf_sizes(rate, self._mtu)
        own = tc.handle(major)
        request = tc.add_tbf(self._index, at.parent, own, rate, burst, limit)
        self._add_qdisc(request, at, own, f"tbf rate {format_rate(rate)} burst {burst} limit {limit}")
        return _At(tc.handle(major, 1), min(rate, at.rate or rate))

    def add_effects(self, at: _At, majors: tuple[int, int], item: Impairment) -> _At:
        if item.needs_netem:
            own = tc.handle(majors[0])
            packets = tc.netem_packets(item.delay, item.jitter, at.rate)
            command = f"netem limit {packets}"
            if item.delay:
                command += f" delay {format_delay(item.delay)}" + (f" {format_delay(item.jitter)}" if item.jitter else "")
            if item.corrupt:
                command += f" corrupt {format_share(item.corrupt)}"
            if item.queued_loss:
                command += f" loss {format_share(item.loss)}"
            request = tc.add_netem(self._index, at.parent, own, item.delay, item.jitter, item.corrupt, item.queued_loss, packets)
            self._add_qdisc(request, at, own, command)
            at = _At(tc.handle(majors[0], 1), at.rate)
        return self.add_tbf(at, majors[1], item.rate) if item.rate else at

    def add_peers(self, at: _At, direction: str, queued: Sequence[Impairment]) -> None:
        root = tc.handle(_PEERS)
        self._add_qdisc(tc.add_htb(self._index, at.parent, root, 1), at, root, "htb default 1")
        preference = 1
        for number, item in enumerate((None, *queued), 1):
            own = _At(tc.handle(_PEERS, number), at.rate)
            command = f"class add dev DEV parent {tc.name(root)} classid {tc.name(own.parent)} htb rate 1tbit quantum 60000"
            self.made.append(Step(tc.add_open_class(self._index, root, own.parent), command))
            first = _LEAF + 2 * number
            if item is not None:
                self._add_filters(root, preference, direction, item.prefixes, own.parent)
                preference += len(item.prefixes)
                self.add_effects(own, (first, first + 1), item)
            elif at.rate:
                # The classes have taken the place of the bucket's own queue, which had a limit.
                _, limit = tc.tbf_sizes(at.rate, self._mtu)
                queue = tc.handle(first)
                self._add_qdisc(tc.add_bfifo(self._index, own.parent, queue, limit), own, queue, f"bfifo limit {limit}")

    def _add_filters(self, root: int, preference: int, direction: str, prefixes: Sequence[str], target: int) -> None:
        field, word = (tc.DESTINATION, "dst") if direction == OUT else (tc.SOURCE, "src")
        requests = tc.add_filter(self._index, root, preference, field, prefixes, target)
        for number, (request, prefix) in enumerate(zip(requests, prefixes, strict=True), preference):
            key, protocol = ("ip6", "ipv6") if ":" in prefix else ("ip", "ip")
            match = f"u32 match {key} {word} {prefix} flowid {tc.name(target)}"
            self.made.append(Step(request, f"filter add dev DEV parent {tc.name(root)} protocol {protocol} pref {number} {match}"))

    def _add_qdisc(self, request: Request, at: _At, own: int, command: str) -> None:
        self.made.append(Step(request, f"qdisc add dev DEV {_parent(at.parent)} handle {tc.name(own)} {command}"))


def _parent(parent: int) -> str:
    return tc.name(parent) if parent == tc.TC_H_ROOT else f"parent {tc.name(parent)}"


# -- loss ----------------------------------------------------------------------------------------------------------------------------------


def loss_rules(plan: NetworkPlan, direction: str, impairments: Sequence[Impairment]) -> RuleGroup:
    """The rules for the loss in one direction. Pure."""
    rules = []
    for endpoint, own in [(item, address) for item in plan.endpoints for address in item.addresses]:
        for item in impairments:
            if item.direction != direction or not item.loss or item.in_queue or (direction == OUT and endpoint.on_lan):
                continue
            for peer in item.prefixes or ("",):
                if peer and (":" in peer) != (":" in own):
                    continue
                in_interface = endpoint.interface if direction == IN else endpoint.bridge
                source, destination = (peer, own) if direction == IN else (own, peer)
                rules.append(
                    Rule(
                        firewall.LOSS,
                        firewall.DROP,
                        in_interface=in_interface,
                        source=source,
                        destination=destination,
                        probability=item.loss / 100,
                        ipv6=":" in own,
                    )
                )
    return RuleGroup(names.impairment_owner(plan.sandbox_id), tuple(rules))


def placed(plan: NetworkPlan, impairments: Sequence[Impairment]) -> list[Impairment]:
    """The same, each with the place where its loss happens on this host.

    Raises:
        UsageError: the link is a macvlan one, which has no end on this host where this could be done.
    """
    lan = next((endpoint for endpoint in plan.endpoints if endpoint.on_lan), None)
    for item in impairments:
        if lan is None:
            break
        if item.direction == IN and (item.rate or item.delay or item.corrupt):
            raise no_outer_end(lan, "impair --direction in with a rate, a delay or corruption")
        if item.direction == OUT and item.loss:
            raise no_outer_end(lan, "impair --direction out --loss")
    if _reads_one(_BRIDGE_NETFILTER):
        return list(impairments)
    subnets = [ipaddress.ip_network(subnet) for endpoint in plan.endpoints for subnet in (endpoint.subnet, endpoint.subnet6) if subnet]

    def local(item: Impairment) -> bool:
        return not item.prefixes or any(_overlap(ipaddress.ip_network(one), subnet) for one in item.prefixes for subnet in subnets)

    return [item._replace(in_queue=bool(item.loss) and item.direction == OUT and local(item)) for item in impairments]


def no_outer_end(endpoint: Endpoint, what: str) -> UsageError:
    """The error for what would have to happen at the host's end of a link that has none."""
    return UsageError(
        f"{what}: network {endpoint.network} is a macvlan one, whose links have no end on this host",
        "leave it out, or use a bridge network",
    )


def _reads_one(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


# -- effects -------------------------------------------------------------------------------------------------------------------------------


def apply(
    plan: NetworkPlan,
    netns_fd: int,
    rate_in: int,
    rate_out: int,
    impairments: Sequence[Impairment] = (),
    previous: Sequence[Impairment] = (),
    into_host: Callable[[RuleGroup], None] | None = None,
) -> None:
    """Makes the links of a sandbox so: what stood before is replaced. The sandbox's namespace is ``netns_fd``;
    ``previous`` are the impairments that stood, or may stand in part; ``into_host`` is that of ``lose``.

    Raises:
        Unsupported: the kernel lacks a queueing discipline; the message names its option.
        HostError, FirewallError: the kernel refuses.
    """
    for endpoint in plan.endpoints:
        if endpoint.on_lan and rate_in:
            raise no_outer_end(endpoint, "--net-rate-in")
        if not endpoint.on_lan:
            with RouteSocket() as netlink:
                _queue(netlink, endpoint, endpoint.host_interface, steps_of(IN, rate_in, impairments))
        with inside_netns(netns_fd):
            inside = RouteSocket()
        with inside as netlink:
            _queue(netlink, endpoint, endpoint.interface, steps_of(OUT, rate_out, impairments))
    lose(plan, netns_fd, impairments, previous, into_host)


def lose(
    plan: NetworkPlan,
    netns_fd: int,
    impairments: Sequence[Impairment],
    previous: Sequence[Impairment],
    into_host: Callable[[RuleGroup], None] | None = None,
) -> None:
    """Puts the rules for what gets lost in place of those that stood. ``into_host`` puts rules into the host's firewall where its other
    ones are; without it they go into the backend that is chosen now.

    Raises:
        FirewallError, Unsupported: the kernel refuses.
    """
    lossy = {item.direction for item in (*impairments, *previous) if item.loss}
    if OUT in lossy:
        (into_host or _lose)(loss_rules(plan, OUT, impairments))
    if IN in lossy:
        with inside_netns(netns_fd):
            _lose(loss_rules(plan, IN, impairments))


class steps_of(NamedTuple):
    """The arguments of ``steps`` that do not depend on the device."""

    direction: str
    base_rate: int
    impairments: Sequence[Impairment]


def _queue(netlink: RouteSocket, endpoint: Endpoint, device: str, wanted: steps_of) -> None:
    link = netlink.link(device)
    if link is None:
        raise HostError(f"the interface {device} of the sandbox is gone", "it has just ended, or another program removed it")
    made = steps(link.index, endpoint.mtu, *wanted)
    try:
        # One datagram each, for the first error has to stop the rest: a child without its parent would be put in its place.
        netlink.request(tc.delete_root(link.index))
        for step in made:
            netlink.request(step.request)
    except OSError as error:
        kind = str(error.filename)
        if error.errno == errno.ENOENT and kind == "netem" and any(item.queued_loss for item in wanted.impairments):
            raise Unsupported(
                "cannot lose what goes to sandboxes of the same network: "
                "bridged packets do not pass the firewall here, and the kernel has no netem (CONFIG_NET_SCH_NETEM)",
                "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1, or use --direction in",
            ) from error
        if error.errno == errno.ENOENT and kind in _NEEDS:
            what, module, option = _NEEDS[kind]
            raise Unsupported(
                f"{what} the kernel's {kind}, which is not there ({option})", f"modprobe {module}, or use a kernel that has {option}"
            ) from error
        raise host_error("shape", f"{device} ({kind})", error) from error


def _lose(group: RuleGroup) -> None:
    """Puts the rules into the firewall of the calling thread's network namespace, in place of the owner's old ones."""
    name = ""
    with exclusive():
        if group.rules:
            name = firewall_choice.choose().name
            firewall_choice.backend(name).apply([group])
        firewall_choice.remove_everywhere([group.owner], but=name)


def describe(plan: NetworkPlan, rate_in: int, rate_out: int) -> list[str]:
    """The commands that a person would type for the rates of a start."""
    netns = names.short_id(plan.sandbox_id)
    commands = []
    for endpoint in plan.endpoints:
        for prefix, device, direction, rate in (
            ("tc", endpoint.host_interface, IN, rate_in),
            (f"tc -n {netns}", endpoint.interface, OUT, rate_out),
        ):
            if not device:
                continue
            commands += [f"{prefix} {step.command.replace('DEV', device)}" for step in steps(0, endpoint.mtu, direction, rate, ())]
    return commands
