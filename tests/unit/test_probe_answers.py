"""What answers mean: packets as bytes, read by scapy and classified; silence; the words of a report and its JSON."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRRSRV
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6ND_NA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.layers.sctp import SCTP, SCTPChunkAbort, SCTPChunkInitAck
from scapy.packet import Raw

from netbox.packet.places import Place, Target
from netbox.packet.probing import classify, packets, text
from netbox.packet.probing.classify import Observed, Question
from netbox.packet.probing.packets import Outline
from netbox.packet.probing.values import Hop, PathMtu, ProbeAnswer, ProbeReport, ProbeRequest, SizeStep

OWN, TARGET, ROUTER = "192.0.2.1", "192.0.2.9", "198.51.100.1"
OWN6, TARGET6, ROUTER6 = "2001:db8::1", "2001:db8::9", "2001:db8:1::1"
TO_OWN = {"src": TARGET, "dst": OWN}
MAC = "02:00:00:00:00:09"


def outline(protocol: str, ipv6: bool = False, **values: Any) -> Outline:
    source, target = (OWN6, TARGET6) if ipv6 else (OWN, TARGET)
    port = {"icmp": 0, "dns": 53, "arp": 0, "nd": 0}.get(protocol, 80)
    return Outline(
        **{
            "protocol": protocol,
            "source": source,
            "address": target,
            "own_port": 40000,
            "port": port,
            "serial": 7,
            "id": 99,
            "mac": MAC,
            **values,
        }
    )


def error(protocol: str, type_: int, code: int, source: str = ROUTER, **fields: Any) -> bytes:
    quoted = packets.build(outline(protocol))[0][:28]  # as RFC 792: the header and eight bytes
    return bytes(IP(src=source, dst=OWN) / ICMP(type=type_, code=code, **fields) / Raw(quoted))


def error6(protocol: str, packet: Any, source: str = ROUTER6) -> bytes:
    return bytes(IPv6(src=source, dst=OWN6) / packet / Raw(packets.build(outline(protocol, True))[0]))


def classified(protocol: str, data: bytes, ipv6: bool = False) -> ProbeAnswer:
    reply = packets.read(data, 6 if ipv6 else 4)
    assert reply is not None
    sent = outline(protocol, ipv6)
    assert reply.key == sent.key
    if protocol == "dns":
        reply = packets.with_dns(reply, sent.serial)
    return classify.answered(Question(0, protocol, sent.address, sent.port, sent.id), reply, 0.001)


@pytest.mark.parametrize(
    ("protocol", "data", "state", "words"),
    [
        ("icmp", bytes(IP(**TO_OWN) / ICMP(type=0, id=40000, seq=7)), "answered", "echo reply"),
        ("tcp", bytes(IP(**TO_OWN) / TCP(sport=80, dport=40000, flags="SA", ack=8)), "open", "SYN-ACK"),
        ("tcp", bytes(IP(**TO_OWN) / TCP(sport=80, dport=40000, flags="RA", ack=8)), "closed", "RST"),
        ("tcp", bytes(IP(**TO_OWN) / TCP(sport=80, dport=40000, flags="A", ack=8)), "filtered", "no answer to a SYN"),
        ("udp", bytes(IP(**TO_OWN) / UDP(sport=80, dport=40000) / Raw(b"x")), "open", "datagram"),
        ("sctp", bytes(IP(**TO_OWN) / SCTP(sport=80, dport=40000, tag=7) / SCTPChunkInitAck()), "open", "INIT-ACK"),
        ("sctp", bytes(IP(**TO_OWN) / SCTP(sport=80, dport=40000, tag=7) / SCTPChunkAbort()), "closed", "ABORT"),
        ("udp", error("udp", 3, 3, TARGET), "closed", "port unreachable"),
        ("udp", error("udp", 3, 3), "filtered", "port unreachable"),
        ("sctp", error("sctp", 3, 2, TARGET), "closed", "protocol unreachable"),
        ("icmp", error("icmp", 3, 3, TARGET), "filtered", "port unreachable"),
        ("tcp", error("tcp", 3, 0), "no route", "network unreachable"),
        ("tcp", error("tcp", 3, 1), "unreachable", "host unreachable"),
        ("tcp", error("tcp", 3, 13), "filtered", "prohibited"),
        ("tcp", error("tcp", 3, 4, nexthopmtu=1400), "too big", "MTU 1400"),
        ("udp", error("udp", 11, 0), "time exceeded", "exceeded in transit"),
        ("udp", error("udp", 3, 99), "unreachable", "type 3, code 99"),
    ],
)
def test_answers(protocol: str, data: bytes, state: str, words: str) -> None:
    answer = classified(protocol, data)
    assert (answer.state, words in answer.answer) == (state, True), answer
    assert answer.from_address in (TARGET, ROUTER)
    assert answer.ttl == 64


@pytest.mark.parametrize(
    ("protocol", "data", "state", "words"),
    [
        ("icmp", bytes(IPv6(src=TARGET6, dst=OWN6, hlim=60) / ICMPv6EchoReply(id=40000, seq=7)), "answered", "echo reply"),
        ("tcp", bytes(IPv6(src=TARGET6, dst=OWN6, hlim=60) / TCP(sport=80, dport=40000, flags="SA", ack=8)), "open", "SYN-ACK"),
        ("tcp", error6("tcp", ICMPv6DestUnreach(code=0)), "no route", "no route"),
        ("tcp", error6("tcp", ICMPv6DestUnreach(code=1)), "filtered", "prohibited"),
        ("udp", error6("udp", ICMPv6DestUnreach(code=4), TARGET6), "closed", "port unreachable"),
        ("icmp", error6("icmp", ICMPv6PacketTooBig(mtu=1300)), "too big", "1300"),
        ("icmp", error6("icmp", ICMPv6TimeExceeded(code=0)), "time exceeded", "hop limit"),
    ],
)
def test_answers_of_ipv6(protocol: str, data: bytes, state: str, words: str) -> None:
    answer = classified(protocol, data, ipv6=True)
    assert (answer.state, words in answer.answer) == (state, True), answer


def test_link_layer_answers() -> None:
    reply = packets.read_arp(bytes(Ether() / ARP(op=2, psrc=TARGET, hwsrc=MAC)))
    assert reply is not None
    assert reply.key == outline("arp").key
    answer = classify.answered(Question(0, "arp", TARGET), reply, 0.001)
    assert (answer.state, answer.mac_address) == ("answered", MAC)
    assert packets.read_arp(bytes(Ether() / ARP(op=1, psrc=TARGET))) is None
    advertisement = IPv6(src=TARGET6, dst=OWN6, hlim=255) / ICMPv6ND_NA(tgt=TARGET6) / ICMPv6NDOptDstLLAddr(lladdr=MAC)
    assert classified("nd", bytes(advertisement), ipv6=True).mac_address == MAC


@pytest.mark.parametrize(
    ("rcode", "records", "state", "words"),
    [
        (0, DNSRR(rrname="db", type="A", rdata="10.0.0.5"), "answered", "A 10.0.0.5"),
        (0, DNSRR(rrname="db", type="TXT", rdata=[b"a b", b"c"]), "answered", 'TXT "a b" "c"'),
        (0, DNSRRMX(rrname="db", preference=10, exchange="mail.db."), "answered", "MX 10 mail.db"),
        (0, DNSRRSRV(rrname="db", priority=1, weight=2, port=80, target="web."), "answered", "SRV 1 2 80 web"),
        (0, None, "answered", "without a record"),
        (3, None, "no such name", "NXDOMAIN"),
        (2, None, "failed", "SERVFAIL"),
        (5, None, "failed", "REFUSED"),
    ],
)
def test_dns_answers(rcode: int, records: Any, state: str, words: str) -> None:
    message = DNS(id=7, qr=1, rcode=rcode, qd=DNSQR(qname="db"), **({"an": records} if records else {}))
    answer = classified("dns", bytes(IP(**TO_OWN) / UDP(sport=53, dport=40000) / message))
    assert (answer.state, words in answer.answer) == (state, True), answer


def test_dns_by_another_port() -> None:
    message = DNS(id=7, qr=1, qd=DNSQR(qname="db"), an=DNSRR(rrname="db", type="A", rdata="10.0.0.5"))
    reply = packets.read(bytes(IP(**TO_OWN) / UDP(sport=5300, dport=40000) / message), 4)
    assert reply is not None
    assert packets.with_dns(reply, 7).records == ("A 10.0.0.5",)
    assert packets.with_dns(reply, 8).code is None  # the answer to another query


def test_what_is_no_dns_message() -> None:
    whole = bytes(
        DNS(id=7, qr=1, qd=DNSQR(qname="db"), an=[DNSRRMX(rrname="db", exchange="m."), DNSRR(rrname="db", type="TXT", rdata=[b"x"])])
    )
    for data in [*(whole[:length] for length in range(len(whole))), b"\xff" * 40, whole[:2] + b"\xff" * 40]:
        reply = packets.read(bytes(IP(**TO_OWN) / UDP(sport=53, dport=40000) / Raw(data)), 4)
        assert reply is not None
        assert classify.answered(Question(0, "dns", TARGET, 53), packets.with_dns(reply, 7), 0.001).state in ("failed", "answered")


def test_packets_of_others_are_no_answers() -> None:
    for data in (
        bytes(IP(**TO_OWN) / ICMP(type=8)),
        bytes(IP(**TO_OWN) / ICMP(type=3, code=3)),
        bytes(IP(src=TARGET, dst=OWN, proto=47) / Raw(b"xxxx")),
        bytes(IP(**TO_OWN) / ICMP(type=3) / Raw(b"\x45\0")),
        error("icmp", 5, 1, gw=TARGET),  # a router sends it before it forwards the packet
        error("icmp", 4, 0),
    ):
        assert packets.read(data, 4) is None


def test_long_packets_are_cut() -> None:
    for ipv6 in (False, True):
        parts = packets.build(outline("udp", ipv6, payload=4000), 1500)
        assert len(parts) == 3
        assert max(map(len, parts)) <= 1500
        assert len(packets.build(outline("udp", ipv6, payload=4000, dont_fragment=True), 1500)) == 1
        assert len(packets.build(outline("udp", ipv6, payload=100), 1500)) == 1


@pytest.mark.parametrize(
    ("protocol", "observed", "state", "words"),
    [
        ("tcp", Observed(), "filtered", "nothing came back"),
        ("tcp", Observed(False), "filtered", "never arrived at db"),
        ("tcp", Observed(True, True), "filtered", "although it arrived at db, where a socket listens"),
        ("udp", Observed(), "open or filtered", "nothing came back"),
        ("udp", Observed(False), "filtered", "never arrived at db"),
        ("udp", Observed(True, True), "delivered", "did not answer"),
        ("udp", Observed(True, False), "closed", "no socket listens"),
        ("icmp", Observed(neighbour=ROUTER), "unreachable", f"nobody on the link answers for {ROUTER}"),
        ("arp", Observed(), "no answer", "nobody on the link"),
        ("dns", Observed(False), "no answer", "never arrived"),
    ],
)
def test_silence(protocol: str, observed: Observed, state: str, words: str) -> None:
    answer = classify.silent(Question(0, protocol, TARGET, 80, 99, "db"), observed)
    assert (answer.state, words in answer.answer) == (state, True), answer
    assert answer.from_address is None


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (errno.ENETUNREACH, "no route"),
        (errno.EPERM, "filtered"),
        (errno.EMSGSIZE, "too big"),
        (errno.EINVAL, "no route"),
        (errno.ENOMEM, "unreachable"),
    ],
)
def test_what_cannot_be_sent(number: int, state: str) -> None:
    assert classify.not_sent(Question(0, "icmp", TARGET), OSError(number, "text")).state == state


def report(**values: Any) -> ProbeReport:
    place = Place("db", "sandbox", "db", "f" * 64, 1, 1)
    given = {"request": ProbeRequest("tcp", 80), "source": Place("web", "sandbox", "web"), "target": Target("db", TARGET, 80, place=place)}
    return ProbeReport(**{**given, **values})


def test_sentences() -> None:
    answer = ProbeAnswer(0, "open", "SYN-ACK", TARGET, "db", 0.000214, 64)
    assert report(answers=(answer,)).sentence == f"web → db ({TARGET}), TCP port 80: open: SYN-ACK, 0.214 ms, ttl 64"
    refused = ProbeAnswer(0, "filtered", "ICMP prohibited", ROUTER, "host", 0.001, 64)
    assert f"says host ({ROUTER})" in report(answers=(refused,)).sentence
    hops = (Hop(1, (ProbeAnswer(0, "time exceeded", "…", ROUTER, "host", 0.001, 64),)), Hop(2, (answer,)))
    assert report(hops=hops).sentence.endswith("2 hops")
    assert report(hops=hops).reachable
    assert text.hop_row(hops[0])[:2] == ("1", f"host ({ROUTER})")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (PathMtu(None, 1500), "unknown"),
        (PathMtu(1500, 1500), "that of the first link"),
        (PathMtu(1400, 1500, ROUTER, "host"), f"host ({ROUTER}) says"),
        (
            PathMtu(1400, 1500, black_hole=True, last_seen=ROUTER),
            f"black hole, larger packets vanish and nobody says so; they are last seen at {ROUTER}",
        ),
    ],
)
def test_path_mtu_in_words(found: PathMtu, words: str) -> None:
    assert words in text.path_mtu(found)


def test_json_of_a_report() -> None:
    answer = ProbeAnswer(0, "closed", "RST", TARGET, icmp=(3, 3))
    whole = report(answers=(answer,), path_mtu=PathMtu(1500, 1500, steps=(SizeStep(1500, True, answer),)), hops=(Hop(1, (answer,)),))
    document = json.loads(json.dumps(whole.to_json()))
    assert {"reachable", "state", "sentence", "source", "target", "request", "answers", "hops", "path_mtu", "notes"} == document.keys()
    assert ProbeAnswer.from_json(document["answers"][0]) == answer
    assert document["path_mtu"]["steps"][0]["size"] == 1500
    assert document["target"]["sandbox_id"] == "f" * 64
