"""``netbox trace``, ``trace --watch`` and ``netbox drops`` against the kernel: the hops, the rules, the reasons; nothing stays behind."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import secrets
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.engine import Engine
from netbox.kernel import syscalls
from netbox.packet import probe, trace
from netbox.packet.probing.values import ProbeRequest
from netbox.packet.tracing import values
from netbox.packet.tracing.values import Hop, Owner, Trace
from tests.e2e.boxes import running
from tests.support.cli import Cli
from tests.support.host import Neighbour
from tests.support.waiting import wait_until

HTTPD = ("httpd", "-f", "-p", "80")
PATIENCE = 60.0  # seconds
CALLED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")  # without br_netfilter no rule is asked about what a bridge switches
_BPF, _NEXT_ID = {"x86_64": 321, "aarch64": 280}[os.uname().machine], 11
BACKENDS = pytest.mark.parametrize("backend", ["iptables", "nftables"])


@pytest.fixture
def networks(cli: Cli) -> Iterator[None]:
    """The networks front and back, with addresses of their own: the kernel tells about the packets of every test that runs just now."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    second, third = 100 + 10 * (worker % 10) + secrets.randbelow(10), secrets.randbelow(250)
    for number, name in enumerate(("front", "back")):
        cli("network", "create", "--subnet", f"10.{second}.{third + number}.0/24", name)
    yield
    for name in ("front", "back"):
        cli("network", "rm", name)


def _serves(cli: Cli, name: str, port: int = 80) -> None:
    """Returns when something listens inside."""
    line = re.compile(rf":{port:04X} \S+ 0A")
    wait_until(lambda: line.search(cli("exec", name, "cat", "/proc/net/tcp", "/proc/net/tcp6", check=None).stdout), "a listener", PATIENCE)


def _path(found: Trace, direction: str = values.REQUEST) -> list[str]:
    """The namespaces in the order of the hops."""
    names = [hop.netns for hop in found.hops if hop.direction == direction]
    return [name for place, name in enumerate(names) if not place or names[place - 1] != name]


def _hop(found: Trace, kind: str, direction: str = values.REQUEST) -> Hop:
    return next(hop for hop in found.hops if (hop.kind, hop.direction) == (kind, direction))


def test_two_sandboxes_of_a_network(cli: Cli, networks: None) -> None:
    with running(cli, "web", "--network", "front", command=HTTPD), running(cli, "client", "--network", "front"):
        _serves(cli, "web")
        document = json.loads(cli("trace", "client", "web:80", "--timeout", "60", "--format", "json").stdout)
        text = cli("trace", "client", "web:81", "--timeout", "60", check=1).stdout
    assert (document["outcome"], document["reachable"], document["tracer"], document["notes"]) == ("delivered", True, "bpf", [])
    hops = document["hops"]
    request = [hop for hop in hops if hop["direction"] == "request"]
    assert list(dict.fromkeys(hop["netns"] for hop in request)) == ["client", "host", "web"]
    assert [hop["kind"] for hop in request if hop["kind"] != "rule"] == (
        ["sent", "route", "device", "device", "bridge", "device", "device", "route", "socket"]
    )
    accepted = [hop["rule"] for hop in request if hop["kind"] == "rule" and hop["rule"]["verdict"] == "accept" and hop["rule"]["position"]]
    assert [rule["owner"] for rule in accepted] == [{"kind": "network", "name": "front"}] * CALLED.exists()
    times = [hop["time"] for hop in hops]
    assert times == sorted(times)
    assert times[0] == 0
    reply = [hop for hop in hops if hop["direction"] == "reply"]
    assert reply[0]["flow"]["detail"] == "SYN,ACK"
    assert (reply[-1]["netns"], reply[-1]["text"]) == ("client", "the answer has arrived")
    assert "DROPPED: NO_SOCKET in tcp_v4_rcv — no socket listens there" in text
    assert text.splitlines()[0].startswith("client → web (")
    assert text.splitlines()[-1] == "dropped on web: no socket listens there (NO_SOCKET in tcp_v4_rcv); answer: closed: RST"


