"""What the end-to-end tests share: one-shot scripts in a sandbox, and sandboxes that run beside the test."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from netbox import testing
from netbox.engine import Sandbox
from tests.kernel.network_lab import Server, serve
from tests.support import linux
from tests.support.cli import Cli
from tests.support.waiting import wait_until

LISTEN = "0A"  # the state in /proc/net/tcp
PATIENCE = 60.0  # seconds


def sh(cli: Cli, script: str, *options: str, image: str = "busybox", check: int | None = 0) -> str:
    """What a shell script writes to stdout in a new sandbox."""
    return cli("run", "--rm", *options, image, "sh", "-c", script, check=check).stdout


def inspect(cli: Cli, name: str) -> dict[str, Any]:
    """The document of one sandbox."""
    (document,) = json.loads(cli("inspect", name).stdout)
    return dict(document)


@contextlib.contextmanager
def running(cli: Cli, name: str, *options: str, image: str = "busybox", command: tuple[str, ...] = ("sleep", "1000")) -> Iterator[str]:
    """A detached sandbox inside the block, removed afterwards."""
    identity = cli("run", "-d", "--name", name, *options, image, *command).stdout.strip()
    try:
        yield name
    finally:
        cli("rm", "-f", identity, check=None)  # not by name: when the test has removed it, "c" may be the beginning of another's id


@contextlib.contextmanager
def inside(cli: Cli, name: str) -> Iterator[None]:
    """The test is in the network namespace of a sandbox inside the block: sockets that it opens stay there."""
    with linux.network_of(inspect(cli, name)["pid"]):
        yield


@contextlib.contextmanager
def server(cli: Cli, name: str, protocol: str, port: int, address: str = "0.0.0.0") -> Iterator[Server]:
    """A server in a sandbox."""
    with inside(cli, name):
        started = serve(protocol, port, address)
    try:
        yield started
    finally:
        started.close()


def await_listener(cli: Cli, name: str, port: int) -> None:
    """Waits until something in a sandbox listens on a TCP port: a command that was just started takes a moment to get there."""
    pid = inspect(cli, name)["pid"]

    def listens() -> bool:
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/net/{table}") as file:
                if any(fields[1].endswith(f":{port:04X}") and fields[3] == LISTEN for fields in map(str.split, file)):
                    return True
        return False

    wait_until(listens, f"a listener on port {port} of {name}")


def wait_for_log(sandbox: Sandbox, text: str) -> str:
    """As that of ``netbox.testing``, with the patience of a test."""
    return testing.wait_for_log(sandbox, text, PATIENCE)
