"""``netbox logs``: what was written, apart by stream, by time, followed, and rotated."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from netbox.engine import Engine, Sandbox
from tests.e2e.boxes import wait_for_log
from tests.support.cli import Cli
from tests.support.host import PrivateHost

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"


def run(engine: Engine, script: str, wait: bool = True, **options: object) -> Sandbox:
    sandbox = engine.run("busybox", "sh", "-c", script, name="box", network="none", **options)  # type: ignore[arg-type]
    if wait:
        assert sandbox.wait(timeout=60) == 0
    return sandbox


def spaced(engine: Engine, *writes: str) -> Sandbox:
    """An ended sandbox that made each of these writes after the one before had been logged, at a later time."""
    sandbox = run(engine, "; read go; ".join([*writes, "exit 0"]), wait=False, open_stdin=True)
    with sandbox.attach() as attachment:
        for write in writes:
            for word in re.findall(r"echo (\w+)", write):
                wait_for_log(sandbox, word)
            attachment.send_stdin(b"\n")
    assert sandbox.wait(timeout=60) == 0
    return sandbox


def logs(cli: Cli, *options: str) -> str:
    return cli("logs", *options, "box").stdout


def test_streams_apart(cli: Cli, engine: Engine) -> None:
    with run(engine, "echo out1; echo err1 >&2; sleep 0.01; echo out2; printf unfinished"):
        result = cli("logs", "box")
        assert result.stdout == "out1\nout2\nunfinished"
        assert result.stderr == "err1\n"


def test_the_order_between_the_streams_is_kept(cli: Cli, engine: Engine) -> None:
    with spaced(engine, "echo out1", "echo err1 >&2", "echo out2", "echo err2 >&2"):
        both = subprocess.run(
            [*cli.command, "logs", "box"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=cli.environment(), timeout=60, check=True
        )
        assert both.stdout.split() == [f"{stream}{number}".encode() for number in (1, 2) for stream in ("out", "err")]


def test_of_a_running_and_of_an_ended_sandbox(cli: Cli, engine: Engine) -> None:
    with run(engine, "trap 'echo end; exit 0' TERM; echo begin; while :; do sleep 0.02; done", wait=False) as sandbox:
        wait_for_log(sandbox, "begin")
        assert logs(cli) == "begin\n"
        sandbox.stop()
        assert logs(cli) == "begin\nend\n"
        sandbox.start()
        wait_for_log(sandbox, "begin\nend\nbegin")  # a second run goes on in the same log


def test_what_was_shown_is_in_the_log_too(cli: Cli) -> None:
    shown = cli("run", "--name", "box", "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2")
    logged = cli("logs", "box")
    assert (logged.stdout, logged.stderr) == (shown.stdout, shown.stderr)
    cli("rm", "box")


def test_tail(cli: Cli, engine: Engine) -> None:
    with run(engine, "seq 1 1000; printf x"):
        assert logs(cli, "--tail", "3") == "999\n1000\nx"
        assert logs(cli, "-n", "0") == ""
        assert logs(cli, "--tail", "all").count("\n") == 1000
        assert logs(cli, "--tail", "5000").count("\n") == 1000
        assert "tail" in cli("logs", "--tail", "-3", "box", check=125).stderr


def test_timestamps(cli: Cli, engine: Engine) -> None:
    with spaced(engine, "echo one; echo two >&2", "echo three") as sandbox:
        result = cli("logs", "-t", "box")
        first, third = result.stdout.splitlines()
        assert re.fullmatch(f"{TIME} one", first)
        assert re.fullmatch(f"{TIME} two\n", result.stderr)
        assert re.fullmatch(f"{TIME} three", third)
        assert first < third
        times = [line.time for line in sandbox.logs()]
        assert (sandbox.started_at or 0) <= times[0]
        assert times[0] <= times[1] < times[2]
        assert times[-1] <= (sandbox.finished_at or 0)


def test_since_and_until(cli: Cli, engine: Engine) -> None:
    with spaced(engine, "echo one", "echo two", "echo three") as sandbox:
        one, two, three = (line.time for line in sandbox.logs())
        assert logs(cli, "--since", f"{(one + two) / 2:.6f}") == "two\nthree\n"
        assert logs(cli, "--until", f"{(one + two) / 2:.6f}") == "one\n"
        assert logs(cli, "--since", f"{(one + two) / 2:.6f}", "--until", f"{(two + three) / 2:.6f}") == "two\n"
        assert logs(cli, "--since", "10m", "--tail", "1") == "three\n"
        assert logs(cli, "--until", "10m") == ""
        assert logs(cli, "--since", logs(cli, "-t").splitlines()[2].split()[0]) == "three\n"  # a time as it is printed
        assert "never" in cli("logs", "--since", "never", "box", check=125).stderr


def test_follow(cli: Cli, engine: Engine) -> None:
    with run(engine, "echo old; read line; echo $line; read line; echo err >&2; printf last", wait=False, open_stdin=True) as sandbox:
        wait_for_log(sandbox, "old")
        with cli.popen("logs", "-f", "box") as child, sandbox.attach() as attachment:
            assert child.stdout is not None
            assert child.stdout.readline() == "old\n"
            attachment.send_stdin(b"new\n")
            assert child.stdout.readline() == "new\n"
            attachment.send_stdin(b"\n")
            assert child.communicate(timeout=60) == ("last", "err\n")
        assert child.returncode == 0


def test_follow_from_the_end(cli: Cli, engine: Engine) -> None:
    script = "seq 1 100; trap 'echo end; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    with run(engine, script, wait=False) as sandbox:
        wait_for_log(sandbox, "ready")
        with cli.popen("logs", "-f", "--tail", "2", "-t", "box") as child:
            assert child.stdout is not None
            assert [child.stdout.readline().split()[1] for _ in range(2)] == ["100", "ready"]
            sandbox.stop()
            rest, _ = child.communicate(timeout=60)
            assert re.fullmatch(f"{TIME} end\n", rest)


def test_follow_of_an_ended_sandbox_ends(cli: Cli, engine: Engine) -> None:
    with run(engine, "echo over"):
        assert logs(cli, "-f") == "over\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_follow_is_interrupted(cli: Cli, engine: Engine, number: int, code: int) -> None:
    with run(engine, "echo ready; sleep 1000", wait=False) as sandbox:
        with cli.popen("logs", "-f", "box") as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            child.send_signal(number)
            assert child.communicate(timeout=60) == ("", "")
        assert child.returncode == code
        assert sandbox.refresh().state == "running"


def test_follow_into_a_pipe_that_closes(cli: Cli, engine: Engine) -> None:
    with run(engine, "yes", wait=False), cli.popen("logs", "-f", "box") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "y\n"
        child.stdout.close()
        assert child.wait(60) == 141


def test_bytes_are_kept(cli: Cli, engine: Engine, tmp_path: Path) -> None:
    data = bytes(range(256)) * 300 + "äöü€𝄞\n".encode() * 5000
    (tmp_path / "data").write_bytes(data)
    with run(engine, "cat /data/data", volumes=[f"{tmp_path}:/data:ro"]):
        result = subprocess.run([*cli.command, "logs", "box"], capture_output=True, env=cli.environment(), timeout=60, check=True)
        assert result.stdout == data


def test_rotation(cli: Cli, engine: Engine, private_host: PrivateHost) -> None:
    with run(engine, "seq 1 50000", log_max_size="64k", log_max_files=3) as sandbox:
        directory = private_host.root / "sandboxes" / sandbox.id / "logs"
        files = sorted(path.name for path in directory.iterdir())
        assert files == ["log", "log.1", "log.2"]
        assert all(path.stat().st_size <= (64 << 10) + (128 << 10) for path in directory.iterdir())
        lines = logs(cli).splitlines()
        # The newest are there without a gap; the oldest went with their file.
        assert lines[-1] == "50000"
        assert 1 < int(lines[1]) < 50000
        assert [int(line) for line in lines[1:]] == list(range(int(lines[1]), 50001))


def test_follow_over_rotated_files(cli: Cli, engine: Engine) -> None:
    script = "read line; seq 1 30000; echo end"
    with run(engine, script, wait=False, open_stdin=True, log_max_size="100k", log_max_files=50) as sandbox:
        with cli.popen("logs", "-f", "box") as child, sandbox.attach() as attachment:
            attachment.send_stdin(b"\n")
            output, error = child.communicate(timeout=60)
        assert error == ""
        assert output.splitlines() == [*map(str, range(1, 30001)), "end"]


def test_no_such_sandbox(cli: Cli) -> None:
    assert "no such sandbox: box" in cli("logs", "box", check=125).stderr


def test_a_sandbox_that_never_ran_has_no_log(cli: Cli, engine: Engine) -> None:
    with engine.create("busybox", "true", name="box"):
        assert logs(cli) == ""
        assert logs(cli, "-f") == ""
