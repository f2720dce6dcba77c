"""What the runtime tests share: a busybox root file system, and starts that speak the handshake without an engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from netbox import names
from netbox.engine import runtime_plan
from netbox.kernel import capabilities
from netbox.runtime import client, execute, status
from netbox.runtime.client import Attachment
from netbox.runtime.launcher import Launcher
from netbox.runtime.spawner import Spawner
from netbox.settings import Settings
from netbox.spec import NetworkSpec, SandboxSpec
from tests.support.waiting import wait_until

BUSYBOX = "/bin/busybox"
PASSWD = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000:Bob:/home/bob:/bin/sh\n"
GROUP = "root:x:0:\nbob:x:1000:\ncrew:x:2000:alice,bob\n"
USERNS_BASE = 300000


class Source(NamedTuple):
    """An image as the plan sees it."""

    layers: tuple[str, ...]
    command: tuple[str, ...] = ("sh",)
    environment: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    host: bool = False


class Result(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


class Lab:
    """Starts sandboxes on a private host and forgets them without a trace."""

    def __init__(self) -> None:
        self.settings = Settings.from_environment()
        self.root = Path(self.settings.root)
        self.image = Source((str(self._busybox()),))
        self.facts = runtime_plan.host_facts(1)

    def _busybox(self) -> Path:
        root = self.root / "busybox"
        for name in ("bin", "etc", "tmp", "root"):
            (root / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, root / "bin/busybox")
        for applet in subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True, timeout=60).stdout.split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/passwd").write_text(PASSWD)
        (root / "etc/group").write_text(GROUP)
        return root

    def config(self, *command: str, image: Source | None = None, plan: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
        """The configuration of a sandbox; ``spec`` goes to SandboxSpec, ``plan`` to ``runtime_config``."""
        spec.setdefault("network", NetworkSpec(mode="none"))
        asked = SandboxSpec(image="" if spec.get("rootfs") else "busybox", command=command, **spec)
        options: dict[str, Any] = {"capabilities": capabilities.DEFAULT, "attach": True, **(plan or {})}
        source = None if asked.rootfs else image or self.image
        config = runtime_plan.runtime_config(asked, names.new_id(), "lab", source, self.settings, self.facts, **options)
        Path(config["run_dir"]).mkdir(parents=True)
        return config

    def start(self, config: dict[str, Any], spawner: Spawner | None = None, netns: int | None = None) -> Attachment | None:
        """The whole handshake, with a network that is ready at once."""
        lock = status.acquire_lock(config["run_dir"])
        assert lock is not None
        try:
            with Launcher.prespawn(spawner) as launcher:
                launcher.begin(config, lock, netns_fd=netns)
                launcher.wait_namespaces()
                launcher.network_ready()
                launcher.wait_ready()
                return launcher.go()
        finally:
            os.close(lock)

    def run(self, *command: str, data: bytes | None = None, netns: int | None = None, **options: Any) -> Result:
        """Runs a command to its end."""
        config = self.config(*command, **options)
        attachment = self.start(config, netns=netns)
        assert attachment is not None
        with attachment:
            code, out, err = client.communicate(attachment, data)
        return Result(code, out.decode(), err.decode())

    def sh(self, script: str, **options: Any) -> Result:
        """Runs a shell script to its end."""
        return self.run("sh", "-c", script, **options)

    @contextmanager
    def running(self, *command: str, **options: Any) -> Iterator[Running]:
        """A sandbox that runs for the length of the block."""
        config = self.config(*(command or ("sleep", "1000")), **options)
        attachment = self.start(config)
        running = Running(config, attachment)
        try:
            yield running
        finally:
            running.end()

    def close(self) -> None:
        """Removes what the tests made; by then nothing may be alive any more."""
        base = Path(self.settings.run, "sandboxes")
        for run_dir in base.iterdir() if base.is_dir() else ():
            wait_until(lambda run_dir=run_dir: not status.is_locked(str(run_dir)), f"the monitor of {run_dir}")  # type: ignore[misc]
        for directory in (base, self.root / "busybox", self.root / "sandboxes"):
            shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(self.settings.run, ignore_errors=True)


class Running:
    """A running sandbox."""

    def __init__(self, config: dict[str, Any], attachment: Attachment | None) -> None:
        self.config = config
        self.attachment = attachment
        found = status.read_status(config["run_dir"])
        assert found is not None
        assert found.state == "running"
        self.pid, self.pid_start, self.monitor = found.pid or 0, found.pid_start or 0, found.monitor_pid or 0
        self.pidfd = os.pidfd_open(self.pid)

    def exec(self, *command: str, data: bytes | None = None, **options: Any) -> Result:
        """Executes a command in it, to its end."""
        attachment = execute.start(self.config, self.pid, self.pid_start, command, stdin=data is not None, **options)
        assert attachment is not None
        with attachment:
            code, out, err = client.communicate(attachment, data)
        return Result(code, out.decode(), err.decode())

    def status(self) -> status.Status:
        """Its status.json."""
        found = status.read_status(self.config["run_dir"])
        assert found is not None
        return found

    def end(self) -> None:
        """Kills it and waits for its monitor. Idempotent."""
        if self.pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.attachment:
            self.attachment.close()
        wait_until(lambda: not status.is_locked(self.config["run_dir"]), "the monitor's end")
        os.close(self.pidfd)
        self.pidfd = -1


def alive(pid: int, start: int | None = None) -> bool:
    """Whether a process runs (a zombie does not), and is the one that started at ``start``."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in ("Z", "X") and (start is None or int(fields[19]) == start)
