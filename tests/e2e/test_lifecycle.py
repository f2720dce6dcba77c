"""The verbs on sandboxes, from create to rm, what shows them, what changes them, and how one is addressed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netbox.engine import Engine, Sandbox
from netbox.errors import NotFound
from tests.e2e.boxes import running, wait_for_log
from tests.support import cgroups
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

OBEDIENT = "trap 'echo stopping; exit 7' TERM; echo ready; while :; do sleep 0.02; done"


def start(cli: Cli, engine: Engine, script: str = OBEDIENT, *options: str, name: str = "box") -> Sandbox:
    """A running sandbox whose script has said that it is ready."""
    cli("run", "-d", "--network", "none", "--name", name, *options, "busybox", "sh", "-c", script)
    sandbox = engine.get(name)
    wait_for_log(sandbox, "ready")
    return sandbox


def sleeper(engine: Engine, name: str = "box", **options: object) -> Sandbox:
    """A sandbox that has not been started."""
    return engine.create("busybox", "sleep", "1000", name=name, **{"network": "none", **options})  # type: ignore[arg-type]


def actions(engine: Engine, name: str = "box") -> list[str]:
    return [event.action for event in engine.events(filters=[("container", name)])]


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(path).startswith("socket:")
    return found


def monitor_of(sandbox: Sandbox) -> int:
    return int(Path(f"/proc/{sandbox.pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextlib.contextmanager
def waiting_for(cli: Cli, sandbox: Sandbox) -> Iterator[subprocess.Popen[str]]:
    """``netbox wait`` that the sandbox's monitor knows of."""
    monitor = monitor_of(sandbox)
    before = sockets(monitor)
    with cli.popen("wait", sandbox.name) as child:
        wait_until(lambda: sockets(monitor) > before, "the connection")
        yield child


def error_of(cli: Cli, *arguments: str) -> str:
    """The one line on stderr of a command that fails."""
    result = cli(*arguments, check=125)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"netbox {arguments[0]}: ")
    return line


# -- create and start --------------------------------------------------------------------------------------------------------------------


def test_create_start_wait(cli: Cli, engine: Engine) -> None:
    identity = cli("create", "--name", "box", "busybox", "sh", "-c", "exit 5").stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{64}", identity)
    assert engine.get("box").state == "created"
    assert cli("ps").stdout.count("\n") == 1
    assert cli("start", "box").stdout == "box\n"
    assert cli("wait", "box").stdout == "5\n"
    assert cli("wait", "box").stdout == "5\n"
    sandbox = engine.get("box")
    assert (sandbox.id, sandbox.state, sandbox.exit_code) == (identity, "exited", 5)
    assert sandbox.created_at <= (sandbox.started_at or 0) <= (sandbox.finished_at or 0)
    cli("rm", "box")


def test_a_generated_name_that_is_taken_is_drawn_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["calm-otter-0001", "calm-otter-0001", "calm-otter-0001", "calm-otter-0002"])
    monkeypatch.setattr("netbox.names.generated_name", lambda sandbox_id: next(drawn))
    boxes = [engine.create("busybox", "true", network="none") for _ in range(2)]
    assert [box.name for box in boxes] == ["calm-otter-0001", "calm-otter-0002"]
    assert [engine.get(box.name).id for box in boxes] == [box.id for box in boxes]
    assert [event.name for event in engine.events()] == ["calm-otter-0001", "calm-otter-0002"]
    for box in boxes:
        box.remove()


def test_files_survive_a_second_start(cli: Cli) -> None:
    cli("create", "--name", "box", "busybox", "sh", "-c", "echo run >> /runs; cat /runs")
    assert cli("start", "-a", "box").stdout == "run\n"
    assert cli("start", "-a", "box").stdout == "run\nrun\n"
    cli("rm", "box")


def test_start_attached(cli: Cli) -> None:
    cli("create", "-i", "--name", "box", "busybox", "sh", "-c", "cat; echo err >&2; exit 3")
    result = cli("start", "-ai", "box", stdin="typed\n", check=3)
    assert (result.stdout, result.stderr) == ("typed\n", "err\n")
    cli("rm", "box")


