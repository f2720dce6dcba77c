"""The first file system of the machine, as the kernel unpacks it: busybox, a script, the modules that reach the root file system."""

from __future__ import annotations

import gzip
import os
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from tests.vm.kernel import Failed, Kernel

_BUSYBOX = Path("/bin/busybox")
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


def write(file: Path, kernel: Kernel, command: Sequence[str]) -> None:
    """Makes the archive. ``command`` is what ``init.sh`` starts in the machine's root."""
    if b"/lib64/ld-linux" in _BUSYBOX.read_bytes():
        raise Failed(f"{_BUSYBOX} needs libraries: install busybox-static")
    archive = _Archive()
    for name in ("bin", "dev", "modules", "proc", "sys", "machine", "changes", "root"):
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, _BUSYBOX.read_bytes())
    for number, module in enumerate(kernel.dependencies(*_MODULES)):
        archive.add(f"modules/{number:02}-{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
    archive.add("command", stat.S_IFREG | 0o644, f"set -- {shlex.join(command)}\n".encode())
    archive.add("init", stat.S_IFREG | 0o755, Path(__file__).with_name("init.sh").read_bytes())
    file.write_bytes(gzip.compress(archive.finish(), 1))


class _Archive:
    """A cpio archive in the format "newc" (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entries = 0

    def add(self, name: str, mode: int, data: bytes = b"") -> None:
        self._entries += 1
        path = os.fsencode(name) + b"\0"
        #        inode, mode, uid, gid, links, mtime, size, device, device of a node, length of the name, check sum
        fields = (self._entries, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts += [_padded(header), _padded(data)]

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
