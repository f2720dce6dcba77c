"""Debian's kernel, from its package: downloaded and unpacked into a cache directory, never installed."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

META_PACKAGE = "linux-image-amd64"
# What a sandbox or a test can ask for. The rest, mostly drivers, would be half of 400 MB.
_UNPACKED = ("arch", "crypto", "fs", "lib", "mm", "net", "drivers/net", "drivers/virtio", "drivers/block")


class Failed(Exception):
    """What a person can read: why the machine cannot be made or did not do its work."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its release, its image, and the directory to be ``/lib/modules``."""

    release: str
    image: Path
    modules: Path

    def dependencies(self, *names: str) -> list[Path]:
        """The files of modules and of all that they need, in the order of loading (modules.dep(5))."""
        directory = self.modules / self.release
        needs: dict[str, list[str]] = {}
        for line in (directory / "modules.dep").read_text().splitlines():
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
        by_name = {re.sub("-", "_", Path(path).stem): path for path in needs}
        found: dict[str, None] = {}

        def add(path: str) -> None:
            for needed in needs[path]:
                add(needed)
            found[path] = None

        for name in names:
            if name in by_name:  # else it is built in
                add(by_name[name])
        return [directory / path for path in found]


def cache_directory() -> Path:
    """Where kernels are kept between runs (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "netbox-test-vm"


def kernel() -> Kernel:
    """The newest kernel of this Debian. Raises ``Failed`` where there is none to be had."""
    package, version = _newest()
    place = cache_directory() / f"{package}_{version}"
    if not place.exists():
        _download(package, version, place)
    images = list(place.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise Failed(f"{place} holds no kernel: remove it, and it is made anew")
    return Kernel(images[0].name.removeprefix("vmlinuz-"), images[0], place / "lib/modules")


def _newest() -> tuple[str, str]:
    """Name and version of the package that the meta package stands for."""
    for line in run("apt-cache", "show", "--no-all-versions", META_PACKAGE, hint="apt-get update").splitlines():
        found = re.match(r"Depends: (linux-image-\S+) \(= (\S+)\)", line)
        if found:
            return found[1], found[2]
    raise Failed(f"{META_PACKAGE} names no kernel: is this Debian on amd64?")


def _download(package: str, version: str, place: Path) -> None:
    """Makes ``place`` whole or not at all: it gets its name when it is complete."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        directory = Path(name)
        print(f"downloading {package} {version}", flush=True)
        run("apt-get", "download", "-q", f"{package}={version}", cwd=directory, hint="apt-get update")
        archive = next(directory.glob("*.deb"))
        tree = directory / "tree"
        tree.mkdir()
        modules = [f"./lib/modules/*/{part}" for part in ("modules.*", *(f"kernel/{name}/*" for name in _UNPACKED))]
        patterns = shlex.join(("./boot/vmlinuz-*", *modules))
        run("sh", "-c", f"dpkg --fsys-tarfile {archive.name} | tar -x -C tree --wildcards {patterns}", cwd=directory)
        release = next((tree / "lib/modules").iterdir()).name
        run("busybox", "depmod", "-b", str(tree), release)
        for old in place.parent.glob("linux-image-*"):
            shutil.rmtree(old)
        tree.chmod(0o755)
        tree.rename(place)


def run(*command: str, cwd: Path | None = None, hint: str = "", timeout: float = 600) -> str:
    """The output of a command. Raises ``Failed`` with its last line of error."""
    try:
        result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise Failed(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]} took longer than {timeout:.0f} s") from error
    if result.returncode:
        said = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise Failed(f"{' '.join(command[:3])}: {said}" + (f"; try {hint}" if hint else ""))
    return result.stdout
