"""cgroups, version 1: one directory per sandbox in each hierarchy. https://docs.kernel.org/admin-guide/cgroup-v1/"""

from __future__ import annotations

import os
import signal as signals
import time

from netbox.errors import HostError, Unsupported, host_error

from . import files, parse, values
from .devices import checked, v1_lines
from .model import Limits, Usage
from .processors import check_processors
from .weights import check_weight

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .model import Write

_FREEZE_TIMEOUT = 10.0  # seconds: every process has to run once more, on a busy machine too
_KILL_ROUNDS = 20
_MEASURED = (
    ("cpuacct", "cpuacct.usage"),
    ("cpuacct", "cpuacct.usage_user"),
    ("cpuacct", "cpuacct.usage_sys"),
    ("memory", "memory.stat"),
    ("memory", "memory.usage_in_bytes"),
    ("memory", "memory.limit_in_bytes"),
    ("pids", "pids.current"),
    ("pids", "pids.max"),
    ("cpu", "cpu.stat"),
    ("blkio", "blkio.throttle.io_service_bytes_recursive"),
    ("blkio", "blkio.bfq.io_service_bytes_recursive"),
)
_BOOT_HINTS = {"memory": "boot with cgroup_enable=memory"}
_SWAP_HINT = "boot with swapaccount=1, or give --memory alone"


