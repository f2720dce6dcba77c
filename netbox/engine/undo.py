"""Undo: one registry of how each kind of thing is removed, and the replay of a journal.

Normal end, failed start and recovery after a crash all come through ``replay``; there is no second removal path.
Every handler is idempotent: "already gone" is success.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from netbox.errors import CleanupError, NetboxError
from netbox.state.journal import Journal, JournalRow

if TYPE_CHECKING:
    from netbox.engine.context import Context

DIRECTORY_ATTEMPTS = 20

Handler = Callable[["Context", dict[str, Any]], None]


def replay(journal: Journal, context: Context) -> None:
    """Undoes an owner's rows, last first. Every row is tried; those that fail stay in the journal.

    Rows that nobody need wait for go to the context's background, if it has one.

    Raises:
        CleanupError: some rows failed; the message names each.
    """
    rows = list(reversed(journal.rows()))
    background = context.background
    if background is not None:
        for row in rows:
            if row.kind in background.kinds:
                background.add(journal, row)
        rows = [row for row in rows if row.kind not in background.kinds]
    replay_rows(journal, rows, context)


def replay_rows(journal: Journal, rows: list[JournalRow], context: Context) -> None:
    """Undoes these rows in the order given.

    Raises:
        CleanupError: as ``replay``.
    """
    undone: list[JournalRow] = []
    failures: list[str] = []
    for row in rows:
        try:
            handler(row.kind)(context, row.args)
        except Exception as error:  # noqa: BLE001 — undo goes on whatever one step does; the failure is reported and its row kept
            failures.append(f"{row.kind} {_subject(row)}: {_reason(error)}")
        else:
            undone.append(row)
    journal.forget(undone)
    if failures:
        raise CleanupError(f"cannot clean up {journal.owner}: {'; '.join(failures)}", "mend the cause and run 'netbox gc'")


def handler(kind: str) -> Handler:
    """What removes things of this kind."""
    if kind in _HANDLERS:
        return _HANDLERS[kind]
    from netbox.network import undo as network_undo  # loads nothing heavy by itself, but only network rows need it

    network_handler = network_undo.HANDLERS[kind]
    return lambda context, args: network_handler(context.network_undo, args)


def _subject(row: JournalRow) -> str:
    return ", ".join(f"{value}" for value in row.args.values() if isinstance(value, str | int))


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, NetboxError) else f"{error.__class__.__name__}: {error}"


def _remove_directory(context: Context, args: dict[str, Any]) -> None:
    path = os.path.abspath(args["path"])
    allowed = (context.settings.root + "/", context.settings.run + "/")
    if not path.startswith(allowed):
        raise NetboxError(f"{path} is not below {context.settings.root} or {context.settings.run}")
    for attempt in range(DIRECTORY_ATTEMPTS):
        try:
            shutil.rmtree(path, onerror=_ignore_missing)
            return
        except OSError as error:
            # Another process that asks for the sandbox's lock makes its file anew, and then sees that the sandbox is gone.
            if error.errno != errno.ENOTEMPTY or attempt == DIRECTORY_ATTEMPTS - 1:
                raise


def _ignore_missing(_function: object, _path: str, details: Any) -> None:
    error = details[1]
    if not isinstance(error, FileNotFoundError):
        raise error


def _remove_cgroup(context: Context, args: dict[str, Any]) -> None:
    manager = context.cgroups
    path = args["path"]
    if manager.exists(path):
        manager.kill(path)
        manager.remove(path, parents=False)  # see release_cgroup_parent


def release_cgroup_parent(context: Context) -> None:
    """Removes the cgroup above all sandboxes when none is left: not after each one, as making it anew costs more than the sandbox's own."""
    context.cgroups.remove_empty(context.settings.cgroup_parent)


def _remove_mount(_context: Context, args: dict[str, Any]) -> None:
    from netbox.kernel import mounts

    mounts.unmount_tree(args["path"])


def _release_id_range(context: Context, args: dict[str, Any]) -> None:
    context.store.release_id_range(args["sandbox_id"])


def _delete_row(context: Context, args: dict[str, Any]) -> None:
    context.store.delete_sandbox(args["sandbox_id"])


def _reroute(context: Context, args: dict[str, Any]) -> None:
    from netbox.engine import connecting

    connecting.reroute(context, args)


def _republish(context: Context, args: dict[str, Any]) -> None:
    from netbox.engine import publishing

    publishing.agree(context, args)


_HANDLERS: dict[str, Handler] = {
    "directory": _remove_directory,
    "cgroup": _remove_cgroup,
    "mount": _remove_mount,
    "id_range": _release_id_range,
    "sandbox": _delete_row,
    "reroute": _reroute,
    "republish": _republish,
}
