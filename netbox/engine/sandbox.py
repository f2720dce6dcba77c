"""A sandbox, as the Python API and the command line see it: its record and the verbs on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from netbox.engine import ending, events, impairing, locks, observing, starting
from netbox.engine.impairable import Impairable
from netbox.engine.record import Record
from netbox.errors import Conflict, UsageError, WrongState
from netbox.parse.networks import make_attachment
from netbox.spec import PortSpec, Resources
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from typing import Unpack

    from netbox.engine.context import Context
    from netbox.engine.locks import SandboxLock
    from netbox.engine.observing import Stats
    from netbox.kernel.processes import ProcessRow
    from netbox.parse.networks import AttachmentOptions
    from netbox.runtime.client import Attachment
    from netbox.runtime.log_reader import LogLine


class ExecResult(NamedTuple):
    """What a command in a sandbox gave back."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Sandbox(Record, Impairable):
    """A sandbox. The attributes are those of the last look; ``refresh`` looks again, every verb does.

    As a context manager it is removed at the end, whatever happened.
    """

    def __init__(self, context: Context, row: SandboxRow, lock: SandboxLock | None = None) -> None:
        self._context = context
        self._row = row
        self._lock = lock

    def refresh(self) -> Sandbox:
        """Reads the record again, and settles the sandbox if its monitor died.

        Raises:
            NotFound: it was removed.
        """
        if self._row.state in ending.ACTIVE and not ending.is_alive(self._context, self._row):
            ending.settle(self._context, self._row.id)
        self._row = self._context.store.find_sandbox(self._row.id)
        impairing.expire(self._context, self._row)
        return self

    # -- verbs -------------------------------------------------------------------------------------------------------------------------

    def start(self, attach: bool = False, console_size: tuple[int, int] | None = None) -> Attachment | None:
        """Starts it; with ``attach`` returns the attachment, connected before the command ran, so that no output is missed.

        Who is attached from the start settles the sandbox at its end (``wait`` does); once the attachment is closed, or not asked for, its
        monitor sees to that. ``console_size`` is (rows, columns) of the terminal.

        Raises:
            WrongState: it runs already.
            CommandNotFound, CommandNotExecutable: the command cannot be executed.
        """
        lock, self._lock = self._lock, None
        attachment = starting.start(self._context, self._row, lock, starting.Options(attach, console_size))
        self._reread()
        return attachment

    def stop(self, timeout: float | None = None) -> None:
        """Sends the stop signal, then SIGKILL after ``timeout`` seconds (default: the sandbox's own)."""
        ending.stop(self._context, self.refresh()._row, timeout)
        self._reread()

    def kill(self, signal: int | str = 9) -> None:
        """Sends a signal to pid 1.

        Raises:
            WrongState: it does not run.
        """
        from netbox.parse import parse_signal

        number = parse_signal(signal)
        ending.send_signal(self._context, self.refresh()._row, number)
        self._event("kill", signal=number)

    def restart(self, timeout: float | None = None) -> None:
        """Stops it if it runs, and starts it. One that is removed at its end is kept for the new run."""
        before = self.refresh()._row.started_at
        try:
            with locks.restarting(self._context.settings.sandbox_run(self.id)) if self.spec.remove else nullcontext():
                self.stop(timeout)
                try:
                    self.start()
                except (Conflict, WrongState):
                    # Two at once, and the other one was quicker: it runs anew, as was asked for.
                    if not ending.runs_since(self._context, self._row, before):
                        raise
                    self._reread()
        finally:
            if self.spec.remove and not ending.is_alive(self._context, self._row):  # it did not start, or is over already
                self.remove()
        self._event("restart")

    def pause(self) -> None:
        """Freezes every process of it.

        Raises:
            WrongState: it does not run, or is paused.
        """
        self._expect("running", "pause")
        self._context.cgroups.freeze(self._context.settings.cgroup(self.id))
        self._event("pause")

    def unpause(self) -> None:
        """Lets its processes go on.

        Raises:
            WrongState: it is not paused.
        """
        self._expect("paused", "unpause")
        self._context.cgroups.thaw(self._context.settings.cgroup(self.id))
        self._event("unpause")

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it has ended and is cleaned up; its exit code.

        Raises:
            TimeoutError: it runs on after ``timeout`` seconds.
        """
        code = ending.wait(self._context, self._row, timeout)
        if code is None:
            raise TimeoutError(f"{self.name} still runs after {timeout} s")
        self.settle()
        return code

    def settle(self) -> None:
        """Records the end and undoes the run, when it has ended and nobody else did so."""
        ending.settle(self._context, self.id, started_at=self._row.started_at)
        self._reread()

    def rename(self, name: str) -> None:
        """Gives it another name.

        Raises:
            UsageError: not a name.
            Conflict: another sandbox has it.
        """
        from netbox.parse import parse_name

        new = parse_name(name, "sandbox")
        old = self.refresh().name
        self._context.store.update_sandbox(self.id, name=new)
        self._reread()
        if self._row.state in ending.ACTIVE:  # also while it starts: it may have its addresses already
            self._context.network.names_changed(item.network for item in self.spec.network.attachments)
        self._event("rename", old_name=old)

    def remove(self, force: bool = False) -> None:
        """Removes it with everything that it kept.

        Raises:
            WrongState: it runs and ``force`` is not given.
        """
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        ending.remove(self._context, self._row, force)

    def attach(self) -> Attachment:
        """Connects to its standard streams.

        Raises:
            WrongState: it does not run, or is paused.
        """
        from netbox.runtime.client import connect

        self._expect("running", "attach to")
        return connect(self._context.settings.sandbox_run(self.id))

    def logs(
        self, follow: bool = False, since: float | None = None, until: float | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Its output so far; ``follow`` goes on until it ends. ``since`` and ``until`` are epoch seconds, ``tail`` a number of lines."""
        from netbox.runtime.log_reader import read_logs

        row = self.refresh()._row
        directory = f"{self._context.settings.sandbox_root(row.id)}/logs"
        return read_logs(directory, follow, since, until, tail, alive=lambda: ending.is_alive(self._context, row))

    def exec(
        self,
        *command: str,
        stdin: bytes | None = None,
        user: str | None = None,
        working_dir: str | None = None,
        environment: Mapping[str, str] | Iterable[str] = (),
        privileged: bool = False,
    ) -> ExecResult:
        """Runs a command inside and returns its exit code and output. ``stdin`` is fed to it.

        Raises:
            WrongState: the sandbox does not run, or is paused.
            CommandNotFound, CommandNotExecutable: the command cannot be executed.
        """
        from netbox.runtime.client import communicate

        attachment = self.open_exec(
            *command, user=user, working_dir=working_dir, environment=environment, stdin=stdin is not None, privileged=privileged
        )
        assert attachment is not None  # only a detached exec has none
        with attachment:
            return ExecResult(*communicate(attachment, stdin))

    def open_exec(
        self,
        *command: str,
        user: str | None = None,
        working_dir: str | None = None,
        environment: Mapping[str, str] | Iterable[str] = (),
        tty: bool = False,
        stdin: bool = False,
        detach: bool = False,
        privileged: bool = False,
        console_size: tuple[int, int] | None = None,
    ) -> Attachment | None:
        """Starts a command inside and returns its attachment (``None`` with ``detach``).

        Raises:
            as ``exec``.
        """
        from netbox.runtime import execute
        from netbox.runtime.status import read_status

        if not command:
            raise UsageError("no command given", "name a command behind the sandbox")
        self._expect("running", "run a command in")
        status = read_status(self._context.settings.sandbox_run(self.id))
        if status is None or status.pid is None or status.pid_start is None:
            raise WrongState(f"{self.name} does not run", f"start it first (netbox start {self.name})")
        variables = [f"{key}={value}" for key, value in environment.items()] if isinstance(environment, Mapping) else list(environment)
        return execute.start(
            self._row.details["runtime"],
            status.pid,
            status.pid_start,
            command,
            user=user,
            working_dir=working_dir,
            environment=variables,
            tty=tty,
            stdin=stdin,
            detach=detach,
            privileged=privileged,
            console_size=console_size,
            helper=lambda: self._context.helper(execute.KIND),
        )

    def stats(self, previous: Stats | None = None) -> Stats:
        """Measures it; with the previous measurement ``cpu_percent`` is the load since then.

        Raises:
            WrongState: it does not run.
        """
        return observing.stats(self._context, self.refresh()._row, previous)

    def top(self) -> list[ProcessRow]:
        """Its processes.

        Raises:
            WrongState: it does not run.
        """
        from netbox.kernel.processes import process_rows

        if self.refresh().state not in ("running", "paused"):
            raise WrongState(f"{self.name} does not run", f"start it first (netbox start {self.name})")
        return process_rows(self._context.cgroups.processes(self._context.settings.cgroup(self.id)))

    def update(self, resources: Resources) -> None:
        """Changes limits, at once when it runs. ``None`` leaves a limit alone.

        Raises:
            Unsupported: this host cannot enforce a limit; nothing is changed then.
        """
        from netbox.engine.creation import limits
        from netbox.parse import check_resources

        changed = {key: value for key, value in dataclasses.asdict(resources).items() if value is not None}
        ending.after_start(self._context, self.refresh()._row)
        self._reread()
        while True:
            merged = dataclasses.replace(self.spec, resources=dataclasses.replace(self.spec.resources, **changed))
            check_resources(merged.resources)
            wanted = limits(merged)
            self._context.cgroups.check(wanted)
            if self.state in ("running", "paused"):
                self._context.cgroups.apply(self._context.settings.cgroup(self.id), wanted)
            self._context.store.change_spec(self.id, lambda spec: {**spec, "resources": {**spec["resources"], **changed}})
            if self.refresh().spec.resources == merged.resources:
                break  # else somebody has changed other limits meanwhile: what he has put in force, we may have taken back
        self._event("update")

    def connect(self, network: str, **options: Unpack[AttachmentOptions]) -> None:
        """Puts it on a further network, at once when it runs: ``sandbox.connect("back", ip="10.20.30.5", aliases=["db"])``.

        Raises:
            NotFound: there is no such network.
            Conflict: it is on the network already, or the address or MAC is taken.
            UsageError: its network is not its own, or the address does not fit.
        """
        from netbox.engine import connecting

        connecting.connect(self._context, self.refresh()._row, make_attachment(network, **options))
        self._reread()

    def disconnect(self, network: str) -> None:
        """Takes it off a network, at once when it runs. Raises ``NotFound`` when it is not on it."""
        from netbox.engine import connecting

        connecting.disconnect(self._context, self.refresh()._row, network)
        self._reread()

    def publish(self, *ports: str | int | PortSpec) -> tuple[PortSpec, ...]:
        """Publishes further ports, at once when it runs: ``sandbox.publish("8080:80", "127.0.0.1::53/udp")``. A restart publishes them
        again. Returns them, when it runs with the host ports that were chosen.

        Raises:
            Conflict: a sandbox or another program has a port.
            UsageError: a port is malformed or asked for twice, or no network leads to the sandbox.
        """
        from netbox.engine import publishing

        published = publishing.publish(self._context, self.refresh()._row, ports)
        self._reread()
        return published

    def unpublish(self, *ports: str | int | PortSpec) -> tuple[PortSpec, ...]:
        """Takes published ports back, at once when it runs; connections that stand go on. ``80`` or ``53/udp`` is the port inside,
        ``127.0.0.1:8080:80`` one mapping of it. Returns what was taken back.

        Raises:
            NotFound: nothing like that is published.
        """
        from netbox.engine import publishing

        gone = publishing.unpublish(self._context, self.refresh()._row, ports)
        self._reread()
        return gone

    def inspect(self) -> dict[str, Any]:
        """Everything known about it as a JSON-able document."""
        return observing.inspect(self._context, self.refresh()._row)

    # -- helpers -----------------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._context.store.sandbox(self.id) is not None:
            self.remove(force=True)

    def __repr__(self) -> str:
        return f"<Sandbox {self.name} {self.short_id}>"

    def _reread(self) -> None:
        self._row = self._context.store.sandbox(self._row.id) or self._row

    def _event(self, action: str, **attributes: Any) -> None:
        events.record(self._context, self._row, action, **attributes)

    def _expect(self, state: str, operation: str) -> None:
        found = self.refresh().state
        if found == state:
            return
        hint = f"unpause it first (netbox unpause {self.name})" if found == "paused" else f"'netbox ps -a' shows the state of {self.name}"
        if found in ("created", "exited"):
            hint = f"start it first (netbox start {self.name})"
        raise WrongState(f"cannot {operation} {self.name}: it is {found}", hint)
