"""Names as a sandbox resolves them: which address of several is taken, and what silence means. The servers are threads on loopback."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from netbox.packet import resolving

CONFIG = "nameserver 127.0.0.1\n"
PATIENCE = 20.0
RECORDS = {1: bytes((10, 0, 0, 5)), 28: bytes(15) + b"\5"}


@contextlib.contextmanager
def server(monkeypatch: pytest.MonkeyPatch, *kinds: int, code: int = 0) -> Iterator[None]:
    """Has records of these kinds, and answers questions of all kinds in the order in which they come."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    monkeypatch.setattr(resolving, "_PORT", sock.getsockname()[1])

    def answer() -> None:
        while True:
            query, client = sock.recvfrom(512)
            if query == b"end":
                return
            kind = struct.unpack_from("!H", query, len(query) - 4)[0]
            data = RECORDS[kind] if kind in kinds else b""
            record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 5, len(data)) + data if data else b""
            sock.sendto(query[:2] + struct.pack("!5H", 0x8180 | code, 1, bool(record), 0, 0) + query[12:] + record, client)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"end", sock.getsockname())
        thread.join()
        sock.close()


@pytest.mark.parametrize(
    ("kinds", "ipv6", "addresses"),
    [((1, 28), False, ("10.0.0.5",)), ((1, 28), True, ("::5",)), ((1,), True, ("10.0.0.5",)), ((28,), False, ("::5",)), ((), False, ())],
)
def test_the_wanted_version_comes_first(
    monkeypatch: pytest.MonkeyPatch, kinds: tuple[int, ...], ipv6: bool, addresses: tuple[str, ...]
) -> None:
    with server(monkeypatch, *kinds):
        found = resolving.resolve("db", "", CONFIG, -1, PATIENCE, ipv6)
    assert found.addresses[:1] == addresses
    assert found.outcome == (resolving.FOUND if addresses else resolving.UNKNOWN)


@pytest.mark.parametrize(("code", "outcome"), [(3, resolving.UNKNOWN), (2, resolving.SILENT), (5, resolving.REFUSED)])
def test_what_a_server_says(monkeypatch: pytest.MonkeyPatch, code: int, outcome: str) -> None:
    with server(monkeypatch, code=code):
        assert resolving.resolve("db", "", CONFIG, -1, PATIENCE).outcome == outcome


def test_an_answer_that_came_while_the_process_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks only when the time is over: the answer is there."""
    clock, look = iter([0.0]), select.select
    with server(monkeypatch, 1):
        monkeypatch.setattr("netbox.packet.resolving.time.monotonic", lambda: next(clock, 1000.0))
        monkeypatch.setattr("netbox.packet.resolving.select.select", lambda rs, ws, xs, _: look(rs, ws, xs, PATIENCE))
        found = resolving.resolve("db", "", CONFIG, -1, 1.0)
    assert (found.outcome, found.addresses) == (resolving.FOUND, ("10.0.0.5",))


def test_the_hosts_file_comes_first() -> None:
    hosts = "10.0.0.6 db\n::6 db\n"
    assert resolving.resolve("DB.", hosts, "", -1, PATIENCE, True).addresses == ("::6", "10.0.0.6")
    assert resolving.resolve("web", hosts, "", -1, PATIENCE).outcome == resolving.NO_SERVER
