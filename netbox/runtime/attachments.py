"""Who is attached to a sandbox: clients of its output and sources of its input, in a single-threaded poll loop.

Memory is bounded: while some client has ``HIGH_WATER`` bytes to fetch, the sandbox's output is not read. A client that came by the control
socket and fetches nothing for ``STALL_SECONDS`` is dropped; the foreground client (the one that started the sandbox) may take its time.
"""

from __future__ import annotations

import _socket
import os
import select
import time

from netbox.runtime import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from netbox.runtime.reservations import Reservations

HIGH_WATER = 256 * 1024
STALL_SECONDS = 5.0
_CHUNK = 64 * 1024
_BACKLOG = 16
_SEND_FLAGS = _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT
_END_OF_INPUT = b"\x04"  # what a terminal's line discipline takes for end of file
CONTROL_SOCKET = "control.sock"


class Client:
    """One attached client and what it has not fetched yet."""

    def __init__(self, connection: _socket.socket, foreground: bool = False, claims: bool = False) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.foreground = foreground
        self.claims = claims
        self.feeds = False
        self.reader = protocol.FrameReader()
        self.fds: list[int] = []  # that came, and that no frame has claimed yet
        self._waiting = bytearray()
        self._progress = time.monotonic()

    @property
    def waiting(self) -> int:
        """Bytes that the client has not fetched."""
        return len(self._waiting)

    def send(self, data: bytes) -> None:
        """Hands over data, now or when the client fetches it. Raises OSError when it is gone."""
        if not self._waiting:
            self._progress = time.monotonic()
        self._waiting += data
        self.flush()

    def flush(self) -> None:
        """Sends as much as the socket takes. Raises OSError when the client is gone."""
        try:
            while self._waiting:
                sent = self.connection.send(self._waiting, _SEND_FLAGS)
                del self._waiting[:sent]
                self._progress = time.monotonic()
        except BlockingIOError:
            pass

    def has_left(self) -> bool:
        """Whether it has hung up, however much of what it said is still unread."""
        poller = select.poll()
        poller.register(self.connection.fileno(), 0)
        return bool(poller.poll(0))

    def stalled(self) -> bool:
        """Whether it holds others up without fetching anything."""
        return not self.foreground and self.waiting >= HIGH_WATER and time.monotonic() - self._progress > STALL_SECONDS


class Input:
    """The sandbox's standard input: a pipe or the terminal's master. Without ``fd`` everything is thrown away."""

    def __init__(self, fd: int | None, terminal: bool) -> None:
        self.fd = fd
        self.terminal = terminal
        self._waiting = bytearray()
        self._ended = False

    @property
    def waiting(self) -> int:
        """Bytes that the sandbox has not read."""
        return len(self._waiting)

    def write(self, data: bytes) -> None:
        """Takes input in; ``flush`` passes it on."""
        if self.fd is not None and not self._ended:
            self._waiting += data
            self.flush()

    def end(self) -> None:
        """End of file after what was written: the pipe is closed, a terminal gets its end-of-file character."""
        if self.terminal:
            self.write(_END_OF_INPUT)
            return
        self._ended = True
        self.flush()

    def flush(self) -> None:
        """Writes as much as the sandbox takes."""
        if self.fd is None:
            return
        try:
            while self._waiting:
                written = os.write(self.fd, memoryview(self._waiting)[:_CHUNK])
                del self._waiting[:written]
        except BlockingIOError:
            return
        except OSError:  # EPIPE, EIO: nobody will read it
            self._waiting.clear()
            self._ended = self._ended or not self.terminal
        if self._ended and not self.terminal:
            os.close(self.fd)
            self.fd = None


