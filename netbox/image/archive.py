"""Extraction of a tar archive that cannot leave its directory.

An archive is refused as a whole, and nothing of it is kept, when an entry

- has an absolute name, or one with ".." in it;
- would be written through a symbolic link or a file that the archive made before;
- is a hard link to something that the archive did not hold before it;
- has no name, a NUL in it, an owner out of range, or lies deeper than 128 directories;
- is of an unknown type, or the archive is damaged or truncated.

Kept: owners by number, permissions with the set-id bits, times to the nanosecond, hard links, holes of sparse files, file capabilities,
ACLs and user attributes. Symbolic links may point anywhere: they are followed only inside a sandbox, whose root they cannot leave. A name
that comes twice takes the later entry, as tar(1) does. Character and block devices are made as docker-import(1) does: they lie below a
directory that only root may enter, and inside a sandbox the device allow list decides about them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable

from netbox.errors import NetboxError, host_error
from netbox.image import tarformat
from netbox.image.streams import CHUNK, Archive
from netbox.image.tarformat import BadArchive, Entry, TarReader, printable
from netbox.image.tree import DEPTH_MAX, ID_MAX, NAME_MAX, TIME_MAX, Metadata, Tree, wanted_xattr, write_all

_DOCKER_SAVE = re.compile(rb"(blobs/sha256/|sha256:)?[0-9a-f]{64}(\.json|\.tar(\.gz)?)?|oci-layout")
_NODES = {tarformat.CHARACTER: stat.S_IFCHR, tarformat.BLOCK_DEVICE: stat.S_IFBLK, tarformat.FIFO: stat.S_IFIFO}


def extract(archive: Archive, tree: Tree) -> int:
    """Fills ``tree`` from ``archive`` and returns the number of entries. The caller deletes the tree when this raises.

    Raises BadArchive for an unsafe or damaged archive, or one of ``docker save``, HostError when writing fails.
    """
    reader = TarReader(archive)
    count = 0
    for entry in reader:
        name = safe_name(entry.name, "entry")
        refuse_docker_save((name,))
        try:
            _extract_entry(tree, reader, entry, name)
        except OSError as error:
            raise _failure(name, error) from error
        count += 1
    if not count:
        raise BadArchive("it holds no files")
    archive.drain()
    try:
        tree.finish()
    except OSError as error:
        raise host_error("set the attributes of", "the image's directories", error) from error
    return count


def safe_name(name: bytes, what: str) -> bytes:
    """The name without "." and empty components; empty for the root itself. Raises BadArchive for one that could lead out.

    >>> safe_name(b"./usr//bin/", "entry")
    b'usr/bin'
    """
    if not name or b"\0" in name:
        raise BadArchive(f"{what} {printable(name)} has no valid name")
    if name.startswith(b"/"):
        raise BadArchive(f"{what} {printable(name)} has an absolute name")
    components = [component for component in name.split(b"/") if component not in (b"", b".")]
    if b".." in components:
        raise BadArchive(f"{what} {printable(name)} would leave the image")
    if len(name) >= NAME_MAX or len(components) > DEPTH_MAX:
        raise BadArchive(f"{what} {printable(name)} is too long or lies too deep ({len(components)} levels)")
    return b"/".join(components)


def _extract_entry(tree: Tree, reader: TarReader, entry: Entry, name: bytes) -> None:
    metadata = _metadata(entry, name)
    if entry.kind == tarformat.DIRECTORY:
        tree.make_directory(name, metadata)
        return
    if not name:
        raise BadArchive("the root of the archive is not a directory")
    if entry.kind == tarformat.HARD_LINK:
        tree.hard_link(name, safe_name(entry.link, f"the target of hard link {printable(name)},"))
        return
    parent, last = tree.parent(name)
    tree.make_room(parent, last, name)
    if entry.kind == tarformat.REGULAR:
        _extract_file(tree, reader, entry, tree.create(parent, last), metadata)
    elif entry.kind == tarformat.SYMBOLIC_LINK:
        if not entry.link or b"\0" in entry.link:
            raise BadArchive(f"symbolic link {printable(name)} has no valid target")
        os.symlink(entry.link, last, dir_fd=parent)
        tree.set_node(parent, last, metadata, link=True)
    else:
        os.mknod(last, _NODES[entry.kind] | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)
        tree.set_node(parent, last, metadata)


def _extract_file(tree: Tree, reader: TarReader, entry: Entry, fd: int, metadata: Metadata) -> None:
    try:
        for offset, length in [(0, entry.size)] if entry.sparse is None else entry.sparse:
            while length:
                data = reader.read(min(length, CHUNK))
                write_all(fd, data, offset)
                offset, length = offset + len(data), length - len(data)
        if entry.sparse is not None:
            os.ftruncate(fd, entry.size)
        tree.set_file(fd, metadata)
    finally:
        os.close(fd)
    tree.size += entry.size if entry.sparse is None else sum(length for _, length in entry.sparse)


def _metadata(entry: Entry, name: bytes) -> Metadata:
    if not (0 <= entry.uid <= ID_MAX and 0 <= entry.gid <= ID_MAX):
        raise BadArchive(f"entry {printable(name)} has an owner out of range")
    if entry.major >= 1 << 12 or entry.minor >= 1 << 20:
        raise BadArchive(f"entry {printable(name)} has a device number out of range")
    xattrs = {key: value for key, value in entry.xattrs.items() if wanted_xattr(key)}
    return Metadata(entry.mode, entry.uid, entry.gid, max(-TIME_MAX, min(entry.mtime_ns, TIME_MAX)), xattrs)


def refuse_docker_save(names: Iterable[bytes]) -> None:
    """Raises BadArchive when one of the names betrays layers and a manifest, where a root file system was wanted."""
    if any(_DOCKER_SAVE.fullmatch(name) for name in names):
        raise BadArchive(
            "it is an image as 'docker save' writes it, layers and a manifest, not a root file system",
            "export one: docker create --name tmp IMAGE && docker export tmp | netbox image import NAME -",
        )


def _failure(name: bytes, error: OSError) -> NetboxError:
    return host_error("write", f"{printable(name)} of the image", error)
