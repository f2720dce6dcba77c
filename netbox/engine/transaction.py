"""A transaction: effects with a journal row before each, all undone when one of them fails."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from netbox.engine.undo import replay
from netbox.errors import CleanupError
from netbox.state.journal import Journal

if TYPE_CHECKING:
    from netbox.engine.context import Context


class Transaction:
    """``with Transaction(journal, context) as transaction:`` — leaving it by an exception replays the journal backwards.

    The rows stay when it succeeds: they are what the normal end of the sandbox replays.
    """

    def __init__(self, journal: Journal, context: Context) -> None:
        self._journal = journal
        self._context = context

    def record(self, kind: str, **args: Any) -> None:
        """Writes the journal row; the caller has the effect afterwards."""
        self._journal.record(kind, **args)

    def record_all(self, rows: list[tuple[str, dict[str, Any]]]) -> None:
        """Writes several rows at once."""
        self._journal.record_all(rows)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            return
        try:
            replay(self._journal, self._context)
        except CleanupError as failure:
            error.add_note(str(failure))
