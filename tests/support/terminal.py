"""A real terminal to test with: a tmux server of its own."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.waiting import wait_until


class Terminal:
    """One tmux window of a given size that runs a shell, or a command until it ends.

    The server is private (its socket lies in ``directory``), reads a configuration of its own and ends with ``close``.
    """

    def __init__(self, directory: Path, env: dict[str, str], rows: int = 24, columns: int = 80, command: Sequence[str] = ("sh",)) -> None:
        self._socket = str(directory / "tmux")
        self._configuration = directory / "tmux.conf"
        self._configuration.write_text("set-option -g remain-on-exit on\n")  # before a command can end
        variables = [word for name, value in {**env, "PS1": "$ "}.items() for word in ("-e", f"{name}={value}")]
        self._tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), *variables, shlex.join(command))

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-f", str(self._configuration), "-S", self._socket, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, f"tmux {' '.join(arguments)}: {result.stderr}"
        return result.stdout

    def type(self, text: str, enter: bool = True) -> None:
        """Types text as it stands, then Enter unless told otherwise."""
        self._tmux("send-keys", "-l", "--", text)
        if enter:
            self.press("Enter")

    def press(self, *keys: str) -> None:
        """Presses keys by tmux's names: ``C-c``, ``C-p``, ``Enter``."""
        self._tmux("send-keys", *keys)

    def screen(self) -> str:
        """What the screen shows, without trailing blank lines."""
        return self._tmux("capture-pane", "-p").rstrip()

    def resize(self, rows: int, columns: int) -> None:
        """Gives the window another size. In effect when it returns."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))
        wait_until(lambda: self._stty("size").split() == [str(rows), str(columns)], "the terminal to have its new size")

    def expect(self, text: str, timeout: float = 30) -> str:
        """Waits until the screen shows ``text``, and returns the screen. Blanks at the end of a line do not show."""
        try:
            wait_until(lambda: text in self.screen(), timeout=timeout)
        except AssertionError:
            raise AssertionError(f"waited {timeout:g} s in vain for {text!r} on a screen that shows:\n{self.screen()}") from None
        return self.screen()

    def settings(self) -> str:
        """The terminal's settings as stty prints them: equal before and after a program that restores them."""
        return self._stty("-a")

    def _stty(self, argument: str) -> str:
        tty = self._tmux("display-message", "-p", "#{pane_tty}").strip()
        return subprocess.run(["stty", "-F", tty, argument], capture_output=True, text=True, timeout=60, check=True).stdout

    def close(self) -> None:
        """Ends the server and everything in it."""
        self._tmux("kill-server")
