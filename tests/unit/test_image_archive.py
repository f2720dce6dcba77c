"""Extraction: an archive fills its directory and nothing else."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbox.image.archive import extract, safe_name
from netbox.image.streams import Archive
from netbox.image.tarformat import BadArchive
from netbox.image.tree import DEPTH_MAX, Tree

Fill = Callable[..., Path]


def entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.DIRTYPE, **values)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Extracts entries into a fresh directory, beside a file that no archive may touch."""

    def run(*entries: tuple[tarfile.TarInfo, bytes]) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        with Tree(str(root), owners=False) as tree:
            extract(Archive(io.BytesIO(tar(*entries))), tree)
        return root

    (tmp_path / "outside").write_text("untouched")
    return run


def assert_untouched(tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root"]
    assert (tmp_path / "outside").read_text() == "untouched"
    assert (tmp_path / "outside").stat().st_nlink == 1


def test_files_directories_and_links(fill: Fill) -> None:
    root = fill(
        directory("./", mode=0o711, mtime=5),
        directory("bin", mode=0o750, mtime=7.25),
        entry("bin/tool", data=b"#!", mode=0o4755, mtime=1700000000),
        symlink("bin/sh", "/bin/tool"),
        hard_link("bin/copy", "bin/tool"),
        entry("pipe", tarfile.FIFOTYPE),
    )
    assert stat.S_IMODE(root.stat().st_mode) == 0o711
    assert (root / "bin").stat().st_mtime == 7.25
    assert stat.S_IMODE((root / "bin").stat().st_mode) == 0o750
    tool = (root / "bin/tool").stat()
    assert (tool.st_mode, tool.st_mtime, tool.st_nlink) == (stat.S_IFREG | 0o4755, 1700000000, 2)
    assert (root / "bin/copy").stat().st_ino == tool.st_ino
    assert os.readlink(root / "bin/sh") == "/bin/tool"
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)


def test_parents_that_the_archive_only_implies(fill: Fill) -> None:
    root = fill(entry("a/b/c", data=b"1"))
    assert (root / "a/b/c").read_bytes() == b"1"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (root, root / "a", root / "a/b")] == [0o755] * 3


def test_a_later_directory_entry_describes_an_implied_one(fill: Fill) -> None:
    root = fill(entry("a/b", data=b"1"), directory("a", mode=0o700, mtime=9))
    assert (stat.S_IMODE((root / "a").stat().st_mode), (root / "a").stat().st_mtime) == (0o700, 9)


def test_a_directory_without_permissions_can_be_filled(fill: Fill) -> None:
    root = fill(directory("a", mode=0), entry("a/b", data=b"1"))
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0


def test_large_files_arrive_whole(fill: Fill) -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    assert (fill(entry("big", data=data)) / "big").read_bytes() == data


def test_names_that_are_not_utf8(fill: Fill) -> None:
    root = fill(entry("caf\udce9", data=b"1"))
    assert os.listdir(os.fsencode(root)) == [b"caf\xe9"]


def test_user_attributes_are_kept_and_overlay_marks_are_not(fill: Fill, tmp_path: Path) -> None:
    xattrs = {"SCHILY.xattr.user.note": "hello", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}
    root = fill(entry("a", pax_headers=xattrs))
    kept = {name for name in os.listxattr(root / "a") if name.startswith(("user.", "trusted."))}
    assert kept == ({"user.note"} if has_user_attributes(tmp_path) else set())


def has_user_attributes(path: Path) -> bool:
    """tmpfs lacks them before Linux 6.6."""
    try:
        os.setxattr(path, "user.probe", b"")
    except OSError:
        return False
    return True


REPLACED = {
    "file by file": ([entry("x", data=b"1"), entry("x", data=b"2")], b"2"),
    "link by file": ([symlink("x", "../outside"), entry("x", data=b"2")], b"2"),
    "dangling link by file": ([symlink("x", "../new"), entry("x", data=b"2")], b"2"),
    "hard link by file": ([entry("y", data=b"1"), hard_link("x", "y"), entry("x", data=b"2")], b"2"),
    "empty directory by file": ([directory("x"), entry("x", data=b"2")], b"2"),
    "file by directory": ([entry("x", data=b"1"), directory("x"), entry("x/y", data=b"3")], None),
    "link by directory": ([symlink("x", ".."), directory("x"), entry("x/outside", data=b"3")], None),
}


@pytest.mark.parametrize("case", REPLACED)
def test_the_later_entry_of_a_name_counts(case: str, fill: Fill, tmp_path: Path) -> None:
    entries, content = REPLACED[case]
    root = fill(*entries)
    if content is None:
        assert (root / "x").is_dir()
        assert not (root / "x").is_symlink()
    else:
        assert (root / "x").read_bytes() == content
    if (root / "y").exists():
        assert (root / "y").read_bytes() == b"1"
    assert_untouched(tmp_path)


