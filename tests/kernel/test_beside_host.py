"""netbox beside the host's own firewalls and servers: ufw, firewalld, scripts that flush, a program on port 53 of all addresses."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.engine.checks import beside
from netbox.engine.checks.catalogue import Observation
from netbox.settings import Settings
from tests.e2e.boxes import await_listener, running, sh
from tests.kernel.network_lab import ask
from tests.support import linux
from tests.support.cli import Cli
from tests.support.daemons import Firewalld
from tests.support.host import Neighbour, PrivateHost
from tests.support.others import foreign_rules, forget_rules
from tests.support.waiting import wait_until

PATIENCE = 60.0  # seconds
ANSWER = f"nc -w 20 {Neighbour.address} 7 </dev/null"
LOOKUP = "nslookup web.app.netbox.internal"
REFUSED = f"! nc -w 1 {Neighbour.address} 7 </dev/null"
PUBLISHED = "nc -ll -p 80 -e echo sandbox"


def run(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=100).stdout


def seen() -> dict[str, Observation]:
    """What netbox check sees of others."""
    return beside.observe(Settings.from_environment())


def states(*keys: str) -> set[str]:
    return {seen()[f"firewall.{key}"].state for key in keys}


@pytest.fixture
def network(private_host: PrivateHost, cli: Cli) -> Iterator[str]:
    """A user-defined network; its bridge is what it returns."""
    cli("network", "create", "--subnet", "10.77.9.0/24", "app")
    yield "nb-c96e70cf"
    cli("network", "rm", "app")


# -- a program on port 53 of all addresses -------------------------------------------------------------------------------------------------


class Hog:
    """A name server of the host that listens on all addresses, by UDP and TCP, and says the same to everybody."""

    def __init__(self) -> None:
        self._datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagram.bind(("0.0.0.0", 53))
        self._stream = socket.create_server(("0.0.0.0", 53))
        self._datagram.settimeout(0.05)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError):  # nobody asks, or who asked is out of reach
                _, peer = self._datagram.recvfrom(512)
                self._datagram.sendto(b"host", peer)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._datagram.close()
        self._stream.close()


@pytest.fixture
def hog(private_host: PrivateHost) -> Iterator[Hog]:
    made = Hog()
    yield made
    made.close()


QUESTION = r"\0\051\22\22\1\0\0\1\0\0\0\0\0\0\3web\3app\6netbox\10internal\0\0\1\0\1"
BY_TCP = f"printf '{QUESTION}' | nc -w 20 10.77.9.1 53 | od -An -tx1"


def test_names_are_served_beside_a_server_of_the_host(cli: Cli, hog: Hog, backend: str, network: str) -> None:
    with running(cli, "web", "--network", "app", "--ip", "10.77.9.80"):
        for _ in range(2):
            assert "Address: 10.77.9.80" in sh(cli, LOOKUP, "--network", "app")
            assert "0a 4d 09 50" in " ".join(cli("exec", "web", "sh", "-c", BY_TCP).stdout.split())
            assert ask("udp", "127.0.0.1", 53) == "host"
            assert seen()["host.names"].state == "ok"
            # Once more after a flush and a repair.
            forget_rules()
            assert "put back (network:app)" in cli("repair").stdout
            assert cli("repair").stdout == "nothing to repair\n"


def test_a_published_port_53_is_not_for_the_sandboxes(cli: Cli, backend: str, network: str) -> None:
    """The one who publishes it has it on all addresses; the gateway's is the name service's all the same."""
    command = ("sh", "-c", "while :; do echo dns | nc -u -l -p 53 -w 20; done")
    with running(cli, "dns", "-p", "53:53/udp", command=command), running(cli, "web", "--network", "app", "--ip", "10.77.9.80"):
        assert "Address: 10.77.9.80" in sh(cli, LOOKUP, "--network", "app")
        assert cli("repair").stdout == "nothing to repair\n"


def test_check_says_who_serves_names(cli: Cli, network: str) -> None:
    assert seen()["host.names"] == Observation("ok", "not needed: no user-defined network is up")
    with running(cli, "web", "--network", "app"):
        standing = re.fullmatch(r"serves app: server (\d+), standby (\d+)", seen()["host.names"].detail)
        assert standing is not None
        server, standby = standing.groups()
        run("kill", "-STOP", standby)  # else it takes the server's place before its own end comes
        run("kill", "-9", server, standby)
        wait_until(lambda: seen()["host.names"] == Observation("missing", "nobody serves app"), "the name service to be gone", PATIENCE)
        fact = next(item for item in json.loads(cli("check", "--format", "json").stdout)["facts"] if item["name"] == "name service")
        assert (fact["state"], fact["remedy"]) == ("missing", "put it back: netbox repair")
        assert cli("repair").stdout == "put back (names): the process that serves them\n"
        assert seen()["host.names"].state == "ok"


# -- hosts that drop what comes in or is forwarded -----------------------------------------------------------------------------------------


def test_names_get_through_a_legacy_firewall_that_drops_what_comes_in(cli: Cli, network: str) -> None:
    run("iptables-legacy", "-P", "INPUT", "DROP")
    run("iptables-legacy", "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
    with running(cli, "web", "--network", "app", "--ip", "10.77.9.80"):
        assert "Address: 10.77.9.80" in sh(cli, LOOKUP, "--network", "app")
        assert states("names") == {"ok"}
    wait_until(lambda: not any("NETBOX" in line for line in foreign_rules("legacy")), "netbox's chains to go", PATIENCE)
    forget_rules()


@pytest.fixture
def ufw(private_host: PrivateHost) -> Iterator[None]:
    """A real ufw whose configuration is the private host's own."""
    copy = private_host.base / "ufw"
    shutil.copytree("/etc/ufw", copy)
    shutil.copy("/etc/default/ufw", private_host.base / "ufw.default")
    linux.mount(str(copy), "/etc/ufw", flags=linux.MS_BIND)
    linux.mount(str(private_host.base / "ufw.default"), "/etc/default/ufw", flags=linux.MS_BIND)
    yield
    forget_rules()
    for path in ("/etc/ufw", "/etc/default/ufw"):
        run("umount", path)
    shutil.rmtree(copy)
    Path(private_host.base, "ufw.default").unlink()


