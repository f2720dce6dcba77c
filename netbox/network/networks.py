"""Networks as a whole: chosen, brought up for the first sandbox, taken down after the last one.

What stands on the host for a network is journaled under ``network:NAME``. Bring-up, the taking of a lease and take-down happen under one
lock, so that a network never goes away between the moment a sandbox finds it standing and the moment it has its lease.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from netbox import names
from netbox.errors import Conflict, HostError, NotFound, Unsupported, host_error
from netbox.kernel import flock, rtnetlink, sysctl
from netbox.kernel.rtnetlink import Link, RouteSocket
from netbox.network import docker_user, firewall, firewall_choice, ipam, naming, parents
from netbox.network import forwarding as forwarding_ipv6
from netbox.network.facts import HostFacts, Occupied, boot_id, host_facts, machine_id
from netbox.network.firewall import RuleGroup
from netbox.network.resolve import host_files, nameservers
from netbox.settings import Settings
from netbox.state.journal import NETWORK, Journal, of_kind
from netbox.state.rows import NetworkRow
from netbox.state.store import Store

IPV6_MTU = 1280  # bytes, the least (RFC 8200)
LOCK_FILE = "network.lock"
LOCK_TIMEOUT = 30.0  # seconds
IP_FORWARD = "net.ipv4.ip_forward"
_OWNER_PREFIX = "network:"


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """The lock under which networks come up, give out leases and go down.

    Raises:
        HostError: it cannot be made, or another process held it for ``LOCK_TIMEOUT`` seconds.
    """
    path = f"{settings.run}/{LOCK_FILE}"
    try:
        os.makedirs(settings.run, mode=0o711, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise host_error("make", path, error) from error
    try:
        if not flock.acquire(fd, LOCK_TIMEOUT):
            raise HostError(f"another netbox held {path} for {LOCK_TIMEOUT:g} s", f"find it with: fuser {path}")
        yield
    finally:
        os.close(fd)


def choose(store: Store, name: str, row: NetworkRow | None, facts: HostFacts) -> NetworkRow:
    """The network as it should stand: the remembered subnet where it is still free, and the MTU of the way out. No effects. The default
    network takes another subnet where the remembered one is not free, and has IPv6 or not as the settings say; one that a user made is as
    it was made.

    Raises:
        NotFound: there is no such network.
        Conflict: the subnet collides with the host's network, and sandboxes use it.
    """
    if row is not None and name == names.DEFAULT_NETWORK:
        row = _in_wanted_families(store, row, facts)
    if row is not None:
        colliding, clash = _first_collision(row, facts)
        if clash is None:
            mtu = row.options.get("mtu") or facts.mtu
            if row.subnet6 and mtu < IPV6_MTU:
                raise HostError(f"network {name} cannot have IPv6: the MTU of the way out is {mtu}, {IPV6_MTU} are needed", "raise it")
            return row._replace(mtu=mtu)
        message = f"the subnet {colliding} of network {name} collides with {clash.description}"
        if name != names.DEFAULT_NETWORK:
            raise Conflict(message, f"take that away, or make the network again with another subnet (netbox network rm {name})")
        if _in_use(store, name):
            raise Conflict(message, "stop the sandboxes on it, then start again")
    elif name != names.DEFAULT_NETWORK:
        raise not_found(store, name)
    subnet = ipam.choose_subnet([item.subnet for item in (*facts.occupied, *reserved_subnets(store, name))])
    made = NetworkRow(name, names.bridge(name), str(subnet), ipam.gateway(subnet), facts.mtu, time.time(), {})
    return _in_wanted_families(store, made, facts)


def _in_wanted_families(store: Store, row: NetworkRow, facts: HostFacts) -> NetworkRow:
    """The default network with IPv6 or without, as the settings say; those who are on it keep what they have."""
    if store.settings.ipv6 == bool(row.subnet6) or _in_use(store, row.name):
        return row
    options = {key: value for key, value in row.options.items() if key not in ("subnet6", "gateway6")}
    if store.settings.ipv6:
        if not forwarding_ipv6.is_supported():
            raise Unsupported(
                f"network {row.name} cannot have IPv6: this kernel has none", "start it without ipv6.disable=1, or unset NETBOX_IPV6"
            )
        occupied = [item.subnet for item in (*facts.occupied, *reserved_subnets(store, row.name))]
        subnet = ipam.choose_subnet(occupied, [ipam.ula_prefix(machine_id())], ipam.USER_PREFIX_LENGTH6)
        options |= {"subnet6": str(subnet), "gateway6": ipam.gateway(subnet)}
    return row._replace(options=options)


def _facts(store: Store, name: str, row: NetworkRow | None) -> HostFacts:
    """The facts about the families that a network with a bridge has, or is to have."""
    ipv6 = bool(row is not None and row.subnet6) or (name == names.DEFAULT_NETWORK and store.settings.ipv6)
    return host_facts(frozenset({names.bridge(name)}), ipv6)


def _first_collision(row: NetworkRow, facts: HostFacts) -> tuple[str, Occupied | None]:
    """The subnet that collides, and with what."""
    for subnet in filter(None, (row.subnet, row.subnet6)):
        clash = collision(ipam.Subnet.parse(subnet), facts.occupied)
        if clash is not None:
            return subnet, clash
    return row.subnet, None


def not_found(store: Store, name: str) -> NotFound:
    """The error for a name that no network has."""
    known = ", ".join(sorted({"bridge", "host", "none", *(row.name for row in store.networks())}))
    return NotFound(f"no such network: {name}", f"there are {known}; make it with 'netbox network create {name}'")


def reserved_subnets(store: Store, name: str) -> list[Occupied]:
    """What the host's own routes do not show, and a new subnet of network ``name`` avoids too: other networks, the host's resolvers."""
    resolvers = [server for server in nameservers(host_files().resolv_conf) if "%" not in server]
    return other_subnets(store, name) + [Occupied(ipam.Subnet.parse(server), f"the resolver {server} of this host") for server in resolvers]


def other_subnets(store: Store, name: str) -> list[Occupied]:
    """The subnets of all networks but ``name``."""
    return [
        Occupied(ipam.Subnet.parse(subnet), f"network {row.name} ({subnet})")
        for row in store.networks()
        for subnet in filter(None, (row.subnet, row.subnet6))
        if row.name != name
    ]


def collision(subnet: ipam.Subnet, occupied: Sequence[Occupied]) -> Occupied | None:
    """What the subnet overlaps."""
    found = ipam.collision(subnet, (item.subnet for item in occupied))
    return next((item for item in occupied if item.subnet == found), None) if found is not None else None


def ensure(store: Store, name: str) -> tuple[NetworkRow, bool]:
    """Brings a network up unless it stands. Call it under the lock. Returns the network, and whether it stood.

    Raises:
        NotFound: there is no such network.
        Conflict: its subnet collides, or a device that is not ours has the bridge's name.
        HostError: the kernel refuses.
    """
    row, journal = store.network(name), store.journal(names.network_owner(name), NETWORK)
    journaled = {item.kind for item in journal.rows()}
    if row is not None and row.parent:
        return _ensure_parent(store, row, journal, "vlan" in journaled)
    link = bridge_link(names.bridge(name))
    if link is not None:
        if link.kind != "bridge" or "bridge" not in journaled:
            raise Conflict(
                f"a device called {link.name} is there, and it is not netbox's", f"remove or rename it: ip link delete {link.name}"
            )
        if row is not None and link.is_up:  # the last step of a bring-up, but for the names
            _serve_names(store, row, journal)
            return row, True
    row = choose(store, name, row, _facts(store, name, row))
    store.put_network(row)
    try:
        _bring_up(store, row, journal, journaled)
        _serve_names(store, row, journal)
    except OSError as error:
        raise host_error("bring up", f"network {name} ({error.filename or row.bridge})", error) from error
    return row, False


def _serve_names(store: Store, row: NetworkRow, journal: Journal) -> None:
    """Where a program of the host has port 53, questions are led to another one: known only once it is taken. Every time: who took it may
    have been killed before he had the rules in.
    """
    taken = naming.serve(store, row, journal)
    if (taken or naming.port(store.settings, row.name)) != naming.PORT:
        with firewall_choice.chosen() as backend:
            backend.apply([standing_rules(store, row)])


def _ensure_parent(store: Store, row: NetworkRow, journal: Journal, recorded: bool) -> tuple[NetworkRow, bool]:
    row, stood = preview(store, row.name)
    store.put_network(row)
    try:
        parents.bring_up(row.parent, row.name, journal, recorded)
    except OSError as error:
        raise host_error("bring up", f"network {row.name} ({row.parent})", error) from error
    return row, stood


def preview(store: Store, name: str) -> tuple[NetworkRow, bool]:
    """The network as ``ensure`` would return it, with no effect.

    Raises:
        NotFound, Conflict, HostError: as ``ensure``.
    """
    row = store.network(name)
    if row is not None and row.parent:
        link = parents.find(row.parent)
        facts = host_facts(frozenset({row.parent}), ipv6=bool(row.subnet6))
        chosen = choose(store, name, row, facts._replace(mtu=link.mtu))
        if chosen.mtu > link.mtu:
            raise Conflict(
                f"the MTU {chosen.mtu} of network {name} is more than that of {link.name}, {link.mtu}", f"raise that of {link.name}"
            )
        return chosen, parents.stands(row.parent)
    link_of_bridge = bridge_link(names.bridge(name))
    if row is not None and link_of_bridge is not None and link_of_bridge.is_up:
        return row, True
    return choose(store, name, row, _facts(store, name, row)), False


def bridge_link(bridge: str) -> Link | None:
    """The device of this name.

    Raises:
        HostError: the kernel refuses to tell.
    """
    try:
        with RouteSocket() as netlink:
            return netlink.link(bridge)
    except OSError as error:
        raise host_error("ask the kernel for", bridge, error) from error


def bridge_sysctls(bridge: str, ipv6: bool = False) -> list[tuple[str, str]]:
    """The sysctls of a bridge device; they go with it. ``route_localnet`` lets 127.0.0.1:PORT of the host be a published port."""
    values = [(f"net.ipv4.conf.{bridge}.route_localnet", "1"), (f"net.ipv4.conf.{bridge}.forwarding", "1")]
    if ipv6:
        # Nobody else has these addresses, so nobody is asked for them; and no sandbox is a router of the host's.
        keys = {"accept_ra": "0", "accept_dad": "0", "disable_ipv6": "0"}
        values += [(f"net.ipv6.conf.{bridge}.{key}", value) for key, value in keys.items()]
    elif os.path.exists("/proc/sys/net/ipv6"):
        # Else a sandbox could make the host believe its router advertisements.
        values.append((f"net.ipv6.conf.{bridge}.disable_ipv6", "1"))
    return values


def release_idle(store: Store, settings: Settings, replay: Callable[[Journal], None]) -> list[str]:
    """Takes down the networks that no sandbox has a lease of, and returns their names.

    Raises:
        CleanupError: what ``replay`` could not undo.
    """
    if not _idle(store):  # without the lock: the usual answer while others still run
        return []
    with locked(settings):
        idle = _idle(store)  # a start may have come in between
        for name in idle:
            take_down(store, name, replay)
    return idle


def has_idle(store: Store) -> bool:
    """Whether ``release_idle`` would find something to do. Asks the database only."""
    return bool(_idle(store))


def _idle(store: Store) -> list[str]:
    standing = [owner.removeprefix(_OWNER_PREFIX) for owner, _ in store.journal_owners() if owner.startswith(_OWNER_PREFIX)]
    return [name for name in standing if not _in_use(store, name)]


def _in_use(store: Store, name: str) -> bool:
    boot = boot_id()
    return any(lease.boot_id == boot for lease in store.leases(name))


def take_down(store: Store, name: str, replay: Callable[[Journal], None]) -> None:
    """Takes a network down that no sandbox uses. Call it under the lock.

    Raises:
        CleanupError: what ``replay`` could not undo.
    """
    replay(store.journal(names.network_owner(name), NETWORK))


def any_stands(store: Store) -> bool:
    """Whether some network with a bridge stands: the firewall's chains are there then."""
    return bool(of_kind(store.database, "network_rules"))