class V1:
    """The version 1 implementation of ``Cgroups``. ``hierarchies`` maps each controller to the directory where its hierarchy is mounted."""

    version = 1

    def __init__(self, hierarchies: Mapping[str, str], sys_block: str = "/sys/block") -> None:
        self._roots = dict(hierarchies)
        self._unique = tuple(dict.fromkeys(self._roots.values()))  # cpu and cpuacct often share one
        self._sys_block = sys_block
        # The freezer's list of processes is the one that kill() can hold still.
        self._process_root = self._roots.get("freezer") or self._unique[0]

    def check(self, limits: Limits) -> None:
        """Raises ``UsageError`` for a senseless limit and ``Unsupported`` for one that this host cannot enforce. Touches nothing."""
        values.validate(limits, os.cpu_count() or 1)
        for change in values.v1_writes(limits, self._weight_file()):
            root = self._roots.get(change.controller)
            if root is None:
                hint = _BOOT_HINTS.get(change.controller, f"mount it: mount -t cgroup -o {change.controller}")
                raise Unsupported(f"{change.option} cannot be enforced: no {change.controller} controller is mounted", hint)
            if change.required and change.file.startswith(("cpu.", "memory.")) and not os.path.exists(f"{root}/{change.file}"):
                hint = _SWAP_HINT if "memsw" in change.file else f"leave {change.option} out"
                raise Unsupported(f"{change.option} cannot be enforced: this kernel has no {change.file} in {root}", hint)
        if limits.cpuset_cpus:
            path = f"{self._roots['cpuset']}/cpuset.effective_cpus"
            check_processors(limits.cpuset_cpus, files.read_optional(path) or files.read_optional(f"{self._roots['cpuset']}/cpuset.cpus"))
        if limits.blkio_weight:
            check_weight(self._sys_block, ("bfq", "cfq"))

    def create(self, path: str) -> None:
        """Makes the cgroup in every hierarchy; one that is there already is kept. Raises ``HostError``."""
        for root in self._unique:
            prepare = _inherit_cpuset if root == self._roots.get("cpuset") else _nothing
            files.make_directory(f"{root}/{path}", prepare, root)

    def join(self, path: str) -> list[str]:
        """The ``tasks`` files to which a process with a single thread writes ``0`` to move itself.

        Another process writing to ``cgroup.procs`` would wait for an RCU grace period, up to 15 ms.
        """
        return [f"{root}/{path}/tasks" for root in self._unique]

    def apply(self, path: str, limits: Limits) -> None:
        """Sets the limits, at the start or later. Raises ``UsageError`` or ``Unsupported`` for what the kernel refuses."""
        changes = values.v1_writes(limits, self._weight_file())
        for change in self._ordered(path, changes):
            root = self._roots.get(change.controller)
            if root is None:
                raise Unsupported(f"{change.option} cannot be enforced: no {change.controller} controller is mounted")
            target = f"{root}/{path}/{change.file}"
            value = change.value
            if change.file == "cpuset.cpus" and not value:
                value = files.read_optional(f"{os.path.dirname(f'{root}/{path}')}/cpuset.cpus") or ""
            try:
                files.write(target, value)
            except FileNotFoundError as error:
                if change.required:
                    raise files.refused(change, target, error) from error
            except OSError as error:
                raise files.refused(change, target, error) from error

    def allow_devices(self, path: str, rules: Iterable[Sequence[str | int]]) -> None:
        """Denies every device, then allows those of ``rules``. Only before the sandbox made cgroups of its own. Raises ``Unsupported``."""
        lines = v1_lines(checked(rules))
        root = self._roots.get("devices")
        if root is None:
            raise Unsupported("no device rule can be enforced: no devices controller is mounted", "mount -t cgroup -o devices")
        directory = f"{root}/{path}"
        try:
            if "a" in lines:  # "everything" overrides the rest
                files.write(f"{directory}/devices.allow", "a")
                return
            files.write(f"{directory}/devices.deny", "a")
            for line in lines:
                files.write(f"{directory}/devices.allow", line)
        except OSError as error:
            raise host_error("write the device rules of", directory, error) from error

    def freeze(self, path: str) -> None:
        """Stops every process and returns when all stand still. Raises ``Unsupported``, or ``HostError`` after ten seconds."""
        state = self._freezer(path)
        try:
            if _freeze(state, _FREEZE_TIMEOUT):
                return
            files.write(state, "THAWED")
        except OSError as error:
            raise host_error("write", state, error) from error
        raise HostError(f"cannot pause: the processes did not all stand still within {_FREEZE_TIMEOUT:g} s ({state})", "try again")

    def thaw(self, path: str) -> None:
        """Lets them run again. Raises ``HostError``."""
        state = self._freezer(path)
        try:
            files.write(state, "THAWED")
        except OSError as error:
            raise host_error("write", state, error) from error

    def is_frozen(self, path: str) -> bool:
        """Whether the whole cgroup stands still; false when it is gone."""
        root = self._roots.get("freezer")
        return root is not None and files.read_optional(f"{root}/{path}/freezer.state") == "FROZEN"

    def processes(self, path: str) -> list[int]:
        """The processes in the cgroup and below it."""
        return files.processes(f"{self._process_root}/{path}")

    def kill(self, path: str, signal: int = signals.SIGKILL) -> None:
        """Sends ``signal`` to every process. Nothing forked meanwhile escapes and no reused id is hit: they are frozen while it is sent.

        It does not wait for their end. A frozen process acts on the signal when it is thawed: SIGKILL thaws, others leave it paused.
        """
        state = f"{self._roots['freezer']}/{path}/freezer.state" if "freezer" in self._roots else None
        paused = self.is_frozen(path)
        for _ in range(_KILL_ROUNDS):
            complete = False
            try:
                complete = state is not None and _freeze(state, 0.2)
                _send(self.processes(path), signal)
                if state is not None and (signal == signals.SIGKILL or not paused):
                    files.write(state, "THAWED")
            except OSError as error:
                if error.errno in files.GONE:  # nobody is left
                    return
                raise host_error("kill the processes of", path, error) from error
            if complete or signal != signals.SIGKILL or not self.processes(path):
                return

    def measure(self, path: str) -> Usage:
        """What the sandbox has used. Raises ``HostError`` (``errno`` ENOENT) when the cgroup is gone."""
        if not self.exists(path):
            raise host_error("measure", f"{self._process_root}/{path}", FileNotFoundError(2, "no cgroup"))
        contents = {}
        for controller, file in _MEASURED:
            root = self._roots.get(controller)
            contents[file] = files.read_optional(f"{root}/{path}/{file}") if root else None
        usage = parse.v1_usage(contents, self._oom_kills(path))
        if usage.block_read or usage.block_written:
            return usage
        from netbox.kernel import processes  # a start never gets here

        # Newer kernels count only on disks for which some cgroup has a throttle. Unlike the cgroup, the processes forget those that ended
        # before them without being waited for by one of them.
        block_read, block_written = processes.block_bytes(self.processes(path))
        return usage._replace(block_read=block_read, block_written=block_written)

    def oom_killed(self, path: str) -> bool:
        """Whether the kernel has killed a process of the sandbox for want of memory; false when the cgroup is gone."""
        return self._oom_kills(path) > 0

    def remove(self, path: str, timeout: float = 20.0, parents: bool = True) -> None:
        """Removes the cgroup, those below it and, with ``parents``, the empty ones above. Idempotent.

        Waits up to ``timeout`` seconds for processes that are ending. Raises ``HostError`` naming who is left.
        """
        for root in self._unique:
            files.remove_tree(f"{root}/{path}", timeout)
        if parents:
            self.remove_empty(os.path.dirname(path))

    def remove_empty(self, path: str) -> None:
        """Removes the cgroup and those above it as far as nothing is in them. Never fails."""
        for root in self._unique:
            files.remove_empty(f"{root}/{path}", root)

    def exists(self, path: str) -> bool:
        """Whether the cgroup is there in any hierarchy."""
        return any(os.path.isdir(f"{root}/{path}") for root in self._unique)

    def describe(self, path: str, limits: Limits, rules: Iterable[Sequence[str | int]] = ()) -> list[str]:
        """What ``create``, ``allow_devices`` and ``apply`` do, as commands that a person would type."""
        commands = [f"mkdir -p {root}/{path}" for root in self._unique]
        if "cpuset" in self._roots:
            root = self._roots["cpuset"]
            parts = path.split("/")
            for level in ("/".join(parts[: depth + 1]) for depth in range(len(parts))):  # a new cgroup has none, and gives its own none
                commands += [f"cat {root}/cpuset.{name} > {root}/{level}/cpuset.{name}" for name in ("cpus", "mems")]
        lines = v1_lines(checked(rules))
        if lines and "devices" in self._roots:
            root = self._roots["devices"]
            commands.append(f"echo a > {root}/{path}/devices.{'allow' if 'a' in lines else 'deny'}")
            commands += [f"echo '{line}' > {root}/{path}/devices.allow" for line in lines if "a" not in lines]
        for change in values.v1_writes(limits, self._weight_file()):
            root = self._roots.get(change.controller, f"/sys/fs/cgroup/{change.controller}")
            if change.required or os.path.exists(f"{root}/{change.file}"):
                commands.append(f"echo {change.value} > {root}/{path}/{change.file}")
        return commands

    def _ordered(self, path: str, changes: list[Write]) -> list[Write]:
        """The kernel keeps memory at or below memory plus swap at every step: when raising, memory plus swap goes first."""
        memory = [change for change in changes if change.controller == "memory"]
        if len(memory) < 2:
            return changes
        current = parse.limit(files.read_optional(f"{self._roots.get('memory', '')}/{path}/memory.memsw.limit_in_bytes"))
        wanted = int(memory[0].value)
        if current is None or 0 <= wanted <= current:
            return changes
        return [change for change in changes if change.controller != "memory"] + memory[::-1]

    def _weight_file(self) -> str:
        return "blkio.weight" if os.path.exists(f"{self._roots.get('blkio', '')}/blkio.weight") else "blkio.bfq.weight"

    def _freezer(self, path: str) -> str:
        if "freezer" not in self._roots:
            raise Unsupported("pausing needs the freezer controller, and none is mounted", "mount -t cgroup -o freezer")
        return f"{self._roots['freezer']}/{path}/freezer.state"

    def _oom_kills(self, path: str) -> int:
        root = self._roots.get("memory")
        if root is None:
            return 0
        # v1 does not add a child's count to its parent's.
        return sum(
            parse.flat_keyed(files.read_optional(f"{directory}/memory.oom_control")).get("oom_kill", 0)
            for directory in files.descend(f"{root}/{path}")
        )


def _nothing(directory: str) -> None:
    pass


def _inherit_cpuset(directory: str) -> None:
    """A new v1 cpuset has no processor and no memory node, and takes no process until it has."""
    parent = os.path.dirname(directory)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not files.read(f"{directory}/{name}"):
            files.write(f"{directory}/{name}", files.read(f"{parent}/{name}"))


def _freeze(state: str, timeout: float) -> bool:
    """Writes FROZEN until it is so. A fork in the middle can keep the state at FREEZING until it is thawed and frozen again.

    Raises ``OSError``.
    """
    deadline = time.monotonic() + timeout
    pause = 0.0002
    while True:
        files.write(state, "FROZEN")
        if files.read(state) == "FROZEN":
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause *= 2
        if pause > 0.02:
            pause = 0.0002
            if files.read(state) != "FROZEN":
                files.write(state, "THAWED")


def _send(pids: list[int], signal: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal)
        except ProcessLookupError:
            pass
