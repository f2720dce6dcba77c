"""Imports as root: what GNU tar and cp see, the image has; and whatever goes wrong or is killed leaves nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from netbox.errors import HostError, NetboxError, UsageError
from netbox.image.store import ImageStore
from netbox.settings import Settings
from tests.support import linux
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

# security.capability, version 2: cap_net_raw+ep (<linux/capability.h>)
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def store(private_host: PrivateHost) -> ImageStore:
    return ImageStore(Settings(root=str(private_host.root), run=str(private_host.run)))


def left_over(store: ImageStore, private_host: PrivateHost) -> list[str]:
    """Half-made images and layers that no image names."""
    images = private_host.root / "images"
    named = {layer for image in store.list() for layer in image.layers}
    layers = [str(path) for path in (images / "layers").glob("*") if str(path) not in named]
    return layers + [str(path) for path in images.glob(".incoming*")]


def describe(root: str | Path) -> dict[str, tuple[Any, ...]]:
    """Everything about a tree that an import keeps. Hard links are told by their groups, holes by the blocks."""
    top = os.fsencode(root)
    found: dict[str, tuple[Any, ...]] = {}
    groups: dict[int, list[bytes]] = {}
    for directory, directories, files in os.walk(top):
        for path in [directory, *(os.path.join(directory, name) for name in files + directories)]:
            status = os.lstat(path)
            name = os.path.relpath(path, top)
            content: bytes = b""
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest()
                groups.setdefault(status.st_ino, []).append(name)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = {} if stat.S_ISLNK(status.st_mode) else {key: os.getxattr(path, key) for key in os.listxattr(path)}
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            found[os.fsdecode(name)] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_rdev,
                size,
                content,
                xattrs,
            )
    links = sorted(sorted(names) for names in groups.values() if len(names) > 1)
    return {**found, "hard links": tuple(map(tuple, links))}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small root file system with one of everything."""
    root = tmp_path / "source"
    for name in ("bin", "etc", "dev", "tmp", "empty", "var/deep/er"):
        (root / name).mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"#!/bin/true\n")
    os.chmod(root / "bin/tool", 0o4755)
    os.setxattr(root / "bin/tool", "security.capability", CAPABILITY)
    (root / "bin/busy").write_bytes(os.urandom(200_000))
    os.link(root / "bin/busy", root / "var/deep/er/again")
    (root / "bin/sh").symlink_to("busy")
    (root / "etc/absolute").symlink_to("/nowhere")
    (root / "etc/owned").write_text("x")
    os.chown(root / "etc/owned", 1234, 70000)
    os.chmod(root / "etc/owned", 0o2640)
    (root / ("n" * 200)).write_text("long")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9")).write_text("latin")
    with open(root / "var/sparse", "wb") as file:
        file.write(b"begin")
        file.seek(5_000_000)
        file.write(b"end")
    with open(root / "var/hole", "wb") as file:
        file.truncate(3_000_000)
    os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chmod(root / "dev/null", 0o666)
    os.mknod(root / "dev/disk", stat.S_IFBLK | 0o660, os.makedev(8, 1))
    os.mkfifo(root / "dev/pipe")
    os.chmod(root / "tmp", 0o1777)
    os.utime(root / "etc/owned", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    os.utime(root / "etc/absolute", ns=(0, 1_500_000_000_000_000_001), follow_symlinks=False)
    for name in ("bin", "etc", "empty", "var/deep", "."):
        os.utime(root / name, ns=(0, 1_000_000_000_000_000_000))
    return root


def gnu_tar(source: Path, target: Path, *options: str) -> Path:
    subprocess.run(["tar", "-C", str(source), "--xattrs", "--xattrs-include=*", *options, "-cf", str(target), "."], check=True, timeout=60)
    return target


@pytest.mark.parametrize(
    "options", [[], ["--sparse"], ["--sparse", "--sparse-version=0.0"], ["--sparse", "--sparse-version=0.1"]], ids=" ".join
)
def test_an_archive_of_gnu_tar_arrives_whole(options: list[str], store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    archive = gnu_tar(source, source.parent / "image.tar", "--format=posix", *options)
    image = store.import_path("whole", str(archive))
    assert describe(image.layers[0]) == describe(source)
    assert (image.name, image.source, image.command) == ("whole", str(archive), ("/bin/sh",))
    if options:
        assert Path(image.layers[0], "var/hole").stat().st_blocks == 0
        assert Path(image.layers[0], "var/sparse").stat().st_blocks <= 32


@pytest.mark.parametrize("format_", ["gnu", "oldgnu"])
def test_older_formats_of_gnu_tar(format_: str, store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    archive = source.parent / "image.tar"
    subprocess.run(["tar", "-C", str(source), f"--format={format_}", "--sparse", "-cf", str(archive), "."], check=True, timeout=60)
    image = store.import_path("old", str(archive))

    def comparable(root: str | Path) -> dict[str, tuple[Any, ...]]:
        tree = describe(root)
        links = tree.pop("hard links")
        # these formats have whole seconds and no attributes
        return {"hard links": links, **{name: (*row[:3], row[3] // 10**9, *row[4:7]) for name, row in tree.items()}}

    assert comparable(image.layers[0]) == comparable(source)


@pytest.mark.parametrize("command", [["gzip"], ["xz", "-0"], ["bzip2"], ["zstd", "-q"]], ids=lambda command: command[0])
def test_a_compressed_archive_on_the_standard_input(command: list[str], store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    archive = gnu_tar(source, source.parent / "image.tar", "--format=posix")
    with open(archive, "rb") as plain:
        child = subprocess.Popen([*command, "-c"], stdin=plain, stdout=subprocess.PIPE)
    assert child.stdout is not None
    with cast(BinaryIO, child.stdout) as packed:
        image = store.import_stream("packed", packed)
    assert child.wait(60) == 0
    assert image.source == "stdin"
    assert describe(image.layers[0]) == describe(source)


def test_a_directory_arrives_whole(store: ImageStore, source: Path) -> None:
    image = store.import_path("copy", str(source))
    assert describe(image.layers[0]) == describe(source)
    assert Path(image.layers[0], "var/hole").stat().st_blocks == 0
    assert image.size == sum(path.lstat().st_size for path in source.rglob("*") if path.is_file() and not path.is_symlink()) - 200_000


def test_a_directory_with_a_socket(store: ImageStore, source: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        image = store.import_path("copy", str(source))
    assert stat.S_ISSOCK(os.lstat(f"{image.layers[0]}/socket").st_mode)


def test_a_directory_is_copied_on_its_own_mount_only(store: ImageStore, source: Path) -> None:
    (source / "proc").mkdir(mode=0o555)
    linux.mount("proc", str(source / "proc"), "proc")
    linux.mount(str(source / "etc"), str(source / "empty"), flags=linux.MS_BIND)
    try:
        image = store.import_path("copy", str(source))
    finally:
        subprocess.run(["umount", str(source / "proc"), str(source / "empty")], check=True, timeout=20)
    assert os.listdir(f"{image.layers[0]}/proc") == []
    assert os.listdir(f"{image.layers[0]}/empty") == []
    assert os.listdir(f"{image.layers[0]}/etc")


def test_the_store_inside_the_directory_is_left_out(store: ImageStore, private_host: PrivateHost) -> None:
    (private_host.root / "file").write_text("x")
    image = store.import_path("copy", str(private_host.root))
    (private_host.root / "file").unlink()
    assert sorted(os.listdir(image.layers[0])) == ["file", "images"]
    assert os.listdir(f"{image.layers[0]}/images") == []


def test_an_unpacked_docker_save_is_refused(store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    (source / "oci-layout").write_text("{}")
    with pytest.raises(UsageError, match="docker export"):
        store.import_path("copy", str(source))
    assert left_over(store, private_host) == []


def test_a_deep_directory_is_refused(store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    deep = source.joinpath(*["d"] * 140)
    deep.mkdir(parents=True)
    with pytest.raises(UsageError, match="128"):
        store.import_path("copy", str(source))
    assert left_over(store, private_host) == []


@contextlib.contextmanager
def small_disk(private_host: PrivateHost, options: str) -> Iterator[None]:
    """The store on a file system that fills up soon."""
    images = private_host.root / "images"
    images.mkdir(exist_ok=True)
    linux.mount("small", str(images), "tmpfs", data=options)
    try:
        yield
    finally:
        subprocess.run(["umount", str(images)], check=True, timeout=20)


@pytest.mark.parametrize("options", ["size=1m", "nr_inodes=12"])
@pytest.mark.parametrize("kind", ["archive", "directory"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    kind: str, options: str, store: ImageStore, source: Path, private_host: PrivateHost
) -> None:
    (source / "big").write_bytes(os.urandom(2_000_000))
    archive = gnu_tar(source, source.parent / "image.tar", "--format=posix")
    with small_disk(private_host, options):
        with pytest.raises(HostError, match="No space left on device") as caught:
            store.import_path("big", str(archive if kind == "archive" else source))
        assert "\n" not in str(caught.value)
        assert left_over(store, private_host) == []
        assert [image.name for image in store.list()] == ["host"]


def hostile(*entries: tuple[str, bytes, str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 1 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"!"))
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    "entries",
    [
        [("../../../escaped", tarfile.REGTYPE, "")],
        [("/run/escaped", tarfile.REGTYPE, "")],
        [("link", tarfile.SYMTYPE, "/run"), ("link/escaped", tarfile.REGTYPE, "")],
        [("etc/passwd", tarfile.LNKTYPE, "../../../../etc/passwd")],
    ],
    ids=["parent", "absolute", "link", "hard link"],
)
def test_an_unsafe_archive_leaves_nothing(entries: list[tuple[str, bytes, str]], store: ImageStore, private_host: PrivateHost) -> None:
    with pytest.raises(UsageError, match="cannot import 'stdin'"):
        store.import_stream("evil", hostile(("good", tarfile.REGTYPE, ""), *entries))
    assert left_over(store, private_host) == []
    assert [image.name for image in store.list()] == ["host"]
    assert not list(Path("/run").rglob("escaped"))


def test_a_failed_import_leaves_the_image_of_that_name(store: ImageStore, source: Path) -> None:
    before = store.import_path("web", str(source))
    with pytest.raises(UsageError):
        store.import_stream("web", io.BytesIO(b"nonsense" * 100))
    assert store.get("web") == before


def test_an_import_replaces_an_image_and_its_user_keeps_the_old_layer(store: ImageStore, source: Path) -> None:
    old = store.import_path("web", str(source))
    (source / "new").touch()
    new = store.import_path("web", str(source))
    assert store.get("web") == new != old
    assert store.gc(old.layers) == []
    assert Path(old.layers[0], "bin/tool").exists()
    assert store.gc(()) == [f"image layer {old.layers[0]}"]
    assert Path(new.layers[0], "new").exists()
    assert not Path(old.layers[0]).exists()


def test_two_imports_of_one_name_at_once(store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(store.import_path("web", str(source)))
        except NetboxError as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
        assert not thread.is_alive()
    assert store.get("web") in results
    assert all(not isinstance(result, NetboxError) for result in results)
    store.gc(())
    assert left_over(store, private_host) == []
    assert describe(store.get("web").layers[0]) == describe(source)


CHILD = """
import sys
from netbox.image.store import ImageStore
from netbox.settings import Settings
store = ImageStore(Settings.from_environment())
print("ready", flush=True)
if sys.argv[1] == "-":
    store.import_stream("web", sys.stdin.buffer)
else:
    store.import_path("web", sys.argv[1])
"""


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_nothing_is_left(seed: int, store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    for number in range(300):
        (source / f"file{number}").write_bytes(b"x" * 5000)
    checkout = Path(__file__).resolve().parents[2]
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(source)], stdout=subprocess.PIPE, cwd=checkout)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"ready\n"
        time.sleep(random.Random(seed).uniform(0, 0.08))
        child.send_signal(signal.SIGKILL)
        child.wait(60)
    store.gc(())
    assert left_over(store, private_host) == []
    found = [image for image in store.list() if not image.host]
    assert all(describe(image.layers[0]) == describe(source) for image in found)


def test_a_running_import_is_not_collected(store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    archive = gnu_tar(source, source.parent / "image.tar", "--format=posix").read_bytes()
    checkout = Path(__file__).resolve().parents[2]
    child = subprocess.Popen([sys.executable, "-c", CHILD, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=checkout)
    assert child.stdout is not None
    assert child.stdin is not None
    with child.stdout, child.stdin:
        assert child.stdout.readline() == b"ready\n"
        child.stdin.write(archive[:100_000])
        child.stdin.flush()
        wait_until(lambda: left_over(store, private_host), "the beginning of an image", timeout=60)
        assert store.gc(()) == []
        assert len(left_over(store, private_host)) == 1
        child.stdin.write(archive[100_000:])
        child.stdin.close()
        assert child.wait(60) == 0
    assert left_over(store, private_host) == []
    assert describe(store.get("web").layers[0]) == describe(source)


def test_a_fifo_is_read_like_a_pipe(store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    archive = gnu_tar(source, source.parent / "image.tar", "--format=posix")
    data = archive.read_bytes()
    archive.unlink()
    os.mkfifo(archive)
    writer = threading.Thread(target=archive.write_bytes, args=(data,), daemon=True)
    writer.start()
    image = store.import_path("web", str(archive))
    writer.join(60)
    assert describe(image.layers[0]) == describe(source)


@pytest.mark.parametrize("kind", ["archive", "directory"])
def test_progress_ends_at_the_total(kind: str, store: ImageStore, source: Path, private_host: PrivateHost) -> None:
    archive = gnu_tar(source, source.parent / "image.tar", "--format=posix")
    seen: list[tuple[int, int | None]] = []
    report: Callable[[int, int | None], None] = lambda done, total: seen.append((done, total))  # noqa: E731
    store.import_path("web", str(archive if kind == "archive" else source), report)
    done = [step for step, _ in seen]
    assert done == sorted(done)
    total = seen[-1][1]
    assert total is not None
    assert 0.9 * total <= done[-1] <= total
