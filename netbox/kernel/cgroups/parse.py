"""The formats of the statistics files. Pure; a line that says something unknown is passed over.

v1: https://docs.kernel.org/admin-guide/cgroup-v1/, v2: https://docs.kernel.org/admin-guide/cgroup-v2.html#controllers
"""

from __future__ import annotations

from .model import Usage

_V1_UNLIMITED = 1 << 62  # v1 says "no limit" with the largest multiple of the page size


def number(text: str | None, default: int = 0) -> int:
    """The number that a file holds; ``default`` for a missing file or anything else."""
    try:
        return int(text or "")
    except ValueError:
        return default


def limit(text: str | None) -> int | None:
    """The limit that a file holds; ``None`` for ``max``, -1, v1's huge number or a missing file."""
    value = number(text, -1)
    return value if 0 <= value < _V1_UNLIMITED else None


def flat_keyed(text: str | None) -> dict[str, int]:
    """``KEY VALUE`` lines, as in ``memory.stat`` and ``cgroup.events``."""
    values = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdecimal():
            values[key] = int(value)
    return values


def v1_block_bytes(text: str | None) -> tuple[int, int]:
    """Bytes read and written, over all devices, of ``blkio.throttle.io_service_bytes_recursive``: lines ``MAJOR:MINOR Read N``."""
    read = written = 0
    for line in (text or "").splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[2].isdecimal():
            read += int(fields[2]) if fields[1] == "Read" else 0
            written += int(fields[2]) if fields[1] == "Write" else 0
    return read, written


def v2_block_bytes(text: str | None) -> tuple[int, int]:
    """Bytes read and written, over all devices, of ``io.stat``: lines ``MAJOR:MINOR rbytes=N wbytes=N …``."""
    read = written = 0
    for line in (text or "").splitlines():
        for field in line.split()[1:]:
            key, _, value = field.partition("=")
            if value.isdecimal():
                read += int(value) if key == "rbytes" else 0
                written += int(value) if key == "wbytes" else 0
    return read, written


def v1_usage(files: dict[str, str | None], oom_kills: int) -> Usage:
    """The usage that the v1 files of a cgroup tell: name → contents, ``None`` for a file that is not there."""
    memory = flat_keyed(files.get("memory.stat"))
    cpu = flat_keyed(files.get("cpu.stat"))
    block = files.get("blkio.throttle.io_service_bytes_recursive") or files.get("blkio.bfq.io_service_bytes_recursive")
    read, written = v1_block_bytes(block)
    return Usage(
        cpu_ns=number(files.get("cpuacct.usage")),
        cpu_user_ns=number(files.get("cpuacct.usage_user")),
        cpu_system_ns=number(files.get("cpuacct.usage_sys")),
        memory=max(number(files.get("memory.usage_in_bytes")) - memory.get("total_inactive_file", 0), 0),
        memory_limit=limit(files.get("memory.limit_in_bytes")),
        pids=number(files.get("pids.current")),
        pids_limit=limit(files.get("pids.max")),
        block_read=read,
        block_written=written,
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_time", 0),
        oom_kills=oom_kills,
    )


def v2_usage(files: dict[str, str | None]) -> Usage:
    """The usage that the v2 files of a cgroup tell: name → contents, ``None`` for a file that is not there."""
    memory = flat_keyed(files.get("memory.stat"))
    cpu = flat_keyed(files.get("cpu.stat"))
    read, written = v2_block_bytes(files.get("io.stat"))
    return Usage(
        cpu_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        memory=max(number(files.get("memory.current")) - memory.get("inactive_file", 0), 0),
        memory_limit=limit(files.get("memory.max")),
        pids=number(files.get("pids.current")),
        pids_limit=limit(files.get("pids.max")),
        block_read=read,
        block_written=written,
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        oom_kills=flat_keyed(files.get("memory.events")).get("oom_kill", 0),
    )
