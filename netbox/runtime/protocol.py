"""The two languages of the channel between engine and monitor: the messages of the handshake, then the frames of an attachment.

The handshake
=============

::

      engine                                monitor                              init (pid 1 of the sandbox)
        │                                      │
        │ START config, lock, ports, netns ──> │ ── clone3 ─────────────────────────> │ joins its cgroup
        │ <── NAMESPACES_READY pid, pidfd, netns                                      │
        │                                      │ ── MAPPED + layers (user namespace) > │
        │   (builds the network)               │                                      │ (mounts, pivots)
        │                                      │ <── STDIO + terminal or pipes ────── │
        │ NETWORK_READY ─────────────────────> │ ── a byte ─────────────────────────> │ (writes its sysctls, drops privileges)
        │                                      │ <── READY ────────────────────────── │
        │ <───────────────────────────── READY │
        │   (saves the record as running)      │
        │ GO ────────────────────────────────> │ ── a byte ─────────────────────────> │ execve
        │                                      │ <── end of file (close-on-exec) ──── ·
        │ <─────────────────────────── STARTED │
        │ <═══════ frames, if attached ══════> │

- RESERVED comes before START, as often as it takes, with sockets that hold ports when there are more than one message can carry.
- FAILED comes in place of any message of the monitor, and of init; it is the last one.
- End of file from the engine before GO: the monitor kills init, writes the status "aborted" and ends.
- End of file from the monitor: init dies by its parent-death signal.
- End of file from init before GO: init was killed.

An exec in a running sandbox speaks the same: START, then STARTED or FAILED, then frames.

A message is a length (4 bytes, big-endian) and a marshalled pair (name, values); its descriptors travel with the first byte. Both ends are
the same interpreter, which is what marshal asks for; ``import json`` would cost every monitor 10 ms and 0.6 MiB.

The frames
==========

1 byte type, 3 zero bytes, 4 bytes length (big-endian), payload: the stream format of the Docker Engine API, with more types.

KEEP, with sockets, says which published ports the monitor is to hold from now on (see ``reservations``), and HELD is its answer: one name
of a port a line.
"""

from __future__ import annotations

import _socket
import marshal
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

CHANNEL_FD = 3
"""The descriptor at which a monitor finds its end of the channel."""

RESERVED = "reserved"
START = "start"
NAMESPACES_READY = "namespaces ready"
NETWORK_READY = "network ready"
READY = "ready"
GO = "go"
STARTED = "started"
FAILED = "failed"
MAPPED = "mapped"
STDIO = "stdio"

STDIN = 0
STDOUT = 1
STDERR = 2
RESIZE = 3
STDIN_EOF = 4
EXIT = 5
CLAIM = 6
ERROR = 7
DETACH = 8
KEEP = 9
HELD = 10

_LENGTH = struct.Struct(">I")
_FRAME = struct.Struct(">BxxxI")
_MESSAGE_MAX = 16 * 1024 * 1024
FRAME_MAX = 16 * 1024 * 1024
FDS_MAX = 253  # SCM_MAX_FD, <net/scm.h>


class ProtocolError(Exception):
    """The other end said something that the order does not allow."""


_NEXT: dict[str, tuple[str, ...]] = {
    "": (RESERVED, START),
    RESERVED: (RESERVED, START),
    START: (NAMESPACES_READY, FAILED),
    NAMESPACES_READY: (NETWORK_READY, FAILED),
    NETWORK_READY: (READY, FAILED),
    READY: (GO, FAILED),
    GO: (STARTED, FAILED),
    STARTED: (),
    FAILED: (),
}


class Handshake:
    """The legal order of messages, seen from either end: ``advance`` with every message sent or received."""

    def __init__(self) -> None:
        self.last = ""

    def advance(self, name: str) -> None:
        """Takes one step. Raises ProtocolError when ``name`` may not follow."""
        if name not in _NEXT[self.last]:
            raise ProtocolError(f"{name!r} may not follow {self.last or 'nothing'!r}")
        self.last = name

    def reached(self, name: str) -> bool:
        """Whether that message was the last one."""
        return self.last == name

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return not _NEXT[self.last]


