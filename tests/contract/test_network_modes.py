"""What every network mode must do. Needs root: it runs against the kernel, in a private host."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from netbox.errors import UsageError
from netbox.network.plan import NetworkPlan
from netbox.network.resolve import nameservers
from netbox.spec import NetworkAttachment, PortSpec
from tests.kernel.network_lab import REFUSAL, TIMEOUT, Guest, Lab, serve
from tests.support.host import Neighbour, PrivateHost
from tests.support.linux import umount
from tests.support.waiting import wait_until

BRIDGED = ("bridge", "networks", "internal", "mixed")  # the modes in which the firewall has a part
CASES = [(mode, "iptables") for mode in (*BRIDGED, "host", "none", "container", "ns", "macvlan")] + [(mode, "nftables") for mode in BRIDGED]
LAB = "/run/netns/netbox-lab"

once_for_each_mode = pytest.mark.parametrize(
    "mode", CASES[: -len(BRIDGED)], ids=[mode for mode, _ in CASES[: -len(BRIDGED)]], indirect=True
)
"""For what does not depend on the firewall's backend."""


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NETBOX_FIREWALL", request.param[1])
    return str(request.param[0])


@pytest.fixture
def lab(mode: str, private_host: PrivateHost, outside: Neighbour) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()
    remove_named_namespace()


def remove_named_namespace() -> None:
    if os.path.exists(LAB):
        subprocess.run(["ip", "netns", "del", "netbox-lab"], check=True, timeout=20)
        umount("/run/netns")
        os.rmdir("/run/netns")


@pytest.fixture
def guest(mode: str, lab: Lab) -> Guest:
    return start(lab, mode)


def named_namespace() -> str:
    """The mode that joins a namespace of ip-netns(8), which is made unless it is there. It has lo up and nothing else."""
    if not os.path.exists(LAB):
        for command in (["ip", "netns", "add", "netbox-lab"], ["ip", "-n", "netbox-lab", "link", "set", "lo", "up"]):
            subprocess.run(command, check=True, timeout=20)
    return f"ns:{LAB}"


def start(lab: Lab, mode: str) -> Guest:
    if mode == "container":
        return lab.guest(lab.guest(mode="bridge"), mode="container:target")
    return lab.guest(**wanted(lab, mode))


def wanted(lab: Lab, mode: str) -> dict[str, Any]:
    """The values of a ``NetworkSpec``; the networks are made unless they are there."""
    if mode == "ns":
        return {"mode": named_namespace()}
    names = {"networks": ("back", "front"), "internal": ("inner",), "macvlan": ("lan",), "mixed": ("inner", "lan")}.get(mode)
    if names is None:
        return {"mode": mode}
    lan: dict[str, Any] = {"driver": "macvlan", "parent": Neighbour.host_link, "subnet": Neighbour.network, "macvlan_mode": "bridge"}
    for name in names:
        if lab.store.network(name) is None:
            lab.define(name, **(lan if name == "lan" else {"internal": name == "inner"}))
    return {"networks": tuple(NetworkAttachment(name, aliases=("db",) if name == "front" else ()) for name in names)}


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


@once_for_each_mode
def test_the_plan_as_a_value(guest: Guest, lab: Lab) -> None:
    """It survives JSON, has a host name, and says which commands would build it."""
    plan = guest.plan
    assert NetworkPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    machine, own = os.uname().nodename, guest.id[:12]
    if plan.mode != "container":
        assert plan.hostname == {"host": machine, "ns": machine, "bridge": own, "none": own}[plan.mode]
    commands = lab.manager.describe(plan)
    assert bool(commands) == (plan.mode in ("bridge", "none", "ns"))
    assert all(command.split()[0] in ("ip", "sysctl", "iptables", "nft", "nsenter", "mkdir", "dnsmasq", "printf") for command in commands)


@once_for_each_mode
def test_its_files(guest: Guest, lab: Lab) -> None:
    files = lab.manager.files(guest.plan)
    if guest.plan.mode == "container":
        assert files == {}
        assert set(guest.plan.shared_files) == {"hosts", "hostname", "resolv.conf"}
        return
    assert set(files) == {"hosts", "hostname", "resolv.conf"}
    assert files["hostname"] == f"{guest.plan.hostname}\n"
    assert "localhost" in files["hosts"]
    for endpoint in guest.plan.endpoints:
        assert f"{endpoint.address}\t{guest.plan.hostname}\n" in files["hosts"]
    named = [endpoint.gateway for endpoint in guest.plan.endpoints if endpoint.network in ("front", "back", "inner")]
    others = (
        [] if guest.plan.mode == "none" or (named and all(not endpoint.on_lan for endpoint in guest.plan.endpoints)) else ["198.51.100.1"]
    )
    assert nameservers(files["resolv.conf"]) == named + others


