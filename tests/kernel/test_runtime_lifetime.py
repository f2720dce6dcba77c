"""From start to end: status, lock, log, attach and detach, terminal, spawner, clean-up."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.errors import CommandNotFound, WrongState
from netbox.runtime import client, execute, protocol, status
from netbox.runtime.helper import Helper
from netbox.runtime.launcher import Launcher
from netbox.runtime.log_reader import read_logs
from netbox.runtime.spawner import Spawner
from tests.kernel.runtime_lab import Lab, alive
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def read_until(attachment: client.Attachment, wanted: bytes, timeout: float = 30.0) -> bytes:
    """The output up to and including ``wanted``."""
    got = b""
    deadline = time.monotonic() + timeout
    while wanted not in got:
        if not attachment.pending():
            assert select.select([attachment], [], [], max(0, deadline - time.monotonic()))[0], f"{got!r} lacks {wanted!r}"
        item = attachment.read_frame()
        assert item is not None, got
        if item[0] in (protocol.STDOUT, protocol.STDERR):
            got += item[1]
    return got


def test_status_and_lock_follow_the_life(lab: Lab) -> None:
    before = time.time()
    with lab.running("sh", "-c", "read x; exit 9", open_stdin=True) as sandbox:
        found = sandbox.status()
        assert (found.state, found.exit_code, found.signal, found.finished_at) == ("running", None, None, None)
        assert found.started_at is not None
        assert before <= found.started_at <= time.time()
        assert status.start_time(sandbox.pid) == found.pid_start
        assert status.is_locked(sandbox.config["run_dir"])
        assert status.acquire_lock(sandbox.config["run_dir"]) is None
        assert sandbox.attachment is not None
        sandbox.attachment.close_stdin()
        assert client.communicate(sandbox.attachment)[0] == 9
        wait_until(lambda: not status.is_locked(sandbox.config["run_dir"]), "the lock")
        found = sandbox.status()
        assert (found.state, found.exit_code, found.signal) == ("exited", 9, None)
        assert found.finished_at is not None
        assert found.finished_at >= before
        assert sorted(os.listdir(sandbox.config["run_dir"])) == ["lock", "status.json"]


def test_death_by_signal_is_recorded(lab: Lab) -> None:
    with lab.running() as sandbox:
        os.kill(sandbox.pid, signal.SIGKILL)
        assert sandbox.attachment is not None
        assert client.communicate(sandbox.attachment)[0] == 137
        assert (sandbox.status().exit_code, sandbox.status().signal) == (137, 9)


def test_detached_output_is_in_the_log(lab: Lab) -> None:
    config = lab.config("sh", "-c", r"echo one; echo two >&2; printf 'a\377b\n'; printf end", plan={"attach": False})
    assert lab.start(config) is None
    wait_until(lambda: not status.is_locked(config["run_dir"]), "the end")
    lines = [(line.stream, line.data) for line in read_logs(config["log"]["directory"])]
    assert sorted(lines) == [("stderr", b"two\n"), ("stdout", b"a\xffb\n"), ("stdout", b"end"), ("stdout", b"one\n")]


def test_log_rotation_under_load_loses_no_line(lab: Lab) -> None:
    """The second half is written once the first has come back: they are two pieces, however late the monitor reads."""
    lines = "i=$1; while [ $i -lt $2 ]; do echo line $i; i=$((i+1)); done"
    script = f"set -- 0 200; {lines}; read go; set -- 200 400; {lines}"
    config = lab.config("sh", "-c", script, log_max_size=2000, log_max_files=200, open_stdin=True)
    attachment = lab.start(config)
    assert attachment is not None
    with attachment:
        read_until(attachment, b"line 199\n")
        attachment.send_stdin(b"go\n")
        assert client.communicate(attachment)[0] == 0
    directory = Path(config["log"]["directory"])
    wait_until(lambda: not status.is_locked(config["run_dir"]), "the end")
    assert len(list(directory.iterdir())) > 1
    assert all(file.stat().st_size <= 2000 + 70000 for file in directory.iterdir())
    assert [line.data for line in read_logs(str(directory))] == [b"line %d\n" % number for number in range(400)]


def test_a_detached_client_can_attach_and_leave(lab: Lab) -> None:
    with lab.running("sh", "-c", "while read line; do echo got $line; done; echo over", open_stdin=True, plan={"attach": False}) as sandbox:
        for word in (b"one", b"two"):
            with client.connect(sandbox.config["run_dir"]) as attachment:
                attachment.send_stdin(word + b"\n")
                assert read_until(attachment, b"got " + word + b"\n")
        with client.connect(sandbox.config["run_dir"]) as attachment, client.connect(sandbox.config["run_dir"]) as watcher:
            attachment.send_stdin(b"all\n")
            read_until(watcher, b"got all\n")
            attachment.close_stdin()
            read_until(watcher, b"over\n")
            assert watcher.read_frame() == (protocol.EXIT, b'{"exit_code":0}')
            assert watcher.exit_code == 0
        wait_until(lambda: not status.is_locked(sandbox.config["run_dir"]), "the end")
        with pytest.raises(WrongState):
            client.connect(sandbox.config["run_dir"])


def test_a_stopped_client_does_not_stop_the_sandbox_for_good(lab: Lab) -> None:
    size = 3 << 20
    script = f"read x; head -c {size} /dev/zero; touch /tmp/done; sleep 100"
    with lab.running("sh", "-c", script, open_stdin=True, plan={"attach": False}) as sandbox:
        with client.connect(sandbox.config["run_dir"]) as stopped:
            stopped.send_stdin(b"\n")
            wait_until(lambda: sandbox.exec("ls", "/tmp/done").code == 0, "the writer", timeout=100, interval=0.2)

        def logged() -> int:  # the last of it may still be in the pipe
            return sum(len(line.data) for line in read_logs(sandbox.config["log"]["directory"]))

        wait_until(lambda: logged() >= size, "all of it in the log", interval=0.2)
        assert logged() == size


def test_a_slow_foreground_client_loses_nothing(lab: Lab) -> None:
    size = 2 << 20
    attachment = lab.start(lab.config("sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x"))
    assert attachment is not None
    with attachment:
        time.sleep(0.3)
        assert client.communicate(attachment) == (0, b"x" * size, b"")


def test_foreground_client_that_dies_leaves_the_sandbox_running(lab: Lab) -> None:
    with lab.running("sh", "-c", "cat; echo input ended; sleep 100", open_stdin=True) as sandbox:
        assert sandbox.attachment is not None
        sandbox.attachment.close()
        sandbox.attachment = None
        log = sandbox.config["log"]["directory"]
        wait_until(lambda: [line.data for line in read_logs(log)] == [b"input ended\n"], "the end of input")
        assert alive(sandbox.pid, sandbox.pid_start)


def test_a_terminal_survives_that_its_foreground_client_detaches(lab: Lab) -> None:
    with lab.running("sh", "-c", "echo ready; read x; echo got $x; sleep 100", tty=True, open_stdin=True) as sandbox:
        assert sandbox.attachment is not None
        read_until(sandbox.attachment, b"ready")
        sandbox.attachment.close()
        sandbox.attachment = None
        with client.connect(sandbox.config["run_dir"]) as attachment:
            attachment.send_stdin(b"later\n")
            read_until(attachment, b"got later")


def test_the_status_of_an_earlier_run_is_forgotten(lab: Lab) -> None:
    config = lab.config("true")
    status.write_status(config["run_dir"], {"state": "exited", "exit_code": 1})
    lock = status.acquire_lock(config["run_dir"])
    assert lock is not None
    with Launcher.prespawn() as launcher:
        launcher.begin(config, lock)
        launcher.wait_namespaces()
        assert status.read_status(config["run_dir"]) is None
    os.close(lock)


def test_a_stopped_and_started_sandbox_keeps_its_files(lab: Lab) -> None:
    """Also one whose overlay was mounted "volatile" (--rm), and killed."""
    for remove in (False, True):
        config = lab.config("sh", "-c", "cat /made; echo one >> /made; kill -9 $$; sleep 9", remove=remove, init=True)
        for expected in (b"", b"one\n"):
            attachment = lab.start(config)
            assert attachment is not None
            with attachment:
                assert client.communicate(attachment)[1] == expected
            wait_until(lambda: not status.is_locked(config["run_dir"]), "the monitor's end")  # noqa: B023


def test_terminal(lab: Lab) -> None:
    resized = "echo ready; until [ \"$(stty size)\" = '51 203' ]; do sleep 0.02; done; echo resized"
    script = f"tty; stty size; ls -l /dev/console | cut -c1; {resized}; read y; echo got $y"
    attachment = lab.start(lab.config("sh", "-c", script, tty=True, open_stdin=True, plan={"console_size": (30, 100)}))
    assert attachment is not None
    with attachment:
        assert read_until(attachment, b"ready\r\n").split() == [b"/dev/pts/0", b"30", b"100", b"c", b"ready"]
        attachment.resize(51, 203)
        read_until(attachment, b"resized\r\n")
        attachment.send_stdin(b"word\n")
        assert b"got word" in read_until(attachment, b"got word")
        assert client.communicate(attachment)[0] == 0


def test_terminal_is_the_controlling_one(lab: Lab) -> None:
    script = "trap 'echo interrupted; exit 4' INT; echo ready; while true; do sleep 0.05; done"
    attachment = lab.start(lab.config("sh", "-c", script, tty=True, open_stdin=True))
    assert attachment is not None
    with attachment:
        read_until(attachment, b"ready")
        attachment.resize(0, 0)  # makes no sense, and is ignored
        attachment.send_stdin(b"\x03")
        code, out, _ = client.communicate(attachment)
        assert (code, b"interrupted" in out) == (4, True)


def test_end_of_input_reaches_a_terminal(lab: Lab) -> None:
    attachment = lab.start(lab.config("sh", "-c", "echo $(cat | wc -c)", tty=True, open_stdin=True))
    assert attachment is not None
    with attachment:
        attachment.send_stdin(b"four\n")
        attachment.close_stdin()
        assert b"5" in client.communicate(attachment)[1]


def test_spawner_starts_monitors_and_execs_that_outlive_it(lab: Lab) -> None:
    with Spawner() as spawner:
        config = lab.config("sleep", "1000")
        attachment = lab.start(config, spawner)
        found = status.read_status(config["run_dir"])
        assert attachment is not None
        assert found is not None
        assert found.pid is not None
        assert found.pid_start is not None
        executed = execute.start(config, found.pid, found.pid_start, ["echo", "warm"], helper=lambda: Helper.start(execute.KIND, spawner))
        assert executed is not None
        assert client.communicate(executed) == (0, b"warm\n", b"")
        executed.close()
    with attachment:
        assert alive(found.pid, found.pid_start)
        os.kill(found.pid, signal.SIGKILL)
        assert client.communicate(attachment)[0] == 137


def test_spawner_that_was_killed_is_started_again(lab: Lab) -> None:
    with Spawner() as spawner:
        spawner.start()
        process = spawner._pid
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: not alive(process), "the spawner's death")
        attachment = lab.start(lab.config("true"), spawner)
        assert attachment is not None
        with attachment:
            assert client.communicate(attachment)[0] == 0


def test_spawner_ends_although_a_fork_of_its_caller_lives(private_host: PrivateHost) -> None:
    spawner = Spawner()
    spawner.start()
    assert spawner._channel is not None
    with socket.socket(fileno=os.dup(spawner._channel.fileno())):  # what a fork has
        closing = threading.Thread(target=spawner.close, daemon=True)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()


def test_starts_from_many_threads(lab: Lab) -> None:
    codes: list[int] = []
    configs = [lab.config("sh", "-c", f"exit {number}") for number in range(6)]

    def run(number: int) -> None:
        attachment = lab.start(configs[number], spawner)
        assert attachment is not None
        with attachment:
            codes.append(client.communicate(attachment)[0])

    with Spawner() as spawner:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive()
    assert sorted(codes) == list(range(6))


def test_collect_runs_unless_the_clean_up_was_claimed(lab: Lab, tmp_path: Path) -> None:
    proof = tmp_path / "collected"
    collect = ("/bin/sh", "-c", f"ls /proc/self/fd > {proof}.new; echo $NETBOX_ROOT >> {proof}.new; mv {proof}.new {proof}")
    for claim, expected in ((True, False), (False, True)):
        config = lab.config("true", plan={"collect": collect, "claim": claim})
        attachment = lab.start(config)
        assert attachment is not None
        found = status.read_status(config["run_dir"])
        assert found is not None
        assert found.monitor_pid is not None
        with attachment:
            client.communicate(attachment)
        if expected:
            wait_until(proof.exists, "the clean-up process")
            assert proof.read_text().split() == ["0", "1", "2", "3", str(lab.root)]
        else:
            wait_until(lambda: not alive(found.monitor_pid or 0), "the end of the monitor, which would become the clean-up")  # noqa: B023
            assert not proof.exists()


def test_a_claim_dies_with_its_client(lab: Lab, tmp_path: Path) -> None:
    proof = tmp_path / "collected"
    with lab.running("sleep", "1000", plan={"collect": ("/bin/sh", "-c", f"echo > {proof}"), "attach": False}) as sandbox:
        with client.connect(sandbox.config["run_dir"]) as attachment:
            attachment.claim()
        os.kill(sandbox.pid, signal.SIGKILL)
        wait_until(proof.exists, "the clean-up process")


def test_monitor_ignores_what_people_kill_with(lab: Lab) -> None:
    with lab.running() as sandbox:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(sandbox.monitor, number)
        assert sandbox.exec("echo", "alive").out == "alive\n"


def test_monitor_keeps_nothing_of_the_caller(lab: Lab) -> None:
    leak = os.open("/", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        with lab.running() as sandbox:
            assert os.getsid(sandbox.monitor) == sandbox.monitor
            assert os.readlink(f"/proc/{sandbox.monitor}/cwd") == "/"
            assert {os.readlink(f"/proc/{sandbox.monitor}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
            log, lock = f"{sandbox.config['log']['directory']}/log", f"{sandbox.config['run_dir']}/lock"
            allowed = {"/dev/null", "pipe", "socket", "anon_inode", log, lock}

            def others() -> set[str]:
                kinds = set()
                for entry in os.scandir(f"/proc/{sandbox.monitor}/fd"):
                    with contextlib.suppress(FileNotFoundError):
                        kinds.add(os.readlink(entry.path).split(":")[0])
                return kinds - allowed

            assert "/" not in others()
            wait_until(lambda: not others(), "the monitor to have nothing open but its own")  # just now it may be writing its status
    finally:
        os.close(leak)


def test_failed_exec_is_recorded(lab: Lab) -> None:
    config = lab.config("nosuch")
    with pytest.raises(CommandNotFound):
        lab.start(config)
    wait_until(lambda: not status.is_locked(config["run_dir"]), "the monitor's end")
    found = status.read_status(config["run_dir"])
    assert found is not None
    assert (found.state, found.exit_code) == ("aborted", 127)


def test_works_when_the_caller_has_no_stdio(lab: Lab, tmp_path: Path) -> None:
    """Descriptors 0 to 3 of the caller are free: the channel and the interpreter must not end up there."""
    config = lab.config("echo", "works")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.closerange(0, 4)
            attachment = lab.start(config)
            assert attachment is not None
            code = 0 if client.communicate(attachment) == (0, b"works\n", b"") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
