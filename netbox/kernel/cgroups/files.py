"""Reading, writing and removing what lies in a cgroup hierarchy."""

from __future__ import annotations

import errno
import os
import time

from netbox.errors import HostError, NetboxError, Unsupported, UsageError, host_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .model import Write

GONE = (errno.ENOENT, errno.ENODEV)  # ENODEV: removed between the open and what came then
_REFUSED = (errno.EINVAL, errno.ERANGE, errno.EBUSY, errno.ENOSPC, errno.EOVERFLOW)
_RETRIES = 50
_HINTS = {
    "memory.limit_in_bytes": "the sandbox uses more than that now: give more, or end some of its processes first",
    "memory.memsw.limit_in_bytes": "the sandbox uses more than that now: give more, or end some of its processes first",
    "cpuset.cpus": "choose among the processors of the cgroup above it",
    "cpu.cfs_quota_us": "the cgroup above it allows fewer processors",
    "cpu.max": "the cgroup above it allows fewer processors",
}


def read(path: str) -> str:
    """The whole of a file, without its last newline. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(descriptor, 65536):
            chunks.append(chunk)
    finally:
        os.close(descriptor)
    return b"".join(chunks).decode("utf-8", "replace").rstrip("\n")


def read_optional(path: str) -> str | None:
    """Like ``read``; ``None`` when the file is not there or cannot be read: EOPNOTSUPP and ENODEV come from controllers that are off."""
    try:
        return read(path)
    except OSError:
        return None


def write(path: str, value: str) -> None:
    """Hands the kernel one value by one write(2), as every cgroup file wants it. Raises ``OSError``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def refused(change: Write, path: str, error: OSError) -> NetboxError:
    """What to raise when the kernel did not take a limit: names the limit, the file and what would do."""
    if error.errno == errno.ENOENT:
        return Unsupported(
            f"{change.option} cannot be enforced: {path} does not exist",
            f"give the cgroup above it the {change.controller} controller, or leave {change.option} out",
        )
    if error.errno in _REFUSED:
        hint = _HINTS.get(change.file, "choose another value")
        return UsageError(f"{change.option}: the kernel refused {change.value!r} for {path}: {os.strerror(error.errno or 0)}", hint)
    return host_error("write", path, error)


def make_directory(path: str, prepare: Callable[[str], None], top: str) -> None:
    """Makes ``path`` and what is missing between ``top`` and it, calling ``prepare`` on each level below ``top``, new or not.

    Another process may remove an empty level in the meantime (the last one out does), hence the second look. Raises ``HostError``.
    """
    levels = path[len(top) :].strip("/").split("/")
    for attempt in range(_RETRIES):
        current = top
        try:
            for name in levels:
                current = f"{current}/{name}"
                try:
                    os.mkdir(current, 0o755)
                except FileExistsError:
                    pass
                prepare(current)
            return
        except OSError as error:
            vanished = error.errno in GONE and os.path.isdir(top)
            if not vanished or attempt == _RETRIES - 1:
                raise host_error("make the cgroup", current, error) from error


def descend(path: str) -> Iterator[str]:
    """``path`` and every cgroup below it, the deepest first. Nothing when it is not there."""
    try:
        with os.scandir(path) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for child in children:
        yield from descend(child)
    yield path


def processes(path: str) -> list[int]:
    """The ids of the processes in ``path`` and below. Those outside the caller's pid namespace (shown as 0) are left out."""
    found: set[int] = set()
    for directory in descend(path):
        # ENODEV: the cgroup was removed between the two calls.
        found.update(int(line) for line in (read_optional(f"{directory}/cgroup.procs") or "").split())
    found.discard(0)
    return sorted(found)


def remove_tree(path: str, timeout: float) -> None:
    """Removes ``path`` and what is below it. Already gone is success.

    A process that was killed leaves its cgroup only when it has exited: EBUSY is waited out for ``timeout`` seconds, then ``HostError``.
    """
    deadline = time.monotonic() + timeout
    pause = 0.0002
    while True:
        try:
            _remove_with_children(path)
            break
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise host_error("remove the cgroup", path, error) from error
            if time.monotonic() > deadline:
                held = ", ".join(map(str, processes(path)[:5]))
                what = f"cannot remove the cgroup {path}: {f'process {held}' if held else 'something'} is still in it after {timeout:g} s"
                raise HostError(what, "kill the process, then run 'netbox gc'", errno.EBUSY) from error
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def remove_empty(path: str, top: str) -> None:
    """Removes ``path`` and every level above it (not ``top``) as long as they are empty. Never fails."""
    while path.startswith(f"{top}/"):
        try:
            _remove(path)
        except OSError:  # other sandboxes are in it, or someone else's processes
            return
        path = os.path.dirname(path)


def _remove_with_children(path: str) -> None:
    try:
        _remove(path)
    except OSError:  # it has children, or a process: listing it costs more than trying
        for directory in descend(path):
            _remove(directory)


def _remove(directory: str) -> None:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