class Attachments:
    """All clients of one sandbox, and the control socket at which more arrive."""

    def __init__(self, resize: Callable[[int, int], None]) -> None:
        self.input = Input(None, terminal=False)
        self.left = False
        """Whether a client has said DETACH."""
        self._resize = resize
        self._clients: dict[int, Client] = {}
        self._listener: _socket.socket | None = None
        self._reservations: Reservations | None = None

    def listen(self, run_dir: str, reservations: Reservations | None = None) -> None:
        """Opens the control socket, for root only; clients may change the ``reservations``. Raises OSError."""
        self._reservations = reservations
        directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        path = f"/proc/self/fd/{directory}/{CONTROL_SOCKET}"  # sun_path has 108 bytes only
        mask = os.umask(0o177)
        try:
            listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            listener.bind(path)
            listener.listen(_BACKLOG)
        finally:
            os.umask(mask)
            os.close(directory)
        self._listener = listener

    def add(self, client: Client) -> None:
        """Takes in a connected client."""
        self._clients[client.connection.fileno()] = client

    def interests(self, wanted: dict[int, int]) -> None:
        """Adds what to wait for: poll events by descriptor."""
        if self._listener:
            wanted[self._listener.fileno()] = select.POLLIN
        clogged = self.input.waiting >= HIGH_WATER
        for fd, client in self._clients.items():
            readable = 0 if clogged and client.feeds else select.POLLIN
            wanted[fd] = readable | (select.POLLOUT if client.waiting else 0)
        if self.input.fd is not None and self.input.waiting:
            wanted[self.input.fd] = wanted.get(self.input.fd, 0) | select.POLLOUT

    def handle(self, fd: int, events: int) -> None:
        """Does what an event asks for; events of other descriptors are none of it."""
        if self._listener and fd == self._listener.fileno():
            self._accept()
        elif client := self._clients.get(fd):
            try:
                if events & select.POLLOUT:
                    client.flush()
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._read(client)
            except (OSError, protocol.ProtocolError):
                self._drop(client)
        elif fd == self.input.fd and events & (select.POLLOUT | select.POLLERR):
            self.input.flush()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # all that _socket has; socket.accept() calls it too
        except OSError:  # the client has gone, or there is no descriptor left
            return
        self.add(Client(_socket.socket(fileno=fd)))

    def _read(self, client: Client) -> None:
        try:
            data, fds = protocol.receive_with_fds(client.connection, _CHUNK)
        except BlockingIOError:
            return
        client.fds += fds
        if not data:
            self._drop(client)
            return
        client.reader.feed(data)
        for kind, payload in client.reader.frames():
            if kind == protocol.STDIN:
                client.feeds = True
                self.input.write(payload)
            elif kind == protocol.STDIN_EOF:
                self.input.end()
            elif kind == protocol.RESIZE:
                if size := protocol.parse_resize(payload):
                    self._resize(*size)
            elif kind == protocol.CLAIM:
                client.claims = True
            elif kind == protocol.KEEP and self._reservations:
                fds, client.fds = client.fds, []
                client.send(protocol.frame(protocol.HELD, b"\n".join(self._reservations.keep(payload.split(b"\n"), fds))))
            elif kind == protocol.DETACH:
                # It leaves on purpose: no end of file for the sandbox, and the clean-up is the monitor's again.
                client.foreground = client.claims = False
                self.left = True

    def _drop(self, client: Client) -> None:
        del self._clients[client.connection.fileno()]
        client.connection.close()
        for fd in client.fds:
            os.close(fd)
        # Who leaves a terminal has detached from it; who leaves a pipe was all of its input.
        if client.foreground and not self.input.terminal:
            self.input.end()

    def blocked(self) -> bool:
        """Whether somebody has so much to fetch that no more output should be read."""
        return any(client.waiting >= HIGH_WATER for client in self._clients.values())

    def drop_stalled(self) -> None:
        """Drops the clients that block the sandbox and do not read."""
        for client in [client for client in self._clients.values() if client.stalled()]:
            self._drop(client)

    def send(self, kind: int, payload: bytes) -> None:
        """A frame for everyone."""
        if not self._clients:
            return
        data = protocol.frame(kind, payload)
        for client in list(self._clients.values()):
            try:
                client.send(data)
            except OSError:
                self._drop(client)

    def foreground_gone(self) -> bool:
        """Whether no foreground client is connected (any more)."""
        return not any(client.foreground for client in self._clients.values())

    def finish(self) -> bool:
        """Takes in what clients still say and waits until they have fetched everything; ``close`` hangs up then.

        Returns whether one of them does the clean-up.
        """
        if self._listener:
            self._listener.close()
            self._listener = None
        for client in list(self._clients.values()):
            self.handle(client.connection.fileno(), select.POLLIN)
        give_up = time.monotonic() + STALL_SECONDS
        while pending := [client for client in self._clients.values() if client.waiting]:
            poller = select.poll()
            for client in pending:
                poller.register(client.connection.fileno(), select.POLLOUT)
            for fd, events in poller.poll(1000):
                self.handle(fd, events)
            if time.monotonic() > give_up:
                for client in pending:
                    if client.waiting and not client.foreground:
                        self._drop(client)
        return any(client.claims and not client.has_left() for client in self._clients.values())

    def close(self) -> None:
        """Hangs up: who waited for the end of file finds everything else done."""
        for client in list(self._clients.values()):
            client.connection.close()
        self._clients.clear()
