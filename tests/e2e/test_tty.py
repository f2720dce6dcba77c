"""Sandboxes on a real terminal: size, keys, detaching, and the terminal as it was before in the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from netbox.engine import Engine
from tests.support.cli import Cli
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until


@pytest.fixture
def window(terminal: Callable[..., Terminal], cli: Cli, tmp_path: Path) -> Terminal:
    """A shell on a terminal of 24 rows and 100 columns in which ``n`` is netbox and its exit code."""
    startup = tmp_path / "startup"
    startup.write_text(f'n() {{ {" ".join(cli.command)} "$@"; code=$?; echo "code=$code"; }}\nPS1="host$ "\n')
    window = terminal(rows=24, columns=100, env=cli.environment(ENV=str(startup)))
    window.expect("host$")
    return window


def command_pid(*words: str) -> int:
    """The process of this private host that runs ``netbox WORDS…``."""
    wanted = b"\0".join([b"netbox.cli", *map(str.encode, words)])
    mine = os.readlink("/proc/self/ns/mnt")

    def find() -> int:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (path / "cmdline").read_bytes() and os.readlink(path / "ns/mnt") == mine:
                    return int(path.name)
            except OSError:
                continue
        return 0

    return wait_until(find, f"netbox {' '.join(words)}")


def test_a_shell(window: Terminal) -> None:
    before = window.settings()
    window.type("n run --rm -it --network none --hostname inner busybox sh")
    window.expect("\n/ #")
    assert window.settings() != before
    window.type("tty; stty size; echo $TERM; ls -l /proc/1/fd/0 /proc/1/fd/1 /proc/1/fd/2 | grep -c pts/0; exit 3")
    screen = window.expect("code=3")
    assert [line.strip() for line in screen.splitlines() if line.strip() in ("/dev/pts/0", "24 100", "xterm", "3")] == [
        "/dev/pts/0",
        "24 100",
        "xterm",
        "3",
    ]
    window.expect("code=3\nhost$")
    assert window.settings() == before


def test_a_new_size_reaches_the_sandbox(window: Terminal) -> None:
    script = 'trap "echo winch" WINCH; trap "exit 130" INT; while :; do stty size; sleep 0.05; done'
    window.type(f"n run --rm -it --network none busybox sh -c '{script}'")
    window.expect("24 100")
    window.resize(30, 90)
    window.expect("30 90")
    window.expect("winch")
    window.press("C-c")
    window.expect("code=130")


def test_keys(window: Terminal) -> None:
    window.type("n run --rm -it --network none busybox sh")
    window.expect("\n/ #")
    window.type("echo begun; sleep 1000")
    window.expect("\nbegun")
    window.press("C-c")
    window.type("echo after-$?")
    window.expect("after-130")
    # The shell's own line editor takes every key as it comes; the terminal is in its usual mode while a command runs.
    window.type("echo reading; cat > /tmp/file")
    window.expect("\nreading")
    window.type("line")
    window.press("C-d")
    window.type("clear; wc -l < /tmp/file")
    window.expect("1\n/ #")
    window.press("C-d")
    window.expect("code=0")


def test_end_of_file_ends_a_reader(window: Terminal) -> None:
    window.type("n run --rm -it --network none busybox cat")
    wait_until(lambda: "raw" in window.settings() or "-icanon" in window.settings(), "raw mode")
    window.type("twice")
    wait_until(lambda: window.screen().count("twice") == 2, "the echo and the output")
    window.press("C-d")
    window.expect("code=0")


def test_detach_and_attach_again(window: Terminal, engine: Engine) -> None:
    before = window.settings()
    window.type("n run --rm -it --network none --name box busybox sh")
    window.expect("\n/ #")
    window.type("word=kept")
    window.press("C-p", "C-q")
    window.expect("code=0\nhost$")
    assert window.settings() == before
    box = engine.get("box")
    assert box.state == "running"

    window.type("clear; n attach box")
    wait_until(lambda: "-icanon" in window.settings(), "raw mode")
    window.type("stty size; echo $word")
    window.expect("24 100\nkept")
    window.type("exit 7")
    window.expect("code=7\nhost$")
    assert window.settings() == before
    wait_until(lambda: not engine.list(all=True), "the removal")


def test_other_detach_keys(window: Terminal, engine: Engine) -> None:
    window.type("n run -it --network none --name box --detach-keys ctrl-a,d busybox sh")
    window.expect("\n/ #")
    window.press("C-p", "C-q")
    window.type("echo still-$((40 + 2))")
    window.expect("still-42")
    window.press("C-a")
    window.type("d", enter=False)
    window.expect("code=0\nhost$")
    assert engine.get("box").state == "running"
    engine.get("box").remove(force=True)


def test_an_exec_that_is_left_runs_on(window: Terminal, cli: Cli, engine: Engine) -> None:
    box = engine.run("busybox", "sleep", "1000", name="box", network="none")
    before = window.settings()
    window.type("n exec -it box sh -c 'echo ready-$((40 + 2)); read word; touch /tmp/$word; sleep 999; true'")
    window.expect("ready-42")
    window.type("done")
    window.press("C-p", "C-q")
    window.expect("the command runs on; 'netbox top box' shows it\ncode=0\nhost$")
    assert window.settings() == before
    wait_until(lambda: box.exec("test", "-e", "/tmp/done").exit_code == 0, "what the command does after it was left")
    wait_until(lambda: "sleep 999" in [row.command for row in box.top()], "the rest of the command")
    box.remove(force=True)  # and the leak check sees its helper go


def test_two_are_attached(window: Terminal, terminal: Callable[..., Terminal], cli: Cli) -> None:
    window.type("n run --rm -it --network none --name box busybox sh")
    window.expect("\n/ #")
    other = terminal(rows=24, columns=100, command=[*cli.command, "attach", "box"])
    wait_until(lambda: "-icanon" in other.settings(), "raw mode")
    other.type("echo from-$((40 + 2))")
    other.expect("from-42")
    window.expect("from-42")
    window.type("exit")
    window.expect("code=0")


@pytest.mark.parametrize("how", [("kill",), ("stop", "-t", "0"), ("rm", "-f")], ids=lambda how: how[0])
def test_restored_after_the_end_from_outside(window: Terminal, cli: Cli, how: tuple[str, ...]) -> None:
    before = window.settings()
    window.type("n run --rm -it --network none --name box busybox sh")
    window.expect("\n/ #")
    cli(*how, "box")
    window.expect("code=137\nhost$")
    assert window.settings() == before


def test_restored_when_the_monitor_is_killed(window: Terminal, engine: Engine) -> None:
    before = window.settings()
    window.type("n run -it --network none --name box busybox sh")
    window.expect("\n/ #")
    stat = Path(f"/proc/{engine.get('box').pid}/stat").read_text()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)
    window.expect("code=137\nhost$")
    assert window.settings() == before
    assert engine.get("box").state == "exited"
    engine.get("box").remove()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_restored_after_a_signal_to_the_command(window: Terminal, engine: Engine, number: signal.Signals) -> None:
    before = window.settings()
    window.type("n run -it --network none --name box busybox sleep 1000")
    wait_until(lambda: "-icanon" in window.settings(), "raw mode")
    os.kill(command_pid("run"), number)
    window.expect(f"code={128 + number}\nhost$")
    assert window.settings() == before
    engine.get("box").remove(force=True)


def test_restored_after_a_failed_start(window: Terminal) -> None:
    before = window.settings()
    window.type("n run --rm -it --network none busybox no-such-command")
    window.expect("code=127\nhost$")
    assert window.settings() == before


def test_exec(window: Terminal, engine: Engine) -> None:
    before = window.settings()
    with engine.run("busybox", "sleep", "1000", name="box", network="none", init=True) as box:
        window.type("n exec -it -e PS1='in> ' box sh")
        window.expect("\nin>")
        window.type("tty; stty size; echo $TERM")
        window.expect("/dev/pts/0\n24 100\nxterm")
        window.resize(20, 80)
        window.type("while [ \"$(stty size)\" != '20 80' ]; do sleep 0.02; done; echo resized-$((40 + 2)); sleep 1000")
        window.expect("resized-42")
        window.press("C-c")
        window.type("exit 9")
        window.expect("code=9")
        window.expect("host$")
        assert window.settings().replace("rows 20; columns 80", "rows 24; columns 100") == before
        assert box.refresh().state == "running"


def test_exec_is_restored_after_the_end_of_the_sandbox(window: Terminal, engine: Engine) -> None:
    before = window.settings()
    with engine.run("busybox", "sleep", "1000", name="box", network="none") as box:
        window.type("n exec -it -e PS1='in> ' box sh")
        window.expect("\nin>")
        box.kill()
        window.expect("code=137\nhost$")
        assert window.settings() == before


def test_start_attached(window: Terminal, cli: Cli) -> None:
    cli("create", "-it", "--name", "box", "--network", "none", "busybox", "sh")
    window.type("n start -ai box")
    window.expect("\n/ #")
    window.type("stty size; exit 4")
    window.expect("24 100")
    window.expect("code=4\nhost$")
    cli("rm", "box")


def test_a_tty_without_a_terminal_outside(cli: Cli) -> None:
    # What a script sees: the line ends of a terminal, both streams in one.
    result = cli("run", "--rm", "-t", "--network", "none", "busybox", "sh", "-c", "tty; echo err >&2")
    assert (result.stdout, result.stderr) == ("/dev/pts/0\nerr\n", "")  # text mode takes \r\n for a line end


def test_a_detached_tty_waits_for_who_attaches(window: Terminal, cli: Cli) -> None:
    cli("run", "-d", "-it", "--rm", "--name", "box", "--network", "none", "busybox", "sh")
    window.type("n attach box")
    wait_until(lambda: "-icanon" in window.settings(), "raw mode")
    window.type("stty size; exit 5")
    window.expect("24 100")
    window.expect("code=5")
