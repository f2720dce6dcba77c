"""The end of a sandbox: signals, the final record, the replay of its journal, and recovery of what died without one.

Whoever holds the sandbox's lock may settle it: the monitor is dead then, or never was. Settling twice is harmless.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import time
from typing import TYPE_CHECKING

from netbox import names
from netbox.engine import events, locks
from netbox.engine.locks import SandboxLock
from netbox.engine.undo import replay
from netbox.errors import Conflict, NotFound, WrongState
from netbox.runtime import protocol
from netbox.runtime.client import connect
from netbox.runtime.status import Status, read_status
from netbox.runtime.status_file import remove_status
from netbox.state.journal import LINK, RUN, SANDBOX
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.runtime.client import Attachment

CREATING = "creating"  # by ``run``: until it runs, its failure leaves no record
ENDING = "ending"  # the end is recorded, its clean-up is not complete
ACTIVE = (CREATING, "starting", "running", ENDING)  # states in which a sandbox whose lock is free is a dead one
LOCK_TIMEOUT = 10.0  # seconds that a verb waits for another process to finish with the sandbox
_LOOK_AGAIN = 0.1  # seconds
KILLED = 128 + signal.SIGKILL


def is_alive(context: Context, row: SandboxRow) -> bool:
    """Whether a monitor, or an engine that starts it, holds the sandbox."""
    return not locks.is_free(context.settings.sandbox_run(row.id))


def settle(context: Context, sandbox_id: str, timeout: float = LOCK_TIMEOUT, started_at: float | None = None) -> None:
    """Waits until nobody holds the sandbox, then records its end and undoes its run; removes it if it was started with ``--rm``.

    With ``started_at``, the start of the run that has ended, a later run is left alone: who started it has settled the former.

    Raises:
        Conflict: somebody held it for ``timeout`` seconds.
        CleanupError: some undo steps failed.
    """
    directory = context.settings.sandbox_run(sandbox_id)
    deadline = time.monotonic() + timeout
    while True:
        row = context.store.sandbox(sandbox_id)
        if row is None or _started_again(row, started_at):
            return
        lock = SandboxLock.acquire(directory, max(0.0, min(_LOOK_AGAIN, deadline - time.monotonic())))
        if lock is not None:
            break
        if time.monotonic() >= deadline:
            raise Conflict(f"sandbox {names.short_id(sandbox_id)} has ended but is still held", "run 'netbox gc' in a moment")
    with lock:
        try:
            settle_locked(context, sandbox_id)
        finally:
            discard_run_directory(context, sandbox_id)


def settle_locked(context: Context, sandbox_id: str) -> None:
    """``settle`` for a caller that holds the lock.

    Raises:
        CleanupError: some undo steps failed.
    """
    row = context.store.sandbox(sandbox_id)
    if row is not None and _is_left(context, row):
        remove_locked(context, sandbox_id)
        return
    if row is None or row.state not in ACTIVE:
        return
    journal = context.store.journal(names.sandbox_owner(sandbox_id), RUN)
    status = read_status(context.settings.sandbox_run(sandbox_id)) if row.state == "running" else None
    aborted = status is not None and status.state == "aborted"
    if row.state == "running" and not aborted:
        _record_end(context, row, status)
    try:
        _replay_links(context, sandbox_id)
        replay(journal, context)
    finally:
        if _goes(context, row) or row.state == CREATING or (aborted and row.details.get("first_run")):
            remove_locked(context, sandbox_id)
        else:
            never_ran = row.finished_at is None and (row.state == "starting" or aborted)
            context.store.update_sandbox(sandbox_id, state="created" if never_ran else "exited", pid=None)
            # Tells the monitor, or what comes after it, that nothing is left to settle.
            remove_status(context.settings.sandbox_run(sandbox_id))


def remove_locked(context: Context, sandbox_id: str) -> None:
    """Replays what the sandbox keeps until it is removed, the record last.

    Raises:
        CleanupError: some undo steps failed.
    """
    row = context.store.sandbox(sandbox_id)
    _replay_links(context, sandbox_id)
    replay(context.store.journal(names.sandbox_owner(sandbox_id), RUN), context)
    replay(context.store.journal(names.sandbox_owner(sandbox_id), SANDBOX), context)
    if row is not None:
        events.record(context, row, "destroy")


def remove(context: Context, row: SandboxRow, force: bool = False) -> None:
    """Removes a sandbox and everything that it kept.

    Raises:
        WrongState: it runs and ``force`` is not given.
        CleanupError: some undo steps failed.
    """
    directory = context.settings.sandbox_run(row.id)
    lock = SandboxLock.acquire(directory)
    if lock is None and not force:
        if not _has_ended(context, row):
            raise WrongState(f"cannot remove {row.name}: it runs", f"stop it first, or use 'netbox rm -f {row.name}'")
        lock = locks.acquire_or_conflict(directory, row.name, LOCK_TIMEOUT)  # somebody is just settling it
    elif lock is None:
        # From here on it is removed at its end, whoever sees to that: this process may be killed too.
        context.store.change_spec(row.id, lambda spec: {**spec, "remove": True})
        lock = _kill_until_free(context, row)
    with lock:
        try:
            settle_locked(context, row.id)
            if context.store.sandbox(row.id) is not None:
                remove_locked(context, row.id)
        finally:
            discard_run_directory(context, row.id)


def _kill_until_free(context: Context, row: SandboxRow) -> SandboxLock:
    """Kills what runs until the lock is ours: somebody may be starting the sandbox again just now.

    Raises:
        Conflict: somebody held the sandbox for ``LOCK_TIMEOUT`` seconds in which there was nothing to kill.
    """
    directory = context.settings.sandbox_run(row.id)
    deadline = time.monotonic() + LOCK_TIMEOUT
    while time.monotonic() < deadline:
        running = after_start(context, row)
        if running is not None and send_signal(context, running, signal.SIGKILL, missing_is_fine=True):
            _ends_within(context, running, None)
            deadline = time.monotonic() + LOCK_TIMEOUT
        lock = SandboxLock.acquire(directory, _LOOK_AGAIN)
        if lock is not None:
            return lock
    raise locks.held(row.name)


def stop(context: Context, row: SandboxRow, timeout: float | None = None) -> None:
    """Sends the stop signal, then SIGKILL after ``timeout`` seconds (None: the sandbox's own), and settles. A stopped sandbox is fine; one
    that is just being started is stopped when it runs.
    """
    running = after_start(context, row)
    if running is None:
        return
    row = running
    patience = float(row.spec["stop_timeout"] if timeout is None else timeout)
    manager, path = context.cgroups, context.settings.cgroup(row.id)
    send_signal(context, row, row.spec["stop_signal"], missing_is_fine=True)
    events.record(context, row, "kill", signal=row.spec["stop_signal"])
    if manager.exists(path) and manager.is_frozen(path):
        manager.thaw(path)  # a frozen process takes no signal
    if not _ends_within(context, row, None if patience < 0 else patience):
        send_signal(context, row, signal.SIGKILL, missing_is_fine=True)
        events.record(context, row, "kill", signal=int(signal.SIGKILL))
        _ends_within(context, row, None)
    settle(context, row.id, started_at=row.started_at)
    events.record(context, row, "stop")


def send_signal(context: Context, row: SandboxRow, number: int, missing_is_fine: bool = False) -> bool:
    """Sends a signal to the sandbox's pid 1; one that is just being started gets it when it runs. SIGKILL also reaches a frozen one.
    Returns whether there was a process to send it to.

    Raises:
        WrongState: it does not run.
    """
    after_start(context, row)
    try:
        pidfd = open_pidfd(context, row)
    except WrongState:
        if missing_is_fine:
            return False
        raise
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass  # it ended between the two calls: what was asked for is so
    finally:
        os.close(pidfd)
    manager, path = context.cgroups, context.settings.cgroup(row.id)
    if number == signal.SIGKILL and manager.exists(path) and manager.is_frozen(path):
        manager.thaw(path)
    return True


def open_pidfd(context: Context, row: SandboxRow) -> int:
    """A pidfd of the sandbox's pid 1.

    The monitor writes its status before it reaps: a status that still says "running" after the open proves that the pid was not reused.

    Raises:
        WrongState: it does not run.
    """
    directory = context.settings.sandbox_run(row.id)
    not_running = WrongState(f"{row.name} does not run", f"start it first (netbox start {row.name})")
    status = read_status(directory)
    if status is None or status.state != "running" or status.pid is None or locks.is_free(directory):
        raise not_running
    try:
        pidfd = os.pidfd_open(status.pid)
    except ProcessLookupError as error:
        raise not_running from error
    again = read_status(directory)
    if again is None or again.state != "running" or locks.is_free(directory):
        os.close(pidfd)
        raise not_running
    return pidfd


def open_namespace(context: Context, row: SandboxRow, kind: str) -> int:
    """A file descriptor of a namespace (``net``, ``mnt``, …) of a running sandbox.

    Raises:
        WrongState: it does not run.
    """
    pidfd = open_pidfd(context, row)
    try:
        status = read_status(context.settings.sandbox_run(row.id))
        if status is None or status.pid is None:
            raise WrongState(f"{row.name} does not run")
        namespace = os.open(f"/proc/{status.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        # Still our process after the open? Signal 0 through the pidfd says so.
        signal.pidfd_send_signal(pidfd, 0)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise WrongState(f"{row.name} does not run", f"start it first (netbox start {row.name})") from error
    finally:
        os.close(pidfd)
    return namespace


def wait(context: Context, row: SandboxRow, timeout: float | None = None) -> int | None:
    """Waits for the end of the run that the record speaks of; its exit code, or ``None`` after ``timeout`` seconds.

    One that does not run has ended: the code is that of its last run, also while a restart is under way, as with ``docker wait``. A first
    start that is under way is waited for.

    Raises:
        NotFound: it was removed meanwhile and its exit code is lost.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if row.state != "running":
            row = context.store.sandbox(row.id) or row
        try:
            attachment = connect(context.settings.sandbox_run(row.id))
        except WrongState:
            attachment = None  # it starts, or its monitor has just gone
        try:
            # After the connection: it may be one to the monitor of a later run, or to one that is about to end without a word to us.
            code = _final_code(context, row)
            if code is None and attachment is not None:
                code = _hear_exit(attachment, deadline)
        finally:
            if attachment is not None:
                attachment.close()
        if code is not None:
            return code
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(locks.LONGEST_POLL_INTERVAL)


def _hear_exit(attachment: Attachment, deadline: float | None) -> int | None:
    """The exit code that the monitor tells; ``None`` when it hangs up without (it was killed, or has dropped who reads too slowly), and at
    the deadline.
    """
    poller = select.poll()
    poller.register(attachment, select.POLLIN)
    while True:
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not attachment.pending() and not poller.poll(remaining):
            return None
        frame = attachment.read_frame()
        if frame is None:
            return None
        if frame[0] == protocol.EXIT:
            return int(json.loads(frame[1])["exit_code"])


def _ends_within(context: Context, row: SandboxRow, timeout: float | None) -> bool:
    try:
        return wait(context, row, timeout) is not None
    except NotFound:
        return True  # its clean-up was faster than this process


def recover(context: Context) -> list[str]:
    """Settles every sandbox whose monitor died without a clean-up; returns a line for each.

    Cheap: one lock test per sandbox that is said to run.
    """
    done = []
    for row in context.store.sandboxes():
        if not _is_left(context, row) and (row.state not in ACTIVE or is_alive(context, row)):
            continue
        try:
            settle(context, row.id, timeout=0.0)
        except Conflict:
            continue  # another process collects it
        done.append(f"sandbox {row.name} ({names.short_id(row.id)})")
    return done + _recover_links(context)


def _recover_links(context: Context) -> list[str]:
    if not context.store.journal_owners(LINK):
        return []
    from netbox.engine import connecting

    return connecting.recover(context)


def discard_run_directory(context: Context, sandbox_id: str) -> None:
    """Removes the run directory of a sandbox that is gone: asking for its lock made it again. The caller holds that lock."""
    if context.store.sandbox(sandbox_id) is None:
        remove_run_directory(context.settings.sandbox_run(sandbox_id))


def remove_run_directory(path: str) -> None:
    """Removes a run directory, gone or not. The caller holds the lock in it."""
    shutil.rmtree(path, ignore_errors=True)


def _record_end(context: Context, row: SandboxRow, status: Status | None) -> None:
    code, finished = KILLED, time.time()
    error = "its monitor was killed"
    if status is not None and status.state == "exited" and status.exit_code is not None:
        code, finished, error = status.exit_code, status.finished_at or finished, ""
    oom = _oom_killed(context, row)
    details = {**row.details, "oom_killed": oom}
    with context.store.database.transaction():
        context.store.update_sandbox(
            row.id, state=ENDING, exit_code=code, finished_at=finished, pid=None, error=error or None, details=details
        )
        events.record(context, row, "die", exit_code=code, **({"oom_killed": True} if oom else {}))


def _oom_killed(context: Context, row: SandboxRow) -> bool:
    path = context.settings.cgroup(row.id)
    try:
        return context.cgroups.exists(path) and context.cgroups.oom_killed(path)
    except OSError:
        return False  # the cgroup went away between the two looks


def _final_code(context: Context, row: SandboxRow) -> int | None:
    """The exit code of the run that ``row`` speaks of, ``None`` while it goes on. The order matters: as long as the record knows of no
    later run, the lock and the status that were looked at before it are those of this one.
    """
    alive = is_alive(context, row)
    status = read_status(context.settings.sandbox_run(row.id))
    fresh = context.store.sandbox(row.id)
    if fresh is None or (row.state == "running" and _started_again(fresh, row.started_at)):
        code = context.store.exit_code_since(row.id, row.started_at or row.created_at)
        if code is None:
            raise NotFound(f"{row.name} was removed before its exit code could be read")
        return code
    if fresh.state in (CREATING, "starting"):
        return None if alive and fresh.exit_code is None else fresh.exit_code or 0
    if fresh.state != "running":
        return fresh.exit_code or 0
    if status is not None and status.state in ("exited", "aborted") and status.exit_code is not None:
        return status.exit_code
    return None if alive else KILLED  # the monitor is dead and left no status: it was killed, and its sandbox with it


def _started_again(row: SandboxRow, started_at: float | None) -> bool:
    return started_at is not None and (row.state == "starting" or (row.started_at or 0.0) > started_at)


def runs_since(context: Context, row: SandboxRow, started_at: float | None) -> bool:
    """Whether the sandbox runs, and since a later start than that one; ``None`` for any."""
    fresh = context.store.sandbox(row.id)
    return fresh is not None and fresh.state == "running" and not _has_ended(context, row) and _started_again(fresh, started_at or 0.0)


def _has_ended(context: Context, row: SandboxRow) -> bool:
    """Whether the sandbox is over although somebody holds its lock still."""
    fresh = context.store.sandbox(row.id)
    status = read_status(context.settings.sandbox_run(row.id))
    return (
        fresh is None
        or fresh.state in (ENDING, "exited")
        or (fresh.state == "running" and status is not None and status.state != "running")
    )


def _goes(context: Context, row: SandboxRow) -> bool:
    """Whether the sandbox is removed at its end: not while somebody restarts it."""
    return bool(row.spec["remove"]) and not locks.is_restarting(context.settings.sandbox_run(row.id))


def _is_left(context: Context, row: SandboxRow) -> bool:
    """Whether it was kept at its end for a restart that was killed then."""
    return row.state == "exited" and _goes(context, row)


def _replay_links(context: Context, sandbox_id: str) -> None:
    """An interrupted connect or disconnect: nothing of it outlives the run."""
    journal = context.store.journal(names.sandbox_owner(sandbox_id), LINK)
    replay(journal, context)


def is_starting(context: Context, row: SandboxRow) -> bool:
    """Whether a start of the sandbox is under way: there is nobody yet who could take a signal."""
    if row.state not in (CREATING, "starting", "running") or not is_alive(context, row):
        return False
    return row.state != "running" or read_status(context.settings.sandbox_run(row.id)) is None


def after_start(context: Context, row: SandboxRow) -> SandboxRow | None:
    """The record when no start is under way any more; ``None`` when the sandbox does not run then. What changes a sandbox waits for it.

    Raises:
        Conflict: the start took ``LOCK_TIMEOUT`` seconds.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        fresh = context.store.sandbox(row.id)
        if fresh is None or not is_starting(context, fresh):
            return fresh if fresh is not None and fresh.state in ACTIVE and is_alive(context, fresh) else None
        if time.monotonic() >= deadline:
            raise Conflict(f"{row.name} is still being started after {LOCK_TIMEOUT:g} s", "try again in a moment")
        time.sleep(locks.LONGEST_POLL_INTERVAL)
