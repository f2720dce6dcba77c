"""Networks come up with the first sandbox and go with the last one; addresses; what the host's own network demands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netbox import names
from netbox.errors import Conflict, HostError, UsageError
from netbox.kernel import sysctl
from netbox.network import firewall, networks
from netbox.network.facts import boot_id, host_facts
from netbox.network.undo import HANDLERS
from netbox.spec import NetworkSpec, PortSpec
from netbox.state.journal import RUN
from tests.kernel.network_lab import Lab
from tests.support import leaks, linux
from tests.support.host import Neighbour, PrivateHost


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, timeout=20)


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_the_network_stands_as_long_as_somebody_uses_it(lab: Lab) -> None:
    one = lab.guest()
    assert not one.plan.standing
    two = lab.guest()
    assert two.plan.standing
    assert "netbox0" in links()
    assert sysctl.read("net.ipv4.ip_forward") == "1"
    lab.end(one)
    assert "netbox0" in links()
    lab.end(two)
    assert "netbox0" not in links()
    assert sysctl.read("net.ipv4.ip_forward") == "0"
    assert leaks.firewall() == set()
    assert lab.store.journal_owners() == []


def test_it_comes_up_with_the_same_subnet_again(lab: Lab) -> None:
    one = lab.guest()
    lab.end(one)
    two = lab.guest()
    assert one.plan.endpoint is not None
    assert two.plan.endpoint is not None
    assert two.plan.endpoint.subnet == one.plan.endpoint.subnet
    assert two.address != one.address  # the last freed comes back last


def test_forwarding_that_was_on_stays_on(lab: Lab) -> None:
    sysctl.write("net.ipv4.ip_forward", "1")
    try:
        lab.end(lab.guest())
        assert sysctl.read("net.ipv4.ip_forward") == "1"
    finally:
        sysctl.write("net.ipv4.ip_forward", "0")


def test_forwarding_stays_on_for_the_bridge_of_other_software(lab: Lab) -> None:
    guest = lab.guest()
    ip("link add docker0 type bridge")
    try:
        lab.end(guest)
        assert sysctl.read("net.ipv4.ip_forward") == "1"
    finally:
        ip("link del docker0")
        sysctl.write("net.ipv4.ip_forward", "0")


def test_a_value_of_another_boot_is_not_restored(lab: Lab) -> None:
    context = lab.manager.undo_context()
    HANDLERS["sysctl"](context, {"name": "net.ipv4.ip_forward", "old": "1", "boot_id": "another"})
    assert sysctl.read("net.ipv4.ip_forward") == "0"
    HANDLERS["sysctl"](context, {"name": "net.ipv4.ip_forward", "old": "1", "boot_id": boot_id()})
    assert sysctl.read("net.ipv4.ip_forward") == "1"
    sysctl.write("net.ipv4.ip_forward", "0")


@pytest.mark.parametrize("kind", sorted(HANDLERS))
def test_every_undo_is_idempotent(lab: Lab, kind: str) -> None:
    args: dict[str, dict[str, Any]] = {
        "lease": {"sandbox_id": "f" * 64},
        "port": {"sandbox_id": "f" * 64},
        "rules": {"owner": "sandbox:ffffffffffff", "ports": [[53, 5353, 1, "udp", "0.0.0.0"], [1, 2, 1, "sctp", "127.0.0.1"]]},
        "veth": {"name": "nbffffffffff"},
        "macvlan": {"interface": "eth0", "mac_address": "02:00:00:00:00:05", "netnsid": 7},
        "vlan": {"name": "eth0.7"},
        "bridge": {"name": "nb-ffffffff"},
        "network_rules": {"owner": "network:gone"},
        "nameservice": {"network": "gone"},
        "docker_user": {"owner": "network:gone", "family": "ip", "tables": "nft"},
        "impairment": {"owner": "impair:nobody", "impairment": {"loss": 1.0, "direction": "out"}},
        "ipv6_forwarding": {"old": {"net/ipv6/conf/nb-ffffffff/accept_ra": "1"}, "boot_id": boot_id()},
        "sysctl": {"name": "net.ipv4.conf.nb-ffffffff.forwarding", "old": "0", "boot_id": boot_id()},
    }
    for _ in range(2):
        HANDLERS[kind](lab.manager.undo_context(), args[kind])


def test_a_bring_up_that_was_cut_short_is_completed(lab: Lab) -> None:
    """Killed between any two steps: the rows are there, and some of the things."""
    guest = lab.guest()
    ip("link set netbox0 down")
    ip("address flush dev netbox0")
    subprocess.run(["iptables-legacy", "-t", "nat", "-F", "NETBOX-LEAVE"], check=True, timeout=20)
    sysctl.write("net.ipv4.ip_forward", "0")
    other = lab.guest()
    assert not other.plan.standing
    other.serve("tcp", 80)
    assert guest.ask("tcp", other.address, 80) == f"{guest.address} 80"
    masked = [line for line in leaks.firewall() if "MASQUERADE" in line]
    assert [sum(chain in line for line in masked) for chain in ("NETBOX-HAIRPIN", "NETBOX-LEAVE")] == [2, 1]
    lab.close()
    assert sysctl.read("net.ipv4.ip_forward") == "0"


def test_a_take_down_that_was_cut_short_is_completed(lab: Lab) -> None:
    lab.end(lab.guest())
    journal = lab.store.journal("network:bridge", "network")
    journal.record("bridge", name="netbox0")
    ip("link add netbox0 type bridge")
    assert lab.manager.release_idle(lab.replay) == ["bridge"]
    assert "netbox0" not in links()
    assert lab.manager.release_idle(lab.replay) == []


def test_a_device_that_is_not_ours(lab: Lab) -> None:
    ip("link add netbox0 type bridge")
    try:
        with pytest.raises(Conflict, match="a device called netbox0 is there, and it is not netbox's"):
            lab.guest()
    finally:
        ip("link del netbox0")


def test_the_subnet_avoids_routes_addresses_and_resolvers_of_the_host(lab: Lab, outside: Neighbour) -> None:
    ip(f"address add 10.210.1.1/24 dev {outside.host_link}")
    ip(f"route add 10.210.16.0/22 via {outside.address} table 77")
    ip("route add blackhole 10.210.40.0/24")
    Path("/etc/resolv.conf").write_text("nameserver 10.210.49.1\n")  # the private host's own
    guest = lab.guest()
    assert guest.plan.endpoint is not None
    assert guest.plan.endpoint.subnet == "10.210.64.0/20"
    descriptions = {item.description for item in host_facts(frozenset()).occupied}
    assert f"address 10.210.1.1/24 of {outside.host_link}" in descriptions
    assert f"route 10.210.16.0/22 dev {outside.host_link}" in descriptions
    ip("route del blackhole 10.210.40.0/24")


def test_a_subnet_that_collides_later(lab: Lab, outside: Neighbour) -> None:
    lab.end(lab.guest())
    ip(f"route add 10.210.0.0/16 via {outside.address}")
    moved = lab.guest()  # nobody uses the old one: another is taken
    assert moved.plan.endpoint is not None
    assert moved.plan.endpoint.subnet == "10.201.0.0/20"
    ip("link set netbox0 down")  # as if a bring-up had not come to its end
    ip(f"route add 10.201.0.0/24 via {outside.address}")
    with pytest.raises(Conflict, match=r"10\.201\.0\.0/20 of network bridge collides with route 10\.201\.0\.0/24 dev eth0"):
        lab.guest()


def test_addresses_of_the_users_choice(lab: Lab) -> None:
    one = lab.guest(ip="10.210.0.9")
    assert one.address == "10.210.0.9"
    with pytest.raises(Conflict, match=f"10.210.0.9 is taken by sandbox {one.id[:12]}"):
        lab.guest(ip="10.210.0.9")
    assert one.plan.endpoint is not None
    with pytest.raises(Conflict, match=f"is taken by sandbox {one.id[:12]}"):
        lab.guest(mac_address=one.plan.endpoint.mac_address)
    with pytest.raises(Conflict, match="that of the bridge"):
        lab.guest(mac_address="02:6e:0a:d2:00:01")
    with pytest.raises(UsageError, match="outside"):
        lab.guest(ip="192.0.2.1")
    with pytest.raises(UsageError, match="gateway"):
        lab.guest(ip="10.210.0.1")
    lab.end(one)
    assert lab.guest(ip="10.210.0.9").address == "10.210.0.9"


def test_the_last_freed_address_comes_back_last(lab: Lab) -> None:
    keeper = lab.guest()
    seen = []
    for _ in range(4):
        guest = lab.guest()
        seen.append(guest.address)
        lab.end(guest)
    assert len({*seen, keeper.address}) == 5


def test_leases_of_another_boot_are_void(lab: Lab) -> None:
    keeper = lab.guest()
    network = keeper.plan.endpoint
    assert network is not None
    lab.store.allocate_lease("bridge", "e" * 64, "another boot", lambda taken, released: ("10.210.0.3", None, ""))
    lab.end(keeper)
    assert "netbox0" not in links()  # the void lease does not keep it
    assert lab.guest(ip="10.210.0.3").address == "10.210.0.3"


def test_two_threads_and_two_processes_never_get_the_same_address(lab: Lab) -> None:
    lab.guest()
    program = (
        "import json, sys\n"
        "from tests.kernel.network_lab import Lab\n"
        "from netbox import names\n"
        "from netbox.spec import NetworkSpec\n"
        "lab = Lab()\n"
        "for _ in range(15):\n"
        "    sandbox = names.new_id()\n"
        "    lab.manager.prepare(sandbox, None, NetworkSpec(), None, lab.store.journal(names.sandbox_owner(sandbox), 'run'))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        for _ in range(2)
    ]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(15):
                sandbox = names.new_id()
                journal = lab.store.journal(names.sandbox_owner(sandbox), RUN)
                lab.manager.prepare(sandbox, None, NetworkSpec(), None, journal)
        except BaseException as error:  # noqa: BLE001  (handed to the test's own thread)
            errors.append(error)
        finally:
            lab.store.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    for process in processes:
        _, text = process.communicate(timeout=100)
        assert process.returncode == 0, text
    assert errors == []
    leases = lab.store.leases("bridge")
    assert len(leases) == 61
    assert len({lease.address for lease in leases}) == 61
    for owner, scope in lab.store.journal_owners():
        if scope == RUN and lab.store.journal(owner, scope).rows():
            lab.replay(lab.store.journal(owner, scope))


def test_start_and_take_down_do_not_race(lab: Lab) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(4):
                sandbox = names.new_id()
                journal = lab.store.journal(names.sandbox_owner(sandbox), RUN)
                spec = NetworkSpec(ports=(PortSpec(80, 9000 + number),))
                with lab.manager.prepare(sandbox, None, spec, None, journal) as prepared:
                    namespace = linux.new_network_namespace()
                    lab.manager.attach(prepared.plan, namespace, journal)
                    lab.manager.publish(prepared.plan, journal)
                    os.close(namespace)
                lab.replay(journal)
                lab.manager.release_idle(lab.replay)
        except BaseException as error:  # noqa: BLE001  (handed to the test's own thread)
            errors.append(error)
        finally:
            lab.store.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    assert errors == []
    assert "netbox0" not in links()


def test_a_lock_that_stays_taken_is_an_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "LOCK_TIMEOUT", 0.05)
    with networks.locked(lab.settings), pytest.raises(HostError, match=r"another netbox held .*network\.lock"):
        lab.guest()


def test_the_description_builds_what_netbox_builds(lab: Lab, outside: Neighbour) -> None:
    """Every command runs as printed, and the host is the same afterwards as when netbox does it."""
    guest = lab.guest(ports=(PortSpec(80, 8080), PortSpec(90, 9000, 3, "udp", "127.0.0.1")), mac_address="02:00:00:00:00:42")
    built = picture(guest.netns)
    plan = lab.manager.describe(guest.plan)
    lab.end(guest)
    os.makedirs("/run/netns", exist_ok=True)
    for command in plan:
        words = command.split()
        subprocess.run(["iptables-legacy", *words[1:]] if words[0] == "iptables" else words, check=True, timeout=20)
    name = guest.id[:12]
    netns = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert picture(netns) == built
    finally:
        os.close(netns)
        ip(f"netns delete {name}")
        subprocess.run(["umount", "/run/netns"], check=False, stderr=subprocess.DEVNULL, timeout=20)
        ip("link delete netbox0")
        firewall.backend().take_down()
        sysctl.write("net.ipv4.ip_forward", "0")


def picture(netns: int) -> dict[str, object]:
    """What can be seen of a sandbox's network on the host and inside, without indexes and random MACs."""

    def shown(line: str) -> list[str]:
        result = subprocess.run(["ip", "-details", "-json", *line.split()], capture_output=True, text=True, check=True, timeout=20)
        kept = ("ifname", "mtu", "master", "dst", "gateway", "dev", "lladdr", "prefsrc", "inet6_addr_gen_mode")
        rows = []
        for item in json.loads(result.stdout or "[]"):
            row = {key: item.get(key) for key in kept if key in item}
            row["flags"] = sorted(set(item.get("flags", ())) & {"UP", "BROADCAST", "LOOPBACK"})
            row["kind"] = item.get("linkinfo", {}).get("info_kind")
            row["hairpin"] = item.get("linkinfo", {}).get("info_slave_data", {}).get("hairpin")
            row["addresses"] = [
                (entry["local"], entry["prefixlen"], entry.get("broadcast"))
                for entry in item.get("addr_info", ())
                if entry["family"] == "inet"
            ]
            if item.get("ifname") in ("netbox0", "eth0", "lo"):
                row["mac"] = item.get("address")
            rows.append(json.dumps(row, sort_keys=True))
        return sorted(rows)

    def values(interface: str) -> list[str]:
        names_of = ("ipv4/conf/{}/route_localnet", "ipv4/conf/{}/forwarding", "ipv4/conf/{}/arp_notify", "ipv6/conf/{}/disable_ipv6")
        return [f"{name} {Path('/proc/sys/net', name.format(interface)).read_text().strip()}" for name in names_of]

    host = {
        "links": shown("address show"),
        "routes": shown("route show"),
        "neighbours": shown("neighbour show dev netbox0"),
        "firewall": leaks.firewall(),
        "sysctls": [*values("netbox0"), sysctl.read("net.ipv4.ip_forward")],
    }
    with linux.network_namespace(netns):
        inside = {
            "links": shown("address show"),
            "routes": shown("route show"),
            "neighbours": [row for row in shown("neighbour show dev eth0") if "FAILED" not in row],
            "sysctls": values("eth0"),
        }
    return {"host": host, "inside": inside}
