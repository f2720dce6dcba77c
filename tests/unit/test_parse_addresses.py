from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse.addresses import (
    parse_any_address,
    parse_dns_option,
    parse_extra_hosts,
    parse_hostname,
    parse_ipv4,
    parse_mac,
    parse_network,
    parse_sandbox_ip,
    parse_search_domain,
)


def one_line(error: UsageError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("::1", "not an IPv4 address"),
        ("10.0.0", "not an IPv4 address"),
        ("10.0.0.256", "not an IPv4 address"),
        ("010.0.0.1", "not an IPv4 address"),
        ("", "not an IPv4 address"),
        ("10.0.0.1/24", "not an IPv4 address"),
        ("224.0.0.1", "a multicast address"),
        ("239.255.255.255", "a multicast address"),
        ("240.0.0.1", "a reserved address"),
        ("255.255.255.255", "a reserved address"),
        ("127.0.0.1", "a loopback address"),
        ("0.0.0.0", "not the address of a host"),
        ("a\nb", "not an IPv4 address"),
        ("1.2.3.4\0", "NUL"),
    ],
)
def test_addresses_that_a_sandbox_cannot_have(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sandbox_ip(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_that_is_no_text() -> None:
    with pytest.raises(UsageError, match="not a string"):
        parse_ipv4(7)  # type: ignore[arg-type]


@given(st.ip_addresses(v=4))
def test_every_other_address_is_taken(address: ipaddress.IPv4Address) -> None:
    first = address.packed[0]
    if first in (0, 127) or first >= 224:
        with pytest.raises(UsageError):
            parse_sandbox_ip(str(address))
    else:
        assert parse_sandbox_ip(str(address)) == str(address)


@given(st.ip_addresses())
def test_name_servers_of_both_families(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert parse_any_address(str(address), "dns") == str(address)
    if address.version == 6:
        assert parse_any_address(f"[{address}]", "dns") == str(address)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("01:42:ac:11:00:02", "a multicast address"),
        ("ff:ff:ff:ff:ff:ff", "a multicast address"),
        ("00:00:00:00:00:00", "the zero address"),
        ("02:42:ac:11:00", "not a MAC address"),
        ("02:42:ac:11:00:02:03", "not a MAC address"),
        ("02:42-ac:11:00:02", "not a MAC address"),
        ("0g:42:ac:11:00:02", "not a MAC address"),
        ("", "not a MAC address"),
    ],
)
def test_bad_macs(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mac(text)
    assert reason in str(caught.value)


@given(st.binary(min_size=6, max_size=6), st.sampled_from([":", "-"]), st.booleans())
def test_macs(raw: bytes, separator: str, upper: bool) -> None:
    text = raw.hex(separator)
    written = text.upper() if upper else text
    if raw[0] & 1 or not any(raw):
        with pytest.raises(UsageError):
            parse_mac(written)
    else:
        assert parse_mac(written) == raw.hex(":")


@pytest.mark.parametrize("text", ["web", "web.example", "a_b", "x" * 63, "1"])
def test_hostnames(text: str) -> None:
    assert parse_hostname(text) == text


@pytest.mark.parametrize("text", ["", "-web", "web-", "a..b", ".a", "a b", "a/b", "x" * 65, "ü", "a\nb", "x" * 300])
def test_bad_hostnames(text: str) -> None:
    with pytest.raises(UsageError, match="^hostname ") as caught:
        parse_hostname(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["example.org", "example.org.", "."])
def test_search_domains(text: str) -> None:
    assert parse_search_domain(text) == text


@pytest.mark.parametrize("text", ["", "..", "a b", "a\nnameserver 1.2.3.4"])
def test_bad_search_domains(text: str) -> None:
    with pytest.raises(UsageError):
        parse_search_domain(text)


def test_dns_options() -> None:
    assert parse_dns_option("ndots:2") == "ndots:2"
    assert parse_dns_option("use-vc") == "use-vc"
    for text in ("", "ndots:", "ndots: 2", "a\nb", "-x"):
        with pytest.raises(UsageError):
            parse_dns_option(text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["db:10.0.0.1"], (("db", "10.0.0.1"),)),
        ("db:10.0.0.1", (("db", "10.0.0.1"),)),
        (["db=10.0.0.1"], (("db", "10.0.0.1"),)),
        (["db:::1"], (("db", "::1"),)),
        (["db:[fd00::1]"], (("db", "fd00::1"),)),
        (["me:host-gateway"], (("me", "host-gateway"),)),
        ({"db": "10.0.0.1"}, (("db", "10.0.0.1"),)),
        ([("db", "10.0.0.1"), "x:1.2.3.4"], (("db", "10.0.0.1"), ("x", "1.2.3.4"))),
        (None, ()),
    ],
)
def test_extra_hosts(values: list[str], expected: tuple[tuple[str, str], ...]) -> None:
    assert parse_extra_hosts(values) == expected


@pytest.mark.parametrize("text", ["db", "db:", ":10.0.0.1", "db:nowhere", "d b:10.0.0.1", "db:10.0.0.1\n1.2.3.4 x", ""])
def test_bad_extra_hosts(text: str) -> None:
    with pytest.raises(UsageError, match="^add-host"):
        parse_extra_hosts([text])


@pytest.mark.parametrize("text", ["bridge", "host", "none", "container:web", "container:0123abc", "mynet", "ns:/run/netns/lab"])
def test_networks(text: str) -> None:
    assert parse_network(text) == text


def test_the_default_network_is_the_bridge() -> None:
    assert parse_network("default") == "bridge"


@pytest.mark.parametrize("text", ["", "container:", "container:a/b", "ip:/proc/1/ns/net", "a b", "x" * 65, ":x"])
def test_bad_networks(text: str) -> None:
    with pytest.raises(UsageError, match="^network .*write bridge, host, none, container:NAME or ns:PATH"):
        parse_network(text)


@given(st.text(), st.sampled_from([parse_sandbox_ip, parse_mac, parse_hostname, parse_search_domain, parse_dns_option, parse_network]))
def test_random_text_gives_usage_errors_only(text: str, parse: object) -> None:
    try:
        assert isinstance(parse(text), str)  # type: ignore[operator]
    except UsageError as error:
        one_line(error)


@given(st.text(alphabet="ab:=.01[]-\n "))
def test_random_extra_hosts(text: str) -> None:
    try:
        ((name, address),) = parse_extra_hosts([text])
    except UsageError as error:
        one_line(error)
    else:
        assert not any(character.isspace() for character in name + address)
