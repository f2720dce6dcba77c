"""A root file system of static busybox: for the peers as an archive to import, for the floor as a directory."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

_DIRECTORIES = ("bin", "dev", "etc", "proc", "sys", "tmp", "root", "var")


def busybox() -> str | None:
    """The path of a busybox, if there is one."""
    return shutil.which("busybox")


def make(directory: Path) -> Path:
    """Fills the directory: busybox, a link for each of its applets, and /etc/passwd. Raises ``CalledProcessError`` or ``OSError``."""
    source = busybox()
    assert source is not None
    for name in _DIRECTORIES:
        (directory / name).mkdir(parents=True)
    shutil.copy2(source, directory / "bin" / "busybox")
    applets = subprocess.run([source, "--list"], capture_output=True, text=True, check=True, timeout=20).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (directory / "etc" / "group").write_text("root:x:0:\n")
    return directory


def archive(directory: Path, file: Path) -> Path:
    """The directory as a tar file."""
    with tarfile.open(file, "w") as tar:
        tar.add(directory, arcname=".")
    return file
