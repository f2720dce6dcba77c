"""From root in the namespaces to what the command may be and do: user, groups, limits, capabilities, seccomp."""

from __future__ import annotations

import os

from netbox.kernel import capabilities, seccomp, syscalls
from netbox.runtime.failure import Failure, stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# <asm-generic/resource.h>. Not from the module "resource": inside the new root Python finds no module any more.
LIMITS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
"""The resource limits of setrlimit(2) and their numbers."""
_ID_MAX = 0xFFFFFFFE
_SIGKILL = 9
_FILE_MAX = 1 << 20


def find_account(user: str, passwd: str, group: str) -> tuple[int, int, tuple[int, ...], str]:
    """(uid, gid, supplementary groups, home) of ``uid[:gid]`` or ``name[:group]`` by the texts of passwd and group. Pure.

    As Docker has it: an empty user is root; a uid without an entry has gid 0, no groups and the home ``/``; naming a group leaves out the
    supplementary ones. Raises Failure for a name without an entry and for a number out of range.
    """
    name, colon, group_name = user.partition(":")
    name = name or "0"
    entry = _find(passwd, name, 7)
    if entry is None and not _is_id(name):
        raise Failure("user", 2, name, f"no user {name!r} in the sandbox's /etc/passwd")
    uid = _id(entry[2] if entry else name, name)
    gid = _id(entry[3], name) if entry else 0
    home = (entry[5] if entry else "") or "/"
    if colon and group_name:
        group_entry = _find(group, group_name, 4)
        if group_entry is None and not _is_id(group_name):
            raise Failure("user", 2, group_name, f"no group {group_name!r} in the sandbox's /etc/group")
        return uid, _id(group_entry[2] if group_entry else group_name, group_name), (), home
    return uid, gid, _supplementary(group, entry[0]) if entry else (), home


def _find(text: str, name: str, fields: int) -> list[str] | None:
    """The entry of that name, else the first one of that number: a name of digits wins over the number."""
    by_number = None
    for line in text.split("\n"):
        entry = line.split(":")
        if len(entry) < fields or line.startswith("#"):
            continue
        if entry[0] == name:
            return entry
        if by_number is None and entry[2] == name and _is_id(name):
            by_number = entry
    return by_number


def _supplementary(group: str, name: str) -> tuple[int, ...]:
    found = []
    for line in group.split("\n"):
        entry = line.split(":")
        if len(entry) >= 4 and name in entry[3].split(",") and _is_id(entry[2]):
            found.append(int(entry[2]))
    return tuple(found)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _id(text: str, subject: str) -> int:
    if not _is_id(text) or int(text) > _ID_MAX:
        raise Failure("user", 22, subject, f"{text!r} is no id of a user or group (0 to {_ID_MAX})")
    return int(text)


def read_account(user: str) -> tuple[int, int, tuple[int, ...], str]:
    """``find_account`` with the files of the root file system that this process is in."""
    return find_account(user, _read("/etc/passwd"), _read("/etc/group"))


def _read(path: str) -> str:
    try:
        # Not blocking: an image may hold a named pipe here.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        return os.read(fd, _FILE_MAX).decode("utf-8", "surrogateescape")
    except OSError:  # a directory, or whatever else it may be: no entries
        return ""
    finally:
        os.close(fd)


def set_limits(limits: list[list[Any]]) -> None:
    """setrlimit(2) for [name, soft, hard] with names such as ``nofile``; -1 means unlimited. Raises Failure."""
    for name, soft, hard in limits:
        if name not in LIMITS:
            raise Failure("ulimit", 22, name, f"there is no limit {name!r}")
        with stage("ulimit", name):
            syscalls.setrlimit(LIMITS[name], soft, hard)


def drop(config: dict[str, Any], uid: int, gid: int, groups: tuple[int, ...], program: bytes | None, dies_with_parent: bool = True) -> None:
    """Becomes the user with its capabilities, under the filter.

    Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes first then. Raises Failure.
    """
    no_new_privileges = config["no_new_privileges"]
    mask = config["capabilities"]
    with stage("privileges"):
        capabilities.limit_bounding(mask)
        if program and not no_new_privileges:
            seccomp.install(program)
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        capabilities.apply(mask, uid)
        if dies_with_parent:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _SIGKILL)  # a change of credentials cleared it
        if no_new_privileges:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            if program:
                seccomp.install(program)
