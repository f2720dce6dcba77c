"""What ``why`` foresees from facts: each cause by itself, and the order between them."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import netbox
from netbox.kernel.connections import Connection, Tuple
from netbox.kernel.inspection import QueueFact, RouteFact
from netbox.kernel.socket_diag import SocketFact
from netbox.packet.diagnosis import causes
from netbox.packet.diagnosis.predict import predict
from netbox.packet.diagnosis.values import Facts, Mac, Request, Throttle
from netbox.packet.resolving import Resolution
from netbox.spec import PortSpec
from tests.unit import why_facts
from tests.unit.why_facts import DB, HOST, MACS, WEB, across, box, chains, facts, inside, interface, link, listener, outward, to_host


def _published(address: str, **changes: object) -> Facts:
    pub = box("db", DB, ports=(PortSpec(80, 8080, 1, "tcp", address),))
    return to_host(boxes=(box("web", WEB), pub), **changes)


def _internal(name: str) -> Facts:
    hidden = interface(name, "10.2.0.3" if name == "db" else WEB, "inner", why_facts.FRONT, internal=True)
    shown = across()
    if name == "db":
        return replace(shown, target_box=box("db", "10.2.0.3", interfaces=(hidden,)))
    return replace(shown, source_box=box("web", WEB, interfaces=(hidden,)), source_route=RouteFact("10.2.0.3", error=errno.ENETUNREACH))


def _full_ports() -> Facts:
    source = inside("web", WEB, 2, tuple(SocketFact("tcp", WEB, port, DB, 80, 1, 0, 0, port) for port in (40000, 40001)))
    return facts(source=replace(source, sysctls={"net.ipv4.ip_local_port_range": "40000 40001"}))


def _old_connection() -> Facts:
    entry = Connection(17, Tuple(WEB, 5353, "192.0.2.2", 8080), Tuple("10.9.9.9", 53, WEB, 5353), 20)
    return to_host(request=Request("udp", 8080), connections=(entry,), host=replace(HOST, sockets=(listener(8080, protocol="udp"),)))


def _old_tcp_connection(state: str, goes: str = "10.9.9.9") -> Facts:
    entry = Connection(6, Tuple(WEB, 40000, "192.0.2.2", 8080), Tuple(goes, 80, WEB, 40000), 20, state)
    return to_host(connections=(entry,), host=replace(HOST, sockets=(listener(8080),)))


def _link_down() -> Facts:
    links = tuple(link(item.name, item.number, up=item.name != "nbdb", master=item.master, mac=item.mac) for item in HOST.links)
    return facts(host=replace(HOST, links=links))


def _slow(loss: float) -> Facts:
    return facts(target_box=box("db", DB, throttles=(Throttle("db", "in", "loss 100%", loss),)))


CASES: dict[str, tuple[str, Callable[[], Facts]]] = {
    "source has ended": ("source-not-running", lambda: facts(source_box=box("web", WEB, state="exited"))),
    "source paused": ("source-paused", lambda: facts(source_box=box("web", WEB, state="paused"))),
    "no name server answers": (
        "dns-down",
        lambda: facts(address="", resolution=Resolution("x", "silent", (), ("192.0.2.53",), "none")),
    ),
    "no name server": ("dns-down", lambda: facts(address="", resolution=Resolution("x", "no server"))),
    "no such name": ("name-unknown", lambda: facts(address="", resolution=Resolution("x", "unknown", (), ("192.0.2.53",), "NXDOMAIN"))),
    "target has ended": ("target-not-running", lambda: facts(target_box=box("db", DB, state="exited"))),
    "target paused": ("target-paused", lambda: facts(target_box=box("db", DB, state="paused"))),
    "no network": ("no-network", lambda: facts(address="", target_box=box("db", DB, interfaces=(), mode="none"), target=None)),
    "link down": ("link-down", _link_down),
    "address lost": ("address-missing", lambda: facts(target=replace(inside("db", DB, 3, (listener(80),)), addresses=()))),
    "own address lost": (
        "address-missing",
        lambda: facts(source=replace(facts().source, addresses=()), source_route=RouteFact(DB, error=errno.ENETUNREACH)),
    ),
    "no IPv6": ("no-route", lambda: outward(address="2001:db8::9", source_route=RouteFact("2001:db8::9", error=errno.ENETUNREACH))),
    "listens for IPv6 only": (
        "listening-elsewhere",
        lambda: facts(target=inside("db", DB, 3, (listener(80, "::")._replace(only_ipv6=True),))),
    ),
    "internal target": ("internal-network", lambda: _internal("db")),
    "internal source": ("internal-network", lambda: _internal("web")),
    "other network": ("other-network", across),
    "no route": ("no-route", lambda: outward(source_route=RouteFact("203.0.113.9", error=errno.ENETUNREACH))),
    "blackhole": ("no-route", lambda: outward(source_route=RouteFact("203.0.113.9", error=errno.EINVAL))),
    "no route on the host": ("no-route", lambda: outward(host_route=RouteFact("203.0.113.9", error=errno.ENETUNREACH))),
    "ports used up": ("source-ports-used-up", _full_ports),
    "same MAC": ("duplicate-mac", lambda: facts(macs=(*facts().macs, Mac("twin", "front", "eth0", MACS["db"])))),
    "wrong MAC": ("wrong-mac", lambda: why_facts.with_neighbour("permanent")),
    "old MAC": ("stale-neighbour", lambda: why_facts.with_neighbour("stale")),
    "old connection": ("stale-connection", _old_connection),
    "old TCP connection": ("stale-connection", lambda: _old_tcp_connection("SYN_SENT")),
    "reverse path": (
        "reverse-path-filter",
        lambda: outward(
            host_route=RouteFact("203.0.113.9", error=errno.EXDEV),
            back_route=RouteFact(WEB, "unicast", "eth0"),
            host=replace(HOST, sysctls={**HOST.sysctls, "net.ipv4.conf.all.rp_filter": "1"}),
        ),
    ),
    "published on another address": ("published-elsewhere", lambda: _published("127.0.0.1")),
    "not published": ("not-published", to_host),
    "rule gone": ("rules-missing", lambda: _published("0.0.0.0", declared=(DB, 80), published_by="db")),
    "forwarding off": (
        "forwarding-off",
        lambda: outward(host=replace(HOST, sysctls={"net.ipv4.ip_forward": "0"}), host_route=RouteFact("203.0.113.9", error=113)),
    ),
    "TTL": ("ttl-expired", lambda: outward(request=Request("tcp", 80, ttl=1))),
    "foreign rule": ("foreign-rule", lambda: outward(host=replace(HOST, chains=chains("-A FORWARD -p tcp -m tcp --dport 80 -j DROP")))),
    "rule of a policy": (
        "own-rule",
        lambda: outward(host=replace(HOST, chains=chains('-A FORWARD -i nb-front -m comment --comment "network:front" -j DROP'))),
    ),
    "backlog": ("backlog-full", lambda: facts(target=inside("db", DB, 3, (listener(80, waiting=2, room=1),)))),
    "loopback only": ("listening-elsewhere", lambda: facts(target=inside("db", DB, 3, (listener(80, "127.0.0.1"),)))),
    "nothing listens": ("not-listening", lambda: facts(target=inside("db", DB, 3))),
    "no way back": ("no-way-back", lambda: facts(return_route=RouteFact(WEB, error=errno.ENETUNREACH))),
    "all is lost": ("impairment", lambda: _slow(100.0)),
}


def test_all_is_well() -> None:
    for healthy in (facts(), outward(), to_host(host=replace(HOST, sockets=(listener(8080),)))):
        prediction = predict(healthy)
        assert (prediction.blocked, prediction.notes) == (None, ())
    assert predict(facts()).path == (("path", "web → network front (bridge nb-front) → db"),)
    assert predict(outward()).path == (("path", "web → network front (bridge nb-front) → the host → eth0 → 203.0.113.9"),)


@pytest.mark.parametrize(("cause", "made"), CASES.values(), ids=CASES.keys())
def test_a_cause(cause: str, made: Callable[[], Facts]) -> None:
    found = predict(made()).blocked
    assert found is not None
    assert found.cause == cause
    assert found.because
    assert found.because[-1] not in ".,:"
    assert found.command or found.mend


def test_every_cause_is_foreseen_somewhere() -> None:
    foreseen = {cause for cause, _ in CASES.values()} | {"mtu", "beside-its-parent", "no-neighbour", "beyond-this-host"}
    assert foreseen == set(causes.IDS)


def test_every_cause_is_documented() -> None:
    text = (Path(netbox.__file__).parent / "docs" / "why.md").read_text()
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([a-z-]+)`", " ".join(table))) == {*causes.IDS, "unknown"}


def test_an_echo_needs_no_port() -> None:
    found = predict(facts(source=HOST, source_box=None, source_kind="lan", request=Request("icmp"))).blocked
    assert found is not None
    assert (found.cause, found.command) == ("not-published", "")
    assert found.because == "only the ports that db publishes lead to it from other machines, and ICMP has no ports"
    assert found.mend == "ask from this host, or from a sandbox on front"


def test_what_is_worth_knowing_does_not_block() -> None:
    assert [item.cause for item in predict(_slow(5.0)).notes] == ["impairment"]
    prediction = predict(facts(source=replace(inside("web", WEB, 2), queues=(QueueFact("eth0", "tbf"),))))
    assert [(item.cause, item.command) for item in prediction.notes] == [("impairment", "nsenter -t 100 -n tc qdisc del dev eth0 root")]
    narrow = replace(inside("db", DB, 3, (listener(80),)), links=(link("eth0", 2, mtu=1400, mac=MACS["db"]),))
    prediction = predict(facts(target=narrow))
    assert prediction.reachable
    assert [(item.cause, item.size) for item in prediction.notes] == [("mtu", 1500)]
    found = predict(facts(target=narrow, request=Request("tcp", 80, size=1500))).blocked
    assert found is not None
    assert (found.cause, found.command) == ("mtu", "nsenter -t 100 -n ip link set eth0 mtu 1500")


@pytest.mark.parametrize(("state", "goes"), [("TIME_WAIT", "10.9.9.9"), ("ESTABLISHED", DB)])
def test_a_connection_that_is_over_or_goes_on_is_not_stale(state: str, goes: str) -> None:
    assert predict(_old_tcp_connection(state, goes)).reachable


def test_what_a_socket_takes() -> None:
    anywhere = listener(80, "::")
    assert anywhere.takes(DB)
    assert anywhere.takes("fd00::2")
    assert not anywhere._replace(only_ipv6=True).takes(DB)
    assert not listener(80).takes("fd00::2")


def test_the_earliest_cause_on_the_path_counts() -> None:
    closed = inside("db", DB, 3)
    prediction = predict(facts(target=closed, target_box=box("db", DB, state="paused")))
    assert prediction.blocked is not None
    assert prediction.blocked.cause == "target-paused"
    assert [item.cause for item in prediction.notes] == ["not-listening"]
    prediction = predict(across(target=closed))
    assert prediction.blocked is not None
    assert prediction.blocked.command == "netbox network connect back web"
    assert prediction.blocked.place == "filter FORWARD rule 1"


def test_a_lan_beside_its_parent() -> None:
    end = interface("db", DB)._replace(bridge="", host_interface="", parent="eth0")
    route = RouteFact(DB, "unicast", "eth0")
    lan = facts(source=HOST, source_box=None, source_kind="host", target_box=box("db", DB, interfaces=(end,)), host_route=route)
    found = predict(lan).blocked
    assert found is not None
    assert found.cause == "beside-its-parent"


def test_rules_that_cannot_be_judged_are_doubts() -> None:
    prediction = predict(outward(host=replace(HOST, chains=chains("-A FORWARD -m mark --mark 0x1 -j DROP"))))
    assert prediction.reachable
    assert prediction.doubts == ("filter FORWARD rule 1",)
