"""How each kind of journal row of the network layer is undone. Every handler is idempotent: what is gone already is success."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from netbox import names
from netbox.errors import Unsupported, host_error
from netbox.kernel import sublinks, sysctl
from netbox.kernel.rtnetlink import RouteSocket, delete_link
from netbox.network import firewall_choice, firewall_switch, forwarding, naming, networks, ports
from netbox.network.facts import boot_id
from netbox.settings import Settings
from netbox.spec import PortSpec
from netbox.state.journal import NETWORK, of_kind
from netbox.state.store import Store


class UndoContext(NamedTuple):
    """What the handlers work with."""

    settings: Settings
    store: Store


def _release_lease(context: UndoContext, args: dict[str, Any]) -> None:
    store, sandbox_id = context.store, args["sandbox_id"]
    held = {lease.network for lease in store.leases() if lease.sandbox_id == sandbox_id}
    store.release_leases(sandbox_id, args.get("network"))
    naming.changed(store, held)


def _release_ports(context: UndoContext, args: dict[str, Any]) -> None:
    context.store.release_ports(args["sandbox_id"])


def _remove_rules(context: UndoContext, args: dict[str, Any]) -> None:
    firewall_choice.remove([args["owner"]], {args.get("backend", firewall_choice.IPTABLES), *firewall_switch.standing(context.store)})
    # An entry of the connection table would keep sending datagrams to the next one who gets the address.
    ports.forget([PortSpec(*port) for port in args.get("ports", ())])


def _remove_network_rules(context: UndoContext, args: dict[str, Any]) -> None:
    # A bridge that is up says that all of its network stands (networks.ensure). If this process is killed before it has deleted the bridge,
    # the next sandbox must not take it for one with rules.
    bridge = names.bridge(args["owner"].removeprefix("network:"))
    try:
        with RouteSocket() as netlink:
            link = netlink.link(bridge)
            if link is not None and link.kind == "bridge" and link.is_up:
                netlink.request(sublinks.set_down(link.index))
    except OSError as error:
        raise host_error("take down", f"the bridge {bridge}", error) from error
    _remove_rules(context, args)


def _lift_impairment(context: UndoContext, args: dict[str, Any]) -> None:
    impairment = args["impairment"]
    if not impairment["loss"] or impairment["direction"] != "out":
        return  # it was on the veth pair or in the sandbox's namespace, and went with them
    # The lock: whoever is impairing just now finishes first, or sees then that the sandbox has ended.
    with networks.locked(context.settings):
        firewall_choice.remove_everywhere([args["owner"]])


def _leave_docker_user(_context: UndoContext, args: dict[str, Any]) -> None:
    from netbox.network import docker_user  # few hosts have dockerd

    docker_user.withdraw(args)


def _delete_link(_context: UndoContext, args: dict[str, Any]) -> None:
    # A veth pair has usually gone with its namespace, which costs nothing. One whose namespace lives on (another sandbox shares it, or a
    # connection waits for its peer's last acknowledgement) must not keep an address that the next sandbox gets.
    name = args["name"]
    try:
        with RouteSocket() as netlink:
            netlink.request(delete_link(name))
    except OSError as error:
        raise host_error("delete", f"the link {name}", error) from error


def _delete_macvlan(_context: UndoContext, args: dict[str, Any]) -> None:
    from netbox.network.drivers import macvlan

    macvlan.remove(**args)


def _delete_vlan(context: UndoContext, args: dict[str, Any]) -> None:
    if sum(row.args == args for row in of_kind(context.store.database, "vlan")) == 1:  # no other network has links on it
        from netbox.network import parents

        parents.remove_vlan(args["name"])


def _restore_sysctl(context: UndoContext, args: dict[str, Any]) -> None:
    if args["boot_id"] != boot_id():
        return  # the value was that of another boot
    if args["name"] == "net.ipv4.ip_forward" and (_others_need_it(context.store) or _foreign_bridges(context.store)):
        return  # another network of ours restores it; docker, libvirt and the like have come to rely on it
    try:
        sysctl.write(args["name"], args["old"])
    except Unsupported:
        return


def _restore_ipv6_forwarding(context: UndoContext, args: dict[str, Any]) -> None:
    if args["boot_id"] != boot_id() or _others_need_it(context.store, forwarding.KIND) or _foreign_bridges(context.store):
        return
    forwarding.restore(args["old"])


def _others_need_it(store: Store, kind: str = "sysctl") -> bool:
    """Whether more networks than the one that goes down have the row."""
    owners = [owner for owner, _ in store.journal_owners(NETWORK)]
    return sum(any(row.kind == kind for row in store.journal(owner, NETWORK).rows()) for owner in owners) > 1


def _foreign_bridges(store: Store) -> bool:
    own = {row.bridge for row in store.networks()}
    with RouteSocket() as netlink:
        return any(link.kind == "bridge" and link.name not in own for link in netlink.links())


def _stop_serving_names(context: UndoContext, args: dict[str, Any]) -> None:
    from netbox.network.nameservice import hooks  # few sandboxes are the last one of a network that has it

    hooks.network_down(context.settings, args["network"])


HANDLERS: dict[str, Callable[[UndoContext, dict[str, Any]], None]] = {
    "lease": _release_lease,
    "port": _release_ports,
    "rules": _remove_rules,
    "impairment": _lift_impairment,
    "veth": _delete_link,
    "macvlan": _delete_macvlan,
    "vlan": _delete_vlan,
    "bridge": _delete_link,
    "network_rules": _remove_network_rules,
    "docker_user": _leave_docker_user,
    "nameservice": _stop_serving_names,
    "sysctl": _restore_sysctl,
    forwarding.KIND: _restore_ipv6_forwarding,
}
