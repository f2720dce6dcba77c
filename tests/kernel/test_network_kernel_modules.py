"""The kernel modules of the network layer by themselves: iptables, rtnetlink, netlink."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from netbox.errors import FirewallError, HostError
from netbox.kernel import iptables, netlink, rtnetlink
from netbox.kernel.iptables_entry import Entry
from netbox.kernel.rtnetlink import RouteSocket
from netbox.network import firewall, firewall_iptables
from netbox.network.firewall_iptables import IptablesBackend
from tests.support import leaks, linux
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


def run(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_import_of_python_iptables_starts_no_process() -> None:
    program = (
        "import os, sys\n"
        "spawned = []\n"
        "starts = ('subprocess.Popen', 'os.posix_spawn', 'os.fork', 'os.exec', 'os.system')\n"
        "sys.addaudithook(lambda event, args: spawned.append(args) if event in starts else None)\n"
        "from netbox.kernel import iptables\n"
        "before = dict(os.environ)\n"
        "module = iptables.load()\n"
        "assert not spawned, spawned\n"
        "assert dict(os.environ) == before\n"
        "assert 'iptc.util' not in sys.modules\n"
        "import iptc.util\n"
        "assert iptc.util.__file__\n"  # the package's own again
    )
    run(program)


def test_a_missing_package_is_named(private_host: PrivateHost) -> None:
    program = (
        "import sys\n"
        "from netbox.errors import Unsupported\n"
        "from netbox.kernel import iptables\n"
        "iptables._LIBRARIES = {'xtables': ('libnot-there.so.1',)}\n"
        "try:\n"
        "    iptables.load()\n"
        "except Unsupported as error:\n"
        "    print(error)\n"
    )
    assert "apt install iptables" in run(program)


def test_the_lock_of_iptables_is_waited_for(private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(iptables.LOCK_FILE, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        release = threading.Timer(0.1, lambda: fcntl.flock(other, fcntl.LOCK_UN))
        began = time.monotonic()
        release.start()
        with iptables.editing("filter"):
            assert time.monotonic() - began >= 0.09
        release.join()
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr(iptables, "LOCK_TIMEOUT", 0.05)
        with pytest.raises(FirewallError, match=r"another program holds /run/xtables\.lock"), iptables.editing("filter"):
            pass


def test_an_exception_inside_leaves_the_table_as_it_was(private_host: PrivateHost) -> None:
    before = leaks.firewall()
    with pytest.raises(RuntimeError), iptables.editing("filter") as table:
        table.create_chain("NETBOX-X")
        raise RuntimeError
    assert leaks.firewall() == before


class Stranger:
    """Changes a table, as a program does that has a lock of its own or none: it runs in a container."""

    def __init__(self, directory: Path, times: int) -> None:
        self.environment = {**os.environ, "XTABLES_LOCKFILE": str(directory / "lock")}
        self.times = times
        self.rules: list[str] = []

    def interfere(self, editor: iptables.TableEditor) -> None:
        """After the table was read, before the change of it is committed."""
        if len(self.rules) < self.times:
            self.rules.append(f"-A INPUT -s 192.0.2.{len(self.rules) + 1}/32 -j ACCEPT")
            command = ["iptables-legacy", "-t", editor.name, *self.rules[-1].split()]
            subprocess.run(command, env=self.environment, check=True, timeout=60)


def test_a_program_with_another_lock_changes_the_table_meanwhile(
    private_host: PrivateHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rules stay, and ours come, move and go as if it had not been there."""
    backend, stranger = IptablesBackend(), Stranger(tmp_path, 0)
    ensure_base = firewall_iptables._ensure_base
    own_rules = firewall_iptables._own_rules

    def ensured(editor: iptables.TableEditor, entries: Iterable[Entry]) -> None:
        ensure_base(editor, entries)
        if editor.name == "filter":
            stranger.interfere(editor)

    def read(editor: iptables.TableEditor) -> list[iptables.Installed]:
        found = own_rules(editor)
        if editor.name == "filter":
            stranger.interfere(editor)
        return found

    monkeypatch.setattr(firewall_iptables, "_ensure_base", ensured)
    monkeypatch.setattr(firewall_iptables, "_own_rules", read)
    group = firewall.network_rules("network:front", "nb-front", "10.9.0.0/24", internal=False)
    changes: list[tuple[Callable[[], None], set[str]]] = [
        (lambda: backend.apply([group]), {group.owner}),
        (lambda: backend.repair([group]), {group.owner}),
        (lambda: backend.apply(remove=[group.owner]), set()),
    ]
    for change, left in changes:
        stranger.times += 2
        change()
        assert len(stranger.rules) == stranger.times
        assert {f"iptables -t filter {rule}" for rule in stranger.rules} <= leaks.firewall()
        assert backend.owners() == left
    subprocess.run(["iptables-legacy", "-F", "INPUT"], check=True, timeout=60)


