"""The sandbox's root file system, built by init in its own mount namespace.

The order: open what is needed of the host (``trees``), stop propagation, mount the new root on ``STAGING``, pivot, run the mount operations
with plain paths, detach the old root. Every path is resolved after the pivot, where no symbolic link of an image can lead out; the old root
stays attached (above ``/``, where no lookup meets it) until the end, because a user namespace may mount a fresh /proc and /sys only while
it can see the host's.
"""

from __future__ import annotations

import os
import stat

from netbox.kernel import syscalls
from netbox.runtime.failure import Failure, stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netbox.runtime.trees import Trees

STAGING = "/run"
"""Where the new root is mounted until the pivot: a directory that every host has, reachable for everyone. Nobody else sees the mount."""

_ENOENT = 2
_ELOOP = 40
_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "noatime": syscalls.MS_NOATIME,
    "relatime": syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "rw": 0,
    "suid": 0,
    "dev": 0,
    "exec": 0,
}
_PROPAGATION = {
    "private": syscalls.MS_PRIVATE,
    "slave": syscalls.MS_SLAVE,
    "shared": syscalls.MS_SHARED,
}
_SYMLINKS_MAX = 40
# In the host's /dev, and not what a privileged sandbox shares: file systems of their own, the terminals of others, links.
_NOT_DEVICES = ("pts", "shm", "mqueue", "console", "fd", "stdin", "stdout", "stderr", "core", "hugepages", "ptmx")


