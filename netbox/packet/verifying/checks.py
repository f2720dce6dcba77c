"""What each mode promises, and the packets that prove it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from netbox.kernel.namespaces import identity, inside_netns
from netbox.kernel.rtnetlink import RouteSocket
from netbox.packet import finding, places
from netbox.packet.places import HOST, Place, Target
from netbox.packet.probing import values
from netbox.packet.probing.values import ProbeReport, ProbeRequest
from netbox.packet.verifying.stage import Server, Stage

if TYPE_CHECKING:
    from netbox.packet.probing.values import ProbeAnswer

_PORT, _CLOSED_PORT, _HIDDEN_PORT = 80, 81, 8080
_SILENCE = 0.5  # seconds: packets inside one machine take less than a millisecond
_PATIENCE = 10.0  # seconds for an answer that is promised: a server is a thread of this process, the name service a process of its own
Judge = Callable[[ProbeReport], str | None]


class Check(NamedTuple):
    """A promise. ``probe`` is what proves it and ``judge`` says what is wrong with the report; without a probe ``fact`` looks itself."""

    title: str
    probe: tuple[Place, Target, ProbeRequest] | None = None
    judge: Judge = lambda report: None
    fact: Callable[[], str | None] | None = None


def expect(*states: str) -> Judge:
    """The answer has one of these states."""

    def judge(report: ProbeReport) -> str | None:
        return None if report.state in states else report.sentence

    return judge


def _best(report: ProbeReport) -> ProbeAnswer:
    assert report.best is not None  # a probe has at least one answer
    return report.best


reached = expect(*values.REACHABLE)


def kept_out(report: ProbeReport) -> str | None:
    """Nothing got there."""
    if report.state in (values.FILTERED, values.NO_ROUTE, values.UNREACHABLE, values.NO_ANSWER) and not _best(report).arrived:
        return None
    return report.sentence


def _request(protocol: str = values.ICMP, port: int | None = None, name: str | None = None) -> ProbeRequest:
    return ProbeRequest(protocol, port, name)


def _refused(protocol: str = values.ICMP, port: int | None = None) -> ProbeRequest:
    return ProbeRequest(protocol, port, timeout=_SILENCE)


def seen(server: Server, address: str | None) -> Callable[[ProbeReport], str | None]:
    """Answered, and the server saw the client under this address."""

    def judge(report: ProbeReport) -> str | None:
        if not report.reachable:
            return report.sentence
        return None if address in server.clients else f"the server saw {', '.join(server.clients) or 'nobody'} instead of {address}"

    return judge


class Prober:
    """Makes checks of what is on a stage, with ``ipv6`` by its IPv6 addresses."""

    def __init__(self, stage: Stage, ipv6: bool = False) -> None:
        self.stage, self.ipv6 = stage, ipv6
        self.checks: list[Check] = []

    def add(self, title: str, source: Place, target: str, request: ProbeRequest, judge: Judge = reached) -> None:
        """A check by probe; the target is written as on the command line."""
        found = (
            self._lan(request)
            if target == places.LAN
            else places.target(
                self.stage.engine,
                source,
                target,
                request.protocol if request.protocol in values.WITH_PORT[:3] else None,
                request.port,
                ipv6=self.ipv6,
            )
        )
        timeout = request.timeout if judge is kept_out else _PATIENCE
        request = ProbeRequest(**{**request.to_json(), "port": found.port or request.port, "timeout": timeout})
        self.checks.append(Check(title, (source, found, request), judge))

    def _lan(self, request: ProbeRequest) -> Target:
        lan = self.stage.lan()
        assert lan.neighbour is not None
        return Target(places.LAN, (lan.neighbour.address6 if self.ipv6 else None) or lan.neighbour.address, request.port, place=lan)

    def add_fact(self, title: str, fact: Callable[[], str | None]) -> None:
        """A check that looks for itself."""
        self.checks.append(Check(title, fact=fact))


def bridge(stage: Stage) -> list[Check]:
    """Networks: neighbours reach one another, the world by NAT, published ports from everywhere, others not at all."""
    return _networks(stage, with_ipv6=False)


def ipv6(stage: Stage) -> list[Check]:
    """The same for networks with IPv6, by their IPv6 addresses."""
    return _networks(stage, with_ipv6=True)


def _networks(stage: Stage, with_ipv6: bool) -> list[Check]:
    front, back = stage.network("front", ipv6=with_ipv6), stage.network("back", ipv6=with_ipv6)
    inner = stage.network("inner", ipv6=with_ipv6, internal=True)
    web = stage.sandbox("web", network=front, ports=[f"{_PORT}", f"{_PORT}/udp"])
    peer, other = stage.sandbox("peer", network=front), stage.sandbox("other", network=back)
    alone = stage.sandbox("inner", network=inner)
    lan, host = stage.lan(), Place(HOST, HOST, HOST)
    assert lan.neighbour is not None
    everywhere, its_own, of_host = "0.0.0.0", lan.neighbour.address, lan.neighbour.host_address
    if with_ipv6:
        if not lan.neighbour.address6 or not lan.neighbour.host_address6:
            return [Check("another machine with IPv6 can be made", fact=lambda: "this host gives its links no IPv6 addresses")]
        everywhere, its_own, of_host = "::", lan.neighbour.address6, lan.neighbour.host_address6
    web_server, lan_server = stage.serve(web, _PORT, everywhere), stage.serve(lan, _PORT, everywhere)
    stage.serve(web, _HIDDEN_PORT, everywhere)
    stage.serve(other, _PORT, everywhere)
    published = {item.protocol: item.host_port for item in stage.engine.get(web.title).ports}
    make = Prober(stage, with_ipv6)
    finds, answers, protocol = ("ND", "ICMPv6", values.ND) if with_ipv6 else ("ARP", "ICMP", values.ARP)
    make.add(f"{finds}: neighbours on a network find each other", peer, web.title, _request(protocol))
    make.add(f"{answers}: a neighbour answers", peer, web.title, _request())
    make.add("TCP: a listening port of a neighbour is open", peer, web.title, _request(values.TCP, _PORT))
    make.add("TCP: another port of it is closed", peer, web.title, _request(values.TCP, _CLOSED_PORT), expect(values.CLOSED))
    make.add("UDP: a neighbour answers", peer, web.title, _request(values.UDP, _PORT), expect(values.OPEN))
    if not with_ipv6:  # the name service is asked by IPv4, also for IPv6 addresses
        make.add("names: the name service knows the neighbour", peer, finding.nameserver(peer), _request(values.DNS, None, web.title))
    make.add("host: the host reaches a sandbox", host, web.title, _request(values.TCP, _HIDDEN_PORT))
    make.add("host: a sandbox reaches the host", web, HOST, _request())
    make.add("NAT: a sandbox reaches another machine", peer, places.LAN, _request(values.TCP, _PORT))
    nat = seen(lan_server, of_host)
    make.add("NAT: that machine sees the host's address", peer, places.LAN, _request(values.UDP, _PORT), nat)
    make.add("publish: another machine reaches the port", lan, f"{web.title}:{_PORT}", _request(values.TCP))
    kept = seen(web_server, its_own)
    make.add("publish: its own address is what the sandbox sees", lan, f"{web.title}:{_PORT}/udp", _request(values.UDP), kept)
    # Whether ::1 leads to a sandbox depends on the host's bridge netfilter.
    way, here = ("", f"[{of_host}]") if with_ipv6 else (" by 127.0.0.1", "127.0.0.1")
    make.add(f"publish: the host reaches it{way}", host, f"{here}:{published['tcp']}", _request(values.TCP))
    make.add("hairpin: the sandbox reaches itself by it", web, f"{HOST}:{published['tcp']}", _request(values.TCP))
    make.add("hairpin: so does a neighbour", peer, f"{HOST}:{published['tcp']}", _request(values.TCP))
    make.add("hairpin: so does a sandbox on another network", other, f"{HOST}:{published['tcp']}", _request(values.TCP))
    make.add("isolation: another network is out of reach", other, web.title, _refused(values.TCP, _PORT), kept_out)
    make.add("isolation: the other way round, too", web, other.title, _refused(values.TCP, _PORT), kept_out)
    address = f"[{stage.engine.get(web.title).ip6_address}]" if with_ipv6 else web_address(stage, web)
    address = f"{address}:{_HIDDEN_PORT}"
    make.add("isolation: other machines see published ports only", lan, address, _refused(values.TCP), kept_out)
    make.add("internal: no way out of an internal network", alone, places.LAN, _refused(values.TCP, _PORT), kept_out)
    return make.checks


def web_address(stage: Stage, place: Place) -> str:
    """The address of a sandbox on its first network."""
    return str(stage.engine.get(place.title).ip_address)


def host(stage: Stage) -> list[Check]:
    """The host's own network, shared."""
    shared, here, lan = stage.sandbox("host", network="host"), Place(HOST, HOST, HOST), stage.lan()
    assert lan.neighbour is not None
    local, lan_server = stage.serve(shared, 0), stage.serve(lan, _PORT + 1)
    make = Prober(stage)
    make.add_fact("the sandbox is in the host's network namespace", lambda: same_namespace(shared, here))
    make.add("TCP: the host reaches it by 127.0.0.1", here, f"127.0.0.1:{local.port}", _request(values.TCP))
    make.add("TCP: another machine reaches it without publishing", lan, f"{HOST}:{local.port}", _request(values.TCP))
    by_host = seen(lan_server, lan.neighbour.host_address)
    make.add("UDP: it goes out with the host's address", shared, places.LAN, _request(values.UDP, lan_server.port), by_host)
    return make.checks


