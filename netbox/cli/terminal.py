"""A terminal or a pipe joined to a sandbox: raw mode, detach keys, window size, signals, and the loop that moves the bytes.

One thread, one poll: stdin is read only while nothing waits to be sent, and sent only in pieces that the socket takes without blocking. So
a sandbox that does not read cannot keep this loop from passing on what it writes, and the other way round.
"""

from __future__ import annotations

import json
import os
import select
import signal
import termios
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Protocol

from netbox.errors import HostError, UsageError
from netbox.parse.text import quote
from netbox.runtime import protocol

STDIN, STDOUT, STDERR = 0, 1, 2
DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
# A stream socket is writable while at most a quarter of its buffer (208 KiB, socket(7)) is taken: a piece of this size then never blocks.
_PIECE = 16 * 1024
# Signals that a sandbox gets when this process gets them. Not SIGTSTP and SIGCONT (job control of this process), not SIGPIPE (it is ours).
PROXIED_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_ENDING_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Stream(Protocol):
    """What the loop needs of an attachment (``netbox.runtime.client.Attachment``). Sending to one that has ended does nothing."""

    def fileno(self) -> int:
        """The socket, for poll."""

    def pending(self) -> bool:
        """Whether a whole frame is there already."""

    def read_frame(self) -> tuple[int, bytes] | None:
        """The next frame, ``None`` at the end."""

    def send_stdin(self, data: bytes) -> None:
        """Sends input."""

    def close_stdin(self) -> None:
        """Sends the end of the input."""

    def resize(self, rows: int, columns: int) -> None:
        """Tells the size of the terminal."""

    def detach(self) -> None:
        """Says that this side leaves and the sandbox stays."""


class Outcome(NamedTuple):
    """How an attachment ended: the exit code, or by the detach keys, or by a signal to this process; all empty when the monitor died."""

    exit_code: int | None = None
    detached: bool = False
    signal: int | None = None


def parse_detach_keys(text: str) -> bytes:
    """The bytes of ``ctrl-p,ctrl-q``: characters, or ``ctrl-`` with a letter or one of ``@[\\]^_``, joined by commas.

    Raises ``UsageError``.
    """
    keys = bytearray()
    for key in text.split(","):
        letter = key.removeprefix("ctrl-")
        if key.startswith("ctrl-") and len(letter) == 1 and ((letter.isascii() and letter.isalpha()) or letter in "@[\\]^_"):
            keys.append(ord(letter.upper()) & 0x1F)
        elif len(key) == 1 and key.isascii() and key.isprintable():
            keys.append(ord(key))
        else:
            raise UsageError(f"detach-keys {quote(text)}: {quote(key)} is not a key", "write keys such as ctrl-p,ctrl-q or ctrl-a,d")
    return bytes(keys)


class DetachFilter:
    """Finds the detach keys in a stream of input. Keys that may become the sequence are held back until that is decided."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the sequence is complete; what follows the sequence is dropped."""
        passed = bytearray()
        for byte in data:
            self._held += bytes((byte,))
            # What is held must be a beginning of the sequence: let go of its first bytes until it is.
            while not self._keys.startswith(self._held):
                passed.append(self._held[0])
                self._held = self._held[1:]
            if self._held == self._keys:
                self._held = b""
                return bytes(passed), True
        return bytes(passed), False

    def flush(self) -> bytes:
        """What is held back still, at the end of the input."""
        held, self._held = self._held, b""
        return held


class RawMode:
    """The terminal without echo, line editing and signals, for the time of a ``with`` block; termios(3), cfmakeraw."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> RawMode:
        self._saved = termios.tcgetattr(self._fd)
        self.apply()
        return self

    def apply(self) -> None:
        """Sets raw mode, again after a stop: the shell has put its own settings back meanwhile."""
        mode = termios.tcgetattr(self._fd)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._saved is None:
            return
        # From the background this would stop the process (SIGTTOU) with the terminal still raw.
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
        except termios.error:
            pass  # the terminal is gone, and its settings with it
        finally:
            signal.signal(signal.SIGTTOU, before)


class Signals:
    """Signals as bytes of a pipe, for the time of a ``with`` block: the loop polls it, and no handler runs at an unexpected place."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._before: dict[int, Any] = {}
        self._reader = self._writer = self._wakeup = -1

    def __enter__(self) -> Signals:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            self._before[number] = signal.signal(number, _noted)
        return self

    def fileno(self) -> int:
        """The end to poll."""
        return self._reader

    def read(self) -> bytes:
        """The numbers of the signals that have arrived."""
        try:
            return os.read(self._reader, 256)
        except BlockingIOError:
            return b""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)


def _noted(_: int, __: FrameType | None) -> None:
    """The wakeup pipe has the number already."""


def console_size(fds: Sequence[int] = (STDOUT, STDIN)) -> tuple[int, int] | None:
    """Rows and columns of the first terminal among the file descriptors; ``None`` where none is one."""
    for fd in fds:
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        if size.lines > 0 and size.columns > 0:
            return size.lines, size.columns
    return None


