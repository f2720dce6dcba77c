"""``netbox run``: exit codes, streams, what the command finds inside, signals, and nothing left afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from netbox.engine import Engine
from tests.e2e.boxes import wait_for_log
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

RUN = ("run", "--rm", "--network", "none")
WAITING = "echo ready; while :; do sleep 0.02; done"


def run_bytes(cli: Cli, *arguments: str, data: bytes = b"", check: int = 0) -> subprocess.CompletedProcess[bytes]:
    result = subprocess.run([*cli.command, *arguments], input=data, capture_output=True, timeout=60, env=cli.environment(), check=False)
    assert result.returncode == check, result.stderr
    return result


def shell(cli: Cli, script: str, *options: str, check: int = 0, **extra: str) -> str:
    return cli(*RUN, *options, "busybox", "sh", "-c", script, check=check, env=extra).stdout


# -- exit codes --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["false"], 1),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "exit 255"], 255),
        (["no-such-command"], 127),
        (["/no/such/command"], 127),
        (["/etc"], 126),
        (["/etc/passwd"], 126),
        (["/etc/passwd/x"], 127),
    ],
)
def test_the_exit_code_is_the_commands(cli: Cli, command: list[str], code: int) -> None:
    result = cli(*RUN, "busybox", *command, check=code)
    assert result.stdout == ""
    if code in (126, 127):
        assert result.stderr.startswith(f"netbox run: cannot execute '{command[0]}': ")
        assert len(result.stderr.splitlines()) == 1
    else:
        assert result.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGKILL])
def test_a_signal_is_128_and_its_number(cli: Cli, number: int) -> None:
    # The reaper passes on how its child ended; pid 1 itself is not hit by signals of its own namespace.
    assert shell(cli, f"kill -{int(number)} $$", "--init", check=128 + number) == ""


def test_pid_1_killed_from_outside(cli: Cli, engine: Engine) -> None:
    with cli.popen("run", "--rm", "--network", "none", "--name", "box", "busybox", "sh", "-c", WAITING) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        engine.get("box").kill()
        assert child.communicate(timeout=60) == ("", "")
    assert child.returncode == 137
    assert engine.list(all=True) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-option", "busybox"], "no such option"),
        ([], "no image is given"),
        (["no-such-image", "true"], "no image 'no-such-image'"),
        (["--memory", "10x", "busybox", "true"], "10x"),
        (["-u", "nobody-here", "busybox", "true"], "no user 'nobody-here'"),
        (["-u", "root:no-group", "busybox", "true"], "no-group"),
        (["-w", "/etc/passwd", "busybox", "true"], "/etc/passwd"),
        (["-i", "-t", "busybox", "true"], "the input device is not a TTY"),
        (["--env-file", "/no/such/file", "busybox", "true"], "/no/such/file"),
        (["-d", "-a", "stdout", "busybox", "true"], "contradict"),
        (["--network", "nowhere", "busybox", "true"], "no such network: nowhere"),
        (["--mount", "type=bind,source=/no/such,target=/x", "busybox", "true"], "/no/such"),
    ],
    ids=str,
)
def test_125_when_netbox_itself_failed(cli: Cli, private_host: PrivateHost, arguments: list[str], message: str) -> None:
    result = cli("run", "--name", "box", *arguments, check=125)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert cli("ps", "-aq").stdout == ""


# -- what stays --------------------------------------------------------------------------------------------------------------------------


def test_without_rm_the_ended_sandbox_stays(cli: Cli) -> None:
    cli("run", "--name", "box", "busybox", "sh", "-c", "exit 3", check=3)
    assert cli("inspect", "--field", "state", "box").stdout == "exited\n"
    assert cli("inspect", "--field", "exit_code", "box").stdout == "3\n"
    assert "Exited (3)" in cli("ps", "-a").stdout
    cli("rm", "box")


def test_a_taken_name_is_refused(cli: Cli) -> None:
    identity = cli("create", "--name", "box", "busybox", "true").stdout.strip()
    result = cli("run", "--name", "box", "busybox", "true", check=125)
    assert "box" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert cli("ps", "-aq", "--no-trunc").stdout.split() == [identity]
    cli("rm", "box")


# -- streams -----------------------------------------------------------------------------------------------------------------------------


def test_stdout_and_stderr_apart(cli: Cli) -> None:
    script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done"
    result = cli(*RUN, "busybox", "sh", "-c", script)
    assert result.stdout == "out1\nout2\nout3\n"
    assert result.stderr == "err1\nerr2\nerr3\n"


@pytest.mark.parametrize(("stream", "out", "err"), [("stdout", "out\n", ""), ("stderr", "", "err\n")])
def test_only_one_stream(cli: Cli, stream: str, out: str, err: str) -> None:
    result = cli(*RUN, "-a", stream, "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (out, err)


def test_binary_output_is_unchanged(cli: Cli, tmp_path: Path) -> None:
    data = bytes(range(256)) * 500 + b"\xff\xfe\0"
    (tmp_path / "data").write_bytes(data)
    result = run_bytes(cli, *RUN, "-v", f"{tmp_path}:/data:ro", "busybox", "sh", "-c", "cat /data/data; cat /data/data >&2")
    assert result.stdout == data
    assert result.stderr == data


def test_big_output_is_whole(cli: Cli) -> None:
    size = 20_000_000
    result = run_bytes(cli, *RUN, "busybox", "sh", "-c", f"yes out | head -c {size} & yes err | head -c {size} >&2; wait")
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256((b"out\n" * size)[:size]).digest()
    assert hashlib.sha256(result.stderr).digest() == hashlib.sha256((b"err\n" * size)[:size]).digest()


def test_output_waits_for_a_slow_reader(cli: Cli) -> None:
    with cli.popen(*RUN, "--name", "box", "busybox", "sh", "-c", "head -c 4000000 /dev/zero; echo end") as child:
        assert child.stdout is not None
        # It fills every buffer on the way while nobody reads, and still runs.
        wait_until(lambda: "box" in cli("ps").stdout, "the start")
        output = child.stdout.read()
        child.communicate(timeout=60)
    assert len(output) == 4_000_004
    assert output.endswith("\0end\n")
    assert child.returncode == 0


def test_the_end_does_not_wait_for_background_processes(cli: Cli) -> None:
    assert shell(cli, "sleep 1000 & echo over") == "over\n"


def test_stdin(cli: Cli) -> None:
    data = os.urandom(3_000_000)
    assert run_bytes(cli, *RUN, "-i", "busybox", "cat", data=data).stdout == data


def test_the_end_of_stdin_arrives(cli: Cli) -> None:
    assert cli(*RUN, "-i", "busybox", "wc", "-c", stdin="12345").stdout.strip() == "5"
    assert cli(*RUN, "-i", "busybox", "wc", "-c", stdin="").stdout.strip() == "0"


def test_without_i_stdin_is_empty(cli: Cli) -> None:
    assert cli(*RUN, "busybox", "cat", stdin="not for the sandbox").stdout == ""


def test_a_command_that_does_not_read_its_stdin(cli: Cli) -> None:
    assert run_bytes(cli, *RUN, "-i", "busybox", "sh", "-c", "exit 5", data=bytes(5_000_000), check=5).stdout == b""


def test_a_conversation_over_stdin(cli: Cli) -> None:
    with cli.popen(*RUN, "-i", "busybox", "sh", "-c", 'while read line; do echo "got $line"; done; echo end') as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for word in ("one", "two"):
            child.stdin.write(f"{word}\n")
            child.stdin.flush()
            assert child.stdout.readline() == f"got {word}\n"
        assert child.communicate(timeout=60) == ("end\n", "")


def test_the_reader_goes_away(cli: Cli) -> None:
    with cli.popen(*RUN, "--name", "box", "busybox", "yes") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "y\n"
        child.stdout.close()
        assert child.wait(60) == 141
    assert cli("ps", "-aq").stdout == ""


def test_closed_standard_streams(cli: Cli) -> None:
    command = " ".join([*cli.command, *RUN, "-i", "busybox", "sh", "-c", "'cat; exit 4'", "<&- >&- 2>&-"])
    result = subprocess.run(["sh", "-c", command], timeout=60, env=cli.environment(), check=False)
    assert result.returncode == 4


# -- what the command finds inside -------------------------------------------------------------------------------------------------------


def test_environment(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "one").write_text('# a comment\n\nFIRST=1\nBOTH=file\nQUOTED="a b"\nINHERITED\nNOT_SET\n')
    (tmp_path / "two").write_text("BOTH=second file\nEMPTY=\n")
    files = ("--env-file", str(tmp_path / "one"), "--env-file", str(tmp_path / "two"))
    variables = ("-e", "GIVEN=x=y", "-e", "FROM_HERE", "-e", "NOT_HERE", "-e", "FIRST=2")
    outside = {"INHERITED": "i", "FROM_HERE": "h", "SECRET": "s"}
    result = cli(*RUN, *files, *variables, "--hostname", "box", "busybox", "env", env=outside)
    assert dict(line.split("=", 1) for line in result.stdout.splitlines()) == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME": "box",
        "HOME": "/root",
        "FIRST": "2",
        "BOTH": "second file",
        "QUOTED": '"a b"',
        "INHERITED": "i",
        "EMPTY": "",
        "GIVEN": "x=y",
        "FROM_HERE": "h",
    }


def test_working_directory(cli: Cli) -> None:
    assert shell(cli, "pwd") == "/\n"
    assert shell(cli, "pwd", "-w", "/tmp") == "/tmp\n"
    assert shell(cli, "pwd", "-w", "/made/on/the/way") == "/made/on/the/way\n"
    assert "not an absolute path" in cli(*RUN, "-w", "relative", "busybox", "true", check=125).stderr


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("0", "0 0 /root"),
        ("nobody", "65534 65534 /"),
        ("1000", "1000 0 /"),
        ("1000:2000", "1000 2000 /"),
        ("root:nogroup", "0 65534 /root"),
    ],
)
def test_user(cli: Cli, user: str, found: str) -> None:
    uid, gid, home = shell(cli, 'echo "$(id -u) $(id -g) $HOME"', "-u", user).split()
    assert [uid, gid] == found.split()[:2]
    assert home.startswith(found.split()[2])


def test_a_user_writes_to_dev_stdout(cli: Cli) -> None:
    assert shell(cli, "echo hello > /dev/stdout", "-u", "1000:1000") == "hello\n"


def test_hostname(cli: Cli) -> None:
    assert shell(cli, "hostname; cat /etc/hostname", "--hostname", "box.example") == "box.example\nbox.example\n"
    identity, name = shell(cli, "hostname", "--cidfile", "/run/cid").strip(), Path("/run/cid").read_text()
    assert name.startswith(identity)
    Path("/run/cid").unlink()


def test_init_is_pid_1_and_reaps(cli: Cli) -> None:
    # The orphan of a subshell becomes a child of pid 1: without a reaper it stays a zombie.
    gone = "(sleep 0.01 & echo $! > /tmp/orphan); while [ -e /proc/$(cat /tmp/orphan) ]; do sleep 0.01; done"
    script = f"{gone}; cat /proc/1/comm; ps -o stat,comm | grep -c '^Z'"
    first, zombies = shell(cli, script, "--init", check=1).splitlines()
    assert (first, zombies) == ("netbox-init", "0")
    assert shell(cli, "read name < /proc/1/comm; echo $name") == "sh\n"


# -- id and name -------------------------------------------------------------------------------------------------------------------------


def test_detached(cli: Cli, engine: Engine) -> None:
    result = cli("run", "-d", "--name", "box", "busybox", "sh", "-c", "cat; echo over")
    assert re.fullmatch(r"[0-9a-f]{64}\n", result.stdout)
    sandbox = engine.get("box")
    assert sandbox.id == result.stdout.strip()
    assert sandbox.wait(timeout=60) == 0
    assert [line.data for line in sandbox.logs()] == [b"over\n"]
    sandbox.remove()


def test_detached_with_rm_is_collected_by_its_monitor(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--rm", "busybox", "true")
    wait_until(lambda: not engine.list(all=True), "the removal")


def test_a_detached_start_that_fails(cli: Cli) -> None:
    result = cli("run", "-d", "busybox", "no-such-command", check=127)
    assert result.stdout == ""
    assert cli("ps", "-aq").stdout == ""


def test_cidfile(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "cid"
    cli("run", "--name", "box", "--cidfile", str(path), "busybox", "true")
    assert path.read_text() == cli("inspect", "--field", "id", "box").stdout.strip()
    before = path.read_text()
    assert "it exists" in cli("run", "--cidfile", str(path), "busybox", "true", check=125).stderr
    assert path.read_text() == before
    cli("rm", "box")
    path.unlink()
    cli("run", "--cidfile", str(path), "no-such-image", check=125)
    assert not path.exists()
    assert "/no/such" in cli("run", "--cidfile", "/no/such/directory/cid", "busybox", "true", check=125).stderr


# -- signals -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_passed_on(cli: Cli, name: str) -> None:
    with cli.popen(*RUN, "busybox", "sh", "-c", f"trap 'echo got {name}; exit 9' {name}; {WAITING}") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.Signals[f"SIG{name}"])
        assert child.communicate(timeout=60) == (f"got {name}\n", "")
    assert child.returncode == 9


def test_the_third_interrupt_kills(cli: Cli) -> None:
    script = "trap 'echo no' INT; echo ready; while :; do sleep 0.02; done"
    with cli.popen(*RUN, "busybox", "sh", "-c", script) as child:
        assert child.stdout is not None
        for expected in ("ready\n", "no\n", "no\n"):
            assert child.stdout.readline() == expected
            child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    assert child.returncode == 137
    assert "ctrl-c once more kills it" in error


def test_without_proxy_a_signal_ends_the_command_alone(cli: Cli, engine: Engine) -> None:
    with cli.popen("run", "--name", "box", "--sig-proxy=false", "busybox", "sh", "-c", WAITING) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 143
    sandbox = engine.get("box")
    assert sandbox.state == "running"
    sandbox.remove(force=True)


def test_sigkill_of_the_command_leaves_the_sandbox_running(cli: Cli, engine: Engine) -> None:
    with cli.popen("run", "--rm", "--name", "box", "busybox", "sh", "-c", "trap 'exit 0' TERM; " + WAITING) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.kill()
        child.wait(60)
    sandbox = engine.get("box")
    assert sandbox.state == "running"
    # It goes on writing into its log, and is collected by its monitor in the end.
    wait_for_log(sandbox, "ready")
    sandbox.stop()
    wait_until(lambda: not engine.list(all=True), "the removal")
