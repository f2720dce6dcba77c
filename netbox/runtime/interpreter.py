"""Starting netbox's own helper processes: a lean interpreter, from an executable that nobody can write to."""

from __future__ import annotations

import fcntl
import os
import sys
from typing import Any

import netbox
from netbox.errors import host_error
from netbox.kernel import syscalls
from netbox.runtime.protocol import CHANNEL_FD

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(netbox.__file__)))
_NULL = "/dev/null"
_FIRST_FREE = 10
_SIGKILL = 9
_CODE = "import sys; sys.path[:0] = [{root!r}]; from {package}.{module} import main; main()"
_STARTED: set[int] = set()


def spawn(module: str, channel_fd: int, package: str = "netbox.runtime") -> int:
    """Starts ``<package>.<module>.main()`` with ``channel_fd`` as its descriptor 3 and nothing else; returns its pid.

    Raises HostError.
    By posix_spawn, never by fork: the caller may have threads. The interpreter is executed from a detached read-only mount, because a
    command such as /proc/self/exe would make it the sandbox's own program, open for writing through /proc (as in CVE-2019-5736).
    """
    reap()
    executable: str = getattr(sys, "_base_executable", sys.executable)  # not a virtual environment's: that would read pyvenv.cfg and site
    argv = [executable, "-I", "-S", "-c", _CODE.format(root=_ROOT, package=package, module=module)]
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, fd, _NULL, os.O_RDWR, 0) for fd in (0, 1, 2)]
    try:
        # Both out of the way of 0 to 3, which the child replaces before it executes.
        channel, tree = _lift(os.dup(channel_fd)), _lift(syscalls.open_tree(executable))
        actions.append((os.POSIX_SPAWN_DUP2, channel, CHANNEL_FD))
        try:
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, syscalls.MOUNT_ATTR_RDONLY)
            pid = os.posix_spawn(f"/proc/self/fd/{tree}", argv, _environment(), file_actions=actions)
        finally:
            os.close(tree)
            os.close(channel)
    except OSError as error:
        raise host_error("start", f"the {module} process", error) from None
    _STARTED.add(pid)
    return pid


def _lift(fd: int) -> int:
    lifted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    os.close(fd)
    return lifted


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def reap(pid: int | None = None, wait: bool = False) -> None:
    """Collects our dead helper processes, so that a long-lived caller has no zombies.

    All that are dead, or one; ``wait`` waits for that one to die.
    """
    for candidate in list(_STARTED) if pid is None else [pid] if pid in _STARTED else []:
        try:
            done, _ = os.waitpid(candidate, 0 if wait else os.WNOHANG)
        except ChildProcessError:  # the caller's own wait() was faster, or this is a fork of the process that started it
            done = candidate
        if done:
            _STARTED.discard(candidate)


def kill(pid: int) -> None:
    """Kills a helper process of ours, and collects it. One that was collected, by whatever thread, is left alone: its pid may be reused."""
    if pid in _STARTED:
        os.kill(pid, _SIGKILL)
        reap(pid, wait=True)
