"""Replaying a journal: order, failures, what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netbox.engine import undo
from netbox.engine.context import Context
from netbox.engine.transaction import Transaction
from netbox.errors import CleanupError
from netbox.settings import Settings

Calls = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Settings(root=str(tmp_path / "root"), run=str(tmp_path / "run")))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made: Calls = []

    def handler(kind: str) -> undo.Handler:
        def undo_it(_context: Context, args: dict[str, Any]) -> None:
            made.append((kind, args))
            if args.get("fail"):
                raise OSError(16, "Device or resource busy")

        return undo_it

    monkeypatch.setattr(undo, "handler", handler)
    return made


def test_a_failed_transaction_is_undone_backwards(context: Context, calls: Calls) -> None:
    journal = context.store.journal("sandbox:a", "run")
    with pytest.raises(RuntimeError), Transaction(journal, context) as transaction:
        transaction.record("one", n=1)
        transaction.record("two", n=2)
        raise RuntimeError
    assert calls == [("two", {"n": 2}), ("one", {"n": 1})]
    assert journal.rows() == []


def test_a_successful_transaction_keeps_its_rows(context: Context, calls: Calls) -> None:
    journal = context.store.journal("sandbox:a", "run")
    with Transaction(journal, context) as transaction:
        transaction.record("one", n=1)
    assert calls == []
    assert [row.kind for row in journal.rows()] == ["one"]


def test_every_step_is_tried_and_what_failed_stays(context: Context, calls: Calls) -> None:
    journal = context.store.journal("sandbox:a", "run")
    journal.record_all([("one", {}), ("two", {"fail": True, "path": "/x"}), ("three", {})])
    with pytest.raises(CleanupError, match="two .*/x: OSError.*busy"):
        undo.replay(journal, context)
    assert [kind for kind, _ in calls] == ["three", "two", "one"]
    assert [row.kind for row in journal.rows()] == ["two"]


def test_an_undo_that_fails_is_told_beside_the_first_error(context: Context, calls: Calls) -> None:
    journal = context.store.journal("sandbox:a", "run")
    with pytest.raises(RuntimeError) as caught, Transaction(journal, context) as transaction:
        transaction.record("one", fail=True)
        raise RuntimeError("first")
    assert "cannot clean up sandbox:a" in caught.value.__notes__[0]


def test_directories_outside_are_never_removed(context: Context, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    journal = context.store.journal("sandbox:a", "sandbox")
    journal.record("directory", path=f"{context.settings.root}/../precious")
    with pytest.raises(CleanupError, match="is not below"):
        undo.replay(journal, context)
    assert precious.is_dir()


def test_a_directory_that_is_gone_is_fine(context: Context) -> None:
    journal = context.store.journal("sandbox:a", "sandbox")
    journal.record("directory", path=f"{context.settings.root}/sandboxes/x")
    undo.replay(journal, context)
    assert journal.rows() == []
