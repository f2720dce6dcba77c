"""Targets as people write them, hosts files, resolv.conf, DNS answers, the filters of sockets."""

from __future__ import annotations

import struct

import pytest

from netbox.errors import UsageError
from netbox.kernel import socket_filter
from netbox.packet import resolving
from netbox.packet.finding import Written, parse
from netbox.packet.places import Place, Target
from netbox.packet.probing.api import ProbeOptions, make_request
from netbox.packet.probing.run import check, checked
from netbox.packet.probing.values import ProbeRequest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("db", Written("db", None, None)),
        ("db:5432", Written("db", 5432, None)),
        ("db:53/udp", Written("db", 53, "udp")),
        ("10.0.0.1", Written("10.0.0.1", None, None)),
        ("10.0.0.1:80", Written("10.0.0.1", 80, None)),
        ("2001:db8::1", Written("2001:db8::1", None, None)),
        ("[2001:db8::1]:80/sctp", Written("2001:db8::1", 80, "sctp")),
        ("[2001:db8::1]", Written("2001:db8::1", None, None)),
        ("host:22", Written("host", 22, None)),
        ("example.org:443", Written("example.org", 443, None)),
    ],
)
def test_targets(text: str, expected: Written) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", ":80", "db:0", "db:65536", "db:80/icmp", "a:b:80", "[10.0.0.1]:80", "db/x", "-x", "fe80::1", "[x]:1"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@pytest.mark.parametrize(
    ("port", "protocol", "options", "expected"),
    [
        (None, None, {}, ProbeRequest("icmp")),
        (80, None, {}, ProbeRequest("tcp", 80)),
        (53, "udp", {}, ProbeRequest("udp", 53)),
        (None, None, {"tcp": 80}, ProbeRequest("tcp", 80)),
        (80, None, {"tcp": 80, "count": 3}, ProbeRequest("tcp", 80, count=3)),
        (None, None, {"sctp": 9, "udp": None}, ProbeRequest("sctp", 9)),
        (80, None, {"icmp": True}, ProbeRequest("icmp")),
        (None, None, {"pmtu": True}, ProbeRequest("icmp", pmtu=True)),
        (80, None, {"pmtu": True}, ProbeRequest("tcp", 80, pmtu=True)),
        (53, "udp", {"pmtu": True}, ProbeRequest("udp", 53, pmtu=True)),
        (None, None, {"dns": "db"}, ProbeRequest("dns", 53, "db")),
        (5353, None, {"dns": "db"}, ProbeRequest("dns", 5353, "db")),
        (None, None, {"dns": "example.org/mx"}, ProbeRequest("dns", 53, "example.org", "MX")),
        (None, None, {"dns": "10.0.0.5"}, ProbeRequest("dns", 53, "5.0.0.10.in-addr.arpa", "PTR")),
        (None, None, {"dns": "db", "tcp": 53}, ProbeRequest("dns", 53, "db", over_tcp=True)),
        (5353, "tcp", {"dns": "db/TXT"}, ProbeRequest("dns", 5353, "db", "TXT", over_tcp=True)),
        (5353, "tcp", {"dns": "db", "tcp": 5353}, ProbeRequest("dns", 5353, "db", over_tcp=True)),
        (None, None, {"dns": "db", "udp": 5353}, ProbeRequest("dns", 5353, "db")),
        (None, None, {"source_address": "192.0.2.1", "icmp": False}, ProbeRequest("icmp", source="192.0.2.1")),
    ],
)
def test_requests(port: int | None, protocol: str | None, options: ProbeOptions, expected: ProbeRequest) -> None:
    assert make_request(port, protocol, options) == expected