UNSAFE = {
    "absolute name": ([entry("/etc/x")], "absolute name"),
    "absolute directory": ([directory("/x")], "absolute name"),
    "parent": ([entry("../x")], "would leave"),
    "parent inside": ([entry("a/../../x")], "would leave"),
    "harmless parent": ([directory("a"), entry("a/../x")], "would leave"),
    "only a parent": ([directory("..")], "would leave"),
    "through a link": ([symlink("a", ".."), entry("a/outside", data=b"!")], "through 'a', a symbolic link"),
    "through an absolute link": ([symlink("a", "/tmp"), entry("a/x")], "through 'a', a symbolic link"),
    "through a deeper link": ([directory("d"), symlink("d/a", "../.."), entry("d/a/b/x")], "through 'd/a'"),
    "through a link to a directory inside": ([directory("d"), symlink("a", "d"), entry("a/x")], "through 'a'"),
    "directory through a link": ([symlink("a", ".."), directory("a/new")], "through 'a'"),
    "link through a link": ([symlink("a", ".."), symlink("a/new", "x")], "through 'a'"),
    "hard link through a link": ([symlink("a", ".."), hard_link("x", "a/outside")], "through 'a'"),
    "hard link out": ([hard_link("x", "../outside")], "would leave"),
    "hard link to an absolute name": ([hard_link("x", "/etc/passwd")], "absolute name"),
    "hard link to nothing": ([hard_link("x", "missing")], "does not hold before it"),
    "hard link to a missing directory": ([hard_link("x", "d/missing")], "does not hold before it"),
    "hard link to a directory": ([directory("d"), hard_link("x", "d")], "which is a directory"),
    "hard link to itself": ([entry("x"), hard_link("x", "./x")], "hard link to itself"),
    "file as directory": ([entry("a"), entry("a/b")], "through 'a', a file"),
    "file in place of a full directory": ([entry("a/b"), entry("a")], "holds files"),
    "root as a link": ([symlink(".", "..")], "root of the archive is not a directory"),
    "root as a file": ([entry("./.")], "root of the archive is not a directory"),
    "no entries": ([], "holds no files"),
    "owner out of range": ([entry("x", uid=2**32 - 1)], "owner out of range"),
    "too deep": ([entry("d/" * DEPTH_MAX + "x")], "too deep"),
    "too long": ([entry("/".join(["x" * 200] * 30))], "too long"),
    "NUL in a name": ([entry("x", pax_headers={"path": "a\0b"})], "no valid name"),
    "NUL in a target": ([entry("x", tarfile.SYMTYPE, linkname="y", pax_headers={"linkpath": "a\0b"})], "no valid target"),
    "device number": ([entry("x", tarfile.CHRTYPE, devmajor=2**20, devminor=1)], "device number"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_archives_are_refused(case: str, fill: Fill, tmp_path: Path) -> None:
    entries, reason = UNSAFE[case]
    with pytest.raises(BadArchive, match=reason):
        fill(*entries)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("name", ["a" * 64, "a" * 64 + "/layer.tar", "oci-layout", "blobs/sha256/" + "b" * 64, "a" * 64 + ".json"])
def test_docker_save_is_told_apart(name: str, fill: Fill) -> None:
    kind = directory if len(name) == 64 else entry
    with pytest.raises(BadArchive, match="docker save") as caught:
        fill(*([directory("a" * 64)] if "layer" in name else []), kind(name))
    assert "docker export" in str(caught.value.hint)


COMPONENTS = st.sampled_from(["a", "b", "c", ".", "..", "", "outside", "x" * 255])
NAMES = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])


@given(st.lists(st.tuples(NAMES, KINDS, NAMES), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_archive_reaches_outside(tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[str, bytes, str]]) -> None:
    base = tmp_path_factory.mktemp("hostile")
    (base / "root").mkdir()
    (base / "outside").write_text("untouched")
    entries = [entry(name or "a", kind, data=b"!" if kind == tarfile.REGTYPE else b"", linkname=target) for name, kind, target in plan]
    with Tree(str(base / "root"), owners=False) as tree:
        try:
            extract(Archive(io.BytesIO(tar(*entries))), tree)
        except BadArchive:
            pass
    assert_untouched(base)


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_safe_name_stays_inside(name: bytes) -> None:
    try:
        safe = safe_name(name, "entry")
    except BadArchive:
        return
    inside = os.path.normpath(b"/root/" + safe)
    assert inside == b"/root" or inside.startswith(b"/root/")
    assert inside.startswith(os.path.normpath(b"/root/" + name).rstrip(b"/") or b"/root")
