"""The networks as the Python API and the command line see them: made, listed, removed. Their bridges come and go with their sandboxes."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from netbox import names
from netbox.errors import Conflict, NotFound, UsageError
from netbox.spec import NetworkRequest
from netbox.state.rows import MemberRow, NetworkRow

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.parse.text import PairsLike

BUILT_IN = (names.DEFAULT_NETWORK, "host", "none")


@dataclass(frozen=True)
class Member:
    """A sandbox with an address on a network; ``active`` while it uses it."""

    sandbox_id: str
    name: str
    address: str
    mac_address: str | None
    aliases: tuple[str, ...]
    active: bool
    address6: str | None = None


@dataclass(frozen=True)
class Network:
    """A network. ``driver`` is bridge, macvlan, host or null. ``mtu`` is in bytes, ``None`` for that of the way out or of the parent;
    ``standing`` says whether its bridge is there, with macvlan whether a sandbox is on it. ``users`` are the names of the sandboxes that
    are on it, running or not.
    """

    name: str
    driver: str
    bridge: str | None = None
    subnet: str | None = None
    gateway: str | None = None
    subnet6: str | None = None
    gateway6: str | None = None
    ip_range: str | None = None
    aux_addresses: tuple[tuple[str, str], ...] = ()
    internal: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    mtu: int | None = None
    created_at: float | None = None
    standing: bool = False
    users: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()
    parent: str | None = None
    macvlan_mode: str | None = None
    ip_range6: str | None = None

    @property
    def built_in(self) -> bool:
        """Whether it is one of netbox's own."""
        return self.name in BUILT_IN

    def to_json(self) -> dict[str, Any]:
        """The network as plain JSON values."""
        return {**asdict(self), "labels": dict(self.labels), "aux_addresses": dict(self.aux_addresses)}


