"""netbox beside a real dockerd and a real podman, whichever comes first: both reach the outside, both publish ports."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator

import pytest

from netbox.network import docker_user
from tests.bench import subjects
from tests.bench.processes import Failed
from tests.e2e.boxes import await_listener, running
from tests.kernel.network_lab import ask
from tests.support.cli import Cli
from tests.support.host import Neighbour, PrivateHost
from tests.support.others import Others, foreign_rules, forget_rules
from tests.support.waiting import wait_until

PATIENCE = 90.0  # seconds
ANSWER = f"nc -w 20 {Neighbour.address} 7 </dev/null"
SERVER = "nc -ll -p 80 -e echo {}"


@pytest.fixture
def docker(private_host: PrivateHost) -> Iterator[Others]:
    others = Others(private_host, subjects.Docker)
    yield others
    others.close()


def says(outside: Neighbour, port: int, text: str) -> None:
    """A published port answers a neighbour."""

    def answer() -> bool:
        with outside.inside():
            return text in (ask("tcp", outside.host_address, port) or "")

    wait_until(answer, f"{text} at port {port}", PATIENCE)


def address_of(docker: Others, name: str) -> str:
    return docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name).strip()


def container(docker: Others) -> None:
    """A container that is published at 9090, and has another port that is not published."""
    script = f"nc -ll -p 81 -e echo hidden & {SERVER.format('container')}"
    docker("run", "-d", "--name", "box", "--stop-timeout", "0", "-p", "9090:80", docker.subject.image, "sh", "-c", script)


@contextlib.contextmanager
def sandbox(cli: Cli, *options: str) -> Iterator[None]:
    """A sandbox that is published at 8080, inside the block."""
    script = f"nc -ll -p 81 -e echo hidden & {SERVER.format('sandbox')}"
    with running(cli, "web", "-p", "8080:80", *options, command=("sh", "-c", script)):
        await_listener(cli, "web", 80)
        yield


def both_work(cli: Cli, docker: Others, outside: Neighbour) -> None:
    """Each reaches the neighbour, and its published port answers the neighbour."""
    assert cli("exec", "web", "sh", "-c", ANSWER).stdout.startswith(outside.host_address)
    assert docker("exec", "box", "sh", "-c", ANSWER).startswith(outside.host_address)
    says(outside, 8080, "sandbox")
    says(outside, 9090, "container")


def iptables(*arguments: str) -> None:
    subprocess.run(["iptables-nft", *arguments], check=True, timeout=20)


def accepts(network: str) -> list[str]:
    """The rules of a network of netbox's in dockerd's chain, once all of them are there."""
    lines = [line.partition("-A ")[2] for line in foreign_rules("nft") if f'"network:{network}"' in line]
    return lines if len(lines) == len(docker_user.accepts("", "")) else []


def fact(cli: Cli, name: str) -> dict[str, str]:
    facts = json.loads(cli("check", "--format", "json", check=None).stdout)["facts"]
    return dict(next(item for item in facts if item["name"] == name))


def test_dockerd_first(docker: Others, server: Neighbour, cli: Cli) -> None:
    """It starts again and reloads while a sandbox runs; in the end its rules are as they were."""
    docker.start()
    before = foreign_rules()
    assert any(":FORWARD DROP" in line for line in before)
    container(docker)
    assert "iptables-nft -I DOCKER-USER -o netbox0 " in cli("run", "--dry-run", "busybox", "true").stdout
    with sandbox(cli):
        both_work(cli, docker, server)
        # What is not published is there, and out of reach from one to the other.
        own = json.loads(cli("inspect", "web").stdout)[0]["network"]["endpoints"][0]["address"]
        for address in (own, address_of(docker, "box")):
            wait_until(lambda address=address: ask("tcp", address, 81) == "hidden\n", f"port 81 of {address}", PATIENCE)  # type: ignore[misc]
        assert cli("exec", "web", "nc", "-w", "1", address_of(docker, "box"), "81", check=None).returncode != 0
        with pytest.raises(Failed):
            docker("exec", "box", "nc", "-w", "1", own, "81")
        docker.clear()
        docker.stop()
        docker.start()
        container(docker)
        both_work(cli, docker, server)
        docker.reload()
        both_work(cli, docker, server)
        assert cli("repair").stdout == "nothing to repair\n"
        docker.clear()
    wait_until(lambda: foreign_rules() == before, "the rules as before", PATIENCE)


def test_netbox_first(docker: Others, server: Neighbour, cli: Cli) -> None:
    """The first sandbox stands in the legacy tables; once dockerd's rules are in nf_tables, the next start moves everything there."""
    with sandbox(cli):
        docker.start()
        container(docker)
        both_work(cli, docker, server)
        before = foreign_rules("nft")
        with running(cli, "second"):
            both_work(cli, docker, server)
            assert any("NETBOX-" in line for line in foreign_rules()) is False
            assert cli("repair").stdout == "nothing to repair\n"
    wait_until(lambda: foreign_rules("nft") == before, "the rules as before", PATIENCE)


