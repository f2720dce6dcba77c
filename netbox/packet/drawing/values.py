"""What a drawing shows. Frozen, and JSON-able."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

NAT, LAN, INTERNAL, NONE = "nat", "lan", "internal", "none"


@dataclass(frozen=True)
class Uplink:
    """A link of the host to the outside. ``addresses`` have their prefix lengths; ``gateway`` is that of the default route, or empty."""

    name: str
    addresses: tuple[str, ...] = ()
    gateway: str = ""


@dataclass(frozen=True)
class Net:
    """A network. ``way_out`` is ``nat`` (by the host's address), ``lan`` (macvlan, on the link ``device``), ``internal`` or ``none``.

    ``device`` is the bridge or the parent, empty for the networks ``host`` and ``none``; ``gateway`` is the bridge's own address.
    """

    name: str
    driver: str
    way_out: str
    device: str = ""
    subnet: str = ""
    gateway: str = ""
    standing: bool = False


@dataclass(frozen=True)
class Attachment:
    """An interface of a sandbox. ``link`` is the host's end of the cable, with ``on_parent`` the link that it is on (macvlan); both and
    ``interface`` are empty while the sandbox does not run. ``default`` says that its default route goes by it.
    """

    network: str
    interface: str = ""
    addresses: tuple[str, ...] = ()
    mac_address: str = ""
    link: str = ""
    default: bool = False
    on_parent: bool = False


@dataclass(frozen=True)
class Box:
    """A sandbox. ``ports`` are texts such as ``8080->80/tcp``; ``joined`` is the name of the sandbox, or the path of the namespace, whose
    network it shares.
    """

    id: str
    name: str
    state: str
    image: str
    attachments: tuple[Attachment, ...] = ()
    ports: tuple[str, ...] = ()
    joined: str = ""

    @property
    def running(self) -> bool:
        """Whether it has processes, frozen ones included."""
        return self.state in ("running", "paused")


@dataclass(frozen=True)
class Topology:
    """The host's name, its links to the outside, the networks and the sandboxes on them, each in a steady order."""

    host: str
    uplinks: tuple[Uplink, ...] = ()
    networks: tuple[Net, ...] = ()
    boxes: tuple[Box, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def members(self, network: str) -> list[tuple[Box, Attachment]]:
        """Who is on a network."""
        return [(box, item) for box in self.boxes for item in box.attachments if item.network == network]

    def sharing(self, box: Box) -> list[Box]:
        """The sandboxes that share this one's network."""
        return [other for other in self.boxes if other.joined == box.name]

    def uplink_of(self, network: Net) -> Uplink | None:
        """The link by which a network's packets leave the host."""
        if network.way_out == LAN:
            return next((item for item in self.uplinks if item.name == network.device), None)
        if network.way_out == NAT or network.driver == "host":
            return next((item for item in self.uplinks if item.gateway), None)
        return None

    @property
    def elsewhere(self) -> list[Box]:
        """The sandboxes that joined a namespace which is not that of a sandbox here."""
        names = {box.name for box in self.boxes}
        return [box for box in self.boxes if box.joined and box.joined not in names]