def test_a_program_that_never_stops_changing_the_table(private_host: PrivateHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = Stranger(tmp_path, 1000)
    monkeypatch.setattr(iptables, "_ATTEMPTS", 3)

    def change(editor: iptables.TableEditor) -> None:
        editor.create_chain("NETBOX-X")
        stranger.interfere(editor)

    with pytest.raises(FirewallError, match="Resource temporarily unavailable"):
        iptables.edit("filter", change)
    assert len(stranger.rules) == 3
    subprocess.run(["iptables-legacy", "-F", "INPUT"], check=True, timeout=60)


def test_rules_are_read_as_they_are(private_host: PrivateHost) -> None:
    with iptables.editing("filter") as table:
        table.create_chain("NETBOX-X")
        table.append(Entry("NETBOX-X", "ACCEPT", protocol="tcp", ports=(1, 9), states=("NEW",), comment="sandbox:one"))
        table.append(Entry("NETBOX-X", "DROP"))
        table.insert(Entry("NETBOX-X", "RETURN", comment="two words"))
    with iptables.editing("filter") as table:
        assert [(rule.number, rule.target, rule.comment) for rule in table.rules("NETBOX-X")] == [
            (1, "RETURN", "two words"),
            (2, "ACCEPT", "sandbox:one"),
            (3, "DROP", ""),
        ]
        table.delete("NETBOX-X", 2)
    with iptables.editing("filter") as table:
        assert [rule.target for rule in table.rules("NETBOX-X")] == ["RETURN", "DROP"]
        table.delete_chain("NETBOX-X")
    with pytest.raises(FirewallError, match="rule 1 of FORWARD"), iptables.editing("filter") as table:
        table.delete("FORWARD", 1)


def test_what_iptables_prints_is_what_was_asked_for(private_host: PrivateHost) -> None:
    entries = [
        Entry("NETBOX-X", "ACCEPT", "!netbox0", "eth+", "10.0.0.0/8", "!192.0.2.1", "udp", (5, 6), ("RELATED", "ESTABLISHED"), True),
        Entry("NETBOX-X", "DROP", source="!10.1.2.3/32", comment="a-b_c.d:e/f"),
    ]
    with iptables.editing("filter") as table:
        table.create_chain("NETBOX-X")
        for entry in entries:
            table.append(entry)
    shown = {line for line in leaks.firewall() if "-A NETBOX-X" in line}
    assert shown == {
        "iptables -t filter -A NETBOX-X -s 10.0.0.0/8 ! -d 192.0.2.1/32 ! -i netbox0 -o eth+ -p udp -m udp --dport 5:6"
        " -m addrtype --dst-type LOCAL -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        'iptables -t filter -A NETBOX-X ! -s 10.1.2.3/32 -m comment --comment "a-b_c.d:e/f" -j DROP',
    }
    with iptables.editing("filter") as table:
        table.delete_chain("NETBOX-X")


def test_standard_output_is_left_alone(private_host: PrivateHost, capfd: pytest.CaptureFixture[str]) -> None:
    """python-iptables checks rules by redirecting the process's standard output: nothing here may do that."""
    target = os.readlink("/proc/self/fd/1")
    stop = threading.Event()
    seen: set[str] = set()

    def watch() -> None:
        while not stop.is_set():
            seen.add(os.readlink("/proc/self/fd/1"))

    thread = threading.Thread(target=watch)
    thread.start()
    wait_until(lambda: seen, "the one who watches")
    with iptables.editing("nat") as table:
        table.create_chain("NETBOX-X")
        for port in range(1, 40):
            table.append(Entry("NETBOX-X", "DNAT", protocol="tcp", ports=(port, port), to_destination="10.0.0.1:80", comment="x"))
        assert len(table.rules("NETBOX-X")) == 39
        table.delete_chain("NETBOX-X")
    stop.set()
    thread.join()
    assert seen == {target}


def test_a_thousand_rules_are_added_read_and_removed_without_a_leak(private_host: PrivateHost) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def turn() -> None:
        with iptables.editing("nat") as table:
            table.create_chain("NETBOX-X")
            for port in range(1, 251):
                table.append(Entry("NETBOX-X", "DNAT", protocol="tcp", ports=(port, port), to_destination="10.0.0.1:80", comment="x"))
        with iptables.editing("nat") as table:
            assert len(table.rules("NETBOX-X")) == 250
            table.delete_chain("NETBOX-X")

    turn()
    before = resident()
    for _ in range(4):
        turn()
    assert resident() - before < 4 << 20


def test_opening_one_table_does_not_create_the_others(private_host: PrivateHost) -> None:
    assert iptables.loaded_tables() <= {"filter"}  # the leak check's own look at them happened elsewhere
    with iptables.editing("filter") as table:
        table.create_chain("NETBOX-X")
        table.append(Entry("FORWARD", "NETBOX-X"))
    assert iptables.loaded_tables() == {"filter"}
    with iptables.editing("filter") as table:
        table.delete("FORWARD", 1)
        table.delete_chain("NETBOX-X")


def test_rtnetlink_goes_on_after_a_request_that_failed_and_names_it(private_host: PrivateHost) -> None:
    with RouteSocket() as netlink_socket:
        with pytest.raises(OSError, match="default route by 192") as caught:
            netlink_socket.request(
                rtnetlink.add_bridge("nb-test", "02:00:00:00:00:01", 1400),
                rtnetlink.add_default_route(rtnetlink.LOOPBACK_INDEX, "192.0.2.1"),
                rtnetlink.set_up(99999),
            )
        assert caught.value.errno == errno.ENETUNREACH
        assert "Nexthop has invalid gateway" in str(caught.value)  # the kernel's own words
        link = netlink_socket.link("nb-test")
        assert link is not None
        assert (link.kind, link.mtu, link.mac, link.is_up) == ("bridge", 1400, "02:00:00:00:00:01", False)
        netlink_socket.request(rtnetlink.add_bridge("nb-test", "02:00:00:00:00:01", 1400))  # there already: fine
        netlink_socket.request(rtnetlink.delete_link("nb-test"), rtnetlink.delete_link("nb-test"))
        assert netlink_socket.link("nb-test") is None


def test_rtnetlink_reads_what_ip_prints(private_host: PrivateHost) -> None:
    for line in (
        "link add d0 type veth peer name d1",
        "address add 192.0.2.9/28 dev d0",
        "link set d0 up",
        "link set d1 up",
        "route add 198.51.100.0/24 via 192.0.2.1 metric 7 table 300",
        "route add default via 192.0.2.2 metric 20",
    ):
        subprocess.run(["ip", *line.split()], check=True, timeout=20)
    try:
        with RouteSocket() as netlink_socket:
            assert {link.name for link in netlink_socket.links()} == {"lo", "d0", "d1"}
            assert "192.0.2.9/28" in {str(item) for item in netlink_socket.addresses()}
            routes = {(str(item), item.gateway, item.metric, item.table) for item in netlink_socket.routes()}
            assert ("198.51.100.0/24", "192.0.2.1", 7, 300) in routes
            assert ("0.0.0.0/0", "192.0.2.2", 20, 254) in routes
            assert ("192.0.2.0/28", "", 0, 254) in routes
    finally:
        subprocess.run(["ip", "link", "del", "d0"], check=True, timeout=20)


def test_many_links_are_read_whole(private_host: PrivateHost) -> None:
    with RouteSocket() as netlink_socket:
        for number in range(120):
            netlink_socket.request(rtnetlink.add_bridge(f"nb-{number}", f"02:00:00:00:00:{number:02x}", 1500))
        try:
            assert len(netlink_socket.links()) == 121
        finally:
            subprocess.run(
                ["ip", "-batch", "-"], input="".join(f"link del nb-{n}\n" for n in range(120)), text=True, check=True, timeout=60
            )


def test_pyroute2_tells_about_the_namespace_of_a_process(private_host: PrivateHost) -> None:
    fd = linux.new_network_namespace()
    with linux.network_namespace(fd):
        child = subprocess.Popen(["sleep", "300"])
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
        subprocess.run(["ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1"], check=True, timeout=20)
        subprocess.run(["ip", "address", "add", "192.0.2.9/28", "dev", "d0"], check=True, timeout=20)
    try:
        found = {interface.name: interface for interface in netlink.interfaces(child.pid)}
        assert set(found) == {"lo", "d0", "d1"}
        assert found["d0"].kind == "veth"
        assert found["d0"].addresses == ("192.0.2.9/28",)
        assert found["lo"].is_up
        assert not found["d0"].is_up
        assert len(netlink.traffic(child.pid)) == 2
        assert {interface.name for interface in netlink.interfaces()} == {"lo"}
    finally:
        child.kill()
        child.wait()
        os.close(fd)
    with pytest.raises(HostError, match="is gone"):
        netlink.traffic(child.pid)
