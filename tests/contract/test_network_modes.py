"""What every network mode must do. Needs root: it runs against the kernel, in a private host."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Iterator

import pytest

from netbox.network.plan import NetworkPlan
from netbox.network.resolve import nameservers
from netbox.spec import NetworkSpec
from tests.kernel.network_lab import Guest, Lab, serve
from tests.support.host import Neighbour, PrivateHost

MODES = ("bridge", "host", "none", "container")


@pytest.fixture(params=["iptables", "nftables"])
def lab(request: pytest.FixtureRequest, private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("NETBOX_FIREWALL", request.param)
    made = Lab()
    yield made
    made.close()


@pytest.fixture(params=MODES)
def guest(request: pytest.FixtureRequest, lab: Lab, outside: Neighbour) -> Guest:
    return start(lab, request.param)


def start(lab: Lab, mode: str) -> Guest:
    return lab.guest(lab.guest(mode="bridge"), mode="container:target") if mode == "container" else lab.guest(mode=mode)


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_the_plan_survives_json(guest: Guest) -> None:
    assert NetworkPlan.from_json(json.loads(json.dumps(guest.plan.to_json()))) == guest.plan


def test_a_preview_is_the_plan_and_changes_nothing(guest: Guest, lab: Lab) -> None:
    mode = guest.plan.mode if guest.plan.mode != "container" else "container:target"
    before = (links(), lab.store.leases(), lab.store.journal_owners())
    target = guest.join_target() if guest.plan.mode == "container" else None
    previewed = lab.manager.preview(guest.id, None, NetworkSpec(mode=mode), target)
    assert (links(), lab.store.leases(), lab.store.journal_owners()) == before
    real = lab.guest(guest, mode=mode) if target else lab.guest(mode=mode)
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
    assert found == {"bridge": {"lo", "eth0"}, "container": {"lo", "eth0"}, "none": {"lo"}, "host": host}[guest.plan.mode]


def test_the_way_out(guest: Guest, outside: Neighbour) -> None:
    with outside.inside():
        servers = [serve("tcp", 7000), serve("udp", 7000)]
    try:
        expected = None if guest.plan.mode == "none" else f"{outside.host_address} 7000"
        assert guest.ask("tcp", outside.address, 7000, 0.5) == expected
        assert guest.ask("udp", outside.address, 7000, 0.5) == expected
    finally:
        for server in servers:
            server.close()


def test_scapy_reaches_what_the_mode_says(guest: Guest, outside: Neighbour) -> None:
    with outside.inside():
        servers = [serve("tcp", 7000), serve("udp", 7000)]
    neighbour = {"host": outside.address, "none": None}.get(guest.plan.mode, "10.210.0.1")
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
    assert nameservers(files["resolv.conf"]) == ([] if guest.plan.mode == "none" else ["198.51.100.1"])


def test_the_host_name(guest: Guest) -> None:
    expected = {"host": os.uname().nodename, "bridge": guest.id[:12], "none": guest.id[:12]}
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
    assert bool(commands) == (guest.plan.mode in ("bridge", "none"))
    assert all(command.split()[0] in ("ip", "sysctl", "iptables", "nft") for command in commands)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left(mode: str, lab: Lab, private_host: PrivateHost) -> None:
    made = start(lab, mode)
    lab.end(made)
    assert [lease.sandbox_id for lease in lab.store.leases() if lease.sandbox_id == made.id] == []
    lab.close()
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
            lab.guest(joined, mode="container:target" if mode == "container" else mode)
    lab.close()
    assert private_host.leftovers() == []
