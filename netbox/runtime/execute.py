"""Executing a further command in a running sandbox: the engine's side. ``execute_helper`` is the other."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netbox.errors import HostError, NetboxError, UsageError, WrongState, host_error
from netbox.kernel import capabilities
from netbox.runtime import protocol
from netbox.runtime.client import Attachment
from netbox.runtime.failure import Failure
from netbox.runtime.helper import Helper
from netbox.runtime.launcher import error_of
from netbox.runtime.status_file import start_time

KIND = "execute_helper"
_TIMEOUT = 60.0
_DYING = (errno.ESRCH, errno.ENOMEM, errno.ENODEV, errno.ENOENT)  # what clone3, setns and a removed cgroup say of a sandbox that is ending


def start(
    config: Mapping[str, Any],
    pid: int,
    pid_start: int,
    argv: Sequence[str],
    *,
    user: str | None = None,
    working_dir: str | None = None,
    environment: Sequence[str] = (),
    tty: bool = False,
    stdin: bool = False,
    detach: bool = False,
    privileged: bool = False,
    console_size: tuple[int, int] | None = None,
    helper: Callable[[], Helper] | None = None,
) -> Attachment | None:
    """Starts ``argv`` in the sandbox that ``config`` started, with what that says unless told otherwise, by what ``helper`` gives.

    ``environment`` (``K=V``) comes on top of the sandbox's.
    ``pid`` and ``pid_start`` identify the sandbox's first process (status.json). Returns the attachment, None when detached; closing it
    kills the process. Raises WrongState, CommandNotFound, CommandNotExecutable, UsageError, HostError.
    """
    if not argv:
        raise UsageError("no command to execute")
    request = {
        "argv": list(argv),
        "env": [*config["env"], *(["TERM=xterm"] if tty else []), *environment],
        "cwd": working_dir or config["cwd"],
        "user": config["user"] if user is None else user,
        "tty": tty,
        "open_stdin": stdin,
        "console_size": list(console_size) if console_size else None,
        "detach": detach,
        "namespaces": config["namespaces"],
        "userns": config["userns"],
        "cgroup": config["cgroup"],
        "capabilities": capabilities.ALL if privileged else config["capabilities"],
        "no_new_privileges": config["no_new_privileges"] and not privileged,
        "seccomp": None if privileged else config["seccomp"],
    }
    sandbox = _open_process(pid, pid_start)
    try:
        channel = (helper() if helper is not None else Helper.start(KIND)).channel
        try:
            protocol.send_message(channel, protocol.START, {"config": request}, [sandbox])
            _receive_started(channel)
        except OSError as error:
            channel.close()
            raise host_error("talk to", "the exec process", error) from None
        except NetboxError:
            channel.close()
            raise
    finally:
        os.close(sandbox)
    if detach:
        channel.close()
        return None
    return Attachment(channel)


def _open_process(pid: int, pid_start: int) -> int:
    """A pidfd, checked afterwards: what has it now cannot be another process. Raises WrongState."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        raise _not_running() from None
    try:
        same = start_time(pid) == pid_start
    except OSError:
        same = False
    if not same:
        os.close(pidfd)
        raise _not_running()
    return pidfd


def _not_running() -> WrongState:
    return WrongState("cannot execute a command: the sandbox is not running", "'netbox start' starts it")


def _receive_started(channel: socket.socket) -> None:
    channel.settimeout(_TIMEOUT)
    message = protocol.receive_message(channel)
    if message is None:
        raise HostError("the exec process ended unexpectedly", "see whether it was killed (dmesg tells about the OOM killer)")
    name, values, _ = message
    if name == protocol.FAILED:
        failure = Failure.from_message(values)
        if failure.stage in ("enter", "cgroup") and failure.number in _DYING:
            raise _not_running()
        if failure.stage == "working directory":
            raise UsageError(f"cannot enter the working directory {failure.path}: {failure.message}", "name one that is in the sandbox")
        raise error_of(failure)
