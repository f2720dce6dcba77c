"""``netbox image`` as people and scripts use it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pty
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from netbox.image import busybox
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A directory with a shell in it."""
    root = tmp_path / "rootfs"
    busybox.build(busybox.find_static(), str(root))
    return root


@pytest.fixture
def archive(rootfs: Path) -> Path:
    path = rootfs.parent / "rootfs.tar.gz"
    subprocess.run(["tar", "-C", str(rootfs), "-czf", str(path), "."], check=True, timeout=60)
    return path


def names(cli: Cli) -> list[str]:
    return [image["name"] for image in json.loads(cli("image", "ls", "--format", "json").stdout)]


def test_a_fresh_machine_has_the_host(cli: Cli) -> None:
    header, *rows = cli("image", "ls").stdout.splitlines()
    assert header.split() == ["NAME", "ID", "CREATED", "SIZE", "SOURCE"]
    assert [row.split() for row in rows] == [["host", "host", "-", "-", "/"]]


def test_an_archive_becomes_an_image(cli: Cli, archive: Path) -> None:
    identity = cli("image", "import", "web", str(archive)).stdout.strip()
    row = cli("image", "ls").stdout.splitlines()[2]
    assert row.startswith(f"web    {identity[:12]}   ")
    (image,) = json.loads(cli("image", "inspect", "web").stdout)
    assert (image["name"], image["id"], image["source"], image["command"]) == ("web", identity, str(archive), ["/bin/sh"])
    assert cli("image", "ls", "-q").stdout.split() == ["host", identity[:12]]
    assert cli("image", "ls", "-q", "--no-trunc", "--filter", "reference=w*").stdout.split() == [identity]
    assert json.loads(cli("image", "ls", "--format", "json").stdout)[1] == image


def test_the_standard_input_and_a_directory(cli: Cli, rootfs: Path, archive: Path) -> None:
    with open(archive, "rb") as data:
        subprocess.run([*cli.command, "image", "import", "one", "-"], stdin=data, env=cli.environment(), check=True, timeout=60)
    cli("image", "import", "two", str(rootfs))
    one, two = json.loads(cli("image", "inspect", "one", "two").stdout)
    assert (one["source"], two["source"]) == ("stdin", str(rootfs))
    assert one["size"] == two["size"]


def test_nothing_but_the_id_without_a_terminal(cli: Cli, archive: Path) -> None:
    result = cli("image", "import", "web", str(archive))
    assert len(result.stdout.split()) == 1
    assert result.stderr == ""


def test_progress_on_a_terminal(cli: Cli, tmp_path: Path, private_host: PrivateHost) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big/file").write_bytes(os.urandom(3_000_000))
    main, side = pty.openpty()
    try:
        command = [*cli.command, "image", "import", "big", str(tmp_path / "big")]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=side, env=cli.environment(TERM="xterm"))
        os.close(side)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while data := os.read(main, 4096):
                seen += data
        assert child.wait(60) == 0
    finally:
        os.close(main)
    assert b"importing big: " in seen
    assert b" of 2.86MiB (" in seen
    assert seen.endswith(b"\r\x1b[K")


def test_an_import_replaces_and_the_old_files_go(cli: Cli, rootfs: Path, private_host: PrivateHost) -> None:
    cli("image", "import", "web", str(rootfs))
    (rootfs / "new").touch()
    cli("image", "import", "web", str(rootfs))
    (image,) = json.loads(cli("image", "inspect", "web").stdout)
    assert Path(image["layers"][0], "new").exists()
    assert [str(path) for path in (private_host.root / "images/layers").iterdir()] == image["layers"]


def test_removal(cli: Cli, rootfs: Path, private_host: PrivateHost) -> None:
    cli("image", "import", "one", str(rootfs))
    identity = cli("image", "import", "two", str(rootfs)).stdout.strip()
    assert cli("image", "rm", "one", identity).stdout.split() == ["one", "two"]
    assert names(cli) == ["host"]
    assert list((private_host.root / "images/layers").iterdir()) == []


