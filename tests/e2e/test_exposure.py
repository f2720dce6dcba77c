"""What ``netbox exposure`` says, and that packets agree."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.e2e.boxes import inspect, running
from tests.kernel.network_lab import ask, serve
from tests.support import linux
from tests.support.cli import Cli
from tests.support.host import Neighbour
from tests.support.waiting import wait_until

BACKENDS = pytest.mark.parametrize("backend", ["iptables", "nftables"])
FROM = ("own network", "other networks", "this host", "LAN")
REFUSAL = 0.6


@contextlib.contextmanager
def place(source: str, sandboxes: dict[str, int], outside: Neighbour) -> Iterator[None]:
    """The calling thread where a connection comes from."""
    if source == "this host":
        yield
    elif source == "LAN":
        with outside.inside():
            yield
    else:
        with linux.network_of(sandboxes["peer" if source == "own network" else "stranger"]):
            yield


def by(row: dict[str, Any], source: str, outside: Neighbour) -> tuple[str, int]:
    """How the row's thing would be reached from there."""
    if row["port"] is None:
        return row["address"], 80
    if source == "this host" and row["port"]["host_ip"] == "0.0.0.0":
        return "127.0.0.1", row["port"]["host_port"]
    address = outside.host_address if row["port"]["host_ip"] == "0.0.0.0" else row["port"]["host_ip"]
    return address, row["port"]["host_port"]


