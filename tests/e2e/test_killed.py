"""SIGKILL at every step: of the engine, the monitor, the sandbox, the clean-up. Afterwards ``gc`` leaves nothing (the leak check looks).

A child process counts the steps of a start (each journal row and each message of the handshake, before and after) and kills at
the n-th. Steps are tried until a start gets through all of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netbox.engine import Engine, Sandbox
from netbox.errors import NetboxError, NotFound
from netbox.network.manager import NetworkManager
from netbox.runtime.launcher import Launcher
from netbox.state.journal import Journal
from tests.e2e.steps import GOT_THROUGH, in_child, kill
from tests.support import cgroups
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("private_host")

MOST_STEPS = 120
STEPS = [
    (Journal, "record"),
    (Journal, "forget"),
    (Launcher, "begin"),
    (Launcher, "wait_namespaces"),
    (NetworkManager, "prepare"),
    (NetworkManager, "attach"),
    (Launcher, "network_ready"),
    (NetworkManager, "publish"),
    (Launcher, "wait_ready"),
    (Launcher, "go"),
]
KILLED_IT = 3


class Steps:
    """Calls ``strike`` at the n-th step; steps are the calls of the functions above, before and after each."""

    def __init__(self, number: int, strike: Callable[[], None]) -> None:
        self.left = number
        self.strike = strike
        self.monitor: int | None = None
        self.init: int | None = None

    def install(self) -> None:
        """Wraps the functions, in this process only."""
        for owner, name in STEPS:
            setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(owner: Any, /, *arguments: Any, **options: Any) -> Any:
            if isinstance(owner, Launcher):
                self.monitor = owner._helper.pid
            self._step()
            result = function(owner, *arguments, **options)
            if function.__name__ == "wait_namespaces":
                self.init = result.pid
            self._step()
            return result

        return call

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.strike()


def collect() -> None:
    with Engine() as engine:
        engine.gc()
        for sandbox in engine.list(all=True):
            # It was killed after the command had begun: what is left is a whole sandbox that runs.
            if runs(sandbox):
                with contextlib.suppress(NotFound):
                    sandbox.remove(force=True)
            # Else its start was being aborted, or its removal was under way: both go on without their engine.
            wait_until(lambda: engine.gc() == [] and not engine.list(all=True), "the end of an aborted start")
        engine.gc()
        assert engine.gc() == []


def runs(sandbox: Sandbox) -> bool:
    """Whether a command can be run in it. One that is just being killed may refuse it, or take the command along."""
    try:
        return sandbox.exec("true").exit_code == 0
    except NetboxError:
        return False


def run_and_remove(engine: Engine) -> None:
    sandbox = engine.run("busybox", "sleep", "60", ports=["127.0.0.1:18080:80", "18081:81/udp"], memory="64m", userns="auto", init=True)
    sandbox.remove(force=True)


def test_the_engine_is_killed_at_every_step() -> None:
    def attempt() -> int:
        steps = Steps(number, kill)
        steps.install()
        engine = Engine(warm=False)
        run_and_remove(engine)
        engine.close()
        return GOT_THROUGH

    for number in range(1, MOST_STEPS):
        code = in_child(attempt)
        collect()
        if code == GOT_THROUGH:
            assert number > 2 * len(STEPS)
            return
        assert code == -signal.SIGKILL, f"step {number}"
    pytest.fail("a start has more steps than expected")


@pytest.mark.parametrize("victim", ["monitor", "init"])
def test_the_monitor_or_the_sandbox_is_killed_at_every_step(victim: str) -> None:
    def attempt() -> int:
        def strike() -> None:
            pid = getattr(steps, victim)
            if pid is not None and os.path.exists(f"/proc/{pid}"):
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGKILL)

        steps = Steps(number, strike)
        steps.install()
        engine = Engine(warm=False)
        try:
            run_and_remove(engine)
            engine.close()
        except NetboxError:
            return KILLED_IT  # one line for the user, whatever was under way
        return GOT_THROUGH if steps.left > 0 else KILLED_IT

    for number in range(1, MOST_STEPS):
        code = in_child(attempt)
        collect()
        if code == GOT_THROUGH:
            return
        assert code == KILLED_IT, f"step {number}"
    pytest.fail("a start has more steps than expected")


def test_a_killed_monitor_takes_its_sandbox_along() -> None:
    with Engine() as engine:
        sandbox = engine.run("busybox", "sleep", "60", ports=["18080:80"])
        pid = sandbox.pid
        assert pid is not None
        monitor = int(Path(f"/proc/{pid}/status").read_text().partition("PPid:")[2].split()[0])
        os.kill(monitor, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the sandbox to die with its monitor")
        assert sandbox.refresh().state == "exited"
        assert sandbox.exit_code == 137
        assert "monitor was killed" in (sandbox.error or "")
        sandbox.remove()


def test_a_detached_sandbox_cleans_up_after_itself(private_host: PrivateHost) -> None:
    """Nobody waits: the monitor becomes the clean-up."""
    code = in_child(lambda: 0 if Engine(warm=False).run("busybox", "sleep", "0.2", remove=True, ports=["18080:80"]) else 1)
    assert code == 0
    wait_until(lambda: cgroups.processes(private_host.mark) == {os.getpid()}, "the end of the clean-up")
    assert not os.path.exists("/sys/class/net/netbox0")
    with Engine() as engine:
        assert engine.list(all=True) == []
        assert engine.gc() == []
