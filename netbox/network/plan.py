"""The values that pass between the engine and the network layer. Frozen and JSON-able: the plan is stored with the sandbox."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from netbox.spec import PortSpec

PRIVATE, HOST, JOINED = "private", "host", "joined"


class JoinTarget(NamedTuple):
    """The running sandbox whose namespace another one joins. ``files`` are the paths of its ``hosts``, ``hostname`` and ``resolv.conf``."""

    sandbox_id: str
    name: str
    hostname: str
    files: Mapping[str, str]
    plan: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Endpoint:
    """One interface of a sandbox on a network. ``address`` is empty where a preview could not choose one; ``mtu`` is in bytes.

    ``standing`` says that the network stood when the plan was made. With the driver ``macvlan`` there is no ``bridge`` and no
    ``host_interface``, but a ``parent`` and the ``mode`` of the link. What is called ``6`` is empty on a network without IPv6.
    """

    network: str
    bridge: str
    subnet: str
    gateway: str
    address: str
    mac_address: str
    mtu: int
    interface: str
    host_interface: str
    internal: bool = False
    gw_priority: int = 0
    aliases: tuple[str, ...] = ()
    standing: bool = False
    driver: str = "bridge"
    parent: str = ""
    mode: str = ""
    subnet6: str = ""
    gateway6: str = ""
    address6: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, IPv4 first."""
        return tuple(filter(None, (self.address, self.address6)))

    @property
    def precedence(self) -> tuple[bool, int, bool, str]:
        """The smallest of a sandbox's endpoints has the default route: the highest priority, then bridges before LANs, then the first name;
        no internal network.
        """
        return (self.internal, -self.gw_priority, self.on_lan, self.network)

    @property
    def on_lan(self) -> bool:
        """Whether it is on a LAN of the host, without a bridge, NAT and the name service."""
        return self.driver == "macvlan"

    @property
    def prefix_length(self) -> int:
        """The length of the subnet's prefix in bits."""
        return int(self.subnet.partition("/")[2])

    @property
    def prefix_length6(self) -> int:
        """The length of the IPv6 subnet's prefix in bits; 0 without IPv6."""
        return int(self.subnet6.partition("/")[2] or 0)


@dataclass(frozen=True)
class NetworkPlan:
    """What a sandbox's network will be.

    ``mode`` is ``bridge``, ``host``, ``none``, ``container`` or ``ns``. ``shared_files`` and ``target_id`` are set in mode container only,
    ``namespace_path`` in mode ns. ``endpoints`` are in the order of their precedence. ``standing`` says that the networks stood when the
    plan was made, ``base_stands`` that the firewall's chains did. In a preview ``host_port`` of a port may be 0: one will be chosen.
    """

    sandbox_id: str
    mode: str
    hostname: str
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[PortSpec, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    shared_files: Mapping[str, str] = field(default_factory=dict)
    target_id: str = ""
    standing: bool = False
    base_stands: bool = False
    namespace_path: str = ""

    @property
    def namespace(self) -> str:
        """Where the sandbox's processes are: a ``private`` network namespace, the ``host``'s, or one that they ``joined``."""
        return {"host": HOST, "container": JOINED, "ns": JOINED}.get(self.mode, PRIVATE)

    @property
    def endpoint(self) -> Endpoint | None:
        """The interface of highest precedence."""
        return self.endpoints[0] if self.endpoints else None

    @property
    def interfaces(self) -> list[Endpoint]:
        """The endpoints as eth0, eth1, …"""
        return sorted(self.endpoints, key=lambda endpoint: (len(endpoint.interface), endpoint.interface))

    @property
    def way_out(self) -> Endpoint | None:
        """The interface with the default route; none if every network is internal."""
        return self.endpoints[0] if self.endpoints and not self.endpoints[0].internal else None

    @property
    def entrance(self) -> Endpoint | None:
        """The interface on which ports are published: that with the default route, unless it is on a LAN."""
        return self.way_out if self.way_out is not None and not self.way_out.on_lan else None

    @property
    def way_out6(self) -> Endpoint | None:
        """The interface with the IPv6 default route: the first one that has IPv6."""
        return next((endpoint for endpoint in self.endpoints if endpoint.address6 and not endpoint.internal), None)

    @property
    def entrance6(self) -> Endpoint | None:
        """The interface on which ports are published for IPv6: that with the IPv6 default route, unless it is on a LAN."""
        return self.way_out6 if self.way_out6 is not None and not self.way_out6.on_lan else None

    @property
    def published_on(self) -> tuple[str, str]:
        """The IPv4 and the IPv6 address to which published ports lead; empty where there is none."""
        entrance, entrance6 = self.entrance, self.entrance6
        return entrance.address if entrance is not None else "", entrance6.address6 if entrance6 is not None else ""

    @property
    def address(self) -> str:
        """The address on the network of highest precedence, or nothing."""
        return self.endpoints[0].address if self.endpoints else ""

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values; ``from_json`` reverses it."""
        return dataclasses.asdict(dataclasses.replace(self, shared_files=dict(self.shared_files)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkPlan:
        """A plan out of what ``to_json`` gave, after a trip through JSON."""
        values = dict(data)
        values["endpoints"] = tuple(
            Endpoint(**{**endpoint, "aliases": tuple(endpoint.get("aliases", ()))}) for endpoint in data["endpoints"]
        )
        values["ports"] = tuple(PortSpec(*port) for port in data["ports"])
        for key in ("dns", "dns_search", "dns_options"):
            values[key] = tuple(data[key])
        values["extra_hosts"] = tuple((str(name), str(address)) for name, address in data["extra_hosts"])
        return cls(**values)


class Prepared(NamedTuple):
    """A plan with what was taken for it: one bound socket for each published host port, to be kept open as long as the sandbox runs.

    It is a context manager: leaving it closes this process's copies of the sockets.
    """

    plan: NetworkPlan
    reservations: list[socket.socket]

    def close(self) -> None:
        """Closes the sockets of this process."""
        for reservation in self.reservations:
            reservation.close()

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Traffic(NamedTuple):
    """Counters since the interface came up, as the sandbox sees them: bytes, packets."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0
