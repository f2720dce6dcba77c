"""What a published port costs the packets: throughput and requests through it, beside a veth pair and a bridge made by hand.

Every variant stands in a host of its own (a network namespace); client and server are ``datapath.c``. By hand there is no rule at all and
the client asks the server's own address, so the difference is everything that netbox puts into the way. The second variant by hand says
how much of that is connection tracking and address translation as such: a DNAT rule for the port, and a MASQUERADE for 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.bench import processes
from tests.bench.measure import Sample, Task
from tests.bench.place import Place
from tests.bench.processes import Failed
from tests.bench.subjects import Netbox
from tests.support import linux

BY_HAND, BY_HAND_NAT = "by hand", "by hand, NAT"
BACKENDS = ("iptables", "nftables")
FIGURES = ("stream-local", "stream-host", "requests-local", "requests-host", "connections-local", "connections-host")

_SOURCE = Path(__file__).with_name("datapath.c")
_HOST, _LOCAL, _PORT = "198.51.100.1", "127.0.0.1", 18080
_GATEWAY, _SERVER = "10.214.0.1", "10.214.0.2"
_NAT = f"""table ip hand {{
    chain prerouting {{ type nat hook prerouting priority dstnat; tcp dport {_PORT} dnat to {_SERVER}:80; }}
    chain output {{ type nat hook output priority -100; tcp dport {_PORT} dnat to {_SERVER}:80; }}
    chain postrouting {{ type nat hook postrouting priority srcnat; ip saddr 127.0.0.0/8 oifname hand masquerade; }}
}}"""
_MILLISECONDS, _CONNECTIONS = "400", "16"


class DataPath:
    """The variants; each round asks all of them."""

    name = "data path"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.directory = place.directory / "datapath"
        self._binary = self.directory / "datapath"
        self._hosts: dict[str, int] = {}
        self._sandboxes: dict[str, Netbox] = {}
        self._servers: list[subprocess.Popen[bytes]] = []

    def missing(self) -> str | None:
        """It needs a C compiler."""
        missing = next((name for name in ("gcc", "nft") if not shutil.which(name)), None)
        return f"{missing} is not installed (apt-get install gcc libc6-dev nftables)" if missing else None

    def version(self) -> str:
        """What is measured."""
        return f"TCP, {_CONNECTIONS} connections with requests, {_MILLISECONDS} ms for each figure"

    def open(self) -> None:
        """Builds the variants and starts the servers. Raises ``Failed``."""
        self.directory.mkdir()
        processes.run(["gcc", "-O2", "-static", "-o", str(self._binary), str(_SOURCE)])
        self._by_hand(BY_HAND)
        self._by_hand(BY_HAND_NAT)
        for backend in BACKENDS:
            self._by_netbox(backend)
        for name in self._hosts:
            processes.wait_until(lambda name=name: self._answers(name), f"the server, {name}")  # type: ignore[misc]

    def _new_host(self, name: str) -> int:
        self._hosts[name] = linux.new_network_namespace()
        with linux.network_namespace(self._hosts[name]):
            _ip("link set lo up")
            _ip(f"address add {_HOST}/32 dev lo")
        return self._hosts[name]

    def _by_hand(self, name: str) -> None:
        inside = linux.new_network_namespace()
        try:
            with linux.network_namespace(inside):
                server = subprocess.Popen([self._binary, "serve", "80"], stdin=subprocess.DEVNULL)
                self._servers.append(server)
                _ip("link set lo up")
            with linux.network_namespace(self._new_host(name)):
                _ip("link add hand type bridge")
                _ip(f"link add hand0 master hand type veth peer name eth0 netns {server.pid}")
                _ip(f"address add {_GATEWAY}/24 dev hand")
                _ip("link set hand0 up")
                _ip("link set hand up")
                if name == BY_HAND_NAT:
                    Path("/proc/sys/net/ipv4/conf/hand/route_localnet").write_text("1")
                    processes.run(["nft", "-f", "-"], text=_NAT)
            with linux.network_namespace(inside):
                _ip(f"address add {_SERVER}/24 dev eth0")
                _ip("link set eth0 up")
                _ip(f"route add default via {_GATEWAY}")
        finally:
            os.close(inside)

    def _by_netbox(self, backend: str) -> None:
        name = f"netbox {backend}"
        netbox = _Netbox(self.place, backend)
        with linux.network_namespace(self._new_host(name)):
            netbox.open()
            self._sandboxes[name] = netbox
            publish = ("-p", f"0.0.0.0:{_PORT}:80", "-v", f"{self._binary}:/datapath:ro")
            netbox(*netbox.run("-d", "--name", "server", *publish, command=("/datapath", "serve", "80")))

    def _answers(self, name: str) -> bool:
        try:
            self._ask(name, "connect", _HOST, "1")
        except Failed:
            return False
        return True

    def tasks(self) -> list[Task]:
        """All figures of every variant; those that are compared come one after the other."""
        return [
            Task(name, (figure,), lambda name=name, figure=figure: self._once(name, figure))  # type: ignore[misc]
            for figure in FIGURES
            for name in self._hosts
        ]

    def _once(self, name: str, figure: str) -> Iterator[Sample]:
        what, _, way = figure.partition("-")
        address = _LOCAL if way == "local" else _HOST
        if what == "stream":
            yield figure, self._ask(name, "stream", address, _MILLISECONDS) * 8 / 1e9
        elif what == "requests":
            yield figure, self._ask(name, "request", address, _MILLISECONDS, _CONNECTIONS) / 1e3
        else:
            yield figure, self._ask(name, "connect", address, _MILLISECONDS) / 1e3

    def _ask(self, name: str, what: str, address: str, *arguments: str) -> float:
        where = (_SERVER, "80") if name == BY_HAND else (address, str(_PORT))
        with linux.network_namespace(self._hosts[name]):
            return float(processes.run([str(self._binary), what, *where, *arguments]))

    def close(self) -> None:
        """Ends the servers and removes the sandboxes."""
        for server in self._servers:
            processes.end(server)
        for name, netbox in self._sandboxes.items():
            with linux.network_namespace(self._hosts[name]), contextlib.suppress(Failed):
                netbox("rm", "-f", "server")
                netbox("gc")
        for namespace in self._hosts.values():
            os.close(namespace)


class _Netbox(Netbox):
    """A netbox with directories of its own and a chosen firewall backend."""

    def __init__(self, place: Place, backend: str) -> None:
        before = dict(os.environ)
        super().__init__(place)
        os.environ.clear()
        os.environ.update(before)
        self.env.update(
            NETBOX_ROOT=str(place.directory / f"datapath-{backend}"),
            NETBOX_RUN=f"/run/netbox-{backend}",
            NETBOX_CGROUP=f"{place.cgroup}/{backend}",
            NETBOX_FIREWALL=backend,
        )


def _ip(command: str) -> None:
    processes.run(["ip", *command.split()])