def test_removal_goes_on_after_an_error(cli: Cli, rootfs: Path) -> None:
    cli("image", "import", "one", str(rootfs))
    result = cli("image", "rm", "nope", "host", "one", check=125)
    assert result.stdout.split() == ["one"]
    assert "no image 'nope'; " in result.stderr
    assert "'host' is this machine's own root" in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_an_image_in_use_stays_and_force_takes_its_name(cli: Cli, rootfs: Path) -> None:
    cli("image", "import", "web", str(rootfs))
    cli("create", "--name", "box", "--network", "none", "web", "cat", "/etc/hostname")
    assert "box" in cli("image", "rm", "web", check=125).stderr
    assert names(cli) == ["host", "web"]
    cli("image", "rm", "-f", "web")
    assert names(cli) == ["host"]
    cli("start", "-a", "box")
    cli("rm", "box")


def test_a_sandbox_runs_from_an_imported_image(cli: Cli, archive: Path) -> None:
    cli("image", "import", "web", str(archive))
    assert cli("run", "--rm", "--network", "none", "web", "sh", "-c", "echo hello; id -un").stdout == "hello\nroot\n"
    assert cli("run", "--rm", "--network", "none", "busybox", "echo", "made").stdout == "made\n"
    assert names(cli) == ["host", "busybox", "web"]


def hostile(path: Path, *members: tuple[str, bytes, str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such file": (lambda path: path / "none", "there is no such file"),
    "not an archive": (lambda path: path / "text", "not a tar archive"),
    "empty": (lambda path: path / "empty", "it is empty"),
    "device": (lambda path: "/dev/zero", "neither a file nor a directory"),
    "truncated": (lambda path: path / "truncated", "damaged or truncated"),
    "leaves": (lambda path: hostile(path / "evil", ("../x", tarfile.REGTYPE, "")), "entry '../x' would leave the image"),
    "link": (
        lambda path: hostile(path / "evil", ("a", tarfile.SYMTYPE, "/"), ("a/x", tarfile.REGTYPE, "")),
        "through 'a', a symbolic link",
    ),
    "docker save": (lambda path: hostile(path / "save", ("oci-layout", tarfile.REGTYPE, "")), "docker export"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, cli: Cli, tmp_path: Path, archive: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty").touch()
    (tmp_path / "truncated").write_bytes(archive.read_bytes()[:-5000])
    make, reason = BAD[case]
    result = cli("image", "import", "bad", str(make(tmp_path)), check=125)
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert names(cli) == ["host"]


@pytest.mark.parametrize("name", ["host", "../up", "a b", "", "x" * 300, "-x"])
def test_bad_names_are_refused(name: str, cli: Cli, archive: Path) -> None:
    result = cli("image", "import", "--", name, str(archive), check=125)
    assert len(result.stderr.splitlines()) == 1
    assert names(cli) == ["host"]


def test_a_terminal_is_no_archive(cli: Cli, private_host: PrivateHost) -> None:
    main, side = pty.openpty()
    try:
        command = [*cli.command, "image", "import", "web", "-"]
        result = subprocess.run(command, stdin=side, capture_output=True, text=True, timeout=60, env=cli.environment(), check=False)
    finally:
        os.close(main)
        os.close(side)
    assert result.returncode == 125
    assert "is a terminal" in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_nothing_is_left(number: signal.Signals, code: int, cli: Cli, private_host: PrivateHost) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        info = tarfile.TarInfo("file")
        info.size = 1000
        archive.addfile(info, io.BytesIO(bytes(1000)))
    images = private_host.root / "images"
    with cli.popen("image", "import", "web", "-") as child:
        assert child.stdin is not None
        os.write(child.stdin.fileno(), gzip.compress(data.getvalue())[:80])  # less than the reader wants: it waits
        wait_until(lambda: list(images.glob(".incoming*")) or child.poll() is not None, "the import to begin")
        found = list(images.glob(".incoming*"))
        child.send_signal(number)
        output, _ = child.communicate(timeout=60)
    assert found
    assert (child.returncode, output) == (code, "")
    assert not list(images.glob(".incoming*"))


def test_every_verb_explains_itself(cli: Cli) -> None:
    assert {"ls", "inspect", "import", "rm"} <= set(cli("image", "--help").stdout.split())
    assert "docker export" in cli("image", "import", "--help").stdout
