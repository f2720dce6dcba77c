"""A private host: the test process itself in mount and network namespaces of its own, and back again.

Inside, the machine's tables, links and mounts cannot be touched, however wrong the code under test is. Processes that a test starts are
born inside and stay there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import cgroups, leaks, linux
from tests.support.waiting import wait_until

CHECK_TIMEOUT = 60.0  # seconds: a dying network namespace takes its links along a moment after its last process


class Mark:
    """A cgroup that the test process and so every process started by it is in: how an orphan is told from the machine's own processes.

    On a host with version 2 alone a sandbox leaves it for its own cgroup, which is looked at as well.
    """

    def __init__(self) -> None:
        self.hierarchy = cgroups.marking_hierarchy()
        self.path = self.hierarchy / f"{leaks.run_prefix()}-mark-{secrets.token_hex(8)}"
        self._before = self._current()
        self.path.mkdir()
        Path(self.path, "cgroup.procs").write_text(str(os.getpid()))

    def _current(self) -> Path:
        """The directory of the cgroup that this process is in."""
        own = Path("/proc/self/mountinfo").read_text()
        kind = next(line for line in own.splitlines() if line.split()[4] == str(self.hierarchy)).partition(" - ")[2].split()
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if (kind[0] == "cgroup2" and not controllers) or (controllers and set(controllers.split(",")) <= set(kind[2].split(","))):
                return self.hierarchy / path.lstrip("/")
        return self.hierarchy

    def close(self) -> None:
        """Moves this process back, ends what is left and removes the cgroup."""
        Path(self._before, "cgroup.procs").write_text(str(os.getpid()))
        wait_until(self._removed, f"the removal of {self.path}", timeout=60)

    def _removed(self) -> bool:
        """A process may fork while it is killed, and the dying leave the cgroup a moment after they were seen dead."""
        cgroups.kill_processes(cgroups.processes(self.path))
        try:
            self.path.rmdir()
        except OSError:
            return False
        return True


class PrivateHost:
    """What a test needs to know about the host that it is on.

    ``root``, ``run`` and ``cgroup`` are what ``NETBOX_ROOT``, ``NETBOX_RUN`` and ``NETBOX_CGROUP`` say inside.
    """

    def __init__(self, mark: Path) -> None:
        self.base = Path("/run/netbox-test")
        self.root = self.base / "root"
        self.run = self.base / "run"
        self.cgroup = f"{leaks.run_prefix()}-{secrets.token_hex(8)}"
        self.mark = mark
        # Where a directory on a disk is given, the state is there: the tmpfs of Linux before 6.3 has no idmapped mounts.
        disk = os.environ.get("NETBOX_TEST_DISK")
        self._disk = tempfile.TemporaryDirectory(dir=disk, ignore_cleanup_errors=True) if disk else None
        if self._disk is not None:
            os.chmod(self._disk.name, 0o755)
        self._before: leaks.Snapshot = {}
        self._environment = {name: os.environ.get(name) for name in ("NETBOX_ROOT", "NETBOX_RUN", "NETBOX_CGROUP")}
        self._fds = {
            name: os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            for name, path in (("net", "/proc/thread-self/ns/net"), ("mnt", "/proc/thread-self/ns/mnt"), ("root", "/"), ("cwd", "."))
        }

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point netbox here."""
        return {"NETBOX_ROOT": str(self.root), "NETBOX_RUN": str(self.run), "NETBOX_CGROUP": self.cgroup}

    def enter(self) -> None:
        """Moves the calling thread, which must be the main one, into the private host."""
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET)
        try:
            linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
            self._mount_run_and_sys()
            self._resolver()
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=60)
            for name in ("net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/ipv4/conf/default/route_localnet"):
                Path("/proc/sys", name).write_text("0")  # a new namespace copies the machine's values
            os.environ.update(self.environment)
        except BaseException:
            self.leave()
            raise
        self._before = self._snapshot()

    def _mount_run_and_sys(self) -> None:
        flags = linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("tmpfs", "/run", "tmpfs", flags, "mode=0755")
        Path("/run/lock").mkdir(mode=0o1777)
        self.base.mkdir()
        self.root.mkdir()
        if self._disk is None:
            linux.mount("netbox-root", str(self.root), "tmpfs", flags, "mode=0755,size=1g")
        else:
            linux.mount(self._disk.name, str(self.root), flags=linux.MS_BIND)
        # A new sysfs shows the new network namespace's links; the cgroup mounts of the old one move over to it.
        kept = self.base / "cgroup"
        kept.mkdir()
        linux.mount("/sys/fs/cgroup", str(kept), flags=linux.MS_BIND | linux.MS_REC)
        linux.mount("sysfs", "/sys", "sysfs", flags | linux.MS_NOEXEC)
        linux.mount(str(kept), "/sys/fs/cgroup", flags=linux.MS_MOVE)
        kept.rmdir()

    def _resolver(self) -> None:
        """The same resolv.conf on every machine; where it is a link into /run, the file is made there."""
        mine = self.base / "resolv.conf"
        mine.write_text("nameserver 198.51.100.1\nsearch example.test\n")
        target = Path(os.path.realpath("/etc/resolv.conf"))
        if not target.exists() and target.is_relative_to("/run"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        if target.exists():
            linux.mount(str(mine), str(target), flags=linux.MS_BIND)

    def _snapshot(self) -> leaks.Snapshot:
        return leaks.snapshot(self.root, self.run, self.cgroup, self.mark)

    def leftovers(self, timeout: float = CHECK_TIMEOUT) -> list[str]:
        """What differs from the moment after ``enter``. Waits for what goes asynchronously; an empty list means clean."""
        deadline = time.monotonic() + timeout
        while True:
            found = leaks.difference(self._before, self._snapshot())
            if not found or time.monotonic() >= deadline:
                return found
            time.sleep(0.05)

    def leave(self) -> None:
        """Ends left-over processes, removes left-over cgroups, returns to the machine. Every step runs; the first error is raised."""
        errors: list[Exception] = []
        steps: list[Callable[[], object]] = [
            lambda: cgroups.kill_processes(cgroups.processes(self.mark) - {os.getpid()}),
            lambda: cgroups.remove(self.cgroup),
            self._restore_environment,
            self._return,
        ]
        for step in steps:
            try:
                step()
            except (OSError, AssertionError) as error:
                errors.append(error)
        for fd in self._fds.values():
            os.close(fd)
        if self._disk is not None:
            self._disk.cleanup()
        if errors:
            raise errors[0]

    def _restore_environment(self) -> None:
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _return(self) -> None:
        # setns to a mount namespace is refused while root and cwd are shared with another thread, and resets both (setns(2)).
        linux.unshare(linux.CLONE_FS)
        linux.setns(self._fds["net"], linux.CLONE_NEWNET)
        linux.setns(self._fds["mnt"], linux.CLONE_NEWNS)
        os.fchdir(self._fds["root"])
        os.chroot(".")
        os.fchdir(self._fds["cwd"])


class Neighbour:
    """A machine beside the private host, on the same LAN: a network namespace joined to it by the veth pair ``eth0`` (host) and ``lan0``.

    Its address is the host's default gateway, so the host has an egress link. All addresses are documentation's own (RFC 5737, RFC 3849).
    """

    address = "198.51.100.1"
    host_address = "198.51.100.2"
    network = "198.51.100.0/24"
    address6 = "2001:db8:100::1"
    host_address6 = "2001:db8:100::2"
    link = "lan0"
    host_link = "eth0"

    def __init__(self, mtu: int = 1500) -> None:
        self.fd = linux.new_network_namespace()
        try:
            namespace = f"/proc/{os.getpid()}/fd/{self.fd}"
            _ip(f"link add {self.host_link} mtu {mtu} type veth peer name {self.link} mtu {mtu} netns {namespace}")
            with self.inside():
                _ip("link set lo up")
                _bring_up(self.link, self.address, self.address6)
            _bring_up(self.host_link, self.host_address, self.host_address6)
            linux.await_running(self.host_link)
            with self.inside():
                linux.await_running(self.link)
            _ip(f"route add default via {self.address}")
            if _has_ipv6():
                _ip(f"-6 route add default via {self.address6}")
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is on the neighbour inside the block: sockets that it opens and processes that it starts stay there."""
        with linux.network_namespace(self.fd):
            yield

    def execute(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command on the neighbour; one that fails raises ``CalledProcessError``."""
        with self.inside():
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout)

    def close(self) -> None:
        """Takes the link and the neighbour down. Deleting the link is what makes the end synchronous."""
        subprocess.run(["ip", "link", "del", self.host_link], stderr=subprocess.DEVNULL, check=False, timeout=60)
        os.close(self.fd)


def _ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, timeout=60)


def _has_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6").exists()


def _bring_up(link: str, address: str, address6: str) -> None:
    _ip(f"addr add {address}/24 dev {link}")
    if _has_ipv6():
        _ip(f"addr add {address6}/64 dev {link} nodad")
    _ip(f"link set {link} up")
