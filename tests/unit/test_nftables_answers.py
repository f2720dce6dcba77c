"""Answers of nfnetlink that are not whole, or that belong to another question."""

from __future__ import annotations

import errno
import struct

import pytest

from netbox.kernel import nftables
from netbox.kernel.netfilter_socket import attribute

INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
TABLE, DONE, ERROR = 10 << 8, 3, 2


class Kernel:
    """A socket: answers each question with the next of ``answers``, lists of (type, flags, what follows the header)."""

    def __init__(self, *answers: list[tuple[int, int, bytes]]) -> None:
        self._answers = iter(answers)
        self._waiting: list[bytes] = []
        self.interrupt = False

    def send(self, data: bytes) -> None:
        sequence = struct.unpack_from("=IHHI", data)[3]
        self._waiting += [struct.pack("=IHHII", 16 + len(body), *head, sequence, 0) + body for *head, body in next(self._answers)]

    def recv(self, size: int) -> bytes:
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        return self._waiting.pop(0)

    def close(self) -> None:
        pass


def table(name: bytes, flags: int = 0) -> tuple[int, int, bytes]:
    return TABLE, flags, struct.pack("=BBH", 2, 0, 0) + attribute(1, name + b"\0")


def use(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    monkeypatch.setattr(nftables, "_socket", lambda: kernel)
    monkeypatch.setattr(nftables._kept, "channel", lambda: kernel)


def test_a_dump_that_was_interrupted_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    done = (DONE, 0, bytes(4))
    changed = [table(b"one"), (DONE, INTERRUPTED, bytes(4))]
    use(monkeypatch, Kernel(changed, [table(b"one", INTERRUPTED), table(b"two"), done], [table(b"one"), table(b"netbox"), done]))
    assert nftables.has_table("netbox")
    use(monkeypatch, Kernel(*[changed] * 10))  # somebody changes something all the time
    assert not nftables.has_table("netbox")


def test_what_an_interrupt_left_unread_answers_no_other_question(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = (ERROR, 0, struct.pack("=i", -errno.ENOENT))
    there = (ERROR, 0, struct.pack("=i", 0))
    kernel = Kernel([absent], [there])
    use(monkeypatch, kernel)
    kernel.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        nftables.elements("netbox", "ports", [b"80"])
    assert nftables.elements("netbox", "ports", [b"81"]) == []
