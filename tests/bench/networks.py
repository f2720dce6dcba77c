"""What many networks cost: the rules of one more, brought in and taken away, and the packets that are forwarded to a published port.

For each backend and number of networks there is a router of its own: a network namespace with the rules, between one that asks and one
that is asked. The others' networks are rules only. A datagram passes the router within the call that sends it, so the call takes as long
as its way.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator

from tests.bench import processes
from tests.bench.measure import Figure, Sample, Task
from tests.bench.processes import Failed
from tests.support import linux

COUNTS = (1, 100, 1000)
FIGURES = tuple(
    figure
    for count in COUNTS
    for figure in (
        Figure(f"network-{count}", f"rules of a network in and out, {count:,} stand"),
        Figure(f"first-{count}", f"first packet to a published port, {count:,} networks", "µs"),
        Figure(f"known-{count}", f"packet of a known connection, {count:,} networks", "µs"),
    )
)
_BACKENDS = ("iptables", "nftables")
_CONNECTIONS, _PACKETS, _BATCHES = 100, 100, 20
_FEW = 3  # rounds, for what takes seconds
_PORT = 5353
_CLIENT, _OUTSIDE, _BRIDGE, _SERVER = "198.51.100.2", "198.51.100.1", "10.214.0.1", "10.214.0.2"
_OWN = "bench0"


class ManyNetworks:
    """The routers. Nothing of them is outside of their namespaces."""

    name = "networks"

    def __init__(self) -> None:
        self._hosts: dict[tuple[str, int], tuple[int, int, int]] = {}

    def missing(self) -> str | None:
        """It is measured everywhere."""
        return None

    def version(self) -> str:
        """What is measured."""
        return f"UDP through a router, {_BATCHES} times {_PACKETS} datagrams"

    def open(self) -> None:
        """Builds the routers and fills their tables. Raises ``Failed``."""
        for backend in _BACKENDS:
            for count in COUNTS:
                client, router, server = hosts = tuple(linux.new_network_namespace() for _ in range(3))
                self._hosts[backend, count] = (client, router, server)
                _wire(*hosts)
                with linux.network_namespace(router):
                    _fill(backend, count)

    def tasks(self) -> list[Task]:
        """Those that are compared come one after the other."""
        tasks = []
        for count in COUNTS:
            for what, once in (("network", _change), ("first", _first), ("known", _known)):
                for backend in _BACKENDS:
                    figure, hosts = f"{what}-{count}", self._hosts[backend, count]
                    rounds = _FEW if once is _change and backend == "iptables" else 1000
                    tasks.append(Task(f"netbox {backend}", (figure,), _bound(once, figure, backend, hosts), rounds))
        return tasks

    def close(self) -> None:
        """Lets the namespaces go."""
        for hosts in self._hosts.values():
            for namespace in hosts:
                os.close(namespace)
        self._hosts.clear()


def _bound(
    once: Callable[[str, tuple[int, int, int]], float], figure: str, backend: str, hosts: tuple[int, int, int]
) -> Callable[[], Iterator[Sample]]:
    def measured() -> Iterator[Sample]:
        yield figure, once(backend, hosts)

    return measured


def _wire(client: int, router: int, server: int) -> None:
    """The router's device towards the server has the name of the network's bridge: for the rules that is all there is to it."""
    inside = {namespace: f"/proc/{os.getpid()}/fd/{namespace}" for namespace in (client, server)}
    with linux.network_namespace(router):
        _ip(f"link add outside0 type veth peer name eth0 netns {inside[client]}")
        _ip(f"link add {_OWN} type veth peer name eth0 netns {inside[server]}")
        _ip(f"address add {_OUTSIDE}/24 dev outside0")
        _ip(f"address add {_BRIDGE}/24 dev {_OWN}")
        for device in ("lo", "outside0", _OWN):
            _ip(f"link set {device} up")
        with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as file:
            file.write("1")
    for namespace, address, gateway in ((client, _CLIENT, _OUTSIDE), (server, _SERVER, _BRIDGE)):
        with linux.network_namespace(namespace):
            _ip(f"address add {address}/24 dev eth0")
            _ip("link set eth0 up")
            _ip(f"route add default via {gateway}")


def _fill(backend: str, count: int) -> None:
    """The network of the packets comes last: a list of rules is read to its end for it."""
    from netbox.network import firewall, firewall_choice
    from netbox.spec import PortSpec

    rules = firewall_choice.backend(backend)
    others = [
        firewall.network_rules(f"network:other{number}", f"nb-{number:08x}", f"10.{number // 256}.{number % 256}.0/24")
        for number in range(count - 1)
    ]
    rules.apply(add=[*others, firewall.network_rules("network:bench", _OWN, "10.214.0.0/24")])
    rules.apply(add=[firewall.publish_rules("sandbox:packets", _SERVER, [PortSpec(53, _PORT, protocol="udp")])])


def _change(backend: str, hosts: tuple[int, int, int]) -> float:
    from netbox.errors import NetboxError
    from netbox.network import firewall, firewall_choice

    rules = firewall_choice.backend(backend)
    group = firewall.network_rules("network:new", "nb-new", "10.200.0.0/24")
    took = 0.0
    with linux.network_namespace(hosts[1]):
        # What it costs to come here from another namespace is not the question: the second time counts.
        for _ in range(2):
            begun = time.perf_counter()
            try:
                rules.apply(add=[group])
                rules.apply(remove=[group.owner])
            except NetboxError as error:
                raise Failed(f"networks: {error}") from error
            took = time.perf_counter() - begun
    return took * 1e3


def _first(_: str, hosts: tuple[int, int, int]) -> float:
    """From ports that were not used before."""
    with _listening(hosts) as server, linux.network_namespace(hosts[0]), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(_CONNECTIONS)]
        for client in clients:
            client.bind((_CLIENT, 0))
        begun = time.perf_counter()
        for client in clients:
            client.sendto(b"?", (_OUTSIDE, _PORT))
        took = time.perf_counter() - begun
        _all_there(server, _CONNECTIONS)
    return took / _CONNECTIONS * 1e6


def _known(_: str, hosts: tuple[int, int, int]) -> float:
    with _listening(hosts) as server, linux.network_namespace(hosts[0]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"?", (_OUTSIDE, _PORT))
        server.sendto(b"!", server.recvfrom(10)[1])
        client.settimeout(1)
        client.recv(10)
        client.connect((_OUTSIDE, _PORT))
        took = []
        for _batch in range(_BATCHES):
            begun = time.perf_counter()
            for _packet in range(_PACKETS):
                client.send(b"?")
            took.append(time.perf_counter() - begun)
            _all_there(server, _PACKETS)
    return statistics.median(took) / _PACKETS * 1e6


@contextlib.contextmanager
def _listening(hosts: tuple[int, int, int]) -> Iterator[socket.socket]:
    with linux.network_namespace(hosts[2]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((_SERVER, 53))
        server.settimeout(1)
        yield server


def _all_there(server: socket.socket, count: int) -> None:
    try:
        for _ in range(count):
            server.recv(10)
    except TimeoutError as error:
        raise Failed("networks: a datagram did not get through the router") from error


def _ip(command: str) -> None:
    processes.run(["ip", *command.split()])
