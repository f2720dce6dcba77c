"""Bounded waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
SLOWNESS = float(os.environ.get("NETBOX_TEST_SLOWNESS", "1"))  # how much longer everything may take here: an emulated machine says so


def wait_until(condition: Callable[[], Value], what: str = "", timeout: float = 60.0, interval: float = 0.01) -> Value:
    """Calls ``condition`` until it returns something true, and returns that. Fails after ``timeout`` seconds, naming what it waited for."""
    timeout *= SLOWNESS
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what or 'a condition'}; last value: {value!r}")
        time.sleep(interval)
