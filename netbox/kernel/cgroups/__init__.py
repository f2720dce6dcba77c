"""Limits, measurement, pausing and killing of the processes of a sandbox, on cgroups version 1 and version 2 alike.

A cgroup is named by its path below each hierarchy (``netbox/<id>``). ``detect`` picks the implementation for this host; both pass one
contract suite.
"""

from __future__ import annotations

import os
from typing import Protocol

from netbox.errors import Unsupported

from .devices import ALLOW_ALL, DEFAULT_DEVICES
from .hierarchies import parse_mountinfo, v1_hierarchies, v2_hierarchy
from .model import DeviceRule, Limits, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ALLOW_ALL", "DEFAULT_DEVICES", "Cgroups", "DeviceRule", "Limits", "Usage", "detect"]


class Cgroups(Protocol):
    """What both versions do. All raise ``HostError`` when a system call fails for a reason that is not the request's."""

    version: int

    def check(self, limits: Limits) -> None:
        """Raises ``UsageError`` for a senseless limit and ``Unsupported`` for one that this host cannot enforce. Touches nothing."""

    def create(self, path: str) -> None:
        """Makes the cgroup and what is missing above it; one that is there already is kept."""

    def join(self, path: str) -> list[str]:
        """Where a new process joins: v1 the ``tasks`` files to which it writes ``0`` itself, v2 the one directory for CLONE_INTO_CGROUP."""

    def apply(self, path: str, limits: Limits) -> None:
        """Sets the limits that are not ``None``, before the start or later. Raises ``UsageError`` or ``Unsupported``."""

    def allow_devices(self, path: str, rules: Iterable[Sequence[str | int]]) -> None:
        """Denies every device but those of ``rules`` (kind, major, minor, access), replacing earlier rules."""

    def freeze(self, path: str) -> None:
        """Stops every process and returns when all stand still."""

    def thaw(self, path: str) -> None:
        """Lets them run again."""

    def is_frozen(self, path: str) -> bool:
        """Whether the whole cgroup stands still; false when it is gone."""

    def processes(self, path: str) -> list[int]:
        """The processes in the cgroup and below it; none when it is gone."""

    def kill(self, path: str, signal: int = 9) -> None:
        """Sends ``signal`` to every process, without a race with fork or with reused ids. Does not wait for their end."""

    def measure(self, path: str) -> Usage:
        """What the sandbox has used. Raises ``HostError`` with ``errno`` ENOENT when the cgroup is gone."""

    def oom_killed(self, path: str) -> bool:
        """Whether the kernel has killed a process of the sandbox for want of memory."""

    def remove(self, path: str, timeout: float = 20.0, parents: bool = True) -> None:
        """Removes the cgroup, those below it and, with ``parents``, the empty ones above, which cost the next one time.

        Idempotent. Waits up to ``timeout`` seconds for processes that are ending. Raises ``HostError`` naming who is left.
        """

    def remove_empty(self, path: str) -> None:
        """Removes the cgroup and those above it as far as nothing is in them. Never fails."""

    def exists(self, path: str) -> bool:
        """Whether the cgroup is there."""

    def describe(self, path: str, limits: Limits, rules: Iterable[Sequence[str | int]] = ()) -> list[str]:
        """What ``create``, ``allow_devices`` and ``apply`` do, as commands that a person would type."""


def detect(mountinfo: str = "/proc/self/mountinfo") -> Cgroups:
    """The implementation for this host; the caller keeps it.

    Where both versions are mounted (systemd's hybrid layout), the controllers decide: version 1 when it has the freezer or memory.
    Raises ``Unsupported`` when no cgroup hierarchy is mounted.
    """
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        mounts = parse_mountinfo(file.read())
    hierarchies = v1_hierarchies(mounts, os.path.exists)
    unified = v2_hierarchy(mounts, os.path.exists)
    if "freezer" in hierarchies or "memory" in hierarchies or (hierarchies and unified is None):
        from .v1 import V1

        return V1(hierarchies)
    if unified is not None:
        from .v2 import V2

        return V2(unified)
    raise Unsupported("no cgroup hierarchy is mounted", "mount one: mount -t cgroup2 none /sys/fs/cgroup")
