"""Helpers for test suites that use sandboxes; the fixtures of ``netbox.pytest_plugin`` are made of them and work without pytest too."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing import Unpack

    from netbox.engine import Engine, Sandbox
    from netbox.packet.diagnosis.values import Answer
    from netbox.parse import RunOptions

OWNER_LABEL = "netbox.test-run"
SHOWN_LOG_LINES = 50
_BLOCKED_AFTER = 0.8  # seconds of silence


class Network(NamedTuple):
    """A network that is up. A service of the test itself that listens on ``gateway`` is in reach of the sandboxes."""

    name: str
    bridge: str
    subnet: str
    gateway: str


class SandboxFactory:
    """Starts sandboxes and removes them all: ``factory("busybox", "sleep", "60", ports=["8080:80"])``.

    The arguments are those of ``Engine.run``. Every sandbox carries a label that names this process, so that the sandboxes of a test run
    that was killed can be told from others (``remove_orphans``).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._made: list[Sandbox] = []

    def __call__(self, image: str = "", *command: str, **options: Unpack[RunOptions]) -> Sandbox:
        """Makes and starts a sandbox.

        Raises:
            NetboxError: as ``Engine.run``.
        """
        from netbox.parse import build_spec

        # Not Engine.run: a sandbox whose start fails must be known here, to be removed.
        sandbox = self._engine.prepare_run(build_spec(image, command, **self._labelled(options)))
        self._made.append(sandbox)
        sandbox.start()
        return sandbox

    def create(self, image: str = "", *command: str, **options: Unpack[RunOptions]) -> Sandbox:
        """Makes a sandbox without starting it.

        Raises:
            NetboxError: as ``Engine.create``.
        """
        sandbox = self._engine.create(image, *command, **self._labelled(options))
        self._made.append(sandbox)
        return sandbox

    def remove_all(self) -> None:
        """Removes the sandboxes, the youngest first: it may use the network of an older one. Every one is tried.

        Raises:
            ExceptionGroup: what could not be removed, and why.
        """
        from netbox.errors import NetboxError, NotFound

        errors = []
        while self._made:
            try:
                self._made.pop().remove(force=True)
            except NotFound:
                pass  # the test removed it
            except NetboxError as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("sandboxes could not be removed", errors)

    def _labelled(self, options: RunOptions) -> RunOptions:
        return {**options, "labels": [*_pairs(options.get("labels")), f"{OWNER_LABEL}={owner()}"]}

    def logs(self) -> list[tuple[str, str]]:
        """Name and last lines of output of every sandbox that is still there, for the report of a failed test."""
        from netbox.errors import NetboxError

        found = []
        for sandbox in self._made:
            try:
                lines = b"".join(line.data for line in sandbox.logs(tail=SHOWN_LOG_LINES))
            except NetboxError as error:
                found.append((sandbox.name, str(error)))
                continue
            found.append((sandbox.name, f"[{sandbox.state}, exit code {sandbox.exit_code}]\n{lines.decode(errors='replace')}"))
        return found


def owner(pid: int | None = None) -> str:
    """A process as ``pid-start``, because a pid alone is used again (field 22 of proc_pid_stat(5)). Empty when there is no such process."""
    number = os.getpid() if pid is None else pid
    try:
        with open(f"/proc/{number}/stat", encoding="ascii", errors="replace") as file:
            return f"{number}-{file.read().rpartition(')')[2].split()[19]}"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def remove_orphans(engine: Engine) -> list[str]:
    """Removes the sandboxes of test runs that are dead. Returns their names.

    Raises:
        NetboxError: one could not be removed.
    """
    from netbox.errors import NotFound

    removed = []
    for sandbox in engine.list(all=True, filters=[("label", OWNER_LABEL)]):
        made_by = sandbox.labels[OWNER_LABEL]
        pid = made_by.partition("-")[0]
        if pid.isdigit() and owner(int(pid)) == made_by:
            continue
        try:
            sandbox.remove(force=True)
        except NotFound:
            continue  # another run was faster
        removed.append(sandbox.name)
    return removed