def test_a_policy_of_dockerd_that_comes_later(docker: Others, server: Neighbour, cli: Cli) -> None:
    """dockerd drops what is forwarded only if it was the one that turned forwarding on: internal networks of netbox do not. Without any
    command of netbox's they pass again; whoever takes that away is seen, and repaired.
    """
    cli("network", "create", "--internal", "inner")
    with running(cli, "db", "--network", "inner", command=("sh", "-c", SERVER.format("db"))), running(cli, "app", "--network", "inner"):
        await_listener(cli, "db", 80)
        assert cli("exec", "app", "nc", "-w", "20", "db", "80").stdout == "db\n"
        docker.start()
        assert any(":FORWARD DROP" in line for line in foreign_rules("nft"))
        rules = wait_until(lambda: accepts("inner"), "the accepts of the network", PATIENCE)
        assert cli("exec", "app", "nc", "-w", "20", "db", "80").stdout == "db\n"
        assert cli("repair").stdout == "nothing to repair\n"
        for rule in rules:
            iptables("-D", *shlex.split(rule))
        assert cli("exec", "app", "nc", "-w", "1", "db", "80", check=None).returncode != 0
        policy = fact(cli, "forward policy")
        assert (policy["state"], policy["remedy"]) == ("limited", "netbox repair")
        assert "ip filter FORWARD of dockerd drops" in policy["detail"]
        assert "missing (network:inner): iptables-nft -I DOCKER-USER" in fact(cli, "rules")["detail"]
        before = foreign_rules("nft")
        assert "put back (network:inner): iptables-nft -I DOCKER-USER" in cli("repair").stdout
        assert cli("repair").stdout == "nothing to repair\n"
        assert fact(cli, "forward policy")["state"] == fact(cli, "rules")["state"] == "ok"
        assert cli("exec", "app", "nc", "-w", "20", "db", "80").stdout == "db\n"
        iptables("-D", "DOCKER-USER", "1")
        iptables("-A", "DOCKER-USER", "-i", "other0", "-m", "comment", "--comment", "network:inner", "-j", "ACCEPT")
        assert {line.split()[0] for line in cli("repair").stdout.splitlines()} == {"put", "took"}
        assert cli("exec", "app", "nc", "-w", "20", "db", "80").stdout == "db\n"
    wait_until(lambda: foreign_rules("nft") == before, "the rules as before", PATIENCE)
    cli("network", "rm", "inner")


def test_the_standby_follows_dockerd_too(private_host: PrivateHost, cli: Cli) -> None:
    """The name service hears of dockerd's chain; when it is killed, the process that takes over does. Here nobody but the test makes it."""
    cli("network", "create", "--internal", "inner")
    with running(cli, "db", "--network", "inner"):
        serving = re.fullmatch(r"serves inner: server (\d+), standby (\d+)", fact(cli, "name service")["detail"])
        assert serving is not None
        server, standby = map(int, serving.groups())
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: f"server {standby}, standby" in fact(cli, "name service")["detail"], "the standby to take over", PATIENCE)
        iptables("-N", "DOCKER-USER")
        iptables("-A", "FORWARD", "-j", "DOCKER-USER")
        wait_until(lambda: accepts("inner"), "the accepts of the network", PATIENCE)
        assert cli("repair").stdout == "nothing to repair\n"
    cli("network", "rm", "inner")
    forget_rules()


@pytest.fixture
def podman(private_host: PrivateHost) -> Iterator[Others]:
    others = Others(private_host, subjects.Podman)
    yield others
    others.close()


def test_podman(podman: Others, server: Neighbour, cli: Cli) -> None:
    """podman adds its rules with its first container, here between two sandboxes of netbox; they move to nf_tables with the second."""
    podman.start()
    podman("rm", "-f", "-a")
    with sandbox(cli):
        container(podman)
        both_work(cli, podman, server)
        with running(cli, "second"):
            both_work(cli, podman, server)
            assert cli("repair").stdout == "nothing to repair\n"
        podman.clear()
        container(podman)
        before = foreign_rules("nft")
        both_work(cli, podman, server)
    wait_until(lambda: foreign_rules() == before, "the rules as before, and none in the legacy tables", PATIENCE)
    says(server, 9090, "container")
