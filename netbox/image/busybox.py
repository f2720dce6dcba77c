"""The image ``busybox``, made on first use from Debian's busybox-static: one program, its applets as symbolic links, and a small /etc."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import HostError, Unsupported, host_error

if TYPE_CHECKING:
    from netbox.image.model import Record

NAME = "busybox"
CANDIDATES = ("/bin/busybox", "/usr/bin/busybox")
COMMAND = ("sh",)
LAYOUT = 1  # goes up when what this module writes changes
_HINT = "install Debian's static one: apt-get install busybox-static"
_PT_INTERP = 3  # <elf.h>: the program names a dynamic loader
_PROGRAM = "bin/busybox"

_DIRECTORIES = {
    "bin": 0o755,
    "sbin": 0o755,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
    "var/log": 0o755,
    "var/spool": 0o755,
    "var/tmp": 0o1777,
    "var/www": 0o755,
}
_FILES = {
    # users and groups as in Debian's base-passwd, so far as a small system has a use for them
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\n"
        "sync:x:4:65534:sync:/bin:/bin/sync\nmail:x:8:8:mail:/var/spool/mail:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"
        "backup:x:34:34:backup:/var/backups:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
    ),
    "etc/group": (
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nlp:x:7:\nmail:x:8:\nkmem:x:15:\nwww-data:x:33:\nbackup:x:34:\n"
        "utmp:x:43:\nvideo:x:44:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\n"
    ),
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\nservices: files\n",
    "etc/profile": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\numask 022\n",
    # there to be mounted over: a sandbox brings its own
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "etc/hostname": "",
    "etc/resolv.conf": "",
}


class Binary(NamedTuple):
    """The host's program: its path and what tells that it changed."""

    path: str
    size: int
    mtime_ns: int

    def mark(self) -> dict[str, int | str]:
        """What an image's record says about its origin."""
        return {"path": self.path, "size": self.size, "mtime_ns": self.mtime_ns, "layout": LAYOUT}


def find(candidates: Sequence[str] | None = None) -> Binary | None:
    """The first program that is there, static or not."""
    for path in candidates or CANDIDATES:
        try:
            status = os.stat(path)
        except OSError:
            continue
        return Binary(path, status.st_size, status.st_mtime_ns)
    return None


def find_static(candidates: Sequence[str] | None = None) -> Binary:
    """The first static program. Raises Unsupported when there is none, saying what to install."""
    seen = []
    for path in candidates or CANDIDATES:
        binary = find((path,))
        if binary is None:
            continue
        if is_static(path):
            return binary
        seen.append(path)
    if seen:
        raise Unsupported(f"cannot make the image 'busybox': {seen[0]} needs a dynamic loader, so it cannot run alone", _HINT)
    raise Unsupported("cannot make the image 'busybox': this machine has no busybox", _HINT)


def is_static(path: str) -> bool:
    """Whether an ELF program needs no dynamic loader: no program header PT_INTERP, elf(5). False for what is not ELF."""
    try:
        with open(path, "rb") as file:
            header = file.read(64)
            if len(header) < 52 or header[:4] != b"\x7fELF" or header[4] not in (1, 2) or header[5] not in (1, 2):
                return False
            order = "<" if header[5] == 1 else ">"
            wide = header[4] == 2
            (table,) = struct.unpack_from(order + ("Q" if wide else "I"), header, 32 if wide else 28)
            entry_size, count = struct.unpack_from(order + "HH", header, 54 if wide else 42)
            file.seek(table)
            headers = file.read(entry_size * count)
    except OSError:
        return False
    if entry_size < 4 or len(headers) < entry_size * count or not count:
        return False
    return all(struct.unpack_from(order + "I", headers, index * entry_size)[0] != _PT_INTERP for index in range(count))


def applets(path: str) -> list[str]:
    """Where each applet of the program belongs, such as ``usr/bin/wget``; all in bin for a program that does not tell. Raises HostError."""
    import subprocess

    for option, directory in (("--list-full", ""), ("--list", "bin/")):
        try:
            result = subprocess.run([path, option], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostError(f"cannot ask {path} for its applets: {error}", _HINT) from error
        names = [directory + line.lstrip("/") for line in result.stdout.decode("utf-8", "replace").split("\n") if line]
        if result.returncode == 0 and names:
            return [name for name in names if name.rpartition("/")[0] in _DIRECTORIES]
    raise HostError(f"{path} does not tell its applets", _HINT)


def build(binary: Binary, root: str) -> int:
    """Makes the file system in the new directory ``root`` and returns its size in bytes. Raises HostError."""
    names = applets(binary.path)
    try:
        os.mkdir(root, 0o755)
        _chmod(root, 0o755)
        for name, mode in _DIRECTORIES.items():
            os.mkdir(f"{root}/{name}", mode)
            _chmod(f"{root}/{name}", mode)
        size = _copy(binary.path, f"{root}/{_PROGRAM}", 0o755)
        for name, text in _FILES.items():
            size += _write(f"{root}/{name}", text.encode(), 0o644)
        os.symlink("/proc/mounts", f"{root}/etc/mtab")
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in sorted(set(names) - {_PROGRAM}):
                os.symlink(f"/{_PROGRAM}", name, dir_fd=fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise host_error("make", "the image 'busybox'", error) from error
    return size


def intact(record: Record) -> bool:
    """Whether the program in the image is as long as the host's was: after a power failure it may be empty."""
    try:
        return record.made_from is not None and os.stat(f"{record.image.layers[0]}/{_PROGRAM}").st_size == record.made_from["size"]
    except OSError:
        return False


def _chmod(path: str, mode: int) -> None:
    os.chmod(path, mode)  # the umask took its share of mkdir's


def _write(path: str, data: bytes, mode: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
    finally:
        os.close(fd)
    return len(data)


def _copy(source: str, target: str, mode: int) -> int:
    with open(source, "rb") as file:
        return _write(target, file.read(), mode)
