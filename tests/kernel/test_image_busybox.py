"""The image ``busybox``: made on first use, runs alone, is made again when the host's program changes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from netbox.errors import Unsupported
from netbox.image import busybox
from netbox.image.model import Image
from netbox.image.store import ImageStore
from netbox.settings import Settings
from tests.support.host import PrivateHost


@pytest.fixture
def store(private_host: PrivateHost) -> ImageStore:
    return ImageStore(Settings(root=str(private_host.root), run=str(private_host.run)))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the host's static busybox that a test may change."""
    copy = tmp_path / "busybox"
    shutil.copy2(busybox.find_static().path, copy)
    monkeypatch.setattr(busybox, "CANDIDATES", (str(copy),))
    return copy


def inside(image: Image, script: str) -> str:
    """What a script prints with the image as its root."""
    command = ["chroot", image.layers[0], "/bin/sh", "-ec", script]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    ).stdout


def test_it_is_made_on_first_use_and_then_found(store: ImageStore, private_host: PrivateHost) -> None:
    assert [image.name for image in store.list()] == ["host"]
    image = store.get("busybox")
    assert store.get("busybox") == image
    assert [image.name for image in store.list()] == ["host", "busybox"]
    assert image.command == ("sh",)
    assert not list((private_host.root / "images").glob(".incoming*"))


def test_it_runs_alone(store: ImageStore) -> None:
    image = store.get("busybox")
    assert inside(image, "id -un; id -gn; ls -d /proc /sys /dev; echo ~root") == "root\nroot\n/dev\n/proc\n/sys\n/root\n"
    assert inside(image, "awk -F: '$1 == \"nobody\" { print $3, $4 }' /etc/passwd") == "65534 65534\n"


def test_every_applet_is_where_the_program_says(store: ImageStore) -> None:
    root = Path(store.get("busybox").layers[0])
    applets = busybox.applets("/bin/busybox")
    assert {"bin/sh", "sbin/ip", "bin/ping", "usr/bin/wget", "usr/bin/nc", "sbin/ifconfig", "usr/sbin/httpd"} <= set(applets)
    for applet in set(applets) - {"bin/busybox"}:
        assert os.readlink(root / applet) == "/bin/busybox"


def test_permissions_do_not_depend_on_the_umask(store: ImageStore) -> None:
    before = os.umask(0o077)
    try:
        root = Path(store.get("busybox").layers[0])
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in (".", "tmp", "root", "etc/passwd", "bin/busybox", "usr/bin")}
    assert modes == {".": 0o755, "tmp": 0o1777, "root": 0o700, "etc/passwd": 0o644, "bin/busybox": 0o755, "usr/bin": 0o755}


def test_a_newer_program_makes_a_new_image(store: ImageStore, program: Path) -> None:
    old = store.get("busybox")
    os.utime(program, ns=(0, 1))
    new = store.get("busybox")
    assert new.layers != old.layers
    assert store.get("busybox") == new
    assert Path(old.layers[0], "bin/sh").is_symlink()
    assert store.gc(()) == [f"image layer {old.layers[0]}"]


def test_it_stays_when_the_program_is_uninstalled(store: ImageStore, program: Path) -> None:
    image = store.get("busybox")
    program.unlink()
    assert store.get("busybox") == image


def test_an_image_that_lost_its_program_is_made_again(store: ImageStore, program: Path) -> None:
    broken = store.get("busybox")
    Path(broken.layers[0], "bin/busybox").write_bytes(b"")
    assert inside(store.get("busybox"), "echo alive") == "alive\n"


def test_without_a_program_nothing_is_made(store: ImageStore, program: Path, private_host: PrivateHost) -> None:
    program.unlink()
    with pytest.raises(Unsupported, match="busybox-static"):
        store.get("busybox")
    assert not list((private_host.root / "images").glob(".incoming*"))


def test_an_imported_busybox_is_left_alone(store: ImageStore, tmp_path: Path, program: Path) -> None:
    source = tmp_path / "own"
    (source / "bin").mkdir(parents=True)
    (source / "bin/tool").touch()
    image = store.import_path("busybox", str(source))
    assert store.get("busybox") == image


def test_many_at_once_make_one(store: ImageStore, private_host: PrivateHost) -> None:
    found: list[Image] = []
    threads = [threading.Thread(target=lambda: found.append(store.get("busybox"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
        assert not thread.is_alive()
    assert len(set(found)) == 1
    assert len(list((private_host.root / "images/layers").iterdir())) == 1


def test_the_start_path_reads_little(store: ImageStore) -> None:
    store.get("busybox")
    begin = time.thread_time()
    for _ in range(100):
        store.get("busybox")
    assert (time.thread_time() - begin) / 100 < 0.005
