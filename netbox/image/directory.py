"""A directory of the host, copied.

Kept: owners, permissions, times, hard links, holes, symbolic links as they are, FIFOs, sockets, device nodes, and the attributes that
``tree.wanted_xattr`` names. Where the file system can share blocks (btrfs, xfs), a file costs nothing: ioctl_ficlone(2).

The copy stays on one mount: /proc, /sys, /dev and whatever else is mounted below become empty directories, and so does the store itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from netbox.errors import host_error
from netbox.image.archive import refuse_docker_save
from netbox.image.model import Progress
from netbox.image.streams import CHUNK
from netbox.image.tarformat import BadArchive
from netbox.image.tree import DEPTH_MAX, Metadata, Tree, wanted_xattr, write_all
from netbox.kernel.syscalls import openat2

_FICLONE = 0x40049409  # <linux/fs.h>
_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ETXTBSY}
_RESOLVE_NO_XDEV = 0x01  # <linux/openat2.h>: fail with EXDEV rather than cross a mount point
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy(source: str, tree: Tree, store: str, progress: Progress | None = None) -> None:
    """Fills ``tree`` from the directory ``source``. ``store`` is the directory of all images, left out where it lies in ``source``.

    Raises BadArchive for an image as ``docker save`` writes it or a tree that is too deep, HostError when reading or writing fails.
    """
    try:
        refuse_docker_save(os.listdir(os.fsencode(source)))
        total = _bytes_of(source) if progress is not None else None
        left_out = os.stat(store)
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _Copy(tree, (left_out.st_dev, left_out.st_ino), progress, total).directory(fd, b"")
        finally:
            os.close(fd)
        tree.finish()
    except OSError as error:
        raise host_error("copy", f"'{error.filename or source}'", error) from error


class _Copy:
    def __init__(self, tree: Tree, left_out: tuple[int, int], progress: Progress | None, total: int | None) -> None:
        self._tree, self._left_out, self._progress, self._total = tree, left_out, progress, total
        self._links: dict[tuple[int, int], bytes] = {}
        self._clone = True

    def directory(self, fd: int, name: bytes) -> None:
        """Copies what the open directory ``fd`` holds to ``name`` of the tree. A file that vanishes meanwhile is not part of the copy."""
        if name.count(b"/") >= DEPTH_MAX:
            raise BadArchive(f"it is deeper than {DEPTH_MAX} levels")
        status = os.fstat(fd)
        self._tree.make_directory(name, _metadata(status, fd))
        if (status.st_dev, status.st_ino) == self._left_out:
            return
        with os.scandir(fd) as entries:
            names = sorted(os.fsencode(entry.name) for entry in entries)
        for inner in names:
            whole = name + b"/" + inner if name else inner
            try:
                self._entry(fd, inner, whole)
            except FileNotFoundError:
                continue

    def _entry(self, fd: int, name: bytes, whole: bytes) -> None:
        status = os.lstat(name, dir_fd=fd)
        if stat.S_ISDIR(status.st_mode):
            self._subdirectory(fd, name, whole, status)
            return
        key = status.st_dev, status.st_ino
        if status.st_nlink > 1 and key in self._links:
            self._tree.hard_link(whole, self._links[key])
            return
        if stat.S_ISREG(status.st_mode):
            self._file(fd, name, whole)
        elif stat.S_ISLNK(status.st_mode):
            target = os.readlink(name, dir_fd=fd)
            parent, last = self._tree.parent(whole)
            os.symlink(target, last, dir_fd=parent)
            self._tree.set_node(parent, last, _metadata(status), link=True)
        else:
            parent, last = self._tree.parent(whole)
            os.mknod(last, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=parent)
            self._tree.set_node(parent, last, _metadata(status))
        if status.st_nlink > 1:
            self._links[key] = whole

    def _subdirectory(self, fd: int, name: bytes, whole: bytes, status: os.stat_result) -> None:
        try:
            inner = openat2(fd, os.fsdecode(name), _DIRECTORY, 0, _RESOLVE_NO_XDEV)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._tree.make_directory(whole, _metadata(status))
            return
        try:
            self.directory(inner, whole)
        finally:
            os.close(inner)

    def _file(self, fd: int, name: bytes, whole: bytes) -> None:
        # O_NONBLOCK: a FIFO put in the file's place meanwhile must not hold us
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=fd)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "replaced while it was copied", whole)
            parent, last = self._tree.parent(whole)
            target = self._tree.create(parent, last)
            try:
                if not self._cloned(source, target):
                    self._pieces(source, target, status.st_size)
                self._tree.set_file(target, _metadata(status, source))
            finally:
                os.close(target)
        finally:
            os.close(source)
        self._tree.size += status.st_size
        if self._progress is not None:
            self._progress(self._tree.size, self._total)

    def _cloned(self, source: int, target: int) -> bool:
        if not self._clone:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            self._clone = False
            return False
        return True

    def _pieces(self, source: int, target: int, size: int) -> None:
        """Copies what lies between the holes, lseek(2) SEEK_DATA."""
        position = 0
        while position < size:
            try:
                position = os.lseek(source, position, os.SEEK_DATA)
                end = os.lseek(source, position, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but a hole is left
                    raise
                break
            while position < end and (data := os.pread(source, min(end - position, CHUNK), position)):
                write_all(target, data, position)
                position += len(data)
                if self._progress is not None:
                    self._progress(self._tree.size + position, self._total)
            position = max(position, end)
        os.ftruncate(target, size)


def _metadata(status: os.stat_result, fd: int | None = None) -> Metadata:
    xattrs = {}
    if fd is not None:
        for name in map(os.fsencode, os.listxattr(fd)):
            if wanted_xattr(name):
                xattrs[name] = os.getxattr(fd, name)
    return Metadata(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


def _bytes_of(source: str) -> int:
    """What there is to copy, roughly: the bytes of all regular files on this mount's file system."""
    device = os.lstat(source).st_dev
    total, waiting = 0, [os.fsencode(source)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                        waiting.append(entry.path)
                    elif stat.S_ISREG(status.st_mode):
                        total += status.st_size
        except FileNotFoundError:
            continue
    return total
