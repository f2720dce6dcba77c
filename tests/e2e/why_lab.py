"""Sandboxes, and what is done to their network, for the tests of ``why``."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netbox.engine import Engine, Sandbox
from netbox.packet.diagnosis.api import why
from netbox.packet.diagnosis.text import render
from netbox.packet.diagnosis.values import Answer
from tests.support import linux

PATIENCE = 20.0  # seconds that an answer which must come is waited for
IMPATIENCE = 0.2  # seconds after which silence is believed
ANSWERED = ("not-listening", "listening-elsewhere", "ttl-expired")  # causes of which the source is told, however long that takes


class Server:
    """Accepts every connection and closes it, answers every datagram."""

    def __init__(self, protocol: str, port: int, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        if protocol == "tcp":
            self._socket.listen(16)
        self._socket.settimeout(0.05)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # also the timeout, and a client that has gone
                if self._socket.type == socket.SOCK_STREAM:
                    self._socket.accept()[0].close()
                else:
                    _, peer = self._socket.recvfrom(2048)
                    self._socket.sendto(b"here", peer)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


class WhyLab:
    """Networks front, back and inner (internal), and sandboxes on them by name. Servers are threads of the test."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.boxes: dict[str, Sandbox] = {}
        self._servers: list[Server] = []
        self._networks: list[str] = []

    def network(self, name: str, **options: Any) -> None:
        self.engine.networks.create(name, **options)
        self._networks.append(name)

    def box(self, name: str, network: str = "front", **options: Any) -> Sandbox:
        made = self.engine.run("busybox", "sleep", "1000", name=name, network=[network], **options)
        self.boxes[name] = made
        return made

    def address(self, name: str) -> str:
        return str(self.boxes[name].network_plan["endpoints"][0]["address"])

    def address6(self, name: str) -> str:
        return str(self.boxes[name].network_plan["endpoints"][0]["address6"])

    def endpoint(self, name: str) -> dict[str, Any]:
        return dict(self.boxes[name].network_plan["endpoints"][0])

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        with linux.network_of(self.boxes[name].pid or 0):
            yield

    def serve(self, name: str, port: int, protocol: str = "tcp", address: str = "0.0.0.0") -> None:
        with self.inside(name) if name in self.boxes else contextlib.nullcontext():
            self._servers.append(Server(protocol, port, address))

    def ip(self, name: str, line: str) -> None:
        """``ip`` on the host (name empty), or in a sandbox's namespace."""
        self.execute(name, "ip", *line.split())

    def execute(self, name: str, *command: str) -> str:
        with self.inside(name) if name else contextlib.nullcontext():
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def sysctl(self, name: str, key: str, value: str) -> None:
        with self.inside(name) if name else contextlib.nullcontext():
            Path("/proc/sys", key).write_text(value)

    def socket(self, name: str, kind: socket.SocketKind = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        with self.inside(name) if name else contextlib.nullcontext():
            return socket.socket(family, kind)

    def reaches(self, source: str, target: str, **options: Any) -> Answer:
        """The answer, which must be that it does."""
        answer = why(self.engine, source, target, timeout=PATIENCE, **options)
        assert answer.reachable, told(answer)
        return answer

    def fails(self, source: str, target: str, cause: str, **options: Any) -> Answer:
        """The answer, which must name the cause, as foreseen."""
        timeout = PATIENCE if cause in ANSWERED else IMPATIENCE
        answer = why(self.engine, source, target, **{"timeout": timeout, **options})
        assert (answer.cause, answer.reachable, answer.disagreement) == (cause, False, ""), told(answer)
        return answer

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for box in self.boxes.values():
            with contextlib.suppress(Exception):
                box.remove(force=True)
        for name in self._networks:
            with contextlib.suppress(Exception):
                self.engine.networks.remove(name)


def told(answer: Answer) -> str:
    """All that is needed to see what went wrong in a test."""
    hops = (answer.observation.trace or {}).get("hops", [])
    way = [f"{hop['netns']}: {hop['text']} {hop.get('rule', {}).get('place', '')}" for hop in hops]
    return "\n".join(["", render(answer), str(answer.prediction.to_json()), *way])
