"""``netbox probe``: every protocol and every answer, on real networks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netbox.engine import Engine, Sandbox
from netbox.errors import NotFound, UsageError, WrongState
from netbox.packet import probe, probe_many, resolving
from netbox.packet.probing.api import Probe
from netbox.packet.probing.values import ProbeReport, ProbeRequest
from tests.support import dns, linux
from tests.support.cli import Cli
from tests.support.host import Neighbour
from tests.support.leaks import links

SILENCE = 0.4  # seconds: an answer inside one machine takes less than a millisecond
PATIENCE = 20.0  # seconds
SCTP = 132
TRUNCATED = 0x200  # the flag TC of a DNS message


class Lab:
    """Sandboxes, and what listens and filters in their network namespaces."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._stack = contextlib.ExitStack()

    def box(self, name: str, **options: Any) -> Sandbox:
        sandbox = self.engine.run("busybox", "sleep", "1000", name=name, **options)
        self._stack.enter_context(sandbox)
        return sandbox

    def network(self, name: str, **options: Any) -> None:
        self.engine.networks.create(name, **options)
        self._stack.callback(self.engine.networks.remove, name)

    @contextlib.contextmanager
    def inside(self, sandbox: Sandbox) -> Iterator[None]:
        fd = os.open(f"/proc/{sandbox.refresh().pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with linux.network_namespace(fd):
                yield
        finally:
            os.close(fd)

    def execute(self, sandbox: Sandbox, *commands: str) -> None:
        with self.inside(sandbox):
            for command in commands:
                subprocess.run(command.split(), check=True, timeout=60, capture_output=True)

    def listen(self, sandbox: Sandbox, kind: int, port: int, address: str = "0.0.0.0") -> socket.socket:
        """A socket of this process in the sandbox's namespace: there at once."""
        with self.inside(sandbox):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        self._stack.enter_context(sock)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock

    def echo(self, sandbox: Sandbox, port: int, answer: Callable[[bytes], bytes] = lambda data: data) -> None:
        sock = self.listen(sandbox, socket.SOCK_DGRAM, port)
        sock.settimeout(0.05)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    data, client = sock.recvfrom(4096)
                    sock.sendto(answer(data), client)

        thread = threading.Thread(target=serve)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(stop.set)

    def ask(self, *items: tuple[str, str, ProbeRequest | None]) -> list[ProbeReport]:
        reports: list[ProbeReport] = probe_many(self.engine, [Probe(*item) for item in items])
        return reports

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def lab(engine: Engine) -> Iterator[Lab]:
    made = Lab(engine)
    yield made
    made.close()


def quick(protocol: str, port: int | None = None, **values: Any) -> ProbeRequest:
    """For an answer that is silence."""
    return ProbeRequest(protocol, port, timeout=SILENCE, **values)


def told(report: ProbeReport) -> tuple[str, str, str | None]:
    assert report.best is not None
    return report.state, report.best.answer, report.best.from_name


def test_every_answer_between_sandboxes(lab: Lab) -> None:
    lab.network("front")
    lab.network("back")
    web, db, _ = lab.box("web", network="front"), lab.box("db", network="front"), lab.box("other", network="back")
    for port in (80, 99):
        lab.listen(db, socket.SOCK_STREAM, port)
    lab.listen(db, socket.SOCK_STREAM, 70, "127.0.0.1")
    lab.listen(db, socket.SOCK_DGRAM, 80)
    lab.echo(db, 7)
    lab.execute(
        db,
        "iptables-legacy -A INPUT -p tcp --dport 99 -j DROP",
        "iptables-legacy -A INPUT -p tcp --dport 98 -j REJECT --reject-with icmp-admin-prohibited",
        "iptables-legacy -A INPUT -p tcp --dport 96 -j REJECT --reject-with tcp-reset",
    )
    lab.execute(
        web,
        "iptables-legacy -A OUTPUT -p tcp --dport 97 -j DROP",
        "ip route add unreachable 192.0.2.1",
        "ip route add prohibit 192.0.2.2",
        "ip route add blackhole 192.0.2.3",
    )
    nobody = db.network_plan["endpoints"][0]["address"].rpartition(".")[0] + ".250"
    expected: list[tuple[str, ProbeRequest | None, str, str]] = [
        ("db", None, "answered", "echo reply"),
        ("db:80", None, "open", "SYN-ACK"),
        ("db:81", None, "closed", "RST"),
        ("db:70", None, "closed", "RST"),
        ("db:96", None, "closed", "RST"),
        ("db", quick("tcp", 99), "filtered", "although it arrived at db, where a socket listens"),
        ("db:98", None, "filtered", "administratively prohibited"),
        ("db:97", None, "filtered", "OUTPUT"),
        ("db:7/udp", None, "open", "datagram"),
        ("db", quick("udp", 80), "delivered", "a socket listens that did not answer"),
        ("db:81/udp", None, "closed", "ICMP port unreachable"),
        ("db", ProbeRequest("arp"), "answered", db.network_plan["endpoints"][0]["mac_address"]),
        ("other", quick("tcp", 80), "filtered", "never arrived at other"),
        ("other", quick("udp", 80), "filtered", "never arrived at other"),
        ("192.0.2.1", None, "no route", "unreachable"),
        ("192.0.2.2", None, "no route", "prohibit"),
        ("192.0.2.3", None, "no route", "blackhole"),
        ("192.0.2.4", None, "no route", "ICMP network unreachable"),
        (nobody, quick("icmp"), "unreachable", f"nobody on the link answers for {nobody}"),
        (nobody, quick("arp"), "no answer", "nobody on the link"),
        ("db", ProbeRequest("icmp", size=4000), "answered", "echo reply"),
        ("db", ProbeRequest("tcp", 80, ttl=1), "open", "SYN-ACK"),
    ]
    reports = lab.ask(*(("web", target, request) for target, request, _, _ in expected))
    for report, (target, _, state, words) in zip(reports, expected, strict=True):
        found = told(report)
        assert (found[0], words in found[1]) == (state, True), (target, report.to_json())
        assert report.reachable == (state in ("open", "answered", "delivered"))
    assert told(reports[0])[2] == "db"
    assert told(reports[17])[2] == "host"
    assert all(report.best is not None and report.best.rtt is not None for report in reports[:5])
    assert reports[1].target.network == "front"


def test_the_host_and_the_lan(lab: Lab) -> None:
    """Published ports from both; an address of its own only from the host; ttl and who let it run out."""
    web = lab.box("web", ports=["18080:80", "127.0.0.1:18081:81", "18082:82/udp"])
    lab.listen(web, socket.SOCK_STREAM, 80)
    lab.echo(web, 82)
    reports = lab.ask(
        ("host", "web:18080", None),
        ("host", "web:80", None),
        ("host", "web", None),
        ("host", "host:18080", None),
        ("lan", "web:18080", None),
        ("lan", "web:80", None),
        ("lan", "host:18080", None),
        ("lan", "web:82/udp", None),
        ("lan", "web:81", None),
        ("lan", "web", quick("tcp", 90)),
        ("lan", "host", None),
        ("web", "lan", None),
        ("web", "lan", ProbeRequest(ttl=1)),
        ("web", "host:18080", None),
    )
    states = ["open", "open", "answered", "open", "open", "open", "open", "open", "closed", "filtered", "answered", "answered"]
    assert [report.state for report in reports] == [*states, "time exceeded", "open"], [report.sentence for report in reports]
    assert [reports[index].target.port for index in (0, 4, 5, 7)] == [18080, 18080, 18080, 18082]
    assert reports[0].target.address == "127.0.0.1"
    assert reports[1].target.address == web.ip_address
    assert reports[4].target.published is not None
    assert reports[4].target.inner == (web.ip_address, 80)
    assert told(reports[12])[2] == "host"
    assert "nblan" not in "".join(links())


def test_name_servers(lab: Lab, outside: Neighbour) -> None:
    lab.network("front")
    lab.box("web", network="front")
    db = lab.box("db", network="front")
    found = probe(lab.engine, "web", dns="db")
    assert found.best is not None
    assert (found.state, found.best.records) == ("answered", (f"A {db.ip_address}",))
    reverse = probe(lab.engine, "web", dns=db.ip_address)
    assert (reverse.state, "PTR db" in told(reverse)[1]) == ("answered", True), reverse.sentence
    assert told(probe(lab.engine, "web", dns="db/aaaa"))[:2] == ("answered", "NOERROR without a record")
    assert told(probe(lab.engine, "web", dns="nowhere"))[:2] == ("no such name", "NXDOMAIN")
    silent = probe(lab.engine, "web", "db", dns="x", timeout=SILENCE)
    assert silent.state == "unreachable" or "port unreachable" in told(silent)[1]
    with outside.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind((outside.address, 53))
        assert probe(lab.engine, "web", outside.address, dns="x", timeout=SILENCE).state == "no answer"


def test_name_servers_by_tcp(lab: Lab, outside: Neighbour) -> None:
    """When it was asked for, and when an answer by UDP is cut off: then by TCP or not at all."""
    lab.box("web")

    def behave(name: str, tcp: bool, data: bytes) -> bytes | None:
        if not tcp:
            return dns.answer_to(data, ["192.0.2.1"], flags=0 if name == "short" else TRUNCATED)
        if name == "mute":
            return None
        return dns.answer_to(data, [f"192.0.2.{number}" for number in range(1, 101)], dns.NXDOMAIN * (name == "no"))

    def ask(name: str, **options: Any) -> ProbeReport:
        report: ProbeReport = probe(lab.engine, "web", outside.address, dns=name, **options)
        return report

    with outside.inside():
        resolver = dns.Resolver(outside.address, behave)
    try:
        short, long, by_tcp = ask("short"), ask("long"), ask("short", tcp=53)
        for report, records, truncated in ((short, 1, False), (long, 100, True), (by_tcp, 100, False)):
            assert report.best is not None
            assert (report.state, len(report.best.records), report.best.truncated) == ("answered", records, truncated), report.sentence
            assert report.best.rtt is not None
        assert "192.0.2.100 (by TCP: too long for a datagram)" in long.sentence
        assert by_tcp.sentence.startswith(f"web → {outside.address}, DNS query for short by TCP: answered: A 192.0.2.1, ")
        assert ask("no").state == ask("no", tcp=53).state == "no such name"
        mute = ask("mute", timeout=SILENCE)  # the server ends the connection without a word
        assert (mute.state, "and by TCP failed: connected, and then: it was closed" in told(mute)[1]) == ("failed", True), mute.sentence
        assert ask("short", tcp=54).state == "closed"
        with outside.inside():
            subprocess.run("iptables-legacy -A INPUT -p tcp --dport 53 -j DROP".split(), check=True, timeout=60)
        cut = ask("long", timeout=SILENCE)
        assert (cut.state, told(cut)[1]) == ("failed", "too long for a datagram (TC), and by TCP filtered: nothing came back")
    finally:
        resolver.close()


@pytest.mark.parametrize("speaks_tcp", [True, False])
def test_a_name_with_more_addresses_than_a_datagram_holds(outside: Neighbour, speaks_tcp: bool) -> None:
    """The part that came by UDP does not count (RFC 2181, 9)."""

    def behave(name: str, tcp: bool, data: bytes) -> bytes | None:
        if tcp:
            return dns.answer_to(data, [f"192.0.2.{number}" for number in range(1, 101)]) if speaks_tcp else None
        return dns.answer_to(data, ["192.0.2.200"], flags=TRUNCATED)

    with outside.inside():
        resolver = dns.Resolver(outside.address, behave)
    try:
        found = resolving.resolve("db", "", f"nameserver {outside.address}\n", -1, PATIENCE)
    finally:
        resolver.close()
    if speaks_tcp:
        assert (found.outcome, found.addresses[0], len(set(found.addresses))) == (resolving.FOUND, "192.0.2.1", 100)
    else:
        assert (found.outcome, found.addresses) == (resolving.SILENT, ())
        assert "and by TCP: the connection ended without an answer" in found.said


def test_names_are_resolved_as_the_source_does(lab: Lab) -> None:
    lab.network("front")
    lab.box("web", network="front", extra_hosts=["written:10.9.8.7"])
    db = lab.box("db", network="front", network_aliases=["database"])
    found = probe(lab.engine, "web", "database")
    assert (found.state, found.target.address) == ("answered", db.ip_address)
    assert probe(lab.engine, "web", "written", timeout=SILENCE).target.address == "10.9.8.7"
    assert probe(lab.engine, "host", "localhost").target.address == "127.0.0.1"
    with pytest.raises(NotFound, match="web cannot resolve it"):
        probe(lab.engine, "web", "no-such-thing")


def init_ack(request: bytes) -> bytes:
    """An INIT-ACK for an INIT, without its checksum: raw sockets do not look at it (RFC 9260, 3.3.3)."""
    source, destination, _, _ = struct.unpack_from("!HHII", request)
    (tag,) = struct.unpack_from("!I", request, 16)
    return struct.pack("!HHIIBBHIIHHI", destination, source, tag, 0, 2, 0, 20, 77, 65535, 1, 1, 77)


def test_sctp(lab: Lab) -> None:
    lab.box("web")
    db = lab.box("db")
    assert probe(lab.engine, "web", "db", sctp=9).state == "closed"  # an ABORT, or an ICMP error of a kernel without SCTP
    with lab.inside(db):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, SCTP)
    raw.settimeout(0.05)
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                packet, client = raw.recvfrom(4096)
                raw.sendto(init_ack(packet[(packet[0] & 15) * 4 :]), client)

    try:
        listener: Any = lab.listen(db, socket.SOCK_STREAM, 1)  # any socket, where the kernel has no SCTP of its own
        with lab.inside(db), contextlib.suppress(OSError):
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP)
            listener.bind(("0.0.0.0", 9))
            listener.listen()
        thread = threading.Thread(target=answer)
        if listener.proto != SCTP:
            thread.start()
        report = probe(lab.engine, "web", "db", sctp=9, timeout=60)
        assert told(report)[:2] == ("open", "INIT-ACK")
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        listener.close()
        raw.close()