class RootFilesystem:
    """The root file system of one sandbox.

    ``enter``, ``populate`` and ``leave_host`` are called once each, in this order. All raise Failure.
    """

    def __init__(self, config: dict[str, Any], trees: Trees) -> None:
        self._rootfs = config["rootfs"]
        self._operations = config["mounts"]
        self._trees = trees
        self._host_root = -1
        self.sysctls: int | None = None  # /proc/sys from before it turned read-only, where the operation "sysctls" stands

    def enter(self) -> None:
        """Mounts the new root and makes it this process's root and working directory."""
        with stage("propagation", "/"):
            self._host_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        if self._trees.directory is not None:
            with stage("root file system", self._rootfs["directory"]):
                syscalls.move_mount(self._trees.directory, STAGING)
        else:
            self._mount_overlays()
        with stage("pivot_root"):
            os.chdir(STAGING)
            syscalls.pivot_root(".", ".")
            os.chdir("/")

    def _mount_overlays(self) -> None:
        storage = self._writable_storage()
        self._mount_overlay(self._trees.lower, storage, "", STAGING)
        for index, (path, lower) in enumerate(zip(self._rootfs["stacked"], self._trees.stacked, strict=True), 1):
            if stat.S_ISDIR(os.stat(lower).st_mode):
                self._mount_overlay([lower], storage, f"-{index}", STAGING + path)
            else:
                self._bind_stacked_file(lower, path)

    def _writable_storage(self) -> int:
        """The directory that holds ``upper`` and ``work``: of the host, or a tmpfs that goes with the mount namespace."""
        trees, size = self._trees, self._rootfs["tmpfs_size"]
        if size is None and not trees.mapped:
            assert trees.storage is not None
            _forget_volatile(trees.storage)
            return trees.storage
        with stage("root file system", "tmpfs"):
            syscalls.mount("tmpfs", STAGING, "tmpfs", 0, "mode=0755" if size is None else f"mode=0755,size={size}")
            place = os.open(STAGING, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if trees.mapped:
                # Overlayfs takes attached mounts only.
                for tree in [*trees.lower, *trees.stacked, *([] if trees.storage is None else [trees.storage])]:
                    _attach(tree, f"{STAGING}/{tree}")
        if trees.storage is None:
            return place
        _forget_volatile(trees.storage)
        return trees.storage

    def _mount_overlay(self, lower: list[int], storage: int, suffix: str, target: str) -> None:
        """Layers are named by descriptor: no length limit in sight, and /proc/mounts tells the sandbox no path of the host."""
        base = f"/proc/self/fd/{storage}"
        with stage("overlay", target.removeprefix(STAGING) or "/"):
            for name in ("upper", "work"):
                try:
                    os.mkdir(f"{base}/{name}{suffix}", 0o755)
                except FileExistsError:
                    pass
            layers = ":".join(f"/proc/self/fd/{fd}" for fd in lower)
            data = f"lowerdir={layers},upperdir={base}/upper{suffix},workdir={base}/work{suffix}"
            if self._rootfs["volatile"]:
                data += ",volatile"
            if self._trees.mapped:
                data += ",userxattr"
            syscalls.mount("overlay", target, "overlay", 0, data)

    def _bind_stacked_file(self, fd: int, path: str) -> None:
        with stage("bind", path):
            target = STAGING + path
            syscalls.mount(f"/proc/self/fd/{fd}", target, None, syscalls.MS_BIND)
            syscalls.mount(None, target, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY)

    def populate(self) -> None:
        """Runs the mount operations, in their order."""
        for index, operation in enumerate(self._operations):
            kind = operation[0]
            if kind == "bind":
                self._bind(self._trees.binds[index], *operation[1:])
            elif kind == "device":
                self._device(*operation[1:])
            elif kind == "sysctls":
                with stage("sysctl", "/proc/sys"):
                    self.sysctls = os.open("/proc/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            elif kind == "host_devices":
                self._host_devices()
            else:
                _OPERATIONS[kind](*operation[1:])

    def _bind(self, tree: int, source: str, target: str, read_only: bool, recursive: bool, propagation: str) -> None:
        with stage("bind", target):
            if stat.S_ISDIR(os.stat(tree).st_mode):
                make_directory(target)
            else:
                make_file(target)
            # Propagation is set on the mount in its place: a detached one would forget it on some kernels.
            syscalls.move_mount(tree, target)
            deep = syscalls.AT_RECURSIVE if propagation.startswith("r") or recursive else 0
            attributes = syscalls.MOUNT_ATTR_RDONLY if read_only else 0
            kind = _PROPAGATION[propagation.removeprefix("r")]
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | deep, attributes, propagation=kind)

    def _device(self, source: str, target: str) -> None:
        """A node of its own where the kernel lets us make one; in a user namespace or a nested container, the host's node."""
        with stage("device", source):
            status = os.stat(source.lstrip("/"), dir_fd=self._host_root)
            if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                raise Failure("device", 22, source, "not a device")
        with stage("device", target):
            try:
                os.mknod(target, status.st_mode, status.st_rdev)
            except FileNotFoundError:
                make_directory(os.path.dirname(target))
                os.mknod(target, status.st_mode, status.st_rdev)
            except FileExistsError:
                os.unlink(target)
                os.mknod(target, status.st_mode, status.st_rdev)
            except PermissionError:
                make_file(target)
                tree = syscalls.open_tree(source.lstrip("/"), directory_fd=self._host_root)
                syscalls.move_mount(tree, target)
                os.close(tree)
                return
            os.chmod(target, stat.S_IMODE(status.st_mode))
            os.chown(target, status.st_uid, status.st_gid)

    def _host_devices(self) -> None:
        """All device nodes of the host, as --privileged asks for."""
        pending = ["dev"]
        while pending:
            directory = pending.pop()
            with stage("device", "/" + directory):
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._host_root)
                entries = os.listdir(fd)
                os.close(fd)
            for name in entries:
                path = f"{directory}/{name}"
                if directory == "dev" and name in _NOT_DEVICES:
                    continue
                try:
                    mode = os.stat(path, dir_fd=self._host_root, follow_symlinks=False).st_mode
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(mode):
                    pending.append(path)
                elif (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not os.path.lexists("/" + path):
                    self._device("/" + path, "/" + path)

    def leave_host(self) -> None:
        """Detaches the host's root and makes the own one read-only if asked: from here on no path leads outside."""
        with stage("pivot_root", "/"):
            os.fchdir(self._host_root)
            syscalls.umount2(".", syscalls.MNT_DETACH)
            os.chdir("/")
            os.close(self._host_root)
            if self._rootfs["read_only"]:
                syscalls.mount_setattr(syscalls.AT_FDCWD, "/", 0, syscalls.MOUNT_ATTR_RDONLY)


def make_directory(path: str, mode: int = 0o755) -> None:
    """The directory and its parents, if absent; a dangling symbolic link is followed, and its target made. Raises OSError."""
    for _ in range(_SYMLINKS_MAX):
        try:
            os.mkdir(path, mode)
            return
        except FileExistsError:
            if os.path.isdir(path):
                return
            if not os.path.islink(path):
                raise
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except FileNotFoundError:
            make_directory(os.path.dirname(path))
    raise OSError(_ELOOP, os.strerror(_ELOOP), path)


def make_file(path: str) -> None:
    """An empty file and its parents, if absent.

    A dangling symbolic link (/etc/resolv.conf to /run/…) is followed, and its target made. Raises OSError.
    """
    for _ in range(_SYMLINKS_MAX):
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o644))
            return
        except FileNotFoundError:
            if os.path.islink(path):
                path = os.path.join(os.path.dirname(path), os.readlink(path))
            else:
                make_directory(os.path.dirname(path))
        except OSError as error:
            if error.errno in (6, 19):  # ENXIO, ENODEV: it exists, and is a socket or a device without a driver
                return
            raise
    raise OSError(_ELOOP, os.strerror(_ELOOP), path)


