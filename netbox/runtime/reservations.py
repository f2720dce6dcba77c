"""The sockets that hold a sandbox's published ports on the host: the monitor keeps them open as long as the sandbox runs.

``publish`` and ``unpublish`` of a running sandbox say KEEP over the control socket: all ports that are to be held from now on, with the
sockets of new ones. The answer HELD lists what is held then. Saying it twice is harmless, and saying it after a crash mends what was left.

A port is named by what its socket says about itself: protocol number, address, port.
"""

from __future__ import annotations

import _socket
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SO_PROTOCOL = 38  # <asm-generic/socket.h>; socket.SO_PROTOCOL comes with 3.13


class Reservations:
    """Bound sockets, by descriptor."""

    def __init__(self, fds: Iterable[int]) -> None:
        self._fds = list(fds)

    def keep(self, names: Iterable[bytes], fds: Iterable[int]) -> list[bytes]:
        """Takes ``fds`` in and closes every socket, new or old, whose port is not among ``names``, or is held already.

        Returns the names of those that are held.
        """
        wanted = set(names)
        held: dict[bytes, int] = {}
        for fd in [*self._fds, *fds]:
            name = name_of(fd)
            if name in wanted and name not in held:
                held[name] = fd
            else:
                os.close(fd)
        self._fds = list(held.values())
        return list(held)

    def close(self) -> None:
        """Frees every port."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def name_of(fd: int) -> bytes:
    """``6 0.0.0.0 8080``; nothing for what is no bound socket of IPv4 or IPv6."""
    try:
        sock = _socket.socket(fileno=os.dup(fd))
    except OSError:
        return b""
    try:
        address = sock.getsockname()
        if not isinstance(address, tuple) or len(address) < 2:
            return b""
        return b"%d %s %d" % (sock.getsockopt(_socket.SOL_SOCKET, _SO_PROTOCOL), str(address[0]).encode(), address[1])
    except OSError:
        return b""
    finally:
        sock.close()