def test_ipv6(lab: Lab) -> None:
    """With addresses by hand: the protocols are what is tested."""
    web, db = lab.box("web"), lab.box("db")
    for sandbox, address in ((web, "2001:db8:77::1"), (db, "2001:db8:77::2")):
        with lab.inside(sandbox):
            for name in ("all", "eth0"):
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")
        lab.execute(sandbox, f"ip -6 addr add {address}/64 dev eth0 nodad", f"ip -6 route add unreachable {address.replace('77', '78')}")
    lab.listen(db, socket.SOCK_STREAM, 80, "::")
    target = "2001:db8:77::2"
    reports = lab.ask(
        ("web", target, None),
        ("web", f"[{target}]:80", None),
        ("web", f"[{target}]:81", None),
        ("web", f"[{target}]:81/udp", None),
        ("web", target, ProbeRequest("nd")),
        ("web", "2001:db8:78::1", None),
        ("web", "2001:db8:99::1", None),
        ("web", target, ProbeRequest(size=4000)),
        ("web", "2001:db8:77::9", quick("nd")),
    )
    states = ["answered", "open", "closed", "closed", "answered", "no route", "no route", "answered", "no answer"]
    assert [report.state for report in reports] == states, [report.sentence for report in reports]
    assert reports[4].best is not None
    assert reports[4].best.mac_address == db.network_plan["endpoints"][0]["mac_address"]


