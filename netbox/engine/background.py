"""What a clean-up need not wait for: deleting a link and taking an idle network down, 15 to 20 ms each, in which the kernel waits for RCU.

The journal rows stay until the work is done, so that a process that is killed in between leaves it to the next netbox command.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import TYPE_CHECKING

from netbox import names
from netbox.engine import ending, undo
from netbox.engine.locks import POLL_INTERVAL, SandboxLock
from netbox.errors import NetboxError
from netbox.state.journal import Journal, JournalRow

if TYPE_CHECKING:
    from netbox.engine.context import Context

PATIENCE = 2.0  # seconds that a sandbox may be held by who settles or starts it

Work = tuple[Journal, JournalRow]


class Background:
    """Undoes deferred rows: at once in a thread of its own, or, for a process that ends soon, in a forked child at ``finish``."""

    kinds = frozenset({"veth"})

    def __init__(self, context: Context, own_thread: bool) -> None:
        self._context = context
        self._own_thread = own_thread
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, journal: Journal, row: JournalRow) -> None:
        """Takes a row over from a replay."""
        self._queue.put((journal, row))
        if self._own_thread:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="netbox-clean-up", daemon=True)
                    self._thread.start()

    def flush(self) -> None:
        """Returns when everything taken over so far is undone."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
                thread.join()
        while not self._queue.empty():
            self._undo(self._queue.get())

    def finish(self) -> None:
        """Undoes the rest and takes idle networks down: before it returns, or in a child that a short-lived process leaves behind."""
        if self._context.has_used("cgroups"):
            undo.release_cgroup_parent(self._context)
        if not self._context.has_used("network"):
            return  # no network was used or left, so none can have become idle
        if self._own_thread:
            self.flush()
            self._release_networks()
        elif not self._queue.empty() or self._context.network.has_idle():
            self._finish_in_child()

    def _finish_in_child(self) -> None:
        """Forked, so that nothing is loaded again; twice, so that no zombie stays. The caller has no threads whose locks could be held."""
        # An open sqlite database must not cross a fork: the child's rows would go to a log that this process deletes at its end
        # (https://sqlite.org/howtocorrupt.html).
        self._context.store.close()
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        try:
            if os.fork() == 0:
                os.setsid()
                null = os.open(os.devnull, os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(null, fd)  # whoever reads our output shall not wait for this process
                self.flush()
                self._release_networks()
        except Exception:  # noqa: BLE001 — the top of a process; what failed stays in the journal for the next command
            pass
        finally:
            os._exit(0)

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            if work is None:
                self._context.store.close()
                return
            self._undo(work)

    def _undo(self, work: Work | None) -> None:
        if work is None:
            return
        journal, row = work
        try:
            self._undo_locked(journal, row)
        except NetboxError:
            pass  # the row stays in the journal: gc tries again and reports

    def _undo_locked(self, journal: Journal, row: JournalRow) -> None:
        """Undoes a row under the sandbox's lock: started again meanwhile, it has a new link of the same name. That start undoes the row
        itself, and then there is nothing to do.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(entry.seq == row.seq for entry in journal.rows()):
            sandbox_id = self._sandbox_id(journal.owner)
            if sandbox_id is None:
                undo.replay_rows(journal, [row], self._context)
                return
            lock = SandboxLock.acquire(self._context.settings.sandbox_run(sandbox_id))
            if lock is None:
                time.sleep(POLL_INTERVAL)
                continue
            with lock:
                if any(entry.seq == row.seq for entry in journal.rows()):
                    undo.replay_rows(journal, [row], self._context)
                ending.discard_run_directory(self._context, sandbox_id)
            return

    def _sandbox_id(self, owner: str) -> str | None:
        """The sandbox of a journal; ``None`` when it was removed."""
        return next((row.id for row in self._context.store.sandboxes() if names.sandbox_owner(row.id) == owner), None)

    def _release_networks(self) -> None:
        self._context.network.release_idle(lambda journal: undo.replay(journal, self._context))
