"""Shell completion in a real bash: what the tab key would offer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.boxes import running
from tests.support.cli import Cli
from tests.support.host import PrivateHost


@pytest.fixture
def complete(cli: Cli, private_host: PrivateHost) -> Completer:
    """Completes a command line with the script that ``netbox completion bash`` prints."""
    return Completer(cli, private_host.base)


class Completer:
    """A bash that has sourced the script; ``netbox`` is on its path."""

    def __init__(self, cli: Cli, directory: Path) -> None:
        self._directory = directory
        (directory / "bin").mkdir()
        program = directory / "bin" / "netbox"
        program.write_text(f'#!/bin/sh\nexec {" ".join(cli.command)} "$@"\n')
        program.chmod(0o755)
        self._script = directory / "netbox.bash"
        self._script.write_text(cli("completion", "bash").stdout)
        self._environment = cli.environment(PATH=f"{program.parent}:{os.environ['PATH']}")

    def __call__(self, line: str) -> list[str]:
        """The words offered at the end of the line, by the function that bash would call."""
        words = line.split(" ")
        script = f"""
            source {self._script}
            COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
            function_name=$(complete -p netbox | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            $function_name netbox '{words[-1]}' '{words[-2]}'
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        result = subprocess.run(
            ["bash", "--norc", "-c", script],
            capture_output=True,
            text=True,
            timeout=30,
            env=self._environment,
            cwd=self._directory,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.split()


def test_commands(complete: Completer) -> None:
    assert {"run", "ps", "exec", "image", "inspect", "completion"} <= set(complete("netbox "))
    assert set(complete("netbox re")) == {"rename", "repair", "restart"}
    assert {"import", "ls", "rm"} <= set(complete("netbox image "))


def test_options(complete: Completer) -> None:
    assert set(complete("netbox run --cap-")) == {"--cap-add", "--cap-drop"}
    assert "--follow" in complete("netbox logs --")


def test_names_of_sandboxes(complete: Completer, cli: Cli) -> None:
    cli("create", "--name", "web-made", "--network", "none", "busybox", "true")
    with running(cli, "web-runs", "--network", "none"):
        assert set(complete("netbox inspect web")) == {"web-made", "web-runs"}
        assert complete("netbox exec web") == ["web-runs"]  # only what runs
        assert complete("netbox start web") == ["web-made"]  # only what does not
        assert complete("netbox stop x") == []
    cli("rm", "web-made")


def test_images(complete: Completer) -> None:
    assert {"busybox", "host"} <= set(complete("netbox run "))
    assert complete("netbox run --rm bus") == ["busybox"]


def test_values(complete: Completer) -> None:
    assert set(complete("netbox completion ")) == {"bash", "zsh", "fish"}
    assert set(complete("netbox ps --format ")) == {"json", "table"}


def test_it_is_found_by_the_tab_key(complete: Completer, cli: Cli, private_host: PrivateHost) -> None:
    """An interactive bash that reads a tab from its terminal."""
    assert shutil.which("script")
    commands = f"PATH={private_host.base}/bin:$PATH; source {private_host.base}/netbox.bash\nnetbox rest\t --help | head -1; exit\n"
    result = subprocess.run(
        ["script", "-qec", "bash --norc --noprofile", "/dev/null"],
        input=commands, capture_output=True, text=True, timeout=60, env=cli.environment(TERM="dumb", PS1="$ "), check=False,
    )  # fmt: skip
    assert "Usage: netbox restart" in result.stdout


@pytest.mark.parametrize(("shell", "word"), [("zsh", "#compdef netbox"), ("fish", "complete --no-files --command netbox")])
def test_scripts_of_other_shells(cli: Cli, shell: str, word: str) -> None:
    assert word in cli("completion", shell).stdout
