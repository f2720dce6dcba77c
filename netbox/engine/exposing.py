"""Who can reach what: every running sandbox and every published port, from its own network, other networks, this host and the LAN.

The answer comes from the rules as they should be, less those that do not stand in the kernel. What others have put among ours, and drops of
other software, are warnings: ``netbox check`` names them too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netbox import names
from netbox.errors import WrongState
from netbox.network import exposure, firewall_choice, firewall_switch, networks, obstacles
from netbox.network.exposure import THIS_HOST, Connection, Step, Walk
from netbox.network.firewall import ANY_ADDRESS, ANY_ADDRESS6, FirewallBackend, RuleGroup
from netbox.network.firewall_lock import exclusive
from netbox.network.plan import Endpoint, NetworkPlan
from netbox.spec import PortSpec

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.state.rows import SandboxRow

OWN, OTHER, HOST, LAN = "own network", "other networks", "this host", "LAN"
FROM = (OWN, OTHER, HOST, LAN)
_ELSEWHERE = "elsewhere"  # the interface of the LAN, whatever its name: no rule of ours names it
_ANYBODY, _ANYBODY6 = "192.0.2.1", "2001:db8::1"  # RFC 5737, RFC 3849
_NO_BRIDGE = "a network that is to come"


@dataclass(frozen=True)
class Reason:
    """A rule that decided, and where it stands. ``place`` is empty where no rule is needed."""

    stage: str
    place: str
    owner: str
    text: str


@dataclass(frozen=True)
class Proof:
    """What a packet ``to`` an address and port showed: whether it ``arrived`` in the sandbox's namespace (``None``: that could not be
    seen), where the rules say that it is ``expected``. ``state`` is what the sender saw, in the words of ``netbox probe``.
    """

    source: str
    to: str
    expected: bool
    arrived: bool | None
    state: str

    @property
    def agrees(self) -> bool:
        """Whether the packet did what the rules say."""
        return self.arrived is self.expected


@dataclass(frozen=True)
class Cell:
    """Whether something is reached from ``source``. ``reachable`` is ``None`` where some of the other networks reach it; ``reached_by``
    names them. ``client`` says whose address the sandbox sees, the client's ``own`` or the ``host``'s. ``proofs`` are there where packets
    were sent (``netbox.packet.proving``).
    """

    source: str
    reachable: bool | None
    reasons: tuple[Reason, ...]
    client: str = ""
    reached_by: tuple[str, ...] = ()
    proofs: tuple[Proof, ...] = ()


@dataclass(frozen=True)
class Row:
    """A published port, or (``port`` is ``None``) everything on an address of a sandbox's own, with a cell for each of ``FROM``."""

    sandbox: str
    network: str
    address: str
    port: PortSpec | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Report:
    """The answer. ``warnings`` are what could make it wrong, a line each."""

    backend: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def disagreements(self) -> list[tuple[Row, Proof]]:
        """Where packets did something else than the rules say."""
        return [(row, proof) for row in self.rows for cell in row.cells for proof in cell.proofs if not proof.agrees]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        rows = []
        for row in self.rows:
            port = row.port and {key: value for key, value in row.port._asdict().items() if key not in ("choices", "with_ipv6")}
            cells = {
                cell.source: {
                    "reachable": cell.reachable,
                    "reached_by": list(cell.reached_by),
                    "client": cell.client or None,
                    "rules": [vars(reason) for reason in cell.reasons],
                    "proofs": [{**vars(proof), "agrees": proof.agrees} for proof in cell.proofs],
                }
                for cell in row.cells
            }
            rows.append({"sandbox": row.sandbox, "network": row.network, "address": row.address, "port": port, "from": cells})
        return {"backend": self.backend, "rows": rows, "warnings": list(self.warnings)}


