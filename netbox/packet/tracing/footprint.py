"""What a trace changes on the host beyond its own descriptors, and how that is undone.

The legacy tables' trace records go where ``net.netfilter.nf_log.2`` says, a setting of the network namespace that all who trace share. So
it is journaled once, and whoever traces holds a shared lock: the last one to leave puts it back, and after a kill the next ``netbox gc`` or
trace does. In a sandbox's namespace the last one puts it back too, but nothing is journaled: it goes with the namespace. Whoever traces
there has a socket whose abstract name (unix(7)) tells the others what the value was before. An instance of tracefs is journaled like the
host's setting.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

from netbox.engine import leftovers
from netbox.engine.context import Context
from netbox.errors import HostError, Unsupported
from netbox.kernel import log_group, sysctl
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rule_trace import LOG_SYSCTL, LOG_TO_NETLINK, has_legacy_tables
from netbox.network.facts import boot_id
from netbox.settings import Settings

FAMILIES = (4, 6)
_CLAIM = "netbox-trace"


class _Use(NamedTuple):
    """A setting of a sandbox's namespace that this process needs, what it was before, and the socket that says so."""

    netns: int
    name: str
    old: str
    claim: socket.socket


class Footprint:
    """``host`` is the inode number of the host's namespace. Leaving the block undoes what nobody else needs."""

    def __init__(self, settings: Settings, host: int) -> None:
        self._settings = settings
        self._context: Context | None = None
        self._host = host
        self._lock: int | None = None
        self._sandboxes: list[_Use] = []

    def record(self, kind: str, **args: object) -> None:
        """Journals what is about to be made."""
        leftovers.journal(self._share()).record(kind, **args)

    def _share(self) -> Context:
        if self._context is None:
            self._lock = leftovers.share(self._settings)
            self._context = Context(self._settings)
        return self._context

    def route_log(self, netns_fd: int, families: Iterable[int] = FAMILIES) -> bool:
        """Routes the log of a namespace that has legacy tables to netlink; whether it has any. Raises ``HostError``."""
        with inside_netns(netns_fd):
            wanted = [family for family in families if has_legacy_tables(family)]
            if wanted:
                log_group.load_module()
            for family in wanted:
                self._route(netns_fd, LOG_SYSCTL[family])
        return bool(wanted)

    def _route(self, netns_fd: int, name: str) -> None:
        if os.fstat(netns_fd).st_ino == self._host:
            self._share()  # before the look: the last one to leave puts it back under the same lock
            old = sysctl.read(name)
            if old == LOG_TO_NETLINK:
                return
            self.record("sysctl", name=name, old=old, boot_id=boot_id())
            sysctl.write(name, LOG_TO_NETLINK)
            return
        with self._locked():  # nobody else puts it back meanwhile
            old = next(_claimed(name), "") or sysctl.read(name)
            if old != LOG_TO_NETLINK:
                self._sandboxes.append(_Use(os.dup(netns_fd), name, old, _claim(name, old)))
                sysctl.write(name, LOG_TO_NETLINK)

    def forget(self, netns: int) -> None:
        """Puts back what was changed in a sandbox's namespace, and lets go of it."""
        for use in [use for use in self._sandboxes if os.fstat(use.netns).st_ino == netns]:
            self._sandboxes.remove(use)
            try:
                with self._locked(), inside_netns(use.netns):
                    use.claim.close()
                    if next(_claimed(use.name), None) is None:
                        sysctl.write(use.name, use.old)
            except (HostError, Unsupported, OSError):
                pass  # the namespace is on its way out
            finally:
                use.claim.close()
                os.close(use.netns)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the settings of sandboxes' namespaces. A lock on a namespace itself could be held by what runs in it."""
        os.makedirs(self._settings.run, mode=0o755, exist_ok=True)
        lock = os.open(f"{self._settings.run}/trace-settings.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def close(self) -> None:
        """Puts back what nobody else needs."""
        for netns in {os.fstat(use.netns).st_ino for use in self._sandboxes}:
            self.forget(netns)
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None
        if self._context is not None:
            leftovers.collect(self._context)
            self._context.close()
            self._context = None

    def __enter__(self) -> Footprint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _claim(name: str, old: str) -> socket.socket:
    """In the calling thread's namespace: says that this process needs a setting, whose value was ``old``."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    claim.bind(f"\0{_CLAIM}/{name}/{old}/{os.urandom(8).hex()}")
    return claim


def _claimed(name: str) -> Iterator[str]:
    """What a setting of the calling thread's namespace was before, once for each who needs it as it is now."""
    with open("/proc/thread-self/net/unix", encoding="utf-8", errors="replace") as file:
        for line in file:
            kind, *parts = line.split()[-1].split("/")
            if kind == f"@{_CLAIM}" and len(parts) == 3 and parts[0] == name:
                yield parts[1]
