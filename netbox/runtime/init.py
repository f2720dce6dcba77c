"""The sandbox's side of a start: pid 1 from its clone to the exec of the command. Python until then, nothing of it afterwards."""

from __future__ import annotations

import os

from netbox.kernel import namespaces, syscalls
from netbox.runtime import console, privileges, protocol
from netbox.runtime.failure import Failure, stage
from netbox.runtime.filesystem import RootFilesystem, make_directory
from netbox.runtime.trees import Trees, open_trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any, NoReturn

_SIGKILL = 9
IGNORED_SIGNALS = (1, 2, 3, 13, 15, 20)
"""SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM, SIGTSTP: what a monitor ignores (it ends with its sandbox), and its child has to take back."""

_ENOENT = 2
_EACCES = 13
_ENOTDIR = 20
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FAILED_EXIT = 125


def run(config: dict[str, Any], sync: _socket.socket, cgroup_fds: list[int], program: bytes | None) -> NoReturn:
    """Becomes the command, or reports FAILED over ``sync`` and exits.

    ``cgroup_fds`` are opened v1 ``tasks`` files, ``program`` a seccomp filter.
    """
    try:
        _become(config, sync, cgroup_fds, program)
    except Failure as failure:
        report(sync, failure)
    except OSError as error:
        report(sync, Failure.of("init", error))
    except BaseException as error:  # noqa: BLE001  (the top of this process: whatever it was, the engine shall hear of it)
        report(sync, Failure("init", message=f"{type(error).__name__}: {error}"))
    os._exit(_FAILED_EXIT)


def report(sync: _socket.socket, failure: Failure) -> None:
    """Sends FAILED; with write(2), which any seccomp profile has to allow."""
    try:
        protocol.write_message(sync.fileno(), protocol.FAILED, failure.to_message())
    except OSError:
        pass  # the monitor is gone, and this process is about to be


def _become(config: dict[str, Any], sync: _socket.socket, cgroup_fds: list[int], program: bytes | None) -> None:
    # A monitor that died before this line is noticed at the first read of sync.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _SIGKILL)
    syscalls.close_all_except([sync.fileno(), *cgroup_fds])
    join_cgroup(cgroup_fds, config)
    trees = _enter_user_namespace(sync) if config["userns"] else None
    os.setsid()
    os.umask(0o022)
    _set_host_name(config["hostname"])
    leave_session_keyring()
    filesystem = RootFilesystem(config, trees or open_trees(config))
    filesystem.enter()
    filesystem.populate()
    sysctls = filesystem.sysctls
    # Every descriptor of the host goes before a path of the image or the user is looked up: /proc/self/fd/N must not lead out.
    syscalls.close_all_except([sync.fileno(), *([] if sysctls is None else [sysctls])])
    uid, gid, groups, home = privileges.read_account(config["user"])
    far = _open_console(config, uid)
    filesystem.seal()
    enter_directory(config["cwd"])
    protocol.send_message(sync, protocol.STDIO, {}, far)
    for fd in far:
        os.close(fd)
    privileges.set_limits(config["rlimits"])
    if sysctls is not None:
        _expect(sync)  # NETWORK_READY: interfaces have their sysctls once they exist
        _write_sysctls(sysctls, config["sysctls"])
    environment = environment_of(config["env"], home)
    argv = _command(config, environment)
    syscalls.reset_signals(IGNORED_SIGNALS)
    privileges.drop(config, uid, gid, groups, program)
    protocol.write_message(sync.fileno(), protocol.READY, {})
    if sysctls is None:
        _expect(sync)
    _expect(sync)  # GO
    execute(argv, environment)


def _expect(sync: _socket.socket) -> None:
    """Waits for the monitor's next word.

    Exits at end of file: the monitor is dead, and the parent-death signal may have been set too late to tell.
    """
    if not os.read(sync.fileno(), 1):
        os._exit(_FAILED_EXIT)


def join_cgroup(fds: list[int], config: dict[str, Any]) -> None:
    """Moves this process into v1 cgroups (a parent's write to ``cgroup.procs`` would wait for RCU), then roots a cgroup namespace there.

    Raises Failure.
    """
    with stage("cgroup"):
        for fd in fds:
            os.write(fd, b"0")
            os.close(fd)
        if "cgroup" in config["namespaces"]:
            syscalls.unshare(namespaces.CLONE_NEWCGROUP)


