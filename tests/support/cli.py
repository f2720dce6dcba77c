"""The netbox command as a child process, with a time limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]


class _Child(subprocess.Popen[str]):
    """Killed when its ``with`` block fails: what it was to be told is not coming."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


class Cli:
    """``cli("run", "--rm", "busybox", "true")`` runs ``netbox run …`` in the current namespaces and returns the completed process."""

    command = (sys.executable, "-m", "netbox.cli")

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of the command: the test's, this checkout first on the module path, no colours."""
        path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "PYTHONWARNINGS": "default::ResourceWarning", **extra}

    def __call__(
        self, *arguments: str, timeout: float = 60, check: int | None = 0, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs the command and fails unless it exits with ``check`` (``None``: any code)."""
        result = subprocess.run(
            [*self.command, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            env=self.environment(**(env or {})),
            check=False,
        )
        if check is not None:
            line = f"netbox {' '.join(arguments)}"
            assert result.returncode == check, f"{line}: exit code {result.returncode}, expected {check}\n{result.stdout}{result.stderr}"
        return result

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Starts the command with pipes for stdin, stdout and stderr. The caller waits for it."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        env = self.environment(**options.pop("env", {}))
        return _Child([*self.command, *arguments], **{**pipes, "text": True, "env": env, **options})
