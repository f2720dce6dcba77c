"""Reading a sandbox's log, over rotated files and while it grows. ``logs`` writes it and says what a record looks like."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

_PAUSE = 0.05
_PATIENCE = 0.25  # how long an unfinished line may wait for its rest before a follower sees it


class LogLine(NamedTuple):
    """A line of output with its newline (the last one may have none).

    ``time`` is in seconds since the epoch, ``stream`` stdout or stderr.
    """

    time: float
    stream: str
    data: bytes


class _Record(NamedTuple):
    time: float
    stream: str
    data: bytes


def read_logs(
    directory: str,
    follow: bool = False,
    since: float | None = None,
    until: float | None = None,
    tail: int | None = None,
    alive: Callable[[], bool] | None = None,
) -> Iterator[LogLine]:
    """The lines between two times (seconds since the epoch), or the last ``tail`` of those.

    With ``follow`` it goes on with what is written from then on, until ``alive()`` says False and everything is read, or ``until`` has
    passed. A line that stays unfinished for a moment comes in parts then. Raises OSError.
    """
    assembler = _Assembler(since, until)
    with _Source(directory) as source:
        lines: Iterable[LogLine] = assembler.lines(source.records())
        if not follow:
            everything = _chain(lines, assembler)
            yield from everything if tail is None else deque(everything, maxlen=tail)
            return
        yield from lines if tail is None else deque(lines, maxlen=tail)
        yield from _follow(source, assembler, until, alive or (lambda: True))


def _chain(lines: Iterable[LogLine], assembler: _Assembler) -> Iterator[LogLine]:
    yield from lines
    yield from assembler.unfinished()


def _follow(source: _Source, assembler: _Assembler, until: float | None, alive: Callable[[], bool]) -> Iterator[LogLine]:
    news = time.monotonic()
    while True:
        # Asked first: what was written until the end is then read below.
        over = not alive() or (until is not None and time.time() > until)
        for line in assembler.lines(source.records()):
            news = time.monotonic()
            yield line
        if over or time.monotonic() - news > _PATIENCE:
            yield from assembler.unfinished()
        if over:
            return
        time.sleep(_PAUSE)


class _Assembler:
    """Puts records together to lines, per stream; a line has the time of its first byte."""

    def __init__(self, since: float | None, until: float | None) -> None:
        self._since = since
        self._until = until
        self._open: dict[str, LogLine] = {}

    def lines(self, records: Iterable[_Record]) -> Iterator[LogLine]:
        for record in records:
            if (self._since is not None and record.time < self._since) or (self._until is not None and record.time > self._until):
                continue
            for piece in _split(record.data):
                begun = self._open.pop(record.stream, None)
                line = LogLine(begun.time, record.stream, begun.data + piece) if begun else LogLine(record.time, record.stream, piece)
                if piece.endswith(b"\n"):
                    yield line
                else:
                    self._open[record.stream] = line

    def unfinished(self) -> Iterator[LogLine]:
        """The lines without an end, which are forgotten."""
        pending = sorted(self._open.values())
        self._open.clear()
        yield from pending


def _split(data: bytes) -> list[bytes]:
    """Lines end with a newline only: a carriage return redraws a line."""
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


class _Source:
    """The records of ``log.N`` … ``log.1``, ``log``, each file once, whatever is renamed meanwhile. ``records`` goes on where it ended."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._file: io.BufferedReader | None = None
        self._inode = 0
        self._rest = b""

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def records(self) -> Iterator[_Record]:
        while self._file is not None or self._open_next():
            assert self._file is not None
            while data := self._file.read(1 << 16):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    if (record := _parse(line)) is not None:
                        yield record
            # Rotated? Then nothing more is written to it, but between the read above and now it may have been.
            if self._successor() is None:
                return
            if data := self._file.read():
                for line in (self._rest + data).split(b"\n"):
                    if (record := _parse(line)) is not None:
                        yield record
                self._rest = b""
            self._open_next()

    def _open_next(self) -> bool:
        """Opens the file after the one that is being read, or the oldest; False when there is none.

        Looked for now, since whoever takes the records may have taken his time, and again when it got another name in between.
        """
        while (following := self._successor()) is not None:
            inode, path = following
            try:
                file = open(path, "rb")  # noqa: SIM115  (held until the next file)
            except FileNotFoundError:
                continue
            if os.fstat(file.fileno()).st_ino != inode:
                file.close()
                continue
            if self._file is not None:
                self._file.close()
            self._file, self._inode, self._rest = file, inode, b""
            return True
        return False

    def _successor(self) -> tuple[int, str] | None:
        """The file after the one that is being read; None while that is the newest."""
        files = self._files()
        while files != (again := self._files()):  # a rotation in the middle shows a file twice, or not at all
            files = again
        inodes = [inode for inode, _ in files]
        position = inodes.index(self._inode) + 1 if self._inode in inodes else 0  # not there: rotated away altogether
        return files[position] if position < len(files) else None

    def _files(self) -> list[tuple[int, str]]:
        """(inode, path), the oldest first."""
        found = []
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        for name in names:
            stem, _, number = name.partition(".")
            if stem == "log" and (number.isdigit() or name == "log"):
                path = f"{self._directory}/{name}"
                try:
                    found.append((-int(number or 0), os.stat(path).st_ino, path))
                except FileNotFoundError:  # just renamed: seen under its next name the next time
                    continue
        return [(inode, path) for _, inode, path in sorted(found)]


def _parse(line: bytes) -> _Record | None:
    """A record; None for a line that the monitor could not finish."""
    try:
        values = json.loads(line)
        data = base64.b64decode(values["b"]) if "b" in values else values["d"].encode()
        return _Record(float(values["t"]), values["s"], data)
    except (ValueError, KeyError, TypeError):
        return None
