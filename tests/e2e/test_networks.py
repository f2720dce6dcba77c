"""User-defined networks through the command line, with packets: who reaches whom, what connect and disconnect change, what is refused."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netbox.engine import Engine
from netbox.errors import Conflict, NotFound, UsageError
from tests.e2e.boxes import inside, inspect, running, server
from tests.kernel.network_lab import ask, out_of_reach, reachable, serve
from tests.support.cli import Cli
from tests.support.host import Neighbour, PrivateHost

PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def endpoints(cli: Cli, name: str) -> dict[str, dict[str, Any]]:
    return {item["network"]: item for item in inspect(cli, name)["network"]["endpoints"]}


def address(cli: Cli, name: str, network: str) -> str:
    return str(endpoints(cli, name)[network]["address"])


def default_route(cli: Cli, name: str) -> str:
    lines = [line for line in cli("exec", name, "ip", "route").stdout.splitlines() if line.startswith("default")]
    assert len(lines) <= 1
    return lines[0].split()[2] if lines else ""


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, timeout=60)


@pytest.fixture
def networks(private_host: PrivateHost, cli: Cli) -> Iterator[None]:
    """front and back, and inner, which is internal."""
    for arguments in (["front"], ["back"], ["--internal", "inner"]):
        cli("network", "create", *arguments)
    yield
    cli("network", "prune", "-f")


@PROTOCOLS
def test_two_networks_are_strangers(cli: Cli, networks: None, outside: Neighbour, protocol: str) -> None:
    with (
        running(cli, "a", "--network", "front"),
        running(cli, "b", "--network", "back"),
        running(cli, "c", "--network", "front"),
        server(cli, "a", protocol, 7000),
        server(cli, "b", protocol, 7000),
    ):
        a, b = address(cli, "a", "front"), address(cli, "b", "back")
        with inside(cli, "c"):
            assert ask(protocol, a, 7000) == f"{address(cli, 'c', 'front')} 7000"
            assert out_of_reach(protocol, b, 7000)
        with inside(cli, "a"):
            assert out_of_reach(protocol, b, 7000)
        with inside(cli, "b"):
            assert out_of_reach(protocol, a, 7000)
        assert reachable(protocol, a, 7000)  # the host reaches its own sandboxes
        assert reachable(protocol, b, 7000)


@PROTOCOLS
def test_a_published_port_from_another_network(cli: Cli, networks: None, outside: Neighbour, protocol: str) -> None:
    with (
        running(cli, "web", "-p", f"8080:80/{protocol}", "--network", "front"),
        running(cli, "b", "--network", "back"),
        server(cli, "web", protocol, 80),
        inside(cli, "b"),
    ):
        own, other = endpoints(cli, "b")["back"]["gateway"], endpoints(cli, "web")["front"]["gateway"]
        for by in (outside.host_address, own, other):
            assert ask(protocol, by, 8080) == f"{address(cli, 'b', 'back')} 80"  # the client's own, as outside


@PROTOCOLS
def test_an_internal_network(cli: Cli, networks: None, outside: Neighbour, protocol: str) -> None:
    """Its members reach each other and the host; not the outside, not other networks, not even by a port that these publish."""
    with outside.inside():
        away = serve(protocol, 7001)
    with (
        running(cli, "one", "--network", "inner"),
        running(cli, "two", "--network", "inner"),
        running(cli, "pub", "--network", "front", "-p", f"8080:7000/{protocol}"),
        server(cli, "two", protocol, 7000),
        server(cli, "pub", protocol, 7000),
        server(cli, "one", protocol, 7002),
    ):
        gateway = str(endpoints(cli, "one")["inner"]["gateway"])
        assert default_route(cli, "one") == ""
        with inside(cli, "one"):
            assert reachable(protocol, address(cli, "two", "inner"), 7000)
            # With a route of its own making, too.
            ip(f"route add default via {gateway}")
            assert out_of_reach(protocol, outside.address, 7001)
            assert out_of_reach(protocol, address(cli, "pub", "front"), 7000)
            assert out_of_reach(protocol, outside.host_address, 8080)
            assert out_of_reach(protocol, gateway, 8080)
        with inside(cli, "pub"):
            assert reachable(protocol, outside.address, 7001)
            assert out_of_reach(protocol, address(cli, "one", "inner"), 7002)
        assert reachable(protocol, address(cli, "one", "inner"), 7002)
    away.close()


def test_a_port_cannot_be_published_on_internal_networks_alone(cli: Cli, networks: None) -> None:
    result = cli("run", "--rm", "-p", "8080:80", "--network", "inner", "busybox", "true", check=125)
    assert "on internal networks only (inner)" in result.stderr
    with running(cli, "web", "-p", "8080:80", "--network", "inner", "--network", "front"), server(cli, "web", "tcp", 80):
        assert ask("tcp", "127.0.0.1", 8080) is not None
        assert [line.split()[0] for line in cli("network", "ls", "-q").stdout.splitlines()] == [
            "back",
            "bridge",
            "front",
            "host",
            "inner",
            "none",
        ]


def test_two_networks_on_one_sandbox(cli: Cli, networks: None) -> None:
    with running(cli, "web", "--network", "front", "--network", "name=back,alias=DB"), running(cli, "b", "--network", "back"):
        web = endpoints(cli, "web")
        assert list(web) == ["back", "front"]  # the first name has the default route
        assert [web["front"]["interface"], web["back"]["interface"]] == ["eth0", "eth1"]
        assert default_route(cli, "web") == web["back"]["gateway"]
        hosts = cli("exec", "web", "cat", "/etc/hosts").stdout
        assert hosts.endswith("".join(f"{item['address']}\t{inspect(cli, 'web')['id'][:12]}\n" for item in web.values()))
        with server(cli, "web", "tcp", 80), inside(cli, "b"):
            assert reachable("tcp", web["back"]["address"], 80)
            assert out_of_reach("tcp", web["front"]["address"], 80)  # a sandbox is no router between its networks
        (listed,) = [item for item in json.loads(cli("ps", "--format", "json").stdout) if item["name"] == "web"]
        assert listed["networks"] == {name: item["address"] for name, item in web.items()}
        assert "back,front" in cli("ps").stdout
        assert f"{web['back']['address']} (back), {web['front']['address']} (front)" in cli("show", "web").stdout
        (document,) = json.loads(cli("network", "inspect", "back").stdout)
        assert [(member["name"], member["aliases"]) for member in document["members"]] == [("b", []), ("web", ["db"])]


def test_the_default_route_follows_the_priority(cli: Cli, networks: None, outside: Neighbour) -> None:
    with running(cli, "web", "-p", "8080:80", "--network", "name=front,gw-priority=1", "--network", "back"), server(cli, "web", "tcp", 80):
        web = endpoints(cli, "web")
        assert default_route(cli, "web") == web["front"]["gateway"]
        cli("network", "connect", "--gw-priority", "7", "bridge", "web")
        assert default_route(cli, "web") == endpoints(cli, "web")["bridge"]["gateway"]
        with outside.inside():
            assert ask("tcp", outside.host_address, 8080) == f"{outside.address} 80"  # the port moved along
        cli("network", "disconnect", "bridge", "web")
        assert default_route(cli, "web") == web["front"]["gateway"]
        with outside.inside():
            assert ask("tcp", outside.host_address, 8080) == f"{outside.address} 80"
        cli("network", "disconnect", "front", "web")
        assert default_route(cli, "web") == web["back"]["gateway"]
        cli("network", "disconnect", "back", "web")
        assert default_route(cli, "web") == ""
        assert out_of_reach("tcp", "127.0.0.1", 8080)
        assert cli("exec", "web", "cat", "/etc/hosts").stdout.count("127.0.0.1\t") == 2
        cli("network", "connect", "inner", "web")
        assert default_route(cli, "web") == ""
        assert out_of_reach("tcp", "127.0.0.1", 8080)
        cli("network", "connect", "front", "web")
        assert ask("tcp", "127.0.0.1", 8080) is not None


def test_a_connection_goes_on_while_other_networks_come_and_go(cli: Cli, networks: None) -> None:
    with running(cli, "web", "--network", "front"), running(cli, "peer", "--network", "front"), running(cli, "b", "--network", "back"):
        with inside(cli, "web"):
            listener = socket.create_server(("0.0.0.0", 7000))
        with inside(cli, "peer"):
            client = socket.create_connection((address(cli, "web", "front"), 7000), timeout=60)
        accepted, _ = listener.accept()
        with listener, client, accepted:
            for count in range(3):
                cli("network", "connect", "back", "web")
                with server(cli, "web", "udp", 53), inside(cli, "b"):
                    assert reachable("udp", address(cli, "web", "back"), 53)
                accepted.settimeout(60)
                client.sendall(b"%d" % count)
                assert accepted.recv(1) == b"%d" % count
                cli("network", "disconnect", "back", "web")
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
        assert cli("exec", "web", "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]


def test_what_a_program_wrote_into_the_hosts_file_stays(cli: Cli, networks: None) -> None:
    with running(cli, "web", "--hostname", "web.example", "--network", "front", "--add-host", "db:192.0.2.9"):
        cli("exec", "web", "sh", "-c", "echo 192.0.2.10 mine >> /etc/hosts")
        cli("network", "connect", "back", "web")
        hosts = cli("exec", "web", "cat", "/etc/hosts").stdout
        assert "192.0.2.10 mine\n" in hosts
        assert "192.0.2.9\tdb\n" in hosts
        for item in endpoints(cli, "web").values():
            assert f"{item['address']}\tweb.example web\n" in hosts


def test_a_stopped_sandbox_is_connected_at_its_start(cli: Cli, networks: None) -> None:
    cli("create", "--name", "web", "--network", "front", "busybox", "sleep", "100")
    cli("network", "connect", "--alias", "db", "back", "web")
    cli("network", "disconnect", "front", "web")
    cli("start", "web")
    try:
        assert list(endpoints(cli, "web")) == ["back"]
        assert "is on network back already" in cli("network", "connect", "back", "web", check=125).stderr
        assert "web is not on network front; it is on back" in cli("network", "disconnect", "front", "web", check=125).stderr
        cli("restart", "-t", "0", "web")
        assert list(endpoints(cli, "web")) == ["back"]
    finally:
        cli("rm", "-f", "web")


def test_a_network_in_use_is_not_removed(cli: Cli, networks: None) -> None:
    cli("create", "--name", "asleep", "--network", "front", "busybox", "true")
    with running(cli, "awake", "--network", "front"):
        result = cli("network", "rm", "front", check=125)
        assert "network front is used by asleep, awake" in result.stderr
    assert "used by asleep" in cli("network", "rm", "front", check=125).stderr
    assert cli("network", "prune", "-f").stdout.split() == ["back", "inner"]
    cli("rm", "asleep")
    assert cli("network", "rm", "front").stdout == "front\n"
    assert "no such network: front; there are bridge, host, none; make it with 'netbox network create front'" in (
        cli("run", "--rm", "--network", "front", "busybox", "true", check=125).stderr
    )


def test_a_static_address_is_kept_for_a_stopped_sandbox(cli: Cli, private_host: PrivateHost) -> None:
    cli("network", "create", "--subnet", "10.99.0.0/29", "--aux-address", "router=10.99.0.5", "tiny")  # .1 to .6, .1 is the gateway
    fixed = ("--network", "tiny", "--ip", "10.99.0.3")
    cli("create", "--name", "web", *fixed, "busybox", "sleep", "100")
    try:
        refused = cli("create", "--name", "thief", *fixed, "busybox", "true", check=125).stderr
        assert "the address 10.99.0.3 is taken by sandbox web" in refused
        cli("start", "web")
        cli("stop", "-t", "0", "web")
        assert "is taken by sandbox web" in cli("run", "--rm", *fixed, "busybox", "true", check=125).stderr
        with running(cli, "a", "--network", "tiny"), running(cli, "b", "--network", "tiny"), running(cli, "c", "--network", "tiny"):
            assert {address(cli, name, "tiny") for name in "abc"} == {"10.99.0.2", "10.99.0.4", "10.99.0.6"}
            assert "has no free address left" in cli("run", "--rm", "--network", "tiny", "busybox", "true", check=125).stderr
            cli("rm", "-f", "c")
            taken = endpoints(cli, "a")["tiny"]["mac_address"]
            refused = cli("run", "--rm", "--network", "tiny", "--mac-address", taken, "busybox", "true", check=125).stderr
            assert f"the MAC {taken} is taken by sandbox a" in refused
            cli("start", "web")
            assert address(cli, "web", "tiny") == "10.99.0.3"
        assert "reserved for router" in cli("create", "--network", "tiny", "--ip", "10.99.0.5", "busybox", "true", check=125).stderr
    finally:
        cli("rm", "-f", "web")
    cli("run", "--rm", *fixed, "busybox", "true")
    cli("network", "rm", "tiny")


def test_a_static_address_of_a_connect_is_kept_too(cli: Cli, networks: None) -> None:
    fixed = ("--ip", "10.211.0.77")
    with running(cli, "web", "--network", "back"):
        cli("network", "connect", *fixed, "front", "web")
        cli("stop", "-t", "0", "web")
        assert "is taken by sandbox web" in cli("run", "--rm", "--network", "front", *fixed, "busybox", "true", check=125).stderr
        cli("start", "web")
        assert address(cli, "web", "front") == "10.211.0.77"
        cli("network", "disconnect", "front", "web")
        cli("run", "--rm", "--network", "front", *fixed, "busybox", "true")


def test_a_subnet_that_collides_is_named(cli: Cli, networks: None, outside: Neighbour) -> None:
    assert "collides with network front (10.211.0.0/24)" in cli("network", "create", "--subnet", "10.211.0.0/25", "x", check=125).stderr
    ip(f"route add 10.50.0.0/16 via {outside.address}")
    refused = cli("network", "create", "--subnet", "10.50.3.0/24", "x", check=125).stderr
    assert "the subnet 10.50.3.0/24 collides with route 10.50.0.0/16 dev" in refused
    ip(f"route add 10.211.0.0/25 via {outside.address}")
    refused = cli("run", "--rm", "--network", "front", "busybox", "true", check=125).stderr
    assert "the subnet 10.211.0.0/24 of network front collides with route 10.211.0.0/25 dev" in refused
    ip("route del 10.211.0.0/25")
    cli("run", "--rm", "--network", "front", "busybox", "true")


def test_bridges_come_and_go_with_their_sandboxes(cli: Cli, networks: None, private_host: PrivateHost) -> None:
    def bridges() -> set[str]:
        return {name for _, name in socket.if_nameindex() if name.startswith("nb-")}

    def forwarding() -> str:
        return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()

    assert bridges() == set()
    before = forwarding()
    with running(cli, "a", "--network", "inner"):
        assert forwarding() == before
        with running(cli, "b", "--network", "front"):
            assert len(bridges()) == 2
            assert forwarding() == "1"
            cli("network", "connect", "back", "b")
            assert len(bridges()) == 3
    cli("gc")
    assert bridges() == set()
    assert forwarding() == before


def test_the_mtu_and_the_range(cli: Cli, private_host: PrivateHost) -> None:
    cli("network", "create", "-o", "mtu=1400", "--subnet", "10.99.0.0/24", "--ip-range", "10.99.0.128/30", "ranged")
    with running(cli, "a", "--network", "ranged"), running(cli, "b", "--network", "ranged"):
        assert [address(cli, name, "ranged") for name in "ab"] == ["10.99.0.128", "10.99.0.129"]
        assert cli("exec", "a", "cat", "/sys/class/net/eth0/mtu").stdout == "1400\n"
    cli("network", "rm", "ranged")


def test_the_python_api(engine: Engine) -> None:
    front = engine.networks.create("front", subnet="10.99.0.0/24", labels={"stage": "test"})
    assert (front.subnet, front.gateway, front.standing, front.users) == ("10.99.0.0/24", "10.99.0.1", False, ())
    with pytest.raises(Conflict, match="a network called front is there already"):
        engine.networks.create("front")
    with pytest.raises(UsageError, match="one of netbox's own"):
        engine.networks.create("host")
    with pytest.raises(UsageError, match="cannot be removed"):
        engine.networks.remove("bridge")
    with pytest.raises(NotFound, match="no such network: nowhere"):
        engine.networks.get("nowhere")
    with engine.run("busybox", "sleep", "100") as box:
        box.connect("front", ip="10.99.0.9", aliases=["db"])
        assert box.networks == {"bridge": box.ip_address, "front": "10.99.0.9"}
        (member,) = engine.networks.get("front").members
        assert (member.name, member.address, member.aliases, member.active) == (box.name, "10.99.0.9", ("db",), True)
        assert [item.name for item in engine.list(filters=[("network", "front")])] == [box.name]
        with pytest.raises(NotFound, match="no such network: nowhere"):
            box.connect("nowhere")
        with pytest.raises(Conflict, match=f"front is used by {box.name}"):
            engine.networks.remove("front")
        box.disconnect("front")
        assert box.stats().rx_packets >= 0
    with engine.run("busybox", "sleep", "100", network="none") as box, pytest.raises(UsageError, match="cannot be combined"):
        box.connect("front")
    assert [item.name for item in engine.networks.list([("label", "stage=test")])] == ["front"]
    assert engine.networks.prune() == ["front"]
