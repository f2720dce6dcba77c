"""The engine's end of an attachment: frames to and from a running sandbox, or a process that was executed in one."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Sequence
from types import TracebackType

from netbox.errors import HostError, WrongState
from netbox.runtime import protocol
from netbox.runtime.attachments import CONTROL_SOCKET

_CHUNK = 64 * 1024


class Attachment:
    """A stream of frames. Blocking; for one thread that reads and one that writes. ``exit_code`` is set once an EXIT frame was read."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self._socket = sock
        self._reader = protocol.FrameReader()
        self.exit_code: int | None = None

    def fileno(self) -> int:
        """For select and poll; ask ``pending`` first."""
        return self._socket.fileno()

    def pending(self) -> bool:
        """Whether ``read_frame`` would return without waiting, whatever poll says."""
        return self._reader.whole()

    def read_frame(self) -> tuple[int, bytes] | None:
        """The next frame (type, payload), None at end of file: the process has ended, or its monitor."""
        while True:
            item = self._reader.next()
            if item is not None:
                if item[0] == protocol.EXIT:
                    self.exit_code = json.loads(item[1])["exit_code"]
                return item
            try:
                data = self._socket.recv(_CHUNK)
            except ConnectionResetError:  # it ended without reading what we sent last
                return None
            if not data:
                return None
            self._reader.feed(data)

    def _send(self, kind: int, payload: bytes = b"") -> None:
        try:
            self._socket.sendall(protocol.frame(kind, payload), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended; the reader will find out, and how

    def send_stdin(self, data: bytes) -> None:
        """Input for the process. Waits while it does not read."""
        for start in range(0, len(data), _CHUNK):
            self._send(protocol.STDIN, data[start : start + _CHUNK])

    def close_stdin(self) -> None:
        """End of file on the process's input."""
        self._send(protocol.STDIN_EOF)

    def resize(self, rows: int, columns: int) -> None:
        """The size of the terminal, if the process has one."""
        self._send(protocol.RESIZE, protocol.resize_payload(rows, columns))

    def claim(self) -> None:
        """Says that this side does the clean-up: the monitor starts none as long as this attachment is connected."""
        self._send(protocol.CLAIM)

    def detach(self) -> None:
        """Says that this side leaves and the sandbox stays: its input remains open, and the clean-up becomes the monitor's."""
        self._send(protocol.DETACH)

    def close(self) -> None:
        """Hangs up. For a sandbox that was started attached this is the end of its input, unless ``detach`` was said before."""
        self._socket.close()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def keep_ports(run_dir: str, names: Sequence[bytes], sockets: Sequence[socket.socket] = (), timeout: float = 10.0) -> set[bytes]:
    """Has the monitor hold the ports ``names`` and no others; ``sockets`` are those of new ones. Returns the names of what it holds.

    Raises WrongState when the sandbox does not run, HostError when its monitor does not answer for ``timeout`` seconds.
    """
    request = protocol.frame(protocol.KEEP, b"\n".join(names))
    with _connected(run_dir, "change the ports") as channel:
        channel.settimeout(timeout)
        reader, fds = protocol.FrameReader(), [item.fileno() for item in sockets]
        held: set[bytes] = set()
        for start in range(0, max(len(fds), 1), protocol.FDS_MAX):
            try:
                protocol.send_with_fds(channel, request, fds[start : start + protocol.FDS_MAX])
                held = _answer(channel, reader)
            except TimeoutError:
                raise HostError(f"the monitor of the sandbox did not answer for {timeout:g} s", "see whether it was stopped") from None
            except OSError:
                raise WrongState("cannot change the ports: the sandbox has just ended", "'netbox ps -a' shows its state") from None
        return held


def _answer(channel: socket.socket, reader: protocol.FrameReader) -> set[bytes]:
    """The next HELD; other frames, which every client gets, are passed over. Raises OSError."""
    while True:
        item = reader.next()
        if item is None:
            data = channel.recv(_CHUNK)
            if not data:
                raise ConnectionResetError
            reader.feed(data)
        elif item[0] == protocol.HELD:
            return set(item[1].split(b"\n")) - {b""}


def connect(run_dir: str) -> Attachment:
    """Attaches to the sandbox with this run directory. Raises WrongState when it does not run."""
    return Attachment(_connected(run_dir, "attach"))


def _connected(run_dir: str, operation: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{CONTROL_SOCKET}")  # sun_path has 108 bytes only
        finally:
            os.close(directory)
    except OSError as error:
        sock.close()
        raise WrongState(f"cannot {operation}: the sandbox is not running ({error.strerror})", "'netbox ps -a' shows its state") from None
    return sock


def communicate(attachment: Attachment, data: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Feeds ``data`` to the process's input and closes it, reads to the end: (exit code, stdout, stderr).

    Raises HostError when the code is lost.
    """
    out: dict[int, list[bytes]] = {protocol.STDOUT: [], protocol.STDERR: []}
    rest = memoryview(data or b"")
    closed = data is None
    poller = select.poll()
    while True:
        if not closed and not rest:
            attachment.close_stdin()
            closed = True
        poller.register(attachment.fileno(), select.POLLIN | (0 if closed else select.POLLOUT))
        events = select.POLLIN if attachment.pending() else poller.poll()[0][1]
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            item = attachment.read_frame()
            if item is None:
                break
            if item[0] in out:
                out[item[0]].append(item[1])
        elif events & select.POLLOUT:
            # One frame that the socket's buffer takes, so that neither side waits for the other.
            attachment.send_stdin(bytes(rest[:4096]))
            rest = rest[4096:]
    if attachment.exit_code is None:
        raise HostError("the exit code is lost: the process that watched it was killed")
    return attachment.exit_code, b"".join(out[protocol.STDOUT]), b"".join(out[protocol.STDERR])
