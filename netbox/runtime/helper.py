"""A monitor or an exec process on its way: started before it is known what it shall do, so that it loads meanwhile."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING

from netbox.errors import NetboxError
from netbox.runtime import interpreter

if TYPE_CHECKING:
    from netbox.runtime.spawner import Spawner

_PATIENCE = 10.0


class Helper:
    """The caller's end of its channel; its ``pid`` too, when it is a child of this process. Whoever takes it sends START, or ends it."""

    def __init__(self, kind: str, channel: socket.socket, pid: int | None = None) -> None:
        self.kind = kind
        self.channel = channel
        self.pid = pid

    @classmethod
    def start(cls, kind: str, spawner: Spawner | None = None) -> Helper:
        """A ``monitor`` or an ``execute_helper``. Does not wait for it. Raises HostError."""
        if spawner is not None:
            return cls(kind, spawner.spawn(kind))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                return cls(kind, ours, interpreter.spawn(kind, theirs.fileno()))
            except NetboxError:
                ours.close()
                raise

    def end(self) -> None:
        """Ends the conversation and waits until the process has closed its end too, which it does last: by exiting."""
        give_up = time.monotonic() + _PATIENCE
        with self.channel as channel:
            try:
                channel.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            poller = select.poll()
            poller.register(channel.fileno(), select.POLLIN)
            while time.monotonic() < give_up:
                if not poller.poll(1000):
                    continue
                try:
                    if not channel.recv(65536):
                        break
                except OSError:
                    break
            else:
                if self.pid is not None:
                    interpreter.kill(self.pid)  # a sandbox's init dies with its monitor
        interpreter.reap(self.pid)
