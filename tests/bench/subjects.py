"""What is measured: netbox, docker and podman by their command lines, which are alike."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench import processes, rootfs
from tests.bench.place import Place
from tests.bench.processes import Failed

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGE = "netbox-bench"


class Subject:
    """A program with Docker's command line. ``prefix`` comes before the verb, ``image`` is the name of a busybox image.

    ``open`` makes it ready, ``close`` takes it down; both inside the private place. ``missing`` says why it cannot be measured here.
    """

    name = ""
    image = IMAGE
    daemons: frozenset[str] = frozenset()  # programs that run once, not per sandbox

    def __init__(self, place: Place) -> None:
        self.place = place
        self.directory = place.directory / self.name
        self.env = {**os.environ, "HOME": str(place.directory), "NO_COLOR": "1"}

    @property
    def prefix(self) -> list[str]:
        raise NotImplementedError

    def missing(self) -> str | None:
        """Why it cannot be measured on this machine; ``None`` when it can."""
        raise NotImplementedError

    def version(self) -> str:
        """What the program says that it is."""
        return self("--version").strip()

    def open(self) -> None:
        """Makes it ready: daemon, image. Raises ``Failed``."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what ``open`` started."""

    def argv(self, *arguments: str) -> list[str]:
        """The whole command line."""
        return [*self.prefix, *arguments]

    def __call__(self, *arguments: str) -> str:
        """Runs a command and returns its output. Raises ``Failed``."""
        return processes.run(self.argv(*arguments), self.env)

    def timed(self, *arguments: str) -> float:
        """The seconds that a command takes. Raises ``Failed``."""
        return processes.timed(self.argv(*arguments), self.env)

    def run(self, *options: str, command: Sequence[str]) -> list[str]:
        """The arguments of ``run`` with the busybox image."""
        return ["run", *options, self.image, *command]


class Netbox(Subject):
    """This project, by its command line."""

    name = "netbox"
    image = "busybox"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        # Not the test's own variables only: the Python API in this process reads the same ones.
        os.environ.update(NETBOX_ROOT=str(self.directory), NETBOX_RUN="/run/netbox", NETBOX_CGROUP=f"{place.cgroup}/netbox")
        self.env = {**self.env, **os.environ}

    @property
    def prefix(self) -> list[str]:
        """The installed command, as users run it; else the module of this checkout."""
        installed = Path(sys.executable).with_name("netbox")
        return [str(installed)] if installed.exists() else [sys.executable, "-m", "netbox.cli"]

    def missing(self) -> str | None:
        """It is measured everywhere."""
        return None

    def open(self) -> None:
        """Makes the image and the network by one first run, after what an installation does: compiling the modules."""
        processes.run([sys.executable, "-m", "compileall", "-q", str(CHECKOUT / "netbox")])
        if self.prefix[0] == sys.executable:
            self.env["PYTHONPATH"] = str(CHECKOUT)
        self("run", "--rm", self.image, "true")


class Docker(Subject):
    """A dockerd of its own: its data, sockets, bridge and rules are in the private place."""

    name = "docker"
    daemons = frozenset(("dockerd", "containerd"))

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.host = f"unix:///run/{self.name}-bench.sock"
        self.env["DOCKER_CONFIG"] = str(self.directory)
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def prefix(self) -> list[str]:
        """The client, told which daemon."""
        return ["docker", "-H", self.host]

    def missing(self) -> str | None:
        """It needs client and daemon."""
        for program in ("docker", "dockerd", "containerd"):
            if not shutil.which(program, path=_path()):
                return f"{program} is not installed (apt-get install docker.io)"
        return None

    def version(self) -> str:
        """Client and daemon."""
        versions = self("version", "--format", "{{.Client.Version}} {{.Server.Version}} {{.Server.Os}}").split()
        storage = self("info", "--format", "{{.Driver}}, cgroup v{{.CgroupVersion}}").strip()
        return f"{versions[1]} (client {versions[0]}), {storage}"

    def open(self) -> None:
        """Starts dockerd with the first storage driver that works, and imports the image."""
        self.directory.mkdir()
        (self.directory / "daemon.json").write_text("{}")
        for driver in ("overlay2", "vfs"):
            if self._start(driver):
                break
        else:
            raise Failed(f"dockerd does not start: {self._last_line()}")
        with processes.temporary(rootfs.archive(self.place.directory / "rootfs", self.directory / "image.tar")) as image:
            self("import", str(image), IMAGE)

    def _start(self, driver: str) -> bool:
        argv = [
            "dockerd",
            f"--config-file={self.directory}/daemon.json",
            f"--host={self.host}",
            f"--data-root={self.directory}/data",
            f"--exec-root=/run/{self.name}-bench",
            f"--pidfile=/run/{self.name}-bench.pid",
            f"--storage-driver={driver}",
            f"--cgroup-parent=/{self.place.cgroup}/docker",
            "--exec-opt=native.cgroupdriver=cgroupfs",
        ]
        with (self.directory / "log").open("wb") as log:
            self._daemon = subprocess.Popen(argv, env={**self.env, "PATH": _path()}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            processes.wait_until(self._answers, "dockerd", 60)
        except Failed:
            return False
        return self._daemon.poll() is None

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise Failed("dockerd ended")
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(self.host.removeprefix("unix://"))
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b"200 OK" in connection.recv(64)
        except OSError:
            return False

    def _last_line(self) -> str:
        lines = (self.directory / "log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """Ends the daemon, which takes containerd along."""
        if self._daemon is not None:
            processes.end(self._daemon)
            self._daemon = None


class Podman(Subject):
    """Podman with storage, networks and run files of its own."""

    name = "podman"
    runtime = ""

    @property
    def prefix(self) -> list[str]:
        """Podman, told where everything is."""
        return [
            "podman",
            f"--root={self.directory}/root",
            "--runroot=/run/podman-bench",
            f"--network-config-dir={self.directory}/networks",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
            *([f"--runtime={self.runtime}"] if self.runtime else []),
        ]

    def missing(self) -> str | None:
        """It needs podman."""
        return None if shutil.which("podman") else "podman is not installed (apt-get install podman)"

    def version(self) -> str:
        """Podman, its OCI runtime and its network program."""
        fields = ("Version.Version", "Host.OCIRuntime.Name", "Host.NetworkBackend", "Store.GraphDriverName", "Host.CgroupsVersion")
        version, runtime, network, storage, cgroup = self("info", "--format", " ".join(f"{{{{.{field}}}}}" for field in fields)).split()
        return f"{version} ({runtime}, {network}), {storage}, cgroup {cgroup}"

    def open(self) -> None:
        """Imports the image, and takes runc where the default runtime refuses this host's cgroups (crun does on a hybrid layout)."""
        (self.directory / "networks").mkdir(parents=True)
        with processes.temporary(rootfs.archive(self.place.directory / "rootfs", self.directory / "image.tar")) as image:
            self("import", str(image), IMAGE)
        try:
            self(*self.run("--rm", command=["true"]))
        except Failed:
            self.runtime = "runc"
            self(*self.run("--rm", command=["true"]))

    def run(self, *options: str, command: Sequence[str]) -> list[str]:
        """The same, in a cgroup that the benchmark removes."""
        return super().run(f"--cgroup-parent=/{self.place.cgroup}/podman", *options, command=command)


def _path() -> str:
    """Daemons are in sbin, which is not on everyone's path."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
