"""Packets: send them, record them, follow them, explain them. Functions take an ``Engine`` first.

Nothing is loaded until it is asked for: importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "probe": "netbox.packet.probing.api",
    "probe_many": "netbox.packet.probing.api",
    "ProbeRequest": "netbox.packet.probing.values",
    "ProbeAnswer": "netbox.packet.probing.values",
    "ProbeReport": "netbox.packet.probing.values",
    "source": "netbox.packet.places",
    "target": "netbox.packet.places",
    "Place": "netbox.packet.places",
    "Target": "netbox.packet.places",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
