"""A real firewalld and a real libvirtd on a private host: bus, configuration and data of their own, and nothing left of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support import linux
from tests.support.host import PrivateHost
from tests.support.others import forget_rules
from tests.support.waiting import wait_until

PATIENCE = 90.0  # seconds
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"""
_DRIVERS = Path("/usr/lib", f"{os.uname().machine}-linux-gnu", "libvirt/connection-driver")
_NETWORK = """<network><name>default</name><forward mode='nat'/><bridge name='virbr0' stp='off' delay='0'/>
<dns><host ip='{gateway}'><hostname>{name}</hostname></host></dns>
<ip address='{gateway}' netmask='255.255.255.0'><dhcp><range start='192.168.122.100' end='192.168.122.200'/></dhcp></ip></network>
"""


class Program:
    """A program that runs in the foreground, with its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **environment}, start_new_session=True
            )

    def await_success(self, *command: str) -> None:
        """Waits until a command that asks the program succeeds."""

        def succeeds() -> bool:
            assert self._process.poll() is None, f"it has ended: {self._log.read_text()[-2000:]}"
            return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode == 0

        wait_until(succeeds, " ".join(command), PATIENCE, interval=0.05)

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class Firewalld:
    """firewalld as Debian configures it, with one of its backends, ``nftables`` or ``iptables``."""

    def __init__(self, host: PrivateHost, backend: str) -> None:
        self.directory = host.base / "firewalld"
        Path(self.directory, "zones").mkdir(parents=True)
        configuration = Path("/etc/firewalld/firewalld.conf").read_text()
        assert "\nFirewallBackend=nftables\n" in configuration
        (self.directory / "firewalld.conf").write_text(configuration.replace("Backend=nftables\n", f"Backend={backend}\n"))
        (self.directory / "bus.conf").write_text(_BUS)
        Path("/run/dbus").mkdir()
        bus = ["dbus-daemon", f"--config-file={self.directory}/bus.conf", "--nofork", "--nopidfile"]
        self._bus = Program(bus, self.directory / "bus.log")
        self._daemon: Program | None = None
        wait_until(Path("/run/dbus/system_bus_socket").exists, "the message bus", PATIENCE)

    def start(self) -> None:
        """Starts it, and returns when its rules stand."""
        where = [f"--system-config={self.directory}", f"--log-file={self.directory}/log", "--log-target=file"]
        self._daemon = Program(["firewalld", "--nofork", "--nopid", *where], self.directory / "output")
        self._daemon.await_success("firewall-cmd", "--state")

    def stop(self) -> None:
        """Ends it; it takes its rules away."""
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None

    def close(self) -> None:
        """Takes everything back."""
        try:
            self.stop()
        finally:
            self._bus.close()
            forget_rules()
            shutil.rmtree(self.directory)
            for path in ("/run/dbus", "/run/firewalld"):
                shutil.rmtree(path, ignore_errors=True)


class Libvirt:
    """libvirtd with its network driver alone (no guests are needed to see what it does), and its network ``default``."""

    gateway = "192.168.122.1"
    guest = "192.168.122.10"
    name = "hypervisor.test"  # of the gateway, by the name server that libvirt starts

    def __init__(self, host: PrivateHost) -> None:
        self._directory = host.base / "libvirt"
        for name in ("drivers", "upper", "scratch"):
            (self._directory / name).mkdir(parents=True)
        (self._directory / "drivers/libvirt_driver_network.so").symlink_to(_DRIVERS / "libvirt_driver_network.so")
        (self._directory / "default.xml").write_text(_NETWORK.format(gateway=self.gateway, name=self.name))
        self._forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        layers = f"lowerdir=/var/lib,upperdir={self._directory}/upper,workdir={self._directory}/scratch"
        linux.mount("overlay", "/var/lib", "overlay", data=layers)
        linux.mount("tmpfs", "/etc/libvirt", "tmpfs")
        Path("/etc/libvirt/libvirtd.conf").write_text('auth_unix_rw = "none"\nauth_unix_ro = "none"\nunix_sock_dir = "/run/libvirt"\n')
        self._daemon: Program | None = None
        self._guest = linux.new_network_namespace()

    def __call__(self, *arguments: str) -> str:
        """Runs virsh and returns what it prints."""
        command = ["virsh", "-q", "-c", "network:///system", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout

    def start(self) -> None:
        """Starts the daemon; the network too, unless it stands. A daemon that finds its network standing makes its rules anew."""
        where = {"LIBVIRT_DRIVER_DIR": f"{self._directory}/drivers"}
        self._daemon = Program(["libvirtd", "-f", "/etc/libvirt/libvirtd.conf"], self._directory / "log", **where)
        self._daemon.await_success("virsh", "-q", "-c", "network:///system", "net-list")
        if "default" not in self("net-list", "--all", "--name"):
            self("net-define", f"{self._directory}/default.xml")
        if "default" not in self("net-list", "--name"):
            self("net-start", "default")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is where a guest would be: in a namespace with a link to the network's bridge, as libvirt gives to one."""
        if not Path("/sys/class/net/vnet0").exists():
            _ip(f"link add vnet0 master virbr0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{self._guest}")
            _ip("link set vnet0 up")
            with linux.network_namespace(self._guest):
                _ip(f"address add {self.guest}/24 dev eth0")
                _ip("link set eth0 up")
                _ip(f"route add default via {self.gateway}")
        with linux.network_namespace(self._guest):
            yield

    def stop(self) -> None:
        """Ends the daemon; its network stays, as always."""
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None

    def close(self) -> None:
        """Takes everything back."""
        try:
            if self._daemon is not None:
                self("net-destroy", "default")
        finally:
            self.stop()
            forget_rules()
            if Path("/sys/class/net/vnet0").exists():
                _ip("link delete vnet0")
            os.close(self._guest)
            for path in ("/etc/libvirt", "/var/lib"):
                linux.umount(path)
            Path("/proc/sys/net/ipv4/ip_forward").write_text(self._forwarding)
            shutil.rmtree(self._directory)
            shutil.rmtree("/run/libvirt", ignore_errors=True)


def _ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, timeout=20)
