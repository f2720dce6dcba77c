"""An archive as one forward stream, whatever its compression.

The compression is told by the first bytes, not by the file's name. gzip, bzip2 and xz come with Python. Zstandard comes with Python from
3.14 on; before that the ``zstandard`` package is its maintained binding (BSD, wheels for every platform, no dependency of its own),
loaded when such an archive is read.
"""

from __future__ import annotations

import select
import zlib
from typing import BinaryIO, Protocol, cast

from netbox.errors import Unsupported
from netbox.image.model import Progress
from netbox.image.tarformat import BLOCK, BadArchive

CHUNK = 1 << 20
_OTHERS = (
    (b"PK\x03\x04", "a zip file"),
    (b"hsqs", "a squashfs image"),
    (b"\x7fELF", "a program"),
    (b"!<arch>\n", "a Debian package or static library"),
)


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Archive:
    """A tar stream, decompressed. ``read`` raises BadArchive when the compressed data is damaged; OSError only when reading the file fails.

    The first bytes are read at once: BadArchive for what cannot be an archive, Unsupported for Zstandard without its package.
    """

    def __init__(self, raw: BinaryIO, total: int | None = None, progress: Progress | None = None) -> None:
        self.compression, self._plain, self._errors = _decompress(_Source(raw, total, progress))

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, fewer at the end of the stream."""
        pieces = []
        while size > 0:
            try:
                piece = self._plain.read(min(size, CHUNK))
            except self._errors as error:
                if isinstance(error, OSError) and error.errno:  # the decompressors raise OSError without a number for bad data
                    raise
                raise BadArchive(f"its {self.compression} data is damaged or truncated ({error})") from error
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def drain(self) -> None:
        """Reads to the end: a checksum stands there, and a writer at the other end of a pipe is not cut off."""
        while self.read(CHUNK):
            pass


class _Source:
    """The file itself: hands back what was read to recognise it, and counts."""

    def __init__(self, raw: BinaryIO, total: int | None, progress: Progress | None) -> None:
        self._raw, self._total, self._progress = raw, total, progress
        self._done = 0
        self.start = b""
        while len(self.start) < BLOCK and (piece := self._next(BLOCK - len(self.start))):
            self.start += piece
        self._pending = self.start

    def read(self, size: int = -1, /) -> bytes:
        data, self._pending = (self._pending, b"") if self._pending else (self._next(min(size, CHUNK) if size > 0 else CHUNK), b"")
        if len(data) > size > 0:
            data, self._pending = data[:size], data[size:]
        self._done += len(data)
        if self._progress is not None:
            self._progress(self._done, self._total)
        return data

    def _next(self, size: int) -> bytes:
        """What comes next, empty at the end; waits for it, also where somebody made the file non-blocking."""
        while True:
            data = cast("bytes | None", self._raw.read(size))
            if data is not None:
                return data
            poller = select.poll()
            poller.register(self._raw.fileno(), select.POLLIN)
            poller.poll()


def _decompress(source: _Source) -> tuple[str, _Readable, tuple[type[Exception], ...]]:
    """The compression, the plain stream, and what it raises for bad data."""
    start = source.start
    file = cast(BinaryIO, source)
    if start.startswith(b"\x1f\x8b"):
        import gzip

        return "gzip", cast(_Readable, gzip.GzipFile(fileobj=file, mode="rb")), (OSError, EOFError, zlib.error)
    if start.startswith(b"BZh"):
        import bz2

        return "bzip2", bz2.BZ2File(file), (OSError, EOFError)
    if start.startswith(b"\xfd7zXZ\0"):
        import lzma

        return "xz", lzma.LZMAFile(file), (lzma.LZMAError, EOFError)
    if start.startswith(b"\x28\xb5\x2f\xfd") or (
        start[1:4] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50
    ):  # a frame; a skippable one (pzstd)
        return _zstandard(file)
    for magic, what in _OTHERS:
        if start.startswith(magic):
            raise BadArchive(f"it is {what}, not a tar archive")
    return "tar", source, ()


def _zstandard(file: BinaryIO) -> tuple[str, _Readable, tuple[type[Exception], ...]]:
    try:
        import zstandard
    except ImportError as error:
        raise Unsupported(
            "this archive is compressed with Zstandard, which this Python cannot read",
            "install the 'zstandard' package, or decompress it first: zstd -dc FILE | netbox image import NAME -",
        ) from error
    # 2 GiB is the window of `zstd --long=31`; the library takes 128 MiB without being told
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(file, read_across_frames=True)
    return "zstd", reader, (zstandard.ZstdError,)
