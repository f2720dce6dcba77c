"""``netbox check``: what this machine offers, what is missing, and how to get it.

>>> from netbox.engine import check
>>> facts = check.facts(Settings())
>>> check.usable(facts)  # whether a sandbox with a published port can run here
True
"""

from __future__ import annotations

from netbox.engine.checks import host
from netbox.engine.checks.catalogue import LIMITED, MISSING, OK, Fact, judge, usable
from netbox.settings import Settings

__all__ = ["LIMITED", "MISSING", "OK", "Fact", "facts", "usable"]


def facts(settings: Settings | None = None) -> list[Fact]:
    """A fact for every feature and tool that netbox needs or can use, in the order of their groups.

    Tries the kernel's features in child processes and namespaces that end with the call; the machine stays as it is. Needs no root, but
    sees less without. Raises HostError when the probes cannot be run.
    """
    return judge(host.observe(settings or Settings.from_environment()))
