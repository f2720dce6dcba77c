"""Looking at sandboxes without changing them: state, stats, processes, the document that ``inspect`` prints."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from netbox import names
from netbox.engine import ending, impairing
from netbox.errors import HostError, WrongState
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.kernel.processes import ProcessRow


@dataclass(frozen=True)
class Stats:
    """One measurement of a sandbox. Times are seconds since the epoch or nanoseconds of CPU, sizes bytes; ``None`` means no limit.

    ``cpu_percent`` counts one busy processor as 100; it is the mean since the previous measurement, or since the start for the first one.
    """

    id: str
    name: str
    time: float
    cpu_ns: int
    cpu_percent: float
    memory: int
    memory_limit: int | None
    pids: int
    pids_limit: int | None
    block_read: int
    block_written: int
    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int

    @property
    def memory_percent(self) -> float:
        """Memory in use as a share of its limit, or of the machine's memory without one."""
        limit = self.memory_limit or machine_memory()
        return 100.0 * self.memory / limit if limit else 0.0


class Top(NamedTuple):
    """The processes of a sandbox."""

    processes: list[ProcessRow]


def machine_memory() -> int:
    """The machine's memory in bytes (``MemTotal`` of proc_meminfo(5))."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0


def state_of(context: Context, row: SandboxRow) -> str:
    """created, starting, running, paused or exited, as it is now: one whose record says "running" but has no living monitor has ended."""
    if row.state not in ending.ACTIVE:
        return row.state
    if not ending.is_alive(context, row):
        return "exited" if row.state in ("running", ending.ENDING) else "created"
    if row.state == ending.ENDING:
        return "exited"
    path = context.settings.cgroup(row.id)
    return "paused" if row.state == "running" and context.cgroups.is_frozen(path) else row.state


def stats(context: Context, row: SandboxRow, previous: Stats | None = None) -> Stats:
    """Measures a running sandbox.

    Raises:
        WrongState: it does not run.
    """
    from netbox.network.plan import NetworkPlan

    if state_of(context, row) not in ("running", "paused") or row.pid is None:
        raise WrongState(f"{row.name} does not run", f"start it first (netbox start {row.name})")
    now = time.time()
    try:
        usage = context.cgroups.measure(context.settings.cgroup(row.id))
        traffic = context.network.statistics(NetworkPlan.from_json(row.details["network"]), row.pid)
    except HostError as error:
        if state_of(context, row) in ("running", "paused"):
            raise
        raise WrongState(f"{row.name} has just ended") from error
    since, cpu_before = (previous.time, previous.cpu_ns) if previous else (row.started_at or now, 0)
    elapsed = max(now - since, 1e-3)
    return Stats(
        id=row.id,
        name=row.name,
        time=now,
        cpu_ns=usage.cpu_ns,
        cpu_percent=100.0 * max(0, usage.cpu_ns - cpu_before) / 1e9 / elapsed,
        memory=usage.memory,
        memory_limit=usage.memory_limit,
        pids=usage.pids,
        pids_limit=usage.pids_limit,
        block_read=usage.block_read,
        block_written=usage.block_written,
        rx_bytes=traffic.rx_bytes,
        rx_packets=traffic.rx_packets,
        tx_bytes=traffic.tx_bytes,
        tx_packets=traffic.tx_packets,
    )


def inspect(context: Context, row: SandboxRow) -> dict[str, Any]:
    """Everything known about a sandbox as one JSON-able document."""
    network = dict(row.details.get("network") or {})
    return {
        "id": row.id,
        "name": row.name,
        "state": state_of(context, row),
        "pid": row.pid,
        "exit_code": row.exit_code,
        "error": row.error,
        "oom_killed": bool(row.details.get("oom_killed")),
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "image": row.image,
        "spec": row.spec,
        "network": network,
        "impairments": impairing.documents(context, row),
        "runtime": row.details.get("runtime") or {},
        "cgroup": context.settings.cgroup(row.id),
        "directory": context.settings.sandbox_root(row.id),
        "journal": [
            {"scope": entry.scope, "kind": entry.kind, **entry.args}
            for scope in ("sandbox", "run")
            for entry in context.store.journal(names.sandbox_owner(row.id), scope).rows()
        ],
    }
