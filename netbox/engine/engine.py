"""The engine: makes, finds and collects sandboxes. The entry to netbox for programs."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from netbox import __version__
from netbox.engine import creation, ending, events, impairing, observing, recovery, watchers
from netbox.engine.background import Background
from netbox.engine.context import Context
from netbox.engine.networks import Networks
from netbox.engine.sandbox import Sandbox
from netbox.errors import CleanupError, Conflict, NetboxError, StateError
from netbox.parse import RunOptions, build_spec
from netbox.settings import Settings
from netbox.spec import SandboxSpec
from netbox.state.rows import Event

if TYPE_CHECKING:
    from typing import Unpack

    from netbox.engine.exposing import Report
    from netbox.image.store import Image, ImageStore
    from netbox.network.firewall import Difference
    from netbox.runtime.helper import Helper


class PlanSection(NamedTuple):
    """A part of a plan, printed: a title and the commands that a person would type."""

    title: str
    commands: list[str]


class Engine:
    """Runs sandboxes below the directories of ``settings`` (default: what the environment says). Safe to use from several threads.

    An engine keeps a small process ready from which monitors are forked: a start then costs a few milliseconds. As a context manager it
    ends that process and takes down networks that no sandbox uses. ``warm=False`` is for a process without threads that ends
    soon, such as the command line: no such process is kept, and idle networks go down in the background after ``close``.
    """

    def __init__(self, settings: Settings | None = None, *, warm: bool = True, prespawned: Helper | None = None) -> None:
        self._context = Context(settings or Settings.from_environment(), prespawned)
        self._background = Background(self._context, own_thread=warm)
        self._context.background = self._background
        self._warm = warm

    @property
    def settings(self) -> Settings:
        """Where this engine keeps what."""
        return self._context.settings

    @property
    def images(self) -> ImageStore:
        """The images."""
        return self._context.images

    @property
    def networks(self) -> Networks:
        """The networks."""
        return Networks(self._context)

    # -- making and finding --------------------------------------------------------------------------------------------------------

    def create(self, image: SandboxSpec | str = "", *command: str, **options: Unpack[RunOptions]) -> Sandbox:
        """Makes a sandbox without starting it. Takes a spec, or an image with a command and the options of ``netbox.parse.build_spec``.

        Raises:
            NetboxError: what is wrong with the request; nothing is left then.
        """
        row, lock = creation.create(self._context, _spec(image, command, options))
        lock.release()
        return Sandbox(self._context, row)

    def run(self, image: SandboxSpec | str = "", *command: str, **options: Unpack[RunOptions]) -> Sandbox:
        """Makes and starts a sandbox: ``engine.run("busybox", "httpd", "-f", ports=["8080:80"])``.

        Raises:
            CommandNotFound, CommandNotExecutable: the command cannot be executed.
            NetboxError: what is wrong with the request or the host; nothing is left then.
        """
        sandbox = self.prepare_run(_spec(image, command, options))
        sandbox.start()
        return sandbox

    def prepare_run(self, spec: SandboxSpec) -> Sandbox:
        """The first half of ``run``: the caller starts the sandbox itself (attached, say) and at once: it is locked until then."""
        self._context.require_root("run a sandbox")
        self._recover()
        if self._warm and self._context.spawner is None:
            from netbox.runtime.spawner import Spawner

            self._context.spawner = Spawner()
        row, lock = creation.create(self._context, spec, state=ending.CREATING)
        return Sandbox(self._context, row, lock)

    def get(self, reference: str) -> Sandbox:
        """The sandbox that a name, an id or an unambiguous prefix of an id addresses.

        Raises:
            NotFound: there is none.
            Conflict: the prefix is ambiguous.
        """
        return Sandbox(self._context, self._context.store.find_sandbox(reference)).refresh()

    def list(self, all: bool = False, filters: Sequence[tuple[str, str]] = ()) -> builtins.list[Sandbox]:
        """The running sandboxes, newest first; with ``all`` every one.

        ``filters`` are (key, value) of name, id, status, label, image, network and exited: one of the values of each key must match.
        """
        if os.geteuid() == 0:
            try:
                self._recover()
            except (CleanupError, StateError):
                pass  # a full disk, say: looking is still possible, and gc tells about it
        found = [Sandbox(self._context, row) for row in self._context.store.sandboxes()]
        if not all and not any(key in ("state", "status", "exited") for key, _ in filters):
            found = [sandbox for sandbox in found if sandbox.state in ("running", "paused")]
        return [sandbox for sandbox in found if _matches(sandbox, filters)]

    def plan(self, spec: SandboxSpec) -> builtins.list[PlanSection]:
        """What ``run`` would do, as the commands that a person would type. Changes nothing."""
        from netbox.engine.dry_run import sections

        return [PlanSection(title, commands) for title, commands in sections(self._context, spec)]

    # -- housekeeping ----------------------------------------------------------------------------------------------------------------

    def gc(self) -> builtins.list[str]:
        """Collects whatever was left behind; returns a line for each thing.

        Raises:
            CleanupError: something could not be removed.
        """
        self._context.require_root("collect what was left behind")
        return recovery.collect(self._context)

    def repair(self) -> builtins.list[Difference]:
        """Puts netbox's firewall rules back where another program has flushed or edited them; returns what was missing or foreign.

        Raises:
            FirewallError, Unsupported: the rules cannot be read or changed.
        """
        from netbox.engine import repair

        self._context.require_root("repair firewall rules")
        names = [repair.Difference("missing", "names", "the process that serves them")] if self._context.network.ensure_names() else []
        return names + repair.repair(self._context.store)

    def exposure(self, *names: str) -> Report:
        """Who can reach what: the running sandboxes of these names (all without any) and their published ports.

        Raises:
            NotFound: there is no such sandbox.
            WrongState: one that was named does not run.
            NoPermission, FirewallError: the rules cannot be read.
        """
        from netbox.engine import exposing

        return exposing.report(self._context, names)

    def remove_image(self, name: str, force: bool = False) -> Image:
        """Removes an image.

        Raises:
            NotFound: there is none.
            Conflict: sandboxes use it and ``force`` is not given.
        """
        self._context.require_root("remove an image")
        with self.images.changing():
            image = self.images.find(name)
            users = [row.name for row in self._context.store.sandboxes() if row.image["id"] == image.id]
            if users and not force:
                raise Conflict(f"image {name} is used by {', '.join(sorted(users))}", "remove these sandboxes first, or use -f")
            return self.images.remove(image.name, recovery.layers_in_use(self._context))

    def events(
        self,
        since: float | None = None,
        until: float | None = None,
        follow: bool = False,
        filters: Sequence[tuple[str, str]] = (),
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[Event]:
        """What happened and, with ``follow``, what happens: only new events without ``since``, until ``until`` or until ``stop()`` is true.

        Times are seconds since the epoch; ``filters`` are (key, value) of event, sandbox (name, id or its beginning) and label.
        """
        return events.read(self._context, since, until, follow, filters, stop)

    def info(self) -> dict[str, Any]:
        """This host and what netbox keeps on it, as JSON-able values."""
        states = [sandbox.state for sandbox in self.list(all=True)]
        return {
            "version": __version__,
            "kernel": os.uname().release,
            "architecture": os.uname().machine,
            "processors": os.cpu_count(),
            "memory": observing.machine_memory(),
            "cgroup_version": self._context.cgroups.version,
            "root": self.settings.root,
            "run": self.settings.run,
            "sandboxes": {state: states.count(state) for state in ("running", "paused", "exited", "created")},
            "images": len(self.images.list()),
            "networks": [row.name for row in self._context.store.networks()],
        }

    def close(self) -> None:
        """Ends the warm process and takes down networks that no sandbox uses."""
        try:
            if os.geteuid() == 0 and os.path.exists(self.settings.database):
                self._background.finish()
        except StateError:
            pass  # whoever used the engine has been told; what is left to do is journaled, if anything is
        finally:
            self._context.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except NetboxError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def _recover(self) -> None:
        ending.recover(self._context)
        impairing.expire_all(self._context)
        watchers.collect(self.settings)
        if os.path.exists(f"{self.settings.run}/nameservice"):  # else the network layer need not be loaded
            self._context.network.ensure_names()


def _spec(image: SandboxSpec | str, command: Sequence[str], options: RunOptions) -> SandboxSpec:
    return image if isinstance(image, SandboxSpec) else build_spec(image, command, **options)


def _matches(sandbox: Sandbox, filters: Sequence[tuple[str, str]]) -> bool:
    return all(any(_has(sandbox, key, value) for other, value in filters if other == key) for key in {key for key, _ in filters})


def _has(sandbox: Sandbox, key: str, value: str) -> bool:
    if key == "label":
        name, separator, wanted = value.partition("=")
        return name in sandbox.labels and (not separator or sandbox.labels[name] == wanted)
    if key == "name":
        return value in sandbox.name
    if key == "id":
        return sandbox.id.startswith(value)
    if key == "exited":
        return sandbox.state == "exited" and str(sandbox.exit_code) == value
    if key in ("state", "status"):
        return sandbox.state == value
    if key in ("image", "ancestor"):
        return sandbox.image == value
    if key == "network":
        return value == sandbox.spec.network.mode or value in sandbox.networks
    return False