def test_ufw(cli: Cli, ufw: None, server: Neighbour, network: str) -> None:
    """ufw comes last; check says what to tell it, and that is enough, also after a reload."""
    with running(cli, "web", "--network", "app", "--ip", "10.77.9.80", "-p", "8080:80", command=("sh", "-c", PUBLISHED)):
        await_listener(cli, "web", 80)
        assert cli("exec", "web", "sh", "-c", ANSWER).stdout.startswith(server.host_address)
        run("ufw", "--force", "enable")
        assert sh(cli, REFUSED, "--network", "app") == ""
        forward, names = seen()["firewall.forward"], seen()["firewall.names"]
        assert forward.remedy == f"ufw route allow in on {network}; ufw route allow out on {network}"
        assert "ip filter FORWARD of ufw drops" in forward.detail
        assert names.remedy == f"ufw allow in on {network} to any port 53"
        assert "ip filter INPUT of ufw drops" in names.detail
        for remedy in (forward.remedy, names.remedy):
            for command in remedy.split("; "):
                run(*command.split())
        before = foreign_rules("nft")
        run("ufw", "reload")
        assert foreign_rules("nft") == before
        assert cli("exec", "web", "sh", "-c", ANSWER).stdout.startswith(server.host_address)
        assert "Address: 10.77.9.80" in sh(cli, LOOKUP, "--network", "app")
        with server.inside():
            assert ask("tcp", server.host_address, 8080, PATIENCE) == "sandbox\n"
        assert states("forward", "names") == {"ok"}
        assert cli("repair").stdout == "nothing to repair\n"
    wait_until(lambda: foreign_rules("nft") == before, "the rules of ufw as before", PATIENCE)


def test_what_drops_ipv6_alone(cli: Cli, private_host: PrivateHost, outside: Neighbour) -> None:
    """Only networks with IPv6 have to do with what stands in ip6tables."""
    cli("network", "create", "--subnet", "10.77.9.0/24", "app")
    cli("network", "create", "--ipv6", "both")
    with running(cli, "web", "--network", "app"):
        for line in ("-N ufw6-user-forward", "-A FORWARD -j ufw6-user-forward", "-P FORWARD DROP"):
            run("ip6tables-nft", *line.split())
        assert seen()["firewall.forward"] == Observation("ok")
        with running(cli, "six", "--network", "both"):
            found = seen()["firewall.forward"]
            bridge = found.remedy.split()[-1]
            assert found.detail == f"ip6 filter FORWARD of ufw drops what {bridge} sends and gets"
            assert found.remedy == f"ufw route allow in on {bridge}; ufw route allow out on {bridge}"
            assert "ip6 filter FORWARD" in cli("exposure", "six").stderr + cli("exposure", "six").stdout
            run("ip6tables-nft", "-A", "ufw6-user-forward", "-i", bridge, "-j", "ACCEPT")
            assert seen()["firewall.forward"] == Observation("ok")
    run("nft", "delete table ip6 filter")
    cli("network", "prune", "-f")


