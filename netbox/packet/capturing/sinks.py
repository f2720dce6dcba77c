"""Where packets go: a pcapng file or pipe, a ring of files, lines on a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import IO, Protocol

from netbox import __version__
from netbox.errors import UsageError, host_error
from netbox.packet.capturing import dissect, pcapng
from netbox.packet.capturing.values import Interface, Record, Rotation

_AT_ONCE = 1000  # packets in a write: little is lost when a kill cuts one short
_RESET, _DIM, _RED, _GREEN, _CYAN = "\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[36m"


class Sink(Protocol):
    """What a capture writes to. Interfaces are added in the order of their numbers, before their first packet."""

    def add_interface(self, interface: Interface) -> None:
        """A new interface."""

    def add_names(self, records: Sequence[tuple[str, str]]) -> None:
        """Addresses and the names of their sandboxes."""

    def write(self, records: Sequence[Record]) -> None:
        """Writes packets, all the way to the kernel. Raises BrokenPipeError when the reader is gone, HostError for what else fails."""

    def end_interface(self, interface: Interface, counters: pcapng.Statistics) -> None:
        """An interface is through."""

    def close(self) -> None:
        """The end of the capture."""


class PcapngStream:
    """A pcapng section on a file descriptor, which it owns if ``path`` names a file. Nothing is buffered."""

    def __init__(self, fd: int, path: str, snapshot_length: int, filter: str) -> None:
        self._fd = fd
        self._path = path
        self._snapshot_length, self._filter = snapshot_length, filter
        self._interfaces: dict[int, bytes] = {}
        self._names: list[tuple[str, str]] = []
        self.written = 0
        self._put(self._header())

    @classmethod
    def create(cls, path: str, snapshot_length: int, filter: str) -> PcapngStream:
        """A new file, readable for its owner alone: packets are private. One that is there is overwritten.

        Raises:
            HostError: it cannot be made.
        """
        return cls(_create(path), path, snapshot_length, filter)

    def add_interface(self, interface: Interface) -> None:
        """See ``Sink``."""
        block = pcapng.interface(interface.name, interface.description, self._snapshot_length, interface.link_type, self._filter)
        self._interfaces[interface.number] = block
        self._put(block)

    def add_names(self, records: Sequence[tuple[str, str]]) -> None:
        """See ``Sink``."""
        self._names += records
        self._put(pcapng.names(records))

    def write(self, records: Sequence[Record]) -> None:
        """See ``Sink``."""
        for start in range(0, len(records), _AT_ONCE):
            self._put(b"".join(pcapng.packets(records[start : start + _AT_ONCE])))

    def end_interface(self, interface: Interface, counters: pcapng.Statistics) -> None:
        """See ``Sink``."""
        self._put(pcapng.statistics(interface.number, counters))

    def close(self) -> None:
        """Closes the file."""
        if self._path and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _header(self) -> bytes:
        """Section header, interfaces and names as known so far: what makes a file readable on its own."""
        system = os.uname()
        header = pcapng.section_header(f"netbox {__version__}", f"{system.sysname} {system.release}")
        return header + b"".join(self._interfaces.values()) + pcapng.names(self._names)

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise host_error("write", self._path or "the output", error) from error
        self.written += len(data)


class RotatingFiles(PcapngStream):
    """``trace.pcapng`` becomes ``trace_00001.pcapng``, ``trace_00002.pcapng``, … each of which can be read on its own; the oldest go."""

    def __init__(self, path: str, rotation: Rotation, snapshot_length: int, filter: str) -> None:
        self._base = path
        self._rotation = rotation
        self._number = 1
        first = ring_path(path, 1)
        super().__init__(_create(first), first, snapshot_length, filter)

    def write(self, records: Sequence[Record]) -> None:
        """See ``Sink``. A file is left when it has its size."""
        for start in range(0, len(records), _STEP):
            if self.written >= self._rotation.size:
                self._rotate()
            super().write(records[start : start + _STEP])

    def _rotate(self) -> None:
        self.close()
        self._number += 1
        self._path = ring_path(self._base, self._number)
        self._fd = _create(self._path)
        self.written = 0
        self._put(self._header())
        try:
            os.unlink(ring_path(self._base, self._number - self._rotation.files))
        except FileNotFoundError:
            pass  # there are not so many yet, or somebody was faster


_STEP = 64  # packets between two looks at the size of a file


class Lines:
    """A line for each packet: time of day, interface, direction, what it is. ``colour`` for a terminal that takes it."""

    def __init__(self, stream: IO[str], colour: bool = False) -> None:
        self._stream = stream
        self._colour = colour
        self._names: dict[str, str] = {}
        self._width = 0

    def add_interface(self, interface: Interface) -> None:
        """See ``Sink``."""
        self._width = max(self._width, len(interface.name))

    def add_names(self, records: Sequence[tuple[str, str]]) -> None:
        """See ``Sink``."""
        self._names |= dict(records)

    def write(self, records: Sequence[Record]) -> None:
        """See ``Sink``."""
        if records:
            self._stream.write("".join(self._line(record) + "\n" for record in records))
            self._stream.flush()

    def end_interface(self, interface: Interface, counters: pcapng.Statistics) -> None:
        """See ``Sink``: the summary says it."""

    def close(self) -> None:
        """See ``Sink``."""

    def _line(self, record: Record) -> str:
        (moment, way, data, _), _, comment = record
        what = dissect.line(data, way.interface.link_type, self._names)
        seconds, nanoseconds = divmod(moment, 1_000_000_000)
        clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{nanoseconds:09d}"
        name = way.interface.name.ljust(self._width)
        direction = "out" if way.flags & 3 == pcapng.OUTBOUND else "in "
        comment = f"  [{comment}]" if comment else ""
        if not self._colour:
            return f"{clock}  {name}  {direction}  {what}{comment}"
        tint = _GREEN if direction == "out" else _CYAN
        return f"{_DIM}{clock}{_RESET}  {tint}{name}  {direction}{_RESET}  {what}{_RED}{comment}{_RESET}"


def ring_path(path: str, number: int) -> str:
    """``/tmp/trace.pcapng``, 3: ``/tmp/trace_00003.pcapng``."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}_{number:05d}{suffix}"


def open_output(path: str, rotation: Rotation | None, snapshot_length: int, filter: str) -> PcapngStream:
    """The sink for ``-w``: a file, ``-`` for stdout, or a ring of files.

    Raises:
        UsageError: the ring has no file name, or stdout is a terminal.
        HostError: the file cannot be made.
    """
    if path == "-":
        if rotation is not None:
            raise UsageError("--ring needs a file name", "use -w FILE")
        if os.isatty(1):
            raise UsageError("a capture file on a terminal cannot be read", "write it to a file or a pipe, or leave -w out")
        return PcapngStream(1, "", snapshot_length, filter)
    if rotation is not None:
        return RotatingFiles(path, rotation, snapshot_length, filter)
    return PcapngStream.create(path, snapshot_length, filter)


def _create(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise host_error("write", path, error) from error
