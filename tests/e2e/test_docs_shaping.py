"""The Python example of the document about shaping runs and prints what it says; its commands take the options that it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.boxes import running
from tests.support.cli import Cli
from tests.support.documents import DOCUMENTS, examples


def test_the_python_example(cli: Cli, tmp_path: Path) -> None:
    (example,) = examples("shaping.md")
    script = tmp_path / "example.py"
    script.write_text(example.code)
    command = [sys.executable, "-W", "error", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, env=cli.environment(), check=False)
    assert (result.returncode, result.stdout) == (0, example.output), result.stderr


def test_the_commands(cli: Cli) -> None:
    lines = re.findall(r"^\$ netbox (impair web .*)$", (DOCUMENTS / "shaping.md").read_text(), re.MULTILINE)
    commands = [line.split() for line in lines if "--delay" not in line]
    assert len(commands) >= 5
    with running(cli, "db"), running(cli, "cache"), running(cli, "web"):
        for command in commands:
            cli(*command)
        assert cli("impair", "web").stdout == "nothing is in force\n"
