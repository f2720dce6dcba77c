"""The name service with real packets: sandboxes' questions, others' resolvers, kills, load."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from netbox.errors import Conflict, HostError
from netbox.network.nameservice import files, hooks, zone
from netbox.network.nameservice.forwarder import MAX_EXCHANGES_PER_CLIENT
from netbox.network.resolve import HostFiles
from netbox.network.undo import HANDLERS, UndoContext
from tests.kernel.names_lab import Bench
from tests.support import dns, linux
from tests.support.host import Neighbour, PrivateHost
from tests.support.waiting import wait_until

GATEWAY = "10.77.1.1"
Found = TypeVar("Found")


@pytest.fixture
def bench(private_host: PrivateHost) -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def known(text: str, tcp: bool, data: bytes) -> bytes | None:
    return dns.answer_to(data, ["192.0.2.80"])


def undisturbed(attempt: Callable[[int], Found], limit: float = 3.0) -> Found:
    """What an attempt found that took less than ``limit`` seconds.

    The service gives other resolvers a second, and all of them four: what a test says about that holds on a machine that goes on meanwhile.
    Attempts are numbered, so that each can ask for something new.
    """
    for number in range(20):
        begun = time.monotonic()
        found = attempt(number)
        if time.monotonic() - begun < limit:
            return found
    raise AssertionError(f"20 attempts took {limit:g} s or more each")


def test_names_aliases_and_addresses(bench: Bench) -> None:
    bench.network(1)
    bench.member(1, 2, "web", "www", "shop.example")
    client = bench.client(1, 9)
    with bench.inside(client):
        for asked in ("web", "WEB", "www", "shop.example", "web.net1", "web.net1.netbox.internal", "010002010002"):
            response = dns.ask(GATEWAY, asked)
            assert (response.code, response.values) == (dns.NOERROR, ["10.77.1.2"]), asked
        assert response.answers[0][1] == zone.TTL
        assert dns.ask(GATEWAY, "2.1.77.10.in-addr.arpa", dns.PTR).values == ["web.net1.netbox.internal"]
        response = dns.ask(GATEWAY, "web", dns.AAAA)
        assert (response.code, response.values) == (dns.NOERROR, [])
        assert dns.ask_tcp(GATEWAY, "web").values == ["10.77.1.2"]
    result = bench.execute(client, "busybox", "nslookup", "web.net1", GATEWAY)
    assert "Address: 10.77.1.2" in result.stdout, result


def test_the_c_library_resolves_by_our_resolv_conf(bench: Bench, tmp_path: Path) -> None:
    bench.network(1)
    bench.member(1, 2, "web")
    text = hooks.resolv_conf(HostFiles(resolv_conf="search example.test\n"), [GATEWAY], ["net1"], [], ["timeout:20"])
    assert text == f"nameserver {GATEWAY}\nsearch net1.netbox.internal example.test\noptions timeout:20\n"
    (tmp_path / "resolv.conf").write_text(text)
    command = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && getent ahostsv4 web && getent hosts 10.77.1.2"
    result = bench.execute(bench.client(1, 9), "unshare", "-m", "sh", "-c", command)
    assert "10.77.1.2       STREAM" in result.stdout, result
    assert "web.net1.netbox.internal" in result.stdout


def test_a_sandbox_on_two_networks_sees_both_and_others_only_theirs(bench: Bench) -> None:
    for number in (1, 2):
        bench.network(number)
    bench.member(2, 7, "db")
    bench.member(1, 9, "both", sandbox="ab" * 32)
    bench.member(2, 9, "both", sandbox="ab" * 32)
    bench.member(1, 8, "single")
    both, single = bench.client(1, 9), bench.client(1, 8)
    with bench.inside(both):
        assert dns.ask(GATEWAY, "db").values == ["10.77.2.7"]
        assert dns.ask(GATEWAY, "both").values == ["10.77.1.9"]
    with bench.inside(single):
        assert dns.ask(GATEWAY, "db").code == dns.NXDOMAIN
        assert dns.ask(GATEWAY, "7.2.77.10.in-addr.arpa", dns.PTR).code == dns.NXDOMAIN
        with pytest.raises((TimeoutError, ConnectionRefusedError)):  # the other network's address is out of reach
            dns.ask("10.77.2.1", "db", timeout=0.5)


def test_the_lan_does_not_reach_it_and_the_host_does(bench: Bench, outside: Neighbour) -> None:
    bench.network(1)
    bench.member(1, 2, "web")
    outside.execute("ip", "route", "add", "10.77.1.0/24", "via", Neighbour.host_address)
    with outside.inside():
        with pytest.raises(ConnectionRefusedError):
            dns.ask(GATEWAY, "web")
        with pytest.raises(ConnectionRefusedError):
            dns.ask_tcp(GATEWAY, "web")
    assert dns.ask(GATEWAY, "web").values == ["10.77.1.2"]


def test_ipv6(bench: Bench) -> None:
    served = bench.bridge(1, gateways=("fd00:77::1",))
    subprocess.run(["ip", "address", "add", "fd00:77::1/64", "dev", "br-1", "nodad"], check=True, timeout=20)
    hooks.network_up(
        bench.settings,
        served._replace(subnets=(*served.subnets, "fd00:77::/64")),
        bench.members,
        bench.store.journal("network:net1", "network"),
    )
    bench.members.rows["net1"] = [zone.Member("a" * 64, "web", (), ("10.77.1.2", "fd00:77::2"))]
    bench.changed(1)
    client = bench.client(1, 9)
    assert bench.execute(client, "ip", "address", "add", "fd00:77::9/64", "dev", "eth0", "nodad").returncode == 0
    with bench.inside(client):
        assert dns.ask("fd00:77::1", "web", dns.AAAA).values == ["fd00:77::2"]
        assert dns.ask("fd00:77::1", "web", dns.A).values == ["10.77.1.2"]
        reverse = ".".join("fd000077000000000000000000000002")[::-1] + ".ip6.arpa"
        assert dns.ask(GATEWAY, reverse, dns.PTR).values == ["web.net1.netbox.internal"]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_program_that_has_the_port_is_left_alone(bench: Bench, kind: int) -> None:
    served = bench.bridge(1)
    journal = bench.store.journal("network:net1", "network")
    with contextlib.ExitStack() as others:
        for port in hooks.PORTS[:2]:
            other = others.enter_context(socket.socket(socket.AF_INET, kind))
            other.bind(("0.0.0.0", port))
            if kind == socket.SOCK_STREAM:
                other.listen()
        assert hooks.network_up(bench.settings, served, bench.members, journal) == hooks.PORTS[2]
        client = bench.client(1, 9)
        bench.member(1, 2, "web")
        with bench.inside(client):
            assert dns.ask(GATEWAY, "web", port=hooks.PORTS[2]).values == ["10.77.1.2"]


def test_programs_that_have_all_ports_are_named_and_nothing_stays(bench: Bench) -> None:
    served = bench.bridge(1)
    with contextlib.ExitStack() as others:
        for port in hooks.PORTS:
            others.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("0.0.0.0", port))
        with pytest.raises(Conflict, match="other programs have this port, and 61053 to 61068 as well"):
            hooks.network_up(bench.settings, served, bench.members, bench.store.journal("network:net1", "network"))
    assert not hooks.is_running(bench.settings)
    assert not Path(files.directory(bench.settings.run)).exists()


def test_a_bridge_that_is_not_there(bench: Bench) -> None:
    served = zone.Served("net1", "br-none", (GATEWAY,))
    with pytest.raises(HostError, match="cannot serve names of network net1 on 10.77.1.1:53"):
        hooks.network_up(bench.settings, served, bench.members, bench.store.journal("network:net1", "network"))


# -- others' names -------------------------------------------------------------------------------------------------------------------------


def test_other_names_go_to_the_hosts_resolver_on_its_loopback_too(bench: Bench) -> None:
    resolver = bench.resolver("127.0.0.53", known)
    bench.use("127.0.0.53")
    bench.network(1)
    with bench.inside(bench.client(1, 9)):
        assert undisturbed(lambda number: dns.ask(GATEWAY, f"{number}.a.example.org")).values == ["192.0.2.80"]
        assert undisturbed(lambda number: dns.ask(GATEWAY, f"{number}.b.example.org", edns=1232)).values == ["192.0.2.80"]
        assert undisturbed(lambda number: dns.ask_tcp(GATEWAY, f"{number}.c.example.org")).values == ["192.0.2.80"]
        for inner in ("nobody", "nobody.net1.netbox.internal", "x.netbox.internal", "200.1.77.10.in-addr.arpa"):
            assert dns.ask(GATEWAY, inner).code == dns.NXDOMAIN
        assert {name.partition(".")[2] for name in resolver.asked} == {"a.example.org", "b.example.org", "c.example.org"}


def test_a_sandboxs_own_resolvers(bench: Bench) -> None:
    ours, hosts = (
        bench.resolver("127.0.0.10", lambda name, tcp, data: dns.answer_to(data, ["192.0.2.1"])),
        bench.resolver("127.0.0.53", known),
    )
    bench.use("127.0.0.53")
    bench.network(1)
    bench.member(1, 9, "picky", resolvers=("127.0.0.10",))
    with bench.inside(bench.client(1, 9)):
        assert undisturbed(lambda number: dns.ask(GATEWAY, f"{number}.example.org")).values == ["192.0.2.1"]
    assert ours.asked
    assert hosts.asked == []


def test_an_internal_network_asks_nobody(bench: Bench) -> None:
    resolver = bench.resolver("127.0.0.53", known)
    bench.use("127.0.0.53")
    bench.network(1, internal=True)
    bench.member(1, 2, "web")
    with bench.inside(bench.client(1, 9)):
        assert dns.ask(GATEWAY, "web").values == ["10.77.1.2"]
        assert dns.ask(GATEWAY, "example.org").code == dns.REFUSED
    assert resolver.asked == []


def test_a_silent_resolver_costs_a_second_once(bench: Bench) -> None:
    silent = bench.resolver("127.0.0.10", lambda name, tcp, data: None)
    bench.resolver("127.0.0.53", known)
    bench.use("127.0.0.10", "127.0.0.53")
    bench.network(1)
    with bench.inside(bench.client(1, 9)):
        before = time.monotonic()
        response = dns.ask(GATEWAY, "a.example.org")
        took = time.monotonic() - before
        assert took > 0.9
        assert response.values == ["192.0.2.80"] or took > 3.9  # when the service gives up
        names = []

        def at_once(number: int) -> dns.Response:
            names.append(f"b{number}.example.org")
            return dns.ask(GATEWAY, names[-1])

        assert undisturbed(at_once, limit=0.9).values == ["192.0.2.80"]  # of the other one
    assert "a.example.org" in silent.asked
    assert names[-1] not in silent.asked


def test_a_slow_resolver_is_waited_for(bench: Bench) -> None:
    known_names = set()

    def slow(name: str, tcp: bool, data: bytes) -> bytes:
        if name not in known_names:
            time.sleep(1.3)
        known_names.add(name)
        return dns.answer_to(data, ["192.0.2.80"])

    bench.resolver("127.0.0.10", slow)
    bench.use("127.0.0.10")
    bench.network(1)
    with bench.inside(bench.client(1, 9)):
        assert undisturbed(lambda number: dns.ask(GATEWAY, f"a{number}.example.org"), 3.9).values == ["192.0.2.80"]
        assert undisturbed(lambda number: dns.ask_tcp(GATEWAY, f"b{number}.example.org"), 3.9).values == ["192.0.2.80"]


def test_dead_and_failing_resolvers(bench: Bench) -> None:
    failing = bench.resolver("127.0.0.11", lambda name, tcp, data: dns.answer_to(data, [], dns.SERVFAIL))
    bench.resolver("127.0.0.12", known)
    bench.network(1)
    with bench.inside(bench.client(1, 9)):
        bench.use("127.0.0.10", "127.0.0.11")  # nobody listens at the first one
        assert undisturbed(lambda number: dns.ask(GATEWAY, f"{number}.a.example.org")).code == dns.SERVFAIL
        assert undisturbed(lambda number: dns.ask_tcp(GATEWAY, f"{number}.b.example.org")).code == dns.SERVFAIL
        assert {name.partition(".")[2] for name in failing.asked} == {"a.example.org", "b.example.org"}
        bench.use("127.0.0.10")
        assert dns.ask(GATEWAY, "example.org").code == dns.SERVFAIL
        bench.use("127.0.0.10", "not-an-address", "127.0.0.12")
        assert undisturbed(lambda number: dns.ask(GATEWAY, f"{number}.example.org")).values == ["192.0.2.80"]


def test_all_resolvers_silent_end_in_servfail_in_time(bench: Bench) -> None:
    silent = bench.resolver("127.0.0.10", lambda name, tcp, data: None)
    bench.use("127.0.0.10")
    bench.network(1)
    bench.member(1, 2, "web")
    with bench.inside(bench.client(1, 9)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect((GATEWAY, 53))
        for number in range(20):
            before = time.monotonic()
            sock.send(dns.query(f"a{number}.example.org", id=2 * number + 1))
            sock.send(dns.query("web", id=2 * number + 2))
            together = time.monotonic() - before < 3
            first, second = (dns.parse(sock.recv(4096)) for _ in range(2))
            if together:
                break
        assert (first.id, first.values) == (2 * number + 2, ["10.77.1.2"])  # others are not held up
        assert (second.id, second.code) == (2 * number + 1, dns.SERVFAIL)
        assert time.monotonic() - before > 3.5  # below 5 s, when clients give up: tests/unit/test_nameservice_forwarder.py
    wait_until(lambda: f"a{number}.example.org" in silent.asked, "the question")
    assert silent.asked.count(f"a{number}.example.org") <= 4


def test_one_sandbox_cannot_take_all_the_room(bench: Bench) -> None:
    silent = bench.resolver("127.0.0.10", lambda name, tcp, data: None)
    bench.use("127.0.0.10")
    bench.network(1)
    bench.member(1, 2, "web")
    with bench.inside(bench.client(1, 9)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect((GATEWAY, 53))
        for attempt in range(20):
            begun = time.monotonic()
            first = 300 * attempt
            for number in range(MAX_EXCHANGES_PER_CLIENT + 10):
                sock.send(dns.query(f"a{number}.of{attempt}.example", id=first + number))
            refused = {dns.parse(sock.recv(4096)).id - first for _ in range(10)}
            if time.monotonic() - begun < 3:  # none of those that wait was given up meanwhile
                break
            for _ in range(MAX_EXCHANGES_PER_CLIENT):
                sock.recv(4096)
        assert refused == set(range(MAX_EXCHANGES_PER_CLIENT, MAX_EXCHANGES_PER_CLIENT + 10))
        assert dns.ask(GATEWAY, "web").values == ["10.77.1.2"]
    assert len({name for name in silent.asked if f".of{attempt}." in name}) <= MAX_EXCHANGES_PER_CLIENT


def test_a_clients_second_attempt_is_no_second_question(bench: Bench) -> None:
    may_answer = threading.Event()

    def slow(name: str, tcp: bool, data: bytes) -> bytes:
        may_answer.wait(60)
        return dns.answer_to(data, ["192.0.2.80"])

    resolver = bench.resolver("127.0.0.10", slow)
    bench.use("127.0.0.10")
    bench.network(1)
    bench.member(1, 2, "web")
    with bench.inside(bench.client(1, 9)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((GATEWAY, 53))
        for number in range(20):
            name, asked, told = f"{number}.example.org", 2 * number + 1, 2 * number + 2
            sock.settimeout(60)
            may_answer.clear()
            begun = time.monotonic()
            for _ in range(3):
                sock.send(dns.query(name, id=asked))
            sock.send(dns.query("web", id=told))
            found: dict[int, dns.Response] = {}
            for id in (told, asked):  # the service answers the last one when it has seen all three
                while id not in found:
                    response = dns.parse(sock.recv(4096))
                    found[response.id] = response
                may_answer.set()
            if time.monotonic() - begun < 0.9:  # else the service itself has asked again
                break
        assert found[asked].values == ["192.0.2.80"]
        sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                assert dns.parse(sock.recv(4096)).id != asked
    assert resolver.asked.count(name) == 1


def test_a_forged_answer_is_not_taken(bench: Bench) -> None:
    def forging(name: str, tcp: bool, data: bytes) -> bytes:
        return dns.answer_to(dns.query("other.example", id=int.from_bytes(data[:2], "big")), ["192.0.2.66"])

    bench.resolver("127.0.0.10", forging)
    bench.use("127.0.0.10")
    bench.network(1)
    with bench.inside(bench.client(1, 9)):
        assert dns.ask(GATEWAY, "example.org").code == dns.SERVFAIL


def test_truncation_and_tcp(bench: Bench) -> None:
    addresses = [f"192.0.2.{number}" for number in range(1, 201)]

    def large(name: str, tcp: bool, data: bytes) -> bytes:
        return dns.answer_to(data, addresses if tcp else [], flags=0 if tcp else 0x200)

    bench.resolver("127.0.0.10", large)
    bench.use("127.0.0.10")
    bench.network(1)
    for host in range(2, 102):
        bench.members.rows.setdefault("net1", []).append(zone.Member(f"{host:064x}", f"w{host}", ("all",), (f"10.77.1.{host}",)))
    bench.changed(1)
    with bench.inside(bench.client(1, 200)):
        response = dns.ask(GATEWAY, "all")
        assert response.truncated
        assert response.size <= 512
        assert len(response.values) == (512 - 12 - 9) // 16
        larger = dns.ask(GATEWAY, "all", edns=4096)
        assert larger.truncated
        assert 512 < larger.size <= 1232
        assert larger.edns == 1232
        whole = dns.ask_tcp(GATEWAY, "all")
        assert not whole.truncated
        assert sorted(whole.values) == sorted(f"10.77.1.{host}" for host in range(2, 102))
        assert undisturbed(lambda number: dns.ask(GATEWAY, f"large{number}.example")).truncated
        assert undisturbed(lambda number: dns.ask_tcp(GATEWAY, f"large{number}.example")).values == addresses
        first = {dns.ask(GATEWAY, "all").values[0] for _ in range(10)}
        assert len(first) > 1  # in turn


def test_one_connection_many_questions(bench: Bench) -> None:
    bench.resolver("127.0.0.10", lambda name, tcp, data: time.sleep(0.2) or dns.answer_to(data, ["192.0.2.80"]))  # type: ignore[func-returns-value]
    bench.use("127.0.0.10")
    bench.network(1)
    bench.member(1, 2, "web")

    def talk(_number: int) -> list[tuple[int, list[str | bytes]]]:
        with socket.create_connection((GATEWAY, 53), 60) as sock:
            questions = enumerate(("slow.example", "web", "web", "nobody", "slow.example"))
            stream = b"".join(dns.framed(dns.query(text, id=number)) for number, text in questions)
            sock.sendall(stream[:5])
            time.sleep(0.05)
            sock.sendall(stream[5:])
            sock.shutdown(socket.SHUT_WR)
            found = []
            while (response := dns.read_stream(sock)) is not None:
                found.append((response.id, response.values))
            return found

    with bench.inside(bench.client(1, 9)):
        found = undisturbed(talk)
    assert found == [(1, ["10.77.1.2"]), (2, ["10.77.1.2"]), (3, []), (0, ["192.0.2.80"]), (4, ["192.0.2.80"])]


def test_rubbish_does_no_harm(bench: Bench) -> None:
    bench.network(1)
    bench.member(1, 2, "web")
    with bench.inside(bench.client(1, 9)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((GATEWAY, 53))
            for number in range(300):
                sock.send(os.urandom(number))
        with socket.create_connection((GATEWAY, 53), 60) as stream:
            stream.sendall(b"\xff" * 100)
        assert dns.ask(GATEWAY, "web").values == ["10.77.1.2"]
    assert bench.server() in bench.processes()


# -- life and death ------------------------------------------------------------------------------------------------------------------------


def test_one_process_and_its_standby_for_all_networks_until_the_last_is_gone(bench: Bench) -> None:
    assert not hooks.ensure_running(bench.settings)
    for number in (1, 2, 3):
        bench.network(number)
    first = bench.processes()
    assert len(first) == 2
    assert {Path(f"/proc/{pid}/comm").read_text() for pid in first} == {"netbox-names\n"}
    hooks.network_down(bench.settings, "net2")
    hooks.network_down(bench.settings, "net2")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br-2")
        sock.bind(("10.77.2.1", 53))  # closed by the standby, too
    HANDLERS["nameservice"](UndoContext(bench.settings, bench.store), {"network": "net1"})
    assert hooks.is_running(bench.settings)
    hooks.network_down(bench.settings, "net3")
    assert not hooks.is_running(bench.settings)
    wait_until(lambda: bench.processes() == [], "the end of both")
    assert not Path(files.directory(bench.settings.run)).exists()
    assert not hooks.stop_if_idle(bench.settings)


def test_it_has_few_privileges(bench: Bench) -> None:
    bench.network(1)
    for pid in bench.processes():
        status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 10 | 1 << 12 | 1 << 13
        assert status["NoNewPrivs"] == "1"


def test_a_recreated_bridge_is_served_again(bench: Bench) -> None:
    served = bench.network(1)
    subprocess.run(["ip", "link", "delete", "br-1"], check=True, timeout=20)
    bench.bridge(1)
    hooks.network_up(bench.settings, served, bench.members, bench.store.journal("network:net1", "network"))
    bench.member(1, 2, "web")
    with bench.inside(bench.client(1, 9)):
        assert dns.ask(GATEWAY, "web").values == ["10.77.1.2"]


@pytest.mark.parametrize("victim", ["server", "standby"])
def test_one_of_the_two_is_killed(bench: Bench, victim: str) -> None:
    bench.network(1)
    bench.member(1, 2, "web")
    server = bench.server()
    before = bench.processes()
    target = server if victim == "server" else next(pid for pid in before if pid != server)
    with bench.inside(bench.client(1, 9)):
        os.kill(target, signal.SIGKILL)
        assert dns.ask(GATEWAY, "web").values == ["10.77.1.2"]
        assert dns.ask_tcp(GATEWAY, "web").values == ["10.77.1.2"]
        wait_until(lambda: len(bench.processes()) == 2 and target not in bench.processes(), "two again")
        bench.member(1, 3, "late")
        assert dns.ask(GATEWAY, "late").values == ["10.77.1.3"]
    assert not hooks.ensure_running(bench.settings)
    bench.network(2)
    assert (bench.server() == server) == (victim == "standby")


def test_both_are_killed_and_the_next_command_puts_them_back(bench: Bench) -> None:
    bench.network(1)
    bench.network(2)
    bench.member(1, 2, "web")
    _kill(bench)
    with bench.inside(bench.client(1, 9)):
        wait_until(nobody_answers, "the sockets to be closed")
        bench.member(1, 3, "meanwhile")
    assert hooks.ensure_running(bench.settings)
    assert not hooks.ensure_running(bench.settings)
    with bench.inside(bench._namespaces[0]):
        assert dns.ask(GATEWAY, "web").values == ["10.77.1.2"]
        assert dns.ask(GATEWAY, "meanwhile").values == ["10.77.1.3"]
    _kill(bench)
    hooks.network_down(bench.settings, "net1")  # puts it back for the other one
    assert len(bench.processes()) == 2
    _kill(bench)
    hooks.network_down(bench.settings, "net2")
    assert not Path(files.directory(bench.settings.run)).exists()


def nobody_answers() -> bool:
    """The lock of a process that ends may be free a moment before its sockets are closed."""
    with contextlib.suppress(TimeoutError):
        try:
            dns.ask(GATEWAY, "web", timeout=1)
        except ConnectionRefusedError:
            return True
    return False


def _kill(bench: Bench) -> None:
    pids = bench.processes()
    pidfds = [os.pidfd_open(pid) for pid in pids]
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)  # else one would put the other back
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    wait_until(lambda: not hooks.is_running(bench.settings), "both are gone")


def test_stop_if_idle_ends_what_a_killed_command_left(bench: Bench) -> None:
    bench.network(1)
    files.delete(bench.settings.run, "net1")  # network_down was killed here
    assert hooks.is_running(bench.settings)
    assert hooks.stop_if_idle(bench.settings)
    wait_until(lambda: bench.processes() == [], "the end of both")
    assert not Path(files.directory(bench.settings.run)).exists()


# -- load ----------------------------------------------------------------------------------------------------------------------------------

QUESTIONS = 2000
WINDOW = 200  # questions that wait at once


def _storm(client: int) -> int:
    """Sends 2,000 questions about ``web`` from one socket of a new port, never again the same one, and returns the number of good answers.

    The last question is another one, sent until it is answered: those before it stand in the same queues, so that nothing comes any more.
    """
    with linux.network_namespace(client):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        sock.connect((GATEWAY, 53))
        sock.settimeout(1)
        answered: set[int] = set()
        ended = threading.Event()

        def collect() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    response = dns.parse(sock.recv(4096))
                    if response.id == QUESTIONS:
                        ended.set()
                    elif response.values == ["10.77.1.2"]:
                        answered.add(response.id)

        reader = threading.Thread(target=collect)
        reader.start()
        try:
            lost = 0
            for number in range(QUESTIONS):
                patience = time.monotonic() + 10
                while number - len(answered) - lost >= WINDOW and time.monotonic() < patience:
                    time.sleep(0.001)
                lost = max(lost, number - len(answered) - WINDOW + 1)
                sock.send(dns.query("web", id=number))
                if number % 20 == 0:
                    time.sleep(0.005)
            deadline = time.monotonic() + 60
            while not ended.is_set():
                assert time.monotonic() < deadline, "the last question was not answered"
                sock.send(dns.query("last", id=QUESTIONS))
                ended.wait(1)
        finally:
            ended.set()
            reader.join()
    return len(answered)


def test_no_question_is_lost_while_sandboxes_and_networks_come_and_go(bench: Bench) -> None:
    bench.network(1)
    bench.member(1, 2, "web")
    client = bench.client(1, 9)
    stop = threading.Event()
    changes = [0]

    def churn() -> None:
        round_ = 0
        while not stop.is_set():
            round_ += 1
            for host in range(20, 30):
                bench.member(1, host, f"box{host}")
            for host in range(20, 30):
                bench.leave(1, f"box{host}")
            changes[0] += 20
            if round_ % 3 == 0:
                bench.network(5)
                hooks.network_down(bench.settings, "net5")
        bench.store.close()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            assert _storm(client) == QUESTIONS
            if changes[0] >= 100:
                break
    finally:
        stop.set()
        thread.join()
    assert changes[0] >= 100


def test_a_change_is_seen_by_the_very_next_question(bench: Bench) -> None:
    bench.network(1)
    with bench.inside(bench.client(1, 9)):
        for number in range(300):
            bench.member(1, 2, "web")
            assert dns.ask(GATEWAY, "web").values == ["10.77.1.2"], number
            bench.leave(1, "web")
            assert dns.ask(GATEWAY, "web").code == dns.NXDOMAIN, number


def test_kills_under_load_lose_only_what_was_being_answered(bench: Bench) -> None:
    """Questions wait in the sockets while the standby takes over; only the one that was read and not answered yet can be lost by a kill."""
    bench.network(1)
    bench.member(1, 2, "web")
    client = bench.client(1, 9)
    kills = 3

    def killing() -> None:
        for _ in range(kills):
            time.sleep(0.1)
            wait_until(lambda: len(bench.processes()) == 2, "two again")
            os.kill(bench.server(), signal.SIGKILL)

    thread = threading.Thread(target=killing)
    thread.start()
    answered = _storm(client)
    thread.join()
    assert answered >= QUESTIONS - kills
