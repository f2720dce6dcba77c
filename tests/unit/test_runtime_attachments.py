"""Clients that leave at the wrong moment."""

from __future__ import annotations

import socket

import pytest

from netbox.runtime import protocol
from netbox.runtime.attachments import HIGH_WATER, Attachments, Client


def attached() -> tuple[Attachments, Client, socket.socket]:
    """The clients of a sandbox; the one that started it, which does the clean-up; and that one's end of the connection."""
    near, far = socket.socketpair()
    client = Client(near, foreground=True, claims=True)
    attachments = Attachments(lambda rows, columns: None)
    attachments.add(client)
    return attachments, client, far


def test_who_stays_until_the_end_does_the_clean_up() -> None:
    attachments, _, far = attached()
    assert attachments.finish()
    attachments.close()
    far.close()


def test_who_is_killed_with_output_to_fetch_does_no_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    attachments, client, far = attached()
    attachments.send(protocol.STDOUT, bytes(2 * HIGH_WATER))
    assert client.waiting
    handle = attachments.handle

    def heard(fd: int, events: int) -> None:
        handle(fd, events)
        far.close()

    monkeypatch.setattr(attachments, "handle", heard)
    assert not attachments.finish()


def test_who_is_killed_with_input_on_its_way_does_no_clean_up() -> None:
    attachments, _, far = attached()
    far.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += far.send(protocol.frame(protocol.STDIN, bytes(4000)))
    far.close()
    assert sent > 100_000
    assert not attachments.finish()
    attachments.close()
