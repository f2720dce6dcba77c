"""From limits to the values that the kernel's files take. Pure.

v1: https://docs.kernel.org/admin-guide/cgroup-v1/, v2: https://docs.kernel.org/admin-guide/cgroup-v2.html. The ranges and the defaults are
those of docker-run(1), the conversions from v1 to v2 those of runc.
"""

from __future__ import annotations

import math

from netbox.errors import UsageError

from .model import Limits, Write

CPU_PERIOD_US = 100_000
MEMORY_MINIMUM = 6 * 1024 * 1024
UNLIMITED = -1
_SHARES = (2, 262_144)
_SHARES_DEFAULT = 1024
_WEIGHT = (10, 1000)
_BFQ_WEIGHT_DEFAULT = 100
_PROCESSOR_MAX = 8191  # NR_CPUS of the largest configuration


def validate(limits: Limits, processors: int) -> None:
    """Raises ``UsageError`` for a limit that makes no sense on a host with so many ``processors``. Touches nothing."""
    _validate_memory(limits)
    cpus = limits.cpus
    if cpus is not None and cpus != 0 and not 0.01 <= cpus <= processors:  # false for nan as well
        raise UsageError(f"--cpus {cpus:g}: out of range", f"choose from 0.01 to {processors}, the processors of this host")
    _validate_range("--cpu-shares", limits.cpu_shares, _SHARES)
    _validate_range("--blkio-weight", limits.blkio_weight, _WEIGHT)
    if limits.pids_limit is not None and limits.pids_limit < UNLIMITED:
        raise UsageError(f"--pids-limit {limits.pids_limit}: less than nothing", "give a number of tasks, or -1 for no limit")
    if limits.cpuset_cpus:
        parse_cpu_list(limits.cpuset_cpus)


def _validate_memory(limits: Limits) -> None:
    memory, swap = limits.memory, limits.memory_swap
    if memory is not None and (memory < 0 or 0 < memory < MEMORY_MINIMUM):
        raise UsageError(f"--memory {memory}: a sandbox needs at least 6 MiB", "give 6m or more, or 0 for no limit")
    if not swap or swap == UNLIMITED:
        return
    if swap < 0:
        raise UsageError(f"--memory-swap {swap}: less than nothing", "give memory plus swap, or -1 for no limit")
    if not memory:
        raise UsageError("--memory-swap is memory plus swap and means nothing without --memory", "give --memory too")
    if swap < memory:
        raise UsageError(f"--memory-swap {swap} is less than --memory {memory}", "it counts memory plus swap: give at least the memory")


def _validate_range(option: str, value: int | None, bounds: tuple[int, int]) -> None:
    if value and not bounds[0] <= value <= bounds[1]:
        raise UsageError(f"{option} {value}: out of range", f"choose from {bounds[0]} to {bounds[1]}, or 0 for the default")


def parse_cpu_list(text: str) -> frozenset[int]:
    """The processors of a list such as ``0-2,5``. Raises ``UsageError``. Source: "List format" in cpuset(7)."""
    processors: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise UsageError(f"--cpuset-cpus {text}: '{part}' is no processor number", "write it like 0-2,5")
        low, high = int(first), int(last or first)
        if low > high or high > _PROCESSOR_MAX:
            raise UsageError(f"--cpuset-cpus {text}: '{part}' is no range of processors", "write it like 0-2,5")
        processors.update(range(low, high + 1))
    return frozenset(processors)


def cpu_quota_us(cpus: float) -> int:
    """How many microseconds of each period ``cpus`` processors amount to."""
    return round(cpus * CPU_PERIOD_US)


def cpu_weight(shares: int) -> int:
    """``cpu.weight`` (1 to 10000) for ``cpu.shares`` (2 to 262144): runc's curve, through 2 → 1, 1024 → 100 and 262144 → 10000."""
    if shares <= _SHARES[0]:
        return 1
    if shares >= _SHARES[1]:
        return 10_000
    exponent = math.log2(shares)
    return math.ceil(10 ** ((exponent * exponent + 125 * exponent) / 612 - 7 / 34))


