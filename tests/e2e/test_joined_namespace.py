"""``--network ns:PATH``: a sandbox in a network namespace of ip-netns(8)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.boxes import inspect, running, server, sh
from tests.kernel.network_lab import ask
from tests.support import linux
from tests.support.cli import Cli
from tests.support.host import PrivateHost

PATH = "/run/netns/lab"


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[str]:
    """A namespace with the address 192.0.2.2, connected to the host's 192.0.2.1."""
    for command in (
        "ip netns add lab",
        "ip link add lab0 type veth peer name eth7 netns lab",
        "ip address add 192.0.2.1/24 dev lab0",
        "ip link set lab0 up",
        "ip -n lab address add 192.0.2.2/24 dev eth7",
        "ip -n lab link set eth7 up",
        "ip -n lab link set lo up",
    ):
        subprocess.run(command.split(), check=True, timeout=60)
    yield f"ns:{PATH}"
    subprocess.run(["ip", "link", "del", "lab0"], check=False, timeout=60)  # a test may have let the namespace go, and the link with it
    subprocess.run(["ip", "netns", "del", "lab"], check=True, timeout=60)
    linux.umount("/run/netns")
    os.rmdir("/run/netns")


def test_a_sandbox_joins_it(cli: Cli, lab: str) -> None:
    with running(cli, "web", "--network", lab):
        with server(cli, "web", "tcp", 8000):
            assert ask("tcp", "192.0.2.2", 8000) == "192.0.2.1 8000"
        assert "eth7" in cli("exec", "web", "ip", "-o", "addr").stdout
        document = inspect(cli, "web")
        assert document["network"]["mode"] == "ns"
        assert document["network"]["namespace_path"] == PATH
        assert f"network     {lab}" in cli("show", "web").stdout
        assert "only a sandbox with --network bridge has one" in cli("impair", "web", "--loss", "1%", check=125).stderr
        cli("restart", "-t", "0", "web")
        assert "eth7" in cli("exec", "web", "ip", "-o", "addr").stdout
    assert "eth7" in subprocess.run(["ip", "-n", "lab", "link"], capture_output=True, text=True, check=True, timeout=60).stdout


def test_its_files_are_the_hosts(cli: Cli, lab: str) -> None:
    assert sh(cli, "cat /etc/hosts; hostname", "--network", lab) == Path("/etc/hosts").read_text() + os.uname().nodename + "\n"
    assert "10.9.8.7\tdb\n" in sh(cli, "cat /etc/hosts", "--network", lab, "--add-host", "db:10.9.8.7")


def test_with_a_user_namespace(cli: Cli, lab: str) -> None:
    assert "192.0.2.2/24" in sh(cli, "ip -o addr", "--network", lab, "--userns", "auto")


def test_another_sandbox_joins_along(cli: Cli, lab: str) -> None:
    with running(cli, "web", "--network", lab):
        assert "192.0.2.2/24" in sh(cli, "ip -o addr", "--network", "container:web")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "ns:/run/netns/nope"], "cannot join /run/netns/nope: it does not exist; 'ip netns add nope' makes a namespace"),
        (
            ["--network", "ns:/etc/hosts"],
            "cannot join /etc/hosts: it is not a network namespace; 'ip netns list' lists those in /run/netns",
        ),
        (["--network", "ns:/proc/self/ns/uts"], "cannot join /proc/self/ns/uts: it is not a network namespace"),
        (["--network", "ns:/proc/self/ns/net"], "it is this machine's own network; use --network host"),
        (["--network", "ns:lab"], "'lab' is not an absolute path; write it as ns:/run/netns/NAME"),
        (["--network", f"ns:{PATH}", "-p", "80:80"], f"publish cannot be used with network ns:{PATH}"),
        (["--network", f"ns:{PATH}", "--ip", "192.0.2.9"], f"ip cannot be used with network ns:{PATH}"),
        (["--network", f"ns:{PATH}", "--add-host", "gw:host-gateway"], "write an address"),
    ],
)
def test_what_is_refused(cli: Cli, private_host: PrivateHost, options: list[str], message: str) -> None:
    result = cli("run", "--rm", *options, "busybox", "true", check=125)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert cli("ps", "-aq").stdout == ""


def test_a_namespace_that_went_away(cli: Cli, lab: str) -> None:
    cli("create", "--name", "web", "--network", lab, "busybox", "true")
    try:
        linux.umount(PATH)  # what is left is an empty file
        assert f"cannot join {PATH}: it is not a network namespace" in cli("start", "web", check=125).stderr
        assert [row["scope"] for row in inspect(cli, "web")["journal"] if row["scope"] == "run"] == []
    finally:
        cli("rm", "web")
