"""What the commands that print as it happens have in common: how they say that they watch, when they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from netbox.cli import output

T = TypeVar("T")


def announce(notes: Sequence[str]) -> None:
    """Says on stderr what the reader has to know, and that nothing is missed from now on."""
    for note in notes:
        output.report("note", note)
    print("watching; ctrl-c ends it", file=sys.stderr, flush=True)


def show_each(found: Generator[T, None, None], show: Callable[[T], None], count: int | None) -> None:
    """Shows what comes until there were ``count``, or ctrl-c."""
    left = count
    try:
        for item in found:
            show(item)
            if left is not None:
                left -= 1
                if not left:
                    return
    except KeyboardInterrupt:
        return  # the way to end it
    finally:
        found.close()
