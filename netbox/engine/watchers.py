"""Captures that wait for starts: whoever records packets is told of a start in time to hear the sandbox's first packet.

    engine, starting a sandbox                         capture
      │                                                  listens on RUN/captures/NAME
      ├── namespaces: record, plan, netns, pidfd ───────▶│ opens a ring in the empty network namespace
      │◀──────────────────────────────── armed | pass ───┤
      │  veth, address, announcement                     │
      ├── attached ─────────────────────────────────────▶│ opens rings on the host's ends and the bridges
      │◀──────────────────────────────── armed ──────────┤
      │  published ports, Go                             │

A socket whose process is dead refuses the connection: that is all that a start loses by a capture that was killed. One that hangs costs
``PATIENCE``. While no capture waits, a start pays one failing listdir(2).
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from netbox.errors import host_error

if TYPE_CHECKING:
    from netbox.network.plan import NetworkPlan
    from netbox.runtime.launcher import Namespaces
    from netbox.settings import Settings
    from netbox.state.rows import SandboxRow

PATIENCE = 2.0  # seconds that one capture may hold up a start
ARMED, PASS = b"armed", b"pass"
_ATTACHED = b"attached"
_MESSAGE_MAX = 1 << 18
_FDS = array.array("i")
_DEAD = (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK, errno.EPROTOTYPE)


class Announcement:
    """One start, as told to the captures that want it. A context manager."""

    def __init__(self, channels: list[socket.socket]) -> None:
        self._channels = channels

    def attached(self) -> None:
        """The links stand. Returns when every capture hears them."""
        self._channels = [channel for channel in self._channels if _ask(channel, _ATTACHED, (), time.monotonic() + PATIENCE)]

    def __enter__(self) -> Announcement:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for channel in self._channels:
            channel.close()


def announce(settings: Settings, row: SandboxRow, plan: NetworkPlan, namespaces: Namespaces) -> Announcement:
    """Tells the captures that run of a start: its network namespace is there, and empty. Returns when all that want it are listening."""
    directory = _directory(settings)
    try:
        paths = os.listdir(directory)
    except FileNotFoundError:
        return Announcement([])
    values = {"id": row.id, "name": row.name, "labels": dict(row.spec["labels"]), "plan": plan.to_json()}
    message = json.dumps(values).encode()
    channels, dead = [], False
    for path in paths:
        channel = _connect(f"{directory}/{path}")
        if channel is None:
            dead = True
        elif _ask(channel, message, (namespaces.netns, namespaces.pidfd), time.monotonic() + PATIENCE):
            channels.append(channel)
    if dead:
        collect(settings)
    return Announcement(channels)


def collect(settings: Settings) -> None:
    """Removes the sockets of captures that were killed. Cheap where there are none."""
    directory = _directory(settings)
    if not os.path.isdir(directory):
        return
    with _locked(settings):
        for name in _entries(directory):
            channel = _connect(f"{directory}/{name}")
            if channel is None:
                _unlink(f"{directory}/{name}")
            else:
                channel.close()
        _remove_if_empty(directory)


class Arrival(NamedTuple):
    """A sandbox that is starting. ``plan`` is its network plan as JSON values; the descriptors belong to whoever gets this."""

    id: str
    name: str
    labels: dict[str, str]
    plan: dict[str, Any]
    netns: int
    pidfd: int


class Registration:
    """The capture's side. Not for several threads.

    Raises:
        HostError: the socket cannot be made.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = f"{_directory(settings)}/{os.urandom(4).hex()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # Under the lock, so that nobody takes a socket that does not listen yet for a dead one.
            with _locked(settings):
                os.makedirs(_directory(settings), mode=0o700, exist_ok=True)
                self._socket.bind(self._path)
                self._socket.listen(64)
        except OSError as error:
            self._socket.close()
            raise host_error("listen for starts on", self._path, error) from error

    def fileno(self) -> int:
        """The listening socket, for poll."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The channel of a start that has something to say, or ``None``; to be read with ``receive`` when it is readable."""
        try:
            channel, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        channel.setblocking(False)
        return channel

    def close(self) -> None:
        """Starts go on without this capture."""
        self._socket.close()
        with _locked(self._settings):
            _unlink(self._path)
            _remove_if_empty(_directory(self._settings))


def receive(channel: socket.socket) -> Arrival | bool | None:
    """What the engine says: an ``Arrival``, ``True`` for "attached", ``False`` for the end of the channel, ``None`` for nothing yet."""
    try:
        data, ancillary, _, _ = channel.recvmsg(_MESSAGE_MAX, socket.CMSG_SPACE(2 * _FDS.itemsize), socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    except OSError:
        return False
    if not data:
        return False
    if data == _ATTACHED:
        return True
    fds = array.array("i")
    for _, _, payload in ancillary:
        fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    values = json.loads(data)
    return Arrival(values["id"], values["name"], values["labels"], values["plan"], *fds)


def answer(channel: socket.socket, word: bytes) -> None:
    """ARMED or PASS; that the engine has gone on without us is no error."""
    try:
        channel.send(word, socket.MSG_NOSIGNAL)
    except OSError:
        pass


def _ask(channel: socket.socket, message: bytes, fds: tuple[int, ...], deadline: float) -> bool:
    """Whether the capture wants to hear more. Closes the channel if not."""
    try:
        channel.settimeout(max(0.01, deadline - time.monotonic()))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        channel.sendmsg([message], rights, socket.MSG_NOSIGNAL)
        if channel.recv(16) == ARMED:
            return True
    except OSError:
        pass  # it was killed, it hangs, or it is over
    channel.close()
    return False


def _connect(path: str) -> socket.socket | None:
    """A channel to the capture; ``None`` when it is dead."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        channel.setblocking(False)  # a capture that hangs has a full backlog: EAGAIN
        channel.connect(path)
    except OSError as error:
        if error.errno in _DEAD:
            channel.close()
            return None
        # It hangs: the first message fails at once, and it is not taken for dead.
    return channel


def _directory(settings: Settings) -> str:
    return f"{settings.run}/captures"


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _remove_if_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        pass  # another capture, or gone already


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """The lock of the directory with the sockets."""
    os.makedirs(settings.run, mode=0o711, exist_ok=True)
    fd = os.open(f"{settings.run}/captures.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
