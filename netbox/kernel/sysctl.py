"""Sysctls: which belong to a sandbox's namespaces (pure), and reading and writing /proc/sys (proc_sys(5), namespaces(7)).

A name is written as for sysctl(8): ``net.ipv4.ip_forward`` or ``net/ipv4/ip_forward``. The first separator decides; the other character
then stands for itself, so an interface called ``eth0.1`` is ``net/ipv4/conf/eth0.1/forwarding`` or ``net.ipv4.conf.eth0/1.forwarding``.
"""

from __future__ import annotations

import errno
import os

from netbox.errors import HostError, Unsupported, UsageError

_ROOT = "/proc/sys"

# ipc_namespaces(7). shmmni and the like exist once per IPC namespace, the rest of kernel.* once per machine.
_IPC = frozenset(
    f"kernel/{name}" for name in "msgmax msgmnb msgmni msg_next_id sem sem_next_id shmall shmmax shmmni shm_next_id shm_rmid_forced".split()
)


def relative_path(name: str) -> str:
    """``net/ipv4/ip_forward`` for either way to write it. Raises UsageError for what cannot be the name of a sysctl."""
    dot, slash = name.find("."), name.find("/")
    dotted = dot >= 0 and (slash < 0 or dot < slash)
    path = name.translate({ord("."): "/", ord("/"): "."}) if dotted else name
    parts = path.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") or not part.isprintable() or " " in part for part in parts):
        raise UsageError(f"{name!r} is not the name of a sysctl", "write it as net.ipv4.ip_forward")
    return path


def check(name: str, host_network: bool = False) -> None:
    """Raises UsageError unless the sysctl belongs to a namespace of the sandbox: IPC, and network without ``host_network``. Pure."""
    path = relative_path(name)
    if path in _IPC or path.startswith("fs/mqueue/"):
        return
    if path.startswith("net/"):
        if host_network:
            raise UsageError(
                f"sysctl {name} cannot be set with --network host: it would change this machine's own network",
                "set it on the host with sysctl -w",
            )
        return
    if path == "kernel/hostname":
        raise UsageError(f"sysctl {name} is the host name", "use --hostname")
    raise UsageError(
        f"sysctl {name} cannot be set for one sandbox: it belongs to the whole machine",
        "only net.*, fs.mqueue.* and the kernel.msg*, kernel.sem* and kernel.shm* of System V IPC exist once per sandbox",
    )


def check_value(name: str, value: str) -> None:
    """Raises UsageError for a value that the kernel would read only in part. Pure."""
    if not value.strip() or "\0" in value or "\n" in value:
        raise UsageError(f"sysctl {name}: a value of one line is needed, not {value!r}", f"write it as {name}=1")


def read(name: str) -> str:
    """The value that the calling thread's namespaces have. Raises Unsupported when this kernel does not have the sysctl, HostError."""
    path = relative_path(name)
    try:
        with open(f"{_ROOT}/{path}", "rb") as file:
            return file.read().decode("ascii", "backslashreplace").rstrip("\n")
    except OSError as error:
        raise _error("read", name, None, error) from None


def write(name: str, value: str) -> None:
    """Sets the value for the calling thread's namespaces. Raises Unsupported when this kernel does not have the sysctl, HostError."""
    path = relative_path(name)
    check_value(name, value)
    data = f"{value}\n".encode()
    try:
        descriptor = os.open(f"{_ROOT}/{path}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, data)  # one call: the kernel parses every write by itself
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _error("set", name, value, error) from None


def _error(operation: str, name: str, value: str | None, error: OSError) -> HostError | Unsupported:
    subject = f"sysctl {name}" if value is None else f"sysctl {name} to {value!r}"
    number = error.errno or 0
    if number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return Unsupported(f"cannot {operation} {subject}: there is no such sysctl here", "'netbox check' lists what this kernel lacks")
    hints = {errno.EINVAL: "the kernel refuses the value", errno.EACCES: "run it as root (sudo)", errno.EPERM: "run it as root (sudo)"}
    hints[errno.EROFS] = "/proc/sys is mounted read-only here"
    return HostError(f"cannot {operation} {subject}: {os.strerror(number)}", hints.get(number), number)
