"""``why`` over IPv6: the main causes, set up on networks that have both versions."""

from __future__ import annotations

import functools
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from netbox.engine import Engine
from netbox.kernel.connections import Connection, connections
from netbox.packet import why
from netbox.packet.diagnosis.values import Answer
from tests.e2e.why_lab import IMPATIENCE, WhyLab, told
from tests.support.host import Neighbour
from tests.support.waiting import wait_until


@pytest.fixture
def lab(engine: Engine) -> Iterator[WhyLab]:
    """web and peer on front, db on back; front and back have IPv6."""
    made = WhyLab(engine)
    try:
        for name in ("front", "back"):
            made.network(name, ipv6=True)
        made.box("web")
        made.box("peer")
        made.box("db", "back")
        yield made
    finally:
        made.close()


@pytest.fixture
def fails(lab: WhyLab) -> Callable[..., Answer]:
    return functools.partial(lab.fails, ipv6=True)


@pytest.fixture
def reaches(lab: WhyLab) -> Callable[..., Answer]:
    return functools.partial(lab.reaches, ipv6=True)


def _entries(address: str) -> list[Connection]:
    """The connections of which answers are expected from an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return [item for item in connections(socket.IPPROTO_TCP, family) if item.reply.source == address]


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


def test_networks_and_listeners(lab: WhyLab, fails: Callable[..., Answer], reaches: Callable[..., Answer]) -> None:
    lab.serve("web", 80, address="::")
    assert reaches("peer", "web:80").sentence == "peer reaches web:80 over network front"
    answer = fails("web", "db:5432", "other-network")
    assert (answer.observation.owner, answer.command) == ("network back", "netbox network connect back web")
    fails("web", f"[{lab.address6('db')}]:5432", "other-network")
    fails("peer", "web:81", "not-listening")
    answer = fails("peer", "web:81/udp", "not-listening")
    assert "says: ICMPv6 port unreachable" in answer.observation.said
    lab.serve("web", 82, address="::1")
    assert "[::1]:82 only, which nobody outside web reaches" in fails("peer", "web:82", "listening-elsewhere").sentence
    lab.serve("web", 83)
    assert "0.0.0.0:83 only, for IPv4, and the packet is IPv6" in fails("peer", "web:83", "listening-elsewhere").sentence
    with lab.socket("web", family=socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(("::", 84))
        listener.listen(1)
        assert "[::]:84 only, for IPv6, and the packet is IPv4" in lab.fails("peer", "web:84", "listening-elsewhere").sentence


def test_foreign_rules_and_neighbours(lab: WhyLab, fails: Callable[..., Answer], reaches: Callable[..., Answer]) -> None:
    lab.serve("web", 80, address="::")
    run("ip6tables-legacy", "-I", "FORWARD", "-p", "tcp", "--dport", "80", "-j", "DROP")
    answer = fails("peer", "web:80", "foreign-rule")
    assert answer.command == "ip6tables-legacy -D FORWARD 1"
    run(*answer.command.split())
    run("ip6tables-legacy", "-I", "FORWARD", "-p", "icmpv6", "--icmpv6-type", "echo-request", "-j", "DROP")
    fails("peer", "web", "foreign-rule")
    run("ip6tables-legacy", "-D", "FORWARD", "1")
    # A rule about UDP ports is none about TCP, and one about echo requests none about other messages.
    rules = "udp dport 80 drop; icmpv6 type echo-reply drop; icmpv6 type echo-request drop; meta nfproto ipv6 tcp dport 80 reject"
    run("nft", f"table inet mine {{ chain forward {{ type filter hook forward priority 5; {rules}; }}; }}")
    assert "inet mine forward rule 3" in fails("peer", "web", "foreign-rule").sentence
    assert "inet mine forward rule 4" in fails("peer", "web:80", "foreign-rule").sentence
    run("nft", "flush", "ruleset")
    web = lab.address6("web")
    lab.ip("peer", f"neighbour replace {web} lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
    answer = fails("peer", "web:80", "wrong-mac")
    assert answer.command is not None
    run(*answer.command.split())
    reaches("peer", "web:80")
    lab.ip("peer", f"neighbour replace {web} lladdr 02:00:00:00:00:99 dev eth0 nud reachable")
    fails("peer", "web:80", "stale-neighbour")


def test_routes_and_links(lab: WhyLab, outside: Neighbour, fails: Callable[..., Answer], reaches: Callable[..., Answer]) -> None:
    with outside.inside():
        lab.serve("", 7000, address="::")
    beyond = f"[{outside.address6}]:7000"
    assert "by way of the host and eth0" in reaches("web", beyond).sentence
    fails("web", beyond, "ttl-expired", ttl=1)
    lab.sysctl("web", "net/ipv6/conf/eth0/hop_limit", "1")
    answer = fails("web", beyond, "ttl-expired")
    assert answer.command == f"nsenter -t {lab.boxes['web'].pid} -n sysctl -w net.ipv6.conf.eth0.hop_limit=64"
    lab.sysctl("web", "net/ipv6/conf/eth0/hop_limit", "64")
    lab.sysctl("", "net/ipv6/conf/all/forwarding", "0")
    assert fails("web", beyond, "forwarding-off").command == "sysctl -w net.ipv6.conf.all.forwarding=1"
    lab.sysctl("", "net/ipv6/conf/all/forwarding", "1")
    lab.ip("web", "-6 route del default")
    answer = fails("web", beyond, "no-route")
    assert answer.command is not None
    run(*answer.command.split())
    lab.ip("", f"-6 route replace default via {outside.address6}")  # gone with the change of forwarding
    reaches("web", beyond)
    lab.network("plain")
    lab.box("old", "plain")
    assert "old has no IPv6: its network plain has none" in fails("old", beyond, "no-route").sentence
    lab.ip("db", f"-6 route add unreachable {lab.address6('web')}")
    lab.ip("web", f"-6 route add unreachable {lab.address6('peer')}")
    assert "a route of type unreachable" in fails("peer", "web:80", "no-way-back").sentence
    end = lab.endpoint("web")["host_interface"]
    lab.ip("", f"link set {end} down")
    assert fails("peer", "web:80", "link-down").command == f"ip link set {end} up"
    lab.ip("", f"link set {end} up")
    for state in ("down", "up"):
        lab.ip("peer", f"link set eth0 {state}")
    answer = fails("peer", "web:80", "address-missing")
    assert answer.command == "netbox restart peer"
    assert lab.fails("db", "peer", "other-network", ipv6=True).command == "netbox network connect front db"


def test_published_ports(lab: WhyLab, outside: Neighbour, fails: Callable[..., Answer], reaches: Callable[..., Answer]) -> None:
    lab.box("pub", ports=["8080:80", f"[{outside.host_address6}]:8081:80"])
    lab.serve("pub", 80, address="::")
    gateway = lab.endpoint("peer")["gateway6"]
    ways = [("peer", f"[{outside.host_address6}]:8080"), ("db", f"[{gateway}]:8080"), ("host", "pub:8080"), ("lan", "pub:80")]
    for source, target in ways:
        answer = reaches(source, target)
        assert "by the port that pub publishes" in answer.sentence
        assert ":" in answer.observation.to_json()["trace"]["hops"][0]["text"]
    answer = fails("db", f"[{gateway}]:8081", "published-elsewhere")
    assert answer.command == f"netbox publish pub [{gateway}]:8081:80"
    fails("db", f"[{outside.host_address6}]:8083", "not-published")
    assert fails("lan", "web:80", "not-published").command == "netbox publish web 80:80"
    run("ip6tables-legacy", "-t", "nat", "-F", "NETBOX-PUBLISH")
    assert fails("peer", f"[{gateway}]:8080", "rules-missing").command == "netbox repair"


@pytest.mark.parametrize("version", [4, 6])
def test_a_stale_connection(lab: WhyLab, version: int) -> None:
    """Packets of a client go to an address that was a sandbox's when the client began."""
    family, tool, key = ((socket.AF_INET, "iptables-legacy", ""), (socket.AF_INET6, "ip6tables-legacy", "6"))[version == 6]
    lab.box("pub", ports=["8080:80"])
    lab.serve("pub", 80, address="::")
    gone, gateway, pub = (lab.endpoint(name)[item + key] for name, item in (("db", "address"), ("peer", "gateway"), ("pub", "address")))
    lab.execute("db", tool, "-A", "INPUT", "-p", "tcp", "-j", "DROP")
    rule = ["-p", "tcp", "--dport", "8080", "-j", "DNAT", "--to", f"[{gone}]:80" if version == 6 else f"{gone}:80"]
    target = f"[{gateway}]:8080" if version == 6 else f"{gateway}:8080"
    with lab.socket("peer", socket.SOCK_STREAM, family) as client:
        client.setblocking(False)
        client.bind(("", 5353))
        run(tool, "-t", "nat", "-I", "PREROUTING", *rule)
        client.connect_ex((gateway, 8080))
        wait_until(lambda: _entries(gone), "the entry of the connection", timeout=20)
        run(tool, "-t", "nat", "-D", "PREROUTING", *rule)
        lab.reaches("peer", target)  # the port is in use, and db has the address: nothing is wrong
        lab.boxes["db"].kill()
        lab.boxes["db"].wait(timeout=60)
        wait_until(lambda: lab.engine.get("db").state == "exited", "the end of db")
        answer = why(lab.engine, "peer", target, timeout=IMPATIENCE)
        assert (answer.reachable, answer.cause, answer.agreed) == (True, "stale-connection", True), told(answer)
        assert "but not from port 5353" in answer.sentence
    answer = lab.fails("peer", target, "stale-connection")
    assert answer.sentence.startswith(f"peer, sending from port 5353, does not reach {target}: connection tracking still sends what")
    assert f"{gone}{']' * (version == 6)}:80, which nobody has any more, instead of" in answer.sentence
    assert pub in answer.sentence
    own = lab.endpoint("peer")["address" + key]
    assert answer.command == f"conntrack -D -p tcp --orig-src {own} --orig-port-src 5353 --orig-dst {gateway} --orig-port-dst 8080"
