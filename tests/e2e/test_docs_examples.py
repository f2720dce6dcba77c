"""Every Python example of the documents runs, and prints what the document says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.documents import Example, examples

API = [*examples("python-api.md"), *examples("probe.md")]


def test_the_document_has_examples() -> None:
    assert len(API) >= 8
    assert sum(example.output is not None for example in API) >= 7


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("example", API, ids=[f"{example.heading.lower().replace(' ', '-')}-{example.line}" for example in API])
def test_python_api_example(example: Example, cli: Cli, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example.code)
    command = [sys.executable, "-W", "error", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, env=cli.environment(), check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    if example.output is not None:
        assert result.stdout == example.output
