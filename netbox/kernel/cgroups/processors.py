"""Whether the processors that a sandbox asks for are there."""

from __future__ import annotations

from netbox.errors import Unsupported

from .values import parse_cpu_list


def check_processors(asked: str, available: str | None) -> None:
    """Raises ``Unsupported`` when ``--cpuset-cpus`` names a processor outside the list ``available``; ``None`` is not known."""
    if not available:
        return
    missing = parse_cpu_list(asked) - parse_cpu_list(available)
    if missing:
        raise Unsupported(f"--cpuset-cpus {asked}: processor {min(missing)} is not there", f"this host has {available}")