def test_connections_agree(cli: Cli, outside: Neighbour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real ones, that the neighbour of the tests makes; probes look at packets."""
    backend = "nftables"
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    monkeypatch.setenv("NETBOX_NOTICES", "0")
    cli("network", "create", "front")
    outside.execute("ip", "route", "add", "10.0.0.0/8", "via", outside.host_address)
    published = ["8080:80", "127.0.0.1:8081:80", f"{outside.host_address}:8082:80", "9000-9002:80-82"]
    options = [word for text in published for word in ("-p", text)]
    with (
        running(cli, "web", "--network", "front", *options),
        running(cli, "peer", "--network", "front"),
        running(cli, "stranger"),
    ):
        pids = {name: inspect(cli, name)["pid"] for name in ("web", "peer", "stranger")}
        with linux.network_of(pids["web"]):
            server = serve("tcp", 80)
        try:
            report = json.loads(cli("exposure", "--format", "json", "web").stdout)
            assert report["backend"] == backend
            assert report["warnings"] == []
            assert len(report["rows"]) == 5
            for row in report["rows"]:
                assert list(row["from"]) == list(FROM)
                for source, cell in row["from"].items():
                    address, port = by(row, source, outside)
                    with place(source, pids, outside):
                        if cell["reachable"]:
                            # Sent again in case a bridge is just learning.
                            answer = wait_until(partial(ask, "tcp", address, port, 10.0), a_to(row, source))
                            assert answer is not None
                            seen_host = answer.split()[0] == gateway(row) and (source != "this host" or row["port"] is not None)
                            assert cell["client"] == ("host" if seen_host else "own"), a_to(row, source)
                        else:
                            assert ask("tcp", address, port, REFUSAL) is None, a_to(row, source)
                    assert cell["rules"]
                    assert all(rule["place"] or source == "this host" for rule in cell["rules"]), a_to(row, source)
        finally:
            server.close()
    cli("network", "rm", "front")


def a_to(row: dict[str, Any], source: str) -> str:
    return f"{source} to {row['port'] or row['address']}"


def gateway(row: dict[str, Any]) -> str:
    return str(row["address"].rpartition(".")[0] + ".1")


DAMAGE = {
    "iptables": ["iptables-legacy -D NETBOX-INGRESS 4", "iptables-legacy -t nat -D NETBOX-PUBLISH 1"],
    "nftables": ["nft flush map ip netbox port", "nft flush set ip netbox open_bridges"],
}


@BACKENDS
def test_what_is_missing_shows(cli: Cli, outside: Neighbour, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    with running(cli, "web", "-p", "0.0.0.0:8080:80"):
        before = cli("exposure").stdout
        for line in DAMAGE[backend]:
            subprocess.run(line.split(), check=True, timeout=60)
        found = json.loads(cli("exposure", "--format", "json").stdout)
        assert any("missing (sandbox:" in line for line in found["warnings"])
        assert any("missing (network:bridge)" in line for line in found["warnings"])
        address, port = found["rows"]
        assert address["from"]["LAN"]["reachable"]
        assert address["from"]["LAN"]["rules"] == [{"stage": "", "place": "", "owner": "", "text": "no rule stops it"}]
        assert not any(cell["reachable"] for cell in port["from"].values())
        cli("repair")
        assert cli("exposure").stdout == before


def test_the_table(cli: Cli, outside: Neighbour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", "iptables")
    cli("network", "create", "--internal", "inner")
    with (
        running(cli, "web", "-p", "0.0.0.0:8080:80", "-p", "127.0.0.1:53:53/udp"),
        running(cli, "job", "--network", "inner"),
        running(cli, "bare", "--network", "host"),
        running(cli, "lone", "--network", "none"),
    ):
        address = inspect(cli, "web")["network"]["endpoints"][0]["address"]
        shown = cli("exposure", "web").stdout
        table, rules = (part.splitlines() for part in shown.rstrip().split("\n\n"))
        assert table[0].startswith("SANDBOX   NETWORK   WHAT")
        assert [line.split()[0] for line in table] == ["SANDBOX", "web", "0.0.0.0:8080->80/tcp", "127.0.0.1:53->53/udp"]
        assert "only" not in shown
        columns = [cell.strip() for cell in table[1].split("   ") if cell.strip()]
        assert columns[:4] == ["web", "bridge", f"{address}, every port", "yes [1]"]
        assert rules[0].split() == ["RULE", "PLACE", "OWNER", "WHAT", "IT", "SAYS"]
        assert any("nat NETBOX-PUBLISH 1" in line and "sandbox:web" in line for line in rules)
        everything = cli("exposure").stdout
        assert "note: bare shares this host's network" in everything
        assert "note: lone has no network: nothing reaches it" in everything
        assert [line.split()[0] for line in everything.splitlines()[1:3]] == ["job", "web"]
    cli("create", "--name", "idle", "busybox", "true")
    assert "idle does not run: nothing reaches it" in cli("exposure", "idle", check=125).stderr
    assert "no such sandbox: nobody" in cli("exposure", "nobody", check=125).stderr
    assert cli("exposure").stdout.strip() == "nothing runs"
    cli("rm", "idle")
    cli("network", "rm", "inner")


def marks(text: str) -> list[str]:
    """The cells of the table's rows, without the numbers of the rules."""
    lines = text.split("\n\n")[0].splitlines()[1:]
    return [cell.partition(" [")[0].strip() for line in lines for cell in line.split("   ") if "[" in cell]


@BACKENDS
def test_probes_prove_it(cli: Cli, outside: Neighbour, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    monkeypatch.setenv("NETBOX_NOTICES", "0")
    cli("network", "create", "--internal", "inner")
    with (
        running(cli, "web", "-p", "8080:80", "-p", "127.0.0.1:5353:53/udp", "-p", "3868:3868/sctp"),
        running(cli, "peer"),
        running(cli, "job", "--network", "inner"),
    ):
        expected = [
            *("yes ✓", "no ✓", "yes ✓", "no ✓"),
            *("yes ✓", "no ✓", "yes ✓", "yes ✓"),
            *("no ✓", "no ✓", "yes ✓", "no ✓"),
            *("yes ✓", "no ✓", "yes ✓", "yes ✓"),
        ]
        # Again while a bridge is just learning: a machine with much to do loses first packets.
        wait_until(lambda: marks(cli("exposure", "--probe", "web", check=None).stdout) == expected, "packets to agree")
        # Somebody else's rule, which netbox's rules know nothing of.
        subprocess.run(["nft", "add table ip others"], check=True, timeout=60)
        try:
            for line in ("chain ip others in { type filter hook forward priority -10 ; }", "rule ip others in tcp dport 80 drop"):
                subprocess.run(["nft", f"add {line}"], check=True, timeout=60)
            if backend == "iptables":

                def probed() -> str:
                    """Again where a first packet was lost, as above."""
                    shown = cli("exposure", "--probe", check=1).stdout
                    return shown if [mark for mark in marks(shown) if "✗" in mark] == ["yes ✗", "yes ✗"] else ""

                shown = wait_until(probed, "the two ways that do not agree")
                assert marks(shown)[0] == "yes ·"  # nobody else is on the network of job
                line = "✗ from a neighbour on the LAN to web (0.0.0.0:8080->80/tcp): by the rules it gets through, but the packet"
                assert line in shown
                return
            document = json.loads(cli("exposure", "--probe", "--format", "json", "web", check=1).stdout)
            (proof,) = document["rows"][1]["from"]["LAN"]["proofs"]
            assert (proof["expected"], proof["arrived"], proof["agrees"], proof["state"]) == (True, False, False, "filtered")
        finally:
            subprocess.run(["nft", "delete table ip others"], check=True, timeout=60)
    cli("network", "rm", "inner")
