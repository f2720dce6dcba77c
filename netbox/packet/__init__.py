"""Packets: send them, record them, follow them, explain them. Functions take an ``Engine`` first.

Nothing is loaded until it is asked for: importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "topology": "netbox.packet.drawing.facts",
    "Topology": "netbox.packet.drawing.values",
    "probe": "netbox.packet.probing.api",
    "probe_many": "netbox.packet.probing.api",
    "ProbeRequest": "netbox.packet.probing.values",
    "ProbeAnswer": "netbox.packet.probing.values",
    "ProbeReport": "netbox.packet.probing.values",
    "prove": "netbox.packet.proving",
    "source": "netbox.packet.places",
    "target": "netbox.packet.places",
    "Place": "netbox.packet.places",
    "Target": "netbox.packet.places",
    "capture": "netbox.packet.capturing.api",
    "Recording": "netbox.packet.capturing.api",
    "trace": "netbox.packet.tracing.follow",
    "watch": "netbox.packet.tracing.watching",
    "drops": "netbox.packet.tracing.dropping",
    "Trace": "netbox.packet.tracing.values",
    "Hop": "netbox.packet.tracing.values",
    "Drop": "netbox.packet.tracing.values",
    "why": "netbox.packet.diagnosis.api",
    "Answer": "netbox.packet.diagnosis.values",
    "matrix": "netbox.packet.reachability.measure",
    "Matrix": "netbox.packet.reachability.values",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
