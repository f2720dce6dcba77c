"""How each kind of journal row of the network layer is undone. Every handler is idempotent: what is gone already is success."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from netbox.errors import Unsupported, host_error
from netbox.kernel import sysctl
from netbox.kernel.rtnetlink import RouteSocket, delete_link
from netbox.network import firewall_choice, firewall_switch
from netbox.network.facts import boot_id
from netbox.settings import Settings
from netbox.state.store import Store


class UndoContext(NamedTuple):
    """What the handlers work with."""

    settings: Settings
    store: Store


def _release_lease(context: UndoContext, args: dict[str, Any]) -> None:
    context.store.release_leases(args["sandbox_id"])


def _release_ports(context: UndoContext, args: dict[str, Any]) -> None:
    context.store.release_ports(args["sandbox_id"])


def _remove_rules(context: UndoContext, args: dict[str, Any]) -> None:
    firewall_choice.remove([args["owner"]], {args.get("backend", firewall_choice.IPTABLES), *firewall_switch.standing(context.store)})
    for host_ip, first, count in args.get("udp", ()):
        from netbox.kernel import conntrack

        # An entry of the connection table would keep sending datagrams to the next one who gets the address.
        conntrack.flush_udp(host_ip, first, count)


def _delete_link(_context: UndoContext, args: dict[str, Any]) -> None:
    # A veth pair has usually gone with its namespace, which costs nothing. One whose namespace lives on (another sandbox shares it, or a
    # connection waits for its peer's last acknowledgement) must not keep an address that the next sandbox gets.
    name = args["name"]
    try:
        with RouteSocket() as netlink:
            netlink.request(delete_link(name))
    except OSError as error:
        raise host_error("delete", f"the link {name}", error) from error


def _restore_sysctl(_context: UndoContext, args: dict[str, Any]) -> None:
    if args["boot_id"] != boot_id():
        return  # the value was that of another boot
    if args["name"] == "net.ipv4.ip_forward" and _other_bridges():
        return  # docker, libvirt and the like have come to rely on it
    try:
        sysctl.write(args["name"], args["old"])
    except Unsupported:
        return


def _other_bridges() -> bool:
    with RouteSocket() as netlink:
        return any(link.kind == "bridge" for link in netlink.links())


HANDLERS: dict[str, Callable[[UndoContext, dict[str, Any]], None]] = {
    "lease": _release_lease,
    "port": _release_ports,
    "rules": _remove_rules,
    "veth": _delete_link,
    "bridge": _delete_link,
    "network_rules": _remove_rules,
    "sysctl": _restore_sysctl,
}