def _forwarding_before(store: Store) -> str:
    """``ip_forward`` as it was before the first of our networks came up: the last one that goes down restores it."""
    boot = boot_id()
    for owner, scope in store.journal_owners(NETWORK):
        for row in store.journal(owner, scope).rows():
            if row.kind == "sysctl" and row.args["name"] == IP_FORWARD and row.args["boot_id"] == boot:
                return str(row.args["old"])
    return sysctl.read(IP_FORWARD)


def _bring_up(store: Store, row: NetworkRow, journal: Journal, journaled: set[str]) -> None:
    owner, bridge = names.network_owner(row.name), row.bridge
    forwarding = _forwarding_before(store)
    internal = is_internal(row)
    backend = firewall.backend()
    ipv6 = forwarding6(store, row)
    rows: list[tuple[str, dict[str, Any]]] = [
        ("sysctl", {"name": IP_FORWARD, "old": forwarding, "boot_id": boot_id()}),
        (forwarding_ipv6.KIND, {"old": ipv6, "boot_id": boot_id()}),
        ("bridge", {"name": bridge}),
        ("network_rules", {"owner": owner, "backend": backend.name}),
    ]
    # Rows that an unfinished take-down left are good enough, the old value of the sysctl is even better than today's.
    held = {item.args.get("backend") for item in journal.rows() if item.kind == "network_rules"}
    known = journaled if backend.name in held else journaled - {"network_rules"}
    needless = {kind for kind, is_so in (("sysctl", forwarding == "1" or internal), (forwarding_ipv6.KIND, not ipv6)) if is_so}
    journal.record_all([item for item in rows if item[0] not in known | needless])
    with RouteSocket() as netlink:
        netlink.request(rtnetlink.add_bridge(bridge, ipam.mac_for(row.gateway), row.mtu))
        link = netlink.link(bridge)
        if link is None:
            raise HostError(f"the bridge {bridge} is gone", "another program removed it; try again")
        for name, value in bridge_sysctls(bridge, bool(row.subnet6)):
            sysctl.write(name, value)
        # What protects comes before what opens; the bridge's being up says that all of it is done.
        backend.apply([rule_group(row)])
        if not internal and sysctl.read(IP_FORWARD) != "1":
            sysctl.write(IP_FORWARD, "1")
        if ipv6:
            forwarding_ipv6.turn_on(ipv6)
        addresses = [rtnetlink.add_address(link.index, *gateway) for gateway in gateways(row)]
        answers = [rtnetlink.add_loopback_route(link.index)] if row.subnet6 else []
        netlink.request(*addresses, rtnetlink.set_up(link.index), *answers)


