"""Two commands at once on one sandbox. Each test makes the worst moment happen: one of the two stands still until the other is done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from netbox import names
from netbox.cli import notice, run
from netbox.cli.state import State
from netbox.engine import Engine, Sandbox, ending, locks, recovery
from netbox.engine.networks import Networks
from netbox.errors import WrongState
from netbox.kernel import cgroups
from netbox.network import networks, shaping
from netbox.network.nameservice import files
from netbox.runtime.launcher import Launcher
from netbox.spec import Resources
from netbox.state.journal import RUN
from netbox.state.store import Store
from tests.e2e.steps import in_child
from tests.support.waiting import wait_until

BOUND = 60.0  # seconds


@pytest.fixture
def other(engine: Engine) -> Iterator[Engine]:
    """The engine of another command."""
    with Engine() as other:
        yield other


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


class HeldStart:
    """Starts stand still when the sandbox is whole, and before its command runs, until ``go_on``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._arrived, self._may_go_on = threading.Event(), threading.Event()
        original = Launcher.wait_ready

        def wait_ready(launcher: Launcher, timeout: float = 60.0) -> None:
            original(launcher, timeout)
            self._arrived.set()
            assert self._may_go_on.wait(BOUND)

        monkeypatch.setattr(Launcher, "wait_ready", wait_ready)

    def wait(self) -> None:
        assert self._arrived.wait(BOUND)

    def go_on(self) -> None:
        self._may_go_on.set()


@pytest.fixture
def held_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldStart]:
    held = HeldStart(monkeypatch)
    yield held
    held.go_on()


