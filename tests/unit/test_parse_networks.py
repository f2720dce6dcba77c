from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse import build_network, build_spec, make_attachment
from netbox.parse.networks import parse_attachment, parse_networks, parse_range, parse_subnet
from netbox.spec import NetworkAttachment, NetworkRequest, NetworkSpec, SandboxSpec


def test_the_short_and_the_long_form() -> None:
    assert parse_attachment("front") == NetworkAttachment("front")
    assert parse_attachment("default") == NetworkAttachment("bridge")
    long = "name=back,ip=10.1.1.5,mac-address=02:00:00:00:00:05,alias=DB,alias=db2,gw-priority=-3"
    assert parse_attachment(long) == NetworkAttachment("back", "10.1.1.5", "02:00:00:00:00:05", ("db", "db2"), -3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ip=10.1.1.5", "no name"),
        ("name=a,name=b", "is given twice"),
        ("name=a,colour=red", "'colour' is not an option of a network"),
        ("name=a,ip=", "'ip' has no value"),
        ("name=a,ip=x", "not an IPv4 address"),
        ("name=a,alias=-x", "not a host name"),
        ("name=a,gw-priority=high", "not a whole number"),
        ("name=bridge,alias=db", "aliases are offered on user-defined networks only"),
        ("name=a/b", "not the name of a network"),
        ("name=", "has no value"),
    ],
)
def test_bad_attachments(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_attachment(text)


def test_both_families() -> None:
    request = build_network("front", subnet=["fd00:1::/64", "10.20.30.0/24"], gateway=["fd00:1::FE"], aux_addresses={"router": "fd00:1::5"})
    assert (request.subnet, request.subnet6, request.gateway, request.gateway6) == ("10.20.30.0/24", "fd00:1::/64", None, "fd00:1::fe")
    assert request.ipv6
    assert request.aux_addresses == (("router", "fd00:1::5"),)
    assert build_network("front", ipv6=True).subnet6 is None
    assert not build_network("front").ipv6
    assert parse_attachment("name=back,ip6=FD00::5").ip6 == "fd00::5"
    back = NetworkAttachment("back")
    assert parse_networks(["back"], None, None, None, "fd00::6") == ("bridge", (back._replace(ip6="fd00::6"),))
    with pytest.raises(UsageError, match="two addresses"):
        parse_networks(["name=back,ip6=fd00::5"], None, None, None, "fd00::6")
    spec = build_spec("busybox", network="back", ip6="fd00::6")
    assert SandboxSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_mode_and_the_networks() -> None:
    front, back = NetworkAttachment("front"), NetworkAttachment("back")
    assert parse_networks(None, None, None, None) == ("bridge", None)
    assert parse_networks("bridge", "10.1.1.2", None, None) == ("bridge", None)  # the address stays with the request
    assert parse_networks("none", None, None, None) == ("none", None)
    assert parse_networks(["front", back], "10.1.1.2", "02:00:00:00:00:05", ["DB"]) == (
        "bridge",
        (front._replace(ip="10.1.1.2", mac_address="02:00:00:00:00:05", aliases=("db",)), back),
    )
    assert parse_networks(["bridge", "front"], None, None, None) == ("bridge", (NetworkAttachment("bridge"), front))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"network": ["front", "host"]}, "network host cannot be combined with others"),
        ({"network": ["container:web", "front"]}, "network container:web cannot be combined"),
        ({"network": ["name=host,ip=10.1.1.1"]}, "network host has no addresses and aliases"),
        ({"network": "none", "network_aliases": ["db"]}, "network none has no addresses and aliases"),
        ({"network": ["front", "front"]}, "network 'front' is given twice"),
        ({"network": ["name=front,ip=10.1.1.5"], "ip": "10.1.1.6"}, "has two addresses"),
        ({"network_aliases": ["db"]}, "aliases are offered on user-defined networks only"),
    ],
)
def test_bad_combinations(options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        build_spec("busybox", **options)  # type: ignore[arg-type]


def test_a_request_with_networks_survives_json() -> None:
    spec = build_spec("busybox", network=["name=front,alias=a,gw-priority=2", "back"], ip="10.1.1.2")
    assert spec.network.ip is None
    assert spec.network.title == "front,back"
    assert SandboxSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_attachments_and_titles() -> None:
    assert NetworkSpec(ip="10.1.1.2").attachments == (NetworkAttachment("bridge", "10.1.1.2"),)
    assert NetworkSpec(mode="none").attachments == NetworkSpec(networks=()).attachments == ()
    assert [NetworkSpec().title, NetworkSpec(mode="none").title, NetworkSpec(networks=()).title] == ["bridge", "none", "-"]
    assert make_attachment("back", gw_priority="5", aliases=["b", "b"]) == NetworkAttachment("back", aliases=("b",), gw_priority=5)


def test_a_network() -> None:
    assert build_network("front") == NetworkRequest("front")
    assert build_network(
        "front",
        subnet="10.20.30.0/24",
        gateway="10.20.30.254",
        ip_range="10.20.30.130/25",
        aux_addresses=["router=10.20.30.5"],
        internal=True,
        labels={"a": "b"},
        options=["mtu=1400"],
        driver="bridge",
    ) == NetworkRequest("front", "10.20.30.0/24", "10.20.30.254", "10.20.30.128/25", (("router", "10.20.30.5"),), True, (("a", "b"),), 1400)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"subnet": "10.20.30.4/24"}, "not the first address of a network; write 10.20.30.0/24"),
        ({"subnet": "10.20.30.0"}, "no prefix length"),
        ({"subnet": "10.20.30.0/31"}, "8 to 30 is allowed"),
        ({"subnet": "fd00::1/64"}, "not the first address of a network; write fd00::/64"),
        ({"subnet": "fd00::/127"}, "16 to 126 is allowed"),
        ({"subnet": "fe80::/64"}, "a link-local address"),
        ({"subnet": "ff00::/64"}, "a multicast address"),
        ({"subnet": "::ffff:10.0.0.0/120"}, "an IPv4 address in the form of IPv6"),
        ({"subnet": ["fd00::/64", "fd01::/64"]}, "the second one of its family"),
        ({"subnet": ["10.0.0.0/24", "10.1.0.0/24"]}, "the second one of its family"),
        ({"gateway": "::1", "ipv6": True}, "the loopback address"),
        ({"ip_range": ["fd00::/80", "fd01::/80"]}, "the second one of its family"),
        ({"ip_range": "fd00::/129"}, "16 to 128 is allowed"),
        ({"gateway": "fe80::1", "ipv6": True}, "a link-local address"),
        ({"driver": "macvlan", "options": ["parent=eth0"], "subnet": "10.0.0.0/24", "ipv6": True}, "the IPv6 subnet is missing"),
        ({"options": ["mtu=1200"], "ipv6": True}, "IPv6 needs 1280 at least"),
        ({"subnet": "127.1.0.0/16"}, "a loopback address"),
        ({"subnet": "224.1.0.0/16"}, "a multicast address"),
        ({"ip_range": "10.0.0.0/99"}, "8 to 32 is allowed"),
        ({"aux_addresses": ["router"]}, "not NAME=IP"),
        ({"aux_addresses": ["a=10.0.0.1", "b=10.0.0.1"]}, "it is given twice"),
        ({"options": ["mtu=10"]}, "68 to 65535 is allowed"),
        ({"options": ["colour=red"]}, "no such option; write mtu=1400"),
        ({"driver": "overlay"}, "no such driver; use bridge"),
    ],
)
def test_bad_networks(options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        build_network("front", **options)  # type: ignore[arg-type]


@given(st.text(), st.sampled_from([parse_attachment, parse_subnet, parse_range, build_network]))
def test_odd_text_is_a_usage_error_or_understood(text: str, parse: object) -> None:
    with contextlib.suppress(UsageError):
        parse(text)  # type: ignore[operator]


def test_a_macvlan_network() -> None:
    request = build_network("lan", driver="macvlan", subnet="192.168.1.0/24", options={"parent": "eth0.100", "macvlan_mode": "vepa"})
    assert (request.driver, request.parent, request.macvlan_mode, request.mtu) == ("macvlan", "eth0.100", "vepa", None)
    assert build_network("lan", driver="macvlan", subnet="192.168.1.0/24", options=["parent=eth0"]).macvlan_mode == "bridge"
    assert build_network("front").parent is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"subnet": "192.168.1.0/24"}, "the link of the host is missing; name it: -o parent=eth0"),
        ({"options": ["parent=eth0"]}, "the subnet is missing; give that of the LAN"),
        ({"options": ["parent=eth0"], "subnet": "192.168.1.0/24", "internal": True}, "its sandboxes are on the LAN"),
        ({"options": ["parent=eth0", "macvlan_mode=hub"], "subnet": "192.168.1.0/24"}, "no such mode; use one of bridge, private"),
        ({"options": ["parent=a/b"], "subnet": "192.168.1.0/24"}, "not the name of a link"),
        ({"options": ["parent="], "subnet": "192.168.1.0/24"}, "not the name of a link"),
        ({"options": ["parent=eth0"], "subnet": "192.168.1.0/24", "driver": "bridge"}, "it belongs to the driver macvlan"),
    ],
)
def test_bad_macvlan_networks(values: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        build_network("lan", **{"driver": "macvlan", **values})  # type: ignore[arg-type]