def forwarding6(store: Store, row: NetworkRow) -> dict[str, str]:
    """What of the host's sysctls changes for the network's IPv6, as it was before; empty where nothing does."""
    if not row.subnet6 or is_internal(row):
        return {}
    return forwarding_ipv6.before(store, [item.bridge for item in store.networks()])


def gateways(row: NetworkRow) -> list[tuple[str, int]]:
    """The bridge's addresses, each with the length of its subnet's prefix."""
    pairs = ((row.gateway, row.subnet), (row.gateway6, row.subnet6))
    return [(gateway, int(subnet.partition("/")[2])) for gateway, subnet in pairs if gateway]


def is_internal(row: NetworkRow) -> bool:
    """Whether the network has no way out."""
    return bool(row.options.get("internal"))


def rule_group(row: NetworkRow, port: int = naming.PORT) -> RuleGroup:
    """The rules of a network whose names are served at a port."""
    group = firewall.network_rules(names.network_owner(row.name), row.bridge, row.subnet, is_internal(row))
    if row.subnet6:
        group = firewall.dual_stack(group, row.subnet, row.subnet6)
    return group if row.name == names.DEFAULT_NETWORK else firewall.with_names(group, row.bridge, [row.gateway], port)


def standing_rules(store: Store, row: NetworkRow) -> RuleGroup:
    """The rules of a network that stands."""
    return rule_group(row, naming.port(store.settings, row.name))


