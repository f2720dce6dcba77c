"""The private host: it is separate, the way back works, and the leak check sees each kind of leak."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import cgroups, leaks, linux
from tests.support.host import Mark, Neighbour, PrivateHost
from tests.support.waiting import wait_until


def _namespaces() -> tuple[str, str]:
    return os.readlink("/proc/thread-self/ns/net"), os.readlink("/proc/thread-self/ns/mnt")


@pytest.fixture
def host(_mark: Mark) -> PrivateHost:
    """A private host whose leak check the test calls itself."""
    return PrivateHost(_mark.path)


def test_return_restores_everything(host: PrivateHost) -> None:
    before = _namespaces(), os.getcwd(), leaks.links(), leaks.mounts(), leaks.open_files() - {""}, os.environ.get("NETBOX_ROOT")
    host.enter()
    try:
        inside = _namespaces()
        assert inside[0] != before[0][0]
        assert inside[1] != before[0][1]
        assert leaks.links() == {"lo"}
        assert os.environ["NETBOX_ROOT"] == str(host.root)
        assert {name for name in os.listdir("/sys/class/net") if not name.startswith("bonding")} == {"lo"}
        assert os.listdir("/run") != []
        socket.create_server(("127.0.0.1", 8080)).close()
    finally:
        host.leave()
    after = _namespaces(), os.getcwd(), leaks.links(), leaks.mounts(), leaks.open_files(), os.environ.get("NETBOX_ROOT")
    assert after[:4] == before[:4]
    assert after[5] == before[5]
    assert len(after[4]) == len(before[4]) - 4  # the four fds of the host


@pytest.mark.usefixtures("private_host")
def test_overlay_over_this_machines_root_works(private_host: PrivateHost) -> None:
    for name in ("upper", "work", "merged"):
        (private_host.root / name).mkdir()
    target = str(private_host.root / "merged")
    options = f"lowerdir=/,upperdir={private_host.root}/upper,workdir={private_host.root}/work"
    linux.mount("overlay", target, "overlay", data=options)
    try:
        Path(target, "etc/netbox-test").write_text("x")
        assert not Path("/etc/netbox-test").exists()
    finally:
        linux.umount(target)
        subprocess.run(["rm", "-rf", *(str(private_host.root / name) for name in ("upper", "work", "merged"))], check=True)


def test_neighbour_is_the_gateway(outside: Neighbour) -> None:
    with outside.inside():
        server = socket.create_server((outside.address, 0))
    with server, socket.create_connection(server.getsockname(), timeout=60) as client:
        connection, peer = server.accept()
        connection.close()
        assert peer[0] == outside.host_address == client.getsockname()[0]
    assert "default via 198.51.100.1" in subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    assert outside.execute("cat", "/proc/thread-self/net/route").stdout.splitlines()[1].startswith("lan0")


def _leak_link(host: PrivateHost) -> None:
    subprocess.run(["ip", "link", "add", "nbleak", "type", "bridge"], check=True)


def _leak_rule(host: PrivateHost) -> None:
    subprocess.run(["iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "1", "-j", "ACCEPT"], check=True)


def _leak_chain(host: PrivateHost) -> None:
    subprocess.run(["iptables-legacy", "-N", "NETBOX-LEAK"], check=True)


def _leak_mount(host: PrivateHost) -> None:
    linux.mount("leak", "/mnt", "tmpfs")


def _leak_netns(host: PrivateHost) -> None:
    subprocess.run(["ip", "netns", "add", "leak"], check=True)


def _leak_cgroup(host: PrivateHost) -> None:
    (cgroups.hierarchies()[-1] / host.cgroup / "leak").mkdir(parents=True)


def _leak_file(host: PrivateHost) -> None:
    (host.run / "sandboxes" / "leak").mkdir(parents=True)


def _leak_sysctl(host: PrivateHost) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _leak_orphan(host: PrivateHost) -> None:
    code = "import os, subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=subprocess.DEVNULL); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True, env={})


_OPEN: list[int] = []


def _leak_fd(host: PrivateHost) -> None:
    _OPEN.append(os.open("/dev/null", os.O_RDONLY))


@pytest.mark.parametrize(
    ("leak", "expected"),
    [
        (_leak_link, "+ link: nbleak"),
        (_leak_rule, "+ firewall: iptables -t nat -A PREROUTING"),
        (_leak_chain, "+ firewall: iptables -t filter chain NETBOX-LEAK"),
        (_leak_mount, "+ mount: /mnt tmpfs leak"),
        (_leak_netns, "+ mount: /run/netns/leak nsfs"),
        (_leak_cgroup, "/leak"),
        (_leak_file, "+ file: /run/netbox-test/run/sandboxes/leak/"),
        (_leak_sysctl, "+ sysctl: net.ipv4.ip_forward = 1"),
        (_leak_orphan, "sleep 600"),
        (_leak_fd, "/dev/null"),
    ],
)
def test_each_kind_of_leak_is_found_and_ended(host: PrivateHost, leak: object, expected: str) -> None:
    host.enter()
    try:
        leak(host)  # type: ignore[operator]
        found = host.leftovers(timeout=0)
    finally:
        host.leave()
        while _OPEN:
            os.close(_OPEN.pop())
    assert any(expected in line for line in found), found
    wait_until(lambda: cgroups.processes(host.mark) == {os.getpid()}, "an empty mark")
    assert not any((hierarchy / host.cgroup).exists() for hierarchy in cgroups.hierarchies())


def test_a_clean_test_is_clean_at_once(private_host: PrivateHost) -> None:
    assert private_host.leftovers(timeout=0) == []


def test_the_way_back_works_beside_a_running_thread(host: PrivateHost) -> None:
    before = _namespaces()
    end = threading.Event()
    host.enter()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert any("thread:" in line for line in host.leftovers(timeout=0))
    finally:
        host.leave()
        end.set()
        thread.join()
    assert _namespaces() == before
