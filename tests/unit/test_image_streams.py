"""An archive as a stream: the compression is told by the first bytes, damage is named, progress counts what was read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import select
import sys

import pytest
import zstandard

from netbox.errors import Unsupported
from netbox.image.streams import Archive
from netbox.image.tarformat import BadArchive

PLAIN = random.Random(1).randbytes(100_000) + bytes(50_000)  # the same in every run: it must not begin like a compressed file
PACKED = {
    "tar": PLAIN,
    "gzip": gzip.compress(PLAIN),
    "bzip2": bz2.compress(PLAIN),
    "xz": lzma.compress(PLAIN),
    "zstd": zstandard.ZstdCompressor().compress(PLAIN),
}


class Trickle(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(7, size) if size is not None and size > 0 else 7)


@pytest.mark.parametrize("compression", PACKED)
def test_every_compression_is_recognised(compression: str) -> None:
    archive = Archive(io.BytesIO(PACKED[compression]))
    assert archive.compression == compression
    assert archive.read(len(PLAIN) + 1) == PLAIN


@pytest.mark.parametrize("compression", PACKED)
def test_a_pipe_that_trickles(compression: str) -> None:
    archive = Archive(Trickle(PACKED[compression]))
    assert [len(archive.read(70_000)) for _ in range(4)] == [70_000, 70_000, 10_000, 0]


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz"])
def test_truncated_data_is_named(compression: str) -> None:
    archive = Archive(io.BytesIO(PACKED[compression][:-20]))
    with pytest.raises(BadArchive, match=f"{compression} data is damaged or truncated"):
        archive.drain()


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "zstd"])
def test_damaged_data_is_named(compression: str) -> None:
    data = bytearray(PACKED[compression])
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    with pytest.raises(BadArchive, match=f"{compression} data is damaged or truncated"):
        Archive(io.BytesIO(bytes(data) if compression != "zstd" else data[:8] + b"\xff" * 50)).drain()


def test_several_members_are_one_stream() -> None:
    for compress in (gzip.compress, zstandard.ZstdCompressor().compress):
        archive = Archive(io.BytesIO(compress(b"a" * 600) + compress(b"b" * 600)))
        assert archive.read(2000) == b"a" * 600 + b"b" * 600


def test_zstd_behind_a_skippable_frame() -> None:
    archive = Archive(io.BytesIO(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + PACKED["zstd"]))
    assert archive.read(len(PLAIN)) == PLAIN


@pytest.mark.parametrize(
    ("start", "what"), [(b"PK\x03\x04", "zip"), (b"hsqs", "squashfs"), (b"\x7fELF", "program"), (b"!<arch>\n", "Debian package")]
)
def test_other_files_are_named(start: bytes, what: str) -> None:
    with pytest.raises(BadArchive, match=what):
        Archive(io.BytesIO(start + bytes(600)))


def test_zstd_without_its_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(Unsupported, match="install the 'zstandard' package"):
        Archive(io.BytesIO(PACKED["zstd"]))


@pytest.mark.parametrize("compression", PACKED)
def test_progress_counts_the_bytes_of_the_file(compression: str) -> None:
    seen: list[tuple[int, int | None]] = []
    data = PACKED[compression]
    Archive(io.BytesIO(data), len(data), lambda done, total: seen.append((done, total))).drain()
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(data), len(data))


def test_an_error_of_the_file_is_not_taken_for_damage() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 2000:
                raise OSError(5, "Input/output error")
            return super().read(min(500, size or 500))

    with pytest.raises(OSError, match="Input/output"):
        Archive(Broken(PACKED["gzip"])).drain()


def test_a_pipe_that_somebody_made_non_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is late each time: it writes only when somebody waits."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    pieces = [PLAIN[start : start + 50_000] for start in range(0, len(PLAIN), 50_000)]
    real = select.poll

    def poll() -> object:
        os.write(writer, pieces.pop(0))
        if not pieces:
            os.close(writer)
        return real()

    monkeypatch.setattr(select, "poll", poll)
    with open(reader, "rb") as stream:
        assert Archive(stream).read(len(PLAIN) + 1) == PLAIN
