"""A steady flow of UDP datagrams between two network namespaces: a sender at a given rate, a receiver that takes them all in.

``python -m tests.bench.packet_flow send|receive NETNS ADDRESS PORT RATE SECONDS SIZE`` prints how many it was.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time

from tests.support import linux

_BATCH = 50
_HEADER = struct.Struct("=QIxxxxQQQQixxxxI4x")  # struct mmsghdr
_VECTOR = struct.Struct("=QQ")
_libc = ctypes.CDLL(None, use_errno=True)
_MSG_WAITFORONE = 0x10000


class _Messages:
    """``_BATCH`` messages for sendmmsg(2) and recvmmsg(2), each with a buffer of its own."""

    def __init__(self, size: int) -> None:
        self._buffers = [ctypes.create_string_buffer(size) for _ in range(_BATCH)]
        vectors = b"".join(_VECTOR.pack(ctypes.addressof(buffer), size) for buffer in self._buffers)
        self._vectors = ctypes.create_string_buffer(vectors, len(vectors))
        first = ctypes.addressof(self._vectors)
        headers = b"".join(_HEADER.pack(0, 0, first + index * _VECTOR.size, 1, 0, 0, 0, 0) for index in range(_BATCH))
        self.headers = ctypes.create_string_buffer(headers, len(headers))

    def number(self, count: int) -> None:
        """Writes consecutive numbers into the datagrams, so that no two are alike."""
        for index, buffer in enumerate(self._buffers):
            struct.pack_into("=Q", buffer, 0, count + index)


def send(sock: socket.socket, rate: int, seconds: float, size: int) -> int:
    """Sends ``rate`` datagrams a second and returns how many it has sent."""
    messages, sent = _Messages(size), 0
    begun = time.monotonic()
    while sent < rate * seconds:
        ahead = sent / rate - (time.monotonic() - begun)
        if ahead > 0:
            time.sleep(ahead)
        messages.number(sent)
        done = _libc.sendmmsg(sock.fileno(), messages.headers, _BATCH, 0)
        sent += max(done, 0)
    return sent


def receive(sock: socket.socket, size: int, expected: int) -> int:
    """Takes datagrams in until none has come for a second after as many as are expected, or for long before."""
    messages, received = _Messages(size), 0
    sock.settimeout(20)
    while True:
        try:
            sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return received
        received += max(_libc.recvmmsg(sock.fileno(), messages.headers, _BATCH, _MSG_WAITFORONE | socket.MSG_DONTWAIT, None), 0)
        if received >= expected:
            sock.settimeout(1)


def main() -> None:
    """See the module."""
    verb, netns, address, port, rate, seconds, size = sys.argv[1:]
    fd = os.open(netns, os.O_RDONLY)
    with linux.network_namespace(fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if verb == "send":
        sock.connect((address, int(port)))
        print(send(sock, int(rate), float(seconds), int(size)))
    else:
        sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        sock.bind((address, int(port)))
        print("ready", flush=True)
        print(receive(sock, int(size), int(int(rate) * float(seconds))))


if __name__ == "__main__":
    main()
