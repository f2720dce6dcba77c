"""``netbox exec``: a further command in a running sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.engine import Engine, Sandbox
from tests.support.cli import Cli
from tests.support.waiting import wait_until


@pytest.fixture
def box(engine: Engine) -> Iterator[Sandbox]:
    """A running sandbox called box."""
    options = {"environment": ["COLOUR=blue"], "working_dir": "/tmp", "hostname": "inner"}
    with engine.run("busybox", "sleep", "1000", name="box", network="none", init=True, **options) as sandbox:  # type: ignore[arg-type]
        yield sandbox


def parent_of(pid: int) -> str:
    """The parent of a process; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/status").read_text().partition("\nPPid:\t")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -15 $$"], 143),
        (["no-such-command"], 127),
        (["/no/such/command"], 127),
        (["/etc"], 126),
        (["/etc/passwd"], 126),
    ],
)
def test_exit_codes(cli: Cli, box: Sandbox, command: list[str], code: int) -> None:
    result = cli("exec", "box", *command, check=code)
    assert result.stdout == ""
    if code in (126, 127):
        assert result.stderr.startswith(f"netbox exec: cannot execute '{command[0]}': ")
        assert len(result.stderr.splitlines()) == 1
    else:
        assert result.stderr == ""
    assert box.refresh().state == "running"


def test_it_is_in_the_sandbox(cli: Cli, box: Sandbox) -> None:
    script = "pwd; hostname; echo $COLOUR $HOME; id -u; grep -c sleep /proc/1/cmdline; ls /sys/class/net; touch /made; echo err >&2"
    result = cli("exec", "box", "sh", "-c", script)
    assert result.stdout.split() == ["/tmp", "inner", "blue", "/root", "0", "1", "lo"]
    assert result.stderr == "err\n"
    assert box.exec("ls", "/made").exit_code == 0
    mine = {name: os.readlink(f"/proc/{box.pid}/ns/{name}") for name in ("mnt", "pid", "net", "uts", "ipc", "cgroup")}
    for name, link in mine.items():
        assert cli("exec", "box", "readlink", f"/proc/self/ns/{name}").stdout.strip() == link


def test_limits_and_privileges_are_the_sandboxes(cli: Cli, box: Sandbox) -> None:
    wanted = ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp:")
    script = "cat /proc/$1/status"

    def status(pid: str) -> list[str]:
        text = cli("exec", "box", "sh", "-c", script, "sh", pid).stdout
        return [line for line in text.splitlines() if line.startswith(wanted)]

    assert status("self") == status("1")
    with cli.popen("exec", "box", "sh", "-c", "echo ready; sleep 1000; true") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert {row.command for row in box.top()} >= {"sh -c echo ready; sleep 1000; true"}
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=60)


