"""The mount table: reading /proc/PID/mountinfo (proc(5)) and taking mounts down."""

from __future__ import annotations

import os
from typing import NamedTuple

from netbox.kernel import syscalls

_ESCAPES = {"040": " ", "011": "\t", "012": "\n", "134": "\\", "043": "#"}


class MountEntry(NamedTuple):
    """A line of mountinfo. ``root`` is the part of the file system that is mounted, ``mount_point`` is relative to the reader's root."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def unescape(field: str) -> str:
    r"""Reverses the kernel's ``\040`` for space, tab, newline, backslash and ``#``."""
    if "\\" not in field:
        return field
    head, *rest = field.split("\\")
    parts = [head]
    for part in rest:
        character = _ESCAPES.get(part[:3])
        parts.append(f"\\{part}" if character is None else character + part[3:])
    return "".join(parts)


def parse_mountinfo(text: str) -> list[MountEntry]:
    """The entries of a mountinfo file, in its order: later ones lie over earlier ones. Pure. Raises ValueError on a line that is none."""
    return [_parse_line(line) for line in text.split("\n") if line]


def _parse_line(line: str) -> MountEntry:
    fields = line.split(" ")
    try:
        separator = fields.index("-", 6)  # after the optional fields, of which there may be none
        fstype, source, super_options = fields[separator + 1 : separator + 4]
        return MountEntry(
            int(fields[0]),
            int(fields[1]),
            fields[2],
            unescape(fields[3]),
            unescape(fields[4]),
            tuple(fields[5].split(",")),
            tuple(fields[6:separator]),
            unescape(fstype),
            unescape(source),
            tuple(unescape(super_options).split(",")),
        )
    except (ValueError, IndexError):
        raise ValueError(f"not a line of mountinfo: {line!r}") from None


def read_mountinfo(pid: int | str = "self") -> list[MountEntry]:
    """The mounts that a process sees. Raises OSError when there is no such process."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return parse_mountinfo(file.read())


def mounts_below(path: str, entries: list[MountEntry]) -> list[str]:
    """The mount points at ``path`` and below it, the one to unmount first coming first. Pure."""
    prefix = path.rstrip("/") + "/"
    return [entry.mount_point for entry in reversed(entries) if entry.mount_point == path or entry.mount_point.startswith(prefix)]


def unmount_tree(path: str) -> list[str]:
    """Unmounts everything at and below ``path`` (lazily, so a busy mount does not stop it); returns what was unmounted.

    Idempotent. Raises OSError.
    """
    done = []
    for mount_point in mounts_below(os.path.realpath(path), read_mountinfo()):
        try:
            syscalls.umount2(mount_point, syscalls.MNT_DETACH)
        except (FileNotFoundError, NotADirectoryError):  # another clean-up was faster
            continue
        except OSError as error:
            if error.errno == 22:  # EINVAL: no mount point any more
                continue
            raise
        done.append(mount_point)
    return done
