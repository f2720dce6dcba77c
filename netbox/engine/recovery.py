"""Collecting what was left behind: dead sandboxes, orphaned journals and directories, idle networks, unused image layers."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from netbox import names
from netbox.engine import ending, impairing, leftovers, watchers
from netbox.engine.locks import SandboxLock
from netbox.engine.undo import release_cgroup_parent, replay
from netbox.runtime.status import RUNNING, read_status
from netbox.state.journal import LINK, NETWORK, TRACE
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context


START_PATIENCE = 3.0  # seconds


def collect(context: Context) -> list[str]:
    """Everything that ``netbox gc`` does, in order; returns a line for each thing collected.

    Raises:
        CleanupError: something could not be removed.
    """
    _wait_for_starts(context)
    done = ending.recover(context)
    done += impairing.expire_all(context)
    watchers.collect(context.settings)
    done += _orphaned_journals(context)
    done += leftovers.collect(context)
    context.network.ensure_names()
    done += _orphaned_directories(context)
    with context.images.changing():
        done += context.images.gc(layers_in_use(context))
    if context.background is not None:
        context.background.flush()
    done += [f"network {name}" for name in release_networks(context)]
    if context.network.end_idle_names():
        done.append("the name service")
    return done


def release_networks(context: Context) -> list[str]:
    """Takes down the networks that no sandbox uses, and the cgroup above all sandboxes when it is empty; the names of the networks."""
    release_cgroup_parent(context)
    return context.network.release_idle(lambda journal: replay(journal, context))


def layers_in_use(context: Context) -> set[str]:
    """The layer directories of every sandbox, running or not."""
    return {layer for row in context.store.sandboxes() for layer in row.image["layers"]}


def _wait_for_starts(context: Context) -> None:
    """Waits a moment for starts and ends under way: a monitor whose engine was just killed still holds the lock while it aborts."""
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline and any(_is_under_way(context, row) for row in context.store.sandboxes()):
        time.sleep(0.01)


def _is_under_way(context: Context, row: SandboxRow) -> bool:
    if row.state not in ending.ACTIVE or not ending.is_alive(context, row):
        return False
    status = read_status(context.settings.sandbox_run(row.id))
    return row.state != "running" or status is None or status.state != RUNNING


def _orphaned_journals(context: Context) -> list[str]:
    """Rows whose sandbox is gone: an undo failed after the record went, or was killed just then."""
    store = context.store
    owners = store.journal_owners()  # first: a sandbox comes together with its rows, so those of one that is just being made have a record
    known = {names.sandbox_owner(row.id): row for row in store.sandboxes()}
    done = []
    for owner, scope in owners:
        if scope in (NETWORK, TRACE):
            continue  # release_networks and leftovers see to them, under their locks
        if scope == LINK and owner in known:
            continue  # ending.recover has seen to them, or somebody is at work
        row = known.get(owner)
        if row is None:
            rows = store.journal(owner, scope).rows()
            replay(store.journal(owner, scope), context)
            done += [f"{row.kind} of {owner}" for row in rows]
        elif scope == "run" and row.state not in ending.ACTIVE:
            with _locked(context, row.id) as free:
                if free:
                    replay(store.journal(owner, scope), context)
                    done.append(f"what an earlier clean-up of {row.name} could not remove")
    return done


def _orphaned_directories(context: Context) -> list[str]:
    """Run directories without a sandbox: a start was killed between its first mkdir and its first record."""
    parent = f"{context.settings.run}/sandboxes"
    if not os.path.isdir(parent):
        return []
    known = {os.path.basename(context.settings.sandbox_run(row.id)): row for row in context.store.sandboxes()}
    done = []
    for name in sorted(os.listdir(parent)):
        if name in known:
            continue
        lock = SandboxLock.acquire(f"{parent}/{name}")
        if lock is None:
            continue  # a start is under way
        with lock:
            # Under the lock: the start that made the directory may have recorded its sandbox in between.
            if not any(os.path.basename(context.settings.sandbox_run(row.id)) == name for row in context.store.sandboxes()):
                ending.remove_run_directory(f"{parent}/{name}")
                done.append(f"run directory {name}")
    return done


class _locked:
    """``with _locked(context, id) as free:`` holds the sandbox's lock inside if it was free."""

    def __init__(self, context: Context, sandbox_id: str) -> None:
        self._context, self._sandbox_id = context, sandbox_id
        self._lock: SandboxLock | None = None

    def __enter__(self) -> bool:
        self._lock = SandboxLock.acquire(self._context.settings.sandbox_run(self._sandbox_id))
        return self._lock is not None

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            ending.discard_run_directory(self._context, self._sandbox_id)
            self._lock.release()
