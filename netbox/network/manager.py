"""The network layer as the engine sees it: plan, take, attach, publish; and take down what nobody uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from netbox import names
from netbox.errors import Conflict, HostError, UsageError
from netbox.network import firewall, firewall_choice, firewall_switch, ipam, modes, networks, ports, resolve
from netbox.network.facts import boot_id, host_facts
from netbox.network.plan import Endpoint, JoinTarget, NetworkPlan, Prepared, Traffic
from netbox.network.undo import UndoContext
from netbox.settings import Settings
from netbox.spec import NetworkSpec
from netbox.state.journal import Journal, Recorder
from netbox.state.rows import NetworkRow
from netbox.state.store import Store

INTERFACE = "eth0"


def check(spec: NetworkSpec, hostname: str | None) -> None:
    """Whether the request makes sense, whatever the host looks like. Pure.

    Raises:
        UsageError: an option has no meaning in the mode, or an address is malformed.
        NotFound: there is no such mode.
    """
    modes.mode(spec.mode).check(spec, hostname)
    if spec.mac_address is not None:
        ipam.check_mac(spec.mac_address)
    if spec.ip is not None:
        try:
            ipam.number(spec.ip)
        except ValueError:
            raise UsageError(f"--ip {spec.ip}: not an IPv4 address", "write it as 10.210.0.5") from None


class NetworkManager:
    """See the module. Safe for threads."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def prepare(self, sandbox_id: str, hostname: str | None, spec: NetworkSpec, target: JoinTarget | None, recorder: Recorder) -> Prepared:
        """Takes what the sandbox needs of the host: its network (brought up if nobody else uses it), an address, its host ports.

        ``hostname`` is ``None`` when nobody asked for one.

        Raises:
            UsageError, NotFound: the request makes no sense.
            Conflict: an address, MAC or port is taken; the message names its holder.
            HostError, Unsupported, NoPermission: the host refuses.
        """
        check(spec, hostname)
        mode = modes.mode(spec.mode)
        request = modes.Request(sandbox_id, hostname, spec, target)
        if not mode.uses_network:
            return Prepared(mode.prepare(request, modes.Facts(os.uname().nodename)), [])
        name = names.DEFAULT_NETWORK
        with networks.locked(self._settings):
            firewall_switch.follow(self._store)
            row, stood = networks.ensure(self._store, name)
            recorder.record("lease", sandbox_id=sandbox_id)
            endpoint = self._lease(row, sandbox_id, spec)
        if spec.ports:
            recorder.record("port", sandbox_id=sandbox_id)
        taken, sockets = ports.reserve(self._store, sandbox_id, spec.ports)
        return Prepared(mode.prepare(request, modes.Facts(os.uname().nodename, (endpoint,), taken, stood)), sockets)

    def preview(self, sandbox_id: str, hostname: str | None, spec: NetworkSpec, target: JoinTarget | None) -> NetworkPlan:
        """The plan that ``prepare`` would make now, with no effect. Ports to be chosen stay 0.

        Raises:
            UsageError, NotFound, Conflict: as ``prepare``.
        """
        check(spec, hostname)
        mode = modes.mode(spec.mode)
        request = modes.Request(sandbox_id, hostname, spec, target)
        if not mode.uses_network:
            return mode.prepare(request, modes.Facts(os.uname().nodename))
        row, stands = self._network_preview(names.DEFAULT_NETWORK)
        endpoint = self._lease_preview(row, sandbox_id, spec)
        if spec.ports:
            ports.check(self._store, sandbox_id, spec.ports)
        return mode.prepare(request, modes.Facts(os.uname().nodename, (endpoint,), spec.ports, stands))

    def attach(self, plan: NetworkPlan, netns_fd: int, recorder: Recorder) -> None:
        """Builds the interfaces of a sandbox's namespace. Does nothing in the modes host and container.

        Raises:
            HostError: the kernel refuses.
        """
        modes.planned(plan).attach(plan, netns_fd, recorder)

    def publish(self, plan: NetworkPlan, recorder: Recorder) -> None:
        """Opens the published ports. Last, when the sandbox answers to its address: a packet that came before would wait a second for ARP.

        Raises:
            FirewallError, Unsupported, NoPermission: the rules cannot be put in.
        """
        if not plan.ports:
            return
        owner = names.sandbox_owner(plan.sandbox_id)
        udp = [(port.host_ip, port.host_port, port.length) for port in plan.ports if port.protocol == "udp"]
        with firewall_choice.chosen() as backend:
            # The row says enough to put the rules in again: another backend may take over, another program may flush them.
            recorder.record(
                "rules", owner=owner, udp=udp, backend=backend.name, address=plan.address, ports=[list(port) for port in plan.ports]
            )
            backend.apply([firewall.publish_rules(owner, plan.address, plan.ports)])
        for host_ip, first, count in udp:
            from netbox.kernel import conntrack

            # Datagrams that came before the rule have made an entry that bypasses it, and that every further one keeps alive.
            conntrack.flush_udp(host_ip, first, count)

    def files(self, plan: NetworkPlan) -> dict[str, str]:
        """The contents of ``hosts``, ``hostname`` and ``resolv.conf``; empty in mode container, see ``plan.shared_files``."""
        return modes.planned(plan).files(plan, resolve.host_files())

    def has_idle(self) -> bool:
        """Whether a network stands that no sandbox uses. Cheap."""
        return networks.has_idle(self._store)

    def release_idle(self, replay: Callable[[Journal], None]) -> list[str]:
        """Takes down the networks that no sandbox uses, and returns their names. ``replay`` undoes the rows of a journal.

        Raises:
            CleanupError: what ``replay`` could not undo.
        """
        return networks.release_idle(self._store, self._settings, replay)

    def statistics(self, plan: NetworkPlan, pid: int) -> Traffic:
        """What a sandbox has received and sent; ``pid`` is a process in its namespace. In mode host it is the host's traffic, loopback
        left out.

        Raises:
            HostError: the interface or the process is gone.
        """
        if plan.endpoints:
            return _sum(self._endpoint_traffic(endpoint) for endpoint in plan.endpoints)
        from netbox.kernel import netlink  # loads pyroute2

        return _sum(Traffic(*counters) for counters in netlink.traffic(pid))

    def describe(self, plan: NetworkPlan) -> list[str]:
        """The commands that a person would type to build the plan, the network included unless it stands."""
        commands: list[str] = []
        if plan.endpoints and not plan.standing:
            for endpoint in plan.endpoints:
                row = NetworkRow(endpoint.network, endpoint.bridge, endpoint.subnet, endpoint.gateway, endpoint.mtu, 0.0, {})
                commands += networks.describe(row)
        commands += modes.planned(plan).describe(plan)
        if plan.ports:
            group = firewall.publish_rules(names.sandbox_owner(plan.sandbox_id), plan.address, plan.ports)
            commands += firewall.backend().commands([group], base=False)
        return commands

    def undo_context(self) -> UndoContext:
        """What the handlers of ``netbox.network.undo`` need."""
        return UndoContext(self._settings, self._store)

    def _lease(self, row: NetworkRow, sandbox_id: str, spec: NetworkSpec) -> Endpoint:
        choice: dict[str, str] = {}

        def choose(taken: dict[str, str], released: list[str]) -> tuple[str, str]:
            address, mac = self._choose(row, spec, taken, released)
            choice["mac"] = mac
            return address, mac

        address = self._store.allocate_lease(row.name, sandbox_id, boot_id(), choose)
        return _endpoint(row, sandbox_id, address, choice["mac"])

    def _lease_preview(self, row: NetworkRow, sandbox_id: str, spec: NetworkSpec) -> Endpoint:
        def choose(taken: dict[str, str], released: list[str]) -> tuple[str, str]:
            raise _Preview(*self._choose(row, spec, taken, released))

        try:
            self._store.allocate_lease(row.name, sandbox_id, boot_id(), choose)
        except _Preview as preview:  # the transaction was rolled back
            return _endpoint(row, sandbox_id, preview.address, preview.mac)
        raise AssertionError("unreachable: choose always raises")

    def _choose(self, row: NetworkRow, spec: NetworkSpec, taken: dict[str, str], released: list[str]) -> tuple[str, str]:
        subnet = ipam.Subnet.parse(row.subnet)
        if spec.ip is None:
            address = ipam.next_address(subnet, row.gateway, taken, released)
        else:
            address = ipam.dotted(ipam.number(spec.ip))
            ipam.check_address(subnet, row.gateway, address)
            if address in taken:
                raise Conflict(
                    f"the address {address} is taken by sandbox {self._name(taken[address])}", "choose another one, or stop that sandbox"
                )
        mac = ipam.mac_for(address) if spec.mac_address is None else ipam.check_mac(spec.mac_address)
        for lease in self._store.leases(row.name):
            if lease.mac == mac and taken.get(lease.address) == lease.sandbox_id:
                raise Conflict(
                    f"the MAC {mac} is taken by sandbox {self._name(lease.sandbox_id)}", "choose another one, or stop that sandbox"
                )
        if mac == ipam.mac_for(row.gateway):
            raise Conflict(f"the MAC {mac} is that of the bridge {row.bridge}", "choose another one")
        return address, mac

    def _name(self, sandbox_id: str) -> str:
        row = self._store.sandbox(sandbox_id)
        return row.name if row is not None else names.short_id(sandbox_id)

    def _network_preview(self, name: str) -> tuple[NetworkRow, bool]:
        row, link = self._store.network(name), networks.bridge_link(names.bridge(name))
        if row is not None and link is not None and link.is_up:
            return row, True
        return networks.choose(self._store, name, row, host_facts(frozenset({names.bridge(name)}))), False

    def _endpoint_traffic(self, endpoint: Endpoint) -> Traffic:
        link = networks.bridge_link(endpoint.host_interface)
        if link is None:
            raise HostError(f"the interface {endpoint.host_interface} is gone", "the sandbox has just ended")
        # struct rtnl_link_stats64 of the host's end: what it sends is what the sandbox receives.
        rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = link.traffic
        return Traffic(tx_bytes, tx_packets, tx_errors, tx_dropped, rx_bytes, rx_packets, rx_errors, rx_dropped)


class _Preview(Exception):
    """Carries a choice out of a transaction that must not be committed."""

    def __init__(self, address: str, mac: str) -> None:
        super().__init__(address, mac)
        self.address = address
        self.mac = mac


def _endpoint(row: NetworkRow, sandbox_id: str, address: str, mac: str) -> Endpoint:
    return Endpoint(row.name, row.bridge, row.subnet, row.gateway, address, mac, row.mtu, INTERFACE, names.veth(sandbox_id))


def _sum(counters: Iterable[Traffic]) -> Traffic:
    return Traffic(*(sum(column) for column in zip(*counters, strict=True)))
