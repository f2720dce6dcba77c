"""The sockets of one network, at a port of its gateway addresses, and the TCP connections of its sandboxes.

Every socket is bound to the bridge device as well (SO_BINDTODEVICE, socket(7)): what comes in by another device, also the host's own
loopback, does not reach it. The sockets belong to the network: sandboxes come and go without any being opened or closed.
"""

from __future__ import annotations

import selectors
import socket
import time

from netbox.network.nameservice import message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netbox.network.nameservice.zone import Served

    Reply = Callable[[bytes], None]
    # network, data, client's address, key of the query, reply, by TCP
    Handler = Callable[[str, bytes, str, tuple[Any, ...], Reply, bool], None]

IDLE_TIMEOUT = 10.0  # seconds (RFC 7766, 6.2.3)
MAX_CONNECTIONS = 256
MAX_CONNECTIONS_PER_CLIENT = 32
_BACKLOG = 128
_BATCH = 64
_RECEIVE_BUFFER = 4 << 20  # bytes: thousands of questions wait while another process takes over
_SO_RCVBUFFORCE = 33
_IPV6_FREEBIND = 78  # the address may still be tentative
_OUT_LIMIT = 1 << 20


class Listener:
    """The sockets of a network. Raises OSError."""

    def __init__(self, network: str, bridge: str, gateways: tuple[str, ...], port: int = 53) -> None:
        self.network, self.bridge, self.gateways, self.port = network, bridge, gateways, port
        self._index = socket.if_nametoindex(bridge)
        self.datagram: list[socket.socket] = []
        self.stream: list[socket.socket] = []
        try:
            for gateway in gateways:
                self.datagram.append(self._bound(gateway, socket.SOCK_DGRAM))
                self.stream.append(self._bound(gateway, socket.SOCK_STREAM))
        except OSError:
            self.close()
            raise

    def _bound(self, gateway: str, kind: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.bridge.encode())
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last run may linger
            else:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            sock.bind((gateway, self.port))
            if kind == socket.SOCK_STREAM:
                sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock

    def fits(self, served: Served) -> bool:
        """Whether these are the sockets for a network, on the bridge that stands now: another program may have removed the first one."""
        try:
            index = socket.if_nametoindex(self.bridge)
        except OSError:
            return False
        return (served.bridge, served.gateways, served.port, index) == (self.bridge, self.gateways, self.port, self._index)

    def sockets(self) -> list[socket.socket]:
        """All of them."""
        return self.datagram + self.stream

    def close(self) -> None:
        """Closes all of them."""
        for sock in self.sockets():
            sock.close()


def receive(sock: socket.socket, network: str, handler: Handler) -> None:
    """Takes the datagrams that wait, a batch at most: other sockets have their turn."""
    for _ in range(_BATCH):
        try:
            data, address = sock.recvfrom(message.TCP_MAXIMUM)
        except OSError:  # nothing left, or the error of an answer that did not get through
            return

        def reply(answer: bytes, address: Any = address) -> None:
            try:
                sock.sendto(answer, address)
            except OSError:
                pass  # the sandbox is gone, or the network is

        handler(network, data, address[0], (sock.fileno(), address[0], address[1], data), reply, False)


class Connection:
    """A client's TCP connection: any number of questions, answered as the answers come (RFC 7766, 6.2.1.1)."""

    def __init__(self, sock: socket.socket, network: str, client: str, handler: Handler, selector: selectors.BaseSelector) -> None:
        self.socket, self.network, self.client = sock, network, client
        self._handler, self._selector = handler, selector
        self._in = b""
        self._out = b""
        self._waiting = 0
        self._count = 0  # no question of a stream is a retransmission
        self._ended = False
        self.closed = False
        self.deadline = time.monotonic() + IDLE_TIMEOUT
        selector.register(sock, selectors.EVENT_READ, self._ready)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and not self.closed and not self._ended:
            self._read()

    def _read(self) -> None:
        try:
            data = self.socket.recv(message.TCP_MAXIMUM)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._ended = not data
        self._in += data
        while not self.closed and len(self._in) >= 2:
            length = int.from_bytes(self._in[:2], "big")
            if len(self._in) < 2 + length:
                break
            query, self._in = self._in[2 : 2 + length], self._in[2 + length :]
            self.deadline = time.monotonic() + IDLE_TIMEOUT
            if message.parse(query) is None:  # nothing that we could answer
                self.close()
                return
            self._waiting += 1
            self._count += 1
            self._handler(self.network, query, self.client, (self, self._count), self._reply, True)
        self._settle()

    def _reply(self, answer: bytes) -> None:
        if self.closed:
            return
        self._waiting -= 1
        self.deadline = time.monotonic() + IDLE_TIMEOUT
        self._out += len(answer).to_bytes(2, "big") + answer
        self._flush()

    def _flush(self) -> None:
        try:
            self._out = self._out[self.socket.send(self._out) :] if self._out else b""
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if len(self._out) > _OUT_LIMIT:  # it asks and does not read
            self.close()
            return
        self._settle()

    def _settle(self) -> None:
        """Waits for what there is to wait for, and closes after the last answer when the client has finished sending."""
        if self.closed:
            return
        if self._ended and not self._waiting and not self._out:
            self.close()
            return
        events = (0 if self._ended else selectors.EVENT_READ) | (selectors.EVENT_WRITE if self._out else 0)
        if events:
            try:
                self._selector.modify(self.socket, events, self._ready)
            except KeyError:
                self._selector.register(self.socket, events, self._ready)
        else:
            self._unregister()

    def _unregister(self) -> None:
        try:
            self._selector.unregister(self.socket)
        except KeyError:
            pass

    def close(self) -> None:
        """Closes it; answers that come later are dropped."""
        if not self.closed:
            self.closed = True
            self._unregister()
            self.socket.close()
