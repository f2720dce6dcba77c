"""The handshake's order, messages with descriptors, frames."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import CommandNotExecutable, CommandNotFound, HostError, NetboxError, Unsupported, UsageError
from netbox.runtime import protocol
from netbox.runtime.failure import Failure
from netbox.runtime.launcher import error_of

ORDER = (
    protocol.START,
    protocol.NAMESPACES_READY,
    protocol.NETWORK_READY,
    protocol.READY,
    protocol.GO,
    protocol.STARTED,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


def test_the_whole_order_is_legal_and_ends() -> None:
    handshake = protocol.Handshake()
    for name in ORDER:
        assert not handshake.over
        handshake.advance(name)
        assert handshake.reached(name)
    assert handshake.over


@pytest.mark.parametrize("done", range(len(ORDER)))
def test_every_other_message_is_illegal(done: int) -> None:
    for name in set(ORDER) - {ORDER[done]}:
        handshake = protocol.Handshake()
        for earlier in ORDER[:done]:
            handshake.advance(earlier)
        with pytest.raises(protocol.ProtocolError):
            handshake.advance(name)


@pytest.mark.parametrize("done", range(1, len(ORDER)))
def test_failure_is_possible_once_begun_and_is_the_last_word(done: int) -> None:
    handshake = protocol.Handshake()
    for earlier in ORDER[:done]:
        handshake.advance(earlier)
    handshake.advance(protocol.FAILED)
    assert handshake.over
    for name in (*ORDER, protocol.FAILED):
        with pytest.raises(protocol.ProtocolError):
            handshake.advance(name)


def test_messages_carry_values_and_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = os.pipe()
    protocol.send_message(pair[0], "first", {"list": [1, "zwei", None, {"a": True}]}, [writer])
    protocol.send_message(pair[0], "second")
    os.close(writer)
    name, values, fds = protocol.receive_message(pair[1]) or ("", {}, [])
    assert (name, values) == ("first", {"list": [1, "zwei", None, {"a": True}]})
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"through")
    assert os.read(reader, 10) == b"through"
    assert protocol.receive_message(pair[1]) == ("second", {}, [])
    pair[0].close()
    assert protocol.receive_message(pair[1]) is None
    for fd in (reader, fds[0]):
        os.close(fd)


def test_a_message_reads_no_byte_of_what_follows(pair: tuple[socket.socket, socket.socket]) -> None:
    protocol.write_message(pair[0].fileno(), protocol.STARTED, {})
    pair[0].sendall(protocol.frame(protocol.STDOUT, b"early"))
    assert protocol.receive_message(pair[1]) == (protocol.STARTED, {}, [])
    reader = protocol.FrameReader()
    reader.feed(pair[1].recv(100))
    assert reader.next() == (protocol.STDOUT, b"early")


def test_a_message_that_breaks_off(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(b"\0\0\0\x09abc")
    pair[0].close()
    with pytest.raises(protocol.ProtocolError):
        protocol.receive_message(pair[1])


@given(st.lists(st.tuples(st.integers(0, 7), st.binary(max_size=50)), max_size=8), st.integers(1, 40))
def test_frames_survive_any_cut(frames: list[tuple[int, bytes]], size: int) -> None:
    stream = b"".join(protocol.frame(kind, payload) for kind, payload in frames)
    reader = protocol.FrameReader()
    got: list[tuple[int, bytes]] = []
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
        whole = reader.whole()
        found = list(reader.frames())
        assert whole == bool(found)
        got += found
    assert got == frames


def test_a_frame_beyond_the_limit_is_refused() -> None:
    reader = protocol.FrameReader()
    reader.feed(b"\x01\0\0\0\xff\xff\xff\xff")
    with pytest.raises(protocol.ProtocolError):
        reader.next()


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_resize_payload_is_read_back(rows: int, columns: int) -> None:
    assert protocol.parse_resize(protocol.resize_payload(rows, columns)) == (rows, columns)
    assert protocol.parse_resize(b"[%d, %d]" % (rows, columns)) == (rows, columns)


@given(st.binary(max_size=20))
def test_resize_takes_anything(payload: bytes) -> None:
    size = protocol.parse_resize(payload)
    assert size is None or all(0 < number < 65536 for number in size)


@pytest.mark.parametrize(
    ("failure", "error", "words"),
    [
        (Failure("exec", 2, "x", os.strerror(2)), CommandNotFound, "executable file not found in PATH"),
        (Failure("exec", 2, "/x", os.strerror(2)), CommandNotFound, "no such file or directory"),
        (Failure("exec", 13, "/x", os.strerror(13)), CommandNotExecutable, "permission denied"),
        (Failure("exec", 8, "x", os.strerror(8)), CommandNotExecutable, "exec format error"),
        (Failure("user", 2, "x", "no user 'x'"), UsageError, "no user 'x'"),
        (Failure("user namespace", 22, "/l", "no idmapped mounts"), Unsupported, "--userns=auto"),
        (Failure("ulimit", 1, "nofile", "Operation not permitted"), HostError, "CAP_SYS_RESOURCE"),
        (Failure("bind", 2, "/src", "No such file or directory"), HostError, r"bind \(/src\): No such file"),
        (Failure("init", message="was killed"), HostError, "was killed"),
    ],
)
def test_failures_become_errors(failure: Failure, error: type[NetboxError], words: str) -> None:
    found = error_of(Failure.from_message(failure.to_message()))
    assert type(found) is error
    assert "\n" not in str(found)
    with pytest.raises(error, match=words):
        raise found


def test_too_many_descriptors_are_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(protocol.ProtocolError), contextlib.ExitStack():
        protocol.send_message(pair[0], "x", {}, list(itertools.repeat(pair[0].fileno(), 300)))
