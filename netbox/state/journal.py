"""The journal: what must be undone, written before it is done.

Rows have an owner (``sandbox:…``, ``network:…``), a scope (``run``: until the sandbox stops; ``sandbox``: until it is removed;
``network``: until the network goes down; ``link``: an unfinished change of the networks or ports of a running sandbox), a kind and plain
arguments.
Undo replays an owner's rows backwards: ``netbox/engine/undo.py``.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol

from netbox.state.database import Database

RUN = "run"
SANDBOX = "sandbox"
NETWORK = "network"
LINK = "link"


class JournalRow(NamedTuple):
    """One thing to undo."""

    seq: int
    owner: str
    scope: str
    kind: str
    args: dict[str, Any]


class Recorder(Protocol):
    """What code that has effects needs of the journal."""

    def record(self, kind: str, **args: Any) -> None:
        """Writes the journal row; the caller has the effect afterwards."""


class Journal:
    """The rows of one owner and scope."""

    def __init__(self, database: Database, owner: str, scope: str) -> None:
        self._database = database
        self.owner = owner
        self.scope = scope

    def record(self, kind: str, **args: Any) -> None:
        """Writes a row: from now on an undo removes what ``kind`` and ``args`` name, whether it was made or not."""
        self._database.change(
            "INSERT INTO journal (owner, scope, kind, args) VALUES (?, ?, ?, ?)", self.owner, self.scope, kind, json.dumps(args)
        )

    def record_all(self, rows: list[tuple[str, dict[str, Any]]]) -> None:
        """Writes several rows in one transaction."""
        with self._database.transaction():
            for kind, args in rows:
                self.record(kind, **args)

    def rows(self) -> list[JournalRow]:
        """The rows, oldest first."""
        found = self._database.query(
            "SELECT seq, owner, scope, kind, args FROM journal WHERE owner = ? AND scope = ? ORDER BY seq", self.owner, self.scope
        )
        return [JournalRow(seq, owner, scope, kind, json.loads(args)) for seq, owner, scope, kind, args in found]

    def forget(self, rows: list[JournalRow]) -> None:
        """Deletes rows that have been undone."""
        with self._database.transaction():
            for row in rows:
                self._database.change("DELETE FROM journal WHERE seq = ?", row.seq)

    def move(self, rows: list[JournalRow], scope: str) -> None:
        """Moves rows to another scope of the same owner."""
        with self._database.transaction():
            for row in rows:
                self._database.change("UPDATE journal SET scope = ? WHERE seq = ?", scope, row.seq)


def of_kind(database: Database, kind: str) -> list[JournalRow]:
    """The rows of one kind, of every owner, oldest first."""
    found = database.query("SELECT seq, owner, scope, kind, args FROM journal WHERE kind = ? ORDER BY seq", kind)
    return [JournalRow(seq, owner, scope, kind, json.loads(args)) for seq, owner, scope, kind, args in found]


def owners(database: Database, scope: str | None = None) -> list[tuple[str, str]]:
    """Every (owner, scope) that has rows, or those of one scope."""
    if scope is not None:
        return [(owner, scope) for (owner,) in database.query("SELECT DISTINCT owner FROM journal WHERE scope = ? ORDER BY owner", scope)]
    return [(owner, scope) for owner, scope in database.query("SELECT DISTINCT owner, scope FROM journal ORDER BY owner, scope")]
