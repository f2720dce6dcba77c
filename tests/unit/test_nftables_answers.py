"""An answer of nfnetlink that nobody has read."""

from __future__ import annotations

import errno
import struct

import pytest

from netbox.kernel import nftables


class Kernel:
    """A socket that answers its question with an error number; the first ``recv`` of all is interrupted."""

    interrupted = False

    def __init__(self, number: int) -> None:
        self._number = number
        self._waiting: list[bytes] = []

    def send(self, data: bytes) -> None:
        sequence = struct.unpack_from("=IHHI", data)[3]
        self._waiting.append(struct.pack("=IHHIIi", 20, 2, 0, sequence, 0, -self._number))  # NLMSG_ERROR

    def recv(self, size: int) -> bytes:
        if not Kernel.interrupted:
            Kernel.interrupted = True
            raise KeyboardInterrupt
        return self._waiting.pop(0)

    def close(self) -> None:
        self._waiting.clear()


def test_what_an_interrupt_left_unread_answers_no_other_question(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = iter([Kernel(errno.ENOENT), Kernel(0)])
    kept = nftables._Kept()
    monkeypatch.setattr(nftables, "_kept", kept)
    monkeypatch.setattr(nftables, "_socket", lambda: next(sockets))
    with pytest.raises(KeyboardInterrupt):
        nftables.elements("netbox", "ports", [b"80"])
    assert nftables.elements("netbox", "ports", [b"81"]) == []
    kept.forget_channel()
