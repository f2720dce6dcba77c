"""Lists that the kernel gives in several messages: one that changed meanwhile lacks things that stand, and is asked for again."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

import pytest

from netbox.kernel import nftables, rtnetlink
from netbox.kernel.rtnetlink import NLM_F_DUMP_INTR, NLMSG_DONE, RTM_NEWLINK, RouteSocket

INTERRUPTED, WHOLE = NLM_F_DUMP_INTR, 0
Message = tuple[str, int]  # what it is about, nothing for the end; its flags


class Kernel:
    """A netlink socket: each request is answered by the next dump, a datagram for each message."""

    def __init__(self, *dumps: Sequence[Message]) -> None:
        self.dumps = list(dumps)
        self.asked = 0
        self._waiting: list[Message] = []
        self._sequence = 0

    def send(self, request: bytes) -> int:
        self.asked += 1
        self._sequence = struct.unpack_from("=I", request, 8)[0]
        self._waiting = list(self.dumps.pop(0))
        return len(request)

    def recv(self, size: int) -> bytes:
        name, flags = self._waiting.pop(0)
        kind, body = (RTM_NEWLINK, self.body(name)) if name else (NLMSG_DONE, bytes(4))
        return struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0) + body

    def body(self, name: str) -> bytes:
        return struct.pack("=BxHiII", 0, 1, 2, 0, 0) + rtnetlink.text(rtnetlink.IFLA_IFNAME, name)

    def setsockopt(self, *_: int) -> None:
        """As asked."""

    def close(self) -> None:
        """Nothing is open."""


class Netfilter(Kernel):
    def body(self, name: str) -> bytes:
        return struct.pack("=BBH", socket.AF_INET, 0, 0) + rtnetlink.text(1, name)


END = ("", WHOLE)
LACKING: list[list[Message]] = [
    [("a", WHOLE), ("c", INTERRUPTED), END],
    [("a", INTERRUPTED), ("c", WHOLE), END],  # said once, with the first message after the change
    [("a", WHOLE), ("c", WHOLE), ("", INTERRUPTED)],
]
COMPLETE: list[Message] = [("a", WHOLE), ("b", WHOLE), ("c", WHOLE), END]


@pytest.mark.parametrize("lacking", LACKING)
def test_links(lacking: list[Message]) -> None:
    kernel = Kernel(lacking, COMPLETE)
    assert [link.name for link in RouteSocket(kernel).links()] == ["a", "b", "c"]  # type: ignore[arg-type]
    assert kernel.asked == 2


def test_links_that_come_and_go_all_the_time() -> None:
    kernel = Kernel(*[LACKING[0]] * rtnetlink.DUMPS_MAX)
    assert [link.name for link in RouteSocket(kernel).links()] == ["a", "c"]  # type: ignore[arg-type]
    assert kernel.dumps == []


def test_no_links_at_all() -> None:
    assert RouteSocket(Kernel([END])).links() == []  # type: ignore[arg-type]


@pytest.mark.parametrize("lacking", LACKING)
def test_tables(monkeypatch: pytest.MonkeyPatch, lacking: list[Message]) -> None:
    kernel = Netfilter(lacking, COMPLETE)
    monkeypatch.setattr(nftables, "_socket", lambda: kernel)
    assert nftables.has_table("b")
    assert kernel.asked == 2


def test_tables_that_come_and_go_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Netfilter(*[LACKING[0]] * nftables.DUMPS_MAX)
    monkeypatch.setattr(nftables, "_socket", lambda: kernel)
    assert nftables.has_table("a")
    assert kernel.dumps == []


def test_elements_while_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "_socket", lambda: Netfilter(LACKING[0]))
    assert list(nftables.some_elements("netbox", "ports")) == []
