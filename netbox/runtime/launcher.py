"""The engine's side of a start: spawns the monitor and speaks the handshake (drawn in ``protocol``)."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from netbox.errors import CommandNotExecutable, CommandNotFound, HostError, NetboxError, Unsupported, UsageError, hint_of, host_error
from netbox.kernel import syscalls
from netbox.runtime import protocol
from netbox.runtime.client import Attachment
from netbox.runtime.failure import Failure
from netbox.runtime.helper import Helper
from netbox.runtime.interpreter import reap

if TYPE_CHECKING:
    from netbox.runtime.spawner import Spawner

__all__ = ["Launcher", "Namespaces", "error_of", "reap"]

_ENOENT = 2
_EACCES = 13
_EEXIST = 17
_ENOTDIR = 20
_EISDIR = 21
_EINVAL = 22
_EPERM = 1
_SIGKILL = 9
_DEATH_PATIENCE = 10.0  # seconds
_REAPING_PATIENCE = 1.0


class Namespaces(NamedTuple):
    """The clone: ``pid`` as the host sees it, a pidfd and a descriptor of the network namespace. Both belong to the Launcher."""

    pid: int
    pidfd: int
    netns: int


class Launcher:
    """One start. ``begin``, ``wait_namespaces``, ``network_ready``, ``wait_ready`` and ``go`` are called in this order.

    All raise the NetboxError that fits the failure; the monitor has then ended the sandbox by itself, and ``abort`` waits for that. As a
    context manager it aborts whatever did not get as far as ``go``.
    """

    def __init__(self, monitor: Helper) -> None:
        self._helper = monitor
        self._channel: socket.socket | None = monitor.channel
        self._handshake = protocol.Handshake()
        self._attach = False
        self._fds: list[int] = []

    @classmethod
    def prespawn(cls, spawner: Spawner | None = None) -> Launcher:
        """Starts a monitor before it is known what it shall do, so that it loads meanwhile. Does not wait. Raises HostError."""
        return cls(Helper.start("monitor", spawner))

    def begin(
        self,
        config: Mapping[str, Any],
        lock_fd: int,
        port_sockets: Sequence[socket.socket | int] = (),
        netns_fd: int | None = None,
    ) -> None:
        """START. Copies of the descriptors travel: the caller closes its own once ``go`` or ``abort`` has returned.

        ``netns_fd`` is the network namespace to join when ``config["join_netns"]`` says so. The monitor holds lock and sockets until the
        sandbox ends.
        """
        ports = [item if isinstance(item, int) else item.fileno() for item in port_sockets]
        joined = [netns_fd] if netns_fd is not None and config.get("join_netns") else []
        self._attach = bool(config["attach"])
        room = protocol.FDS_MAX - 2
        for start in range(0, len(ports) - room, room):
            self._send(protocol.RESERVED, None, ports[start : start + room])
        if len(ports) > room:
            ports = ports[-(len(ports) % room or room) :]
        self._send(protocol.START, {"config": dict(config), "netns": bool(joined)}, [lock_fd, *ports, *joined])

    def wait_namespaces(self, timeout: float = 30.0) -> Namespaces:
        """NAMESPACES_READY. The network may be built from here on, while the sandbox mounts."""
        values, fds = self._receive(protocol.NAMESPACES_READY, timeout)
        self._fds = fds
        return Namespaces(values["pid"], *fds)

    def network_ready(self) -> None:
        """NETWORK_READY."""
        self._send(protocol.NETWORK_READY)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """READY: the sandbox needs nothing any more but its command."""
        self._receive(protocol.READY, timeout)

    def go(self, timeout: float = 60.0) -> Attachment | None:
        """GO, and STARTED: the command runs.

        Returns the attachment that ``config["attach"]`` asked for. Raises also CommandNotFound, CommandNotExecutable.
        """
        self._send(protocol.GO)
        self._receive(protocol.STARTED, timeout)
        assert self._channel is not None
        channel, self._channel = self._channel, None
        if self._attach:
            return Attachment(channel)
        channel.close()
        return None

    def _send(self, name: str, values: dict[str, Any] | None = None, fds: Sequence[int] = ()) -> None:
        if self._channel is None:
            raise HostError("the start was aborted")
        self._handshake.advance(name)
        try:
            protocol.send_message(self._channel, name, values, fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the monitor has failed; its reason lies in the channel and the next wait raises it
        except OSError as error:
            raise host_error("talk to", "the monitor", error) from None

    def _receive(self, expected: str, timeout: float) -> tuple[dict[str, Any], list[int]]:
        if self._channel is None:
            raise HostError("the start was aborted")
        self._channel.settimeout(timeout)
        try:
            message = protocol.receive_message(self._channel)
        except TimeoutError:
            raise HostError(
                f"the sandbox took more than {timeout:g} s to get {expected}", "look at the host's load and its mounts"
            ) from None
        except OSError as error:
            raise host_error("talk to", "the monitor", error) from None
        if message is None:
            raise HostError("the monitor of the sandbox ended unexpectedly", "see whether it was killed (dmesg tells about the OOM killer)")
        name, values, fds = message
        self._handshake.advance(name)
        if name == protocol.FAILED:
            raise error_of(Failure.from_message(values))
        return values, fds

    def abort(self) -> None:
        """Gives up, at any step before ``go`` returned; returns when neither monitor nor sandbox is left. Idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            if self._handshake.last in (protocol.GO, protocol.STARTED):
                self._kill()
            self._helper.end()
        self.close()

    def _kill(self) -> None:
        """From GO on the monitor runs the sandbox without us: it has written how that ended when it reaps the first process.

        One that was killed itself reaps nothing, hence the bound.
        """
        poller = select.poll()
        poller.register(self._fds[0], select.POLLIN)
        try:
            syscalls.pidfd_send_signal(self._fds[0], _SIGKILL)
            poller.poll(_DEATH_PATIENCE * 1000)
            give_up = time.monotonic() + _REAPING_PATIENCE
            while time.monotonic() < give_up:
                syscalls.pidfd_send_signal(self._fds[0], 0)
                time.sleep(0.001)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Closes the descriptors of ``wait_namespaces``.

        A monitor that runs a sandbox by now is left alone; one that was never used ends. Idempotent.
        """
        if self._channel is not None:
            self.abort()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        reap(self._helper.pid)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def error_of(failure: Failure) -> NetboxError:
    """What the user is told about a failed start."""
    stage, number, path, message = failure.stage, failure.number, failure.path, failure.message
    if stage == "exec":
        return _exec_error(failure)
    if stage == "user":
        return UsageError(message, "give a numeric uid[:gid], or a name that the image has")
    if stage == "user namespace" and number == _EINVAL:
        return Unsupported(f"cannot use --userns=auto with {path}: {message or os.strerror(number)}", "leave out --userns=auto")
    if stage == "ulimit":
        hint = "raising a hard limit needs CAP_SYS_RESOURCE" if number == _EPERM else "'man 2 setrlimit' lists the names"
        return HostError(f"cannot set the limit {path}: {message}", hint, number)
    if stage == "sysctl":
        return _sysctl_error(failure)
    subject = f" ({path})" if path else ""
    if stage == "bind" and number in (_EEXIST, _ENOTDIR, _EISDIR):
        return UsageError(f"cannot mount at {path}: {message}", "mount a file over a file, and a directory over a directory")
    return HostError(f"cannot start the sandbox: {stage}{subject}: {message or os.strerror(number)}", hint_of(number), number)


def _sysctl_error(failure: Failure) -> NetboxError:
    if failure.number in (_ENOENT, _EACCES):  # /proc/sys lets nobody make a file
        return UsageError(f"cannot set sysctl {failure.path}: there is no such sysctl in the sandbox", "'sysctl -a' inside one lists them")
    if failure.number == _EINVAL:
        return UsageError(f"cannot set sysctl {failure.path}: the kernel refuses the value", "give one that it takes")
    return HostError(f"cannot set sysctl {failure.path}: {failure.message}", errno=failure.number)


def _exec_error(failure: Failure) -> NetboxError:
    name = failure.path
    if failure.number != _ENOENT:
        return CommandNotExecutable(f"cannot execute {name!r}: {(failure.message or os.strerror(failure.number)).lower()}")
    if failure.message and failure.message != os.strerror(_ENOENT):
        return CommandNotFound(f"cannot execute {name!r}: {failure.message}")
    if "/" in name:
        return CommandNotFound(f"cannot execute {name!r}: no such file or directory in the sandbox")
    return CommandNotFound(f"cannot execute {name!r}: executable file not found in PATH")