def send_message(channel: _socket.socket, name: str, values: dict[str, Any] | None = None, fds: Sequence[int] = ()) -> None:
    """Sends one message of the handshake, with descriptors.

    ``values`` are plain JSON values. Raises OSError (EPIPE: the other end is gone).
    """
    payload = marshal.dumps((name, values or {}))
    send_with_fds(channel, _LENGTH.pack(len(payload)) + payload, fds)


def send_with_fds(channel: _socket.socket, text: bytes, fds: Sequence[int]) -> None:
    """Sends bytes; the descriptors travel with the first one. Raises OSError, and ProtocolError for more than ``FDS_MAX`` of them."""
    if len(fds) > FDS_MAX:
        raise ProtocolError(f"{len(fds)} descriptors in one message, {FDS_MAX} at most")
    data = memoryview(text)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    sent = channel.sendmsg([data], ancillary, _socket.MSG_NOSIGNAL)
    while sent < len(data):
        sent += channel.send(data[sent:], _socket.MSG_NOSIGNAL)


def write_message(fd: int, name: str, values: dict[str, Any]) -> None:
    """Sends a message without descriptors by write(2) alone. Raises OSError."""
    payload = marshal.dumps((name, values))
    os.write(fd, _LENGTH.pack(len(payload)) + payload)


def receive_message(channel: _socket.socket) -> tuple[str, dict[str, Any], list[int]] | None:
    """The next message (name, values, descriptors), None at end of file. Reads not a byte beyond it. Raises OSError, ProtocolError."""
    try:
        head, fds = receive_with_fds(channel, _LENGTH.size)
    except ConnectionResetError:  # it ended with something from us unread
        return None
    if not head:
        return None
    head += _receive_exactly(channel, _LENGTH.size - len(head))
    (length,) = _LENGTH.unpack(head)
    if length > _MESSAGE_MAX:
        raise ProtocolError(f"a message of {length} bytes")
    name, values = marshal.loads(_receive_exactly(channel, length))
    return name, values, fds


def receive_with_fds(channel: _socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Up to ``size`` bytes, and the descriptors that came with them. Raises OSError."""
    head, ancillary, _, _ = channel.recvmsg(size, _socket.CMSG_SPACE(FDS_MAX * 4), _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.extend(struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4]))
    return head, fds


def _receive_exactly(channel: _socket.socket, length: int) -> bytes:
    chunks = []
    while length:
        chunk = channel.recv(length)
        if not chunk:
            raise ProtocolError("end of file inside a message")
        chunks.append(chunk)
        length -= len(chunk)
    return b"".join(chunks)


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame of an attachment."""
    return _FRAME.pack(kind, len(payload)) + payload


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes in what was read."""
        self._buffer += data

    def next(self) -> tuple[int, bytes] | None:
        """The next whole frame (type, payload), None when more has to be read first.

        Raises ProtocolError on a frame beyond ``FRAME_MAX``.
        """
        if len(self._buffer) < _FRAME.size:
            return None
        kind, length = _FRAME.unpack_from(self._buffer)
        if length > FRAME_MAX:
            raise ProtocolError(f"a frame of {length} bytes")
        end = _FRAME.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_FRAME.size : end])
        del self._buffer[:end]
        return kind, payload

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """All whole frames."""
        while (item := self.next()) is not None:
            yield item

    def whole(self) -> bool:
        """Whether a whole frame is buffered."""
        if len(self._buffer) < _FRAME.size:
            return False
        _, length = _FRAME.unpack_from(self._buffer)
        return bool(len(self._buffer) >= _FRAME.size + length)


def exit_payload(code: int) -> bytes:
    """The payload of an EXIT frame."""
    return b'{"exit_code":%d}' % code


def resize_payload(rows: int, columns: int) -> bytes:
    """The payload of a RESIZE frame."""
    return b"[%d,%d]" % (rows, columns)


def parse_resize(payload: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a RESIZE frame, None when it makes no sense."""
    parts = payload.strip(b"[] \t\r\n").split(b",")
    try:
        rows, columns = (int(part) for part in parts)
    except ValueError:
        return None
    return (rows, columns) if 0 < rows < 65536 and 0 < columns < 65536 else None
