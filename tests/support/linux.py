"""The few system calls that a private host is made of.

Written apart from netbox.kernel on purpose: the tools of the tests do not lean on the code under test.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from tests.support.waiting import wait_until

CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWNET = 0x40000000

MS_NODEV = 0x4
MS_NOSUID = 0x2
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_RUNNING = 0x40

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Moves the calling thread into new namespaces (unshare(2))."""
    _checked(_libc.unshare(flags), f"unshare {flags:#x}")


def setns(fd: int, flags: int) -> None:
    """Moves the calling thread into the namespace behind ``fd`` (setns(2))."""
    _checked(_libc.setns(fd, flags), f"setns {flags:#x}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _checked(_libc.mount(*arguments), target)


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(target.encode(), flags), target)


@contextlib.contextmanager
def network_namespace(fd: int) -> Iterator[None]:
    """The calling thread is in the network namespace ``fd`` inside the block, and back afterwards."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(before, CLONE_NEWNET)
    finally:
        os.close(before)


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """The calling thread is in the network namespace of a process inside the block: sockets that it opens there stay there."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with network_namespace(fd):
            yield
    finally:
        os.close(fd)


def new_network_namespace() -> int:
    """An fd of a new, empty network namespace; closing it is what ends the namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(before, CLONE_NEWNET)
    finally:
        os.close(before)


def await_running(link: str, timeout: float = 60) -> None:
    """Waits until a link of the calling thread's network namespace, which was set up, can send: before, the kernel drops what it is given.

    The kernel hears of a carrier in a work queue, and says "running" a few instructions before it lets packets out. It holds the lock of
    all links meanwhile, which setting the flags waits for.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def flags() -> int:
            answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sh14x", link.encode(), 0))
            return int(struct.unpack("16xH14x", answer)[0])

        wait_until(lambda: flags() & IFF_RUNNING, f"{link} to run", timeout)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", link.encode(), flags() & 0xFFFF))