@BACKENDS
def test_another_network_and_a_published_port(
    cli: Cli, networks: None, outside: Neighbour, engine: Engine, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    with (
        running(cli, "client", "--network", "front"),
        running(cli, "db", "--network", "back", "-p", "5432:80", command=HTTPD),
    ):
        _serves(cli, "db")
        isolated = trace(engine, "client", "db:80", ProbeRequest("tcp", 80, timeout=0.2), patience=PATIENCE)
        rules_only = trace(engine, "client", "db:80", ProbeRequest("tcp", 80, timeout=0.2), tracer="none", patience=PATIENCE)
        local = trace(engine, "host", "db:5432", ProbeRequest("tcp", 5432, timeout=60))
        remote = trace(engine, "lan", "db:5432", ProbeRequest("tcp", 5432, timeout=60))
    assert (isolated.outcome, isolated.reachable) == ("dropped", False)
    assert _path(isolated) == ["client", "host"]
    assert isolated.drop is not None
    assert (isolated.drop.reason, isolated.drop.function) == (
        "NETFILTER_DROP",
        {"iptables": "nf_hook_slow", "nftables": "nft_do_chain"}[backend],
    )
    assert isolated.rule is not None
    assert (isolated.rule.backend, isolated.rule.verdict, isolated.rule.owner) == (backend, "drop", Owner("network", "back"))
    assert isolated.rule.place == {"iptables": "filter NETBOX-INGRESS rule 8", "nftables": "ip netbox ingress rule 4"}[backend]
    last = [hop for hop in rules_only.hops if hop.rule][-1]
    assert (rules_only.tracer, last.rule and last.rule.verdict, last.rule and last.rule.owner) == ("none", "drop", Owner("network", "back"))
    for found, own in ((local, "host"), (remote, "lan")):
        assert (found.outcome, found.reachable) == ("delivered", True), found
        assert _path(found) == list(dict.fromkeys([own, "host", "db"])), "\n".join(map(str, found.hops))
        nat = _hop(found, values.NAT)
        assert nat.before is not None
        assert nat.flow is not None
        assert (nat.before.destination_port, nat.flow.destination_port) == (5432, 80)
        assert nat.rule is not None
        assert (nat.rule.verdict, nat.rule.owner) == ("dnat", Owner("sandbox", "db"))
        back = [hop for hop in found.hops if hop.kind == values.NAT and hop.direction == values.REPLY][-1]
        assert back.flow is not None
        assert back.flow.source_port == 5432
    masquerade = [hop for hop in local.hops if hop.kind == values.NAT and hop.rule and hop.rule.verdict == "masquerade"]
    assert [hop.rule.owner for hop in masquerade if hop.rule] == [Owner("network", "back")]


def _end(found: Trace) -> tuple[str, str, str]:
    """How the request ended, where, and the kernel's reason."""
    assert found.drop is not None, found
    return found.outcome, found.drop.netns, found.drop.reason


def test_reasons_of_the_kernel(cli: Cli, networks: None, engine: Engine) -> None:
    with running(cli, "web", "--network", "front"), running(cli, "client", "--network", "front"), running(cli, "db", "--network", "back"):
        bridge = engine.get("client").network_plan["endpoints"][0]["bridge"]
        other = engine.get("db").ip_address
        assert other is not None
        quick = ProbeRequest("icmp", timeout=0.2)
        datagram = trace(engine, "client", "web:9", ProbeRequest("udp", 9, timeout=60))
        expired = trace(engine, "client", other, ProbeRequest("icmp", ttl=1, timeout=60))
        nowhere = trace(engine, "client", "203.0.113.9", ProbeRequest("icmp", timeout=60))
        unsent = trace(engine, "host", "203.0.113.9", quick)
        Path(f"/proc/sys/net/ipv4/conf/{bridge}/rp_filter").write_text("1")
        forged = trace(engine, "client", other, ProbeRequest("icmp", source="198.51.100.77", timeout=0.2), patience=PATIENCE)
    seen = [_end(found) for found in (datagram, expired, nowhere, forged)]
    assert seen == [
        ("dropped", "web", "NO_SOCKET"),
        ("dropped", "host", "IP_INHDR"),
        ("dropped", "host", "IP_INNOROUTES"),
        ("dropped", "host", "IP_RPFILTER"),
    ]
    for found, detail in ((datagram, "port unreachable"), (expired, "time exceeded"), (nowhere, "network unreachable")):
        answer = _hop(found, values.SENT, values.REPLY)
        assert answer.flow is not None
        assert answer.flow.detail == detail
        assert [hop.text for hop in found.hops][-1] == "the answer has arrived"
    assert unsent.outcome == "dropped"
    assert unsent.hops[0].text.startswith("not sent: ")


@pytest.mark.parametrize(
    ("add", "remove", "place", "text"),
    [
        (
            ["iptables-legacy -I FORWARD -p tcp --dport 80 -j DROP"],
            "iptables-legacy -D FORWARD -p tcp --dport 80 -j DROP",
            "filter FORWARD rule 1",
            "-A FORWARD -p tcp -m tcp --dport 80 -j DROP",
        ),
        (
            [
                "nft add table inet other",
                "nft add chain inet other f { type filter hook forward priority 10 ; }",
                "nft add rule inet other f tcp dport 80 drop",
            ],
            "nft delete table inet other",
            "inet other f rule 1",
            "tcp dport 80 drop",
        ),
    ],
    ids=["legacy", "nft"],
)
def test_a_rule_of_another_program(
    cli: Cli, networks: None, outside: Neighbour, engine: Engine, add: list[str], remove: str, place: str, text: str
) -> None:
    with running(cli, "web", "--network", "front", "-p", "8080:80", command=HTTPD):
        for command in add:
            subprocess.run(command.split(), check=True, timeout=60)
        try:
            found = trace(engine, "lan", "web:8080", ProbeRequest("tcp", 8080, timeout=0.2), patience=PATIENCE)
        finally:
            subprocess.run(remove.split(), check=True, timeout=60)
    assert found.rule is not None, found
    assert (found.rule.place, found.rule.text, found.rule.owner) == (place, text, Owner("foreign"))
    assert found.drop is not None
    assert found.drop.reason == "NETFILTER_DROP"


def test_rules_of_other_families(cli: Cli, networks: None, engine: Engine) -> None:
    """What bridges switch, with and without the hooks of inet on the way, and what devices take in; ARP."""
    with running(cli, "web", "--network", "front", command=HTTPD), running(cli, "client", "--network", "front"):
        _serves(cli, "web")
        device = engine.get("client").network_plan["endpoints"][0]["host_interface"]
        for family, hook, called in (
            ("bridge", "forward priority -200", "1"),
            ("bridge", "forward priority -200", "0"),
            ("bridge", "prerouting priority -200", "1"),
            ("netdev", f'ingress device "{device}" priority 0', "1"),
        ):
            if CALLED.exists():
                CALLED.write_text(called)
            with _table(family, hook, "tcp dport 80 drop"):
                found = trace(engine, "client", "web:80", ProbeRequest("tcp", 80, timeout=0.2), patience=PATIENCE)
            assert found.rule is not None, found
            assert (found.rule.place, found.rule.text) == (f"{family} other c rule 1", "tcp dport 80 drop")
            assert (found.outcome, _path(found)) == ("dropped", ["client", "host"])
        with _table("bridge", "forward priority -200", "tcp dport 80 accept"):
            passed = trace(engine, "client", "web:80", ProbeRequest("tcp", 80, timeout=60))
        with (
            _table("arp", "input priority 0", "arp operation request drop"),
            cli.popen("drops", "client", "--format", "json") as drops,
        ):
            _watches(drops)
            gateway = engine.get("client").network_plan["endpoints"][0]["gateway"]
            cli("exec", "client", "arping", "-c", "1", "-w", "1", gateway, check=None)
            asked = json.loads(_line(drops, '"who-has"'))
            drops.send_signal(signal.SIGINT)
            _output(drops)
    accepted = [hop.rule for hop in passed.hops if hop.rule and hop.direction == values.REQUEST and hop.rule.verdict == "accept"]
    rules = [rule.place for rule in accepted if rule.position]
    assert rules[0] == "bridge other c rule 1"
    assert [rule.startswith("filter NETBOX-INGRESS rule ") for rule in rules[1:2]] == [True] * CALLED.exists()
    assert passed.reachable
    assert (asked["reason"], asked["rule"]["place"]) == ("NETFILTER_DROP", "arp other c rule 1")


@contextlib.contextmanager
def _table(family: str, hook: str, rule: str) -> Iterator[None]:
    """A table of another program."""
    commands = (
        f"add table {family} other",
        f"add chain {family} other c {{ type filter hook {hook} ; }}",
        f"add rule {family} other c {rule}",
    )
    subprocess.run(["nft", "-f", "-"], input="\n".join(commands), text=True, check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", family, "other"], check=True, timeout=60)


def test_live_traffic_and_drops(cli: Cli, networks: None, engine: Engine) -> None:
    with (
        running(cli, "web", "--network", "front", command=HTTPD),
        running(cli, "client", "--network", "front"),
        running(cli, "db", "--network", "back"),
    ):
        _serves(cli, "web")
        web, db = engine.get("web").ip_address, engine.get("db").ip_address
        with cli.popen("trace", "--watch", "web", "-f", "tcp dst port 80", "-c", "1", "--format", "json") as watch:
            _watches(watch)
            cli("exec", "client", "wget", "-q", "-O", "-", f"http://{web}/", check=None)
            packet = json.loads(_output(watch))
        with cli.popen("drops", "--format", "json") as drops:
            _watches(drops)
            probe(engine, "client", f"{db}:80", timeout=0.1)
            drop = json.loads(_line(drops, "NETFILTER_DROP"))
            drops.send_signal(signal.SIGINT)
            _output(drops)
        with cli.popen("drops", "web", "--network", "front", "-c", "1") as drops:
            _watches(drops)
            probe(engine, "client", f"{db}:80", timeout=0.1)  # not web's
            probe(engine, "client", f"{web}:81", timeout=60)
            text = _line(drops, "NO_SOCKET")
            _output(drops)
    assert (packet["flow"]["destination"], packet["flow"]["detail"], packet["outcome"]) == (web, "SYN", "delivered")
    assert list(dict.fromkeys(hop["netns"] for hop in packet["hops"])) == ["client", "host", "web"]
    told = [hop["rule"]["owner"] for hop in packet["hops"] if hop["kind"] == "rule"]
    assert ({"kind": "network", "name": "front"} in told) == CALLED.exists()
    assert (drop["reason"], drop["flow"]["destination"]) == ("NETFILTER_DROP", db)
    assert drop["rule"]["owner"] == {"kind": "network", "name": "back"}
    assert f"{web}:81 SYN" in text
    assert "NO_SOCKET in tcp_v4_rcv: no socket listens there" in text


def test_without_bpf(cli: Cli, networks: None, engine: Engine) -> None:
    """tracefs tells the same way with less; what a killed trace leaves of it goes with the next gc."""
    with running(cli, "web", "--network", "front"), running(cli, "client", "--network", "front"), running(cli, "db", "--network", "back"):
        other = engine.get("db").ip_address
        found = trace(engine, "client", f"{other}:80", ProbeRequest("tcp", 80, timeout=0.2), tracer="tracefs", patience=PATIENCE)
        assert found.tracer == "tracefs"
        assert _path(found) == ["client", "host"]
        assert _end(found) == ("dropped", "host", "NETFILTER_DROP")
        assert found.rule is not None
        assert found.rule.owner == Owner("network", "back")
        assert _hop(found, values.DEVICE).text == "out by eth0"
        with cli.popen("drops", "--tracer", "tracefs") as drops:
            assert drops.stderr is not None
            assert "tracefs tells neither addresses nor rules" in drops.stderr.readline()
            _watches(drops)
            probe(engine, "client", f"{other}:80", timeout=0.1)
            # Among those that tests beside this one may cause: tracefs knows no namespaces, and bridges are called the same.
            assert _line(drops, "NETFILTER_DROP in nf_hook_slow: a firewall rule says so")
            assert _instances(drops.pid)
            drops.send_signal(signal.SIGKILL)
            drops.wait(PATIENCE)
        assert _instances(drops.pid)
        assert "tracefs of a trace" in cli("gc").stdout
        assert not _instances(drops.pid)
        refused = cli("trace", "--watch", "web", "--tracer", "tracefs", check=125)
        assert "tracefs tells too little about packets" in refused.stderr
        with cli.popen("trace", "--watch", "client", "--tracer", "none", "-c", "1", "--format", "json") as watch:
            _watches(watch)
            probe(engine, "client", f"{other}:80", timeout=0.1)
            packet = json.loads(_output(watch))
        assert (packet["outcome"], packet["hops"][-1]["rule"]["owner"]) == ("dropped", {"kind": "network", "name": "back"})
        assert list(dict.fromkeys(hop["netns"] for hop in packet["hops"])) == ["client", "host"]


def _instances(pid: int) -> list[str]:
    """The instances of tracefs that a process has made; the file system is mounted for a moment to see them."""
    context = syscalls.fsopen("tracefs")
    syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
    mount = syscalls.fsmount(context)
    try:
        directory = os.open("instances", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mount)
        try:
            return [name for name in os.listdir(directory) if name.startswith(f"netbox-{pid}-")]
        finally:
            os.close(directory)
    finally:
        os.close(mount)
        os.close(context)


def _watches(process: subprocess.Popen[str]) -> None:
    """Returns when the process has said that it misses nothing any more."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "watching" in line, line + process.stderr.read()


def _line(process: subprocess.Popen[str], words: str) -> str:
    """The first line with these words. A packet of another host with the same addresses may come before it."""
    assert process.stdout is not None
    return next(line for line in itertools.islice(process.stdout, 1000) if words in line)


def _output(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return output


def test_several_at_once(cli: Cli, networks: None, engine: Engine) -> None:
    """The legacy tables report to one socket of a namespace: whoever traces shares it."""
    with running(cli, "client", "--network", "front"), running(cli, "db", "--network", "back"):
        db = engine.get("db").ip_address
        request = ProbeRequest("tcp", 80, timeout=0.2)
        with cli.popen("drops", "--format", "json") as first, cli.popen("drops", "--format", "json") as second:
            _watches(first)
            _watches(second)
            beside = trace(engine, "client", f"{db}:80", request, patience=PATIENCE)
            seen = [json.loads(_line(drops, "NETFILTER_DROP")) for drops in (first, second)]
            first.send_signal(signal.SIGKILL)
            first.wait(PATIENCE)
            alone = trace(engine, "client", f"{db}:80", request, patience=PATIENCE)
            seen.append(json.loads(_line(second, "NETFILTER_DROP")))
            second.send_signal(signal.SIGINT)
            _output(second)
        cli("gc")
    for found in (beside, alone):
        assert found.notes == ()
        assert found.rule is not None, found
        assert found.rule.owner == Owner("network", "back")
    assert [drop["rule"] and drop["rule"]["owner"] for drop in seen] == [{"kind": "network", "name": "back"}] * 3


def test_killed(cli: Cli, networks: None) -> None:
    """Programs, maps and tables go with the process; what the host's log was is put back by the next gc."""
    setting = Path("/proc/sys/net/netfilter/nf_log/2")
    before = setting.read_text()
    with running(cli, "web", "--network", "front"):
        with cli.popen("drops") as drops:
            _watches(drops)
            programs = _programs(drops.pid)
            assert programs
            assert "netbox_trace" in _tables()
            assert setting.read_text().strip() == "nfnetlink_log"
            assert cli("gc").stdout.count("trace") == 0  # it still runs
            assert setting.read_text().strip() == "nfnetlink_log"
            drops.send_signal(signal.SIGKILL)
            drops.wait(PATIENCE)
        wait_until(lambda: "netbox_trace" not in _tables(), "the end of our table", PATIENCE)
        wait_until(lambda: not programs & _all_programs(), "the end of the programs", PATIENCE)
        cli("gc")
        assert setting.read_text() == before


def _tables() -> str:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True, timeout=60).stdout


def _programs(pid: int) -> set[int]:
    """The ids of the BPF programs that a process holds."""
    found = set[int]()
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError):  # it opens and closes others while we look
            found |= set(map(int, re.findall(r"^prog_id:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{name}").read_text(), re.MULTILINE)))
    return found


def _all_programs() -> set[int]:
    """The ids of all BPF programs (bpf(2), BPF_PROG_GET_NEXT_ID)."""
    found, current = set[int](), 0
    while True:
        buffer = ctypes.create_string_buffer(struct.pack("=III", current, 0, 0), 12)
        if ctypes.CDLL(None).syscall(_BPF, _NEXT_ID, buffer, 12) < 0:
            return found
        current = struct.unpack_from("=I", buffer.raw, 4)[0]
        found.add(current)
