"""Where the cgroup hierarchies are mounted, from the text of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)). Pure but for ``exists``."""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")


class CgroupMount(NamedTuple):
    """One mount: ``version`` 1 or 2, its ``controllers`` (v1 only), the cgroup that it shows (``root``) and where."""

    version: int
    controllers: tuple[str, ...]
    root: str
    path: str


def parse_mountinfo(text: str) -> list[CgroupMount]:
    """The cgroup mounts, oldest first. Lines of another shape are passed over."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(source) < 3:
            continue
        if source[0] == "cgroup2":
            mounts.append(CgroupMount(2, (), _unescape(fields[3]), _unescape(fields[4])))
        elif source[0] == "cgroup":
            controllers = tuple(option for option in source[-1].split(",") if option in V1_CONTROLLERS)
            if controllers:  # not a named hierarchy such as name=systemd
                mounts.append(CgroupMount(1, controllers, _unescape(fields[3]), _unescape(fields[4])))
    return mounts


def v1_hierarchies(mounts: list[CgroupMount], exists: Callable[[str], bool]) -> dict[str, str]:
    """Controller → directory of its hierarchy.

    Of several mounts of one hierarchy, the newest that shows its root wins: a later mount on ``/sys`` hides the older ones.
    """
    found: dict[str, CgroupMount] = {}
    for mount in mounts:
        if mount.version != 1 or not exists(f"{mount.path}/cgroup.procs"):
            continue
        for controller in mount.controllers:
            known = found.get(controller)
            if known is None or mount.root == "/" or known.root != "/":
                found[controller] = mount
    return {controller: found[controller].path for controller in V1_CONTROLLERS if controller in found}


def v2_hierarchy(mounts: list[CgroupMount], exists: Callable[[str], bool]) -> str | None:
    """The directory of the unified hierarchy, chosen likewise."""
    chosen: CgroupMount | None = None
    for mount in mounts:
        if mount.version == 2 and exists(f"{mount.path}/cgroup.procs") and (chosen is None or mount.root == "/" or chosen.root != "/"):
            chosen = mount
    return chosen.path if chosen else None


def _unescape(field: str) -> str:
    """Undoes the kernel's octal escapes of space, tab, newline and backslash."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