def is_terminal(fd: int) -> bool:
    """Whether the file descriptor is an open terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def require_terminal() -> None:
    """Raises ``UsageError`` unless stdin is a terminal, which ``-i`` with ``-t`` needs."""
    if not is_terminal(STDIN):
        raise UsageError("the input device is not a TTY", "leave -t out when stdin is a pipe or a file")


class Session:
    """Moves bytes between this process and an attachment until one of them ends.

    ``tty`` says that the sandbox has a terminal: stdin, if it is one too, goes raw, and window sizes are passed on. ``proxy`` gets the
    signals that are meant for the sandbox; without it they end the session. ``streams`` are the outputs that are shown, ``fds`` where
    input comes from and output goes to.
    """

    def __init__(
        self,
        attachment: Stream,
        *,
        tty: bool = False,
        stdin: bool = False,
        detach_keys: bytes = b"",
        proxy: Callable[[int], None] | None = None,
        streams: Sequence[int] = (STDOUT, STDERR),
        fds: tuple[int, int, int] = (STDIN, STDOUT, STDERR),
    ) -> None:
        self._attachment = attachment
        self._input, *self._outputs = fds
        self._tty = tty
        self._proxy = proxy
        self._streams = streams
        self._reading = stdin
        self._raw = RawMode(self._input) if tty and stdin and is_terminal(self._input) else None
        self._filter = DetachFilter(detach_keys) if self._raw and detach_keys else None
        self._unsent = b""
        self._at_end = False

    def run(self) -> Outcome:
        """Runs until the end. The terminal and the signal handlers are as before afterwards, whatever happened.

        Raises:
            HostError: the monitor reported an error.
            BrokenPipeError: nobody reads stdout any more.
        """
        wanted = [*(PROXIED_SIGNALS if self._proxy else _ENDING_SIGNALS), signal.SIGWINCH, signal.SIGCONT]
        with Signals(wanted) as signals:
            if self._raw is None:
                return self._loop(signals)
            with self._raw:
                self._resize()
                return self._loop(signals)

    def _loop(self, signals: Signals) -> Outcome:
        while True:
            ready = self._poll(signals)
            if signals.fileno() in ready:
                outcome = self._signals(signals.read())
                if outcome is not None:
                    return outcome
            if ready.get(self._attachment.fileno(), 0) & select.POLLOUT:
                self._send()
            if self._input in ready and self._receive_input():
                self._detach()
                return Outcome(detached=True)
            while self._attachment.pending() or ready.get(self._attachment.fileno(), 0) & ~select.POLLOUT:
                ready = {}
                outcome = self._frame()
                if outcome is not None:
                    return outcome

    def _poll(self, signals: Signals) -> dict[int, int]:
        poller = select.poll()
        poller.register(signals.fileno(), select.POLLIN)
        poller.register(self._attachment.fileno(), select.POLLIN | (select.POLLOUT if self._unsent or self._at_end else 0))
        if self._reading and not self._unsent:
            poller.register(self._input, select.POLLIN)
        return dict(poller.poll())

    def _receive_input(self) -> bool:
        """Reads stdin into what is to be sent; true when the detach keys were typed."""
        try:
            data = os.read(self._input, _PIECE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # closed, or the terminal hung up: the end either way
        if data and self._filter is not None:
            data, detached = self._filter.feed(data)
            self._unsent = data
            return detached
        if not data:
            data = self._filter.flush() if self._filter else b""
            self._reading, self._at_end = False, True
        self._unsent = data
        return False

    def _send(self) -> None:
        if self._unsent:
            self._attachment.send_stdin(self._unsent)
            self._unsent = b""
        elif self._at_end:
            self._attachment.close_stdin()
            self._at_end = False

    def _detach(self) -> None:
        """What was typed before the keys is still sent; the end of the connection is not the end of the sandbox's input."""
        if self._unsent:
            self._attachment.send_stdin(self._unsent)
        self._attachment.detach()

    def _frame(self) -> Outcome | None:
        frame = self._attachment.read_frame()
        if frame is None:
            return Outcome()
        kind, payload = frame
        if kind in (protocol.STDOUT, protocol.STDERR):
            if kind in self._streams:
                write_all(self._outputs[kind - protocol.STDOUT], payload)
        elif kind == protocol.EXIT:
            return Outcome(exit_code=int(json.loads(payload)["exit_code"]))
        elif kind == protocol.ERROR:
            raise HostError(str(json.loads(payload).get("message", "the monitor failed")))
        return None

    def _signals(self, numbers: bytes) -> Outcome | None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._resize()
            elif number == signal.SIGCONT:
                if self._raw is not None:
                    self._raw.apply()
                self._resize()
            else:
                if self._proxy is not None:
                    self._proxy(number)
                # With a terminal of its own the sandbox gets ctrl-c as a key: a signal to this process means this process.
                if self._proxy is None or (self._raw is not None and number in _ENDING_SIGNALS):
                    return Outcome(signal=number)
        return None

    def _resize(self) -> None:
        size = console_size((self._outputs[0], self._input)) if self._tty else None
        if size is not None:
            self._attachment.resize(*size)


def write_all(fd: int, data: bytes) -> None:
    """Writes everything, also to a pipe that somebody made non-blocking. Raises ``BrokenPipeError``."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


class Proxy:
    """Passes signals on to a sandbox. Pid 1 ignores a signal that it has no handler for: the third ctrl-c kills it."""

    def __init__(self, kill: Callable[[int], None], warn: Callable[[str], None]) -> None:
        self._kill = kill
        self._warn = warn
        self._interrupts = 0

    def __call__(self, number: int) -> None:
        """Takes one signal."""
        self._interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self._interrupts == 2:
            self._warn("the sandbox has not ended; ctrl-c once more kills it")
        self._kill(signal.SIGKILL if self._interrupts > 2 else number)