def test_environment_directory_and_user(cli: Cli, box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FROM_FILE=f\nCOLOUR=green\n")
    options = ("-e", "COLOUR=red", "-e", "OUTSIDE", "-e", "UNSET", "--env-file", str(tmp_path / "env"), "-w", "/etc", "-u", "1000:2000")
    script = "pwd; id -u; id -g; env"
    pwd, uid, gid, *rest = cli("exec", *options, "box", "sh", "-c", script, env={"OUTSIDE": "o", "SECRET": "s"}).stdout.splitlines()
    assert (pwd, uid, gid) == ("/etc", "1000", "2000")
    variables = dict(line.split("=", 1) for line in rest)
    assert {name: variables.get(name) for name in ("COLOUR", "OUTSIDE", "UNSET", "FROM_FILE", "SECRET")} == {
        "COLOUR": "red",
        "OUTSIDE": "o",
        "UNSET": None,
        "FROM_FILE": "f",
        "SECRET": None,
    }
    assert cli("exec", "-u", "nobody", "box", "id", "-un").stdout == "nobody\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-w", "/no/such", "box", "true"], "/no/such"),
        (["-w", "relative", "box", "true"], "relative"),
        (["-u", "nobody-here", "box", "true"], "no user 'nobody-here'"),
        (["-e", "=x", "box", "true"], "environment"),
        (["-it", "box", "true"], "not a TTY"),
        (["nobody", "true"], "no such sandbox: nobody"),
        (["box"], "missing argument"),
        (["--no-such-option", "box", "true"], "no such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_125_when_netbox_itself_failed(cli: Cli, box: Sandbox, arguments: list[str], message: str) -> None:
    result = cli("exec", *arguments, check=125)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_stdin(cli: Cli, box: Sandbox) -> None:
    data = os.urandom(2_000_000)
    result = subprocess.run(
        [*cli.command, "exec", "-i", "box", "cat"], input=data, capture_output=True, env=cli.environment(), timeout=60, check=True
    )
    assert result.stdout == data
    assert cli("exec", "box", "cat", stdin="not for it").stdout == ""
    assert cli("exec", "-i", "box", "wc", "-c", stdin="").stdout.strip() == "0"


def test_big_output_is_whole(cli: Cli, box: Sandbox) -> None:
    result = cli("exec", "box", "sh", "-c", "yes out | head -c 5000000 & yes err | head -c 5000000 >&2; wait")
    assert result.stdout == ("out\n" * 1_250_000)
    assert result.stderr == ("err\n" * 1_250_000)


def test_its_output_is_not_in_the_sandboxes_log(cli: Cli, box: Sandbox) -> None:
    cli("exec", "box", "echo", "hello")
    assert list(box.logs()) == []


def test_detached(cli: Cli, box: Sandbox) -> None:
    assert cli("exec", "-d", "box", "sh", "-c", "echo hello > /tmp/said; sleep 1000; true").stdout == ""
    wait_until(lambda: box.exec("cat", "/tmp/said").stdout == b"hello\n", "what the detached command writes")
    # The sandbox's pid 1 has adopted it; it has no parent outside.
    wait_until(lambda: str(box.pid) in [parent_of(row.pid) for row in box.top() if row.command.startswith("sh -c")], "the adoption")
    assert "cannot execute" in cli("exec", "-d", "box", "no-such-command", check=127).stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_it_ends_with_who_asked_for_it(cli: Cli, box: Sandbox, number: int, code: int) -> None:
    with cli.popen("exec", "box", "sh", "-c", "echo ready; sleep 1000; true") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        child.communicate(timeout=60)
    assert child.returncode == code
    wait_until(lambda: not any("ready" in row.command for row in box.top()), "the end of the command")
    assert box.refresh().state == "running"


def test_it_ends_with_the_sandbox(cli: Cli, box: Sandbox) -> None:
    with cli.popen("exec", "box", "sh", "-c", "echo ready; sleep 1000") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        box.kill()
        child.communicate(timeout=60)
    assert child.returncode == 137


def test_in_a_sandbox_that_does_not_run(cli: Cli, box: Sandbox) -> None:
    def error() -> str:
        result = cli("exec", "box", "true", check=125)
        (line,) = result.stderr.splitlines()
        return line

    box.pause()
    assert error() == "netbox exec: cannot run a command in box: it is paused; unpause it first (netbox unpause box)"
    box.unpause()
    box.stop()
    assert error() == "netbox exec: cannot run a command in box: it is exited; start it first (netbox start box)"
    box.remove()
    assert "no such sandbox: box" in error()


def test_privileged(cli: Cli, box: Sandbox) -> None:
    assert box.exec("mount", "-t", "tmpfs", "none", "/mnt").exit_code != 0
    cli("exec", "--privileged", "box", "sh", "-c", "mkdir -p /mnt && mount -t tmpfs none /mnt")


def test_with_a_user_namespace(cli: Cli, engine: Engine) -> None:
    with engine.run("busybox", "sleep", "1000", name="mapped", network="none", userns="auto", init=True):
        assert cli("exec", "mapped", "sh", "-c", "id -u; cat /proc/self/uid_map; touch /x && echo written").stdout.split()[0::3] == [
            "0",
            "65536",
        ]
        assert cli("exec", "-u", "1000", "mapped", "id", "-u").stdout == "1000\n"