def any_stands6(store: Store) -> bool:
    """Whether some network with a bridge and IPv6 stands: the firewall's chains for IPv6 are there then."""
    standing = {owner for owner, _ in store.journal_owners(NETWORK)}
    return any(row.subnet6 and not row.parent and names.network_owner(row.name) in standing for row in store.networks())


def describe(
    row: NetworkRow, port: int, base: bool = True, base6: bool = False, ipv6_forwarding: Mapping[str, str] | None = None
) -> list[str]:
    """How a network is brought up, its names served at a port, as the commands that a person would type; with ``base`` including the
    firewall's chains, with ``base6`` those for IPv6. No effects.
    """
    return [
        f"ip link add {row.bridge} address {ipam.mac_for(row.gateway)} mtu {row.mtu} type bridge",
        *(f"sysctl -qw {name}={value}" for name, value in bridge_sysctls(row.bridge, bool(row.subnet6))),
        *firewall.backend().commands([rule_group(row, port)], base=base, base6=base6 and bool(row.subnet6)),
        *docker_user.commands(firewall_choice.choose().name, names.network_owner(row.name), row.bridge),
        *([] if is_internal(row) else [f"sysctl -qw {IP_FORWARD}=1"]),
        *(forwarding_ipv6.commands(dict(ipv6_forwarding)) if ipv6_forwarding else []),
        *(
            f"ip address add {gateway}/{length} {'nodad' if ':' in gateway else 'broadcast +'} dev {row.bridge}"
            for gateway, length in gateways(row)
        ),
        f"ip link set {row.bridge} up",
        *([f"ip -6 route add local ::1/128 dev {row.bridge} table local metric {rtnetlink.LOOPBACK_METRIC}"] if row.subnet6 else []),
        *naming.describe(row, port),
    ]