def looks_twice(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What returns when somebody has looked whether the start is over, and will look again."""
    looks = threading.Semaphore(0)
    original = ending.is_alive

    def is_alive(*arguments: Any) -> bool:
        looks.release()
        return original(*arguments)

    monkeypatch.setattr(ending, "is_alive", is_alive)

    def wait() -> None:
        for _ in range(3):
            looks.acquire(timeout=1.0)  # one that does not look again, and should, fails below

    return wait


def finish(future: Future[Any], box: Sandbox) -> None:
    """The end of the other command, with a bound; one that hangs is set free, and fails."""
    try:
        future.result(BOUND)
    except TimeoutError:
        ending.send_signal(box._context, box.refresh()._row, signal.SIGKILL)
        future.result(BOUND)
        raise


def instead_of_term(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A command that has just been executed may be deaf: it is killed, and what was sent is noted."""
    sent: list[int] = []
    original = signal.pidfd_send_signal

    def send(pidfd: int, number: int) -> None:
        sent.append(number)
        original(pidfd, signal.SIGKILL)

    monkeypatch.setattr(signal, "pidfd_send_signal", send)
    return sent


@pytest.mark.parametrize("verb", ["rm -f", "stop", "kill"])
def test_one_that_is_just_being_started(
    engine: Engine, other: Engine, held_start: HeldStart, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """There is no process yet that could take a signal, and there will be one."""
    box = other.create("busybox", "sleep", "1000", name="box", network="none")
    starting = pool.submit(engine.get("box").start)
    held_start.wait()
    sent, looked = instead_of_term(monkeypatch), looks_twice(monkeypatch)
    acts: dict[str, Callable[[], None]] = {"rm -f": lambda: box.remove(force=True), "stop": lambda: box.stop(600), "kill": box.kill}
    ending_it = pool.submit(acts[verb])
    looked()
    held_start.go_on()
    starting.result(BOUND)
    finish(ending_it, box)
    assert sent == [signal.SIGTERM if verb == "stop" else signal.SIGKILL]
    if verb == "rm -f":
        assert engine.list(all=True) == []
    else:
        assert box.wait(BOUND) == 137
        box.remove()


def test_a_limit_for_one_that_is_just_being_started(
    engine: Engine, other: Engine, held_start: HeldStart, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other.create("busybox", "sleep", "1000", name="box", network="none") as box:
        starting = pool.submit(engine.get("box").start)
        held_start.wait()
        looked = looks_twice(monkeypatch)
        updating = pool.submit(box.update, Resources(pids_limit=9))
        looked()
        held_start.go_on()
        starting.result(BOUND)
        updating.result(BOUND)
        assert box.stats().pids_limit == 9
        assert box.refresh().spec.resources.pids_limit == 9


@pytest.mark.parametrize("verb", ["publish", "unpublish", "connect", "disconnect"])
def test_a_change_of_one_that_is_just_being_started(
    engine: Engine, other: Engine, held_start: HeldStart, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    engine.networks.create("front")
    acts: dict[str, Callable[[Sandbox], object]] = {
        "publish": lambda box: box.publish("127.0.0.1:18081:81"),
        "unpublish": lambda box: box.unpublish(80),
        "connect": lambda box: box.connect("front"),
        "disconnect": lambda box: box.disconnect("bridge"),
    }
    with other.create("busybox", "sleep", "1000", name="box", ports=["127.0.0.1:18080:80"] if "publish" in verb else []) as box:
        starting = pool.submit(engine.get("box").start)
        held_start.wait()
        looked = looks_twice(monkeypatch)
        changing = pool.submit(acts[verb], box)
        looked()
        held_start.go_on()
        starting.result(BOUND)
        changing.result(BOUND)
        ports = {"publish": [18080, 18081], "unpublish": []}.get(verb, [])
        networks = {"connect": ["bridge", "front"], "disconnect": []}.get(verb, ["bridge"])
        assert [port.host_port for port in box.ports] == ports
        assert list(box.networks) == networks
    engine.networks.remove("front")


def test_a_new_name_for_one_that_is_just_being_started(
    engine: Engine, other: Engine, held_start: HeldStart, pool: ThreadPoolExecutor
) -> None:
    """It has its address already, and its old name was published with it."""
    engine.networks.create("front")
    with other.create("busybox", "sleep", "1000", name="box", network="front") as box:
        starting = pool.submit(engine.get("box").start)
        held_start.wait()
        box.rename("web")
        held_start.go_on()
        starting.result(BOUND)
        known = files.read(engine.settings.run, "front")
        assert known is not None
        assert [member.name for member in known.members] == ["web"]
    engine.networks.remove("front")


def test_two_restarts(engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.run("busybox", "sleep", "1000", name="box", network="none") as box:
        first_start = box.started_at
        original = ending.settle
        restarts = [other.get("box").restart]

        def settle(*arguments: Any, **options: Any) -> None:
            if restarts:
                restarts.pop()(0)  # the other one comes just when the first run is over, and is done before we go on
            original(*arguments, **options)

        monkeypatch.setattr(ending, "settle", settle)
        box.restart(0)
        assert box.state == "running"
        assert first_start is not None
        assert box.started_at is not None
        assert box.started_at > first_start


@pytest.mark.parametrize("moment", ["before the end", "after the end"])
def test_a_restart_of_one_that_is_removed_at_its_end_is_killed(engine: Engine, moment: str) -> None:
    """It was kept for the new run, which never comes."""
    box = engine.run("busybox", "sleep", "1000", name="box", network="none", remove=True)

    def restart() -> int:
        settle = ending.settle

        def killed(*arguments: Any, **options: Any) -> None:
            if moment == "after the end":
                settle(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        ending.settle = killed  # in the child only
        with Engine(warm=False) as other:
            other.get("box").restart(0)
        return 0

    assert in_child(restart) == -signal.SIGKILL
    wait_until(lambda: engine.list(all=True) == [], "the removal")
    assert box.id not in [event.sandbox_id for event in engine.events(filters=[("event", "restart")])]


def test_a_restart_of_one_that_is_removed_at_its_end(engine: Engine, other: Engine) -> None:
    box = engine.run("busybox", "sleep", "1000", name="box", network="none", remove=True)
    box.restart(0)
    assert other.get("box").state == "running"
    assert box.spec.remove
    box.kill()
    wait_until(lambda: engine.list(all=True) == [], "the removal")


def test_a_removal_meets_a_restart(engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was killed runs again before it can be removed."""
    box = engine.run("busybox", "sleep", "1000", name="box", network="none")
    original = ending._ends_within
    starts = [other.get("box").start]

    def ends_within(*arguments: Any) -> bool:
        ended = original(*arguments)
        if starts:
            with locks.restarting(engine.settings.sandbox_run(box.id)):
                ending.settle(engine._context, box.id)
                starts.pop()()
        return ended

    monkeypatch.setattr(ending, "_ends_within", ends_within)
    box.remove(force=True)
    assert engine.list(all=True) == []


def test_a_collection_meets_a_sandbox_that_is_just_being_made(engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Sandbox] = []
    original = Store.journal_owners
    collecting = recovery._orphaned_journals
    looking = threading.Event()

    def orphaned(*arguments: Any) -> list[str]:
        looking.set()
        return collecting(*arguments)

    def journal_owners(store: Store, *arguments: Any) -> list[tuple[str, str]]:
        if looking.is_set() and not made:
            made.append(other.create("busybox", "true", name="box", network="none"))
        return original(store, *arguments)

    monkeypatch.setattr(recovery, "_orphaned_journals", orphaned)
    monkeypatch.setattr(Store, "journal_owners", journal_owners)
    assert engine.gc() == []
    made[0].start()
    assert made[0].wait(BOUND) == 0
    made[0].remove()


def test_a_collection_finds_the_directory_of_a_sandbox_that_is_just_being_made(
    engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been made, and its lock not been taken yet: the collection is quicker."""
    opened, acquire = locks._open, locks.SandboxLock.acquire
    collecting: list[locks.SandboxLock] = []

    def open_file(run_directory: str, path: str) -> int:
        fd = opened(run_directory, path)
        if not collecting:
            monkeypatch.setattr(locks, "_open", opened)
            lock = acquire(run_directory)
            assert lock is not None
            collecting.append(lock)
        return fd

    def sleep(seconds: float) -> None:
        monkeypatch.setattr(locks, "time", time)
        collecting[0].release()
        assert other.gc() != []

    monkeypatch.setattr(locks, "_open", open_file)
    monkeypatch.setattr(locks, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    engine.create("busybox", "true", network="none").remove()


def test_two_prunes(engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("back", "front"):
        engine.networks.create(name)
    remove = Networks.remove
    pruning = [other.networks.prune]

    def meet(networks: Networks, name: str) -> None:
        if pruning:
            assert pruning.pop()() == ["back", "front"]
        remove(networks, name)

    monkeypatch.setattr(Networks, "remove", meet)
    assert engine.networks.prune() == []


def test_a_limit_and_a_port_at_once(engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.create("busybox", "true", name="box") as box:
        manager = type(box._context.cgroups)
        original = manager.check
        publishing = [other.get("box").publish]

        def check(self: Any, limits: cgroups.Limits) -> None:
            original(self, limits)
            if publishing:
                publishing.pop()("127.0.0.1:18080:80")

        monkeypatch.setattr(manager, "check", check)
        box.update(Resources(pids_limit=9))
        assert box.spec.resources.pids_limit == 9
        assert [port.host_port for port in box.spec.network.ports] == [18080]


def test_two_limits_at_once(engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.run("busybox", "sleep", "1000", name="box", network="none", pids_limit=5) as box:
        manager = type(box._context.cgroups)
        original = manager.apply
        updating = [other.get("box").update]

        def apply(self: Any, path: str, limits: cgroups.Limits) -> None:
            if updating:
                updating.pop()(Resources(pids_limit=9))
            original(self, path, limits)

        monkeypatch.setattr(manager, "apply", apply)
        box.update(Resources(memory=64 << 20))
        asked = box.refresh().spec.resources
        assert (asked.pids_limit, asked.memory) == (9, 64 << 20)
        stats = box.stats()
        assert (stats.pids_limit, stats.memory_limit) == (9, 64 << 20)


def test_an_impairment_and_a_further_network(engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All links are impaired, also one that comes while the command waits for its turn."""
    engine.networks.create("front")
    engine.networks.create("back")
    with engine.run("busybox", "sleep", "1000", name="box", network="front") as box:
        connecting = [other.get("box").connect]
        locked, apply = networks.locked, shaping.apply
        shaped: list[list[str]] = []

        def turn(*arguments: Any) -> Any:
            if connecting:
                connecting.pop()("back")
            return locked(*arguments)

        def note(plan: Any, *arguments: Any) -> None:
            shaped.append([endpoint.network for endpoint in plan.endpoints])
            apply(plan, *arguments)

        monkeypatch.setattr(networks, "locked", turn)
        monkeypatch.setattr(shaping, "apply", note)
        box.impair(rate="1mbit")
        assert sorted(shaped[-1]) == ["back", "front"]
    for name in ("front", "back"):
        engine.networks.remove(name)


def test_an_impairment_and_a_removal(engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.run("busybox", "sleep", "1000", name="box") as box:
        removing = [other.get("box").remove]
        apply = shaping.apply

        def remove(*arguments: Any) -> None:
            apply(*arguments)
            if removing:
                removing.pop()(force=True)

        monkeypatch.setattr(shaping, "apply", remove)
        with pytest.raises(WrongState, match="has just ended"):
            box.impair(rate="1mbit", duration="1h")
        rows = engine._context.store.journal(names.sandbox_owner(box.id), RUN).rows()
        assert "impairment" not in [row.kind for row in rows]


def test_an_interrupt_right_after_the_start(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-c before the signals are the sandbox's: it ends as the command does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(notice, "about_public_ports", interrupt)
    spec = run.build_request("busybox", ("sleep", "1000"), {"network": ("none",), "name": "box"})
    with pytest.raises(KeyboardInterrupt):
        run._start(State(), spec, run.IdFile(None), False, run._Attachment((), b"", False, ()))
    assert [box.state for box in engine.list(all=True)] == ["exited"]
    engine.get("box").remove()