def test_traceroute(lab: Lab, outside: Neighbour) -> None:
    lab.box("web")
    lab.box("db")
    report = probe(lab.engine, "web", outside.address, traceroute=True, count=2)
    assert [hop.name for hop in report.hops] == ["host", None]
    assert report.hops[-1].address == outside.address
    assert [len(hop.answers) for hop in report.hops] == [2, 2]
    assert report.reachable
    assert len(probe(lab.engine, "web", "db", tcp=81, traceroute=True).hops) == 1


@pytest.mark.parametrize("black_hole", [False, True])
def test_path_mtu(lab: Lab, private_host: object, black_hole: bool) -> None:
    """A link of 1,400 bytes behind the host, which says so, or is kept from saying so."""
    neighbour = Neighbour(mtu=1400)
    if black_hole:
        rule = "OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP"
        subprocess.run(["iptables-legacy", "-A", *rule.split()], check=True, timeout=60)
    try:
        lab.network("wide", options=["mtu=1500"])
        lab.box("web", network="wide")
        found = probe(lab.engine, "web", neighbour.address, pmtu=True).path_mtu
        assert found is not None
        assert (found.mtu, found.link_mtu, found.black_hole) == (1400, 1500, black_hole)
        assert (found.last_seen_name if black_hole else found.limited_by_name) == "host"
        # Nobody listens there: the refusal says that the packet has arrived.
        found = probe(lab.engine, "web", neighbour.address, ProbeRequest("tcp", 9, pmtu=True)).path_mtu
        assert found is not None
        assert (found.mtu, found.black_hole) == (1400, black_hole), found
        # By UDP it is refused with ICMP errors, which the neighbour's kernel sends but few of.
        found = probe(lab.engine, "web", neighbour.address, udp=9, pmtu=True).path_mtu
        assert found is not None
        assert (found.mtu, found.link_mtu, found.black_hole) == (1400, 1500, black_hole), found
        assert (found.last_seen_name if black_hole else found.limited_by_name) == "host"
        assert probe(lab.engine, "web", "host", pmtu=True).path_mtu[:2] == (1500, 1500)
    finally:
        if black_hole:
            subprocess.run(["iptables-legacy", "-D", *rule.split()], check=True, timeout=60)
        neighbour.close()


