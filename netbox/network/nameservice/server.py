"""The process ``netbox-names``: answers on the gateway addresses of all user-defined networks.

There are two of it. The *server* has the sockets and answers; the *standby* is a fork of it that has the same sockets and does nothing but
wait for the server's end, to take its place and fork a standby in turn. Questions that come in between wait in the sockets. Whenever
sockets are opened or closed, the server replaces the standby by a fresh fork. The lock that says "alive" is an open file description that
both share: it is free when both are gone.
"""

from __future__ import annotations

import gc
import json
import os
import select
import selectors
import signal
import socket
import time
from functools import partial

from netbox.kernel import capabilities, syscalls
from netbox.network.nameservice import files, message, zone
from netbox.network.nameservice.follower import Follower
from netbox.network.nameservice.forwarder import Forwarder, nameservers
from netbox.network.nameservice.listeners import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_CLIENT, Connection, Listener, receive
from netbox.runtime.monitor import detach
from netbox.runtime.protocol import CHANNEL_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from netbox.network.nameservice.listeners import Reply
    from netbox.network.nameservice.zone import Served

PROCESS_NAME = "netbox-names"
RESOLV_CONF = "/etc/resolv.conf"
_OPEN_FILES = 8192
_RLIMIT_NOFILE = 7
_FORK_RETRY = 1.0  # seconds
# A port below 1024, SO_BINDTODEVICE, SO_RCVBUFFORCE and rules: capabilities(7). Not those by which root reads and kills everything.
_CAPABILITIES = ("NET_BIND_SERVICE", "NET_RAW", "NET_ADMIN")
_PR_SET_NO_NEW_PRIVS = 38


def main(channel_fd: int = CHANNEL_FD) -> None:
    """Serves until the last network is gone. The channel brings the run directory, the command to follow dockerd with and the lock, and
    takes the first report.
    """
    detach(channel_fd)
    channel = socket.socket(fileno=channel_fd)
    data, fds, _, _ = socket.recv_fds(channel, 1 << 16, 1)
    if not fds:  # the one who started us died
        return
    os.set_inheritable(fds[0], False)  # never closed: the lock is held as long as this process or its standby lives
    order = json.loads(data)
    server = Server(order["run"], Follower(order["command"], order["environment"]))
    _restrict()
    server.start(channel)
    server.serve()


def _restrict() -> None:
    with open("/proc/self/comm", "w") as file:
        file.write(PROCESS_NAME)
    try:
        syscalls.setrlimit(_RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES)
    except OSError:
        pass  # the caller's own limit stands; the forwarder gives up earlier
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    capabilities.apply(capabilities.mask_of(_CAPABILITIES), 0)


class Resolvers:
    """The resolvers of the host, read again when its resolv.conf has changed."""

    def __init__(self, path: str = RESOLV_CONF) -> None:
        self._path = path
        self._stamp: object = None
        self._text = ""

    def current(self, own: set[str]) -> tuple[str, ...]:
        """The addresses, less our own."""
        try:
            status = os.stat(self._path)
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp != self._stamp:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._text, self._stamp = file.read(), stamp
        except OSError:
            self._text, self._stamp = "", None
        return nameservers(self._text, own)