def test_starts_that_are_refused(cli: Cli, engine: Engine) -> None:
    start(cli, engine)
    assert "box runs already" in error_of(cli, "start", "box")
    assert "made without -i" in error_of(cli, "start", "-ai", "box")
    assert "no such sandbox" in error_of(cli, "start", "nobody")
    cli("create", "--name", "bad", "busybox", "no-such-command")
    assert "no-such-command" in cli("start", "bad", check=127).stderr
    assert engine.get("bad").state == "created"
    assert "no-such-command" in str(engine.get("bad").error)
    cli("rm", "-f", "box", "bad")


def test_one_bad_name_does_not_keep_the_others_from_starting(cli: Cli, engine: Engine) -> None:
    boxes = [sleeper(engine, name) for name in ("one", "two")]
    result = cli("start", "one", "nobody", "two", check=125)
    assert result.stdout == "one\ntwo\n"
    assert len(result.stderr.splitlines()) == 1
    assert [box.refresh().state for box in boxes] == ["running", "running"]
    assert cli("rm", "-f", "two", "one").stdout == "two\none\n"


# -- stop and kill -----------------------------------------------------------------------------------------------------------------------


def test_stop_sends_the_signal(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine)
    assert cli("stop", "-t", "600", "box").stdout == "box\n"  # it does not wait for the timeout: the test would
    assert (sandbox.refresh().state, sandbox.exit_code) == ("exited", 7)
    assert b"".join(line.data for line in sandbox.logs()).endswith(b"stopping\n")
    assert cli("stop", "box").stdout == "box\n"  # that it is stopped is no error
    cli("rm", "box")


def test_stop_kills_after_the_timeout(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine, "trap 'echo no' TERM; echo ready; while :; do sleep 0.02; done")
    begun = time.monotonic()
    cli("stop", "-t", "1", "box")
    assert time.monotonic() - begun >= 1
    assert sandbox.refresh().exit_code == 137
    killed = [event.attributes["signal"] for event in engine.events(filters=[("container", "box"), ("event", "kill")])]
    assert killed == [signal.SIGTERM, signal.SIGKILL]
    cli("rm", "box")


def test_stop_signal_and_timeout_of_the_sandbox(cli: Cli, engine: Engine) -> None:
    deaf = start(cli, engine, "echo ready; while :; do sleep 0.02; done", "--stop-timeout", "0", name="deaf")
    other = start(cli, engine, "trap 'exit 4' USR1; echo ready; while :; do sleep 0.02; done", "--stop-signal", "USR1", name="other")
    cli("stop", "deaf", "other")
    assert (deaf.refresh().exit_code, other.refresh().exit_code) == (137, 4)
    cli("rm", "deaf", "other")


def test_kill(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine, "trap 'echo hup' HUP; trap 'exit 6' USR1; echo ready; while :; do sleep 0.02; done")
    cli("kill", "-s", "HUP", "box")
    wait_for_log(sandbox, "hup")
    assert sandbox.refresh().state == "running"
    cli("kill", "--signal", "SIGUSR1", "box")
    assert cli("wait", "box").stdout == "6\n"
    assert "box does not run" in error_of(cli, "kill", "box")
    assert "NOSIG" in error_of(cli, "kill", "-s", "NOSIG", "box")
    cli("start", "box")
    cli("kill", "-s", "9", "box")
    assert cli("wait", "box").stdout == "137\n"
    cli("rm", "box")


def test_wait_waits(cli: Cli, engine: Engine) -> None:
    with waiting_for(cli, start(cli, engine)) as child:
        assert child.poll() is None
        cli("stop", "box")
        assert child.communicate(timeout=60) == ("7\n", "")
    cli("rm", "box")


# -- restart, pause ----------------------------------------------------------------------------------------------------------------------


def test_restart(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine)
    before = sandbox.pid
    assert cli("restart", "-t", "20", "box").stdout == "box\n"
    assert sandbox.refresh().state == "running"
    assert sandbox.pid != before
    wait_for_log(sandbox, "stopping\nready")
    cli("kill", "box")
    cli("wait", "box")
    cli("restart", "box")  # also one that does not run
    assert sandbox.refresh().state == "running"
    cli("rm", "-f", "box")


