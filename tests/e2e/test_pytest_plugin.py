"""The pytest plugin, in real pytest runs of its own: the documented examples, clean-up after failures and kills, no root."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.captures import tshark
from tests.support.cli import Cli
from tests.support.documents import Example, examples
from tests.support.waiting import wait_until

DOCUMENTED = examples("pytest.md")

FAILING = """
def test_it_fails(netbox_sandbox):
    from netbox.testing import wait_for_log
    box = netbox_sandbox("busybox", "sh", "-c", "echo written-by-the-sandbox; sleep 60", name="of-a-failing-test")
    wait_for_log(box, "written-by-the-sandbox", 60)
    assert False

def test_start_fails(netbox_sandbox):
    netbox_sandbox("busybox", "no-such-command", name="never-started")

def test_nothing_is_there(netbox_engine):
    assert netbox_engine.list(all=True) == []
"""

UNREACHABLE = """
import pytest

@pytest.fixture
def boxes(netbox_sandbox):
    return [netbox_sandbox("busybox", "sleep", "60", name=name) for name in ("client", "server")]

def test_it_is_not_there(boxes, assert_reachable):
    assert_reachable(*boxes, tcp=80, timeout=0)

def test_it_is_there(boxes, assert_blocked):
    assert_blocked(*boxes, timeout=20)
"""

SLEEPING = """
import pathlib, time

def test_it_is_killed(netbox_sandbox):
    pathlib.Path("started").write_text(netbox_sandbox("busybox", "sleep", "600", name="orphan").id)
    time.sleep(600)
"""

PASSING = """
def test_it_runs(netbox_sandbox):
    assert netbox_sandbox("busybox", "true").wait(timeout=60) == 0
"""


CAPTURING = """
def test_it_passes(capture, netbox_sandbox):
    netbox_sandbox("busybox", "true", name="of-a-passing-test").wait(timeout=60)

def test_it_fails(capture, netbox_sandbox):
    box = netbox_sandbox("busybox", "sleep", "60", name="caught")
    assert box.exec("ping", "-c", "1", "-W", "30", "-w", "30", box.network_plan["endpoints"][0]["gateway"]).exit_code != 0
"""


class InnerPytest:
    """Runs pytest on the text of a test module, with no plugin but ours."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = {**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "CI", "NETBOX_NO_SKIP", "NETBOX_TEST_COUNTS"):
            self.environment.pop(name, None)
        (directory / "pytest.ini").write_text("[pytest]\naddopts = -p netbox.pytest_plugin -p no:cacheprovider\n")

    def popen(self, code: str, *options: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        (self.directory / "test_inner.py").write_text(code)
        command = [*prefix, sys.executable, "-m", "pytest", *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.directory, env=self.environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def __call__(self, code: str, *options: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
        with self.popen(code, *options, prefix=prefix) as process:
            try:
                output, _ = process.communicate(timeout=100)
            finally:
                process.kill()
        return process.returncode, output


@pytest.fixture
def inner(cli: Cli, tmp_path: Path) -> InnerPytest:
    return InnerPytest(tmp_path, cli.environment())


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("example", DOCUMENTED, ids=[f"{example.heading.lower().replace(' ', '-')}" for example in DOCUMENTED])
def test_documented_example(example: Example, inner: InnerPytest) -> None:
    tests = len(re.findall(r"^def test_", example.code, re.MULTILINE))
    code, output = inner(example.code, "-W", "error")
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None, output
    assert int(passed[1]) >= tests >= 1


def test_a_failing_test_shows_the_output_and_leaves_nothing(inner: InnerPytest, cli: Cli) -> None:
    code, output = inner(FAILING)
    assert code == 1, output
    assert "2 failed, 1 passed" in output
    assert "netbox logs of of-a-failing-test" in output
    assert "written-by-the-sandbox" in output
    assert cli("ps", "-aq").stdout == ""


def test_the_capture_of_a_failed_test_is_kept(inner: InnerPytest, tmp_path: Path) -> None:
    code, output = inner(CAPTURING, f"--basetemp={tmp_path}/base")
    assert code == 1, output
    assert "1 failed, 1 passed" in output
    (kept,) = re.findall(r"^(/.+/capture\.pcapng) \(", output, re.MULTILINE)
    assert [str(path) for path in tmp_path.rglob("*.pcapng")] == [kept]
    rows = tshark(kept, "frame.interface_name", "ip.dst_host", filter="icmp.type == 8")
    assert rows
    assert {row[0] for row in rows} == {"caught/eth0", "caught/host-end"}


def test_a_failed_assertion_says_why(inner: InnerPytest) -> None:
    code, output = inner(UNREACHABLE)
    assert code == 1, output
    assert "2 failed" in output, output
    assert "AssertionError: client cannot reach server:80: nothing in server listens on TCP port 80" in output
    assert "start the program in server that should listen on port 80" in output
    assert "AssertionError: client reaches server" in output


def test_a_killed_run_is_cleaned_up_by_the_next(inner: InnerPytest, cli: Cli) -> None:
    cli("create", "--name", "of-the-user", "busybox", "true")
    with inner.popen(SLEEPING) as process:
        wait_until(
            lambda: (inner.directory / "started").exists() or process.poll() is not None, "the sandbox of the inner test", timeout=60
        )
        os.kill(process.pid, signal.SIGKILL)
    assert "orphan" in cli("ps").stdout
    code, output = inner(PASSING)
    assert code == 0, output
    names = cli("ps", "-a", "--format", "json").stdout
    assert "orphan" not in names
    assert "of-the-user" in names
    cli("rm", "of-the-user")


@pytest.mark.parametrize(("ini", "code", "words"), [("true", 1, "1 error"), ("false", 0, "1 skipped")])
def test_without_root(ini: str, code: int, words: str, inner: InnerPytest) -> None:
    prefix = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
    found, output = inner(PASSING, "-rs", "-o", f"netbox_require_root={ini}", prefix=prefix)
    assert (found, words in output) == (code, True), output
    assert "netbox needs root to make sandboxes" in output


def test_the_fixtures_are_listed_with_their_documentation(inner: InnerPytest) -> None:
    code, output = inner(PASSING, "--fixtures")
    assert code == 0
    for name in ("netbox_engine", "netbox_network", "netbox_sandbox", "capture", "assert_reachable", "assert_blocked"):
        assert re.search(rf"^{name}\b.*\n    \S", output, re.MULTILINE), output
