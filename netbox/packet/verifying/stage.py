"""What a verification builds: sandboxes, networks, a neighbour on the lan, servers in their namespaces. All of it goes again.

Names carry a random part and labels the process that made them, so that they collide with nothing, and so that what a killed verification
left is found by the next one. The sandboxes end by themselves after some minutes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from netbox.errors import NotFound
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.processes import start_time
from netbox.packet import places
from netbox.packet.places import Place

if TYPE_CHECKING:
    from netbox.engine import Engine

LABEL = "netbox.verification"
_LIFETIME = "600"  # seconds
_DATAGRAM = 65535


class Stage:
    """A context manager: leaving it takes everything down, whatever happened."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.prefix = f"verify-{os.urandom(4).hex()}"
        self._stack = ExitStack()
        self._lan: Place | None = None

    def __enter__(self) -> Stage:
        remove_leftovers(self.engine)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def network(self, name: str, **options: Any) -> str:
        """Makes a network and returns its name. Raises NetboxError."""
        full = f"{self.prefix}-{name}"
        self._stack.callback(_remove_network, self.engine, full)
        self.engine.networks.create(full, labels=[_label()], **options)
        return full

    def sandbox(self, name: str, **options: Any) -> Place:
        """Starts a sandbox that does nothing and returns its place. Raises NetboxError."""
        full = f"{self.prefix}-{name}"
        self._stack.callback(_remove_sandbox, self.engine, full)
        self.engine.run("busybox", "sleep", _LIFETIME, name=full, labels=[_label()], remove=True, stop_timeout=0, **options)
        return places.source(self.engine, full)

    def lan(self) -> Place:
        """The neighbour, made when it is first asked for. Raises NetboxError."""
        if self._lan is None:
            self._lan = self._stack.enter_context(places.source(self.engine, places.LAN))
        return self._lan

    def serve(self, place: Place, port: int, address: str = "0.0.0.0") -> Server:
        """A TCP and a UDP server in the namespace of a place. Raises OSError."""
        return self._stack.enter_context(Server(place, port, address))


class Server:
    """Accepts TCP connections, echoes UDP datagrams, and remembers who sent them.

    Its sockets are those of this process, opened in the other namespace.
    """

    def __init__(self, place: Place, port: int, address: str) -> None:
        self.clients: list[str] = []
        self._stop, self._stopped = socket.socketpair()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        namespace = place.open()
        try:
            with inside_netns(namespace):
                self._tcp = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                self._udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        finally:
            os.close(namespace)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((address, port))
        self.port: int = self._tcp.getsockname()[1]
        self._udp.bind((address, self.port))
        self._tcp.listen()
        self._thread = threading.Thread(target=self._echo, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.close()
        self._thread.join()
        for sock in (self._tcp, self._udp, self._stopped):
            sock.close()

    def _echo(self) -> None:
        while True:
            ready, _, _ = select.select([self._udp, self._stopped], [], [])
            if self._stopped in ready:
                return
            with contextlib.suppress(OSError):  # an ICMP error for an earlier answer
                data, client = self._udp.recvfrom(_DATAGRAM)
                self.clients.append(str(client[0]))
                self._udp.sendto(data, client)


def _label() -> str:
    pid = os.getpid()
    return f"{LABEL}={pid}-{start_time(pid)}"


def _is_dead(label: str) -> bool:
    pid, _, started = label.partition("-")
    return not pid.isdigit() or str(start_time(int(pid))) != started


def remove_leftovers(engine: Engine) -> None:
    """Removes what verifications left that were killed. Raises NetboxError when that is not possible."""
    for sandbox in engine.list(all=True, filters=[("label", LABEL)]):
        if _is_dead(sandbox.labels[LABEL]):
            _remove_sandbox(engine, sandbox.name)
    for network in engine.networks.list([("label", LABEL)]):
        if _is_dead(dict(network.labels)[LABEL]):
            _remove_network(engine, network.name)


def _remove_sandbox(engine: Engine, name: str) -> None:
    with contextlib.suppress(NotFound):
        engine.get(name).remove(force=True)


def _remove_network(engine: Engine, name: str) -> None:
    with contextlib.suppress(NotFound):
        engine.networks.remove(name)
