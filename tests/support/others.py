"""Other programs that live on a private host beside netbox: a real dockerd, a real podman, with everything of theirs on that host."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.bench import rootfs, subjects
from tests.bench.processes import Failed
from tests.support import cgroups
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

SYSCTLS = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")


class Others:
    """What programs of others have done to a private host, and taking all of it back.

    ``subject`` is one of ``tests.bench.subjects``; ``directory`` is where its data is.
    """

    def __init__(self, host: PrivateHost, kind: type[subjects.Docker] | type[subjects.Podman]) -> None:
        self._host = host
        self._sysctls = {name: value for name in SYSCTLS if (value := _read(name)) is not None}
        self.directory = host.base / "others"
        self.directory.mkdir()
        rootfs.make(self.directory / "rootfs")
        self._cgroup = f"{host.cgroup}-others"
        place: Any = SimpleNamespace(directory=self.directory, cgroup=self._cgroup, name="others")
        self.subject = kind(place)
        # podman asks for more open files than a process may have whose root lacks CAP_SYS_RESOURCE.
        limits = [f'"{name}={hard}:{hard}"' for name, hard in _limits().items()]
        (self.directory / "containers.conf").write_text(f"[containers]\ndefault_ulimits = [{', '.join(limits)}]\n")
        self.subject.env["CONTAINERS_CONF"] = str(self.directory / "containers.conf")

    def __call__(self, *arguments: str) -> str:
        """Runs a command of the subject and returns what it prints."""
        return self.subject(*arguments)

    def start(self) -> None:
        """Starts the daemon, if it is one, and imports the image; a second time only the daemon."""
        if isinstance(self.subject, subjects.Docker) and self.subject.directory.exists():
            assert any(self.subject._start(driver) for driver in ("overlay2", "vfs")), self.subject._last_line()
        else:
            self.subject.open()

    def stop(self) -> None:
        """Ends the daemon; what it did to the host stays, as always."""
        self.subject.close()

    def reload(self) -> None:
        """Has the daemon read its configuration again."""
        assert isinstance(self.subject, subjects.Docker)
        assert self.subject._daemon is not None
        log = self.subject.directory / "log"
        said = log.read_text().count("Got signal to reload")
        self.subject._daemon.send_signal(signal.SIGHUP)
        wait_until(lambda: log.read_text().count("Got signal to reload") > said, "dockerd to reload", 60)

    def clear(self) -> None:
        """Removes all containers."""
        with contextlib.suppress(Failed):
            names = self.subject("ps", "-a", "-q").split()
            if names:
                self.subject("rm", "-f", *names)

    def close(self) -> None:
        """Takes everything back: containers, daemon, devices, rules, files, cgroups."""
        try:
            self.clear()
        finally:
            self.subject.close()
            forget_rules()
            for name in os.listdir("/sys/class/net"):
                if name.startswith(("docker", "br-", "podman", "cni-", "virbr")):
                    subprocess.run(["ip", "link", "delete", name], check=True, timeout=60)
            for name, value in self._sysctls.items():
                Path("/proc/sys", name).write_text(value)
            cgroups.remove(self._cgroup)
            self._unmount()
            wait_until(self._remove, "the files of others to go", 60)

    def _remove(self) -> bool:
        shutil.rmtree(self.directory, ignore_errors=True)
        return not self.directory.exists()

    def _unmount(self) -> None:
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for path in reversed(mounts):
            if path.startswith((f"{self.directory}/", "/run/docker", "/run/podman", "/run/netns", "/var/lib/cni", "/run/containers")):
                subprocess.run(["umount", "-l", path], check=False, timeout=60)


def forget_rules() -> None:
    """Takes away all rules of this network namespace, whoever made them."""
    subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=60)
    for family in ("ip", "ip6"):
        for table in (_read(f"/proc/thread-self/net/{family}_tables_names") or "").split():
            subprocess.run([f"{family}tables-legacy-restore", "-w"], input=_empty(table), text=True, check=True, timeout=60)


def _empty(table: str) -> str:
    chains = {
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        "raw": ("PREROUTING", "OUTPUT"),
        "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
        "security": ("INPUT", "FORWARD", "OUTPUT"),
    }
    return f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains[table]) + "COMMIT\n"


def foreign_rules(*kinds: str) -> list[str]:
    """The rules, chains and policies in iptables' tables of nf_tables and in the legacy tables, in their order, without counters."""
    lines = []
    for command in (f"iptables-{kind}-save" for kind in kinds or ("nft", "legacy")):
        text = subprocess.run([command], capture_output=True, text=True, check=True, timeout=60).stdout
        lines += [f"{command}: {line.partition(' [')[0]}" for line in text.splitlines() if not line.startswith("#")]
    return lines


def _limits() -> dict[str, int]:
    found = {}
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(number)[1]
        found[name] = min(hard, 4096) if hard >= 0 else 4096
    return found


def _read(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text()
    except FileNotFoundError:
        return None