class Networks:
    """``Engine.networks``."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def create(
        self,
        name: NetworkRequest | str,
        *,
        subnet: Iterable[str] | str | None = None,
        gateway: Iterable[str] | str | None = None,
        ipv6: bool = False,
        ip_range: Iterable[str] | str | None = None,
        aux_addresses: PairsLike | None = None,
        internal: bool = False,
        labels: PairsLike | None = None,
        options: PairsLike | None = None,
        driver: str | None = None,
    ) -> Network:
        """Makes a network: ``engine.networks.create("front", subnet="10.20.30.0/24")``; without a subnet a free /24 is chosen.

        ``subnet``, ``gateway`` and ``ip_range`` may be one for each family; ``ipv6`` chooses a free /64 of unique local addresses.
        ``options`` are those of ``-o``. With ``driver="macvlan"`` a subnet and the option ``parent`` are needed.

        Raises:
            UsageError: a value makes no sense.
            Conflict: the name or the subnet is taken; the message names by what.
        """
        from netbox.network.definition import define
        from netbox.parse import build_network

        self._context.require_root("make a network")
        request = name
        if isinstance(request, str):
            request = build_network(
                request,
                subnet=subnet,
                gateway=gateway,
                ip_range=ip_range,
                aux_addresses=aux_addresses,
                internal=internal,
                ipv6=ipv6,
                labels=labels,
                options=options,
                driver=driver,
            )
        return self._network(define(self._context.store, self._context.settings, request))

    def get(self, name: str) -> Network:
        """The network of this name.

        Raises:
            NotFound: there is none.
        """
        for network in self.list():
            if network.name == name:
                return network
        raise self._context.network.not_found(name)

    def list(self, filters: Sequence[tuple[str, str]] = ()) -> builtins.list[Network]:
        """Every network, by name, the built-in ones included.

        ``filters`` are (key, value) of name, driver, label, type (builtin, custom) and dangling (true, false): one of the values of each
        key must match.
        """
        rows = self._context.store.networks()
        found = [self._network(row) for row in rows]
        if not any(row.name == names.DEFAULT_NETWORK for row in rows):
            found.append(Network(names.DEFAULT_NETWORK, "bridge", names.DEFAULT_BRIDGE, users=self._users(names.DEFAULT_NETWORK)))
        modes = [(row.name, row.spec["network"]["mode"]) for row in self._context.store.sandboxes()]
        for mode, driver in (("host", "host"), ("none", "null")):
            found.append(Network(mode, driver, users=tuple(sorted(name for name, used in modes if used == mode))))
        return sorted((item for item in found if _matches(item, filters)), key=lambda item: item.name)

    def remove(self, name: str) -> None:
        """Removes a network that no sandbox is on.

        Raises:
            UsageError: it is a built-in one.
            NotFound: there is none.
            Conflict: sandboxes are on it; the message names them.
        """
        from netbox.engine.undo import replay
        from netbox.network import networks

        self._context.require_root("remove a network")
        if name in BUILT_IN:
            raise UsageError(f"network {name} is one of netbox's own and cannot be removed", "its bridge goes with its last sandbox")
        store = self._context.store
        with networks.locked(self._context.settings):
            if store.network(name) is None:
                raise self._context.network.not_found(name)
            self._require_unused(name)
            networks.take_down(store, name, lambda journal: replay(journal, self._context))
            with store.database.transaction():
                self._require_unused(name)  # again: in here nobody can make a sandbox on it
                store.delete_network(name)

    def prune(self, filters: Sequence[tuple[str, str]] = ()) -> builtins.list[str]:
        """Removes every network that no sandbox is on, but the built-in ones; their names. ``filters`` as those of ``list``."""
        removed = []
        for network in self.list(filters):
            if not network.built_in and not network.users:
                try:
                    self.remove(network.name)
                except (Conflict, NotFound):
                    continue  # a sandbox came in between, or another command has removed it
                removed.append(network.name)
        return removed

    def _require_unused(self, name: str) -> None:
        users = self._users(name)
        if users:
            raise Conflict(
                f"network {name} is used by {', '.join(users)}",
                f"remove these sandboxes first, or take them off it (netbox network disconnect {name} {users[0]})",
            )

    def _users(self, name: str) -> tuple[str, ...]:
        return tuple(self._context.store.network_users(name))

    def _network(self, row: NetworkRow) -> Network:
        from netbox.network import networks
        from netbox.network.facts import boot_id

        store, options = self._context.store, row.options
        active = {member.sandbox_id for member in store.network_members(row.name, boot_id())}
        link = networks.bridge_link(row.bridge) if not row.parent else None
        return Network(
            name=row.name,
            driver=row.driver,
            bridge=None if row.parent else row.bridge,
            subnet=row.subnet,
            gateway=row.gateway,
            subnet6=row.subnet6 or None,
            gateway6=row.gateway6 or None,
            ip_range=options.get("ip_range"),
            aux_addresses=tuple(options.get("aux_addresses", {}).items()),
            internal=networks.is_internal(row),
            labels=tuple(options.get("labels", {}).items()),
            mtu=row.mtu or None,
            created_at=row.created_at,
            standing=bool(active) if row.parent else link is not None and link.is_up,
            users=self._users(row.name),
            members=tuple(_member(member, member.sandbox_id in active) for member in store.network_members(row.name)),
            parent=row.parent or None,
            macvlan_mode=options.get("macvlan_mode"),
            ip_range6=options.get("ip_range6"),
        )


def _member(row: MemberRow, active: bool) -> Member:
    return Member(row.sandbox_id, row.name, row.address, row.mac, row.aliases, active, row.address6 or None)


def _matches(network: Network, filters: Sequence[tuple[str, str]]) -> bool:
    return all(any(_has(network, key, value) for other, value in filters if other == key) for key in {key for key, _ in filters})


def _has(network: Network, key: str, value: str) -> bool:
    if key == "name":
        return value in network.name
    if key == "driver":
        return network.driver == value
    if key == "type":
        return value == ("builtin" if network.built_in else "custom")
    if key == "dangling":
        return (value == "true") == (not network.built_in and not network.users)
    if key == "label":
        name, separator, wanted = value.partition("=")
        labels = dict(network.labels)
        return name in labels and (not separator or labels[name] == wanted)
    return False