def _attach(tree: int, target: str) -> None:
    if stat.S_ISDIR(os.stat(tree).st_mode):
        os.mkdir(target)
    else:
        make_file(target)
    syscalls.move_mount(tree, target)


def _forget_volatile(storage: int) -> None:
    """Overlayfs refuses a work directory that was mounted "volatile" and not unmounted in order.

    The page cache holds all of it unless the host crashed.
    """
    for name in ("work/work/incompat/volatile", "work/work/incompat"):
        try:
            os.rmdir(name, dir_fd=storage)
        except OSError:
            return


def _mount(source: str, target: str, fstype: str, flags: list[str], data: str) -> None:
    number = 0
    for flag in flags:
        number |= _FLAGS[flag]
    with stage(f"mount {fstype}", target):
        try:
            syscalls.mount(source, target, fstype, number, data or None)
        except OSError as error:
            if error.errno != _ENOENT:
                raise
            make_directory(target)
            syscalls.mount(source, target, fstype, number, data or None)


def _symlink(value: str, path: str) -> None:
    with stage("symlink", path):
        try:
            os.symlink(value, path)
        except FileExistsError:
            if not os.path.islink(path):
                raise


def _make_directory(path: str, mode: int) -> None:
    with stage("mkdir", path):
        make_directory(path, mode)


def _mask(path: str) -> None:
    """Reads as empty from here on. What this kernel does not have needs no mask."""
    with stage("mask", path):
        try:
            directory = stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return
        if directory:
            syscalls.mount(
                "tmpfs", path, "tmpfs", syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, "size=0,mode=0555"
            )
        else:
            syscalls.mount("/dev/null", path, None, syscalls.MS_BIND)


def _read_only(path: str) -> None:
    with stage("read-only", path):
        try:
            tree = syscalls.open_tree(path, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE)
        except FileNotFoundError:
            return
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE, syscalls.MOUNT_ATTR_RDONLY)
        syscalls.move_mount(tree, path)
        os.close(tree)


def _seal(path: str) -> None:
    """Read-only in its place, once everything in it is there."""
    with stage("read-only", path):
        syscalls.mount_setattr(syscalls.AT_FDCWD, path, 0, syscalls.MOUNT_ATTR_RDONLY)


_OPERATIONS: dict[str, Callable[..., None]] = {
    "mount": _mount,
    "symlink": _symlink,
    "mkdir": _make_directory,
    "mask": _mask,
    "readonly": _read_only,
    "seal": _seal,
}