@pytest.mark.parametrize(
    ("port", "protocol", "options"),
    [
        (None, None, {"tcp": 80, "udp": 80}),
        (80, None, {"tcp": 81}),
        (80, "udp", {"tcp": 80}),
        (None, None, {"arp": True, "nd": True}),
        (None, None, {"dns": "db", "tcp": 53, "udp": 53}),
        (None, None, {"dns": "db", "sctp": 53}),
        (None, None, {"dns": "db", "icmp": True}),
        (53, None, {"dns": "db", "tcp": 54}),
        (53, "udp", {"dns": "db", "tcp": 53}),
        (53, "sctp", {"dns": "db"}),
    ],
)
def test_requests_that_contradict_themselves(port: int | None, protocol: str | None, options: ProbeOptions) -> None:
    with pytest.raises(UsageError):
        make_request(port, protocol, options)


@pytest.mark.parametrize(
    "request_",
    [
        ProbeRequest("tcp"),
        ProbeRequest("dns", 53),
        ProbeRequest("tcp", 0),
        ProbeRequest(ttl=0),
        ProbeRequest(ttl=256),
        ProbeRequest(size=65001),
        ProbeRequest(count=0),
        ProbeRequest(timeout=0),
        ProbeRequest(pmtu=True, traceroute=True),
        ProbeRequest("sctp", 80, pmtu=True),
        ProbeRequest("udp", pmtu=True),
        ProbeRequest("arp", traceroute=True),
        ProbeRequest("tcp", 53, over_tcp=True),
        ProbeRequest("dns", 53, "db", over_tcp=True, traceroute=True),
        ProbeRequest("dns", 53, "db", over_tcp=True, size=100),
    ],
)
def test_requests_that_make_no_sense(request_: ProbeRequest) -> None:
    with pytest.raises(UsageError):
        check(request_)


def test_requests_that_do_not_fit_the_target() -> None:
    host, ipv4, ipv6 = Place("host", "host", "host"), Target("a", "192.0.2.1"), Target("a", "2001:db8::1")
    for target, request in (
        (ipv6, ProbeRequest("arp")),
        (ipv4, ProbeRequest("nd")),
        (ipv4, ProbeRequest(source="2001:db8::2")),
    ):
        with pytest.raises(UsageError):
            checked(host, target, request)
    assert checked(host, Target("a:53", "192.0.2.1", 53), ProbeRequest("udp")).port == 53
    assert checked(host, ipv4, ProbeRequest("dns", name="x")).port == 53


def test_hosts_and_resolv_conf() -> None:
    hosts = "127.0.0.1 localhost\n10.0.0.5\tdb Database # comment\n::1 localhost\n# 1.2.3.4 no\n"
    assert resolving.from_hosts(hosts, "DATABASE", False) == "10.0.0.5"
    assert resolving.from_hosts(hosts, "localhost", True) == "::1"
    assert resolving.from_hosts(hosts, "no", False) is None
    found = resolving.parse_config("nameserver 10.0.0.1\n#nameserver x\nsearch a b\nnameserver ::1\noptions ndots:1")
    assert tuple(found) == (("10.0.0.1", "::1"), ("a", "b"), 1)
    assert resolving.candidates("db", resolving.parse_config("search .\n").search, 1) == ["db"]


def test_addresses_of_a_dns_answer() -> None:
    question = b"\2db\0" + struct.pack("!HH", 1, 1)
    alias = b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 5, 2) + b"\xc0\x0c"
    address = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + bytes((10, 0, 0, 5))
    whole = struct.pack("!6H", 1, 0x8180, 1, 2, 0, 0) + question + alias + address
    assert resolving.parse_answer(whole, 1) == (0, ("10.0.0.5",))
    for length in range(len(whole)):
        assert resolving.parse_answer(whole[:length], 1) in (None, (0, ()))


def test_filters_have_the_right_jumps() -> None:
    program = socket_filter.destination_ports([80, 443], 4)
    assert program[2:] == [(0x15, 2, 0, 80), (0x15, 1, 0, 443), (6, 0, 0, 0), (6, 0, 0, 0x40000)]
    with pytest.raises(ValueError):
        socket_filter.destination_ports(range(300), 6)