def container(stage: Stage) -> list[Check]:
    """Two sandboxes, one network stack."""
    owner = stage.sandbox("owner")
    guest = stage.sandbox("guest", network=f"container:{owner.title}")
    outside = stage.sandbox("beside")
    private = stage.serve(guest, 0, "127.0.0.1")
    shared = stage.serve(guest, 0)
    make = Prober(stage)
    make.add_fact("both sandboxes are in one network namespace", lambda: same_namespace(owner, guest))
    make.add("TCP: one reaches the other by 127.0.0.1", owner, f"127.0.0.1:{private.port}", _request(values.TCP))
    make.add("TCP: its port is open at the other's address", outside, owner.title, _request(values.TCP, shared.port))
    make.add(
        "TCP: what listens on 127.0.0.1 is nobody else's", outside, owner.title, _request(values.TCP, private.port), expect(values.CLOSED)
    )
    return make.checks


def none(stage: Stage) -> list[Check]:
    """Nothing gets out, nothing gets in."""
    alone, peer, lan = stage.sandbox("none", network="none"), stage.sandbox("reachable"), stage.lan()
    stage.serve(peer, _PORT)
    stage.serve(lan, _PORT + 2)
    make = Prober(stage)
    make.add_fact("it has no interface but lo", lambda: _links(alone))
    make.add("ICMP: it reaches itself", alone, "127.0.0.1", _request())
    make.add("TCP: no way to a sandbox", alone, peer.title, _refused(values.TCP, _PORT), expect(values.NO_ROUTE))
    make.add("ICMP: no way to the host", alone, HOST, _refused(), expect(values.NO_ROUTE))
    make.add("UDP: no way out", alone, places.LAN, _refused(values.UDP, _PORT + 2), expect(values.NO_ROUTE))
    return make.checks


def same_namespace(one: Place, other: Place) -> str | None:
    """Complains when two places are not in one network namespace."""
    found = []
    for place in (one, other):
        fd = place.open()
        found.append(identity(fd))
        os.close(fd)
    return None if found[0] == found[1] else f"{one.title} and {other.title} are in different ones"


def _links(place: Place) -> str | None:
    fd = place.open()
    try:
        with inside_netns(fd), RouteSocket() as route:
            links = [link.name for link in route.links() if link.name != "lo" and link.is_up]
    finally:
        os.close(fd)
    return f"it has {', '.join(links)}" if links else None


MODES: dict[str, Callable[[Stage], list[Check]]] = {"bridge": bridge, "ipv6": ipv6, "host": host, "container": container, "none": none}
