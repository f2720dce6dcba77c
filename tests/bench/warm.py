"""netbox through its Python API, in this process, warm; and its firewall backends beside the commands of a person."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

from tests.bench import processes
from tests.bench.measure import Sample, Task
from tests.bench.processes import Failed
from tests.bench.scenarios import PORT
from tests.support import linux

NAME = "netbox API"
_FULL = 1000
_PACKETS = 200
_UDP_PORT = 5353
_HOST, _TARGET = "10.214.0.1", "10.214.0.2"
_RULE = ["NETBOX-PUBLISH", "-p", "tcp", "--dport", str(PORT), "-j", "DNAT", "--to-destination", f"{_TARGET}:80"]
_COMMANDS = {
    "iptables": [["iptables-legacy", "-w", "-t", "nat", verb, *_RULE] for verb in ("-A", "-D")],
    "nftables": [
        ["nft", f"add element ip netbox port {{ tcp . {PORT} : {_TARGET} . 80 }}"],
        ["nft", f"delete element ip netbox port {{ tcp . {PORT} }}"],
    ],
}


class Warm:
    """An Engine that stays; each round runs a sandbox from its start until everything of it is removed."""

    name = NAME

    def missing(self) -> str | None:
        """It is measured everywhere."""
        return None

    def version(self) -> str:
        """Which Python."""
        import platform

        return f"in-process, Python {platform.python_version()}"

    def open(self) -> None:
        """Makes the engine. Raises ``Failed``."""
        from netbox import Engine, NetboxError

        try:
            self._engine = Engine()
            self._run([])
        except NetboxError as error:
            raise Failed(f"netbox API: {error}") from error

    def tasks(self) -> list[Task]:
        """With and without a published port."""
        return [
            Task(NAME, ("run-p",), lambda: self._timed("run-p", [f"{PORT}:80"])),
            Task(NAME, ("run-bridge",), lambda: self._timed("run-bridge", [])),
        ]

    def _run(self, ports: list[str]) -> None:
        sandbox = self._engine.run("busybox", "true", ports=ports)
        code = sandbox.wait(timeout=30)
        sandbox.remove()
        if code:
            raise Failed(f"netbox API: exit code {code}")

    def _timed(self, figure: str, ports: list[str]) -> Iterator[Sample]:
        from netbox import NetboxError

        begun = time.perf_counter()
        try:
            self._run(ports)
        except NetboxError as error:
            raise Failed(f"netbox API: {error}") from error
        yield figure, (time.perf_counter() - begun) * 1e3

    def close(self) -> None:
        """Ends the engine's helper process and takes the network down."""
        self._engine.close()


class Firewall:
    """Both firewall backends, each in network namespaces of its own, empty and full: a port published and taken back, the first packet of
    a connection to the port that was published last; and a person's two commands.
    """

    def __init__(self) -> None:
        self._namespaces = {(backend, count): linux.new_network_namespace() for backend in _COMMANDS for count in (0, _FULL)}

    def tasks(self) -> list[Task]:
        """Empty tables and full ones."""
        tasks = []
        for (backend, count), namespace in self._namespaces.items():
            self._fill(namespace, backend, count)
            change, packet = f"firewall-{count}", f"packet-{count}"
            ours = f"netbox {backend}"
            tasks.append(Task(ours, (change,), _bound(change, namespace, lambda backend=backend: _by_backend(backend))))  # type: ignore[misc]
            tasks.append(Task(backend, (change,), _bound(change, namespace, lambda backend=backend: _by_commands(backend))))  # type: ignore[misc]
            tasks.append(Task(ours, (packet,), _first_packets(packet, namespace)))
        return tasks

    def _fill(self, namespace: int, backend: str, count: int) -> None:
        """The port of the packets is published last: a list of rules is read to its end for it."""
        from netbox.network import firewall, firewall_choice
        from netbox.spec import PortSpec

        with linux.network_namespace(namespace):
            for command in ("link set lo up", f"address add {_HOST}/32 dev lo", f"address add {_TARGET}/32 dev lo"):
                processes.run(["ip", *command.split()])
            rules = firewall_choice.backend(backend)
            others = [PortSpec(80, 20000 + number, protocol=protocol) for number in range(count // 2) for protocol in ("tcp", "udp")]
            rules.apply(add=[firewall.network_rules("network:bench", "bench0", "10.214.0.0/16")])
            rules.apply(add=[firewall.publish_rules("sandbox:others", _TARGET, others)])
            rules.apply(add=[firewall.publish_rules("sandbox:packets", _TARGET, [PortSpec(53, _UDP_PORT, protocol="udp")])])


def _bound(figure: str, namespace: int, change: Callable[[], None]) -> Callable[[], Iterator[Sample]]:
    def once() -> Iterator[Sample]:
        with linux.network_namespace(namespace):
            change()  # a host has one namespace; what it costs to come here from another one is not the question
            begun = time.perf_counter()
            change()
            yield figure, (time.perf_counter() - begun) * 1e3

    return once


def _first_packets(figure: str, namespace: int) -> Callable[[], Iterator[Sample]]:
    """Datagrams from ports that were not used before. Loopback hands one over within the call, so the call takes as long as its way."""

    def once() -> Iterator[Sample]:
        with linux.network_namespace(namespace), contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(_PACKETS)]
            server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            server.bind((_TARGET, 53))
            begun = time.perf_counter()
            for client in clients:
                client.sendto(b"?", (_HOST, _UDP_PORT))
            took = time.perf_counter() - begun
            server.settimeout(1)
            try:
                for _ in clients:
                    server.recv(10)
            except TimeoutError as error:
                raise Failed("firewall: a datagram did not get through the published port") from error
            yield figure, took / _PACKETS * 1e6

    return once


def _by_backend(name: str) -> None:
    from netbox.errors import NetboxError
    from netbox.network import firewall, firewall_choice
    from netbox.spec import PortSpec

    backend = firewall_choice.backend(name)
    try:
        backend.apply(add=[firewall.publish_rules("sandbox:bench", _TARGET, [PortSpec(80, PORT)])])
        backend.apply(remove=["sandbox:bench"])
    except NetboxError as error:
        raise Failed(f"firewall: {error}") from error


def _by_commands(name: str) -> None:
    for command in _COMMANDS[name]:
        processes.run(command)
