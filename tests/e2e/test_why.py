"""``why``: every cause set up for real, recognised, and told from the others."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator

import pytest

from netbox.engine import Engine
from netbox.packet import why
from tests.e2e.why_lab import IMPATIENCE, PATIENCE, WhyLab, told
from tests.support.cli import Cli
from tests.support.host import Neighbour, PrivateHost
from tests.support.waiting import wait_until


@pytest.fixture
def lab(engine: Engine) -> Iterator[WhyLab]:
    """web and peer on front, db on back."""
    made = WhyLab(engine)
    try:
        for name in ("front", "back"):
            made.network(name)
        made.box("web")
        made.box("peer")
        made.box("db", "back")
        yield made
    finally:
        made.close()


def test_networks(lab: WhyLab, cli: Cli) -> None:
    lab.serve("web", 80)
    lab.serve("db", 5432)
    answer = lab.reaches("peer", "web:80")
    assert answer.sentence == "peer reaches web:80 over network front"
    assert answer.cause == "reachable"
    answer = lab.fails("web", "db:5432", "other-network")
    assert answer.sentence.startswith("web cannot reach db:5432: they share no network (web is on front, db on back), so the packet is")
    assert "dropped by filter NETBOX-INGRESS rule" in answer.sentence
    assert answer.observation.owner == "network back"
    assert answer.command == "netbox network connect back web"
    told_by_command = cli("why", "web", "db:5432", check=1).stdout
    assert " ".join(told_by_command.split()).startswith(f"{answer.sentence}. Evidence networks web is on front")
    assert told_by_command.endswith("To mend it:\n  netbox network connect back web\n")
    document = json.loads(cli("why", "web", "db", "--tcp", "5432", "--format", "json", check=1).stdout)
    assert (document["cause"], document["command"], document["prediction"]["cause"]) == ("other-network", answer.command, "other-network")
    assert document["observation"]["trace"]["hops"][0]["netns"] == "web"
    assert cli("why", "peer", "web:80").stdout.startswith("peer reaches web:80 over network front.\n")
    lab.engine.get("web").connect("back")
    assert lab.reaches("web", "db:5432").sentence == "web reaches db:5432 over network back"
    lab.network("inner", internal=True)
    lab.box("hidden", "inner")
    assert "hidden is on inner only, an internal network" in lab.fails("peer", "hidden", "internal-network").sentence
    answer = lab.fails("hidden", "db:5432", "internal-network")
    assert answer.command == "netbox network connect inner db"
    assert "no way out" in lab.fails("hidden", "192.0.2.1:80", "internal-network").sentence


def test_published_ports(lab: WhyLab, outside: Neighbour) -> None:
    lab.box("pub", ports=["8080:80", "127.0.0.1:8081:80"])
    lab.serve("pub", 80)
    gateway = lab.endpoint("peer")["gateway"]
    answer = lab.reaches("peer", f"{outside.host_address}:8080")
    assert "by the port that pub publishes" in answer.sentence
    assert ("DNAT", f"{outside.host_address}:8080 → {lab.address('pub')}:80, published by pub") in answer.evidence
    assert lab.reaches("host", "pub:8080").cause == "reachable"
    assert lab.reaches("db", f"{outside.host_address}:8080").cause == "reachable"
    answer = lab.fails("db", f"{gateway}:8081", "published-elsewhere")
    assert "pub publishes port 8081 on 127.0.0.1 only" in answer.sentence
    assert answer.command == f"netbox publish pub {gateway}:8081:80"
    lab.fails("host", f"{outside.host_address}:8081", "published-elsewhere")
    lab.engine.get("pub").publish(f"{gateway}:8081:80")
    lab.reaches("db", f"{gateway}:8081")
    lab.fails("db", f"{outside.host_address}:8082", "not-published")
    lab.fails("peer", "host:8082", "not-listening")
    subprocess.run(["iptables-legacy", "-t", "nat", "-F", "NETBOX-PUBLISH"], check=True)
    answer = lab.fails("peer", f"{outside.host_address}:8080", "rules-missing")
    assert answer.command == "netbox repair"


def test_listening(lab: WhyLab) -> None:
    answer = lab.fails("peer", "web:80", "not-listening")
    assert answer.observation.outcome == "refused"
    lab.fails("peer", "web:53", "not-listening", protocol="udp")
    lab.serve("web", 81, address="127.0.0.1")
    assert "127.0.0.1:81 only" in lab.fails("peer", "web:81", "listening-elsewhere").sentence
    lab.serve("web", 53, "udp")
    assert lab.reaches("peer", "web:53/udp").cause == "reachable"
    with lab.socket("web", socket.SOCK_DGRAM) as silent:
        silent.bind(("0.0.0.0", 54))
        answer = why(lab.engine, "peer", "web:54/udp", timeout=IMPATIENCE)
        assert (answer.reachable, answer.observation.outcome) == (True, "delivered"), told(answer)
    with lab.socket("web") as listener, lab.socket("peer") as first, lab.socket("peer") as second:
        listener.bind(("0.0.0.0", 82))
        listener.listen(0)
        first.connect((lab.address("web"), 82))
        second.setblocking(False)
        second.connect_ex((lab.address("web"), 82))
        answer = lab.fails("peer", "web:82", "backlog-full")
        assert "does not accept" in answer.sentence


def test_routes(lab: WhyLab, outside: Neighbour) -> None:
    with outside.inside():
        lab.serve("", 7000)
    assert "by way of the host and eth0" in lab.reaches("web", f"{outside.address}:7000").sentence
    assert "198.51.100.77" in lab.fails("web", "198.51.100.77:80", "no-neighbour").sentence
    lab.fails("web", f"{outside.address}:7001", "not-listening")
    bridge = lab.endpoint("web")["bridge"]
    lab.fails("web", outside.address, "ttl-expired", ttl=1)
    lab.sysctl("web", "net/ipv4/ip_default_ttl", "1")
    answer = lab.fails("web", f"{outside.address}:7000", "ttl-expired")
    assert answer.observation.outcome == "expired"
    lab.sysctl("web", "net/ipv4/ip_default_ttl", "64")
    lab.sysctl("", f"net/ipv4/conf/{bridge}/rp_filter", "1")
    lab.ip("", f"route add {lab.address('web')} via {outside.address}")
    answer = lab.fails("web", f"{outside.address}:7000", "reverse-path-filter")
    assert answer.observation.reason == "IP_RPFILTER"
    lab.ip("", f"route del {lab.address('web')}")
    lab.sysctl("", "net/ipv4/ip_forward", "0")
    lab.fails("web", f"{outside.address}:7000", "forwarding-off")
    lab.sysctl("", "net/ipv4/ip_forward", "1")
    lab.ip("web", "route del default")
    answer = lab.fails("web", f"{outside.address}:7000", "no-route")
    assert answer.observation.outcome == "no route"
    assert answer.command is not None
    subprocess.run(answer.command.split(), check=True)
    lab.reaches("web", f"{outside.address}:7000")
    lab.ip("peer", "route add blackhole 10.99.0.0/16")
    assert "blackhole" in lab.fails("peer", "10.99.0.1", "no-route").sentence


def accepted_by_docker() -> str:
    command = ["iptables-nft", "-S", "DOCKER-USER"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_foreign_rules(lab: WhyLab) -> None:
    lab.serve("web", 80)
    subprocess.run(["iptables-legacy", "-I", "FORWARD", "-p", "tcp", "--dport", "80", "-j", "DROP"], check=True)
    answer = lab.fails("peer", "web:80", "foreign-rule")
    assert "filter FORWARD rule 1 (legacy iptables)" in answer.sentence
    assert answer.command == "iptables-legacy -D FORWARD 1"
    subprocess.run(answer.command.split(), check=True)
    lab.reaches("peer", "web:80")
    subprocess.run(["iptables-nft", "-P", "FORWARD", "DROP"], check=True)
    answer = lab.fails("peer", "web:80", "foreign-rule")
    assert "ip filter FORWARD policy (nf_tables)" in answer.sentence
    assert answer.command == f"iptables-nft -I FORWARD -i {lab.endpoint('web')['bridge']} -j ACCEPT"
    subprocess.run(answer.command.split(), check=True)
    lab.reaches("peer", "web:80")
    subprocess.run(["iptables-nft", "-F", "FORWARD"], check=True)
    subprocess.run(["iptables-nft", "-N", "DOCKER-USER"], check=True)
    subprocess.run(["iptables-nft", "-A", "FORWARD", "-j", "DOCKER-USER"], check=True)
    # The name service hears of the chain and lets our networks pass, all by one commit. What somebody takes away again stays away.
    wait_until(lambda: "network:front" in accepted_by_docker(), "the accepts in the chain")
    subprocess.run(["iptables-nft", "-F", "DOCKER-USER"], check=True)
    answer = lab.fails("peer", "web:80", "foreign-rule")
    assert answer.command == f"iptables -I DOCKER-USER -i {lab.endpoint('web')['bridge']} -j ACCEPT"
    subprocess.run(["iptables-nft", "-P", "FORWARD", "ACCEPT"], check=True)
    rules = "table inet mine { chain forward { type filter hook forward priority 5; tcp dport { 80, 81 } reject; } ; }"
    subprocess.run(["nft", rules], check=True)
    answer = lab.fails("peer", "web:80", "foreign-rule")
    assert "inet mine forward rule 1 (nf_tables)" in answer.sentence
    subprocess.run(["nft", "delete table inet mine"], check=True)
    subprocess.run(["nft", "flush ruleset"], check=True)
    lab.execute("web", "iptables-legacy", "-A", "INPUT", "-p", "tcp", "-j", "DROP")
    assert "inside web" in lab.fails("peer", "web:80", "foreign-rule").sentence


def test_our_own_rules_in_nf_tables(private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", "nftables")
    with Engine() as engine:
        lab = WhyLab(engine)
        try:
            lab.network("front")
            lab.network("inner", internal=True)
            lab.box("web", ports=["8080:80"])
            lab.box("hidden", "inner")
            lab.box("plain", "bridge")
            lab.serve("web", 80)
            lab.serve("plain", 80)
            assert "by the port that web publishes" in lab.reaches("plain", f"{lab.endpoint('plain')['gateway']}:8080").sentence
            subprocess.run(["nft", "flush", "map", "ip", "netbox", "port"], check=True)
            answer = why(engine, "plain", f"{lab.endpoint('plain')['gateway']}:8080", timeout=IMPATIENCE)
            assert (answer.cause, answer.reachable, answer.command) == ("rules-missing", False, "netbox repair"), told(answer)
            answer = lab.fails("web", "plain:80", "other-network")
            assert "dropped by ip netbox ingress rule" in answer.sentence
            assert answer.observation.owner == "network bridge"
            assert "dropped by ip netbox fence rule" in lab.fails("web", "hidden", "internal-network").sentence
        finally:
            lab.close()


def test_from_a_neighbour(lab: WhyLab) -> None:
    lab.box("pub", ports=["8080:80"])
    lab.serve("pub", 80)
    lab.serve("web", 80)
    assert "by the port that pub publishes" in lab.reaches("lan", "pub:80").sentence
    answer = lab.fails("lan", "web:80", "not-published")
    assert answer.command == "netbox publish web 80:80"
    lab.engine.get("web").publish("80:80")
    lab.reaches("lan", "web:80")
    lab.fails("lan", "host:81", "not-listening")


def test_an_answer_by_another_interface(lab: WhyLab) -> None:
    lab.box("both", network="front")
    lab.engine.get("both").connect("back")
    lab.serve("both", 80)
    lab.sysctl("both", "net/ipv4/conf/eth0/rp_filter", "1")
    lab.ip("both", f"route add {lab.address('peer')} dev eth1")
    answer = lab.fails("peer", "both:80", "reverse-path-filter")
    assert "the reverse path filter of both drops it" in answer.sentence
    lab.sysctl("both", "net/ipv4/conf/eth0/rp_filter", "0")
    lab.ip("both", f"route replace unreachable {lab.address('peer')}")
    lab.fails("peer", "both:80", "no-way-back")


def test_macs_and_links(lab: WhyLab) -> None:
    lab.serve("web", 80)
    web, peer = lab.endpoint("web"), lab.endpoint("peer")
    lab.ip("peer", f"neighbour replace {web['address']} lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
    answer = lab.fails("peer", "web:80", "wrong-mac")
    assert answer.command is not None
    subprocess.run(answer.command.split(), check=True)
    lab.reaches("peer", "web:80")
    lab.ip("peer", f"neighbour replace {web['address']} lladdr 02:00:00:00:00:99 dev eth0 nud reachable")
    lab.fails("peer", "web:80", "stale-neighbour")
    lab.ip("peer", "neighbour flush dev eth0")
    lab.reaches("peer", "web:80")
    lab.box("twin")
    lab.ip("twin", f"link set eth0 address {web['mac_address']}")
    lab.ip("twin", "neighbour flush dev eth0")
    with lab.socket("twin", socket.SOCK_DGRAM) as client:
        client.sendto(b"?", (peer["address"], 9))  # the bridge learns where the MAC is now
    answer = lab.fails("peer", "web:80", "duplicate-mac")
    assert "web and twin have the same MAC" in answer.sentence
    assert answer.command is not None
    subprocess.run(answer.command.split(), check=True)
    lab.ip("", f"link set {web['host_interface']} down")
    answer = lab.fails("peer", "web:80", "link-down")
    assert answer.command == f"ip link set {web['host_interface']} up"
    lab.ip("", f"link set {web['host_interface']} up")
    lab.ip("peer", "link set eth0 down")
    assert "eth0 of peer is down" in lab.fails("peer", "web:80", "link-down").sentence


def test_states(lab: WhyLab) -> None:
    lab.serve("web", 80)
    lab.boxes["web"].pause()
    answer = lab.fails("peer", "web:80", "target-paused")
    assert answer.command == "netbox unpause web"
    lab.fails("web", "peer", "source-paused")
    lab.boxes["web"].unpause()
    lab.reaches("peer", "web:80")
    lab.boxes["db"].kill()
    lab.boxes["db"].wait(timeout=60)
    wait_until(lambda: lab.engine.get("db").state == "exited", "the end of db")
    answer = lab.fails("web", "db:80", "target-not-running")
    assert answer.command == "netbox start db"
    lab.fails("db", "web:80", "source-not-running")


def test_names(lab: WhyLab, outside: Neighbour) -> None:
    lab.box("plain", "bridge")
    answer = lab.fails("peer", "wbe:80", "name-unknown", timeout=PATIENCE)
    assert answer.mend == "did you mean web?"
    answer = lab.fails("plain", "example.org:80", "dns-down")
    assert outside.address in answer.sentence
    answer = lab.fails("peer", "example.org:80", "dns-down", timeout=PATIENCE)
    assert "the servers behind it do not answer" in dict(answer.evidence)["answer"]


def test_source_ports_and_a_stale_connection(lab: WhyLab) -> None:
    lab.serve("web", 80)
    lab.sysctl("peer", "net/ipv4/ip_local_port_range", "50000 50001")
    with lab.socket("web") as listener, lab.socket("peer") as first, lab.socket("peer") as second:
        listener.bind(("0.0.0.0", 83))
        listener.listen(8)
        for sock in (first, second):
            sock.connect((lab.address("web"), 83))
        answer = lab.fails("peer", "web:83", "source-ports-used-up")
        assert answer.observation.outcome == "no source port"
        lab.reaches("peer", "web:80")
    lab.box("dns", ports=["8053:53/udp"])
    lab.serve("dns", 53, "udp")
    gateway = lab.endpoint("peer")["gateway"]
    rule = f"PREROUTING -p udp --dport 8053 -j DNAT --to {lab.address('db')}:53".split()
    with lab.socket("peer", socket.SOCK_DGRAM) as client:
        client.bind(("0.0.0.0", 5353))
        subprocess.run(["iptables-legacy", "-t", "nat", "-I", *rule], check=True)
        client.sendto(b"?", (gateway, 8053))
        subprocess.run(["iptables-legacy", "-t", "nat", "-D", *rule], check=True)
    answer = lab.fails("peer", f"{gateway}:8053/udp", "stale-connection")
    assert f"{lab.address('db')}:53 (db), instead of" in answer.sentence
    flow = f"--orig-src {lab.address('peer')} --orig-port-src 5353 --orig-dst {gateway} --orig-port-dst 8053"
    assert answer.command == f"conntrack -D -p udp {flow}"


def test_links_that_are_worse(lab: WhyLab) -> None:
    lab.serve("web", 80)
    lab.execute("peer", "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "32k", "latency", "50ms")
    answer = lab.reaches("peer", "web:80")
    assert "somebody has put the queueing discipline tbf on eth0 of peer" in answer.sentence
    lab.execute("peer", "tc", "qdisc", "del", "dev", "eth0", "root")
    lab.boxes["web"].impair(rate="1mbit")
    answer = lab.reaches("peer", "web:80")
    assert (answer.cause, answer.command) == ("impairment", "netbox impair web --off")
    lab.boxes["web"].impair(loss="100%", direction="in")
    lab.fails("peer", "web:80", "impairment")
    lab.boxes["web"].lift_impairments()
    assert lab.reaches("peer", "web:80").cause == "reachable"
    lab.ip("web", "link set eth0 mtu 1400")
    answer = lab.fails("peer", "web:80", "mtu", size=1500)
    assert "vanish at eth0 of web" in answer.sentence
    assert lab.reaches("peer", "web:80", size=1400).cause == "reachable"
    assert "eth0 of peer takes packets of 1500 bytes at most" in lab.fails("peer", "web", "mtu", size=1600).sentence
    answer = why(lab.engine, "peer", "web:80", timeout=2.0)  # what is small must arrive, and what is large must not
    assert (answer.reachable, answer.cause) == (True, "mtu"), told(answer)
    assert "with small packets only" in answer.sentence
