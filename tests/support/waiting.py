"""Bounded waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], what: str = "", timeout: float = 60.0, interval: float = 0.01) -> Value:
    """Calls ``condition`` until it returns something true, and returns that. Fails after ``timeout`` seconds, naming what it waited for."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what or 'a condition'}; last value: {value!r}")
        time.sleep(interval)