def report(context: Context, wanted: Sequence[str] = ()) -> Report:
    """Who reaches the sandboxes ``wanted``, by name or id; every running one if none is named.

    Raises:
        NotFound: there is no such sandbox.
        WrongState: one that was named does not run.
        NoPermission, FirewallError: the rules cannot be read.
    """
    context.require_root("read the firewall rules")
    rows = [context.store.find_sandbox(name) for name in wanted] or [row for row in context.store.sandboxes() if row.state == "running"]
    for row in rows:
        if row.state != "running":
            raise WrongState(f"{row.name} does not run: nothing reaches it", f"start it first (netbox start {row.name})")
    with networks.locked(context.settings), exclusive():
        view = _View(context)
    plans = [(row, NetworkPlan.from_json(row.details["network"])) for row in sorted(rows, key=lambda row: row.name)]
    found = [item for row, plan in plans for item in _rows(view, row, plan)]
    return Report(view.backend.name, tuple(found), (*view.warnings, *_warnings(plans)))


class _View:
    """The rules that stand, and the bridges."""

    def __init__(self, context: Context) -> None:
        standing = firewall_switch.standing(context.store)
        self.backend: FirewallBackend = firewall_choice.backend(min(standing) if standing else firewall_choice.choose().name)
        known = firewall_switch.expected(context.store)
        wanted = [*known.networks, *known.sandboxes]
        places = self.backend.places(wanted) if wanted else []
        self.places = {
            (group.owner, rule): place
            for group, row in zip(wanted, places, strict=True)
            for rule, place in zip(group.rules, row, strict=True)
            if place is not None
        }
        self.groups = [
            RuleGroup(group.owner, tuple(rule for rule in group.rules if (group.owner, rule) in self.places)) for group in wanted
        ]
        up = {owner.removeprefix("network:") for owner, _ in context.store.journal_owners() if owner.startswith("network:")}
        self.networks = {row.name: row for row in context.store.networks() if row.name in up and not row.parent}
        self.bridges = {row.bridge: row.subnet for row in self.networks.values() if row.bridge}
        self.bridges6 = {row.bridge: row.subnet6 for row in self.networks.values() if row.subnet6}
        self.names = {names.sandbox_owner(row.id): row.name for row in context.store.sandboxes()}
        certain = [group for group in wanted if group.owner not in known.unfinished]
        self.warnings = [f"{item.kind} ({item.owner or 'of nobody'}): {item.what}" for item in self.backend.differences(certain)]
        if self.warnings:
            self.warnings.append("the rules are not as they should be, what is missing counts as missing: 'netbox repair' puts them back")
        self.warnings += [
            f"other software drops what it does not know in {chain}: what passes netbox's rules may end there ('netbox check')"
            for chain in dict.fromkeys(item.chain for item in obstacles.find(obstacles.FORWARD, list(self.bridges), list(self.bridges6)))
        ]

    def walk(self, interface: str, source: str, destination: str, port: PortSpec | None) -> Walk:
        """A connection to a published port by an address of this host, or to an address of a sandbox's own."""
        connection = Connection(interface, source, destination, port.protocol if port else "tcp", port.host_port if port else 0)
        return exposure.walk(self.groups, connection, port is not None, self.bridges6 if ":" in destination else self.bridges)

    def reasons(self, steps: Iterable[Step]) -> tuple[Reason, ...]:
        """The steps with their places."""
        return tuple(
            Reason(
                step.rule.stage,
                self.places.get((step.owner, step.rule)) or self._base_place(step),
                f"sandbox:{self.names[step.owner]}" if step.owner in self.names else step.owner,
                exposure.sentence(step.rule),
            )
            for step in steps
        )

    def _base_place(self, step: Step) -> str:
        return "nat PREROUTING" if self.backend.name == firewall_choice.IPTABLES else step.rule.stage


def _rows(view: _View, row: SandboxRow, plan: NetworkPlan) -> Iterable[Row]:
    bridged = [endpoint for endpoint in plan.endpoints if not endpoint.on_lan]
    for endpoint in bridged:
        yield _row(view, row, endpoint, None)
        if endpoint.address6:
            yield _row(view, row, _of_ipv6(endpoint), None)
    for port in (its for item in plan.ports for its in item.by_family):
        if ":" not in port.host_ip and plan.entrance is not None:
            yield _row(view, row, plan.entrance, port)
        elif ":" in port.host_ip and plan.entrance6 is not None:
            yield _row(view, row, _of_ipv6(plan.entrance6), port)


