"""SIGKILL of engine, monitor or first process at every step, and starts that are given up: no process and no mount is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from netbox.errors import HostError
from netbox.runtime import status
from netbox.runtime.launcher import Launcher
from netbox.spec import SecuritySpec
from tests.kernel.runtime_lab import USERNS_BASE, Lab, alive
from tests.support import leaks
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

STEPS = ("prespawn", "begin", "namespaces", "network", "ready")


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def test_killed_monitor_takes_the_sandbox_along(lab: Lab) -> None:
    with lab.running("sh", "-c", "sleep 1000 & sleep 1000", plan={"attach": False}) as sandbox:
        os.kill(sandbox.monitor, signal.SIGKILL)
        wait_until(lambda: not alive(sandbox.pid, sandbox.pid_start), "the sandbox's end")
        wait_until(lambda: not status.is_locked(sandbox.config["run_dir"]), "the lock")
        assert sandbox.status().state == "running"  # nobody was left to write another one: the lock tells


@pytest.mark.parametrize("userns", ["host", "auto"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", ["engine", "monitor", "init"])
def test_kill_at_each_step_leaves_no_process_and_no_mount(lab: Lab, private_host: PrivateHost, victim: str, step: str, userns: str) -> None:
    if victim == "init" and step in ("prespawn", "begin"):
        step = "namespaces"  # there is none before
    config = lab.config("sleep", "1000", security=SecuritySpec(userns=userns), plan={"userns_base": USERNS_BASE, "attach": False})
    before = leaks.mounts()
    lock = status.acquire_lock(config["run_dir"])
    assert lock is not None
    engine = os.fork()
    if engine == 0:
        _engine(config, lock, victim, STEPS.index(step))
    os.close(lock)
    _, code = os.waitpid(engine, 0)
    assert os.waitstatus_to_exitcode(code) == (-signal.SIGKILL if victim == "engine" else 0)
    wait_until(lambda: not status.is_locked(config["run_dir"]), "the lock")
    marked = private_host.mark / "cgroup.procs"
    own = {os.getpid()}
    wait_until(lambda: {int(pid) for pid in marked.read_text().split() if alive(int(pid))} <= own, "the end of all processes")
    assert leaks.mounts() == before
    found = status.read_status(config["run_dir"])
    if victim == "engine" and step != "prespawn":
        assert found is not None
        assert found.state == "aborted"


def _engine(config: dict[str, object], lock: int, victim: str, last: int) -> None:
    """A process that goes as far as step ``last`` of the handshake and kills; exits with 0 when it saw the failure that it should."""
    code = 1
    try:
        launcher = Launcher.prespawn()
        monitor = launcher._helper.pid
        assert monitor is not None
        pid = 0
        steps: list[Callable[[], object]] = [
            lambda: launcher.begin(config, lock),
            launcher.wait_namespaces,
            launcher.network_ready,
            launcher.wait_ready,
            launcher.go,
        ]
        for index, advance in enumerate(steps):
            if index == last:
                os.kill({"engine": os.getpid(), "monitor": monitor, "init": pid}[victim], signal.SIGKILL)
            try:
                result = advance()
            except HostError:
                launcher.abort()
                code = 0
                break
            pid = getattr(result, "pid", pid)
        else:
            code = 0 if victim == "init" else 2  # killed between GO and exec: that is a command that ended at once
    finally:
        os._exit(code)


def test_abort_at_each_step(lab: Lab) -> None:
    for last in range(len(STEPS)):
        config = lab.config("sleep", "1000")
        lock = status.acquire_lock(config["run_dir"])
        assert lock is not None
        launcher = Launcher.prespawn()
        pid = 0
        if last > 0:
            launcher.begin(config, lock)
        if last > 1:
            pid = launcher.wait_namespaces().pid
        if last > 2:
            launcher.network_ready()
        if last > 3:
            launcher.wait_ready()
        launcher.abort()
        launcher.abort()
        os.close(lock)
        assert not pid or not alive(pid)
        assert not status.is_locked(config["run_dir"])
        found = status.read_status(config["run_dir"])
        assert (found.state if found else None) == ("aborted" if last > 0 else None)
        with pytest.raises(HostError):
            launcher.go()


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_an_interrupt_after_go_leaves_nothing_either(lab: Lab, monkeypatch: pytest.MonkeyPatch, attach: bool, started: bool) -> None:
    config = lab.config("sleep", "1000", plan={"attach": attach})
    lock = status.acquire_lock(config["run_dir"])
    assert lock is not None
    with Launcher.prespawn() as launcher:
        launcher.begin(config, lock)
        pid = launcher.wait_namespaces().pid
        launcher.network_ready()
        launcher.wait_ready()
        receive = launcher._receive

        def interrupted(expected: str, timeout: float) -> object:
            if started:
                receive(expected, timeout)
            raise KeyboardInterrupt

        monkeypatch.setattr(launcher, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launcher.go()
        launcher.abort()
    os.close(lock)
    assert not alive(pid)
    wait_until(lambda: not status.is_locked(config["run_dir"]), "the monitor's end")
