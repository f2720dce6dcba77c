"""The sandbox's root file system, built by init in its own mount namespace.

The order: open what is needed of the host (``trees``), stop propagation, mount the new root on ``STAGING``, pivot, detach the old root, run
the mount operations with plain paths. By then no symbolic link of an image can lead out. (An old root that stayed stacked over ``/`` could
be reached: a lookup of ``..`` that arrives at ``/`` goes on to what is mounted there.)
"""

from __future__ import annotations

import os
import stat

from netbox.kernel import syscalls
from netbox.runtime.failure import stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netbox.runtime.trees import Trees

STAGING = "/run"
"""Where the new root is mounted until the pivot: a directory that every host has, reachable for everyone. Nobody else sees the mount."""

_ENOENT = 2
_ENODEV = 19
_ELOOP = 40
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
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
_ATTRIBUTES = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
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

    ``enter``, ``populate`` and ``seal`` are called once each, in this order. All raise Failure.
    """

    def __init__(self, config: dict[str, Any], trees: Trees) -> None:
        self._rootfs = config["rootfs"]
        self._operations = config["mounts"]
        self._trees = trees
        self._host_devices_fd = -1
        self._premounted: dict[int, int] = {}
        self.sysctls: int | None = None  # /proc/sys from before it turned read-only, where the operation "sysctls" stands

    def enter(self) -> None:
        """Mounts the new root and makes it this process's root and working directory."""
        with stage("propagation", "/"):
            host_root = os.open("/", _DIRECTORY)
            self._host_devices_fd = os.open("/dev", _DIRECTORY)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        self._premount()
        if self._trees.directory is not None:
            with stage("root file system", self._rootfs["directory"]):
                syscalls.move_mount(self._trees.directory, STAGING)
        else:
            self._mount_overlays()
        with stage("pivot_root"):
            os.chdir(STAGING)
            syscalls.pivot_root(".", ".")
            os.fchdir(host_root)
            syscalls.umount2(".", syscalls.MNT_DETACH)
            os.chdir("/")
            os.close(host_root)

    def _premount(self) -> None:
        """In a user namespace, /proc and /sys while those of the host can still be seen: the kernel grants no more than those show."""
        if not self._trees.mapped:
            return
        for index, (kind, *arguments) in enumerate(self._operations):
            if kind == "mount" and arguments[2] in ("proc", "sysfs"):
                source, target, fstype, flags, _ = arguments
                with stage(f"mount {fstype}", target):
                    context = syscalls.fsopen(fstype)
                    syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", source)
                    syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
                    self._premounted[index] = syscalls.fsmount(context, sum(_ATTRIBUTES[flag] for flag in flags))
                    os.close(context)

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
            if index in self._premounted:
                with stage("mount", operation[2]):
                    make_directory(operation[2])
                    syscalls.move_mount(self._premounted.pop(index), operation[2])
            elif kind == "bind":
                self._bind(self._trees.binds[index], *operation[1:])
            elif kind == "device":
                self._device(index, *operation[1:])
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

    def _device(self, index: int, source: str, target: str) -> None:
        """In a user namespace the host's node, which the monitor has opened; else one of our own."""
        with stage("device", target):
            if index in self._trees.binds:
                make_file(target)
                syscalls.move_mount(self._trees.binds[index], target)
                return
        with stage("device", source):
            status = os.stat(self._trees.devices[index])
            if not _is_device(status.st_mode):
                raise OSError(_ENODEV, os.strerror(_ENODEV), source)
        with stage("device", target):
            _make_node(target, status)

    def _host_devices(self) -> None:
        """All device nodes of the host, as --privileged asks for."""
        pending = [""]
        while pending:
            directory = pending.pop()
            with stage("device", f"/dev/{directory}"):
                fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._host_devices_fd)
                for name in os.listdir(fd):
                    if not directory and name in _NOT_DEVICES:
                        continue
                    try:
                        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(f"{directory}{name}/")
                    elif _is_device(status.st_mode) and not os.path.lexists(f"/dev/{directory}{name}"):
                        _make_node(f"/dev/{directory}{name}", status)
                os.close(fd)

    def seal(self) -> None:
        """Makes the root read-only if asked, now that every mount point is there."""
        if self._rootfs["read_only"]:
            _seal("/")


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


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _make_node(target: str, status: os.stat_result) -> None:
    """A device node with the number, mode and owner of another. Raises OSError."""
    try:
        os.mknod(target, status.st_mode, status.st_rdev)
    except FileNotFoundError:
        make_directory(os.path.dirname(target))
        os.mknod(target, status.st_mode, status.st_rdev)
    except FileExistsError:
        os.unlink(target)
        os.mknod(target, status.st_mode, status.st_rdev)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.chown(target, status.st_uid, status.st_gid)


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
    incompatible = "work/work/incompat"
    try:
        os.unlink(f"{incompatible}/volatile/dirty", dir_fd=storage)
        os.rmdir(f"{incompatible}/volatile", dir_fd=storage)
        os.rmdir(incompatible, dir_fd=storage)
    except OSError:  # there is none, or none that the mount will not report
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


def _sysctl(name: str, value: str) -> None:
    """A default of the sandbox's network; a kernel without it does without."""
    with stage("sysctl", name):
        try:
            fd = os.open(f"/proc/sys/{name.replace('.', '/')}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


_OPERATIONS: dict[str, Callable[..., None]] = {
    "mount": _mount,
    "symlink": _symlink,
    "mkdir": _make_directory,
    "mask": _mask,
    "readonly": _read_only,
    "seal": _seal,
    "sysctl": _sysctl,
}
