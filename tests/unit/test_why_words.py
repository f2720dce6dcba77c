"""What ``why`` says: comparison of what was expected with what packets did, names, packets, text."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from netbox.cli.main import execute
from netbox.kernel.connections import Connection, Tuple
from netbox.packet import resolving
from netbox.packet.diagnosis import packets
from netbox.packet.diagnosis.explain import explain
from netbox.packet.diagnosis.predict import predict
from netbox.packet.diagnosis.publishing import destination
from netbox.packet.diagnosis.text import render
from netbox.packet.diagnosis.values import Answer, Facts, Observation, Request, Throttle
from tests.unit.why_facts import DB, HOST, WEB, across, box, chains, facts, inside, listener, outward


def answered(known: Facts, outcome: str, **changes: Any) -> Answer:
    return explain(known, predict(known), Observation(outcome, f"it was {outcome}", **changes))


def test_as_foreseen() -> None:
    found = answered(across(), "silent", place="filter FORWARD rule 1", owner="network back", dropped_at="on the host at nb-front")
    assert (found.cause, found.reachable, found.agreed, found.command) == ("other-network", False, True, "netbox network connect back web")
    assert found.sentence == (
        "web cannot reach db:80: they share no network (web is on front, db on back), so the packet is dropped by filter FORWARD rule 1"
    )
    found = answered(facts(), "open", rtt=0.0002)
    assert (found.sentence, found.cause, found.agreed) == ("web reaches db:80 over network front", "reachable", True)
    assert ("TCP port 80", "it was open after 0.20 ms") in found.evidence
    assert answered(outward(), "open").sentence == "web reaches 203.0.113.9:80 by way of the host and eth0"


def test_packets_are_believed() -> None:
    found = answered(across(), "open")
    assert (found.reachable, found.cause, found.agreed) == (True, "reachable", False)
    assert found.disagreement.startswith("expected was that they share no network")
    found = answered(facts(), "silent")
    assert (found.reachable, found.cause, found.agreed) == (False, "unknown", False)
    found = answered(facts(), "silent", reason="IP_RPFILTER", function="ip_rcv", dropped_at="in db at eth0")
    assert (found.cause, found.agreed) == ("reverse-path-filter", False)
    found = answered(facts(), "silent", place="ip x y rule 3", foreign=True, dropped_at="on the host")
    assert (found.cause, found.sentence) == (
        "foreign-rule",
        "web cannot reach db:80: a firewall rule that is not netbox's drops it: ip x y rule 3",
    )
    found = answered(facts(target=inside("db", DB, 3)), "silent", place="ip x y rule 3", foreign=True)
    assert found.cause == "foreign-rule"


def test_a_connection_that_goes_astray_while_new_ones_do_not() -> None:
    entry = Connection(17, Tuple(WEB, 5353, DB, 80), Tuple("10.9.9.9", 80, WEB, 5353), 20)
    known = facts(request=Request("udp", 80), connections=(entry,), target=inside("db", DB, 3, (listener(80, protocol="udp"),)))
    found = answered(known, "answered", special="silent")
    assert (found.cause, found.reachable) == ("stale-connection", False)
    assert found.sentence.startswith("web, sending from port 5353, does not reach db:80: connection tracking")
    found = answered(known, "answered")  # its port is in use
    assert (found.cause, found.reachable, found.agreed) == ("stale-connection", True, True)
    assert found.sentence.startswith("web reaches db:80 over network front, but not from port 5353: connection tracking")
    assert answered(known, "answered", special="answered").cause == "reachable"
    assert answered(known, "refused", special="refused").cause == "not-listening"


def test_what_could_not_be_tried_is_not_reachable() -> None:
    found = answered(facts(), "not asked")
    assert (found.cause, found.reachable) == ("unknown", False)
    assert found.sentence == "web cannot reach db:80: no packet could be sent to see whether it can"


def test_a_rule_has_the_number_that_the_packet_met() -> None:
    foreign = outward(host=replace(HOST, chains=chains("-A FORWARD -p tcp -m tcp --dport 80 -j DROP")))
    found = answered(foreign, "silent", place="filter FORWARD rule 3", foreign=True)
    assert found.sentence.endswith("drops it on the host: filter FORWARD rule 3 (legacy iptables)")
    assert (found.command, found.agreed) == ("iptables-legacy -D FORWARD 3", True)


def test_what_is_not_on_this_host_was_never_promised() -> None:
    found = answered(outward(), "silent")
    assert (found.cause, found.agreed) == ("beyond-this-host", True)
    assert "the packet leaves the host by eth0" in found.sentence
    found = answered(outward(), "silent", nobody="answers for 203.0.113.9 on eth0 of the host")
    assert (found.cause, found.sentence) == (
        "no-neighbour",
        "web cannot reach 203.0.113.9:80: nobody answers for 203.0.113.9 on eth0 of the host",
    )
    assert answered(outward(), "refused").cause == "not-listening"


def test_a_doubt_becomes_the_answer_when_nothing_comes_back() -> None:
    doubtful = outward(host=replace(HOST, chains=chains("-A FORWARD -m mark --mark 0x1 -j DROP")))
    found = answered(doubtful, "silent")
    assert found.cause == "foreign-rule"
    assert "filter FORWARD rule 1" in found.sentence


def test_what_may_have_been_let_through_before_is_no_surprise() -> None:
    rules = "-A FORWARD -m recent --rcheck -j ACCEPT\n-A FORWARD -p tcp -m tcp --dport 80 -j DROP"
    unsure = outward(host=replace(HOST, chains=chains(rules)))
    assert (answered(unsure, "open").cause, answered(unsure, "open").agreed) == ("reachable", True)
    assert (answered(unsure, "silent").cause, answered(unsure, "silent").agreed) == ("foreign-rule", True)


def test_another_cause_that_fits_is_taken() -> None:
    paused = facts(target=inside("db", DB, 3), target_box=box("db", DB, state="paused"))
    assert answered(paused, "open").cause == "target-paused"
    lossy = facts(target_box=box("db", DB, throttles=(Throttle("db", "in", "loss 30%", 30.0),)))
    assert answered(lossy, "silent").cause == "impairment"
    found = answered(lossy, "open")
    assert found.sentence == (
        "web reaches db:80 over network front, but not undisturbed: an impairment of db is in force for what comes to it: loss 30%"
    )


def test_the_text() -> None:
    found = answered(facts(target=inside("db", DB, 3, (listener(81),))), "refused")
    assert render(found, 60) == (
        "web cannot reach db:80: nothing in db listens on TCP port\n"
        "80, so its kernel answers with a RST.\n"
        "\n"
        "Evidence\n"
        "  sockets       db listens on TCP 81\n"
        "  TCP port 80   it was refused\n"
        "\n"
        "To mend it:\n"
        "  start the program in db that should listen on port 80"
    )
    assert found.to_json()["evidence"][0] == {"what": "sockets", "is": "db listens on TCP 81"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("10.0.0.2", ("10.0.0.2", 8085)),
        ("10.0.0.2:80", ("10.0.0.2", 80)),
        ("10.0.0.2:80-89/8080", ("10.0.0.2", 85)),
        ("[fd00::2]:80", ("fd00::2", 80)),
        ("", None),
        ("nowhere", None),
    ],
)
def test_where_a_translation_leads(text: str, result: tuple[str, int] | None) -> None:
    assert destination(text, "192.0.2.1", 8085) == result


def test_resolv_conf() -> None:
    found = resolving.parse_config("# x\nnameserver 192.0.2.1\nsearch a.test b.test\noptions ndots:2 edns0\n")
    assert tuple(found) == (("192.0.2.1",), ("a.test", "b.test"), 2)
    assert resolving.candidates("db.x", found.search, found.ndots) == ["db.x.a.test", "db.x.b.test", "db.x"]
    assert resolving.candidates("db.x.y", found.search, found.ndots) == ["db.x.y", "db.x.y.a.test", "db.x.y.b.test"]
    assert resolving.candidates("db.", found.search, found.ndots) == ["db"]


def test_an_answer_of_a_name_server() -> None:
    query = resolving.query("db.test", 7)
    assert query[12:] == b"\x02db\x04test\x00\x00\x01\x00\x01"
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + bytes((10, 0, 0, 2))
    answer = struct.pack("!6H", 7, 0x8180, 1, 1, 0, 0) + query[12:] + record
    assert resolving.parse_answer(answer, 7) == (0, ("10.0.0.2",))
    assert resolving.parse_answer(answer, 8) is None
    assert resolving.parse_answer(answer[:-3], 7) in (None, (0, ()))
    assert resolving.parse_answer(struct.pack("!6H", 7, 0x8183, 1, 0, 0, 0) + query[12:], 7) == (3, ())


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp", "sctp"])
@pytest.mark.parametrize(("source", "destination"), [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
def test_a_packet_built_by_hand(protocol: str, source: str, destination: str) -> None:
    data = packets.build(packets.Crafted(protocol, source, destination, 40000, 80, 0x1234, 7))
    if ":" in source:
        assert (data[0] >> 4, data[7], struct.unpack("!I", data[:4])[0] & 0xFFFFF, struct.unpack("!H", data[4:6])[0]) == (
            6,
            7,
            0x1234,
            len(data) - 40,
        )
        body, pseudo = data[40:], data[8:40] + struct.pack("!II", len(data) - 40, data[6])
    else:
        assert (struct.unpack("!H", data[2:4])[0], struct.unpack("!H", data[4:6])[0], data[8]) == (len(data), 0x1234, 7)
        assert packets.checksum(data[:20]) == 0
        body, pseudo = data[20:], data[12:20] + struct.pack("!HH", data[9], len(data) - 20)
    if protocol != "sctp":
        assert packets.checksum(body if protocol == "icmp" and ":" not in source else pseudo + body) == 0


def test_one_protocol_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["why", "web", "db", "--tcp", "1", "--udp", "1"]) == 125
    assert capsys.readouterr().err == "netbox why: more than one protocol; give one of --tcp, --udp, --sctp and --icmp\n"
