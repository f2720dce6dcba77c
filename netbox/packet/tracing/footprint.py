"""What a trace changes on the host beyond its own descriptors, and how that is undone.

The legacy tables' trace records go where ``net.netfilter.nf_log.2`` says, a setting of the network namespace that all who trace share. So
it is journaled once, and whoever traces holds a shared lock: the last one to leave puts it back, and after a kill the next ``netbox gc`` or
trace does. In a sandbox's namespace it is put back too, but not journaled: it goes with the namespace. An instance of tracefs is journaled
in the same way.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from types import TracebackType

from netbox.engine import leftovers
from netbox.engine.context import Context
from netbox.errors import HostError, Unsupported
from netbox.kernel import log_group, sysctl
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rule_trace import LOG_SYSCTL, LOG_TO_NETLINK, has_legacy_tables
from netbox.network.facts import boot_id
from netbox.settings import Settings

FAMILIES = (4, 6)


class Footprint:
    """``host`` is the inode number of the host's namespace. Leaving the block undoes what nobody else needs."""

    def __init__(self, settings: Settings, host: int) -> None:
        self._settings = settings
        self._context: Context | None = None
        self._host = host
        self._lock: int | None = None
        self._sandboxes: list[tuple[int, str, str]] = []

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
                log_group.load()
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
        else:
            old = sysctl.read(name)
            if old == LOG_TO_NETLINK:
                return
            self._sandboxes.append((os.dup(netns_fd), name, old))
        sysctl.write(name, LOG_TO_NETLINK)

    def forget(self, netns: int) -> None:
        """Puts back what was changed in a sandbox's namespace, and lets go of it."""
        for entry in [entry for entry in self._sandboxes if os.fstat(entry[0]).st_ino == netns]:
            self._sandboxes.remove(entry)
            fd, name, old = entry
            try:
                with inside_netns(fd):
                    sysctl.write(name, old)
            except (HostError, Unsupported, OSError):
                pass  # the namespace is on its way out
            finally:
                os.close(fd)

    def close(self) -> None:
        """Puts back what nobody else needs."""
        for netns in {os.fstat(fd).st_ino for fd, _, _ in self._sandboxes}:
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