@once_for_each_mode
def test_the_namespace_is_as_planned(guest: Guest) -> None:
    with guest.inside():
        found = links()
    host = links()
    own = {"lo", *(endpoint.interface for endpoint in guest.plan.endpoints)}
    assert found == {"bridge": own, "container": {"lo", "eth0"}, "none": {"lo"}, "ns": {"lo"}, "host": host}[guest.plan.mode]
    assert "eth0" in own or not guest.plan.endpoints
    if not guest.plan.endpoints:
        return
    shown = [line.split() for line in guest.execute("ip", "-o", "-4", "address").splitlines()]
    assert {(words[1], words[3]) for words in shown if words[1] != "lo"} == {
        (endpoint.interface, f"{endpoint.address}/{endpoint.prefix_length}") for endpoint in guest.plan.endpoints
    }
    for endpoint in guest.plan.endpoints:
        assert endpoint.mac_address in guest.execute("ip", "-o", "link", "show", "dev", endpoint.interface)
    way_out = guest.plan.way_out
    expected = [] if way_out is None else [["default", "via", way_out.gateway, "dev", way_out.interface]]
    assert [line.split()[:5] for line in guest.execute("ip", "route").splitlines() if line.startswith("default")] == expected


@once_for_each_mode
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


@once_for_each_mode
def test_loopback_works(guest: Guest) -> None:
    guest.serve("tcp", 7777, "127.0.0.1")
    guest.serve("udp", 7777, "127.0.0.1")
    assert guest.ask("tcp", "127.0.0.1", 7777) == "127.0.0.1 7777"
    assert guest.ask("udp", "127.0.0.1", 7777) == "127.0.0.1 7777"


def test_the_commands_of_a_dry_run_build_the_same(guest: Guest, lab: Lab) -> None:
    """Typed on another machine, with a link of the same name as the parent."""
    if not guest.plan.endpoints:
        return
    name = guest.id[:12]
    look = f"ip -n {name} -o -4 address; ip -n {name} route; ip -n {name} -br link | tr @ ' ' | cut -d' ' -f1; ip -n {name} -o link"
    script = ["mount -t tmpfs none /run", "ip link set lo up", "ip link add eth0 type veth peer name lan0", "ip link set eth0 up"]
    script += [*lab.manager.describe(guest.plan), f"( {look} ) | sed 's/@[^:]*//; s/[0-9]*: //'"]
    command = ["unshare", "-nm", "--pid", "--fork", "--kill-child", "sh", "-ec", "\n".join(script)]  # dnsmasq ends with the shell
    typed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert typed.returncode == 0, typed.stderr
    facts = {line for line in typed.stdout.splitlines() if " inet " in line or " dev " in line}
    mine = guest.execute("ip", "-o", "-4", "address") + guest.execute("ip", "route")
    assert {plain(line) for line in facts} == {plain(line) for line in mine.splitlines()}
    for endpoint in guest.plan.endpoints:
        assert endpoint.mac_address in typed.stdout


def plain(line: str) -> str:
    """A line of ip(8) without the number of the link, and whether its carrier is there."""
    return " ".join(re.sub(r"^\d+: ", "", line).replace("linkdown", "").split())


def test_the_way_out(guest: Guest, outside: Neighbour) -> None:
    with outside.inside():
        servers = [serve("tcp", 7000), serve("udp", 7000)]
    try:
        seen = guest.address if guest.plan.way_out is not None and guest.plan.way_out.on_lan else outside.host_address
        expected = f"{seen} 7000" if has_way_out(guest) else None
        patience = REFUSAL if expected is None else TIMEOUT
        assert guest.ask("tcp", outside.address, 7000, patience) == expected
        assert guest.ask("udp", outside.address, 7000, patience) == expected
    finally:
        for server in servers:
            server.close()


def has_way_out(guest: Guest) -> bool:
    return guest.plan.way_out is not None if guest.plan.mode == "bridge" else guest.plan.mode in ("host", "container")


