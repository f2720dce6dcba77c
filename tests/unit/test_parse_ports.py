from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse.ports import (
    check_overlaps,
    format_expose,
    format_port,
    on_all_addresses,
    parse_expose,
    parse_exposed,
    parse_port,
    publish_all,
    selects,
)
from netbox.spec import ExposedPort, PortSpec


def one_line(error: UsageError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", PortSpec(80)),
        (80, PortSpec(80)),
        ("8080:80", PortSpec(80, 8080)),
        (":80", PortSpec(80)),
        ("8080:80/udp", PortSpec(80, 8080, 1, "udp")),
        ("53/UDP", PortSpec(53, 0, 1, "udp")),
        ("127.0.0.1:8080:80", PortSpec(80, 8080, 1, "tcp", "127.0.0.1")),
        ("127.0.0.1::80", PortSpec(80, 0, 1, "tcp", "127.0.0.1")),
        ("8000-8010:80-90", PortSpec(80, 8000, 11)),
        ("8000-8010:80", PortSpec(80, 8000, choices=11)),
        ("3868:3868/sctp", PortSpec(3868, 3868, protocol="sctp")),
        ("80-90", PortSpec(80, 0, 11)),
        ("1:65535", PortSpec(65535, 1)),
        ("65535:1", PortSpec(1, 65535)),
        (PortSpec(80, 8080), PortSpec(80, 8080)),
    ],
)
def test_what_docker_takes(text: str | int | PortSpec, expected: PortSpec) -> None:
    assert parse_port(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0", "0 is not between 1 and 65535"),
        ("0:80", "leave the host port out"),
        ("80:0", "0 is not between"),
        ("65536", "65536 is not between"),
        ("80:65536", "65536 is not between"),
        ("99999999999999999999999", "is not between"),
        ("90-80", "runs backwards; write 80-90"),
        ("8010-8000:80-90", "the range 8010-8000 runs backwards"),
        ("8000:80-90", "the ranges differ in length"),
        ("8000-8010:80-91", "the ranges differ in length"),
        ("80/icmp", "'icmp' is not a protocol"),
        ("80/", "'' is not a protocol"),
        ("", "'' is not a port"),
        ("http", "'http' is not a port"),
        ("80:http", "'http' is not a port"),
        ("-80", "is not a port"),
        ("80-", "is not a port"),
        ("8080:", "'' is not a port"),
        ("127.0.0.1:80", "write 127.0.0.1::80"),
        ("[::1]:80:80", "IPv6 address is not offered yet"),
        ("::1:80:80", "IPv6 address is not offered yet"),
        ("300.0.0.1:80:80", "not an IPv4 address"),
        ("224.0.0.1:80:80", "a multicast address"),
        ("255.255.255.255:80:80", "a reserved address"),
        ("localhost:80:80", "not an IPv4 address"),
        ("٣:٣", "is not a port"),
        (PortSpec(0), "port '0': out of range"),
        (PortSpec(65535, 1, 2), "last port of a range"),
        (PortSpec(1, 65535, 2), "last host port of a range"),
        (PortSpec(1, 1, 0), "number of ports"),
        (PortSpec(1, 1, 1, "dccp"), "'dccp' is not a protocol"),
        (PortSpec(1, 0, choices=2), "number of host ports to choose from"),
        (PortSpec(1, 8000, 2, choices=2), "number of host ports to choose from"),
        (PortSpec(1, 65535, choices=2), "last host port to choose"),
        (PortSpec(1, 1, 1, "tcp", "::1"), "IPv6"),
    ],
)
def test_mistakes(text: str | PortSpec, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_port(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


ports = st.builds(
    PortSpec,
    port=st.integers(1, 60000),
    host_port=st.one_of(st.just(0), st.integers(1, 60000)),
    length=st.integers(1, 5000),
    protocol=st.sampled_from(["tcp", "udp", "sctp"]),
    host_ip=st.sampled_from(["0.0.0.0", "127.0.0.1", "10.1.2.3"]),
    choices=st.just(1),
)


@given(ports)
def test_round_trip(port: PortSpec) -> None:
    assert parse_port(format_port(port)) == port


@given(st.one_of(st.text(), st.text(alphabet="0123456789:-/.[]tcpud", max_size=30)))
def test_random_text_is_a_port_or_a_usage_error(text: str) -> None:
    try:
        port = parse_port(text)
    except UsageError as error:
        one_line(error)
    else:
        assert parse_port(format_port(port)) == port
        assert 1 <= port.port <= port.port + port.length - 1 <= 65535
        assert 0 <= port.host_port <= 65535


@pytest.mark.parametrize(
    "texts",
    [
        ["8080:80", "8080:81"],
        ["8080:80", "127.0.0.1:8080:81"],
        ["127.0.0.1:8080:80", "8080:81"],
        ["8000-8010:80-90", "8005:99"],
        ["8005:99", "8000-8010:80-90"],
        ["8000-8010:80-90", "8010-8020:180-190"],
    ],
)
def test_overlaps_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="want the same host port"):
        check_overlaps([parse_port(text) for text in texts])


@pytest.mark.parametrize("text", ["8080:80", "80", "80-90"])
def test_the_same_twice_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is published twice"):
        check_overlaps([parse_port(text), parse_port(text)])


@pytest.mark.parametrize(
    "texts",
    [
        ["8080:80", "8081:80"],
        ["8080:80", "8080:80/udp"],
        ["127.0.0.1:8080:80", "10.0.0.1:8080:80"],
        ["8000-8010:80-90", "8011:99"],
        ["80", "81"],
        ["8000-8010:80", "8000-8010:80"],
        ["8000-8010:80", "8005:81"],
    ],
)
def test_what_does_not_overlap_is_taken(texts: list[str]) -> None:
    check_overlaps([parse_port(text) for text in texts])


@given(ports, ports)
def test_overlap_is_exactly_a_shared_host_port(one: PortSpec, other: PortSpec) -> None:
    assume(one != other)

    def taken(port: PortSpec) -> set[int]:
        return set(range(port.host_port, port.host_port + port.length)) if port.host_port else set()

    same_address = one.host_ip == other.host_ip or "0.0.0.0" in (one.host_ip, other.host_ip)
    expected = one.protocol == other.protocol and same_address and bool(taken(one) & taken(other))
    try:
        check_overlaps([one, other])
        refused = False
    except UsageError:
        refused = True
    assert refused == expected


def test_a_choice_is_written_as_it_is_read() -> None:
    assert parse_port(format_port(PortSpec(80, 8000, choices=11))) == PortSpec(80, 8000, choices=11)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", ExposedPort(80)),
        (80, ExposedPort(80)),
        ("53/udp", ExposedPort(53, 1, "udp")),
        ("8000-8010/sctp", ExposedPort(8000, 11, "sctp")),
        ("http=80", ExposedPort(80, 1, "tcp", "http")),
        ("dns-2=53/udp", ExposedPort(53, 1, "udp", "dns-2")),
        (ExposedPort(80, 1, "tcp", "http"), ExposedPort(80, 1, "tcp", "http")),
    ],
)
def test_what_is_exposed(text: str | int | ExposedPort, expected: ExposedPort) -> None:
    assert parse_expose(text) == expected
    assert parse_expose(format_expose(expected)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not a port"),
        ("0", "0 is not between"),
        ("http", "'http' is not a port"),
        ("80/icmp", "'icmp' is not a protocol"),
        ("8080:80", "only the port inside is exposed; publish it instead: -p 8080:80"),
        ("=80", "'' is not the name of a port"),
        ("HTTP=80", "'HTTP' is not the name"),
        ("80=80", "'80' is not the name"),
        ("a--b=80", "is not the name"),
        ("-a=80", "is not the name"),
        ("a-very-long-name=80", "up to 15 lower-case letters"),
        ("many=80-90", "a name stands for one port"),
    ],
)
def test_mistakes_of_expose(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_expose(text)
    assert reason in str(caught.value)
    one_line(caught.value)


def test_a_name_stands_for_one_port() -> None:
    assert parse_exposed(["http=80", "80", "http=80"]) == (ExposedPort(80, 1, "tcp", "http"), ExposedPort(80))
    with pytest.raises(UsageError, match="http stands for two ports, http=80/tcp and http=81/tcp"):
        parse_exposed(["http=80", "http=81"])


def test_publish_all_adds_what_is_not_published() -> None:
    exposed = parse_exposed(["80", "http=80", "85", "53/udp", "9000-9010"])
    published = [PortSpec(80, 8080), PortSpec(53, 53)]
    assert publish_all(exposed, published) == (PortSpec(85), PortSpec(53, protocol="udp"), PortSpec(9000, length=11))
    assert publish_all(exposed, [PortSpec(1, 1, 65535), PortSpec(53, protocol="udp")]) == ()
    with pytest.raises(UsageError, match="no port is exposed"):
        publish_all((), published)


@pytest.mark.parametrize(
    ("selector", "port", "chosen"),
    [
        ("80", PortSpec(80, 8080), True),
        ("80", PortSpec(80, 8080, host_ip="127.0.0.1"), True),
        ("80/udp", PortSpec(80, 8080), False),
        ("8080:80", PortSpec(80, 8080, host_ip="127.0.0.1"), True),
        ("8081:80", PortSpec(80, 8080), False),
        ("0.0.0.0:8080:80", PortSpec(80, 8080, host_ip="127.0.0.1"), False),
        ("127.0.0.1::80", PortSpec(80, 8080, host_ip="127.0.0.1"), True),
        ("80", PortSpec(80, 8080, 2), False),
        ("80-81", PortSpec(80, 8080, 2), True),
        ("8000-8010:80", PortSpec(80, 8000, choices=11), True),
        ("8000-8010:80", PortSpec(80, 8000), False),
        (PortSpec(80), PortSpec(80, 8080), True),
    ],
)
def test_what_a_selector_means(selector: str | PortSpec, port: PortSpec, chosen: bool) -> None:
    assert selects(selector, port) is chosen


@pytest.mark.parametrize("text", ["80", "8080:80", ":8080:80", "80/udp", "8000-8010:80-90"])
def test_on_all_addresses_without_saying_so(text: str) -> None:
    assert on_all_addresses(text)


@pytest.mark.parametrize("text", ["0.0.0.0:8080:80", "127.0.0.1::80", "198.51.100.2:53:53/udp", "[::]:80:80"])
def test_an_address_was_said(text: str) -> None:
    assert not on_all_addresses(text)
