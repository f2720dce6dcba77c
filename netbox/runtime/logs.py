"""Writing a sandbox's log: a JSON object per chunk of output, rotated by size. ``log_reader`` reads it.

``{"t":"1732236000.123456789","s":"stdout","d":"text\\n"}``; output that is not UTF-8 stands base64-coded under ``b`` instead of ``d``. A
chunk is what one read gave, so it may hold many lines or a part of one: the reader puts lines together. Nothing is held back, so nothing is
lost when the monitor is killed.
"""

from __future__ import annotations

import binascii
import os
import time

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_ESCAPES = {character: f"\\u{character:04x}" for character in (*range(0x20), 0x7F)} | {
    0x22: '\\"',
    0x5C: "\\\\",
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
}


def record(moment_ns: int, stream: str, data: bytes) -> bytes:
    """One line of the log. ``moment_ns`` is in nanoseconds since the epoch."""
    seconds, nanoseconds = divmod(moment_ns, 1_000_000_000)
    try:
        content = f'"d":"{escape(data.decode())}"'
    except UnicodeDecodeError:
        content = f'"b":"{binascii.b2a_base64(data, newline=False).decode()}"'
    return f'{{"t":"{seconds}.{nanoseconds:09d}","s":"{stream}",{content}}}\n'.encode()


def escape(text: str) -> str:
    """The inside of a JSON string. The usual characters by replace, ten times as fast as the table; the table when others are left."""
    simple = (
        text.replace("\\", "\\\\")
        .replace('"', '\\"')
        .replace("\n", "\\n")
        .replace("\r", "\\r")
        .replace("\t", "\\t")
        .replace("\x1b", "\\u001b")
    )
    return simple if simple.isprintable() else text.translate(_ESCAPES)


class LogWriter:
    """Appends to ``directory/log``; at ``max_size`` bytes that becomes ``log.1`` and so on, ``max_files`` in all.

    A full disk costs log lines, never the sandbox: ``lost`` counts the records that could not be written.
    """

    def __init__(self, directory: str, max_size: int, max_files: int) -> None:
        self._path = f"{directory}/log"
        self._max_size = max_size
        self._max_files = max_files
        self.lost = 0
        os.makedirs(directory, 0o700, exist_ok=True)
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, _FLAGS, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and _last_byte(self._path) != b"\n":  # a monitor was killed at a record: the next one gets a line of its own
            try:
                self._size += os.write(self._fd, b"\n")
            except OSError:
                pass  # the disk is full

    def write(self, stream: str, data: bytes) -> None:
        """Appends one chunk of ``stdout`` or ``stderr``."""
        line = record(time.time_ns(), stream, data)
        try:
            if self._size and self._size + len(line) > self._max_size:
                self._rotate()
            written = os.write(self._fd, line)
            if written < len(line):  # the disk is full: half a record would spoil the next one
                os.ftruncate(self._fd, self._size)
                self.lost += 1
            else:
                self._size += written
        except OSError:
            self.lost += 1

    def _rotate(self) -> None:
        """Opens the new file first: where that fails nothing has moved, and the old one is still what ``_fd`` is."""
        incoming = os.open(f"{self._path}.new", _FLAGS | os.O_TRUNC, 0o600)
        try:
            for number in range(self._max_files - 1, 0, -1):
                older = self._path if number == 1 else f"{self._path}.{number - 1}"
                try:
                    os.rename(older, f"{self._path}.{number}")
                except FileNotFoundError:
                    continue
            os.rename(f"{self._path}.new", self._path)
        except OSError:
            os.close(incoming)
            raise
        os.close(self._fd)
        self._fd, self._size = incoming, 0

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def _last_byte(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.lseek(fd, -1, os.SEEK_END)
        return os.read(fd, 1)
    finally:
        os.close(fd)