@once_for_each_mode
def test_scapy_reaches_what_the_mode_says(guest: Guest, outside: Neighbour) -> None:
    with outside.inside():
        servers = [serve("tcp", 7000), serve("udp", 7000)]
    requests: list[dict[str, object]] = [
        {"kind": "ping", "address": outside.address},
        {"kind": "tcp", "address": outside.address, "port": 7000},
        {"kind": "tcp", "address": outside.address, "port": 7001},
        {"kind": "udp", "address": outside.address, "port": 7000},
        {"kind": "udp", "address": outside.address, "port": 7001},
    ]
    way_out = guest.plan.way_out
    seen = guest.address if way_out is not None and way_out.on_lan else outside.host_address
    expected: list[object] = [outside.address, "SA", "RA", f"{seen} 7000", "unreachable"]
    if not has_way_out(guest):
        # There is no way to even send.
        requests, expected = [{"kind": "arp", "address": outside.address, "interface": "lo", "timeout": 1}], [None]
    router = {"host": outside.address, "container": "10.210.0.1"}.get(guest.plan.mode, way_out.gateway if way_out else "")
    inner = next((endpoint for endpoint in guest.plan.endpoints if endpoint.internal), None)
    neighbours = [(router, way_out.interface if way_out else "eth0")] if router else []
    neighbours += [(inner.gateway, inner.interface)] if inner is not None else []
    requests += [{"kind": "arp", "address": address, "interface": interface} for address, interface in neighbours]
    try:
        answers = guest.probe(*requests)
    finally:
        for server in servers:
            server.close()
    assert answers[: len(expected)] == expected
    assert [len(answer.split(":")) for answer in answers[len(expected) :]] == [6] * len(neighbours)


@once_for_each_mode
def test_what_has_no_meaning_is_refused(mode: str, lab: Lab) -> None:
    refused: dict[str, dict[str, Any]] = {
        "host": {"ports": (PortSpec(80, 8080),), "ip": "10.210.0.9", "mac_address": "02:00:00:00:00:05"},
        "none": {"ports": (PortSpec(80, 8080),), "ip": "10.210.0.9", "mac_address": "02:00:00:00:00:05"},
        "container": {"ports": (PortSpec(80, 8080),), "ip": "10.210.0.9", "dns": ("192.0.2.1",), "extra_hosts": (("a", "192.0.2.1"),)},
        "ns": {"ports": (PortSpec(80, 8080),), "ip": "10.210.0.9"},
        "internal": {"ports": (PortSpec(80, 8080),)},
        "macvlan": {"ports": (PortSpec(80, 8080),), "rate_in": 1000, "extra_hosts": (("up", "host-gateway"),)},
        "mixed": {"ports": (PortSpec(80, 8080),), "rate_in": 1000},
    }
    target = lab.guest(mode="bridge") if mode == "container" else None
    values: dict[str, Any] = {"mode": "container:target"} if target is not None else wanted(lab, mode)
    for option, value in refused.get(mode, {}).items():
        with pytest.raises(UsageError) as caught:
            lab.guest(target, **{**values, option: value})
        assert caught.value.hint, option
    # A wrong address is named in every mode that has one.
    if mode in ("bridge", "networks", "internal", "macvlan"):
        first: NetworkAttachment = (values.get("networks") or (NetworkAttachment("bridge"),))[0]
        with pytest.raises(UsageError, match="203.0.113.9 is outside the network's subnet"):
            lab.guest(networks=(first._replace(ip="203.0.113.9"),))


@once_for_each_mode
def test_traffic_is_counted(guest: Guest, lab: Lab, outside: Neighbour) -> None:
    with guest.inside():
        inhabitant = subprocess.Popen(["sleep", "100"])  # whose namespace it is
    try:
        traffic = lab.manager.statistics(guest.plan, inhabitant.pid)
        assert len(traffic) == 8
        if guest.plan.mode == "host" or (guest.plan.endpoints and has_way_out(guest)):
            with guest.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(20):
                    sock.sendto(b"x" * 500, (outside.address, 9))

            def sent() -> bool:  # they may wait for the MAC of the next hop
                return lab.manager.statistics(guest.plan, inhabitant.pid).tx_bytes - traffic.tx_bytes >= 20 * 500

            wait_until(sent, "20 datagrams to be sent")
    finally:
        inhabitant.kill()
        inhabitant.wait()


def test_nothing_is_left(mode: str, lab: Lab) -> None:
    before = links()
    made = start(lab, mode)
    lab.end(made)
    assert [lease.sandbox_id for lease in lab.store.leases() if lease.sandbox_id == made.id] == []
    lab.close()
    remove_named_namespace()
    assert links() == before  # the fixture looks at everything else


@pytest.mark.parametrize("step", ["prepare", "attach"])
def test_a_start_that_fails_leaves_nothing(mode: str, step: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = lab.guest(mode="bridge") if mode == "container" else None
    values = {"mode": "container:target"} if joined is not None else wanted(lab, mode)

    before = links() if joined is None else {"lo", "eth0"}

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lab.manager, "publish" if step == "attach" else "attach", fail)
        with pytest.raises(OSError, match="Input/output"):
            lab.guest(joined, **values)
    assert [lease for lease in lab.store.leases() if lease.sandbox_id and (joined is None or lease.sandbox_id != joined.id)] == []
    lab.close()
    remove_named_namespace()
    assert links() == before
