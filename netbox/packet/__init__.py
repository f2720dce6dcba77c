"""Packets: send them, record them, follow them, explain them. Functions take an ``Engine`` first.

Nothing is loaded until it is asked for: importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "trace": "netbox.packet.trace.follow",
    "watch": "netbox.packet.trace.watching",
    "drops": "netbox.packet.trace.dropping",
    "Trace": "netbox.packet.trace.values",
    "Hop": "netbox.packet.trace.values",
    "Drop": "netbox.packet.trace.values",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
