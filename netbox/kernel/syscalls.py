"""System calls that Python does not have, through ctypes. Each wrapper makes one call and raises ``OSError`` with the path it was about.

The numbers are those of x86_64 and aarch64; calls from 424 on have the same number everywhere. Loads nothing but ctypes: the monitor starts
with it.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSCALL = _LIBC.syscall
_SYSCALL.restype = ctypes.c_long
# Keeps the interpreter lock: the child of a clone must find it held by its only thread.
_CLONE = ctypes.PyDLL(None, use_errno=True).syscall
_CLONE.restype = ctypes.c_long

_AARCH64 = os.uname().machine == "aarch64"
_PIVOT_ROOT = 41 if _AARCH64 else 155
_CAPGET, _CAPSET = (90, 91) if _AARCH64 else (125, 126)
_KEYCTL = 219 if _AARCH64 else 250
_RT_SIGACTION, _RT_SIGPROCMASK = (134, 135) if _AARCH64 else (13, 14)
_PIDFD_SEND_SIGNAL = 424
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_CLONE3 = 435
_CLOSE_RANGE = 436
_OPENAT2 = 437
_MOUNT_SETATTR = 442

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# <linux/sched.h>
CLONE_PIDFD = 0x1000
CLONE_INTO_CGROUP = 0x200000000
_SIGCHLD = 17

# <linux/mount.h>: mount(2) and umount2(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2

# open_tree(2), move_mount(2), mount_setattr(2), fsopen(2)
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

# openat2(2)
RESOLVE_NO_MAGICLINKS = 0x2
RESOLVE_IN_ROOT = 0x10

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

CLOSE_RANGE_CLOEXEC = 4
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522
_FD_MAX = 0xFFFFFFFF
_SIGSET_SIZE = 8
_SIG_SETMASK = 2


class _CloneArguments(ctypes.Structure):
    """struct clone_args, <linux/sched.h>."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in "flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid set_tid_size cgroup".split()
    ]


class _MountAttributes(ctypes.Structure):
    """struct mount_attr, <linux/mount.h>."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


class _OpenHow(ctypes.Structure):
    """struct open_how, <linux/openat2.h>."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


