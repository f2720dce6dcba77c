"""Questions for others: passed on, as they are, to the resolvers of the host or of ``--dns``.

Every question gets sockets of its own, so its source port is as random as its id (RFC 5452). A resolver that is silent for
``ATTEMPT_TIMEOUT`` is not given up, but the next one is asked as well; the first good answer counts. After ``PATIENCE`` the client is told
SERVFAIL, before it would give up itself (5 s: resolv.conf(5)).
"""

from __future__ import annotations

import os
import selectors
import socket
import time

from netbox.network.nameservice import message
from netbox.network.nameservice.message import Question

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from typing import Any

ATTEMPT_TIMEOUT = 1.0  # seconds
PATIENCE = 4.0  # seconds
AVOIDED = 10.0  # seconds for which a resolver that failed is the last one to be asked
MAX_RESOLVERS = 6
MAX_EXCHANGES = 1000
MAX_EXCHANGES_PER_CLIENT = 250
PORT = 53
_RECEIVE = 65535
# Another resolver may know better; see also the retry rules of res_send in glibc.
_RETRY_CODES = (message.SERVFAIL, message.NOTIMP, message.REFUSED)


def nameservers(resolv_conf: str, own: Iterable[str] = ()) -> tuple[str, ...]:
    """The resolvers that a resolv.conf names, less our ``own`` addresses (a host that asks us must not be asked by us). None named: the
    one on this host, as resolv.conf(5) has it."""
    lines = [line.split() for line in resolv_conf.splitlines()]
    found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return tuple(server for server in found or ["127.0.0.1"] if server not in own)


class Forwarder:
    """The questions that are with others."""

    def __init__(self, selector: selectors.BaseSelector, clock: Callable[[], float] = time.monotonic) -> None:
        self.selector = selector
        self.clock = clock
        self.exchanges: dict[Hashable, Exchange] = {}
        self._per_client: dict[bytes, int] = {}
        self._avoided: dict[str, float] = {}

    def submit(
        self,
        key: Hashable,
        client: bytes,
        data: bytes,
        query: Question,
        resolvers: Iterable[str],
        answer: Callable[[bytes], None],
        tcp: bool = False,
    ) -> None:
        """Passes a question on; ``answer`` is called once with the response. The same ``key`` again is the client's retransmission."""
        if key in self.exchanges:
            return
        now = self.clock()
        order = sorted(list(dict.fromkeys(resolvers))[:MAX_RESOLVERS], key=lambda server: self._avoided.get(server, 0.0) > now)
        if not order or len(self.exchanges) >= MAX_EXCHANGES or self._per_client.get(client, 0) >= MAX_EXCHANGES_PER_CLIENT:
            answer(message.respond(query, message.SERVFAIL))
            return
        self._per_client[client] = self._per_client.get(client, 0) + 1
        exchange = Exchange(self, key, client, data, query, order, answer, tcp)
        self.exchanges[key] = exchange
        exchange.ask_next()

    def next_deadline(self) -> float | None:
        """When ``expire`` has something to do, on the clock."""
        return min((exchange.due for exchange in self.exchanges.values()), default=None)

    def expire(self) -> None:
        """Asks the next resolver, or gives up, where time has run out."""
        now = self.clock()
        for exchange in [item for item in self.exchanges.values() if item.due <= now]:
            exchange.expire()

    def close(self) -> None:
        """Drops everything without an answer."""
        for exchange in list(self.exchanges.values()):
            exchange.close()

    def avoid(self, server: str) -> None:
        """A resolver was silent or refused to talk."""
        self._avoided[server] = self.clock() + AVOIDED

    def trust(self, server: str) -> None:
        """A resolver answered."""
        self._avoided.pop(server, None)

    def forget(self, exchange: Exchange) -> None:
        """An exchange is over."""
        if self.exchanges.pop(exchange.key, None) is not None:
            self._per_client[exchange.client] -= 1
            if not self._per_client[exchange.client]:
                del self._per_client[exchange.client]


