"""Fixtures for other people's test suites: an engine, a network, sandboxes that clean up after themselves.

    netbox_engine    one ``Engine`` per test run (per worker with pytest-xdist); it keeps a warm process, so starts are fast
    netbox_network   the default network, up for the whole test run
    netbox_sandbox   starts sandboxes; all of them are removed at the end of the test, also when it fails
    assert_reachable, assert_blocked
                     whether one sandbox reaches another; a failure says why, as ``netbox why`` does
    capture          records the packets of these sandboxes; the file of a failed test is kept, and named in its report

Without root there are no sandboxes. A test that asks for one then fails, or is skipped when the ini option ``netbox_require_root`` is
false. See ``netbox/docs/pytest.md``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from netbox import testing
from netbox.testing import OWNER_LABEL, Network, SandboxFactory, owner, remove_orphans

if TYPE_CHECKING:
    from pathlib import Path

    from netbox.engine import Engine
    from netbox.packet.capturing.api import Recording
    from netbox.packet.diagnosis.values import Answer

_NO_ROOT = "netbox needs root to make sandboxes; run pytest with sudo"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declares the ini option."""
    help_text = "without root a test that asks for a sandbox fails (true, the default) or is skipped (false)"
    parser.addini("netbox_require_root", help_text, type="bool", default=True)


@pytest.fixture(scope="session")
def netbox_engine(pytestconfig: pytest.Config) -> Iterator[Engine]:
    """An engine on this machine's netbox (``NETBOX_ROOT`` moves it elsewhere). What a killed test run left is removed first."""
    if os.geteuid() != 0:
        if pytestconfig.getini("netbox_require_root"):
            pytest.fail(f"{_NO_ROOT}, or set netbox_require_root = false to skip such tests", pytrace=False)
        pytest.skip(_NO_ROOT)
    from netbox.engine import Engine

    with Engine() as engine:
        remove_orphans(engine)
        yield engine


@pytest.fixture(scope="session")
def netbox_network(netbox_engine: Engine) -> Iterator[Network]:
    """The default network. It stays up during the test run, so sandboxes start faster and the gateway's address can be listened on."""
    factory = SandboxFactory(netbox_engine)
    try:
        holder = factory("busybox", "sleep", "2147483647")
        endpoint = holder.network_plan["endpoints"][0]
        yield Network(endpoint["network"], endpoint["bridge"], endpoint["subnet"], endpoint["gateway"])
    finally:
        factory.remove_all()


@pytest.fixture
def netbox_sandbox(netbox_engine: Engine) -> Iterator[SandboxFactory]:
    """Starts sandboxes: ``netbox_sandbox("busybox", "sleep", "60", ports=["8080:80"])``. All are removed after the test."""
    factory = SandboxFactory(netbox_engine)
    try:
        yield factory
    finally:
        factory.remove_all()


@pytest.fixture
def assert_reachable(netbox_engine: Engine) -> Callable[..., Answer]:
    """Fails unless one end reaches the other: ``assert_reachable(client, server, tcp=80)``; see ``netbox.testing.assert_reachable``."""
    return functools.partial(testing.assert_reachable, netbox_engine)


@pytest.fixture
def assert_blocked(netbox_engine: Engine) -> Callable[..., Answer]:
    """Fails when one end reaches the other: ``assert_blocked(client, database, tcp=5432)``; see ``netbox.testing.assert_blocked``."""
    return functools.partial(testing.assert_blocked, netbox_engine)


@pytest.fixture
def capture(netbox_engine: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Recording]:
    """Records every packet of the sandboxes of this test run, from their first on, into a pcapng file (``capture.path``).

    The file of a failed test is kept and named in its report; that of a passed one is deleted.
    """
    from netbox.packet.capturing.api import capture as record

    path = tmp_path / "capture.pcapng"
    recording = record(netbox_engine, labels=((OWNER_LABEL, owner()),), write=str(path))
    try:
        yield recording
    finally:
        recording.stop()
        if not request.node.stash.get(_FAILED, False):
            path.unlink()


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the output of its sandboxes, and where its packets are, to the report of a failed test."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    recording: Any = getattr(item, "funcargs", {}).get("capture")  # somebody else's fixture may have the name
    if report.when == "call" and report.failed and type(recording).__name__ == "Recording":
        report.sections.append(("netbox capture", f"{recording.path} (tshark -r, or Wireshark)"))
    factory = getattr(item, "funcargs", {}).get("netbox_sandbox")
    if report.when == "call" and report.failed and isinstance(factory, SandboxFactory):
        report.sections += [(f"netbox logs of {name}", text) for name, text in factory.logs()]
    return report
