"""What traces leave when they are killed: a sysctl of the host's, a tracefs instance. Whoever traces holds a shared lock; nobody holds it
any more once the last one has ended, however it did.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from netbox.engine.undo import replay
from netbox.state.journal import TRACE, Journal

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.settings import Settings

_OWNER = "trace"


def journal(context: Context) -> Journal:
    """The journal of all traces."""
    return context.store.journal(_OWNER, TRACE)


def share(settings: Settings) -> int:
    """Takes the lock together with other traces; the descriptor to close. It goes with the process."""
    descriptor = _open(settings)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def collect(context: Context) -> list[str]:
    """Undoes what traces journaled, unless one is still under way; a line for each thing.

    Raises:
        CleanupError: something could not be undone.
    """
    rows = journal(context).rows()
    if not rows:
        return []
    descriptor = _open(context.settings)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        rows = journal(context).rows()
        replay(journal(context), context)
    finally:
        os.close(descriptor)
    return [f"{row.kind} of a trace" for row in rows]


def _open(settings: Settings) -> int:
    os.makedirs(settings.run, mode=0o755, exist_ok=True)
    return os.open(f"{settings.run}/trace.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
