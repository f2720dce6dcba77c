"""The network layer as the engine sees it: plan, take, attach, publish; and take down what nobody uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence

from netbox import names
from netbox.errors import Conflict, NotFound, UsageError
from netbox.network import (
    addressing,
    docker_user,
    drivers,
    firewall,
    firewall_choice,
    firewall_switch,
    ipam,
    modes,
    naming,
    networks,
    parents,
    ports,
    resolve,
)
from netbox.network.addressing import Chosen
from netbox.network.facts import boot_id
from netbox.network.plan import Endpoint, JoinTarget, NetworkPlan, Prepared, Traffic
from netbox.network.undo import UndoContext
from netbox.settings import Settings
from netbox.spec import NetworkAttachment, NetworkSpec, PortSpec
from netbox.state.journal import Journal, Recorder
from netbox.state.rows import NetworkRow
from netbox.state.store import Store

INTERFACES_MAX = 64  # of one sandbox


def check(spec: NetworkSpec, hostname: str | None) -> None:
    """Whether the request makes sense, whatever the host looks like. Pure.

    Raises:
        UsageError: an option has no meaning in the mode, or an address is malformed.
        NotFound: there is no such mode.
    """
    modes.mode(spec.mode).check(spec, hostname)
    if len(spec.attachments) > INTERFACES_MAX:
        raise UsageError(f"a sandbox can be on {INTERFACES_MAX} networks, {len(spec.attachments)} are given", "leave some out")
    for item in spec.attachments:
        if item.mac_address is not None:
            ipam.check_mac(item.mac_address)
        for option, address, example in (("--ip", item.ip, "10.210.0.5"), ("--ip6", item.ip6, "fd00:1::5")):
            if address is not None and not _is_address(address, ":" in example):
                kind = "IPv6" if ":" in example else "IPv4"
                raise UsageError(f"{option} {address}: not an {kind} address", f"write it as {example}")


def _is_address(text: str, is_ipv6: bool) -> bool:
    try:
        ipam.number(text)
    except ValueError:
        return False
    return (":" in text) == is_ipv6


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
        endpoints: list[Endpoint] = []
        with networks.locked(self._settings):
            firewall_switch.follow(self._store)
            base = networks.any_stands(self._store)
            recorder.record("lease", sandbox_id=sandbox_id)
            for index, attachment in enumerate(spec.attachments):
                row, stood = networks.ensure(self._store, attachment.network)
                endpoints.append(self._lease(row, sandbox_id, attachment, index, stood))
            docker_user.follow(self._store)
        naming.changed(self._store, [endpoint.network for endpoint in endpoints])
        check_endpoints(endpoints, spec)
        if spec.ports:
            recorder.record("port", sandbox_id=sandbox_id)
        taken, sockets = ports.reserve(self._store, sandbox_id, spec.ports, _has_ipv6(endpoints))
        return Prepared(mode.prepare(request, _facts(endpoints, taken, base)), sockets)

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
        endpoints = []
        for index, attachment in enumerate(spec.attachments):
            row, stands = networks.preview(self._store, attachment.network)
            endpoints.append(self._lease_preview(row, sandbox_id, attachment, index, stands))
        check_endpoints(endpoints, spec)
        taken = ports.check(self._store, sandbox_id, spec.ports, _has_ipv6(endpoints))
        return mode.prepare(request, _facts(endpoints, taken, networks.any_stands(self._store)))

    def reserve(self, sandbox_id: str, spec: NetworkSpec) -> None:
        """Keeps the addresses of ``--ip`` and ``--ip6`` on user-defined networks for a sandbox, from now until it is removed.

        Raises:
            UsageError, NotFound, Conflict: as ``prepare``.
        """
        for attachment in spec.attachments:
            row = self._store.network(attachment.network)
            if (attachment.ip or attachment.ip6) and row is not None and attachment.network != names.DEFAULT_NETWORK:
                self._lease(row, sandbox_id, attachment, 0, False, boot="")

    def connect(self, sandbox_id: str, attachment: NetworkAttachment, taken_names: Collection[str], recorder: Recorder) -> Endpoint:
        """Takes an address on a further network for a running sandbox whose interfaces are ``taken_names``. Under the networks' lock.

        Raises:
            UsageError, NotFound, Conflict, HostError: as ``prepare``.
        """
        index = next((number for number in range(INTERFACES_MAX) if f"eth{number}" not in taken_names), None)
        if index is None:
            raise Conflict(f"the sandbox is on {INTERFACES_MAX} networks, and that is the most", "disconnect it from one first")
        firewall_switch.follow(self._store)
        row, stood = networks.ensure(self._store, attachment.network)
        docker_user.follow(self._store)
        recorder.record("lease", sandbox_id=sandbox_id, network=attachment.network)
        endpoint = self._lease(row, sandbox_id, attachment, index, stood)
        naming.changed(self._store, [attachment.network])
        return endpoint

    def build(self, endpoint: Endpoint, netns_fd: int, recorder: Recorder) -> None:
        """Builds one further interface of a running sandbox; the default route stays where it is.

        Raises:
            HostError: the kernel refuses.
        """
        drivers.of(endpoint).connect(endpoint, netns_fd, recorder, is_default=False)

    def reroute(self, plan: NetworkPlan, netns_fd: int, published_on: str) -> None:
        """Sends the default route of a running sandbox the way that its plan says, and its published ports too; what goes to a port that
        was ``published_on`` that address already goes on. Doing it twice is harmless.

        Raises:
            HostError, FirewallError: the kernel refuses.
        """
        if plan.way_out is not None:
            drivers.move_default_route(plan.way_out, netns_fd, plan.way_out.gateway)
        if plan.way_out6 is not None:
            drivers.move_default_route(plan.way_out6, netns_fd, plan.way_out6.gateway6)
        if plan.ports:
            firewall_switch.publish_again(self._store, plan)
            ports.forget(plan.ports, keep_translated=",".join(plan.published_on) == published_on)

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
        group = firewall_switch.published(plan)
        with firewall_choice.chosen() as backend:
            # Until the record says what is published, the row does: another backend may take over, another program flush the rules.
            recorder.record("rules", **firewall_switch.published_row(plan, backend.name))
            backend.apply([group])
        ports.forget(plan.ports)

    def files(self, plan: NetworkPlan) -> dict[str, str]:
        """The contents of ``hosts``, ``hostname`` and ``resolv.conf``; empty in mode container, see ``plan.shared_files``."""
        return modes.planned(plan).files(plan, resolve.host_files())

    def names_changed(self, networks: Iterable[str]) -> None:
        """Publishes the new name of a sandbox on its networks.

        Raises:
            HostError: the names cannot be written.
        """
        naming.changed(self._store, networks)

    def ensure_names(self) -> bool:
        """Puts a killed name service back; whether there was one.

        Raises:
            HostError: it cannot be started.
        """
        return naming.ensure_running(self._settings)

    def end_idle_names(self) -> bool:
        """Ends what is left of a name service without networks; whether there was something.

        Raises:
            HostError: it does not end.
        """
        return naming.stop_if_idle(self._settings)

    def not_found(self, name: str) -> NotFound:
        """The error for a name that no network has."""
        return networks.not_found(self._store, name)

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
            return _sum(drivers.of(endpoint).traffic(endpoint, pid) for endpoint in plan.endpoints)
        from netbox.kernel import netlink

        return _sum(Traffic(*counters) for counters in netlink.traffic(pid))

    def describe(self, plan: NetworkPlan, name: str = "") -> list[str]:
        """The commands that a person would type to build the plan for a sandbox of this name, the network included unless it stands.

        Raises:
            Conflict, HostError: the names of the network could not be served.
        """
        commands: list[str] = []
        base, base6 = not plan.base_stands, not networks.any_stands6(self._store)
        for endpoint in plan.endpoints:
            if not endpoint.standing and endpoint.on_lan:
                commands += parents.describe(endpoint.parent)
            elif not endpoint.standing:
                options = {"internal": endpoint.internal, "subnet6": endpoint.subnet6, "gateway6": endpoint.gateway6}
                row = NetworkRow(endpoint.network, endpoint.bridge, endpoint.subnet, endpoint.gateway, endpoint.mtu, 0.0, options)
                commands += networks.describe(
                    row, naming.expected_port(self._settings, row), base, base6, networks.forwarding6(self._store, row)
                )
                base, base6 = False, base6 and not row.subnet6
        commands += modes.planned(plan).describe(plan) + naming.describe_member(plan, name)
        if plan.ports:
            commands += firewall.backend().commands([firewall_switch.published(plan)], base=False)
        return commands

    def undo_context(self) -> UndoContext:
        """What the handlers of ``netbox.network.undo`` need."""
        return UndoContext(self._settings, self._store)

    def _lease(
        self, row: NetworkRow, sandbox_id: str, attachment: NetworkAttachment, index: int, stood: bool, boot: str | None = None
    ) -> Endpoint:
        choice: list[Chosen] = []

        def choose(taken: dict[str, str], released: list[str]) -> Chosen:
            choice.append(addressing.choose(self._store, row, sandbox_id, attachment, taken, released))
            return choice[-1]

        boot = boot_id() if boot is None else boot
        kept = {"static": attachment.ip is not None, "static6": attachment.ip6 is not None}
        self._store.allocate_lease(row.name, sandbox_id, boot, choose, **kept, aliases=attachment.aliases)
        return _endpoint(row, sandbox_id, choice[-1], attachment, index, stood)

    def _lease_preview(self, row: NetworkRow, sandbox_id: str, attachment: NetworkAttachment, index: int, stood: bool) -> Endpoint:
        def choose(taken: dict[str, str], released: list[str]) -> Chosen:
            raise _Preview(addressing.choose(self._store, row, sandbox_id, attachment, taken, released))

        try:
            self._store.allocate_lease(row.name, sandbox_id, boot_id(), choose)
        except _Preview as preview:  # the transaction was rolled back
            return _endpoint(row, sandbox_id, preview.chosen, attachment, index, stood)
        raise AssertionError("unreachable: choose always raises")


class _Preview(Exception):
    """Carries a choice out of a transaction that must not be committed."""

    def __init__(self, chosen: Chosen) -> None:
        super().__init__(*chosen)
        self.chosen = chosen


def _endpoint(row: NetworkRow, sandbox_id: str, chosen: Chosen, attachment: NetworkAttachment, index: int, stood: bool) -> Endpoint:
    return Endpoint(
        network=row.name,
        bridge="" if row.parent else row.bridge,
        subnet=row.subnet,
        gateway=row.gateway,
        address=chosen.address,
        mac_address=chosen.mac,
        mtu=row.mtu,
        interface=f"eth{index}",
        host_interface="" if row.parent else names.veth(sandbox_id, index),
        internal=networks.is_internal(row),
        gw_priority=attachment.gw_priority,
        aliases=attachment.aliases,
        standing=stood,
        driver=row.driver,
        parent=row.parent,
        mode=row.options.get("macvlan_mode") or "",
        subnet6=row.subnet6,
        gateway6=row.gateway6,
        address6=chosen.address6,
    )


def _facts(endpoints: Iterable[Endpoint], taken: tuple[PortSpec, ...], base_stands: bool) -> modes.Facts:
    ordered = tuple(sorted(endpoints, key=lambda endpoint: endpoint.precedence))
    return modes.Facts(os.uname().nodename, ordered, taken, all(endpoint.standing for endpoint in ordered), base_stands)


def check_endpoints(endpoints: Sequence[Endpoint], spec: NetworkSpec) -> None:
    """Whether what was asked for can be had on these networks. Raises ``UsageError``."""
    lan = next((endpoint for endpoint in endpoints if endpoint.on_lan), None)
    if spec.rate_in and lan is not None:
        from netbox.network import shaping

        raise shaping.no_outer_end(lan, "--net-rate-in")
    first = min(endpoints, key=lambda endpoint: endpoint.precedence, default=None)
    if not spec.ports or (first is not None and not first.internal and not first.on_lan):
        return
    if first is not None and first.on_lan:
        raise UsageError(
            f"cannot publish a port: the sandbox's way out is the macvlan network {first.network}, where it has an address of the LAN",
            "leave -p out, or add a bridge network with the highest gw-priority, such as --network name=bridge,gw-priority=1",
        )
    where = f"on internal networks only ({spec.title})" if endpoints else "on no network"
    raise UsageError(f"cannot publish a port: the sandbox is {where}", "add a network with a way out, such as --network bridge")


def _has_ipv6(endpoints: Iterable[Endpoint]) -> bool:
    """Whether ports are published for IPv6 too."""
    ordered = sorted(endpoints, key=lambda endpoint: endpoint.precedence)
    first = next((endpoint for endpoint in ordered if endpoint.address6 and not endpoint.internal), None)
    return first is not None and not first.on_lan


def _sum(counters: Iterable[Traffic]) -> Traffic:
    return Traffic(*(sum(column) for column in zip(*counters, strict=True)))
