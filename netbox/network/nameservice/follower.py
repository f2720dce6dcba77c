"""Noticing that dockerd has started, and starting the command that lets netbox's networks pass its rules (``netbox.network.dockerd``)."""

from __future__ import annotations

import os
import selectors

from netbox.kernel import nftables_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHAIN = "DOCKER-USER"
_NULL = "/dev/null"


class Follower:
    """Runs a command, once at a time, whenever somebody makes dockerd's chain."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._selector: selectors.BaseSelector | None = None
        self._running: tuple[int, int] | None = None  # pid, pidfd
        self._again = False

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Listens from now on. Where the kernel has no nf_tables, there is nothing to hear. A process that has taken over starts anew."""
        self._selector, self._running, self._again = selector, None, False
        try:
            sock = nftables_events.subscribe()
        except OSError:
            return

        def on_change(_events: int) -> None:
            if nftables_events.was_made(sock, CHAIN):
                self.follow()

        selector.register(sock, selectors.EVENT_READ, on_change)

    def follow(self) -> None:
        """Starts the command; when it runs already, once more afterwards."""
        assert self._selector is not None
        if self._running is not None:
            self._again = True
            return
        actions = [(os.POSIX_SPAWN_OPEN, fd, _NULL, os.O_RDWR, 0) for fd in (0, 1, 2)]
        try:
            pid = os.posix_spawn(self._command[0], self._command, self._environment, file_actions=actions, setsid=True)
        except OSError:
            return  # the interpreter is gone: the next netbox command, of whatever version, does it
        self._running = pid, os.pidfd_open(pid)
        self._selector.register(self._running[1], selectors.EVENT_READ, self._on_end)

    def _on_end(self, _events: int) -> None:
        assert self._selector is not None
        assert self._running is not None
        pid, pidfd = self._running
        self._selector.unregister(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)
        self._running = None
        if self._again:
            self._again = False
            self.follow()
