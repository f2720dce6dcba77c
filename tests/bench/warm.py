"""netbox through its Python API, in this process, warm; and its firewall backend beside the iptables commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.bench import processes
from tests.bench.measure import Sample, Task
from tests.bench.processes import Failed
from tests.bench.scenarios import PORT
from tests.support import linux

NAME = "netbox API"
_FULL = 1000
_OTHER_CHAIN = "BENCH"


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
    """Publishing one port and taking it back, in a network namespace of its own: the backend, and a person's two commands."""

    def __init__(self) -> None:
        self._namespaces = {0: linux.new_network_namespace(), _FULL: linux.new_network_namespace()}

    def tasks(self) -> list[Task]:
        """Empty tables and full ones."""
        tasks = []
        for count, namespace in self._namespaces.items():
            figure = f"firewall-{count}"
            self._fill(namespace, count)
            tasks.append(Task(NAME, (figure,), _bound(figure, namespace, _by_backend)))
            tasks.append(Task("iptables", (figure,), _bound(figure, namespace, _by_commands)))
        return tasks

    def _fill(self, namespace: int, count: int) -> None:
        from netbox.network import firewall

        with linux.network_namespace(namespace):
            processes.run(["ip", "link", "set", "lo", "up"])
            others = [f"-A {_OTHER_CHAIN} -p tcp --dport {20000 + number} -j RETURN" for number in range(count)]
            table = "\n".join(["*nat", f":{_OTHER_CHAIN} - [0:0]", *others, "COMMIT", ""])
            processes.run(["iptables-legacy-restore", "--noflush"], text=table)
            firewall.backend().apply(add=[firewall.network_rules("network:bench", "bench0", "10.214.0.0/16")])


def _bound(figure: str, namespace: int, change: Callable[[], None]) -> Callable[[], Iterator[Sample]]:
    def once() -> Iterator[Sample]:
        with linux.network_namespace(namespace):
            begun = time.perf_counter()
            change()
            yield figure, (time.perf_counter() - begun) * 1e3

    return once


def _by_backend() -> None:
    from netbox.errors import NetboxError
    from netbox.network import firewall
    from netbox.spec import PortSpec

    backend = firewall.backend()
    try:
        backend.apply(add=[firewall.publish_rules("sandbox:bench", "10.214.0.2", [PortSpec(80, PORT)])])
        backend.apply(remove=["sandbox:bench"])
    except NetboxError as error:
        raise Failed(f"firewall: {error}") from error


def _by_commands() -> None:
    rule = ["-p", "tcp", "--dport", str(PORT), "-j", "DNAT", "--to-destination", "10.214.0.2:80"]
    for verb in ("-A", "-D"):
        processes.run(["iptables-legacy", "-w", "-t", "nat", verb, _OTHER_CHAIN, *rule])
