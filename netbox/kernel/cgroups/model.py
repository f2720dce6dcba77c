"""The values that both cgroup versions understand. Sizes are bytes, times are nanoseconds."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What a sandbox may use; ``None`` leaves the kernel's value alone, 0 (or an empty list of processors) lifts a limit.

    ``memory_swap`` counts memory plus swap: -1 is unlimited, ``None`` with ``memory`` means twice the memory, as docker-run(1) has it.
    ``cpus`` is a number of processors (0.01 up to all), ``cpu_shares`` 2 to 262144 (1024 is the default), ``cpuset_cpus`` a list such as
    ``0-2,5``, ``pids_limit`` a number of tasks (-1 is unlimited), ``blkio_weight`` 10 to 1000.
    """

    memory: int | None = None
    memory_swap: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    pids_limit: int | None = None
    blkio_weight: int | None = None


class Usage(NamedTuple):
    """What the processes of a cgroup and of those below it have used.

    ``memory`` leaves out the page cache that the kernel would drop first, as ``docker stats`` does. A limit of ``None`` means none.
    What the host does not count is 0.
    """

    cpu_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    memory: int = 0
    memory_limit: int | None = None
    pids: int = 0
    pids_limit: int | None = None
    block_read: int = 0
    block_written: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    oom_kills: int = 0


class DeviceRule(NamedTuple):
    """An entry of a device allow list: ``kind`` is ``c``, ``b`` or ``a`` (both), -1 is any number, ``access`` is made of ``rwm``."""

    kind: str
    major: int
    minor: int
    access: str = "rwm"


class Write(NamedTuple):
    """One value for one file of a controller. ``option`` is what the user asked; a file that is not ``required`` may be missing."""

    controller: str
    file: str
    value: str
    option: str
    required: bool = True
