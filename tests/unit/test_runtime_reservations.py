from __future__ import annotations

import os
import socket

from netbox.runtime import protocol
from netbox.runtime.protocol import Handshake
from netbox.runtime.reservations import Reservations, name_of


def bound(kind: socket.SocketKind = socket.SOCK_STREAM) -> tuple[int, bytes]:
    """A socket's descriptor, which is the caller's, and its name."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    number = 6 if kind == socket.SOCK_STREAM else 17
    name = b"%d 127.0.0.1 %d" % (number, sock.getsockname()[1])
    return sock.detach(), name


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_socket_is_named_by_what_it_holds() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        fd, name = bound(kind)
        assert name_of(fd) == name
        assert is_open(fd)
        os.close(fd)
    read, write = os.pipe()
    assert name_of(read) == b""
    os.close(read)
    os.close(write)


def test_what_is_kept_and_what_is_let_go() -> None:
    (one, first), (two, second), (three, third) = bound(), bound(socket.SOCK_DGRAM), bound()
    held = Reservations([one])
    assert held.keep([first, second], [two]) == [first, second]
    assert held.keep([second, third], [three]) == [second, third]
    assert not is_open(one)
    again = os.dup(two)
    assert held.keep([second, third], [again]) == [second, third]
    assert not is_open(again)
    assert is_open(two)
    assert held.keep([b""], []) == []
    assert not is_open(two)
    assert not is_open(three)


def test_what_is_no_socket_is_not_kept() -> None:
    read, write = os.pipe()
    held = Reservations([read])
    assert held.keep([b""], [write]) == []
    assert not is_open(read)
    assert not is_open(write)


def test_close_frees_everything() -> None:
    fd, _ = bound()
    held = Reservations([fd])
    held.close()
    assert not is_open(fd)
    held.close()


def test_sockets_may_come_before_the_start() -> None:
    order = Handshake()
    for name in (protocol.RESERVED, protocol.RESERVED, protocol.START, protocol.NAMESPACES_READY):
        order.advance(name)
    assert order.reached(protocol.NAMESPACES_READY)
