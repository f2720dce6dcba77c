"""What the network tests share: sandboxes without processes, servers inside namespaces, and clients that say what they got.

A ``Guest`` is a network namespace that the network layer has attached as it does for a real sandbox. Sockets that are opened inside a
namespace stay there, so servers are threads of the test process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netbox import names
from netbox.errors import CleanupError, NetboxError
from netbox.network.definition import define
from netbox.network.manager import NetworkManager
from netbox.network.modes import namespace
from netbox.network.plan import JoinTarget, NetworkPlan, Prepared
from netbox.network.undo import HANDLERS
from netbox.settings import Settings
from netbox.spec import NetworkRequest, NetworkSpec
from netbox.state.journal import RUN, Journal
from netbox.state.rows import NetworkRow
from netbox.state.store import Store
from tests.support import linux

PROBE = Path(__file__).with_name("scapy_probe.py")
TIMEOUT = 20.0  # seconds that a client waits for an answer
SOCKETS = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP)}
REFUSAL = 0.6  # seconds after which silence counts as out of reach


class Server:
    """Answers every connection or datagram with the client's address as it sees it. ``clients`` are their addresses and ports."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.settimeout(0.05)
        self.clients: list[tuple[str, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                if self._socket.type == socket.SOCK_STREAM:
                    connection, peer = self._socket.accept()
                    with connection:
                        connection.sendall(self._answer(peer))
                else:
                    _, peer = self._socket.recvfrom(2048)
                    self._socket.sendto(self._answer(peer), peer)
            except OSError:  # nobody has come, or who came has gone again
                continue

    def _answer(self, peer: tuple[Any, ...]) -> bytes:
        self.clients.append((peer[0], peer[1]))
        return f"{peer[0]} {self._socket.getsockname()[1]}".encode()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def serve(protocol: str, port: int, address: str = "0.0.0.0") -> Server:
    """A server in the calling thread's network namespace; on an IPv6 address it serves IPv6 alone."""
    sock = socket.socket(_family(address), *SOCKETS[protocol])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    if sock.type == socket.SOCK_STREAM:
        sock.listen(8)
    return Server(sock)


def is_held(address: str, port: int) -> bool:
    """Whether a socket of this namespace has the TCP port, so that nobody else gets it."""
    with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((address, port))
        except OSError:
            return True
    return False


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ask(protocol: str, address: str, port: int, timeout: float = TIMEOUT, source_port: int = 0) -> str | None:
    """What a ``Server`` answers, as ``client-address server-port``; None when nothing does. From the calling thread's namespace."""
    with socket.socket(_family(address), *SOCKETS[protocol]) as client:
        client.settimeout(timeout)
        if source_port:
            client.bind(("", source_port))
        try:
            client.connect((address, port))
            if protocol == "udp":
                client.send(b"?")
            return client.recv(256).decode() or None
        except OSError:
            return None


def reachable(protocol: str, address: str, port: int) -> bool:
    """Whether something answers, however long that takes; see ``out_of_reach`` for the opposite."""
    return ask(protocol, address, port) is not None


def out_of_reach(protocol: str, address: str, port: int) -> bool:
    """Whether nothing answers for a while."""
    return ask(protocol, address, port, REFUSAL) is None


def probe(*requests: dict[str, Any]) -> list[Any]:
    """Runs scapy in a process of its own in the calling thread's namespace; see ``scapy_probe``."""
    result = subprocess.run(
        [sys.executable, str(PROBE)], input=json.dumps(requests), capture_output=True, text=True, timeout=110, check=False
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert len(answer) == len(requests)
    return list(answer)


class Guest:
    """A sandbox as far as the network is concerned."""

    def __init__(self, lab: Lab, spec: NetworkSpec, target: Guest | None = None, hostname: str | None = None) -> None:
        self.id = names.new_id()
        self.lab = lab
        self.spec = spec
        self.journal = lab.store.journal(names.sandbox_owner(self.id), RUN)
        self.prepared: Prepared | None = None
        self._servers: list[Server] = []
        self.netns = -1
        try:
            self.prepared = lab.manager.prepare(self.id, hostname, spec, target.join_target() if target else None, self.journal)
            self.plan: NetworkPlan = self.prepared.plan
            self.netns = os.dup(target.netns) if target else self._namespace()
            lab.manager.attach(self.plan, self.netns, self.journal)
            lab.manager.publish(self.plan, self.journal)
        except BaseException:
            self.end()
            raise

    def _namespace(self) -> int:
        if self.plan.namespace == "host":
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if self.plan.namespace_path:
            return namespace.open_namespace(self.plan.namespace_path)
        return linux.new_network_namespace()

    def join_target(self) -> JoinTarget:
        files = {name: f"/run/{self.id}/{name}" for name in ("hosts", "hostname", "resolv.conf")}
        return JoinTarget(self.id, "target", self.plan.hostname, files, self.plan.to_json())

    @property
    def address(self) -> str:
        return self.plan.address

    @property
    def address6(self) -> str:
        assert self.plan.endpoint is not None
        return self.plan.endpoint.address6

    @property
    def gateway6(self) -> str:
        assert self.plan.endpoint is not None
        return self.plan.endpoint.gateway6

    @property
    def gateway(self) -> str:
        assert self.plan.endpoint is not None
        return self.plan.endpoint.gateway

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        with linux.network_namespace(self.netns):
            yield

    def serve(self, protocol: str, port: int, address: str = "0.0.0.0") -> None:
        with self.inside():
            self._servers.append(serve(protocol, port, address))

    def ask(self, protocol: str, address: str, port: int, timeout: float = TIMEOUT) -> str | None:
        with self.inside():
            return ask(protocol, address, port, timeout)

    def probe(self, *requests: dict[str, Any]) -> list[Any]:
        with self.inside():
            return probe(*requests)

    def execute(self, *command: str) -> str:
        with self.inside():
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    def end(self) -> None:
        """The sandbox ends: its processes first, then what its journal says."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self.netns >= 0:
            os.close(self.netns)
            self.netns = -1
        if self.prepared is not None:
            self.prepared.close()
        self.lab.replay(self.journal)
        self.lab.manager.release_idle(self.lab.replay)


class Lab:
    """Guests on the private host."""

    def __init__(self) -> None:
        self.settings = Settings.from_environment()
        self.store = Store(self.settings)
        self.manager = NetworkManager(self.settings, self.store)
        self._guests: list[Guest] = []

    def guest(self, target: Guest | None = None, hostname: str | None = None, **values: Any) -> Guest:
        """A new guest; the values are those of ``NetworkSpec``."""
        made = Guest(self, NetworkSpec(**values), target, hostname)
        self._guests.append(made)
        return made

    def define(self, name: str, **values: Any) -> NetworkRow:
        """A user-defined network; the values are those of ``NetworkRequest``."""
        return define(self.store, self.settings, NetworkRequest(name, **values))

    def end(self, guest: Guest) -> None:
        self._guests.remove(guest)
        guest.end()

    def replay(self, journal: Journal) -> None:
        """What the engine does with a journal, less its own kinds."""
        failures = []
        for row in reversed(journal.rows()):
            try:
                HANDLERS[row.kind](self.manager.undo_context(), row.args)
            except (NetboxError, OSError, KeyError) as error:
                failures.append(f"{row.kind}: {error!r}")
            else:
                journal.forget([row])
        if failures:
            raise CleanupError("; ".join(failures))

    def close(self) -> None:
        for guest in reversed(self._guests):
            guest.end()
        self._guests.clear()
        self.manager.release_idle(self.replay)
        self.store.close()