def _enter_user_namespace(sync: _socket.socket) -> Trees:
    message = protocol.receive_message(sync)
    if message is None or message[0] != protocol.MAPPED:
        os._exit(_FAILED_EXIT)
    with stage("user namespace"):
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _SIGKILL)
    return Trees.unpack(message[1], message[2])


def _set_host_name(name: str | None) -> None:
    if name:
        with stage("hostname", name):
            syscalls.sethostname(name)


def leave_session_keyring() -> None:
    """No key of the host's session inside; a kernel without keys, or a host that forbids them, has none to leak."""
    try:
        syscalls.join_new_session_keyring()
    except OSError:
        pass


def sysctl_path(name: str) -> str:
    """The path below /proc/sys. As sysctl(8) reads names: where the first separator is a slash, dots belong to the parts."""
    slash, dot = name.find("/"), name.find(".")
    if slash != -1 and (dot == -1 or slash < dot):
        return name
    return name.replace("/", "\0").replace(".", "/").replace("\0", ".")


def _write_sysctls(directory: int, sysctls: list[list[str]]) -> None:
    for name, value in sysctls:
        with stage("sysctl", name):
            fd = os.open(sysctl_path(name), os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
    os.close(directory)


def _open_console(config: dict[str, Any], uid: int) -> list[int]:
    if config["tty"]:
        size = config.get("console_size")
        return [console.open_terminal(uid, tuple(size) if size else None, as_console=True)]
    return console.open_pipes(uid, config["open_stdin"])


def enter_directory(path: str, create: bool = True) -> None:
    """Makes ``path`` the working directory, and exist (as Docker does at a start, not at an exec). Raises Failure."""
    with stage("working directory", path):
        try:
            os.chdir(path)
        except FileNotFoundError:
            if not create:
                raise
            make_directory(path)
            os.chdir(path)
        if not os.getcwd().startswith("/"):  # "(unreachable)": somewhere below the host's root
            raise OSError(_ENOENT, os.strerror(_ENOENT), path)


def environment_of(entries: list[str], home: str) -> dict[str, str]:
    """The command's environment from ``K=V`` entries, later ones winning; HOME is that of the user unless it was set."""
    environment = {}
    for entry in entries:
        key, _, value = entry.partition("=")
        environment[key] = value
    environment.setdefault("HOME", home)
    return environment


def _command(config: dict[str, Any], environment: dict[str, str]) -> list[str]:
    argv: list[str] = config["argv"]
    if not config["init_binary"]:
        return argv
    find(argv[0], environment)  # the reaper would report a missing command by its exit code alone
    return [config["init_binary"], "--", *argv]


def candidates(name: str, environment: dict[str, str]) -> list[str]:
    """The paths that execvp(3) would try for a command."""
    if "/" in name:
        return [name]
    return [f"{directory or '.'}/{name}" for directory in environment.get("PATH", _DEFAULT_PATH).split(":")]


def find(name: str, environment: dict[str, str]) -> None:
    """Raises Failure("exec") when no candidate is an executable file."""
    number = _ENOENT
    for path in candidates(name, environment):
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return
            number = _EACCES
        elif os.path.isdir(path) and "/" in name:
            number = _EACCES
    raise Failure("exec", number, name, os.strerror(number))


def execute(argv: list[str], environment: dict[str, str]) -> NoReturn:
    """execve(2) of the first candidate that works. Raises Failure("exec"): ENOENT only when there is no such file."""
    name = argv[0]
    found = OSError(_ENOENT, os.strerror(_ENOENT))
    for path in candidates(name, environment) if name else ():
        try:
            os.execve(path, argv, environment)
        except OSError as error:
            if error.errno in (_ENOENT, _ENOTDIR):
                if os.path.isfile(path):
                    raise Failure("exec", _ENOENT, name, f"{path} needs an interpreter or loader that is not there") from None
                continue
            found = error
            if error.errno != _EACCES:
                break
        except ValueError as error:
            raise Failure("exec", 22, name, str(error)) from None
    raise Failure("exec", found.errno or 0, name, found.strerror or "")
