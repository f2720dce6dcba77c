"""Processes as /proc shows them: when they started, the rows of ``top``, and who holds a port (proc(5)).

A process may end between two reads: whatever is gone by then is left out, never an error.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """What is used of /proc/PID/stat. Times are clock ticks, ``start`` counts from boot; ``resident`` is pages."""

    command: str
    state: str
    parent: int
    cpu: int
    start: int
    resident: int


class ProcessRow(NamedTuple):
    """One process. ``cpu_percent`` is its share of one processor since it started, as ps(1) has it; ``cpu_seconds`` what it used.

    ``resident`` is bytes, ``started_at`` seconds since the epoch. ``inner_pid`` is its pid in its own namespace.
    ``user`` is the name that this machine has for ``uid``, or the number.
    """

    pid: int
    inner_pid: int
    parent: int
    uid: int
    user: str
    state: str
    cpu_percent: float
    cpu_seconds: float
    resident: int
    started_at: float
    command: str


def split_stat(text: str) -> tuple[str, list[str]]:
    """The command's name in /proc/PID/stat and the fields after it, from the state (field 3) on. Pure. Raises ValueError.

    The name may hold any byte, also blanks and parentheses: the last ``)`` ends it.
    """
    opening, closing = text.find("("), text.rfind(")")
    if opening < 0 or closing < opening:
        raise ValueError(f"not a line of /proc/PID/stat: {text[:40]!r}")
    return text[opening + 1 : closing], text[closing + 1 :].split()


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks after boot (field 22 of /proc/PID/stat); None when there is no such process.

    A pid is reused, a pid with its start time is not.
    """
    text = read(pid, "stat")
    return int(split_stat(text)[1][22 - 3]) if text else None


def read(pid: int, name: str) -> str:
    """The text of /proc/PID/name; empty when the process is gone or may not be looked at."""
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def pids() -> Iterator[int]:
    """Every process of this pid namespace."""
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def parse_stat(text: str) -> Stat:
    """The fields of /proc/PID/stat that a row needs. Pure. Raises ValueError for a line that is cut short."""
    command, fields = split_stat(text)
    if len(fields) < 22:
        raise ValueError(f"a line of /proc/PID/stat is cut short: {text[:40]!r}")
    return Stat(command, fields[0], int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[19]), int(fields[21]))


def parse_status(text: str) -> tuple[int, int]:
    """The effective uid and the innermost pid in /proc/PID/status. Pure. Raises ValueError when a line is missing."""
    found = dict(line.partition(":")[::2] for line in text.splitlines())
    uids = found.get("Uid", "").split()
    inner = found.get("NSpid", found.get("Pid", "")).split()
    if len(uids) < 2 or not inner:
        raise ValueError("no Uid or Pid line")
    return int(uids[1]), int(inner[-1])


def parse_command_line(text: str) -> str:
    """The arguments of /proc/PID/cmdline as one line; empty for a kernel thread and a zombie. Pure."""
    line = " ".join(text.rstrip("\0").split("\0"))
    return "".join(character if character.isprintable() else "?" for character in line)


def process_rows(pids: Iterable[int]) -> list[ProcessRow]:
    """A row for each of the processes that still runs, in the order of their start."""
    boot, now = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_BOOTTIME)
    found = [row for pid in pids if (row := _row(pid, boot, now))]
    return sorted(found, key=lambda row: (row.started_at, row.pid))


def _row(pid: int, boot: float, now: float) -> ProcessRow | None:
    stat_text, status_text = read(pid, "stat"), read(pid, "status")
    if not stat_text or not status_text:
        return None
    stat = parse_stat(stat_text)
    uid, inner = parse_status(status_text)
    started, used = stat.start / _TICKS, stat.cpu / _TICKS
    return ProcessRow(
        pid=pid,
        inner_pid=inner,
        parent=stat.parent,
        uid=uid,
        user=_user(uid),
        state=stat.state,
        cpu_percent=round(100 * used / max(now - started, 1 / _TICKS), 1),
        cpu_seconds=used,
        resident=stat.resident * _PAGE,
        started_at=boot + started,
        command=parse_command_line(read(pid, "cmdline")) or f"[{parse_command_line(stat.command)}]",
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def block_bytes(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes that processes, and the children that they have waited for, had read from and written to block devices (proc_pid_io(5))."""
    totals = {"read_bytes": 0, "write_bytes": 0}
    for pid in pids:
        for line in read(pid, "io").splitlines():
            name, _, value = line.partition(":")
            if name in totals:
                totals[name] += int(value)
    return totals["read_bytes"], totals["write_bytes"]


def port_holder(protocol: str, port: int, address: str | None = None) -> str | None:
    """Who keeps a ``tcp`` or ``udp`` port of the calling thread's network namespace busy, for a message: ``nginx (pid 123)``.

    With ``address`` only sockets count that stand in the way of binding to it. None when nothing does; ``a process that cannot be seen``
    when the socket's owner is in another pid namespace or hidden.
    """
    from netbox.kernel import socket_table

    inodes = {row.inode for row in socket_table.busy(protocol, port, address)}
    if not inodes:
        return None
    for pid in sorted(pids()):
        if inodes & _socket_inodes(pid):
            return f"{command(pid)} (pid {pid})"
    return "a process that cannot be seen"


def command(pid: int) -> str:
    """The name of the program, as ``ps -o comm`` prints it; ``?`` when the process is gone."""
    return read(pid, "comm").rstrip("\n") or "?"


def _socket_inodes(pid: int) -> set[int]:
    directory = f"/proc/{pid}/fd"
    found: set[int] = set()
    try:
        names = os.listdir(directory)
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found
