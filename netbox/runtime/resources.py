"""What a monitor and an exec open of the host before they clone, for their child to use."""

from __future__ import annotations

import os

from netbox.runtime.failure import stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read_program(path: str | None) -> bytes | None:
    """The compiled seccomp filter at ``path``, None for none. Raises Failure."""
    if not path:
        return None
    with stage("seccomp", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)


def open_cgroups(cgroup: dict[str, Any]) -> tuple[list[int], int | None]:
    """The v1 ``tasks`` files that the child joins by itself, or the v2 directory that it is cloned into. Raises Failure."""
    fds: list[int] = []
    for path in cgroup["join"]:
        with stage("cgroup", path):
            if cgroup["version"] == 2:
                return [], os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    return fds, None
