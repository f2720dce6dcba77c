"""Reports of packets that come faster than they are read: every read comes to an end."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from netbox.kernel import log_group, rule_trace
from netbox.kernel.bpf import RingBuffer
from netbox.kernel.log_group import LogGroup
from netbox.kernel.tracefs import TracefsSource

ENOUGH = 100_000
PAGE = 4096


@pytest.fixture
def more() -> Callable[[], None]:
    """To be called for each report that is read."""
    count = 0

    def called() -> None:
        nonlocal count
        count += 1
        assert count < ENOUGH, "it reads for ever"

    return called


class Socket:
    """Has always one more message, each with another number."""

    def __init__(self, more: Callable[[], None]) -> None:
        self._more = more
        self._number = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._more()
        self._number += 1
        return struct.pack("=IHHII", 16, 0, 0, self._number, 0)


def test_a_ring_that_fills_while_it_is_read(more: Callable[[], None]) -> None:
    ring: Any = object.__new__(RingBuffer)
    ring._page, ring._mask, ring._position = PAGE, PAGE - 1, 0
    ring._data, ring._consumer = bytearray(3 * PAGE), bytearray(PAGE)

    def produce(position: int) -> None:
        for start in (PAGE, 2 * PAGE):
            struct.pack_into("=IIQ", ring._data, start + position % PAGE, 8, 0, position)
        struct.pack_into("=Q", ring._data, 0, position + 16)

    produce(0)
    produce(16)
    found = []
    for record in ring.read():
        more()
        found.append(record)
        produce(struct.unpack_from("=Q", ring._data, 0)[0])
    assert len(found) == 2
    assert struct.unpack_from("=Q", ring._consumer, 0) == (32,)
    assert len(list(ring.read())) == 2  # those that came meanwhile


def test_a_trace_pipe(monkeypatch: pytest.MonkeyPatch, more: Callable[[], None]) -> None:
    source: Any = object.__new__(TracefsSource)
    source._pipe, source._rest = -1, b""

    def read(descriptor: int, size: int) -> bytes:
        more()
        return b"another line\n"

    monkeypatch.setattr("netbox.kernel.tracefs.os.read", read)
    assert source.read() == []


def test_records_of_nf_tables(more: Callable[[], None]) -> None:
    assert len(list(rule_trace._waiting(Socket(more)))) > 1000  # type: ignore[arg-type]


def test_records_of_the_log(more: Callable[[], None]) -> None:
    group: Any = object.__new__(LogGroup)
    group._log, group._lock, group._members = Socket(more), threading.Lock(), {}
    kept: list[bytes] = []
    group._keep = kept.append
    group._take()
    assert len(kept) == log_group._WAITING_MAX
