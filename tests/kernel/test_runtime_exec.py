"""Further commands in a running sandbox: they are what its own command is, and end when they should."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from netbox.errors import CommandNotExecutable, CommandNotFound, HostError, UsageError, WrongState
from netbox.kernel import capabilities
from netbox.runtime import client, execute, execute_helper, protocol
from netbox.runtime.helper import Helper
from netbox.spec import SecuritySpec
from tests.kernel.runtime_lab import USERNS_BASE, Lab, alive
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


@pytest.mark.parametrize("userns", ["host", "auto"])
def test_exec(lab: Lab, userns: str) -> None:
    options = {
        "security": SecuritySpec(userns=userns),
        "environment": (("A", "1"),),
        "working_dir": "/tmp",
        "plan": {"userns_base": USERNS_BASE},
    }
    with lab.running(**options) as sandbox:
        script = "pwd; id -u; echo $A$B; echo err >&2; grep -E 'CapPrm|NoNew|Seccomp:' /proc/self/status; exit 3"
        result = sandbox.exec("sh", "-c", script, environment=["B=2"])
        inside = sandbox.exec("sh", "-c", "grep -E 'CapPrm|NoNew|Seccomp:' /proc/1/status")
        assert result.out.split("\n")[:3] == ["/tmp", "0", "12"]
        assert result.out.split("\n")[3:] == inside.out.split("\n")
        assert (result.code, result.err) == (3, "err\n")
        links = "for n in mnt pid uts ipc net cgroup user; do readlink /proc/%s/ns/$n; done; cat /proc/%s/cgroup"
        assert sandbox.exec("sh", "-c", links % ("self", "self")).out == sandbox.exec("sh", "-c", links % (1, 1)).out
        data = b"z" * 300_000
        assert sandbox.exec("wc", "-c", data=data).out.strip() == "300000"
        assert sandbox.exec("id", "-un", user="bob").out == "bob\n"
        assert sandbox.exec("pwd", working_dir="/bin").out == "/bin\n"
        assert sandbox.exec("sh", "-c", "tty; stty size", tty=True, console_size=(9, 99)).out == "/dev/pts/0\r\n9 99\r\n"
        assert sandbox.exec("ls", "/proc/self/fd").out.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("command", "options", "error"),
    [
        ("nosuch", {}, CommandNotFound),
        ("/etc/passwd", {}, CommandNotExecutable),
        ("true", {"user": "nix"}, UsageError),
        ("true", {"working_dir": "/nowhere"}, UsageError),
    ],
)
def test_exec_failures(lab: Lab, command: str, options: dict[str, Any], error: type[Exception]) -> None:
    with lab.running() as sandbox, pytest.raises(error):
        sandbox.exec(command, **options)


def test_exec_in_a_dead_sandbox(lab: Lab) -> None:
    with lab.running() as sandbox:
        sandbox.end()
        with pytest.raises(WrongState, match="not running"):
            execute.start(sandbox.config, sandbox.pid, sandbox.pid_start, ["true"])
        with pytest.raises(WrongState):  # the pid now belongs to another process
            execute.start(sandbox.config, os.getpid(), sandbox.pid_start, ["true"])


def test_detached_exec_goes_on_alone(lab: Lab) -> None:
    with lab.running() as sandbox:
        assert execute.start(sandbox.config, sandbox.pid, sandbox.pid_start, ["sleep", "77"], detach=True) is None
        wait_until(lambda: "sleep 77" in sandbox.exec("ps", "-o", "args").out, "the detached process")


def test_closing_an_exec_ends_its_process(lab: Lab) -> None:
    with lab.running() as sandbox:
        attachment = execute.start(sandbox.config, sandbox.pid, sandbox.pid_start, ["sleep", "78"])
        assert attachment is not None
        wait_until(lambda: "sleep 78" in sandbox.exec("ps", "-o", "args").out, "its arguments, which come a moment after STARTED")
        attachment.close()
        wait_until(lambda: "sleep 78" not in sandbox.exec("ps", "-o", "args").out, "the end of the process")


def test_a_caller_that_leaves_before_it_started_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper has to reap its child: the sandbox's end would wait for that."""
    with lab.running() as sandbox:
        helper = Helper.start("execute_helper")
        assert helper.pid is not None

        def leave(channel: socket.socket) -> None:
            channel.close()
            raise HostError("interrupted")

        monkeypatch.setattr(execute, "_receive_started", leave)
        with pytest.raises(HostError, match="interrupted"):
            execute.start(sandbox.config, sandbox.pid, sandbox.pid_start, ["sleep", "81"], helper=lambda: helper)
        assert os.waitstatus_to_exitcode(os.waitpid(helper.pid, 0)[1]) == 0  # it was not a crash
    assert not alive(sandbox.pid)


def test_a_helper_killed_while_privileges_are_dropped_leaves_no_process(lab: Lab) -> None:
    with lab.running() as sandbox:
        channel, helper = _fragile()
        with pytest.raises(HostError, match="ended unexpectedly"):
            execute.start(
                sandbox.config,
                sandbox.pid,
                sandbox.pid_start,
                ["sleep", "80"],
                user="bob",
                helper=lambda: Helper("execute_helper", channel),
            )
        assert os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]) == -signal.SIGKILL
        wait_until(lambda: {"sleep 80", "python"}.isdisjoint(_words(sandbox.exec("ps", "-o", "args").out)), "the end of the process")


def _words(listing: str) -> set[str]:
    return {"python" if "python" in line else line for line in listing.splitlines()}


def _fragile() -> tuple[socket.socket, int]:
    """Our end of the channel to a helper that is killed when its child has become another user, and its pid."""
    ours, theirs = socket.socketpair()
    apply = capabilities.apply
    sync: list[int] = []

    def become(config: Any, channel: Any, *rest: Any) -> None:
        sync.append(channel.fileno())
        really_become(config, channel, *rest)

    def kill_parent(mask: int, uid: int) -> None:
        protocol.write_message(sync[0], protocol.STARTED, {})
        poller = select.poll()
        poller.register(sync[0], 0)
        poller.poll()  # until the other end is closed
        apply(mask, uid)

    def be_killed(channel: Any, session: object, terminal: bool) -> None:
        while protocol.receive_message(channel)[0] != protocol.STARTED:  # type: ignore[index]
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    really_become = execute_helper._become
    pid = os.fork()
    if pid == 0:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(execute_helper, "_become", become)
            patched.setattr(execute_helper, "_wait_for_exec", be_killed)
            patched.setattr(capabilities, "apply", kill_parent)
            try:
                execute_helper.main(theirs.detach())
            finally:
                os._exit(1)
    theirs.close()
    return ours, pid


def test_an_exec_ends_although_what_it_started_goes_on_writing(lab: Lab) -> None:
    with lab.running() as sandbox:
        result = sandbox.exec("sh", "-c", "echo begun; yes & exit 3")
        assert result.code == 3
        assert result.out.startswith("begun\n")


def test_sandbox_end_ends_an_exec(lab: Lab) -> None:
    with lab.running() as sandbox:
        attachment = execute.start(sandbox.config, sandbox.pid, sandbox.pid_start, ["sleep", "79"])
        assert attachment is not None
        with attachment:
            os.kill(sandbox.pid, signal.SIGKILL)
            assert client.communicate(attachment)[0] == 137