class Exchange:
    """One question on its way."""

    def __init__(
        self,
        forwarder: Forwarder,
        key: Hashable,
        client: bytes,
        data: bytes,
        query: Question,
        resolvers: list[str],
        answer: Callable[[bytes], None],
        tcp: bool,
    ) -> None:
        self.key, self.client = key, client
        self._forwarder, self._query, self._resolvers, self._answer, self._tcp = forwarder, query, resolvers, answer, tcp
        self._id = int.from_bytes(os.urandom(2), "big")
        self._data = message.with_id(data, self._id)
        self._open: dict[str, Datagram | Stream] = {}
        self._failed: set[str] = set()
        self._turn = 0
        self._done = False
        self._fallback = message.respond(query, message.SERVFAIL)
        self._deadline = forwarder.clock() + PATIENCE
        self.due = self._deadline

    def ask_next(self) -> None:
        """Asks the next resolver that has not failed, again from the first one; gives up when all have."""
        while len(self._failed) < len(self._resolvers):
            server = self._resolvers[self._turn % len(self._resolvers)]
            self._turn += 1
            if server in self._failed:
                continue
            self.due = min(self._forwarder.clock() + ATTEMPT_TIMEOUT, self._deadline)
            try:
                link = self._open.get(server)
                if link is None:
                    link = self._open[server] = (Stream if self._tcp else Datagram)(self, server)
                link.send(self._data)
                return
            except (OSError, ValueError):  # no route, or no address at all
                self._fail(server)
        self._finish(self._fallback)

    def expire(self) -> None:
        """The resolver asked last has been silent for too long."""
        self._forwarder.avoid(self._resolvers[(self._turn - 1) % len(self._resolvers)])
        if self._forwarder.clock() >= self._deadline:
            self._finish(self._fallback)
        else:
            self.ask_next()

    def failed(self, server: str) -> None:
        """A resolver cannot be talked to."""
        if self._done:
            return  # this event came together with the one that brought the answer
        self._fail(server)
        self.ask_next()

    def received(self, server: str, data: bytes) -> bool:
        """A message came from a resolver. Returns whether it was the answer, or a refusal to give one."""
        if self._done or not message.is_response_to(data, self._id, self._query):
            return False
        self._forwarder.trust(server)
        if message.code_of(data) in _RETRY_CODES:
            self._fallback = message.with_id(data, self._query.id)
            self._close_link(server)
            self._failed.add(server)
            self.ask_next()
        else:
            self._finish(message.with_id(data, self._query.id))
        return True

    def watch(self, sock: socket.socket, events: int, handler: Callable[[int], None]) -> None:
        """Registers or changes what is waited for."""
        try:
            self._forwarder.selector.modify(sock, events, handler)
        except KeyError:
            self._forwarder.selector.register(sock, events, handler)

    def unwatch(self, sock: socket.socket) -> None:
        """No longer waits for a socket, which may never have been watched."""
        try:
            self._forwarder.selector.unregister(sock)
        except KeyError:
            pass

    def close(self) -> None:
        """Lets go of everything."""
        self._done = True
        self._forwarder.forget(self)
        for server in list(self._open):
            self._close_link(server)

    def _fail(self, server: str) -> None:
        self._forwarder.avoid(server)
        self._close_link(server)
        self._failed.add(server)

    def _close_link(self, server: str) -> None:
        link = self._open.pop(server, None)
        if link is not None:
            link.close()

    def _finish(self, data: bytes) -> None:
        self.close()
        self._answer(data)


class Link:
    """What is common to a datagram socket and a stream to a resolver. Raises OSError for what is no address or has no route."""

    kind = socket.SOCK_DGRAM

    def __init__(self, exchange: Exchange, server: str) -> None:
        self.exchange, self.server = exchange, server
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        self.address: Any
        family, _, _, _, self.address = socket.getaddrinfo(server, PORT, 0, self.kind, 0, flags)[0]
        self.socket = socket.socket(family, self.kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def close(self) -> None:
        """Ends the talk."""
        self.exchange.unwatch(self.socket)
        self.socket.close()


class Datagram(Link):
    """A question by UDP. The socket is connected: only that resolver's answers get in, and a closed port is told by ICMP."""

    def __init__(self, exchange: Exchange, server: str) -> None:
        super().__init__(exchange, server)
        try:
            self.socket.connect(self.address)
        except OSError:
            self.socket.close()
            raise
        exchange.watch(self.socket, selectors.EVENT_READ, self._ready)

    def send(self, data: bytes) -> None:
        """Sends the question, or sends it again. Raises OSError."""
        self.socket.send(data)

    def _ready(self, _events: int) -> None:
        try:
            data = self.socket.recv(_RECEIVE)
        except BlockingIOError:  # a datagram with a wrong checksum wakes and is gone
            return
        except OSError:
            self.exchange.failed(self.server)
            return
        self.exchange.received(self.server, data)


class Stream(Link):
    """A question by TCP: a connection for this one question (RFC 7766)."""

    kind = socket.SOCK_STREAM

    def __init__(self, exchange: Exchange, server: str) -> None:
        super().__init__(exchange, server)
        self._out = b""
        self._in = b""
        try:
            self.socket.connect(self.address)
        except BlockingIOError:
            pass
        except OSError:
            self.socket.close()
            raise

    def send(self, data: bytes) -> None:
        """Sends the question once connected. TCP does its own retransmissions: a second call changes nothing."""
        if not self._out:
            self._out = len(data).to_bytes(2, "big") + data
            self.exchange.watch(self.socket, selectors.EVENT_WRITE, self._writable)

    def _writable(self, _events: int) -> None:
        try:
            # A question is small and the connection fresh: its buffer takes all of it.
            if self.socket.send(self._out) < len(self._out):
                raise OSError("short write")
        except OSError:
            self.exchange.failed(self.server)
            return
        self.exchange.watch(self.socket, selectors.EVENT_READ, self._readable)

    def _readable(self, _events: int) -> None:
        try:
            data = self.socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._in += data
        if not data:
            self.exchange.failed(self.server)
        elif len(self._in) >= 2 and len(self._in) >= 2 + int.from_bytes(self._in[:2], "big"):
            answer = self._in[2 : 2 + int.from_bytes(self._in[:2], "big")]
            if not self.exchange.received(self.server, answer):
                self.exchange.failed(self.server)
