"""Standard input and output of a sandbox's command: a terminal of the sandbox's own devpts, or pipes. The far ends go to the monitor.

Both are made inside, so that they belong to the sandbox's user and no descriptor of the host comes in.
"""

from __future__ import annotations

import fcntl
import os
import struct

from netbox.kernel import syscalls
from netbox.runtime.failure import stage
from netbox.runtime.filesystem import make_file

# <asm-generic/ioctls.h>
_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCGPTN = 0x80045430
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_PTMX = os.makedev(5, 2)
_ENOTTY = 25


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Tells a terminal its size; its foreground processes get SIGWINCH. Raises OSError."""
    fcntl.ioctl(terminal, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def open_terminal(uid: int, size: tuple[int, int] | None, as_console: bool) -> int:
    """A new terminal as 0, 1, 2 and controlling terminal of this process (a session leader); returns its master. Raises Failure.

    ``as_console`` puts it over /dev/console too.
    """
    with stage("terminal", "/dev/pts/ptmx"):
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
        if os.fstat(master).st_rdev != _PTMX:  # an exec meets a sandbox that may have put anything there
            raise OSError(_ENOTTY, os.strerror(_ENOTTY))
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        # Not by its name in /dev/pts: that could be another file system by now.
        terminal = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        if size:
            set_size(master, *size)
        if uid:
            os.fchown(terminal, uid, -1)
        fcntl.ioctl(terminal, _TIOCSCTTY, 0)
        if as_console:
            (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, b"\0\0\0\0"))
            make_file("/dev/console")
            syscalls.mount(f"/dev/pts/{number}", "/dev/console", None, syscalls.MS_BIND)
        for fd in (0, 1, 2):
            os.dup2(terminal, fd)
        if terminal > 2:
            os.close(terminal)
        return master


def open_pipes(uid: int, open_stdin: bool, discard: bool = False) -> list[int]:
    """Pipes as 0, 1 and 2 of this process; returns the far ends of stdout, stderr and, if open, stdin. Raises Failure.

    ``discard`` makes all three /dev/null. A closed stdin is /dev/null too.
    """
    with stage("pipes"):
        if discard or not open_stdin:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, 0)
            if discard:
                os.dup2(null, 1)
                os.dup2(null, 2)
                return []
            os.close(null)
        far = []
        for fd in (1, 2):
            reader, writer = os.pipe()
            _become(writer, fd, uid)
            far.append(reader)
        if open_stdin:
            reader, writer = os.pipe()
            _become(reader, 0, uid)
            far.append(writer)
        return far


def _become(end: int, fd: int, uid: int) -> None:
    if uid:
        os.fchown(end, uid, -1)  # so that the user may open /dev/stdout
    os.dup2(end, fd)
    os.close(end)
