"""Where the benchmark runs: PID, network and mount namespaces of its own, so that the machine stays untouched whatever happens inside.

    scripts/bench ── supervisor ── init (pid 1 of the new namespaces, reaps) ── the benchmark ── dockerd, netbox, …

When pid 1 ends the kernel ends every process inside. What a namespace does not hold, the supervisor removes: the temporary directory and
the cgroups, all of which have its name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import linux

_CLONE_NEWPID = 0x20000000
_PR_SET_PDEATHSIG = 1

_REMOVAL_TIME = 60.0  # seconds


class Place:
    """``directory`` is on the disk and empty, ``cgroup`` a path below every cgroup hierarchy, ``name`` unlike any other.

    They are below ``TMPDIR`` and ``NETBOX_CGROUP`` where these are set.
    """

    def __init__(self) -> None:
        self.name = f"netbox-bench-{secrets.token_hex(3)}"
        self.cgroup = "/".join(filter(None, (os.environ.get("NETBOX_CGROUP", "").strip("/"), self.name)))
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=os.environ.get("TMPDIR", "/var/tmp")))

    def hierarchies(self) -> list[Path]:
        """Every cgroup hierarchy that this process sees."""
        found = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            if after.split()[0] in ("cgroup", "cgroup2"):
                found.append(Path(before.split()[4]))
        return list(dict.fromkeys(found))

    def remove(self) -> None:
        """Removes the cgroups and the directory; both may be gone."""
        deadline = time.monotonic() + _REMOVAL_TIME
        for hierarchy in self.hierarchies():
            for path, _, _ in os.walk(hierarchy / self.cgroup, topdown=False):
                while not _removed(Path(path)) and time.monotonic() < deadline:
                    time.sleep(0.01)
        # The processes inside are dying, not dead: one of them may still make a file, or hold a mount in its namespace.
        deadline = time.monotonic() + _REMOVAL_TIME
        while os.path.exists(self.directory) and time.monotonic() < deadline:
            shutil.rmtree(self.directory, ignore_errors=True)
            time.sleep(0.01)


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def run_inside(work: Callable[[Place], int]) -> int:
    """Runs ``work`` in the private place and returns its exit code. Everything is gone afterwards, also after Ctrl-C."""
    place = Place()
    signal.signal(signal.SIGTERM, _interrupt)
    interrupts = (signal.SIGTERM, signal.SIGINT)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, interrupts)  # an interrupt finds somebody who knows the child
        init = os.fork()
        if init == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts)
            _exit_with(lambda: _namespaces(place, work))
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts)
            return os.waitstatus_to_exitcode(os.waitpid(init, 0)[1])
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(init, signal.SIGKILL)
                os.waitpid(init, 0)
            return 130
    finally:
        place.remove()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _exit_with(function: Callable[[], int]) -> None:
    """Ends this forked process with the function's result; nothing of the parent's clean-up runs here."""
    code = 1
    try:
        code = function()
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001 - the top of a process
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _namespaces(place: Place, work: Callable[[Place], int]) -> int:
    """Becomes a member of new namespaces; its child is pid 1 there, and dies with this process."""
    _die_with_parent()
    linux.unshare(_CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWNET)
    child = os.fork()
    if child == 0:
        _exit_with(lambda: _init(place, work))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _init(place: Place, work: Callable[[Place], int]) -> int:
    """Pid 1: mounts, then waits for the benchmark and reaps the orphans of everything that it starts."""
    _die_with_parent()
    _mounts(place)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
    child = os.fork()
    if child == 0:
        _exit_with(lambda: work(place))
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _mounts(place: Place) -> None:
    """A fresh /proc, /run and /sys; the cgroup mounts move over to the new /sys."""
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("proc", "/proc", "proc", flags | linux.MS_NOEXEC)
    linux.mount("tmpfs", "/run", "tmpfs", flags, "mode=0755")
    Path("/run/lock").mkdir(mode=0o1777)
    kept = place.directory / "cgroup"
    kept.mkdir()
    linux.mount("/sys/fs/cgroup", str(kept), flags=linux.MS_BIND | linux.MS_REC)
    linux.mount("sysfs", "/sys", "sysfs", flags | linux.MS_NOEXEC)
    linux.mount(str(kept), "/sys/fs/cgroup", flags=linux.MS_MOVE)
    kept.rmdir()
    # netfilter's user space talks to legacy tables of this namespace only.
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