# -- firewalld -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["iptables", "nftables"])
def firewalld(request: pytest.FixtureRequest, private_host: PrivateHost) -> Iterator[Firewalld]:
    """Not started yet; with each of its own backends."""
    made = Firewalld(private_host, request.param)
    yield made
    made.close()


def ruleset() -> str:
    """All rules in nf_tables, without counters."""
    return run("nft", "-s", "list", "ruleset")


def is_published(server: Neighbour) -> None:
    """The neighbour and this host reach the sandbox's port."""

    def answers() -> bool:
        with server.inside():
            from_lan = ask("tcp", server.host_address, 8080)
        return {from_lan, ask("tcp", "127.0.0.1", 8080)} == {"sandbox\n"}

    wait_until(answers, "the published port", PATIENCE)


def works(cli: Cli, server: Neighbour) -> None:
    """The sandbox reaches the neighbour and asks for names, its port is reached; check finds nothing in the way."""
    said = cli("exec", "web", "sh", "-c", f"{ANSWER}; {LOOKUP}").stdout
    assert said.startswith(server.host_address)
    assert "Address: 10.77.9.80" in said
    is_published(server)
    assert states("forward", "names") == {"ok"}


WEB = ("--network", "app", "--ip", "10.77.9.80", "-p", "8080:80")


def test_firewalld_last(cli: Cli, firewalld: Firewalld, server: Neighbour, network: str) -> None:
    """Published ports pass at once; the zone trusted is what lets the rest pass, and check says so. It reloads, starts again, and ends."""
    with running(cli, "web", *WEB, command=("sh", "-c", PUBLISHED)):
        firewalld.start()
        is_published(server)
        assert cli("exec", "web", "sh", "-c", REFUSED).stdout == ""
        forward, names = seen()["firewall.forward"], seen()["firewall.names"]
        command = f"firewall-cmd --permanent --zone=trusted --add-interface={network}; firewall-cmd --reload"
        assert forward.remedy == names.remedy == command
        assert "FORWARD of firewalld drops" in forward.detail
        for line in command.split("; "):
            run(*line.split())
        works(cli, server)
        firewalld.stop()
        works(cli, server)
        firewalld.start()
        works(cli, server)
        assert cli("repair").stdout == "nothing to repair\n"


@pytest.mark.parametrize("firewalld", ["nftables"], indirect=True)
def test_firewalld_first(cli: Cli, firewalld: Firewalld, server: Neighbour, network: str) -> None:
    """Told of the bridges before they are there: its zone lets all pass, what netbox forbids stays forbidden, its rules stay its own."""
    firewalld.start()
    assert seen()["firewall.forward"].remedy.startswith("firewall-cmd --permanent --zone=trusted --add-interface=netbox0; ")
    for bridge in ("netbox0", network):
        run("firewall-cmd", "--permanent", "--zone=trusted", f"--add-interface={bridge}")
    run("firewall-cmd", "--reload")
    before = ruleset()
    with running(cli, "web", *WEB, command=("sh", "-c", f"nc -ll -p 81 -e echo hidden & {PUBLISHED}")), running(cli, "other"):
        works(cli, server)
        assert cli("exec", "other", "sh", "-c", ANSWER).stdout.startswith(server.host_address)
        wait_until(lambda: ask("tcp", "10.77.9.80", 81) == "hidden\n", "port 81, which this host reaches", PATIENCE)
        assert cli("exec", "other", "sh", "-c", "! nc -w 1 10.77.9.80 81 </dev/null").stdout == ""
        server.execute("ip", "route", "add", "10.77.9.0/24", "via", server.host_address)
        with server.inside():
            assert ask("tcp", "10.77.9.80", 81, 0.6) is None
        run("firewall-cmd", "--reload")
        works(cli, server)
    wait_until(lambda: ruleset() == before, "the rules of firewalld as before", PATIENCE)


@pytest.mark.parametrize("firewalld", ["iptables"], indirect=True)
def test_firewalld_in_the_legacy_tables(cli: Cli, firewalld: Firewalld, server: Neighbour, network: str) -> None:
    """Where ``iptables`` is the legacy one, firewalld empties all tables; once netbox is back in front of it, no zone has to be told."""
    linux.mount("/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi", flags=linux.MS_BIND)
    with running(cli, "web", *WEB, command=("sh", "-c", PUBLISHED)):
        firewalld.start()
        assert not any("NETBOX-" in line for line in foreign_rules("legacy"))
        assert "put back (network:app)" in cli("repair").stdout
        works(cli, server)
        before = foreign_rules("legacy")
        run("firewall-cmd", "--reload")
        assert "put back (network:app)" in cli("repair").stdout
        assert foreign_rules("legacy") == before
    firewalld.stop()
    linux.umount("/usr/sbin/xtables-nft-multi")