def io_weight(blkio_weight: int) -> int:
    """``io.weight`` (1 to 10000) for ``blkio.weight`` (10 to 1000), linear as in runc."""
    return 1 + (blkio_weight - _WEIGHT[0]) * 9_999 // (_WEIGHT[1] - _WEIGHT[0])


def memory_swap_total(limits: Limits) -> int | None:
    """Memory plus swap in bytes, -1 for unlimited, ``None`` for "leave it": what was asked, else twice the memory."""
    if limits.memory_swap:
        return limits.memory_swap
    if limits.memory is None:
        return None
    return 2 * limits.memory if limits.memory else UNLIMITED


def v1_writes(limits: Limits, weight_file: str = "blkio.bfq.weight") -> list[Write]:
    """The writes for a new v1 cgroup, in order."""
    writes = _cpuset_and_pids(limits)
    if limits.cpu_shares is not None:
        writes.append(Write("cpu", "cpu.shares", str(limits.cpu_shares or _SHARES_DEFAULT), "--cpu-shares"))
    if limits.cpus is not None:
        quota = cpu_quota_us(limits.cpus) if limits.cpus else UNLIMITED
        writes.append(Write("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US), "--cpus"))
        writes.append(Write("cpu", "cpu.cfs_quota_us", str(quota), "--cpus"))
    if limits.memory is not None:
        writes.append(Write("memory", "memory.limit_in_bytes", str(limits.memory or UNLIMITED), "--memory"))
    total = memory_swap_total(limits)
    if total is not None:
        writes.append(Write("memory", "memory.memsw.limit_in_bytes", str(total), "--memory-swap", required=_swap_matters(limits)))
    if limits.blkio_weight is not None:
        default = 500 if weight_file == "blkio.weight" else _BFQ_WEIGHT_DEFAULT
        writes.append(Write("blkio", weight_file, str(limits.blkio_weight or default), "--blkio-weight"))
    return writes


def v2_writes(limits: Limits, weight_file: str = "io.bfq.weight") -> list[Write]:
    """The writes for a v2 cgroup, in order."""
    writes = _cpuset_and_pids(limits)
    if limits.cpu_shares is not None:
        writes.append(Write("cpu", "cpu.weight", str(cpu_weight(limits.cpu_shares or _SHARES_DEFAULT)), "--cpu-shares"))
    if limits.cpus is not None:
        quota = str(cpu_quota_us(limits.cpus)) if limits.cpus else "max"
        writes.append(Write("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}", "--cpus"))
    if limits.memory is not None:
        writes.append(Write("memory", "memory.max", str(limits.memory or "max"), "--memory"))
    total = memory_swap_total(limits)
    if total is not None:
        swap = "max" if total == UNLIMITED else str(total - (limits.memory or 0))
        writes.append(Write("memory", "memory.swap.max", swap, "--memory-swap", required=_swap_matters(limits)))
    if limits.blkio_weight is not None:
        weight = limits.blkio_weight or _BFQ_WEIGHT_DEFAULT
        converted = weight if weight_file == "io.bfq.weight" else io_weight(weight) if limits.blkio_weight else _BFQ_WEIGHT_DEFAULT
        writes.append(Write("io", weight_file, str(converted), "--blkio-weight"))
    return writes


def _cpuset_and_pids(limits: Limits) -> list[Write]:
    writes = []
    if limits.cpuset_cpus is not None:
        writes.append(Write("cpuset", "cpuset.cpus", limits.cpuset_cpus, "--cpuset-cpus"))
    if limits.pids_limit is not None:
        writes.append(Write("pids", "pids.max", str(limits.pids_limit) if limits.pids_limit > 0 else "max", "--pids-limit"))
    return writes


def _swap_matters(limits: Limits) -> bool:
    """Whether a host that cannot limit swap breaks a promise: only if swap was limited by name."""
    return limits.memory_swap is not None and limits.memory_swap > 0
