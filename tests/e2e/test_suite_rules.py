"""The rules of a strict run hold: nothing is skipped unseen, no run is empty, the machine stays as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import CHECKOUT

PASSING = "def test_a(): pass\n"
SKIPPING = "import pytest\ndef test_a(): pass\n@pytest.mark.skip(reason='no')\ndef test_b(): pass\n"
SKIPPED_MODULE = "import pytest\npytest.skip('no', allow_module_level=True)\n"
XFAILING = "import pytest\n@pytest.mark.xfail\ndef test_a(): assert False\n"
CHANGING = "import subprocess\ndef test_a(): subprocess.run(['ip', 'link', 'add', 'nbtest', 'type', 'bridge'], check=True)\n"
EMPTY = ""


def _run(directory: Path, code: str, *options: str, strict: bool = True) -> tuple[int, str]:
    (directory / "test_inner.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NETBOX", "CI"))}
    environment["PYTHONPATH"] = str(CHECKOUT)
    if strict:
        environment["NETBOX_NO_SKIP"] = "1"
    command = [sys.executable, "-m", "pytest", "-c", str(CHECKOUT / "pyproject.toml"), "-p", "tests.conftest", *options, str(directory)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("distributed", [(), ("-n", "2")], ids=["one", "two-workers"])
@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (PASSING, 0, "1 passed"),
        (SKIPPING, 1, "tests that did not run fail a strict run"),
        (SKIPPED_MODULE, None, "tests that did not run fail a strict run"),
        (XFAILING, 1, "tests that did not run fail a strict run"),
        (EMPTY, 5, "no tests ran"),
        (CHANGING, 1, "+ link: nbtest"),
    ],
    ids=["passing", "skipping", "skipped-module", "xfailing", "empty", "changing-the-machine"],
)
@pytest.mark.usefixtures("private_host")
def test_strict(distributed: tuple[str, ...], code: str, exit_code: int | None, words: str, tmp_path: Path) -> None:
    try:
        found, output = _run(tmp_path, code, *distributed)
    finally:
        subprocess.run(["ip", "link", "del", "nbtest"], check=False, stderr=subprocess.DEVNULL)
    assert words in output
    assert found == exit_code if exit_code is not None else found != 0, output


@pytest.mark.parametrize("code", [SKIPPING, XFAILING], ids=["skipping", "xfailing"])
def test_a_person_may_skip(code: str, tmp_path: Path) -> None:
    assert _run(tmp_path, code, strict=False)[0] == 0