def test_restart_while_somebody_waits(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine)
    with waiting_for(cli, sandbox) as child:
        sandbox.restart(timeout=20)
        assert child.communicate(timeout=60) == ("7\n", "")  # of the run that it has waited for
    assert sandbox.refresh().state == "running"
    cli("rm", "-f", "box")


def test_restart_keeps_a_sandbox_that_is_removed_at_its_end(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine, OBEDIENT, "--rm")
    cli("restart", "-t", "20", "box")
    assert sandbox.refresh().state == "running"
    wait_for_log(sandbox, "stopping\nready")
    cli("stop", "box")
    wait_until(lambda: not engine.list(all=True), "the removal")


def test_pause_and_unpause(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine, "echo ready; while :; do :; done")
    cli("pause", "box")
    assert sandbox.state == "paused"

    def rests() -> bool:
        before = sandbox.stats().cpu_ns
        time.sleep(0.1)
        return sandbox.stats().cpu_ns == before

    wait_until(rests, "the processor time to stand still")  # the last moments may be counted late
    used = sandbox.stats().cpu_ns
    assert "Up " in (line := cli("ps").stdout.splitlines()[1])
    assert "(paused)" in line
    assert "it is paused" in error_of(cli, "pause", "box")
    assert "it is paused" in error_of(cli, "attach", "box")
    assert "runs" in error_of(cli, "rm", "box")
    cli("unpause", "box")
    assert sandbox.state == "running"
    wait_until(lambda: sandbox.stats().cpu_ns > used, "the sandbox to go on")
    assert "it is running" in error_of(cli, "unpause", "box")
    cli("kill", "box")
    cli("wait", "box")
    assert "it is exited" in error_of(cli, "pause", "box")
    cli("rm", "box")


@pytest.mark.parametrize("how", [("stop", "-t", "20"), ("kill",), ("rm", "-f"), ("restart", "-t", "20")], ids=lambda how: how[0])
def test_a_paused_sandbox_ends(cli: Cli, engine: Engine, how: tuple[str, ...]) -> None:
    sandbox = start(cli, engine)
    cli("pause", "box")
    cli(*how, "box")
    if how[0] == "rm":
        with pytest.raises(NotFound):
            engine.get("box")
        return
    if how[0] == "restart":
        assert sandbox.refresh().state == "running"
    else:
        assert sandbox.wait(timeout=60) == {"stop": 7, "kill": 137}[how[0]]
    cli("rm", "-f", "box")


# -- rename, rm --------------------------------------------------------------------------------------------------------------------------


def test_rename(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine)
    sleeper(engine, "taken")
    assert cli("rename", "box", "other").stdout == "other\n"
    assert engine.get("other").id == sandbox.id
    assert "no such sandbox" in error_of(cli, "inspect", "box")
    assert "taken" in error_of(cli, "rename", "other", "taken")
    assert "a/b" in error_of(cli, "rename", "other", "a/b")
    assert error_of(cli, "rename", "other", "x" * 300)
    assert cli("exec", "other", "echo", "still here").stdout == "still here\n"
    cli("rm", "-f", "other", "taken")


def test_rm(cli: Cli, engine: Engine, private_host: PrivateHost) -> None:
    sandbox = start(cli, engine)
    assert "cannot remove box: it runs" in error_of(cli, "rm", "box")
    assert sandbox.refresh().state == "running"
    assert cli("rm", "-f", "box").stdout == "box\n"
    assert engine.list(all=True) == []
    assert list((private_host.root / "sandboxes").iterdir()) == []
    assert "no such sandbox" in error_of(cli, "rm", "-f", "box")


def test_rm_while_somebody_waits_and_follows(cli: Cli, engine: Engine) -> None:
    with waiting_for(cli, start(cli, engine)) as waiting, cli.popen("logs", "-f", "box") as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "ready\n"
        cli("rm", "-f", "box")
        assert following.communicate(timeout=60)[1] == ""
        assert waiting.communicate(timeout=60) == ("137\n", "")
    assert following.returncode == 0


# -- looking -----------------------------------------------------------------------------------------------------------------------------


