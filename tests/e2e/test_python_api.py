"""The Python API: the verbs, context managers, threads, and the same errors as the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import netbox
from netbox import Engine
from netbox.engine import Sandbox
from netbox.errors import CommandNotExecutable, CommandNotFound, Conflict, NetboxError, NotFound, Unsupported, UsageError, WrongState
from netbox.runtime import protocol
from netbox.settings import Settings
from netbox.spec import Resources
from tests.e2e.boxes import wait_for_log
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.linux import CLONE_NEWNET, setns, unshare
from tests.support.waiting import wait_until

THREADS = 8


def sleeper(engine: Engine, name: str = "box", **options: object) -> Sandbox:
    box = engine.run("busybox", "sleep", "1000", name=name, init=True, **{"network": "none", **options})  # type: ignore[arg-type]
    # Until then the reaper may be deaf, and its child a copy of it.
    wait_until(lambda: [row.command for row in box.top()][1:] == ["sleep 1000"], "the reaper to have started the command")
    return box


# -- verbs -------------------------------------------------------------------------------------------------------------------------------


def test_a_life(engine: Engine) -> None:
    box = engine.create(
        "busybox", "sh", "-c", "trap 'exit 6' TERM; echo ready; sleep 1000 & wait", name="box", network="none", labels={"a": "b"}
    )
    assert (box.state, box.exit_code, box.pid, box.started_at, box.ip_address) == ("created", None, None, None, None)
    assert (box.image, box.command[0], box.labels, box.name, box.id[:12]) == ("busybox", "sh", {"a": "b"}, "box", box.short_id)
    assert box.start() is None
    wait_for_log(box, "ready")
    assert box.state == "running"
    assert Path(f"/proc/{box.pid}").exists()
    box.pause()
    assert box.state == "paused"
    box.unpause()
    box.update(Resources(pids_limit=9))
    assert box.stats().pids_limit == 9
    # The shell says "ready" before it forks, and its child is a shell until it executes sleep.
    wait_until(lambda: [row.command for row in box.top()][1:] == ["sleep 1000"], "the shell's child to be sleep")
    box.rename("other")
    assert engine.get("other").id == box.id
    box.stop(timeout=20)
    assert (box.state, box.exit_code, box.pid) == ("exited", 6, None)
    box.restart(timeout=20)
    assert box.state == "running"
    box.kill("USR1")  # not caught: it ends a shell that is not pid 1, and pid 1 ignores it
    box.kill()
    assert box.wait(timeout=60) == 137
    assert box.inspect()["exit_code"] == 137
    box.remove()
    with pytest.raises(NotFound):
        box.refresh()
    assert engine.list(all=True) == []


def test_a_list_of_sandboxes(engine: Engine) -> None:
    with (
        sleeper(engine, "one", labels={"k": "1"}) as one,
        sleeper(engine, "two") as two,
        engine.create("busybox", "true", name="three") as three,
    ):
        two.pause()
        assert [box.name for box in engine.list()] == ["two", "one"]
        assert [box.name for box in engine.list(all=True)] == ["three", "two", "one"]
        assert [box.id for box in engine.list(filters=[("label", "k=1")])] == [one.id]
        assert [box.id for box in engine.list(filters=[("status", "created")])] == [three.id]
        assert engine.get(one.id[:20]).name == "one"


def test_exec(engine: Engine) -> None:
    with sleeper(engine) as box:
        assert box.exec("cat", stdin=os.urandom(0)) == (0, b"", b"")
        data = os.urandom(1_000_000)
        assert box.exec("sh", "-c", "cat; echo err >&2; exit 3", stdin=data) == (3, data, b"err\n")
        assert box.exec("sh", "-c", "id -u; pwd; echo $A", user="7", working_dir="/etc", environment=["A=b"]).stdout == b"7\n/etc\nb\n"
        assert box.open_exec("touch", "/done", detach=True) is None
        wait_until(lambda: box.exec("ls", "/done").exit_code == 0, "the detached command")


def test_a_conversation(engine: Engine) -> None:
    with engine.create("busybox", "sh", "-c", "while read line; do echo got $line; done", open_stdin=True, network="none") as box:
        attachment = box.start(attach=True)
        assert attachment is not None
        with attachment:
            for word in (b"one", b"two"):
                attachment.send_stdin(word + b"\n")
                assert attachment.read_frame() == (protocol.STDOUT, b"got " + word + b"\n")
            attachment.close_stdin()
            assert attachment.read_frame() == (protocol.EXIT, protocol.exit_payload(0))
            assert attachment.read_frame() is None
            assert attachment.exit_code == 0
        assert box.wait(timeout=60) == 0


def test_logs_are_followed(engine: Engine) -> None:
    with engine.run("busybox", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.05; done; echo err >&2", network="none") as box:
        assert [(line.stream, line.data) for line in box.logs(follow=True)] == [
            ("stdout", b"1\n"), ("stdout", b"2\n"), ("stdout", b"3\n"), ("stderr", b"err\n"),
        ]  # fmt: skip


def test_events_of_another_thread(engine: Engine) -> None:
    seen: list[str] = []
    begun = threading.Event()

    def listen() -> None:
        begun.set()
        for event in engine.events(since=time.time() - 3600, follow=True, stop=lambda: "destroy" in seen):
            seen.append(event.action)

    thread = threading.Thread(target=listen)
    thread.start()
    begun.wait()
    with sleeper(engine) as box:
        box.pause()
        box.unpause()
    thread.join(60)
    assert not thread.is_alive()
    assert seen == ["create", "start", "pause", "unpause", "die", "destroy"]


def test_stats_between_two_looks(engine: Engine) -> None:
    with engine.run("busybox", "sh", "-c", "while :; do :; done", network="none", cpus=0.5, memory="32m") as box:
        first = box.stats()
        wait_until(lambda: box.stats().cpu_ns > first.cpu_ns, "work")
        # A look that is interrupted between the clock and the counter is wrong by that; over a longer time it matters less and less.
        wait_until(lambda: 0 < box.stats(first).cpu_percent < 150, "a share of the processor")
        second = box.stats(first)
        assert second.memory_limit == 32 << 20
        assert 0 < second.memory_percent < 100


def test_a_wait_with_a_time_limit(engine: Engine) -> None:
    with sleeper(engine) as box:
        with pytest.raises(TimeoutError, match="box still runs after"):
            box.wait(timeout=0.05)
        assert box.state == "running"


# -- context managers --------------------------------------------------------------------------------------------------------------------


def test_the_block_removes_the_sandbox_whatever_happens(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), sleeper(engine):
        _ = 1 / 0
    assert engine.list(all=True) == []
    with sleeper(engine) as box:
        box.remove(force=True)  # the block does not mind
    with engine.run("busybox", "true", remove=True, network="none") as box:
        assert box.wait(timeout=60) == 0


def test_the_end_of_an_engine_leaves_sandboxes_alone(private_host: PrivateHost) -> None:
    with Engine() as engine:
        box = sleeper(engine, network="bridge")
    with Engine() as engine:
        assert engine.get(box.id).state == "running"
        engine.get(box.id).remove(force=True)


def test_no_process_is_left_by_an_engine(private_host: PrivateHost) -> None:
    code = "from netbox import Engine\nengine = Engine()\nengine.run('busybox', 'true', network='none', remove=True).wait()\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(netbox.__file__).parents[1])
    # Not closed: the leak check sees to it that its warm process has gone with it.


def test_two_engines_are_apart(private_host: PrivateHost) -> None:
    root = private_host.root / "other"
    other = Settings(root=str(root), run=str(private_host.run / "other"), cgroup_parent=f"{private_host.cgroup}/other")
    with Engine() as one, Engine(other) as two, sleeper(one, "same") as first, sleeper(two, "same") as second:
        assert [box.id for box in one.list()] == [first.id]
        assert [box.id for box in two.list()] == [second.id]
    shutil.rmtree(root)


# -- errors ------------------------------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[type[NetboxError], Callable[[Engine], object], tuple[str, ...]]] = {
    "unknown image": (NotFound, lambda engine: engine.run("nope", "true"), ("run", "nope", "true")),
    "bad size": (UsageError, lambda engine: engine.run("busybox", memory="10x"), ("run", "-m", "10x", "busybox")),
    "taken name": (Conflict, lambda engine: engine.create("busybox", name="box"), ("create", "--name", "box", "busybox")),
    "port 0": (UsageError, lambda engine: engine.run("busybox", ports=["80:0"]), ("run", "-p", "80:0", "busybox")),
    "no command": (CommandNotFound, lambda engine: engine.run("busybox", "nope"), ("run", "busybox", "nope")),
    "not a command": (CommandNotExecutable, lambda engine: engine.run("busybox", "/etc"), ("run", "busybox", "/etc")),
    "no sandbox": (NotFound, lambda engine: engine.get("nope").stop(), ("stop", "nope")),
    "not running": (WrongState, lambda engine: engine.get("box").kill(), ("kill", "box")),
    "not paused": (WrongState, lambda engine: engine.get("box").unpause(), ("unpause", "box")),
    "exec": (WrongState, lambda engine: engine.get("box").exec("true"), ("exec", "box", "true")),
    "processors": (Unsupported, lambda engine: engine.run("busybox", cpuset_cpus="4000"), ("run", "--cpuset-cpus", "4000", "busybox")),
    "signal": (UsageError, lambda engine: engine.get("box").kill("NOPE"), ("kill", "-s", "NOPE", "box")),
    "limit": (UsageError, lambda engine: engine.run("busybox", memory="1k"), ("run", "-m", "1k", "busybox")),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_the_same_as_on_the_command_line(case: str, engine: Engine, cli: Cli) -> None:
    kind, call, words = WRONG[case]
    with engine.create("busybox", "true", name="box"):
        with pytest.raises(NetboxError) as raised:
            call(engine)
        assert type(raised.value) is kind
        assert "\n" not in str(raised.value)
        result = cli(*words, check=raised.value.exit_code)
        assert result.stderr == f"netbox {words[0]}: {raised.value}\n"
        assert [box.name for box in engine.list(all=True)] == ["box"]


def test_an_unknown_option_is_a_type_error(engine: Engine) -> None:
    with pytest.raises(TypeError, match="memroy"):
        engine.run("busybox", "true", memroy="1g")  # type: ignore[call-arg]


# -- threads -----------------------------------------------------------------------------------------------------------------------------


def in_threads(work: Callable[[int], object]) -> list[object]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result(timeout=100) for future in [pool.submit(work, number) for number in range(THREADS)]]


def test_threads_run_sandboxes_at_once(engine: Engine) -> None:
    together = threading.Barrier(THREADS, timeout=60)
    namespace = os.readlink("/proc/self/ns/net")

    def work(number: int) -> tuple[str | None, int, bytes, int]:
        together.wait()
        with engine.run("busybox", "sh", "-c", f"echo {number}; sleep 1000", name=f"box{number}", ports=[f"{18000 + number}:80"]) as box:
            wait_for_log(box, f"{number}\n")
            together.wait()  # all are up now
            address = box.ip_address
            result = box.exec("sh", "-c", "cat; exit 3", stdin=str(number).encode())
            box.kill()
            assert os.readlink("/proc/thread-self/ns/net") == namespace
            return address, result.exit_code, result.stdout, box.wait(timeout=60)

    found = in_threads(work)
    assert len({item[0] for item in found}) == THREADS  # type: ignore[index]
    assert [item[1:] for item in found] == [(3, str(number).encode(), 137) for number in range(THREADS)]  # type: ignore[index]
    assert engine.list(all=True) == []


def test_threads_meet_at_one_name_and_one_port(engine: Engine) -> None:
    together = threading.Barrier(THREADS, timeout=60)

    def work(number: int) -> str | None:
        options = {"name": "same"} if number % 2 else {"ports": ["18080:80"]}
        together.wait()
        try:
            box = engine.run("busybox", "sleep", "1000", **options)
        except Conflict:
            return None
        return box.id

    winners = [found for found in in_threads(work) if found]
    assert len(winners) == 2
    assert {box.id for box in engine.list(all=True)} == set(winners)
    for box in engine.list(all=True):
        box.remove(force=True)


def test_threads_end_one_sandbox(engine: Engine) -> None:
    box = sleeper(engine)
    # A signal that pid 1 does not handle yet is lost.
    wait_until(lambda: "sleep 1000" in [row.command for row in box.top()][1:], "the reaper to have started the command")
    together = threading.Barrier(THREADS, timeout=60)

    def work(number: int) -> None:
        mine = engine.get("box")
        together.wait()
        if number % 2:
            mine.stop(timeout=20)
        else:
            assert mine.wait(timeout=60) == 143

    in_threads(work)
    assert (box.refresh().state, box.exit_code) == ("exited", 143)
    box.remove()


def test_a_thread_in_another_namespace_is_not_disturbed(engine: Engine) -> None:
    # A program may have moved a thread elsewhere; what other threads do must not move it, nor act there.
    entered, done = threading.Event(), threading.Event()
    seen: list[str] = []

    def elsewhere() -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        unshare(CLONE_NEWNET)
        seen.append(os.readlink("/proc/thread-self/ns/net"))
        entered.set()
        done.wait(60)
        seen.append(os.readlink("/proc/thread-self/ns/net"))
        setns(home, CLONE_NEWNET)
        os.close(home)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    entered.wait(60)
    with engine.run("busybox", "sleep", "1000", ports=["18080:80"]) as box:
        assert box.exec("true").exit_code == 0
        box.stats()
    done.set()
    thread.join(60)
    assert seen[0] == seen[1] != os.readlink("/proc/thread-self/ns/net")
