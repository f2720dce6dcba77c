"""cgroups, version 2: one directory per sandbox in the unified hierarchy. https://docs.kernel.org/admin-guide/cgroup-v2.html"""

from __future__ import annotations

import errno
import os
import signal as signals
import time

from netbox.errors import HostError, Unsupported, UsageError, host_error

from . import files, parse, values
from .devices import checked
from .model import Limits, Usage
from .processors import check_processors
from .weights import check_weight, scheduled_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .model import Write

# For accounting and a fair share every sandbox has these; cpuset comes when a limit asks for it, for the hierarchy's root keeps it.
CONTROLLERS = ("cpu", "io", "memory", "pids")
_FREEZE_TIMEOUT = 10.0  # seconds: every process has to run once more, on a busy machine too
_KILL_ROUNDS = 20
_BOOT_HINTS = {"memory": "boot with cgroup_enable=memory", "io": "this kernel needs CONFIG_BLK_CGROUP"}
_MEASURED = ("cpu.stat", "memory.stat", "memory.current", "memory.max", "memory.events", "pids.current", "pids.max", "io.stat")


class V2:
    """The version 2 implementation of ``Cgroups``. ``root`` is the directory where the hierarchy is mounted."""

    version = 2

    def __init__(self, root: str, sys_block: str = "/sys/block", controllers: Sequence[str] = CONTROLLERS) -> None:
        self._root = root
        self._sys_block = sys_block
        self._controllers = tuple(controllers)

    def check(self, limits: Limits) -> None:
        """Raises ``UsageError`` for a senseless limit and ``Unsupported`` for one that this host cannot enforce. Touches nothing."""
        values.validate(limits, os.cpu_count() or 1)
        for change in values.v2_writes(limits, self._weight_file()):
            if change.required:
                self._check_controller(change)
        if limits.cpuset_cpus:
            check_processors(limits.cpuset_cpus, files.read_optional(f"{self._root}/cpuset.cpus.effective"))
        if limits.blkio_weight:
            check_weight(self._sys_block, ("bfq",), files.read_optional(f"{self._root}/io.cost.qos") or "")

    def create(self, path: str) -> None:
        """Makes the cgroup and hands it the controllers that the hierarchy gives; one that is there already is kept.

        A controller that cannot be handed down matters only when a limit needs it: ``apply`` says so. Raises ``HostError``.
        """
        self._delegate(self._root, self._controllers)
        last = f"{self._root}/{path}"

        def prepare(directory: str) -> None:
            # The sandbox's own cgroup holds processes, so it may not hand controllers down: "no internal processes".
            if directory != last:
                self._delegate(directory, self._controllers)

        files.make_directory(last, prepare, self._root)

    def join(self, path: str) -> list[str]:
        """The directory to open for clone3(2) with CLONE_INTO_CGROUP."""
        return [f"{self._root}/{path}"]

    def apply(self, path: str, limits: Limits) -> None:
        """Sets the limits, at the start or later. Raises ``UsageError`` or ``Unsupported`` for what the kernel refuses."""
        directory = f"{self._root}/{path}"
        self._check_memory_in_use(directory, limits)
        for change in values.v2_writes(limits, self._weight_file()):
            target = f"{directory}/{change.file}"
            if change.controller == "cpuset" and not os.path.exists(target):
                self._hand_down(path, change.controller)
            try:
                files.write(target, change.value or "\n")
            except FileNotFoundError as error:
                if change.required:
                    raise files.refused(change, target, error) from error
            except OSError as error:
                raise files.refused(change, target, error) from error

    def allow_devices(self, path: str, rules: Iterable[Sequence[str | int]]) -> None:
        """Denies every device but those of ``rules``, by a BPF program that dies with the cgroup. Raises ``Unsupported``."""
        from netbox.kernel import devices_bpf

        devices_bpf.attach(f"{self._root}/{path}", checked(rules))

    def freeze(self, path: str) -> None:
        """Stops every process and returns when all stand still. Raises ``HostError`` after ten seconds."""
        directory = f"{self._root}/{path}"
        self._write(f"{directory}/cgroup.freeze", "1")
        if not self._wait_frozen(directory, _FREEZE_TIMEOUT):
            self._write(f"{directory}/cgroup.freeze", "0")
            raise HostError(f"cannot pause: the processes did not all stand still within {_FREEZE_TIMEOUT:g} s ({directory})", "try again")

    def thaw(self, path: str) -> None:
        """Lets them run again. Raises ``HostError``."""
        self._write(f"{self._root}/{path}/cgroup.freeze", "0")

    def is_frozen(self, path: str) -> bool:
        """Whether the whole cgroup stands still; false when it is gone."""
        return _frozen(f"{self._root}/{path}")

    def processes(self, path: str) -> list[int]:
        """The processes in the cgroup and below it."""
        return files.processes(f"{self._root}/{path}")

    def kill(self, path: str, signal: int = signals.SIGKILL) -> None:
        """Sends ``signal`` to every process. Nothing forked meanwhile escapes and no reused id is hit.

        It does not wait for their end. SIGKILL goes by ``cgroup.kill`` (Linux 5.14), the rest while the processes are frozen; what was
        paused stays paused.
        """
        directory = f"{self._root}/{path}"
        if signal == signals.SIGKILL:
            try:
                files.write(f"{directory}/cgroup.kill", "1")
                return
            except OSError as error:
                if error.errno not in files.GONE:
                    raise host_error("kill the processes of", directory, error) from error
                if not os.path.isdir(directory):
                    return
        self._signal_each(path, signal)

    def measure(self, path: str) -> Usage:
        """What the sandbox has used. Raises ``HostError`` (``errno`` ENOENT) when the cgroup is gone."""
        directory = f"{self._root}/{path}"
        if not self.exists(path):
            raise host_error("measure", directory, FileNotFoundError(errno.ENOENT, "no cgroup"))
        return parse.v2_usage({file: files.read_optional(f"{directory}/{file}") for file in _MEASURED})

    def oom_killed(self, path: str) -> bool:
        """Whether the kernel has killed a process of the sandbox for want of memory; false when the cgroup is gone."""
        return parse.flat_keyed(files.read_optional(f"{self._root}/{path}/memory.events")).get("oom_kill", 0) > 0

    def remove(self, path: str, timeout: float = 20.0, parents: bool = True) -> None:
        """Removes the cgroup, those below it and, with ``parents``, the empty ones above. Idempotent.

        Waits up to ``timeout`` seconds for processes that are ending. Raises ``HostError`` naming who is left.
        """
        files.remove_tree(f"{self._root}/{path}", timeout)
        if parents:
            self.remove_empty(os.path.dirname(path))

    def remove_empty(self, path: str) -> None:
        """Removes the cgroup and those above it as far as nothing is in them. Never fails."""
        files.remove_empty(f"{self._root}/{path}", self._root)

    def exists(self, path: str) -> bool:
        """Whether the cgroup is there."""
        return os.path.isdir(f"{self._root}/{path}")

    def describe(self, path: str, limits: Limits, rules: Iterable[Sequence[str | int]] = ()) -> list[str]:
        """What ``create``, ``allow_devices`` and ``apply`` do, as commands that a person would type."""
        commands = [f"mkdir -p {self._root}/{path}"]
        directory, available = self._root, self._available()
        needed = dict.fromkeys([*self._controllers, *(change.controller for change in values.v2_writes(limits))])
        enable = " ".join(f"+{name}" for name in needed if name in available)
        for name in path.split("/") if enable else ():
            commands.append(f"echo '{enable}' > {directory}/cgroup.subtree_control")
            directory = f"{directory}/{name}"
        if checked(rules):
            commands.append(f"# attach a cgroup_device BPF program to {self._root}/{path} (bpftool cgroup show)")
        for change in values.v2_writes(limits, self._weight_file()):
            commands.append(f"echo '{change.value}' > {self._root}/{path}/{change.file}")
        return commands

    def _available(self) -> list[str]:
        return (files.read_optional(f"{self._root}/cgroup.controllers") or "").split()

    def _check_controller(self, change: Write) -> None:
        name, option = change.controller, change.option
        if name not in self._available():
            hint = _BOOT_HINTS.get(name, "the cgroup above must hand it down (systemd: Delegate=yes)")
            raise Unsupported(f"{option} cannot be enforced: {self._root} has no {name} controller", hint)
        enabled = (files.read_optional(f"{self._root}/cgroup.subtree_control") or "").split()
        # cgroup.type is in every cgroup but the real root, which alone may hold processes and hand controllers down.
        if name not in enabled and os.path.exists(f"{self._root}/cgroup.type") and files.read_optional(f"{self._root}/cgroup.procs"):
            raise Unsupported(
                f"{option} cannot be enforced: processes in {self._root} itself keep it from handing the {name} controller down",
                f"move the ids in {self._root}/cgroup.procs to a cgroup of their own",
            )
        if not self._has_file(change):
            hint = "boot with swapaccount=1, or give --memory alone" if "swap" in change.file else f"leave {option} out"
            raise Unsupported(f"{option} cannot be enforced: this kernel has no {change.file}", hint)

    def _has_file(self, change: Write) -> bool:
        """Whether cgroups here have the file. The root has few itself, so its children that have the controller tell; without any: yes."""
        try:
            children = [entry.path for entry in os.scandir(self._root) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return True
        having = [child for child in children if change.controller in (files.read_optional(f"{child}/cgroup.controllers") or "").split()]
        return not having or any(os.path.exists(f"{child}/{change.file}") for child in having)

    def _weight_file(self) -> str:
        """BFQ's own file where a disk uses it, else that of the cost model."""
        return "io.bfq.weight" if scheduled_by(self._sys_block, ("bfq",)) else "io.weight"

    def _hand_down(self, path: str, controller: str) -> None:
        """Enables one controller on the whole way to ``path``."""
        directory = self._root
        for name in path.split("/"):
            self._delegate(directory, (controller,))
            directory = f"{directory}/{name}"

    def _delegate(self, directory: str, controllers: Sequence[str]) -> None:
        """Enables what the directory has for its children; one by one when the kernel refuses all at once (cpu with realtime tasks)."""
        has = (files.read_optional(f"{directory}/cgroup.controllers") or "").split()
        enabled = (files.read_optional(f"{directory}/cgroup.subtree_control") or "").split()
        missing = [f"+{name}" for name in controllers if name in has and name not in enabled]
        if not missing:
            return
        try:
            files.write(f"{directory}/cgroup.subtree_control", " ".join(missing))
        except FileNotFoundError:
            raise
        except OSError:
            for value in missing:
                try:
                    files.write(f"{directory}/cgroup.subtree_control", value)
                except OSError:  # told by apply(), if a limit needs it
                    pass

    def _check_memory_in_use(self, directory: str, limits: Limits) -> None:
        """v1 refuses a limit below what is in use; v2 takes it and kills. So it is refused here when reclaim could not make room."""
        if not limits.memory:
            return
        used = parse.number(files.read_optional(f"{directory}/memory.current"))
        stat = parse.flat_keyed(files.read_optional(f"{directory}/memory.stat"))
        held = used - stat.get("active_file", 0) - stat.get("inactive_file", 0) - stat.get("slab_reclaimable", 0)
        if held > limits.memory:
            raise UsageError(
                f"--memory {limits.memory}: the kernel would kill the sandbox, which holds {held} bytes ({directory}/memory.max)",
                "give more, or end some of its processes first",
            )

    def _signal_each(self, path: str, signal: int) -> None:
        directory = f"{self._root}/{path}"
        paused = _asked_to_freeze(directory)
        for _ in range(_KILL_ROUNDS):
            try:
                files.write(f"{directory}/cgroup.freeze", "1")
                complete = self._wait_frozen(directory, 0.2)
                for pid in self.processes(path):
                    try:
                        os.kill(pid, signal)
                    except ProcessLookupError:
                        pass
                if not paused:
                    files.write(f"{directory}/cgroup.freeze", "0")
            except OSError as error:
                if error.errno in files.GONE:  # nobody is left
                    return
                raise host_error("kill the processes of", directory, error) from error
            if complete or signal != signals.SIGKILL or not self.processes(path):
                return

    def _wait_frozen(self, directory: str, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = 0.0002
        while not _frozen(directory):
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        return True

    def _write(self, path: str, value: str) -> None:
        try:
            files.write(path, value)
        except OSError as error:
            raise host_error("write", path, error) from error


def _frozen(directory: str) -> bool:
    return parse.flat_keyed(files.read_optional(f"{directory}/cgroup.events")).get("frozen", 0) == 1


def _asked_to_freeze(directory: str) -> bool:
    return files.read_optional(f"{directory}/cgroup.freeze") == "1"
