"""One line on stderr that tells how far long work is."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

_REDRAW_SECONDS = 0.1


class ProgressLine:
    """Redrawn at most ten times a second and wiped at the end; nothing unless stderr is a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self._on = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._next = 0.0

    def __enter__(self) -> ProgressLine:
        return self

    def show(self, text: str) -> None:
        """Replaces the line, unless that has just been done."""
        now = time.monotonic()
        if self._on and now >= self._next:
            self._next = now + _REDRAW_SECONDS
            self._draw(text)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._on:
            self._draw("")

    @staticmethod
    def _draw(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
