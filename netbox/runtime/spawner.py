"""A warm start: a small single-threaded process that has loaded what monitors need, and forks one in a millisecond.

It is started by a long-lived caller, ends when that ends (end of file on its channel), and its monitors live on. A request is one byte
(which helper) and one descriptor (its channel).
"""

from __future__ import annotations

import _socket
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from types import TracebackType

_KINDS = {"monitor": b"m", "execute_helper": b"x"}
_SIGCHLD = 17
_CRASHED = 70


class Spawner:
    """The caller's side. Thread-safe. The process is started by ``start`` or the first ``spawn``, and again when it was killed."""

    def __init__(self) -> None:
        import threading

        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._pid = 0

    def start(self) -> None:
        """Starts the process, if it does not run yet; returns before it is ready. Raises HostError."""
        with self._lock:
            self._ensure()

    def _ensure(self) -> socket.socket:
        if self._channel is None:
            import socket

            from netbox.runtime import interpreter

            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._pid = interpreter.spawn("spawner", theirs.fileno())
            self._channel = ours
        return self._channel

    def spawn(self, kind: str = "monitor") -> socket.socket:
        """Our end of the channel to a fresh ``monitor`` or ``execute_helper``. Returns at once. Raises HostError."""
        import socket

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, self._lock:
            for attempt in (1, 2):
                try:
                    socket.send_fds(self._ensure(), [_KINDS[kind]], [theirs.fileno()])
                    break
                except OSError as error:
                    self._close()
                    if attempt == 2:
                        from netbox.errors import host_error

                        ours.close()
                        raise host_error("start", f"the {kind} process", error) from None
        return ours

    def _close(self) -> None:
        if self._channel is not None:
            import socket

            from netbox.runtime import interpreter

            try:
                self._channel.shutdown(socket.SHUT_WR)  # a fork of this process may have a copy: its end of file would not come
            except OSError:
                pass  # it was killed
            self._channel.close()
            self._channel = None
            interpreter.reap(self._pid, wait=True)

    def close(self) -> None:
        """Ends the process; what it has started lives on. Idempotent."""
        with self._lock:
            self._close()

    def __enter__(self) -> Spawner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def main() -> None:
    """The process: loads, freezes its heap (so that a child's garbage collection copies no page of it), and forks on request."""
    import gc

    from netbox.runtime import execute_helper, init, monitor, protocol

    assert init
    runners = {b"m": monitor.main, b"x": execute_helper.main}
    monitor.detach(protocol.CHANNEL_FD)
    channel = _socket.socket(fileno=protocol.CHANNEL_FD)
    from netbox.kernel import syscalls

    syscalls.ignore_signals((_SIGCHLD,))  # the kernel reaps its children
    gc.collect()
    gc.freeze()
    while True:
        data, ancillary, _, _ = channel.recvmsg(1, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        fd = int.from_bytes(ancillary[0][2][:4], "little")
        try:
            if os.fork() == 0:
                _run(runners[data], fd)
        except OSError:
            pass  # no process to be had: the caller reads end of file
        os.close(fd)


def _run(runner: object, fd: int) -> None:
    """In the child: becomes the helper, and never returns to the loop."""
    assert callable(runner)
    code = _CRASHED
    try:
        runner(fd)
        code = 0
    finally:
        os._exit(code)
