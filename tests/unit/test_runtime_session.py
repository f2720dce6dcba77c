"""The end of a process whose output others can still write to."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from netbox.runtime.session import Session

ENOUGH = 100_000  # reads


class Log:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, stream: str, data: bytes) -> None:
        self.data += data


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the session has


def test_what_lies_in_the_pipe_is_passed_on(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = Log()
    ending = Session(-1, log)  # type: ignore[arg-type]
    ending.take_stdio([reader], terminal=False)
    os.write(writer, b"last words\n" * 2000)
    ending.drain()  # although the writer is still there
    assert log.data == b"last words\n" * 2000


@pytest.mark.parametrize("quick", [True, False])
def test_who_writes_for_ever_does_not_keep_it_from_ending(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int], quick: bool) -> None:
    """``yes &``, and ``while sleep 0.05; do echo y; done &``."""
    reader, _ = pipe
    reads = 0

    class Poll:
        def register(self, fd: int, events: int) -> None:
            assert fd == reader

        def poll(self, timeout: int) -> list[tuple[int, int]]:
            return [(reader, select.POLLIN)] if quick or timeout else []

    def read(fd: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < ENOUGH
        return b"y\n" * 1000 if quick else b"y\n"

    ending = Session(-1)
    ending.take_stdio([reader], terminal=False)
    with monkeypatch.context() as patched:
        patched.setattr("netbox.runtime.session.select.poll", Poll)
        patched.setattr("netbox.runtime.session.os.read", read)
        ending.drain()
