from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import click
import pytest

import netbox
import netbox.engine
from netbox.cli import main, options
from netbox.cli.state import State
from netbox.cli.table import COMMANDS, cli
from netbox.errors import CommandNotExecutable, NotFound


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_prespawn", lambda arguments: None)
    monkeypatch.setattr(main, "_catch_termination", lambda: None)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("NETBOX_DEBUG", raising=False)


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(netbox.engine, "Engine", refuse)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (NotFound("no such sandbox: x", "look"), 125, "netbox ps: no such sandbox: x; look\n"),
        (CommandNotExecutable("no"), 126, "netbox ps: no\n"),
        (KeyboardInterrupt(), 130, ""),
        (main.Terminated(15), 143, ""),
        (
            ZeroDivisionError("division\nby zero"),
            125,
            "netbox ps: ZeroDivisionError: division by zero; this is a bug; run again with --debug\n",
        ),
        (AssertionError(), 125, "netbox ps: AssertionError; this is a bug; run again with --debug\n"),
    ],
)
def test_every_outcome_has_its_code_and_its_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    assert main.execute(["ps"]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("how", ["option", "environment"])
def test_tracebacks_are_for_those_who_ask(how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(NotFound("no such sandbox: x"), monkeypatch)
    if how == "environment":
        monkeypatch.setenv("NETBOX_DEBUG", "1")
    assert main.execute(["--debug", "ps"] if how == "option" else ["ps"]) == 125
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "netbox ps: no such sandbox: x"


def test_a_broken_pipe_is_quiet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    fail_with(BrokenPipeError(), monkeypatch)
    silenced: list[bool] = []
    monkeypatch.setattr(main, "_silence_stdout", lambda: silenced.append(True))
    assert main.execute(["ps"]) == 141
    assert capfd.readouterr().err == ""
    assert silenced


def test_a_full_disk_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(main, "_silence_stdout", lambda: None)
    fail_with(OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    assert main.execute(["ps"]) == 125
    assert capsys.readouterr().err == "netbox ps: cannot write the output: No space left on device; free some space and try again\n"


def test_a_monitor_made_ahead_is_ended_when_nobody_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(main, "_prespawn", lambda arguments: SimpleNamespace(end=lambda: closed.append(True)))
    assert main.execute(["run", "--nope"]) == 125
    assert closed == [True]


def test_a_monitor_is_taken_once() -> None:
    helper: Any = SimpleNamespace(end=lambda: None)
    state = State(helper)
    assert state.take_helper() is helper
    assert state.take_helper() is None


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        (["run", "-d", "x"], "netbox run"),
        (["--debug", "run"], "netbox run"),
        (["image", "rm", "x"], "netbox image rm"),
        (["image"], "netbox image"),
        ([], "netbox"),
        (["a/b"], "netbox"),
    ],
)
def test_labels(arguments: list[str], label: str) -> None:
    assert main.command_label(arguments) == label


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"check", "image", "network"}))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: netbox {name} ")
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert "Example" in text
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.help, f"{name} {parameter.name} has no help"


def test_the_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netbox.cli.table.importlib", None)
    assert main.execute(["--help"]) == 0
    text = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert f"  {name} " in text
        assert entry.help in text
    assert main.execute([]) == 0
    assert capsys.readouterr().out == text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["--version"]) == 0
    assert capsys.readouterr().out == f"netbox {netbox.__version__}\n"


def run_python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, **options)


def test_descriptors_that_are_closed_become_the_null_device() -> None:
    """Else the first socket takes the number of stdout, and what the sandbox writes goes into it."""
    code = (
        "import os, sys; sys.path[:0] = [os.environ['CHECKOUT']]; os.close(0); os.close(1)\n"
        "from netbox.cli.main import _open_missing_descriptors\n"
        "_open_missing_descriptors()\n"
        "assert os.path.samestat(os.fstat(0), os.stat('/dev/null')) and os.path.samestat(os.fstat(1), os.stat('/dev/null'))\n"
        "fd = os.open('/', os.O_RDONLY); assert fd == 3, fd"
    )
    result = run_python(code, env={**os.environ, "CHECKOUT": os.path.dirname(os.path.dirname(netbox.__file__))})
    assert result.returncode == 0, result.stderr


def test_sigterm_unwinds_and_a_nohup_is_respected() -> None:
    code = (
        "import os, signal, sys; sys.path[:0] = [os.environ['CHECKOUT']]\n"
        "from netbox.cli import main\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "main._catch_termination()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except main.Terminated as error:\n    sys.exit(error.number)"
    )
    result = run_python(code, env={**os.environ, "CHECKOUT": os.path.dirname(os.path.dirname(netbox.__file__))})
    assert result.returncode == signal.SIGTERM, result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_NETBOX_COMPLETE={shell}_complete" in script
    assert "netbox" in script


def complete(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("_NETBOX_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert main.execute([]) == 0
    return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines() if line]


class FakeEngine:
    def __init__(self, warm: bool = True) -> None:
        self.images = SimpleNamespace(list=lambda: [SimpleNamespace(name="alpine")])

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def list(self, all: bool = False) -> Any:
        values = [("web", "running", "a" * 12), ("db", "exited", "b" * 12)]
        return [SimpleNamespace(name=name, state=state, short_id=short, image="busybox") for name, state, short in values]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("netbox pa", ["pause"]),
        ("netbox run --mem", ["--memory", "--memory-swap"]),
        ("netbox run a", ["alpine"]),
        ("netbox stop ", ["web"]),
        ("netbox start ", ["db"]),
        ("netbox rm ", ["web", "db"]),
        ("netbox inspect bb", ["b" * 12]),
        ("netbox logs --format x", []),
        ("netbox completion z", ["zsh"]),
    ],
)
def test_completions(words: str, found: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(netbox.engine, "Engine", FakeEngine)
    assert complete(words, monkeypatch, capsys) == found


def test_completion_stays_quiet_without_permission(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(NotFound("no"), monkeypatch)
    assert complete("netbox stop ", monkeypatch, capsys) == []
    assert complete("netbox run b", monkeypatch, capsys) == []


def test_label_outside_a_command() -> None:
    assert options.label() == "netbox"
