"""What an attempt makes of what its socket says, with a socket of our own."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest

from netbox.packet.diagnosis import attempt
from netbox.packet.diagnosis.values import ANSWERED, ICMP, SILENT, UNREACHABLE, Request

ROUTER = "192.0.2.1"


class RawSocket:
    """Has received what is in ``waiting``, in this order, as soon as something was sent: a function of the message gives an answer
    (bytes), or what an ICMP error quotes (a tuple).
    """

    def __init__(self, *waiting: Any) -> None:
        self._waiting = list(waiting)
        self._quoted: list[bytes] = []
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sent = b""

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ready >= 0:
            os.close(self._ready)
        self._ready = -1

    def fileno(self) -> int:
        return self._ready

    def setsockopt(self, *_: object) -> None:
        pass

    setblocking = connect = setsockopt

    def send(self, message: bytes) -> None:
        self._sent = message
        if self._waiting:
            os.eventfd_write(self._ready, 1)

    def recv(self, _: int) -> bytes:
        found = self._waiting.pop(0)(self._sent)
        if not self._waiting:
            os.eventfd_read(self._ready)
        if isinstance(found, tuple):
            self._quoted.append(found[0])
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return bytes([0x45]) + bytes(19) + bytes(found)

    def recvmsg(self, *_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        if not self._quoted:
            raise BlockingIOError
        too_big = struct.pack("=IBBBxII", errno.EMSGSIZE, 2, 3, 4, 1400, 0) + struct.pack("=HH4s8x", 2, 0, socket.inet_aton(ROUTER))
        return self._quoted.pop(0), [(socket.IPPROTO_IP, 11, too_big)], 0, None


def answer_to(message: bytes) -> bytes:
    return b"\0" + message[1:]


def answer_to_another(message: bytes) -> bytes:
    return b"\0" + message[1:4] + (int.from_bytes(message[4:6], "big") ^ 1).to_bytes(2, "big") + message[6:]


def error_about(message: bytes) -> tuple[bytes]:
    return (message,)


def error_about_another(message: bytes) -> tuple[bytes]:
    return (message[:2] + b"\1\2" + answer_to_another(message)[4:],)


@pytest.mark.parametrize(
    ("waiting", "outcome"),
    [
        ([answer_to], ANSWERED),
        ([error_about], UNREACHABLE),
        ([error_about_another, answer_to], ANSWERED),  # a larger packet to the same address was sent at the same time
        ([error_about_another], SILENT),
        ([answer_to_another, error_about_another, answer_to], ANSWERED),
    ],
)
@pytest.mark.parametrize("timeout", [0.0, 0.1])
def test_an_echo_and_packets_of_others(monkeypatch: pytest.MonkeyPatch, waiting: list[Any], outcome: str, timeout: float) -> None:
    """``timeout`` 0: the process did not run while the answers came."""
    monkeypatch.setattr(attempt, "_socket", lambda *_: RawSocket(*waiting))
    assert attempt.echo(-1, "192.0.2.9", Request(ICMP, timeout=timeout)).outcome == outcome