def test_ps(cli: Cli, engine: Engine) -> None:
    sleeper(engine, "made", labels={"role": "db"})
    cli("run", "-d", "--name", "web", "-l", "role=web", "-l", "tier=1", "-p", "18080:80", "-p", "18081:81/udp", "busybox", "sleep", "1000")
    cli("run", "--name", "done", "--network", "none", "busybox", "sh", "-c", "exit 3", check=3)
    web = engine.get("web")
    header, row = cli("ps").stdout.splitlines()
    assert header.split() == ["ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "NETWORK", "ADDRESS", "PORTS"]
    assert row.startswith(f"{web.short_id}   web    busybox   sleep 1000   ")
    assert row.endswith(f"{web.ip_address}   0.0.0.0:18080->80/tcp, 0.0.0.0:18081->81/udp")
    assert [line.split()[1] for line in cli("ps", "-a").stdout.splitlines()[1:]] == ["done", "web", "made"]
    assert cli("ps", "-q").stdout == f"{web.short_id}\n"
    assert cli("ps", "-q", "--no-trunc").stdout == f"{web.id}\n"
    assert cli("ps", "-l", "-q").stdout.strip() == engine.get("done").short_id

    (document,) = json.loads(cli("ps", "--format", "json").stdout)
    assert document["id"] == web.id
    assert document["state"] == "running"
    assert document["command"] == ["sleep", "1000"]
    assert document["labels"] == {"role": "web", "tier": "1"}
    assert document["ip_address"] == web.ip_address
    assert [(port["host_port"], port["port"], port["protocol"]) for port in document["ports"]] == [(18080, 80, "tcp"), (18081, 81, "udp")]
    cli("rm", "-f", "web", "made", "done")


def test_ps_filters(cli: Cli, engine: Engine) -> None:
    sleeper(engine, "made", labels={"role": "db"})
    sleeper(engine, "web", labels={"role": "web"}, network="bridge")
    failed = engine.run("busybox", "sh", "-c", "exit 3", name="failed", network="none")
    failed.wait(timeout=60)
    running = sleeper(engine, "running", labels={"role": "web"})
    running.start()

    def named(*filters: str) -> list[str]:
        options = [word for text in filters for word in ("--filter", text)]
        return [document["name"] for document in json.loads(cli("ps", "-a", *options, "--format", "json").stdout)]

    assert named("status=created") == ["web", "made"]
    assert named("status=exited", "status=running") == ["running", "failed"]
    assert named("exited=3") == ["failed"]
    assert named("label=role") == ["running", "web", "made"]
    assert named("label=role=web", "status=created") == ["web"]
    assert named("name=a") == ["failed", "made"]
    assert named(f"id={failed.short_id}") == ["failed"]
    assert named("network=bridge") == ["web"]
    assert named("image=host") == []
    assert named("ancestor=busybox", "name=web") == ["web"]
    assert "color" in error_of(cli, "ps", "--filter", "color=red")
    for sandbox in engine.list(all=True):
        sandbox.remove(force=True)


def test_addressing(cli: Cli, engine: Engine) -> None:
    boxes: dict[str, Sandbox] = {}
    while (box := sleeper(engine, name=f"box{len(boxes)}")).id[0] not in boxes:
        boxes[box.id[0]] = box
    first = boxes[box.id[0]]
    common = next(length for length in range(64) if first.id[length] != box.id[length])
    assert cli("inspect", "--field", "name", box.id[: common + 1]).stdout.strip() == box.name
    assert cli("inspect", "--field", "name", first.id).stdout.strip() == first.name
    line = error_of(cli, "rm", box.id[:1])
    assert "ambiguous" in line
    # A name goes before the beginning of an id.
    cli("rename", first.name, box.id[:12])
    assert cli("inspect", "--field", "id", box.id[:12]).stdout.strip() == first.id
    assert "no such sandbox" in error_of(cli, "inspect", box.id + "0")
    assert "no such sandbox" in error_of(cli, "inspect", "*")
    assert error_of(cli, "inspect", "")
    for sandbox in engine.list(all=True):
        sandbox.remove()


def test_inspect(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine, OBEDIENT, "-e", "A=1", "-m", "64m", "--label", "x=y")
    (document,) = json.loads(cli("inspect", "box").stdout)
    assert document["id"] == sandbox.id
    assert document["pid"] == sandbox.pid
    assert document["state"] == "running"
    assert document["spec"]["resources"]["memory"] == 64 << 20
    assert document["spec"]["environment"] == [["A", "1"]]
    assert document["network"]["mode"] == "none"
    assert {row["kind"] for row in document["journal"]} >= {"cgroup", "directory", "sandbox"}
    assert cli("inspect", "--field", "spec.labels.0.1", "box").stdout == "y\n"
    assert "there is id, name" in cli("inspect", "--field", "nothing", "box", check=125).stderr
    result = cli("inspect", "--format", "json", "box", "nobody", check=125)
    assert [item["name"] for item in json.loads(result.stdout)] == ["box"]
    cli("rm", "-f", "box")


def test_port(cli: Cli, engine: Engine) -> None:
    published = ("-p", "18080:80", "-p", "127.0.0.1:18100-18102:9000-9002", "-p", "53/udp")
    cli("run", "-d", "--name", "box", *published, "busybox", "sleep", "1000")
    chosen = next(port.host_port for port in engine.get("box").ports if port.protocol == "udp")
    assert 0 < chosen < 65536
    assert sorted(cli("port", "box").stdout.splitlines()) == [
        f"53/udp -> 0.0.0.0:{chosen}",
        "80/tcp -> 0.0.0.0:18080",
        "9000-9002/tcp -> 127.0.0.1:18100-18102",
    ]
    assert cli("port", "box", "80").stdout == "0.0.0.0:18080\n"
    assert cli("port", "box", "9001/tcp").stdout == "127.0.0.1:18101\n"
    assert cli("port", "box", "53/udp").stdout == f"0.0.0.0:{chosen}\n"
    assert "box publishes no port 53/tcp" in error_of(cli, "port", "box", "53")
    assert json.loads(cli("port", "--format", "json", "box", "80").stdout) == [
        {"host_ip": "0.0.0.0", "host_port": 18080, "port": 80, "length": 1, "protocol": "tcp"}
    ]
    cli("rm", "-f", "box")


# -- update ------------------------------------------------------------------------------------------------------------------------------


def limit(engine: Engine, sandbox: Sandbox, *files: str) -> list[str]:
    """The words in the first of these files (version 1, version 2) that the sandbox's cgroup has."""
    below = engine.settings.cgroup(sandbox.id)
    paths = [hierarchy / below / name for name in files for hierarchy in cgroups.hierarchies()]
    return next(path for path in paths if path.exists()).read_text().split()


def test_update_of_a_running_sandbox(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine, OBEDIENT, "-m", "64m", "--pids-limit", "50")
    assert limit(engine, sandbox, "pids.max") == ["50"]
    assert cli("update", "-m", "128m", "--pids-limit", "20", "--cpus", "0.5", "box").stdout == "box\n"
    assert limit(engine, sandbox, "memory.limit_in_bytes", "memory.max") == [str(128 << 20)]
    assert limit(engine, sandbox, "pids.max") == ["20"]
    assert limit(engine, sandbox, "cpu.cfs_quota_us", "cpu.max")[0] == "50000"
    assert json.loads(cli("inspect", "--field", "spec.resources", "box").stdout)["memory"] == 128 << 20
    # Downward and away, and what is not given stays.
    cli("update", "-m", "32m", "--pids-limit", "-1", "box")
    assert limit(engine, sandbox, "memory.limit_in_bytes", "memory.max") == [str(32 << 20)]
    assert limit(engine, sandbox, "pids.max") == ["max"]
    assert limit(engine, sandbox, "cpu.cfs_quota_us", "cpu.max")[0] == "50000"
    cli("rm", "-f", "box")


def test_update_outlives_a_restart(cli: Cli, engine: Engine) -> None:
    sandbox = sleeper(engine)
    cli("update", "--pids-limit", "33", "box")
    cli("start", "box")
    assert limit(engine, sandbox, "pids.max") == ["33"]
    cli("rm", "-f", "box")


def test_a_bad_update_changes_nothing(cli: Cli, engine: Engine) -> None:
    sandbox = start(cli, engine, OBEDIENT, "--pids-limit", "50")
    assert "nothing to change" in error_of(cli, "update", "box")
    assert "10x" in error_of(cli, "update", "-m", "10x", "box")
    assert "999" in error_of(cli, "update", "--pids-limit", "20", "--cpuset-cpus", "999", "box")
    assert limit(engine, sandbox, "pids.max") == ["50"]
    assert sandbox.refresh().spec.resources.pids_limit == 50
    cli("rm", "-f", "box")


# -- events ------------------------------------------------------------------------------------------------------------------------------


def test_events_tell_a_life(cli: Cli, engine: Engine) -> None:
    script = "trap 'exit 2' TERM; echo ready; sleep 1000 & wait"
    cli("create", "--name", "box", "--label", "role=x", "--network", "none", "busybox", "sh", "-c", script)
    cli("start", "box")
    wait_for_log(engine.get("box"), "ready")
    for words in ("pause", "unpause", "stop", "restart", "kill"):
        cli(words, "box")
    cli("wait", "box")
    cli("rename", "box", "other")
    cli("rm", "other")
    found = json.loads("[" + ",".join(cli("events", "--since", "10m", "--until", "0s", "--format", "json").stdout.splitlines()) + "]")
    assert [event["action"] for event in found] == [
        "create", "start", "pause", "unpause", "kill", "die", "stop", "start", "restart", "kill", "die", "rename", "destroy",
    ]  # fmt: skip
    assert [event["attributes"].get("exit_code") for event in found if event["action"] == "die"] == [2, 137]
    assert {event["name"] for event in found} == {"box", "other"}
    assert {event["attributes"]["labels"]["role"] for event in found} == {"x"}


def test_events_filters_and_times(cli: Cli, engine: Engine) -> None:
    for name in ("one", "two"):
        sleeper(engine, name, labels={"n": name})
    engine.get("one").remove()
    past = ("events", "--since", "10m", "--until", "0s")

    def found(*options: str) -> list[list[str]]:
        return [line.split()[1:3] for line in cli(*past, *options).stdout.splitlines()]

    assert found() == [["sandbox", "create"], ["sandbox", "create"], ["sandbox", "destroy"]]
    assert found("--filter", "event=create") == [["sandbox", "create"]] * 2
    assert found("--filter", "container=two") == [["sandbox", "create"]]
    assert found("--filter", "sandbox=one", "--filter", "event=destroy") == [["sandbox", "destroy"]]
    assert found("--filter", "label=n=two") == [["sandbox", "create"]]
    assert found("--filter", f"container={engine.get('two').short_id}") == [["sandbox", "create"]]
    assert cli("events", "--since", "0s", "--until", "0s").stdout == ""
    assert "color" in error_of(cli, "events", "--filter", "color=red")
    engine.get("two").remove()


def test_live_events(cli: Cli, engine: Engine) -> None:
    sandbox = sleeper(engine)
    with cli.popen("events", "--since", "1h", "--filter", "event=create", "--filter", "event=rename", "--filter", "event=destroy") as child:
        assert child.stdout is not None
        assert child.stdout.readline().split()[2] == "create"
        changes: list[tuple[Callable[[], object], str]] = [(lambda: sandbox.rename("other"), "rename"), (sandbox.remove, "destroy")]
        for change, action in changes:
            change()
            assert child.stdout.readline().split()[2] == action
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=60) == ("", "")
    assert child.returncode == 0


def test_live_events_end_at_a_time(cli: Cli, engine: Engine) -> None:
    sleeper(engine).remove()
    until = str(time.time() + 0.5)
    assert [line.split()[2] for line in cli("events", "--since", "1h", "--until", until).stdout.splitlines()] == ["create", "destroy"]
    assert time.time() >= float(until)


def test_a_failed_start_has_an_end_too(cli: Cli, engine: Engine) -> None:
    cli("create", "--name", "box", "--network", "none", "busybox", "no-such-command")
    cli("start", "box", check=127)
    assert actions(engine) == ["create", "start", "die"]
    cli("rm", "box")


@pytest.mark.parametrize("commands", [["restart -t 0 web"], ["stop -t 0 web", "start web"], ["kill web", "wait web", "start web"]], ids=str)
def test_a_new_run_keeps_its_link(cli: Cli, commands: list[str]) -> None:
    """The link of the last run, which goes in the background, has the same name: deleting it late would take the new one."""
    with running(cli, "web"):
        for command in commands:
            cli(*command.split())
        time.sleep(0.3)  # for what runs in the background
        assert "eth0" in cli("exec", "web", "ip", "-o", "link").stdout
