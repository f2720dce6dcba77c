"""Namespaces: their flags, and work inside another network namespace from outside (namespaces(7), setns(2))."""

from __future__ import annotations

import os

from netbox.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from types import TracebackType

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

KINDS = {
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "cgroup": CLONE_NEWCGROUP,
    "net": CLONE_NEWNET,
    "user": CLONE_NEWUSER,
    "time": CLONE_NEWTIME,
}
"""The names under /proc/PID/ns and their flags."""


class inside_netns:
    """``with inside_netns(fd):`` moves the calling thread into a network namespace and back, whatever happens inside.

    Other threads stay where they are; a socket opened inside keeps belonging to that namespace. Raises OSError when ``fd`` is no network
    namespace.
    """

    def __init__(self, netns_fd: int) -> None:
        self._target = netns_fd
        self._home = -1

    def __enter__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(self._target, CLONE_NEWNET)
        except OSError:
            os.close(self._home)
            raise
        except BaseException:  # an interrupt, after the call: whoever undoes things now has to be at home
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            syscalls.setns(self._home, CLONE_NEWNET)
        finally:
            os.close(self._home)


def socket_in(netns_fd: int, family: int, type_: int, protocol: int = 0) -> socket.socket:
    """A socket that belongs to another network namespace. Raises OSError."""
    import socket  # 11 ms that the monitor does not pay

    with inside_netns(netns_fd):
        return socket.socket(family, type_ | socket.SOCK_CLOEXEC, protocol)


_NS_GET_NSTYPE = 0xB703  # <linux/nsfs.h>


def is_network_namespace(fd: int) -> bool:
    """Whether the file is a network namespace (ioctl_ns(2))."""
    import fcntl

    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False  # ENOTTY: not a namespace at all


def identity(namespace: int | str) -> tuple[int, int]:
    """(device, inode) of a namespace given as fd or as path below /proc: equal for the same namespace, as long as it lives.

    Raises OSError.
    """
    status = os.stat(namespace)
    return status.st_dev, status.st_ino
