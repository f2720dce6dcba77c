"""A further process in a running sandbox: the helper that enters its namespaces and stays to pass on input, output and exit code.

Started like a monitor, by the engine, with a channel; it speaks START, STARTED or FAILED, then frames. When the engine's end closes, the
helper ends and the process dies with it (parent-death signal), unless the client said DETACH before: then the process runs on and nobody
reads it. One that was started detached is left to pid 1 of the sandbox.
"""

from __future__ import annotations

import _socket
import os

from netbox.kernel import namespaces, syscalls
from netbox.runtime import console, init, privileges, protocol
from netbox.runtime.attachments import Client
from netbox.runtime.failure import Failure, stage
from netbox.runtime.monitor import detach
from netbox.runtime.resources import open_cgroups, read_program
from netbox.runtime.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_SIGKILL = 9
_CLD_EXITED = 1
_FAILED_EXIT = 125


def main(channel_fd: int = protocol.CHANNEL_FD) -> None:
    """Executes one command for the engine at the other end of ``channel_fd``; returns when it has exited, or was left without a goodbye."""
    detach(channel_fd)
    channel = _socket.socket(fileno=channel_fd)
    message = protocol.receive_message(channel)
    if message is None:
        return
    _, values, fds = message
    config = values["config"]
    pidfd = -1
    try:
        pidfd, sync = _clone(config, fds[0])
        session = Session(pidfd)
        _wait_for_exec(sync, session, config["tty"])
    except Failure as failure:
        _tell(channel, protocol.FAILED, failure.to_message())
        if pidfd >= 0:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        return
    _tell(channel, protocol.STARTED)
    if config["detach"]:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        return
    session.attachments.add(Client(channel, foreground=True))
    if session.run(until_foreground_leaves=True):
        _finish(session, pidfd)
    elif session.attachments.left:
        session.run()
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    else:
        _kill(pidfd)


def _tell(channel: _socket.socket, name: str, values: dict[str, Any] | None = None) -> None:
    try:
        protocol.send_message(channel, name, values)
    except OSError:
        pass  # the engine's end is closed: that is seen, and acted upon, where its frames are read


def _clone(config: dict[str, Any], sandbox: int) -> tuple[int, _socket.socket]:
    """The process, cloned into the sandbox's pid namespace and cgroup; the others it enters itself. Returns (pidfd, our end of sync)."""
    program = read_program(config["seccomp"])
    cgroup_fds, cgroup = open_cgroups(config["cgroup"])
    ours, inner = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    with stage("enter"):
        syscalls.setns(sandbox, namespaces.CLONE_NEWPID)  # for children
        pid, pidfd = syscalls.clone3(0, cgroup)
    if pid == 0:
        _run(config, inner, sandbox, cgroup_fds, program)
    inner.close()
    for fd in (sandbox, *cgroup_fds, *([] if cgroup is None else [cgroup])):
        os.close(fd)
    return pidfd, ours


def _wait_for_exec(sync: _socket.socket, session: Session, terminal: bool) -> None:
    while (message := protocol.receive_message(sync)) is not None:
        name, values, fds = message
        if name == protocol.FAILED:
            raise Failure.from_message(values)
        if fds:
            session.take_stdio(fds, terminal)


def _run(config: dict[str, Any], sync: _socket.socket, sandbox: int, cgroup_fds: list[int], program: bytes | None) -> NoReturn:
    try:
        _become(config, sync, sandbox, cgroup_fds, program)
    except Failure as failure:
        init.report(sync, failure)
    except OSError as error:
        init.report(sync, Failure.of("exec helper", error))
    except BaseException as error:  # noqa: BLE001  (the top of this process)
        init.report(sync, Failure("exec helper", message=f"{type(error).__name__}: {error}"))
    os._exit(_FAILED_EXIT)


def _become(config: dict[str, Any], sync: _socket.socket, sandbox: int, cgroup_fds: list[int], program: bytes | None) -> None:
    dies_with_parent = not config["detach"]
    if dies_with_parent:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _SIGKILL)
    # The sandbox's processes see this one: they must not trace it nor reach its descriptors through /proc while it still has some of the
    # host.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.close_all_except([sync.fileno(), sandbox, *cgroup_fds])
    if config["detach"] and syscalls.clone3(0)[0]:
        os._exit(0)  # the other's parent was a process of the sandbox then, so the sandbox's pid 1 adopts it, not the host's
    with stage("cgroup"):
        for fd in cgroup_fds:
            os.write(fd, b"0")
    _enter(config, sandbox)
    syscalls.close_all_except([sync.fileno()])
    os.setsid()
    init.leave_session_keyring()
    if config["userns"]:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    uid, gid, groups, home = privileges.read_account(config["user"])
    init.enter_directory(config["cwd"], create=False)
    far = _open_stdio(config, uid)
    protocol.send_message(sync, protocol.STDIO, {}, far)
    for fd in far:
        os.close(fd)
    environment = init.environment_of(config["env"], home)
    syscalls.reset_signals(init.IGNORED_SIGNALS)
    privileges.drop(config, uid, gid, groups, program, dies_with_parent)
    # A helper that died while the change of credentials had cleared the parent-death signal: this fails then.
    protocol.write_message(sync.fileno(), protocol.READY, {})
    init.execute(config["argv"], environment)


def _enter(config: dict[str, Any], sandbox: int) -> None:
    kinds = ["mnt", "uts", "ipc", "net", "cgroup"] + [kind for kind in ("user", "time") if kind in config["namespaces"]]
    flags = 0
    for kind in kinds:
        flags |= namespaces.KINDS[kind]
    with stage("enter"):
        syscalls.setns(sandbox, flags)


def _open_stdio(config: dict[str, Any], uid: int) -> list[int]:
    if config["tty"]:
        size = config["console_size"]
        return [console.open_terminal(uid, tuple(size) if size else None, as_console=False)]
    return console.open_pipes(uid, config["open_stdin"], discard=config["detach"])


def _kill(pidfd: int) -> None:
    """Reaps it too: the end of the sandbox would wait until the host's pid 1 does."""
    try:
        syscalls.pidfd_send_signal(pidfd, _SIGKILL)
    except ProcessLookupError:
        pass
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)


def _finish(session: Session, pidfd: int) -> None:
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert result is not None
    session.drain()
    code = result.si_status if result.si_code == _CLD_EXITED else 128 + result.si_status
    session.attachments.send(protocol.EXIT, protocol.exit_payload(code))
    session.attachments.finish()
    session.attachments.close()
