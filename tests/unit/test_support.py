"""The pure parts of the test support."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import counts, documents, leaks
from tests.support.waiting import wait_until


def test_the_difference_names_kind_and_direction() -> None:
    before = {"link": {"lo", "eth0"}, "process": {"1: a"}}
    after = {"link": {"lo", "nb1"}, "process": {"2: b"}}
    assert leaks.difference(before, after) == ["+ link: nb1", "- link: eth0", "+ process: 2: b"]
    assert leaks.difference(before, before) == []


def test_files_that_may_stay(tmp_path: Path) -> None:
    for name in ("state.db-wal", "images/busybox/bin/sh", "images/.incoming-1/x", "sandboxes/abc/log", "other"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    kept = re.compile(leaks._KEPT_BELOW_ROOT)
    found = {str(Path(name).relative_to(tmp_path)) for name in leaks.files(tmp_path, kept)}
    assert found == {"images/.incoming-1/x", "sandboxes/abc/log", "sandboxes/abc", "other"}


def test_the_closing_line_is_the_sum() -> None:
    lines = ['{"passed": 2, "failed": 0}', '{"passed": 3, "failed": 1, "skipped": 1}']
    assert counts.closing_line(lines, 61.5).strip("= ") == "1 failed, 5 passed, 1 skipped in 61.50s"
    assert counts.closing_line([], 1).strip("= ") == "no tests ran in 1.00s"


def test_examples_are_found_with_their_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text(
        "# One\n```python\nprint(1)\n```\n```text\n1\n```\n## Two\n\n```ini\nx\n```\n```python\npass\n```\n\n```text\nno\n```\n"
    )
    monkeypatch.setattr(documents, "DOCUMENTS", tmp_path)
    assert documents.examples("a.md") == [
        documents.Example("One", "print(1)\n", 3, "1\n"),
        documents.Example("Two", "pass\n", 14, None),
    ]


def test_waiting_is_bounded() -> None:
    values = iter([0, 0, 7])
    assert wait_until(lambda: next(values)) == 7
    with pytest.raises(AssertionError, match=r"waited 0\.05 s in vain for the sun; last value: \[\]"):
        wait_until(list, "the sun", timeout=0.05)
