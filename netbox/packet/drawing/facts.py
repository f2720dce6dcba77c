"""What there is to draw: from the engine's state and the host's links."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from netbox.errors import host_error
from netbox.kernel import rtnetlink
from netbox.kernel.rtnetlink import RouteSocket
from netbox.packet.drawing.values import INTERNAL, LAN, NAT, NONE, Attachment, Box, Net, Topology, Uplink
from netbox.spec import PortSpec

if TYPE_CHECKING:
    from netbox.engine import Engine, Network, Sandbox

_ORDER = {"bridge": 1, "macvlan": 2, "host": 3, "null": 4}


def topology(engine: Engine, everything: bool = False) -> Topology:
    """The running sandboxes, the networks that they are on, and the host's links to the outside. With ``everything`` also sandboxes that
    do not run and networks without any.

    Raises:
        HostError: the kernel refuses to tell about the links.
    """
    sandboxes = engine.list(all=everything)
    names = {sandbox.id: sandbox.name for sandbox in sandboxes}
    boxes = sorted((_box(sandbox, names) for sandbox in sandboxes), key=lambda box: box.name)
    used = {item.network for box in boxes for item in box.attachments}
    networks = [_net(item) for item in engine.networks.list() if item.name in used or (everything and not item.built_in)]
    networks.sort(key=lambda item: (item.name != "bridge", _ORDER[item.driver], item.name))
    return Topology(os.uname().nodename, _uplinks({item.device for item in networks if item.way_out == LAN}), tuple(networks), tuple(boxes))


def _box(sandbox: Sandbox, names: dict[str, str]) -> Box:
    spec = sandbox.spec.network
    mode, _, target = spec.mode.partition(":")
    plan = sandbox.network_plan
    joined, attachments = "", _attachments(sandbox, plan)
    if mode in ("host", "none"):
        attachments = (Attachment(mode),)
    elif mode == "container":
        joined = names.get(str(plan.get("target_id")), target)
    elif mode == "ns":
        joined = target
    return Box(sandbox.id, sandbox.name, sandbox.state, sandbox.image, attachments, tuple(port_texts(sandbox.ports)), joined)


def _attachments(sandbox: Sandbox, plan: dict[str, Any]) -> tuple[Attachment, ...]:
    addresses = sandbox.networks
    if None in addresses.values():  # it does not run
        return tuple(Attachment(network) for network in addresses)
    endpoints = plan.get("endpoints") or []
    return tuple(
        Attachment(
            network=item["network"],
            interface=item["interface"],
            addresses=tuple(filter(None, (item["address"], item.get("address6")))),
            mac_address=item["mac_address"],
            link=item["host_interface"] or item.get("parent") or "",
            default=item is endpoints[0] and not item["internal"],
            on_parent=not item["host_interface"],
        )
        for item in sorted(endpoints, key=lambda item: (len(item["interface"]), item["interface"]))
    )


def port_texts(ports: Iterable[PortSpec]) -> list[str]:
    """Published ports, short: ``8080->80/tcp`` on every address, ``127.0.0.1:8080->80/tcp`` on one; each once for both families."""
    found = []
    for port in ports:
        inside = f"{_numbers(port.port, port.length)}/{port.protocol}"
        where = "" if port.host_ip in ("0.0.0.0", "::", "") else f"[{port.host_ip}]:" if ":" in port.host_ip else f"{port.host_ip}:"
        found.append(f"{where}{_numbers(port.host_port, port.length)}->{inside}" if port.host_port else inside)
    return list(dict.fromkeys(found))


def _numbers(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _net(item: Network) -> Net:
    if item.driver in ("host", "null"):
        return Net(item.name, item.driver, NONE, standing=True)
    way_out = LAN if item.driver == "macvlan" else INTERNAL if item.internal else NAT
    return Net(item.name, item.driver, way_out, item.parent or item.bridge or "", item.subnet or "", item.gateway or "", item.standing)


def _uplinks(parents: set[str]) -> tuple[Uplink, ...]:
    """The links with a default route, and the parents of macvlan networks."""
    try:
        with RouteSocket() as netlink:
            links, addresses, routes = netlink.links(), netlink.addresses(), netlink.routes()
    except OSError as error:
        raise host_error("ask the kernel for", "links and addresses", error) from error
    gateways: dict[int, str] = {}
    for route in sorted(
        (item for item in routes if item.length == 0 and item.gateway and item.table == rtnetlink.RT_TABLE_MAIN), key=_metric
    ):
        gateways.setdefault(route.index, route.gateway)
    found = []
    for link in links:
        if link.index in gateways or link.name in parents:
            own = tuple(str(item) for item in addresses if item.index == link.index)
            found.append(Uplink(link.name, own, gateways.get(link.index, "")))
    missing = sorted(parents - {item.name for item in found})  # a VLAN that is made on demand
    return (*sorted(found, key=lambda item: (not item.gateway, item.name)), *(Uplink(name) for name in missing))


def _metric(route: rtnetlink.Prefix) -> int:
    return route.metric
