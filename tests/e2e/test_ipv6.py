"""IPv6 through the command line: what is shown, what is kept, what is put back."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.boxes import inside, inspect, running, server
from tests.e2e.test_dry_run import sections
from tests.e2e.test_networks import endpoints
from tests.kernel.network_lab import ask, is_held, out_of_reach, reachable
from tests.kernel.test_network_ipv6 import serve_on
from tests.support import leaks
from tests.support.cli import Cli
from tests.support.host import Neighbour, PrivateHost
from tests.support.waiting import wait_until

BACKENDS = pytest.mark.parametrize("backend", ["iptables", "nftables"])


@pytest.fixture
def networks(private_host: PrivateHost, cli: Cli) -> Iterator[None]:
    """front and back have IPv6, plain has none."""
    cli("network", "create", "--ipv6", "front")
    cli("network", "create", "--subnet", "10.20.30.0/24", "--subnet", "fd00:30::/64", "--gateway", "fd00:30::fe", "back")
    cli("network", "create", "plain")
    yield
    cli("network", "prune", "-f")


def address6(cli: Cli, name: str, network: str) -> str:
    return str(endpoints(cli, name)[network]["address6"])


def default_route6(cli: Cli, name: str) -> str:
    lines = [line for line in cli("exec", name, "ip", "-6", "route").stdout.splitlines() if line.startswith("default")]
    assert len(lines) <= 1
    return lines[0].split()[2] if lines else ""


def test_what_is_shown(cli: Cli, networks: None, outside: Neighbour) -> None:
    listed = {row["name"]: row for row in json.loads(cli("network", "ls", "--format", "json").stdout)}
    assert (listed["back"]["subnet6"], listed["back"]["gateway6"]) == ("fd00:30::/64", "fd00:30::fe")
    assert listed["plain"]["subnet6"] is None
    subnet6 = listed["front"]["subnet6"]
    assert subnet6.startswith("fd")
    table = cli("network", "ls").stdout
    assert "10.20.30.0/24,fd00:30::/64" in table
    assert "10.20.30.1,fd00:30::fe" in table
    with running(cli, "web", "--network", "front", "-p", "8080:80", "-p", f"[{outside.host_address6}]:8081:81/udp"):
        own = address6(cli, "web", "front")
        assert own == subnet6.removesuffix("/64") + "2"
        assert "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp" in cli("ps").stdout
        assert own not in cli("ps").stdout
        assert own in cli("ps", "--no-trunc").stdout
        (shown,) = json.loads(cli("ps", "--format", "json").stdout)
        assert (shown["ip6_address"], shown["networks6"]) == (own, {"front": own})
        assert own in cli("show", "web").stdout
        assert cli("port", "web", "81/udp").stdout == f"[{outside.host_address6}]:8081\n"
        assert f"{own}\t{inspect(cli, 'web')['id'][:12]}\n" in cli("exec", "web", "cat", "/etc/hosts").stdout
        (network,) = json.loads(cli("network", "inspect", "front").stdout)
        assert network["members"][0]["address6"] == own
        with running(cli, "client", "--network", "front"):
            names = cli("exec", "client", "nslookup", "web.front.netbox.internal").stdout
            assert f"Address: {own}\n" in names
            assert "web.front.netbox.internal" in cli("exec", "client", "nslookup", own).stdout
        with server(cli, "web", "tcp", 80), outside.inside():
            assert reachable("tcp", outside.host_address, 8080)
    refused = cli("network", "create", "--subnet", "fd00:30::/80", "x", check=125).stderr
    assert "the subnet fd00:30::/80 collides with network back (fd00:30::/64)" in refused


def test_a_static_address_is_kept_for_a_stopped_sandbox(cli: Cli, networks: None) -> None:
    fixed = ("--network", "name=back,ip6=fd00:30::5")
    cli("create", "--name", "web", *fixed, "busybox", "sleep", "100")
    try:
        taken = "the address fd00:30::5 is taken by sandbox web"
        assert taken in cli("create", *fixed, "busybox", "true", check=125).stderr
        cli("start", "web")
        assert address6(cli, "web", "back") == "fd00:30::5"
        assert taken in cli("run", "--rm", "--network", "back", "--ip6", "fd00:30::5", "busybox", "true", check=125).stderr
        cli("stop", "-t", "0", "web")
        assert taken in cli("run", "--rm", *fixed, "busybox", "true", check=125).stderr
        with running(cli, "other", "--network", "plain"):
            assert taken in cli("network", "connect", "--ip6", "fd00:30::5", "back", "other", check=125).stderr
            refused = cli("network", "connect", "--ip6", "fd00:31::5", "back", "other", check=125).stderr
            assert "is outside the network's subnet fd00:30::/64" in refused
    finally:
        cli("rm", "-f", "web")
    cli("run", "--rm", *fixed, "busybox", "true")


@BACKENDS
def test_connect_and_disconnect(cli: Cli, networks: None, outside: Neighbour, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    with running(cli, "web", "--network", "front", "-p", "8080:80"), server(cli, "web", "tcp", 80, "::"):
        first = default_route6(cli, "web")
        assert first == endpoints(cli, "web")["front"]["gateway6"]
        cli("network", "connect", "--ip6", "fd00:30::7", "back", "web")  # back comes before front
        assert default_route6(cli, "web") == "fd00:30::fe"
        with outside.inside():
            assert ask("tcp", outside.host_address6, 8080) == f"{outside.address6} 80"
        cli("network", "connect", "--gw-priority", "9", "plain", "web")  # which has no IPv6
        assert default_route6(cli, "web") == "fd00:30::fe"
        cli("network", "disconnect", "back", "web")
        assert default_route6(cli, "web") == first
        with outside.inside():
            assert ask("tcp", outside.host_address6, 8080) == f"{outside.address6} 80"
        cli("network", "disconnect", "front", "web")
        assert default_route6(cli, "web") == ""
        with outside.inside():
            assert ask("tcp", outside.host_address6, 8080) is None
        assert "✓ rules " in cli("check", check=None).stdout


def test_ipv6_that_comes_and_goes_while_a_sandbox_runs(cli: Cli, networks: None, outside: Neighbour) -> None:
    """A published port is there for IPv6 as soon as the sandbox has IPv6, and no longer."""
    with running(cli, "web", "--network", "plain", "-p", "8080-8081:80-81", "-p", "9090:81/udp"):
        with server(cli, "web", "tcp", 81, "::"), server(cli, "web", "udp", 81, "::"), server(cli, "web", "tcp", 81):
            with serve_on("::", 8081):
                refused = cli("network", "connect", "front", "web", check=125).stderr
                assert "port 8081/tcp is in use by" in refused
                assert list(endpoints(cli, "web")) == ["plain"]
            cli("network", "connect", "front", "web")
            assert "[::]:8080-8081->80-81/tcp" in cli("ps").stdout
            with outside.inside():
                assert ask("tcp", outside.host_address6, 8081) == f"{outside.address6} 81"
                assert ask("udp", outside.host_address6, 9090, source_port=6000) == f"{outside.address6} 81"
            assert is_held("::", 8080)
            assert "published by sandbox web" in cli("run", "--rm", "-p", "8080:80", "busybox", "true", check=125).stderr
            assert "✓ rules " in cli("check", check=None).stdout
            cli("network", "disconnect", "front", "web")
            assert "[::]" not in cli("ps").stdout
            with outside.inside():
                assert ask("tcp", outside.host_address6, 8081) is None
                assert ask("tcp", outside.host_address, 8081) == f"{outside.address} 81"
            assert not is_held("::", 8080)
            assert "✓ rules " in cli("check", check=None).stdout
        cli("network", "connect", "back", "web")
    assert not is_held("::", 8080)


DAMAGE = {"iptables": ["ip6tables-legacy -t nat -F", "ip6tables-legacy -F"], "nftables": ["nft delete table ip6 netbox"]}


@BACKENDS
def test_check_and_repair(cli: Cli, networks: None, outside: Neighbour, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    with running(cli, "web", "--network", "front", "-p", "8080:80"), server(cli, "web", "tcp", 80, "::"):
        before = leaks.firewall()
        for line in DAMAGE[backend]:
            subprocess.run(line.split(), check=True, timeout=60)
        with outside.inside():
            assert ask("tcp", outside.host_address6, 8080) is None
        assert "missing" in cli("check", check=None).stdout
        cli("repair")
        assert leaks.firewall() == before
        with outside.inside():
            assert ask("tcp", outside.host_address6, 8080) == f"{outside.address6} 80"
        assert "✓ rules " in cli("check", check=None).stdout


def test_exposure_of_both_families_is_proven(cli: Cli, networks: None, outside: Neighbour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_NOTICES", "0")
    ports = ("-p", "8080:80", "-p", f"[{outside.host_address6}]:8081:81")
    with (
        running(cli, "web", "--network", "front", *ports),
        running(cli, "peer", "--network", "front"),
        running(cli, "job", "--network", "back"),
    ):
        rows = json.loads(cli("exposure", "--format", "json", "web").stdout)["rows"]
        reached = [[cell["reachable"] for cell in row["from"].values()] for row in rows]
        assert reached == [[True, False, True, False]] * 2 + [[True] * 4] * 3

        def agree() -> bool:
            """Again while a bridge is just learning: a machine with much to do loses first packets."""
            rows = json.loads(cli("exposure", "--probe", "--format", "json", "web", check=None).stdout)["rows"]
            proofs = [cell["proofs"] for row in rows for cell in row["from"].values()]
            return all(proof and all(item["agrees"] for item in proof) for proof in proofs)

        wait_until(agree, "packets to agree", 30)


def test_another_backend_takes_both_families_over(cli: Cli, networks: None, outside: Neighbour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", "iptables")
    with running(cli, "web", "--network", "front", "-p", "8080:80"):
        for backend, family in (("nftables", "nft"), ("iptables", "ip6tables")):
            monkeypatch.setenv("NETBOX_FIREWALL", backend)
            cli("repair")
            assert {line.split()[0] for line in leaks.firewall() if re.search(r"\bfd[0-9a-f]{2}:", line)} == {family}


@BACKENDS
def test_the_network_can_be_built_by_hand(
    cli: Cli, networks: None, outside: Neighbour, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """The commands of a dry run, typed in a namespace of its own, give what a start gives."""
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    options = ("--name", "box", "--network", "back", "-p", "18080:80", "busybox")
    commands = sections(cli("run", "--dry-run", *options, "sleep", "100").stdout)["# network"]
    netns = next(shlex.split(command)[-1] for command in commands if command.startswith("ip netns add"))
    rules = "ip6tables-save" if backend == "iptables" else "nft -s list table ip6 netbox"
    show = ["ip -6 address", "ip -6 route show table local", f"ip -n {netns} -6 address", f"ip -n {netns} -6 route", rules]
    script = "\n".join(
        ["set -e", "mount -t tmpfs none /run", "ip link set lo up", "ip link add eth0 type bridge", *commands, "echo BUILT", *show]
    )
    by_hand = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert by_hand.returncode == 0, by_hand.stderr
    built = by_hand.stdout.partition("BUILT\n")[2]
    for line in ("inet6 fd00:30::fe/64", "inet6 fd00:30::2/64", "default via fd00:30::fe dev eth0", "local ::1 dev nb-"):
        assert line in built, built
    assert f"sandbox:{netns}" in built
    assert "fd00:30::2" in built
    with running(cli, "box", *options[2:-1]):
        command = ["ip6tables-legacy-save"] if backend == "iptables" else shlex.split(rules)
        stands = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        short_id = inspect(cli, "box")["id"][:12]
        for rule in stands.replace(short_id, netns).splitlines():
            if "comment" in rule and " owned" not in rule and '" . 0x' not in rule:
                assert rule.strip(" ,}") in built, rule


@BACKENDS
def test_a_peer_is_impaired_in_both_families(cli: Cli, networks: None, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    with running(cli, "a", "--network", "back"), running(cli, "b", "--network", "back"), server(cli, "b", "tcp", 80, "::"):
        own, other = address6(cli, "a", "back"), address6(cli, "b", "back")
        cli("impair", "a", "--to", "b", "--rate", "100mbit", "--direction", "out")
        with inside(cli, "a"):
            assert ask("tcp", other, 80) == f"{own} 80"
        for direction in ("in", "out"):
            cli("impair", "a", "--to", "b", "--loss", "100", "--direction", direction)
            with inside(cli, "a"):
                assert out_of_reach("tcp", other, 80)
            cli("impair", "a", "--off")
        with inside(cli, "a"):
            assert ask("tcp", other, 80) == f"{own} 80"
