"""What every network mode must do. Needs root: it runs against the kernel, in a private host."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from netbox.network.plan import NetworkPlan
from netbox.network.resolve import nameservers
from netbox.spec import NetworkAttachment
from tests.kernel.network_lab import Guest, Lab, serve
from tests.support.host import Neighbour, PrivateHost
from tests.support.linux import umount

MODES = ("bridge", "host", "none", "container", "networks", "ns")
LAB = "/run/netns/netbox-lab"


@pytest.fixture(params=["iptables", "nftables"])
def lab(request: pytest.FixtureRequest, private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("NETBOX_FIREWALL", request.param)
    made = Lab()
    yield made
    made.close()
    remove_named_namespace()


def remove_named_namespace() -> None:
    if os.path.exists(LAB):
        subprocess.run(["ip", "netns", "del", "netbox-lab"], check=True, timeout=20)
        umount("/run/netns")
        os.rmdir("/run/netns")


@pytest.fixture(params=MODES)
def guest(request: pytest.FixtureRequest, lab: Lab, outside: Neighbour) -> Guest:
    return start(lab, request.param)


def named_namespace() -> str:
    """The mode that joins a namespace of ip-netns(8), which is made unless it is there. It has lo up and nothing else."""
    if not os.path.exists(LAB):
        for command in (["ip", "netns", "add", "netbox-lab"], ["ip", "-n", "netbox-lab", "link", "set", "lo", "up"]):
            subprocess.run(command, check=True, timeout=20)
    return f"ns:{LAB}"


def start(lab: Lab, mode: str) -> Guest:
    if mode == "networks":  # two that a user made, in mode bridge
        lab.define("front")
        lab.define("back")
        return lab.guest(networks=(NetworkAttachment("back"), NetworkAttachment("front", aliases=("db",))))
    if mode == "ns":
        return lab.guest(mode=named_namespace())
    return lab.guest(lab.guest(mode="bridge"), mode="container:target") if mode == "container" else lab.guest(mode=mode)


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_the_plan_survives_json(guest: Guest) -> None:
    assert NetworkPlan.from_json(json.loads(json.dumps(guest.plan.to_json()))) == guest.plan


def test_a_preview_is_the_plan_and_changes_nothing(guest: Guest, lab: Lab) -> None:
    before = (links(), lab.store.leases(), lab.store.journal_owners())
    target = guest.join_target() if guest.plan.mode == "container" else None
    previewed = lab.manager.preview("f" * 64, None, guest.spec, target)
    assert (links(), lab.store.leases(), lab.store.journal_owners()) == before
    real = lab.guest(guest, mode="container:target") if target else lab.guest(mode=guest.spec.mode, networks=guest.spec.networks)
    assert comparable(previewed) == comparable(real.plan)


def comparable(plan: NetworkPlan) -> NetworkPlan:
    """The plan without what is different for each sandbox."""
    endpoints = tuple(dataclasses.replace(endpoint, host_interface="") for endpoint in plan.endpoints)
    return dataclasses.replace(plan, sandbox_id="", hostname="", target_id="", shared_files={}, endpoints=endpoints)


def test_loopback_works(guest: Guest) -> None:
    guest.serve("tcp", 7777, "127.0.0.1")
    guest.serve("udp", 7777, "127.0.0.1")
    assert guest.ask("tcp", "127.0.0.1", 7777) == "127.0.0.1 7777"
    assert guest.ask("udp", "127.0.0.1", 7777) == "127.0.0.1 7777"


def test_the_interfaces(guest: Guest) -> None:
    with guest.inside():
        found = links()
    host = links()
    own = {"lo", *(endpoint.interface for endpoint in guest.plan.endpoints)}
    assert found == {"bridge": own, "container": {"lo", "eth0"}, "none": {"lo"}, "ns": {"lo"}, "host": host}[guest.plan.mode]
    assert "eth0" in own or not guest.plan.endpoints


def test_the_way_out(guest: Guest, outside: Neighbour) -> None:
    with outside.inside():
        servers = [serve("tcp", 7000), serve("udp", 7000)]
    try:
        expected = None if guest.plan.mode in ("none", "ns") else f"{outside.host_address} 7000"
        assert guest.ask("tcp", outside.address, 7000, 0.5) == expected
        assert guest.ask("udp", outside.address, 7000, 0.5) == expected
    finally:
        for server in servers:
            server.close()


def test_scapy_reaches_what_the_mode_says(guest: Guest, outside: Neighbour) -> None:
    with outside.inside():
        servers = [serve("tcp", 7000), serve("udp", 7000)]
    neighbour = {"host": outside.address, "none": None, "ns": None, "container": "10.210.0.1"}.get(guest.plan.mode) or (
        guest.gateway if guest.plan.endpoints else None
    )
    requests: list[dict[str, object]] = [
        {"kind": "ping", "address": outside.address},
        {"kind": "tcp", "address": outside.address, "port": 7000},
        {"kind": "tcp", "address": outside.address, "port": 7001},
        {"kind": "udp", "address": outside.address, "port": 7000},
        {"kind": "udp", "address": outside.address, "port": 7001},
    ]
    if neighbour:
        requests.append({"kind": "arp", "address": neighbour, "interface": "eth0"})
    else:
        requests = [{"kind": "arp", "address": outside.address, "interface": "lo"}]
    try:
        answers = guest.probe(*requests)
    finally:
        for server in servers:
            server.close()
    if not neighbour:
        assert answers == [None]  # there is no way to even send
        return
    assert answers[:5] == [outside.address, "SA", "RA", f"{outside.host_address} 7000", "unreachable"]
    assert len(answers[5].split(":")) == 6


def test_its_files(guest: Guest, lab: Lab) -> None:
    files = lab.manager.files(guest.plan)
    if guest.plan.mode == "container":
        assert files == {}
        assert set(guest.plan.shared_files) == {"hosts", "hostname", "resolv.conf"}
        return
    assert set(files) == {"hosts", "hostname", "resolv.conf"}
    assert files["hostname"] == f"{guest.plan.hostname}\n"
    assert "localhost" in files["hosts"]
    named = [endpoint.gateway for endpoint in guest.plan.endpoints if endpoint.network != "bridge"]
    assert nameservers(files["resolv.conf"]) == (named or ([] if guest.plan.mode == "none" else ["198.51.100.1"]))


def test_the_host_name(guest: Guest) -> None:
    expected = {"host": os.uname().nodename, "ns": os.uname().nodename, "bridge": guest.id[:12], "none": guest.id[:12]}
    if guest.plan.mode != "container":
        assert guest.plan.hostname == expected[guest.plan.mode]


def test_traffic_is_counted(guest: Guest, lab: Lab, outside: Neighbour) -> None:
    traffic = lab.manager.statistics(guest.plan, os.getpid())
    assert len(traffic) == 8
    if guest.plan.mode in ("bridge", "host"):
        with guest.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(20):
                sock.sendto(b"x" * 500, (outside.address, 9))
        later = lab.manager.statistics(guest.plan, os.getpid())
        assert later.tx_bytes - traffic.tx_bytes >= 20 * 500


def test_its_description_is_a_list_of_commands(guest: Guest, lab: Lab) -> None:
    commands = lab.manager.describe(guest.plan)
    assert bool(commands) == (guest.plan.mode in ("bridge", "none", "ns"))
    assert all(command.split()[0] in ("ip", "sysctl", "iptables", "nft", "nsenter") for command in commands)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left(mode: str, lab: Lab, private_host: PrivateHost) -> None:
    made = start(lab, mode)
    lab.end(made)
    assert [lease.sandbox_id for lease in lab.store.leases() if lease.sandbox_id == made.id] == []
    lab.close()
    remove_named_namespace()
    assert private_host.leftovers() == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", ["prepare", "attach"])
def test_a_start_that_fails_leaves_nothing(
    mode: str, step: str, lab: Lab, private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = lab.guest(mode="bridge") if mode == "container" else None

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lab.manager, "publish" if step == "attach" else "attach", fail)
        with pytest.raises(OSError, match="Input/output"):
            if mode == "networks":
                start(lab, mode)
            lab.guest(joined, mode={"container": "container:target", "ns": named_namespace()}.get(mode, mode))
    lab.close()
    remove_named_namespace()
    assert private_host.leftovers() == []