def _fail(path: str | bytes | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def _check(result: int, path: str | bytes | None = None) -> int:
    if result < 0:
        raise _fail(path)
    return result


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def _call(path: str | None, number: int, *arguments: int | bytes | Any | None) -> int:
    """syscall(2). Integers travel as long: as a variadic int the upper half of the register would be undefined."""
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _check(_SYSCALL(ctypes.c_long(number), *converted), path)


def clone3(flags: int, cgroup_fd: int | None = None) -> tuple[int, int]:
    """clone3(2) without CLONE_VM: returns (pid, pidfd) in the parent, (0, -1) in the child.

    With ``cgroup_fd`` the child begins in that v2 cgroup. Only for a single-threaded process: the child keeps the interpreter's state as it
    is. Raises OSError.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArguments(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=_SIGCHLD)
    if cgroup_fd is not None:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup_fd
    pid = _check(_CLONE(ctypes.c_long(_CLONE3), ctypes.byref(arguments), ctypes.c_long(ctypes.sizeof(arguments))))
    return (pid, pidfd.value) if pid else (0, -1)


def unshare(flags: int) -> None:
    """unshare(2): moves the calling thread into new namespaces. Raises OSError."""
    _check(_LIBC.unshare(flags))


def setns(fd: int, flags: int = 0) -> None:
    """setns(2): moves the calling thread into the namespace of ``fd``, or into those in ``flags`` of the process of a pidfd.

    Raises OSError.
    """
    _check(_LIBC.setns(fd, flags))


def mount(source: str | None, target: str, fstype: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). Raises OSError that names the target."""
    _check(_LIBC.mount(_text(source), _text(target), _text(fstype), ctypes.c_ulong(flags), _text(data)), target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError that names the target."""
    _check(_LIBC.umount2(_text(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2). Raises OSError that names the new root."""
    _call(new_root, _PIVOT_ROOT, _text(new_root), _text(put_old))


def open_tree(path: str, flags: int = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, directory_fd: int = AT_FDCWD) -> int:
    """open_tree(2): an fd of a mount; with OPEN_TREE_CLONE a detached copy of it (AT_RECURSIVE: with what is mounted below).

    Raises OSError.
    """
    return _call(path, _OPEN_TREE, directory_fd, _text(path), flags)


def move_mount(tree_fd: int, target: str, target_fd: int = AT_FDCWD) -> None:
    """move_mount(2): attaches the mount of ``tree_fd`` at ``target``, or at ``target_fd`` itself when ``target`` is empty.

    Raises OSError.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | (MOVE_MOUNT_T_SYMLINKS if target else MOVE_MOUNT_T_EMPTY_PATH)
    _call(target, _MOVE_MOUNT, tree_fd, b"", target_fd, _text(target), flags)


def mount_setattr(fd: int, path: str, flags: int, set_: int = 0, clear: int = 0, propagation: int = 0, userns_fd: int = 0) -> None:
    """mount_setattr(2).

    ``flags`` are AT_EMPTY_PATH and AT_RECURSIVE, ``set_`` and ``clear`` MOUNT_ATTR_*, ``propagation`` MS_*. Raises OSError.
    """
    attributes = _MountAttributes(set_, clear, propagation, userns_fd)
    _call(path, _MOUNT_SETATTR, fd, _text(path), flags, ctypes.byref(attributes), ctypes.sizeof(attributes))


def fsopen(fstype: str) -> int:
    """fsopen(2): an fd to configure a new file system with. Raises OSError."""
    return _call(fstype, _FSOPEN, _text(fstype), FSOPEN_CLOEXEC)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """fsconfig(2). A string value has 255 bytes at most. Raises OSError that names the key."""
    _call(key, _FSCONFIG, fd, command, _text(key), _text(value), aux)


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of a configured file system. Raises OSError."""
    return _call(None, _FSMOUNT, fd, FSMOUNT_CLOEXEC, attributes)


def openat2(directory_fd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2); ``resolve`` is a set of RESOLVE_*. O_CLOEXEC is added. Raises OSError."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _call(path, _OPENAT2, directory_fd, _text(path), ctypes.byref(how), ctypes.sizeof(how))


def prctl(option: int, argument2: int = 0, argument3: int = 0, argument4: int = 0, argument5: int = 0) -> int:
    """prctl(2). Raises OSError."""
    arguments = [ctypes.c_ulong(value) for value in (argument2, argument3, argument4, argument5)]
    return _check(_LIBC.prctl(option, *arguments))


def close_range(first: int, last: int = _FD_MAX, flags: int = 0) -> None:
    """close_range(2): closes the descriptors from ``first`` to ``last``, or marks them close-on-exec with CLOSE_RANGE_CLOEXEC.

    Raises OSError.
    """
    if first <= last:
        _call(None, _CLOSE_RANGE, first, last, flags)


def close_all_except(keep: list[int]) -> None:
    """Closes every descriptor but these and 0 to 2."""
    first = 3
    for fd in sorted(set(keep)):
        if fd >= 3:
            close_range(first, fd - 1)
            first = fd + 1
    close_range(first)


def capget() -> tuple[int, int, int]:
    """capget(2) of the calling thread: (effective, permitted, inheritable) as masks. Raises OSError."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _call(None, _CAPGET, ctypes.byref(header), ctypes.byref(data))
    low_to_high = [data[index] | data[index + 3] << 32 for index in range(3)]
    return low_to_high[0], low_to_high[1], low_to_high[2]


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread, with masks. Raises OSError."""
    masks = (effective, permitted, inheritable)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(*(mask & 0xFFFFFFFF for mask in masks), *(mask >> 32 for mask in masks))
    _call(None, _CAPSET, ctypes.byref(header), ctypes.byref(data))


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """pidfd_send_signal(2). Raises OSError (ESRCH: the process is dead and reaped)."""
    _call(None, _PIDFD_SEND_SIGNAL, pidfd, signal, None, 0)


def join_new_session_keyring() -> None:
    """keyctl(2): leaves the session keyring of the caller for a fresh, anonymous one. Raises OSError (ENOSYS: a kernel without keys)."""
    _call(None, _KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)


def setrlimit(number: int, soft: int, hard: int) -> None:
    """setrlimit(2) of this process; -1 means unlimited. Raises OSError."""
    values = (ctypes.c_uint64 * 2)(*(value & 0xFFFFFFFFFFFFFFFF for value in (soft, hard)))
    _check(_LIBC.setrlimit(number, ctypes.byref(values)))


def sethostname(name: str) -> None:
    """sethostname(2). Raises OSError that names the host name."""
    encoded = os.fsencode(name)
    _check(_LIBC.sethostname(encoded, ctypes.c_size_t(len(encoded))), name)


ALL_SIGNALS = tuple(number for number in range(1, 65) if number not in (9, 19))
"""All but SIGKILL and SIGSTOP."""


def reset_signals(numbers: tuple[int, ...] = ALL_SIGNALS) -> None:
    """Gives these signals their default action and unblocks all, as a command expects them. ``import signal`` would cost 7 ms.

    By rt_sigaction(2) itself: glibc's signal(3) refuses 32 and 33, and a caller's caller may have ignored those.
    """
    default = (ctypes.c_uint64 * 4)()  # struct sigaction: handler, flags, restorer, mask
    for number in numbers:
        _call(None, _RT_SIGACTION, number, ctypes.byref(default), None, _SIGSET_SIZE)
    _call(None, _RT_SIGPROCMASK, _SIG_SETMASK, ctypes.byref(ctypes.c_uint64(0)), None, _SIGSET_SIZE)


def ignore_signals(numbers: tuple[int, ...]) -> None:
    """Ignores these signals."""
    for number in numbers:
        _LIBC.signal(number, ctypes.c_void_p(1))
