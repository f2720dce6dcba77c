"""Fixtures of the whole test suite, and the rules of a strict run.

``NETBOX_NO_SKIP=1`` (``scripts/test`` sets it) or ``CI=true`` makes a run strict: a skipped or expectedly failing test fails it, and so
does a change of the machine itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import counts, leaks
from tests.support.cli import Cli
from tests.support.host import Mark, Neighbour, PrivateHost
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until as _wait_until

_TESTS = Path(__file__).parent
_NOT_RUN: list[str] = []
_MACHINE: list[str] = []


def _strict() -> bool:
    return os.environ.get("NETBOX_NO_SKIP") == "1" or os.environ.get("CI", "").lower() in ("1", "true")


@pytest.fixture(scope="session")
def _mark() -> Iterator[Mark]:
    mark = Mark()
    yield mark
    mark.close()


@pytest.fixture
def private_host(request: pytest.FixtureRequest) -> Iterator[PrivateHost]:
    """The test process is in its own mount and network namespaces; afterwards nothing may be left in them.

    lo is up, /run and ``NETBOX_ROOT`` are a fresh tmpfs each, /sys shows the private links; ``NETBOX_ROOT``, ``NETBOX_RUN`` and
    ``NETBOX_CGROUP`` are set.
    """
    if os.geteuid() != 0:
        pytest.fail("this test needs root (sudo scripts/test)", pytrace=False)
    host = PrivateHost(request.getfixturevalue("_mark").path)
    host.enter()
    try:
        yield host
        left = host.leftovers()
    finally:
        host.leave()
    if left:
        pytest.fail("left behind (+) or taken away (-):\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def outside(private_host: PrivateHost) -> Iterator[Neighbour]:
    """A machine beside the private host on a LAN, which is its default gateway."""
    neighbour = Neighbour()
    yield neighbour
    neighbour.close()


@pytest.fixture
def cli(private_host: PrivateHost) -> Cli:
    """Runs ``netbox`` on the private host."""
    return Cli()


@pytest.fixture
def terminal(private_host: PrivateHost, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens real terminals (tmux windows) on the private host: ``terminal(rows=24, columns=80, command=["sh"])``."""
    opened: list[Terminal] = []

    def open_terminal(**options: object) -> Terminal:
        directory = tmp_path / f"terminal{len(opened)}"
        directory.mkdir()
        opened.append(Terminal(directory, **{"env": Cli().environment(), **options}))  # type: ignore[arg-type]
        return opened[-1]

    yield open_terminal
    for window in opened:
        window.close()


@pytest.fixture
def wait_until() -> Callable[..., object]:
    """Bounded waiting for a condition: ``wait_until(lambda: …, "what", timeout=10)``."""
    return _wait_until


def pytest_configure(config: pytest.Config) -> None:
    """Names the run, for its workers too. Examples of property tests are the same in every run, however slow the machine is; nothing is
    written into the checkout.
    """
    # A shell ignores SIGINT for what it starts in the background, and so would every command that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    leaks.run_prefix()
    try:
        import hypothesis
    except ImportError:
        return
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("netbox", database=None, deadline=None, derandomize=True, suppress_health_check=slow)
    hypothesis.settings.load_profile("netbox")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests against the kernel fail, rather than skip, without root."""
    if os.geteuid() != 0 and any(item.path.is_relative_to(_TESTS / name) for name in ("kernel", "e2e")):
        pytest.fail("this test needs root (sudo scripts/test)", pytrace=False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collects what did not run (also on the controller of a distributed run)."""
    if report.skipped or hasattr(report, "wasxfail"):
        _NOT_RUN.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Collects modules that skipped themselves."""
    if report.skipped:
        _NOT_RUN.append(report.nodeid)


def _is_controller(config: pytest.Config) -> bool:
    return not hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Remembers the machine."""
    if _strict() and os.geteuid() == 0 and _is_controller(session.config):
        session.config.stash[_BEFORE] = leaks.machine_snapshot()


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """A strict run fails when a test did not run or when the machine is not as it was."""
    yield
    if not (_strict() and _is_controller(session.config)):
        return
    if _BEFORE in session.config.stash:
        _MACHINE.extend(leaks.difference(session.config.stash[_BEFORE], leaks.machine_snapshot()))
    if (_NOT_RUN or _MACHINE) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says why a strict run failed although no test did."""
    if _strict() and _NOT_RUN:
        terminalreporter.section("tests that did not run fail a strict run", red=True)
        for name in dict.fromkeys(_NOT_RUN):
            terminalreporter.write_line(name)
    if _MACHINE:
        terminalreporter.section("the machine is not as it was", red=True)
        for line in _MACHINE:
            terminalreporter.write_line(line)
    path = os.environ.get("NETBOX_TEST_COUNTS")
    if path and _is_controller(terminalreporter.config):
        counts.write(path, terminalreporter)


_BEFORE = pytest.StashKey[leaks.Snapshot]()
