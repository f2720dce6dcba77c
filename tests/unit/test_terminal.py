from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.cli import terminal
from netbox.errors import HostError, UsageError
from netbox.runtime import protocol
from netbox.runtime.client import Attachment

KEYS = b"\x10\x11"
FRAME_HEADER = struct.Struct(">B3xI")


def test_detach_keys() -> None:
    assert terminal.parse_detach_keys("ctrl-p,ctrl-q") == KEYS
    assert terminal.parse_detach_keys("ctrl-A,d") == b"\x01d"
    assert terminal.parse_detach_keys("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_") == b"\x00\x1b\x1c\x1d\x1e\x1f"
    for text in ("", "ctrl-", "ctrl-1", "ctrl-pp", "ab", "a,,b", "ä", "ctrl-p, q"):
        with pytest.raises(UsageError, match="^detach-keys .*write keys such as ctrl-p,ctrl-q"):
            terminal.parse_detach_keys(text)


@pytest.mark.parametrize(
    ("typed", "passed", "detached"),
    [
        ([b"abc"], b"abc", False),
        ([KEYS], b"", True),
        ([b"ab" + KEYS + b"cd"], b"ab", True),
        ([b"\x10", b"\x11"], b"", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_detach_filter(typed: list[bytes], passed: bytes, detached: bool) -> None:
    found = terminal.DetachFilter(KEYS)
    results = [found.feed(data) for data in typed]
    assert b"".join(data for data, _ in results) == passed
    assert results[-1][1] is detached


@given(st.lists(st.binary(max_size=5)), st.binary(min_size=1, max_size=4).map(lambda keys: bytes(byte % 3 for byte in keys)))
def test_the_filter_loses_nothing_and_finds_the_first_sequence(pieces: list[bytes], keys: bytes) -> None:
    pieces = [bytes(byte % 3 for byte in piece) for piece in pieces]
    whole = b"".join(pieces)
    found = terminal.DetachFilter(keys)
    passed = b""
    for piece in pieces:
        data, detached = found.feed(piece)
        passed += data
        if detached:
            assert passed == whole[: whole.find(keys)]
            return
    assert keys not in whole
    assert passed + found.flush() == whole


@pytest.fixture
def tty() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: what a person types into, and what a program reads from."""
    ends = pty.openpty()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it


def test_raw_mode_is_undone_whatever_happens(tty: tuple[int, int]) -> None:
    before = termios.tcgetattr(tty[1])
    with pytest.raises(KeyError), terminal.RawMode(tty[1]):
        raw = termios.tcgetattr(tty[1])
        assert not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        assert not raw[1] & termios.OPOST
        assert not raw[0] & termios.ICRNL
        raise KeyError
    assert termios.tcgetattr(tty[1]) == before
    assert signal.getsignal(signal.SIGTTOU) == signal.SIG_DFL


def test_raw_mode_survives_a_terminal_that_went_away(tty: tuple[int, int]) -> None:
    with terminal.RawMode(tty[1]):
        os.close(tty[1])


def test_signals_arrive_as_bytes_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with terminal.Signals([signal.SIGUSR1]) as signals:
        assert signals.read() == b""
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.read() == bytes([signal.SIGUSR1])
    assert signal.getsignal(signal.SIGUSR1) == before


def test_console_size(tty: tuple[int, int]) -> None:
    fcntl.ioctl(tty[1], termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    reader, writer = os.pipe()
    try:
        assert terminal.console_size((reader, tty[1])) == (30, 100)
        assert terminal.console_size((reader, writer)) is None
        assert terminal.is_terminal(tty[1])
        assert not terminal.is_terminal(reader)
        assert not terminal.is_terminal(987654)
    finally:
        os.close(reader)
        os.close(writer)


class Monitor:
    """The other side of an attachment: sends frames, and reads what the session sends."""

    def __init__(self) -> None:
        ours, self._socket = socket.socketpair()
        self.attachment = Attachment(ours)
        self._buffer = b""

    def send(self, kind: int, payload: bytes) -> None:
        self._socket.sendall(protocol.frame(kind, payload))

    def exit(self, code: int) -> None:
        self.send(protocol.EXIT, json.dumps({"exit_code": code}).encode())

    def receive(self) -> tuple[int, bytes]:
        header = self._exactly(FRAME_HEADER.size)
        kind, length = FRAME_HEADER.unpack(header)
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            data = self._socket.recv(65536)
            assert data, "the session hung up"
            self._buffer += data
        data, self._buffer = self._buffer[:length], self._buffer[length:]
        return data

    def hang_up(self) -> None:
        self._socket.close()

    def close(self) -> None:
        self._socket.close()
        self.attachment.close()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    found = Monitor()
    found._socket.settimeout(60)
    yield found
    found.close()


class Pipes:
    """Pipes in place of stdin, stdout and stderr."""

    def __init__(self) -> None:
        self.stdin, self.typed = os.pipe()
        self._outputs = [os.pipe(), os.pipe()]
        self.fds = (self.stdin, self._outputs[0][1], self._outputs[1][1])

    def output(self) -> tuple[bytes, bytes]:
        """What was written; both pipes must be small enough to hold it."""
        for _, writer in self._outputs:
            os.close(writer)
        found = tuple(os.read(reader, 1 << 16) for reader, _ in self._outputs)
        self._outputs = [(reader, -1) for reader, _ in self._outputs]
        return found[0], found[1]

    def close(self) -> None:
        for fd in {self.stdin, self.typed, *(fd for pair in self._outputs for fd in pair)} - {-1}:
            try:
                os.close(fd)
            except OSError:
                pass  # the test closed it


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    found = Pipes()
    yield found
    found.close()


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_output_goes_to_its_stream_and_the_exit_code_comes_back(monitor: Monitor, pipes: Pipes) -> None:
    monitor.send(protocol.STDOUT, b"out\n")
    monitor.send(protocol.STDERR, b"err\n")
    monitor.send(protocol.STDOUT, b"\xff\0")
    monitor.exit(7)
    outcome = terminal.Session(monitor.attachment, fds=pipes.fds).run()
    assert outcome == terminal.Outcome(exit_code=7)
    assert pipes.output() == (b"out\n\xff\0", b"err\n")


def test_only_the_wanted_streams_are_shown(monitor: Monitor, pipes: Pipes) -> None:
    monitor.send(protocol.STDOUT, b"out")
    monitor.send(protocol.STDERR, b"err")
    monitor.exit(0)
    terminal.Session(monitor.attachment, fds=pipes.fds, streams=[terminal.STDERR]).run()
    assert pipes.output() == (b"", b"err")


def test_a_monitor_that_died(monitor: Monitor, pipes: Pipes) -> None:
    monitor.hang_up()
    assert terminal.Session(monitor.attachment, fds=pipes.fds).run() == terminal.Outcome()


def test_an_error_of_the_monitor(monitor: Monitor, pipes: Pipes) -> None:
    monitor.send(protocol.ERROR, b'{"message": "no more room"}')
    with pytest.raises(HostError, match="no more room"):
        terminal.Session(monitor.attachment, fds=pipes.fds).run()


def test_input_is_passed_on_to_its_end(monitor: Monitor, pipes: Pipes) -> None:
    received: list[tuple[int, bytes]] = []

    def echo() -> None:
        while not received or received[-1][0] != protocol.STDIN_EOF:
            received.append(monitor.receive())
        monitor.exit(0)

    os.write(pipes.typed, b"hello ")
    os.write(pipes.typed, b"world")
    os.close(pipes.typed)
    thread = in_background(echo)
    assert terminal.Session(monitor.attachment, stdin=True, fds=pipes.fds).run().exit_code == 0
    thread.join(60)
    assert b"".join(data for kind, data in received if kind == protocol.STDIN) == b"hello world"
    assert received[-1] == (protocol.STDIN_EOF, b"")


def test_without_stdin_nothing_is_read(monitor: Monitor, pipes: Pipes) -> None:
    os.write(pipes.typed, b"mine")
    monitor.exit(0)
    terminal.Session(monitor.attachment, fds=pipes.fds).run()
    assert os.read(pipes.stdin, 10) == b"mine"


def test_a_sandbox_that_does_not_read_still_gets_its_output_through(monitor: Monitor, pipes: Pipes) -> None:
    """More input than all buffers hold, while the other side writes first and reads later: neither waits for the other."""
    size = 4 << 20
    seen = threading.Event()
    received = bytearray()

    def type_all() -> None:
        view = memoryview(bytes(size))
        while view:
            view = view[os.write(pipes.typed, view) :]
        os.close(pipes.typed)

    def write_then_read() -> None:
        monitor.send(protocol.STDOUT, b"ready")
        seen.wait(60)
        while True:
            kind, data = monitor.receive()
            if kind == protocol.STDIN_EOF:
                break
            received.extend(data)
        monitor.exit(0)

    def notice() -> None:
        if os.read(pipes._outputs[0][0], 5) == b"ready":
            seen.set()

    threads = [in_background(work) for work in (type_all, write_then_read, notice)]
    terminal.Session(monitor.attachment, stdin=True, fds=pipes.fds).run()
    for thread in threads:
        thread.join(60)
    assert seen.is_set()
    assert bytes(received) == bytes(size)


def test_a_broken_pipe_is_reported(monitor: Monitor, pipes: Pipes) -> None:
    os.close(pipes._outputs[0][0])
    pipes._outputs[0] = (-1, pipes._outputs[0][1])
    monitor.send(protocol.STDOUT, b"x")
    with pytest.raises(BrokenPipeError):
        terminal.Session(monitor.attachment, fds=pipes.fds).run()


def test_signals_are_passed_on(monitor: Monitor, pipes: Pipes) -> None:
    got: list[int] = []

    def proxy(number: int) -> None:
        got.append(number)
        if len(got) == 2:
            monitor.exit(143)

    def interrupt() -> None:
        monitor.send(protocol.STDOUT, b"1")
        os.read(pipes._outputs[0][0], 1)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = in_background(interrupt)
    outcome = terminal.Session(monitor.attachment, proxy=proxy, fds=pipes.fds).run()
    thread.join(60)
    assert outcome.exit_code == 143
    assert sorted(got) == [signal.SIGUSR1, signal.SIGTERM]


def test_without_a_proxy_a_signal_ends_the_session(monitor: Monitor, pipes: Pipes) -> None:
    def interrupt() -> None:
        monitor.send(protocol.STDOUT, b"1")
        os.read(pipes._outputs[0][0], 1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = in_background(interrupt)
    assert terminal.Session(monitor.attachment, fds=pipes.fds).run() == terminal.Outcome(signal=signal.SIGINT)
    thread.join(60)


def session_on(tty: tuple[int, int], monitor: Monitor, **options: Any) -> terminal.Session:
    return terminal.Session(monitor.attachment, tty=True, stdin=True, detach_keys=KEYS, fds=(tty[1], tty[1], tty[1]), **options)


def test_the_detach_keys_leave_the_sandbox_and_restore_the_terminal(monitor: Monitor, tty: tuple[int, int]) -> None:
    before = termios.tcgetattr(tty[1])
    received: list[tuple[int, bytes]] = []

    def type_keys() -> None:
        received.append(monitor.receive())  # the size: raw mode is on
        os.write(tty[0], b"ls\r")
        while b"".join(data for kind, data in received if kind == protocol.STDIN) != b"ls\r":
            received.append(monitor.receive())
        os.write(tty[0], KEYS)

    fcntl.ioctl(tty[1], termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    thread = in_background(type_keys)
    assert session_on(tty, monitor).run() == terminal.Outcome(detached=True)
    thread.join(60)
    assert received[0] == (protocol.RESIZE, b"[30,100]")
    assert termios.tcgetattr(tty[1]) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_a_terminal_session_restores_the_terminal(number: int, monitor: Monitor, tty: tuple[int, int]) -> None:
    before = termios.tcgetattr(tty[1])
    passed: list[int] = []

    def interrupt() -> None:
        monitor.receive()  # the size: raw mode is on
        assert termios.tcgetattr(tty[1]) != before
        os.kill(os.getpid(), number)

    fcntl.ioctl(tty[1], termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    thread = in_background(interrupt)
    assert session_on(tty, monitor, proxy=passed.append).run() == terminal.Outcome(signal=number)
    thread.join(60)
    assert passed == [number]
    assert termios.tcgetattr(tty[1]) == before


def test_a_new_size_of_the_window_is_passed_on(monitor: Monitor, tty: tuple[int, int]) -> None:
    sizes: list[Any] = []

    def resize() -> None:
        sizes.append(json.loads(monitor.receive()[1]))
        fcntl.ioctl(tty[1], termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.kill(os.getpid(), signal.SIGWINCH)
        sizes.append(json.loads(monitor.receive()[1]))
        monitor.exit(0)

    fcntl.ioctl(tty[1], termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    thread = in_background(resize)
    assert session_on(tty, monitor).run().exit_code == 0
    thread.join(60)
    assert sizes == [[30, 100], [40, 120]]


def test_after_a_stop_raw_mode_is_set_again(monitor: Monitor, tty: tuple[int, int]) -> None:
    before = termios.tcgetattr(tty[1])

    def resume() -> None:
        monitor.receive()
        termios.tcsetattr(tty[1], termios.TCSANOW, before)  # what a shell does with a stopped job
        os.kill(os.getpid(), signal.SIGCONT)
        monitor.receive()
        raw.append(not termios.tcgetattr(tty[1])[3] & termios.ICANON)
        monitor.exit(0)

    raw: list[bool] = []
    fcntl.ioctl(tty[1], termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    thread = in_background(resume)
    session_on(tty, monitor).run()
    thread.join(60)
    assert raw == [True]


def test_write_all_waits_for_a_pipe_that_does_not_block() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = os.urandom(300_000)
    found = bytearray()

    def read() -> None:
        while len(found) < len(data):
            found.extend(os.read(reader, 1 << 16))

    thread = in_background(read)
    terminal.write_all(writer, data)
    thread.join(60)
    os.close(reader)
    os.close(writer)
    assert bytes(found) == data


def test_the_third_interrupt_kills() -> None:
    sent: list[int] = []
    warnings: list[str] = []
    proxy = terminal.Proxy(sent.append, warnings.append)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
        proxy(number)
    assert sent == [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
    assert len(warnings) == 1
    assert "ctrl-c once more kills it" in warnings[0]


def test_a_terminal_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda fd: False)
    with pytest.raises(UsageError, match="the input device is not a TTY"):
        terminal.require_terminal()