class Server:
    """The sockets and what goes on at them."""

    def __init__(self, run: str, follower: Follower) -> None:
        self._run = run
        self._follower = follower
        self._reader = files.Reader(run)
        self._resolvers = Resolvers()
        self._listeners: dict[str, Listener] = {}
        self._connections: set[Connection] = set()
        self._control: socket.socket | None = None
        self._reports: list[tuple[socket.socket, bytes]] = []
        self._standby: tuple[int, int] | None = None  # pid, pidfd
        self._fork_at: float | None = None
        self._stale = False
        self._turn = 0
        self._selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._forwarder = Forwarder(self._selector)

    # -- life --------------------------------------------------------------------------------------------------------------------------

    def start(self, channel: socket.socket) -> None:
        """Opens the control socket, in place of one that a killed predecessor left, and the sockets of all networks; the first report
        goes to ``channel``. Raises OSError.
        """
        directory = os.open(files.directory(self._run), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        path = f"/proc/self/fd/{directory}/{files.CONTROL_SOCKET}"  # the real one may be longer than sun_path (unix(7))
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._control.bind(path)
        os.close(directory)
        self._control.listen(16)
        self._selector.register(self._control, selectors.EVENT_READ, self._on_control)
        self._follower.watch(self._selector)
        self._reports.append((channel, self._synchronize()))

    def serve(self) -> None:
        """Answers until no network is left."""
        while True:
            if self._fork_at is not None and self._fork_at <= time.monotonic():
                self._fork_standby()
            self._send_reports()
            if not self._listeners and not files.networks(self._run):
                return
            deadlines = [item.deadline for item in self._connections]
            deadlines += [item for item in (self._forwarder.next_deadline(), self._fork_at) if item is not None]
            for key, events in self._selector.select(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None):
                key.data(events)
            self._forwarder.expire()
            self._close_idle()
            if self._stale:
                self._stale = False
                self._synchronize()

    def _synchronize(self) -> bytes:
        """Opens and closes sockets so that they are those of the networks on file, and reports, as JSON, what could not be opened."""
        wanted = {name: item.served for name, item in self._reader.zones().networks.items()}
        gone = [name for name, listener in self._listeners.items() if name not in wanted or not listener.fits(wanted[name])]
        missing = [name for name in wanted if name not in self._listeners or name in gone]
        if gone:
            self._end_standby()  # it has the same sockets
        for name in gone:
            self._close_network(name)
        errors: dict[str, list[Any]] = {}
        for name in missing:
            try:
                self._open_network(wanted[name])
            except OSError as error:
                errors[name] = [error.errno, error.strerror or str(error)]
        if self._listeners and (gone or len(missing) > len(errors)):
            self._fork_at = 0.0  # in the loop, before the report
        return self._report(errors)

    def _report(self, errors: dict[str, list[Any]]) -> bytes:
        standby = self._standby[0] if self._standby is not None else None
        return json.dumps({"pid": os.getpid(), "standby": standby, "networks": sorted(self._listeners), "errors": errors}).encode()

    def _open_network(self, served: Served) -> None:
        listener = Listener(served.name, served.bridge, served.gateways, served.port)
        self._listeners[served.name] = listener
        self._watch_network(listener)

    def _watch_network(self, listener: Listener) -> None:
        for sock in listener.datagram:
            self._selector.register(sock, selectors.EVENT_READ, partial(self._on_datagram, sock, listener.network))
        for sock in listener.stream:
            self._selector.register(sock, selectors.EVENT_READ, partial(self._on_connection, sock, listener.network))

    def _close_network(self, name: str) -> None:
        listener = self._listeners.pop(name)
        for sock in listener.sockets():
            self._selector.unregister(sock)
        listener.close()
        for connection in [item for item in self._connections if item.network == name]:
            connection.close()
            self._connections.discard(connection)

    # -- the control socket ------------------------------------------------------------------------------------------------------------

    def _on_control(self, _events: int) -> None:
        assert self._control is not None
        try:
            peer, _ = self._control.accept()
        except OSError:  # it has gone again
            return
        self._selector.register(peer, selectors.EVENT_READ, partial(self._on_request, peer))

    def _on_request(self, peer: socket.socket, _events: int) -> None:
        self._selector.unregister(peer)
        try:
            asked = peer.recv(16)
        except OSError:
            asked = b""
        if asked:
            self._reports.append((peer, self._report({}) if asked == files.STATUS else self._synchronize()))
        else:
            peer.close()

    def _send_reports(self) -> None:
        for peer, report in self._reports:
            try:
                peer.send(report)
            except OSError:
                pass  # killed while it waited
            peer.close()
        self._reports.clear()

    # -- the standby -------------------------------------------------------------------------------------------------------------------

    def _fork_standby(self) -> None:
        """Forks a standby that has the sockets of this moment. Returns in the standby, too: once it has become the server."""
        self._end_standby()
        self._fork_at = None
        own = os.pidfd_open(os.getpid())
        gc.collect()
        gc.freeze()  # a collection in either would copy every page
        try:
            pid = os.fork()
        except OSError:
            os.close(own)
            self._fork_at = time.monotonic() + _FORK_RETRY
            return
        if pid:
            os.close(own)
            self._standby = (pid, os.pidfd_open(pid))
            self._selector.register(self._standby[1], selectors.EVENT_READ, self._on_standby_end)
            return
        self._let_go()
        waiting = select.poll()
        waiting.register(own, select.POLLIN)
        waiting.poll()
        os.close(own)
        self._take_over()

    def _let_go(self) -> None:
        """In the standby: closes its copies of what only the server works with, else a connection that the server closes would stay."""
        mine = {self._control, *(sock for listener in self._listeners.values() for sock in listener.sockets())}
        others: list[Any] = [key.fileobj for key in self._selector.get_map().values() if key.fileobj not in mine]
        others += [connection.socket for connection in self._connections]
        # First of all the selector: epoll(7) instances are shared after a fork, and to unregister here would be to unregister there.
        self._selector.close()
        for item in others + [peer for peer, _ in self._reports]:
            if isinstance(item, int):
                os.close(item)
            else:
                item.close()
        self._reports.clear()
        self._connections.clear()
        self._standby = None

    def _take_over(self) -> None:
        """In the standby, when the server is dead: does what it did."""
        self._selector = selectors.DefaultSelector()
        self._forwarder = Forwarder(self._selector)
        assert self._control is not None
        self._selector.register(self._control, selectors.EVENT_READ, self._on_control)
        for listener in self._listeners.values():
            self._watch_network(listener)
        self._follower.watch(self._selector)
        self._follower.follow()  # its predecessor may have died of just that moment
        self._stale = True  # the predecessor may have died between a change of the files and that of the sockets
        self._fork_at = time.monotonic()

    def _on_standby_end(self, _events: int) -> None:
        self._end_standby()
        self._fork_at = time.monotonic()

    def _end_standby(self) -> None:
        if self._standby is not None:
            pid, pidfd = self._standby
            self._standby = None
            self._selector.unregister(pidfd)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # a zombie takes it, too
            os.waitpid(pid, 0)
            os.close(pidfd)

    # -- questions ---------------------------------------------------------------------------------------------------------------------

    def _on_datagram(self, sock: socket.socket, network: str, _events: int) -> None:
        receive(sock, network, self._on_query)

    def _on_connection(self, sock: socket.socket, network: str, _events: int) -> None:
        try:
            peer, address = sock.accept()
        except OSError:  # the client has gone again
            return
        client = address[0]
        same = sum(item.client == client for item in self._connections)
        if same >= MAX_CONNECTIONS_PER_CLIENT or len(self._connections) >= MAX_CONNECTIONS:
            peer.close()
            return
        peer.setblocking(False)
        self._connections.add(Connection(peer, network, client, self._on_query, self._selector))

    def _on_query(self, network: str, data: bytes, client: str, key: tuple[Any, ...], reply: Reply, tcp: bool) -> None:
        query = message.parse(data)
        if query is None:
            return
        limit = message.TCP_MAXIMUM if tcp else message.udp_limit(query)
        if query.error:
            reply(message.respond(query, query.error, limit=limit))
            return
        zones = self._reader.zones()
        if network not in zones.networks:
            self._stale = True
        self._turn += 1
        source = zone.packed(client.partition("%")[0])
        decision = zones.decide(network, source, query, self._turn)
        if isinstance(decision, zone.Answer):
            reply(message.respond(query, decision.code, decision.records, limit, authoritative=decision.code != message.REFUSED))
            return
        own = {gateway for listener in self._listeners.values() for gateway in listener.gateways}
        resolvers = decision.resolvers or self._resolvers.current(own)

        def answer(response: bytes) -> None:
            reply(response if tcp else message.shortened(response, query))

        self._forwarder.submit(key, source, data, query, resolvers, answer, tcp)

    def _close_idle(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.deadline <= now:
                connection.close()
            if connection.closed:
                self._connections.discard(connection)
