"""Made-up facts for the tests of ``why``: web and db on network front, all well; and the variations that break it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from netbox.kernel.inspection import AddressFact, LinkFact, NeighbourFact, RouteFact
from netbox.kernel.socket_diag import LISTEN, SocketFact
from netbox.packet.diagnosis.rules import Chain
from netbox.packet.diagnosis.rules_iptables import parse
from netbox.packet.diagnosis.values import Box, Facts, Interface, Mac, Namespace, Request

FRONT, BACK = "nb-front", "nb-back"
WEB, DB, GATEWAY = "10.1.0.2", "10.1.0.3", "10.1.0.1"
MACS = {"web": "02:00:00:00:00:02", "db": "02:00:00:00:00:03", "gateway": "02:00:00:00:00:01"}


def link(name: str, number: int, *, up: bool = True, mtu: int = 1500, mac: str = "", master: int = 0, kind: str = "veth") -> LinkFact:
    return LinkFact(name, number, kind, up, up, mtu, mac, master, 0, "forwarding" if master else "")


def interface(name: str, address: str, network: str = "front", bridge: str = FRONT, *, internal: bool = False) -> Interface:
    return Interface(network, bridge, "10.1.0.0/24", GATEWAY, address, MACS.get(name, ""), "eth0", f"nb{name}", internal)


def box(name: str, address: str, **changes: Any) -> Box:
    values: dict[str, Any] = {"state": "running", "interfaces": (interface(name, address),), "pid": 100}
    return Box(f"{name}-id", name, **{**values, **changes})


def listener(port: int, address: str = "0.0.0.0", *, waiting: int = 0, room: int = 128, protocol: str = "tcp") -> SocketFact:
    return SocketFact(protocol, address, port, "0.0.0.0", 0, LISTEN if protocol == "tcp" else 7, waiting, room, 1)


def chains(rules: str = "") -> tuple[Chain, ...]:
    """The filter table with these rules, one a line."""
    lines = "\n".join(rules.split("\n"))
    return tuple(parse(f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{lines}\nCOMMIT\n"))


def inside(name: str, address: str, identity: int, sockets: tuple[SocketFact, ...] = ()) -> Namespace:
    return Namespace(
        name,
        (0, identity),
        (link("lo", 1, mtu=65536, kind=""), link("eth0", 2, mac=MACS[name])),
        (AddressFact("lo", "127.0.0.1", 8), AddressFact("eth0", address, 24)),
        sockets=sockets,
        sysctls={"net.ipv4.ip_local_port_range": "32768 60999", "net.ipv4.ip_default_ttl": "64"},
    )


HOST = Namespace(
    "host",
    (0, 1),
    (link(FRONT, 10, mac=MACS["gateway"], kind="bridge"), link("nbweb", 11, master=10), link("nbdb", 12, master=10), link("eth0", 2)),
    (AddressFact(FRONT, GATEWAY, 24), AddressFact("eth0", "192.0.2.2", 24)),
    sysctls={"net.ipv4.ip_forward": "1"},
)


def facts(**changes: Any) -> Facts:
    """web asks db for TCP port 80, on network front; everything is as it should be."""
    source, target = inside("web", WEB, 2), inside("db", DB, 3, (listener(80),))
    web, db = box("web", WEB), box("db", DB)
    healthy = Facts(
        Request("tcp", 80),
        "sandbox",
        "sandbox",
        "db",
        source,
        HOST,
        target,
        web,
        db,
        DB,
        80,
        WEB,
        source_route=RouteFact(DB, "unicast", "eth0", "", WEB),
        source_seen=WEB,
        arrival_route=RouteFact(DB, "local", "lo", "", DB),
        return_route=RouteFact(WEB, "unicast", "eth0", "", DB),
        macs=(Mac("web", "front", "eth0", MACS["web"]), Mac("db", "front", "eth0", MACS["db"])),
        boxes=(web, db),
    )
    return replace(healthy, **changes)


def outward(**changes: Any) -> Facts:
    """web asks 203.0.113.9, outside, by way of the host."""
    values: dict[str, Any] = {
        "target_kind": "address",
        "target_name": "203.0.113.9",
        "target": None,
        "target_box": None,
        "address": "203.0.113.9",
        "source_route": RouteFact("203.0.113.9", "unicast", "eth0", GATEWAY, WEB),
        "host_interface": FRONT,
        "host_route": RouteFact("203.0.113.9", "unicast", "eth0", "192.0.2.1"),
        "back_route": RouteFact(WEB, "unicast", FRONT),
        "source_seen": "",
        "arrival_route": None,
        "return_route": None,
    }
    return facts(**{**values, **changes})


def across(**changes: Any) -> Facts:
    """web, on front, asks db, on back."""
    db = box("db", "10.2.0.3", interfaces=(interface("db", "10.2.0.3", "back", BACK),))
    values: dict[str, Any] = {
        "target_box": db,
        "address": "10.2.0.3",
        "boxes": (box("web", WEB), db),
        "source_route": RouteFact("10.2.0.3", "unicast", "eth0", GATEWAY, WEB),
        "host_interface": FRONT,
        "host_route": RouteFact("10.2.0.3", "unicast", BACK),
        "back_route": RouteFact(WEB, "unicast", FRONT),
        "host": replace(HOST, chains=chains('-A FORWARD -o nb-back -m comment --comment "network:back" -j DROP')),
    }
    return facts(**{**values, **changes})


def to_host(**changes: Any) -> Facts:
    """web asks the host's own address 192.0.2.2 for port 8080."""
    values: dict[str, Any] = {
        "request": Request("tcp", 8080),
        "target_kind": "address",
        "target_name": "192.0.2.2",
        "target": changes.get("host", HOST),
        "target_box": None,
        "address": "192.0.2.2",
        "port": 8080,
        "source_route": RouteFact("192.0.2.2", "unicast", "eth0", GATEWAY, WEB),
        "host_interface": FRONT,
        "host_route": RouteFact("192.0.2.2", "local", "lo"),
        "back_route": RouteFact(WEB, "unicast", FRONT),
    }
    return facts(**{**values, **changes})


def with_neighbour(state: str, mac: str = "02:00:00:00:00:99") -> Facts:
    """web believes a wrong MAC of db."""
    return facts(source=replace(facts().source, neighbours=(NeighbourFact("eth0", DB, mac, state),)))
