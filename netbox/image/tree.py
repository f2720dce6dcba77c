"""Writing below one directory without ever following a link.

Every name is walked component by component with ``O_NOFOLLOW``, so that a symbolic link that an archive planted leads nowhere. That needs
no openat2(2), because ".." is refused beforehand; nobody else writes here, since the directory lies in one of mode 0700.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from netbox.image.tarformat import BadArchive, printable

NAME_MAX = 4096  # bytes of a whole name, as PATH_MAX
DEPTH_MAX = 128  # whoever copies or deletes a tree holds a descriptor per level
ID_MAX = 2**32 - 2  # the highest is (uid_t) -1, "leave as it is", chown(2)
TIME_MAX = 2**63 - 1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Metadata(NamedTuple):
    """Owner, permissions, time and extended attributes. ``atime`` is not kept: it becomes the mtime."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[bytes, bytes]


class Tree:
    """A directory being filled, used as a context manager.

    ``owners`` False leaves every file to the caller's user, who need not be root then. ``size`` counts the bytes of regular files
    written. Directories get their metadata at the end: a default ACL or a set-group-id bit would change what is made in them, and their
    mtime moves with it.
    """

    def __init__(self, path: str, owners: bool = True) -> None:
        self.root = os.open(path, _DIRECTORY)
        self.owners = owners
        self.size = 0
        self._directories = {b"": _implied(self.root)}
        self._parent = b""
        self._parent_fd = self.root

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave()
        os.close(self.root)

    def parent(self, name: bytes, create: bool = True) -> tuple[int, bytes]:
        """The open directory and the last component of ``name``, whose missing directories are made. Valid until the next call.

        Raises BadArchive when a link or file stands in the way; FileNotFoundError when ``create`` is False and a directory is missing.
        """
        directory, _, last = name.rpartition(b"/")
        if directory != self._parent:
            self._leave()
            self._parent_fd = self._walk(directory, create) if directory else self.root
            self._parent = directory
        return self._parent_fd, last

    def make_room(self, parent: int, name: bytes, whole: bytes, directory: bool = False) -> bool:
        """Removes what a later entry of the same name replaces. True when a directory is there and ``directory`` may keep it."""
        try:
            mode = os.lstat(name, dir_fd=parent).st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent)
            return False
        if directory:
            return True
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            if os.listdir(fd):
                raise BadArchive(f"entry {printable(whole)} would replace a directory that holds files")
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
        self._directories.pop(whole, None)
        return False

    def make_directory(self, name: bytes, metadata: Metadata) -> None:
        """A directory, or the root itself for an empty name; metadata follow in ``finish``."""
        if name:
            parent, last = self.parent(name)
            if not self.make_room(parent, last, name, directory=True):
                os.mkdir(last, 0o700, dir_fd=parent)
        self._directories[name] = metadata

    def create(self, parent: int, name: bytes) -> int:
        """A new regular file, open for writing. Nothing may be there."""
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)

    def set_file(self, fd: int, metadata: Metadata) -> None:
        """Owner before mode, since chown(2) clears the set-user-id bit; attributes last, since it also clears security.capability."""
        if self.owners:
            os.fchown(fd, metadata.uid, metadata.gid)
        os.fchmod(fd, metadata.mode)
        for key, value in metadata.xattrs.items():
            try:
                os.setxattr(fd, key, value)
            except OSError as error:
                # tmpfs has the user's own attributes since Linux 6.6 only; a lost capability or ACL would matter
                if error.errno != errno.EOPNOTSUPP or not key.startswith(b"user."):
                    raise
        os.utime(fd, ns=(metadata.mtime_ns, metadata.mtime_ns))

    def set_node(self, parent: int, name: bytes, metadata: Metadata, link: bool = False) -> None:
        """The same for what cannot be opened: a symbolic link (it has no mode of its own), device, FIFO or socket."""
        if self.owners:
            os.chown(name, metadata.uid, metadata.gid, dir_fd=parent, follow_symlinks=False)
        if not link:
            os.chmod(name, metadata.mode, dir_fd=parent)  # just made by us and not a link, so nothing is followed
        os.utime(name, ns=(metadata.mtime_ns, metadata.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def hard_link(self, name: bytes, target: bytes) -> None:
        """``name`` becomes another name of ``target``, both below the root. Raises BadArchive when there is no such file."""
        if name == target:
            raise BadArchive(f"entry {printable(name)} is a hard link to itself")
        try:
            held, last_target = self.parent(target, create=False)
            target_parent = os.dup(held)
            try:
                parent, last = self.parent(name)
                self.make_room(parent, last, name)
                os.link(last_target, last, src_dir_fd=target_parent, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(target_parent)
        except FileNotFoundError:
            raise BadArchive(
                f"entry {printable(name)} is a hard link to {printable(target)}, which the archive does not hold before it"
            ) from None
        except PermissionError:
            raise BadArchive(f"entry {printable(name)} is a hard link to {printable(target)}, which is a directory") from None

    def finish(self) -> None:
        """Gives the directories their metadata, the deepest first: a parent's mode may shut out a caller who is not root."""
        for name in sorted(self._directories, key=lambda name: len(name.split(b"/")) if name else 0, reverse=True):
            if name:
                parent, last = self.parent(name)
                fd = os.open(last, _DIRECTORY, dir_fd=parent)
            else:
                fd = os.dup(self.root)
            try:
                self.set_file(fd, self._directories[name])
            finally:
                os.close(fd)

    def sync(self) -> None:
        """Waits until everything is on the disk, syncfs(2): a name must not survive a power failure that its files do not."""
        import ctypes

        if ctypes.CDLL(None, use_errno=True).syncfs(self.root) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _leave(self) -> None:
        if self._parent_fd != self.root:
            os.close(self._parent_fd)
        self._parent, self._parent_fd = b"", self.root

    def _walk(self, directory: bytes, create: bool) -> int:
        fd, done = os.dup(self.root), b""
        try:
            for component in directory.split(b"/"):
                done = done + b"/" + component if done else component
                inner = self._enter(fd, component, done, create)
                os.close(fd)
                fd = inner
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _enter(self, fd: int, component: bytes, whole: bytes, create: bool) -> int:
        try:
            return os.open(component, _DIRECTORY, dir_fd=fd)
        except NotADirectoryError:
            link = stat.S_ISLNK(os.lstat(component, dir_fd=fd).st_mode)
            raise BadArchive(
                f"an entry would be written through {printable(whole)}, a {'symbolic link' if link else 'file'} of the archive"
            ) from None
        except FileNotFoundError:
            if not create:
                raise
        os.mkdir(component, 0o700, dir_fd=fd)
        inner = os.open(component, _DIRECTORY, dir_fd=fd)
        self._directories[whole] = _implied(inner)
        return inner


def _implied(fd: int) -> Metadata:
    """What a directory gets that the archive only implies: the caller's, 0755, now."""
    status = os.fstat(fd)
    return Metadata(0o755, status.st_uid, status.st_gid, status.st_mtime_ns, {})


def wanted_xattr(name: bytes) -> bool:
    """Which extended attributes an image keeps: file capabilities, ACLs and the user's own.

    The rest describes the host: labels of its security module, and overlayfs' own marks, with which a layer could redirect lookups.
    """
    if name.startswith(b"user.") and b"\0" not in name:
        return not name.startswith(b"user.overlay.")
    return name in (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")


def write_all(fd: int, data: bytes, offset: int) -> None:
    """``pwrite`` until everything is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
