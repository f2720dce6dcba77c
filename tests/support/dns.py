"""A DNS client and a resolver for tests, written apart from netbox's own reading and writing of messages."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

A, PTR, TXT, AAAA = 1, 12, 16, 28
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)


class Response(NamedTuple):
    """What came back: addresses and names of the answer section as text, other data raw."""

    id: int
    flags: int
    code: int
    answers: list[tuple[int, int, str | bytes]]
    size: int
    edns: int | None

    @property
    def truncated(self) -> bool:
        return bool(self.flags & 0x200)

    @property
    def values(self) -> list[str | bytes]:
        return [value for _, _, value in self.answers]


def name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in text.encode().split(b".") if label) + b"\0"


def query(text: str, kind: int = A, id: int | None = None, edns: int | None = None, flags: int = 0x100, class_: int = 1) -> bytes:
    number = int.from_bytes(os.urandom(2), "big") if id is None else id
    head = struct.pack("!6H", number, flags, 1, 0, 0, 0 if edns is None else 1)
    opt = b"" if edns is None else b"\0" + struct.pack("!HHIH", 41, edns, 0, 0)
    return head + name(text) + struct.pack("!HH", kind, class_) + opt


def _read_name(data: bytes, offset: int) -> tuple[str, int]:
    labels: list[str] = []
    end = None
    while True:
        length = data[offset]
        if length >= 0xC0:
            end = end or offset + 2
            offset = (length & 0x3F) << 8 | data[offset + 1]
            continue
        offset += 1
        if not length:
            return ".".join(labels), end or offset
        labels.append(data[offset : offset + length].decode())
        offset += length


def parse(data: bytes) -> Response:
    id, flags, questions, answers, authority, additional = struct.unpack_from("!6H", data)
    offset = 12
    for _ in range(questions):
        _, offset = _read_name(data, offset)
        offset += 4
    found: list[tuple[int, int, str | bytes]] = []
    edns = None
    code = flags & 0xF
    for position in range(answers + authority + additional):
        _, offset = _read_name(data, offset)
        kind, class_, ttl, length = struct.unpack_from("!HHIH", data, offset)
        offset += 10
        raw = data[offset : offset + length]
        if kind == 41:
            edns, code = class_, code | (ttl >> 24) << 4
        elif position < answers:
            value: str | bytes = raw
            if kind in (A, AAAA):
                value = socket.inet_ntop(socket.AF_INET if kind == A else socket.AF_INET6, raw)
            elif kind == PTR:
                value = _read_name(data, offset)[0]
            found.append((kind, ttl, value))
        offset += length
    assert offset == len(data), "something stands behind the last record"
    return Response(id, flags, code, found, len(data), edns)


def ask(server: str, text: str, kind: int = A, timeout: float = 20.0, edns: int | None = None, port: int = 53) -> Response:
    """Asks by UDP from the calling thread's network namespace; TimeoutError after ``timeout`` seconds.

    The answer to a question that another socket asked from this port before is not taken for this one's.
    """
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    deadline = time.monotonic() + timeout
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((server, port))
        data = query(text, kind, edns=edns)
        sock.send(data)
        while True:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            answer = sock.recv(65535)
            if answer[:2] == data[:2]:
                return parse(answer)


def read_stream(sock: socket.socket) -> Response | None:
    """The next message of a TCP connection, ``None`` at its end."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        piece = sock.recv(2 - len(data) if len(data) < 2 else 2 + int.from_bytes(data[:2], "big") - len(data))
        if not piece:
            return None
        data += piece
    return parse(data[2:])


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def ask_tcp(server: str, text: str, kind: int = A, timeout: float = 20.0) -> Response:
    """Asks by TCP."""
    with socket.create_connection((server, 53), timeout) as sock:
        sock.sendall(framed(query(text, kind)))
        answer = read_stream(sock)
    assert answer is not None
    return answer


def answer_to(data: bytes, addresses: list[str], code: int = 0, flags: int = 0) -> bytes:
    """A resolver's answer with A records."""
    _, offset = _read_name(data, 12)
    question = data[12 : offset + 4]
    records = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 60, 4) + socket.inet_aton(address) for address in addresses)
    return data[:2] + struct.pack("!5H", 0x8180 | code | flags, 1, len(addresses), 0, 0) + question + records


class Resolver:
    """A resolver at port 53 in the calling thread's network namespace. ``behave(name, tcp, data)`` gives the answer, ``None`` is silence.

    ``asked`` collects the names.
    """

    def __init__(self, address: str, behave: Callable[[str, bool, bytes], bytes | None]) -> None:
        self.asked: list[str] = []
        self._behave = behave
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for sock in (self._udp, self._tcp):
            sock.bind((address, 53))
            sock.settimeout(0.05)
        self._tcp.listen(8)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._serve_udp), threading.Thread(target=self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def _answer(self, data: bytes, tcp: bool) -> bytes | None:
        text = _read_name(data, 12)[0]
        self.asked.append(text)
        return self._behave(text, tcp, data)

    def _serve_udp(self) -> None:
        while not self._stop.is_set():
            try:
                data, peer = self._udp.recvfrom(65535)
            except TimeoutError:
                continue
            answer = self._answer(data, False)
            if answer is not None:
                with contextlib.suppress(OSError):  # the client may be out of reach by now
                    self._udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._tcp.accept()
            except TimeoutError:
                continue
            with connection, contextlib.suppress(OSError):  # a client may hang up at any moment
                connection.settimeout(20)
                length = int.from_bytes(connection.recv(2, socket.MSG_WAITALL), "big")
                data = connection.recv(length, socket.MSG_WAITALL)
                answer = self._answer(data, True) if data else None
                if answer is not None:
                    connection.sendall(framed(answer))

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()