def wait_for_port(host: str, port: int, timeout: float = 10.0) -> None:
    """Waits until a TCP connection to ``host`` and ``port`` is accepted. ``timeout`` in seconds.

    Raises:
        TimeoutError: nobody accepted one in time; says what the last attempt met.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.05, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{host}:{port} accepted no connection within {timeout:g} s: {error}") from error
        time.sleep(0.02)


def wait_for_log(sandbox: Sandbox, text: str, timeout: float = 10.0) -> str:
    """Waits until the output of a sandbox contains ``text``, and returns the output so far. ``timeout`` in seconds.

    Raises:
        TimeoutError: it did not in time, or ended without; says what it wrote instead.
    """
    deadline = time.monotonic() + timeout
    while True:
        running = sandbox.refresh().state == "running"  # asked before the log is read, so that the last lines are not missed
        output = b"".join(line.data for line in sandbox.logs()).decode(errors="replace")
        if text in output:
            return output
        if not running or time.monotonic() >= deadline:
            why = f"within {timeout:g} s" if running else "before it ended"
            raise TimeoutError(f"{sandbox.name} did not write {text!r} {why}, but: {output[-500:]!r}")
        time.sleep(0.02)


def assert_reachable(
    engine: Engine,
    source: Sandbox | str,
    target: Sandbox | str,
    *,
    tcp: int | None = None,
    udp: int | None = None,
    sctp: int | None = None,
    timeout: float = 10.0,
) -> Answer:
    """Fails unless ``target`` can be reached from ``source``: a port, or without one an ICMP echo. It is tried until it is so, or for
    ``timeout`` seconds: a server may just be starting. The ends are sandboxes, or what ``netbox why`` takes.

    Raises:
        AssertionError: it cannot; the message is the answer of ``netbox why``.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        answer = _why(engine, source, target, tcp, udp, sctp, min(max(left, _BLOCKED_AFTER), 2.0))
        if answer.reachable:
            return answer
        if left <= 0:
            raise AssertionError(_text(answer))
        time.sleep(0.02)


def assert_blocked(
    engine: Engine,
    source: Sandbox | str,
    target: Sandbox | str,
    *,
    tcp: int | None = None,
    udp: int | None = None,
    sctp: int | None = None,
    timeout: float = 0.8,
) -> Answer:
    """Fails when ``target`` can be reached from ``source``. Silence of ``timeout`` seconds counts as blocked; arguments as those of
    ``assert_reachable``. The answer says why it is blocked: ``assert_blocked(…).cause == "other-network"``.

    Raises:
        AssertionError: it can be reached; the message is the answer of ``netbox why``, which says how.
    """
    __tracebackhide__ = True
    answer = _why(engine, source, target, tcp, udp, sctp, timeout)
    if answer.reachable:
        raise AssertionError(_text(answer))
    return answer


def _why(
    engine: Engine, source: Sandbox | str, target: Sandbox | str, tcp: int | None, udp: int | None, sctp: int | None, timeout: float
) -> Answer:
    from netbox.errors import UsageError
    from netbox.packet.diagnosis.api import why

    asked = [(name, port) for name, port in (("tcp", tcp), ("udp", udp), ("sctp", sctp)) if port is not None]
    if len(asked) > 1:
        raise UsageError("more than one protocol", "give one of tcp, udp and sctp")
    protocol, port = asked[0] if asked else (None, None)
    names = [end if isinstance(end, str) else end.name for end in (source, target)]
    return why(engine, names[0], names[1], protocol=protocol, port=port, timeout=timeout)


def _text(answer: Answer) -> str:
    from netbox.packet.diagnosis.text import render

    return render(answer)


def _pairs(given: Any) -> list[str]:
    """Labels in any of the forms that ``Engine.run`` takes, as ``key=value``."""
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping):
        return [f"{key}={value}" for key, value in given.items()]
    return [pair if isinstance(pair, str) else f"{pair[0]}={pair[1]}" for pair in given]
