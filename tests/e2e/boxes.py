"""What the end-to-end tests share: one-shot scripts in a sandbox, and sandboxes that run beside the test."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.support.cli import Cli


def sh(cli: Cli, script: str, *options: str, image: str = "busybox", check: int | None = 0) -> str:
    """What a shell script writes to stdout in a new sandbox."""
    return cli("run", "--rm", *options, image, "sh", "-c", script, check=check).stdout


def inspect(cli: Cli, name: str) -> dict[str, Any]:
    """The document of one sandbox."""
    (document,) = json.loads(cli("inspect", name).stdout)
    return dict(document)


@contextlib.contextmanager
def running(cli: Cli, name: str, *options: str, image: str = "busybox", command: tuple[str, ...] = ("sleep", "100")) -> Iterator[str]:
    """A detached sandbox inside the block, removed afterwards."""
    cli("run", "-d", "--name", name, *options, image, *command)
    try:
        yield name
    finally:
        cli("rm", "-f", name, check=None)
