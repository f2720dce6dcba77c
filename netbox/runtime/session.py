"""The poll loop around one running process: its output goes to the log and to who is attached, their input goes to it, until it exits."""

from __future__ import annotations

import os
import select

from netbox.runtime import console, protocol
from netbox.runtime.attachments import Attachments, Input

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netbox.runtime.logs import LogWriter

_CHUNK = 64 * 1024
_HANGUP_PAUSE_MS = 200
_STALL_CHECK_MS = 1000
_DRAIN_MS = 100
_DRAIN_WAITS = 5
_DRAIN_MAX = 2 << 20  # bytes: a pipe holds one MiB at most, pipe(7)
_STREAMS = {protocol.STDOUT: "stdout", protocol.STDERR: "stderr"}


class Session:
    """``pidfd`` is the process; ``log`` is None where nothing is kept."""

    def __init__(self, pidfd: int, log: LogWriter | None = None) -> None:
        self._pidfd = pidfd
        self._log = log
        self._outputs: dict[int, int] = {}
        self._terminal: int | None = None
        self._hung_up = False
        self._size: tuple[int, int] | None = None
        self.attachments = Attachments(self.resize)

    def take_stdio(self, fds: list[int], terminal: bool) -> None:
        """The far ends of the process's stdio, as ``console`` made them: [master], or [stdout, stderr] and perhaps stdin."""
        for fd in fds:
            os.set_blocking(fd, False)
        if terminal:
            self._terminal = fds[0]
            self._outputs = {fds[0]: protocol.STDOUT}
            self.attachments.input = Input(fds[0], terminal=True)
            if self._size:
                self.resize(*self._size)
        else:
            self._outputs = dict(zip(fds, (protocol.STDOUT, protocol.STDERR), strict=False))
            self.attachments.input = Input(fds[2] if len(fds) > 2 else None, terminal=False)

    def resize(self, rows: int, columns: int) -> None:
        """Tells the terminal its size, now or as soon as there is one."""
        self._size = rows, columns
        if self._terminal is not None:
            try:
                console.set_size(self._terminal, rows, columns)
            except OSError:
                pass  # it is just being closed

    def run(self, until_foreground_leaves: bool = False) -> bool:
        """Serves everybody until the process has exited (True), or until no foreground client is left if that is asked for (False)."""
        while True:
            blocked = self.attachments.blocked()
            wanted = {self._pidfd: select.POLLIN}
            if not blocked and not self._hung_up:
                wanted |= dict.fromkeys(self._outputs, select.POLLIN)
            self.attachments.interests(wanted)
            poller = select.poll()
            for fd, events in wanted.items():
                poller.register(fd, events)
            timeout = _HANGUP_PAUSE_MS if self._hung_up else _STALL_CHECK_MS if blocked else None
            self._hung_up = False
            for fd, events in poller.poll(timeout):
                if fd == self._pidfd:
                    return True
                self._dispatch(fd, events)
            if blocked:
                self.attachments.drop_stalled()
            if until_foreground_leaves and self.attachments.foreground_gone():
                return False

    def _dispatch(self, fd: int, events: int) -> None:
        if fd in self._outputs and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._read(fd)
        if fd not in self._outputs or events & select.POLLOUT:
            self.attachments.handle(fd, events)

    def _read(self, fd: int) -> int:
        """Passes on what there is; returns how many bytes: none when the stream has no more for now."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return 0
        except OSError:
            # EIO: no process has the terminal open; one with it as controlling terminal may open it again.
            self._hung_up = True
            return 0
        if not data:
            if fd != self._terminal:
                del self._outputs[fd]
                os.close(fd)
            return 0
        kind = self._outputs[fd]
        if self._log:
            self._log.write(_STREAMS[kind], data)
        self.attachments.send(kind, data)
        return len(data)

    def drain(self) -> None:
        """After the exit: what is still in the pipes, and what comes a moment later.

        That ends: what an exec leaves running in the background may have the pipes open, and write for ever.
        """
        for fd in list(self._outputs):
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            waits, rest = _DRAIN_WAITS, _DRAIN_MAX
            while rest > 0:
                if not poller.poll(0):
                    waits -= 1
                    if waits < 0 or not poller.poll(_DRAIN_MS):
                        break
                count = self._read(fd)
                if not count:
                    break
                rest -= count