def _of_ipv6(endpoint: Endpoint) -> Endpoint:
    """The endpoint as IPv6 sees it."""
    return dataclasses.replace(endpoint, address=endpoint.address6, subnet=endpoint.subnet6, gateway=endpoint.gateway6)


def _row(view: _View, row: SandboxRow, endpoint: Endpoint, port: PortSpec | None) -> Row:
    by = endpoint.address if port is None else (endpoint.gateway if port.host_ip in (ANY_ADDRESS, ANY_ADDRESS6) else port.host_ip)
    own = view.walk(endpoint.bridge, _neighbour(endpoint.subnet, endpoint.address), by, port)
    lan = view.walk(_ELSEWHERE, _anybody(by), by, port)
    local = "127.0.0.1" if port is not None and port.host_ip == ANY_ADDRESS else by
    # A host that speaks to one of its own addresses does so with that address.
    here = view.walk(THIS_HOST, endpoint.gateway if port is None else local, local, port)
    cells = (
        _cell(view, OWN, [("", own)], by),
        _cell(view, OTHER, list(_from_others(view, endpoint, by, port)), by),
        _cell(view, HOST, [("", here)], local),
        _cell(view, LAN, [("", lan)], by),
    )
    return Row(row.name, endpoint.network, endpoint.address, port, cells)


def _from_others(view: _View, endpoint: Endpoint, by: str, port: PortSpec | None) -> Iterable[tuple[str, Walk]]:
    """From each of the other networks that stand; from one that might be made where there is none."""
    others = [item for item in view.networks.values() if item.bridge and item.name != endpoint.network]
    others = [item for item in others if item.subnet6 or ":" not in by]
    if not others:
        yield "", view.walk(_NO_BRIDGE, _anybody(by), by, port)
    for item in sorted(others, key=lambda item: item.name):
        subnet, gateway = (item.subnet6, item.gateway6) if ":" in by else (item.subnet, item.gateway)
        yield item.name, view.walk(item.bridge, _neighbour(subnet, gateway), by, port)


def _cell(view: _View, source: str, walks: Sequence[tuple[str, Walk]], by: str) -> Cell:
    passing = [name for name, item in walks if item.passes]
    steps = tuple(dict.fromkeys(step for _, item in walks for step in item.steps))
    reasons = view.reasons(steps)
    if not reasons:
        reasons = (_without_rule(source, bool(passing)),)
    client = "" if not passing else "own" if all(item.keeps_source for _, item in walks if item.passes) else "host"
    some = passing and len(passing) < len(walks)
    return Cell(source, None if some else bool(passing), reasons, client, tuple(passing) if some else ())


def _without_rule(source: str, passes: bool) -> Reason:
    if not passes:
        return Reason("publish", "", "", "no rule leads this address and port to it")
    text = "what this host itself sends is not filtered" if source == HOST else "no rule stops it"
    return Reason("", "", "", text)


def _anybody(by: str) -> str:
    """An address out there, of the same family."""
    return _ANYBODY6 if ":" in by else _ANYBODY


def _neighbour(subnet: str, taken: str) -> str:
    """Some other address of a subnet."""
    from ipaddress import ip_network

    return next(str(address) for address in ip_network(subnet).hosts() if str(address) != taken)


def _warnings(plans: Iterable[tuple[SandboxRow, NetworkPlan]]) -> Iterable[str]:
    """What netbox's rules say nothing about."""
    for row, plan in plans:
        if plan.mode == "none" or (plan.mode == "bridge" and not plan.endpoints):
            yield f"{row.name} has no network: nothing reaches it"
        elif plan.mode == "host":
            yield f"{row.name} shares this host's network: whoever reaches this host reaches every port that it listens on"
        elif plan.mode == "container":
            yield f"{row.name} shares the network of another sandbox, and is reached as that one is"
        elif plan.mode == "ns":
            yield f"{row.name} is in a network namespace that somebody else made: netbox has no rules for it"
        for endpoint in plan.endpoints:
            if endpoint.on_lan:
                its = " and ".join(endpoint.addresses)
                yield f"{row.name} has the address {its} on the LAN of network {endpoint.network}: everybody there reaches it"
