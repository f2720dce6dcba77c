"""The terminal helper of the test suite drives a real tty."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.terminal import Terminal


def test_a_terminal_types_shows_and_resizes(terminal: Callable[..., Terminal]) -> None:
    window = terminal(rows=20, columns=70)
    window.type("stty size; cat /proc/self/ns/net >/dev/null 2>&1 || echo typed-$((40 + 2))")
    window.expect("typed-42")
    assert "20 70" in window.screen()
    window.resize(30, 90)
    window.type("stty size")
    window.expect("30 90")
    before = window.settings()
    window.type("stty -echo")
    window.type("stty echo; echo do''ne")
    window.expect("done")
    assert window.settings() == before