def test_paused_and_stopped(lab: Lab) -> None:
    lab.box("web")
    db = lab.box("db")
    db.pause()
    report = probe(lab.engine, "web", "db")
    assert report.state == "answered"
    assert "db is paused" in report.notes[0]
    assert probe(lab.engine, "db", "web").reachable
    db.unpause()
    db.stop(0)
    for source, target in (("web", "db"), ("db", "web")):
        with pytest.raises(WrongState, match="db does not run: it is exited"):
            probe(lab.engine, source, target)
    with pytest.raises(NotFound):
        probe(lab.engine, "nobody", "web")
    with pytest.raises(UsageError):
        probe(lab.engine, "web")


def test_modes(lab: Lab) -> None:
    lab.box("web")
    alone, shared = lab.box("alone", network="none"), lab.box("shared", network="host")
    guest = lab.box("guest", network="container:web")
    lab.listen(guest, socket.SOCK_STREAM, 80)
    lab.listen(shared, socket.SOCK_STREAM, 18090)
    reports = lab.ask(
        ("alone", "web", None),
        ("guest", "web:80", None),
        ("host", "guest:80", None),
        ("host", "shared:18090", None),
        ("lan", "shared:18090", None),
    )
    assert [report.state for report in reports] == ["no route", "open", "open", "open", "open"], [report.sentence for report in reports]
    with pytest.raises(WrongState, match="alone has no address"):
        probe(lab.engine, "web", alone.name)


def test_command_line(lab: Lab, cli: Cli) -> None:
    lab.box("web")
    db = lab.box("db")
    lab.listen(db, socket.SOCK_STREAM, 80)
    result = cli("probe", "web", "db:80")
    assert result.stdout.startswith(f"web → db ({db.ip_address}), TCP port 80: open: SYN-ACK, ")
    assert cli("probe", "web", "db", "--tcp", "81", check=1).stdout.count("\n") == 1
    document = json.loads(cli("probe", "web", "db", "--count", "3", "--interval", "0", "--format", "json").stdout)
    assert document["reachable"] is True
    assert [answer["sequence"] for answer in document["answers"]] == [0, 1, 2]
    lines = cli("probe", "web", "db", "--traceroute").stdout.splitlines()
    assert lines[1].split() == ["HOP", "ADDRESS", "TIME"]
    assert "path MTU 1500 bytes" in cli("probe", "web", "db", "--pmtu").stdout
    for arguments in (("web",), ("web", "db:x/y"), ("nobody", "db"), ("web", "db", "--tcp", "1", "--udp", "1"), ("web", "db", "--nd")):
        failed = cli("probe", *arguments, check=125)
        assert len(failed.stderr.splitlines()) == 1, failed.stderr
        assert not failed.stdout


def test_a_foreign_source(lab: Lab) -> None:
    """It leaves and arrives, and its answer goes elsewhere."""
    lab.box("web")
    db = lab.box("db")
    report = probe(lab.engine, "web", "db", source_address="192.0.2.77", timeout=SILENCE)
    assert (report.state, report.best is not None and report.best.arrived) == ("filtered", True), report.sentence
    assert probe(lab.engine, "host", db.name, source_address=db.network_plan["endpoints"][0]["gateway"]).reachable


@pytest.mark.parametrize("victim", ["command", "worker"])
def test_killed(lab: Lab, cli: Cli, victim: str, wait_until: Callable[..., object]) -> None:
    """The neighbour goes with the process that made it."""
    lab.box("web")
    with cli.popen("probe", "lan", "192.0.2.99", "--udp", "9", "--timeout", "60", "--source", "192.0.2.98") as process:
        wait_until(lambda: any(name.startswith("nblan") for name in links()), "the neighbour")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: children.read_text().split(), "the worker")
        worker = int(children.read_text().split()[0])
        os.kill(process.pid if victim == "command" else worker, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    if victim == "worker":
        assert process.returncode == 125
        assert "the process that probes has died" in errors
    wait_until(lambda: not any(name.startswith("nblan") for name in links()), "the end of the neighbour")
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the end of the worker")
