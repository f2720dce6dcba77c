from __future__ import annotations

import errno
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from netbox.kernel import rtnetlink as rt

attributes = st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8)


@given(attributes)
def test_attributes_survive_the_trip(values: dict[int, bytes]) -> None:
    encoded = b"".join(rt.attribute(kind, value) for kind, value in values.items())
    assert len(encoded) % 4 == 0
    assert rt.parse_attributes(encoded) == values


@given(st.binary(max_size=200))
def test_garbage_is_parsed_without_an_exception(data: bytes) -> None:
    for value in rt.parse_attributes(data).values():
        assert len(value) <= len(data)


def test_strings_and_numbers() -> None:
    assert rt.text(3, "eth0") == struct.pack("=HH", 9, 3) + b"eth0\0" + bytes(3)
    assert rt.number(4, 1500) == struct.pack("=HHI", 8, 4, 1500)
    assert rt.mac_bytes("02:6e:0a:d2:00:02") == b"\x02\x6e\x0a\xd2\x00\x02"


def test_a_veth_pair_is_one_request_with_everything_in_it() -> None:
    request = rt.add_veth("nb1", "eth0", netns_fd=9, mtu=1400, peer_mac="02:6e:0a:d2:00:02", master=7)
    assert request.kind == rt.RTM_NEWLINK
    assert request.flags == rt.NLM_F_CREATE | rt.NLM_F_EXCL
    family, kind, index, flags, change = struct.unpack_from("=BxHiII", request.body)
    assert (family, kind, index, flags, change) == (0, 0, 0, rt.IFF_UP, rt.IFF_UP)
    outer = rt.parse_attributes(request.body[16:])
    assert outer[rt.IFLA_IFNAME] == b"nb1\0"
    assert struct.unpack("=I", outer[rt.IFLA_MASTER]) == (7,)
    info = rt.parse_attributes(outer[rt.IFLA_LINKINFO])
    assert info[rt.IFLA_INFO_KIND] == b"veth\0"
    peer_message = rt.parse_attributes(info[rt.IFLA_INFO_DATA])[rt.VETH_INFO_PEER]
    assert struct.unpack_from("=BxHiII", peer_message)[3:] == (0, 0)  # down
    peer = rt.parse_attributes(peer_message[16:])
    assert peer[rt.IFLA_IFNAME] == b"eth0\0"
    assert peer[rt.IFLA_ADDRESS].hex(":") == "02:6e:0a:d2:00:02"
    assert struct.unpack("=I", peer[rt.IFLA_NET_NS_FD]) == (9,)
    assert struct.unpack("=I", peer[rt.IFLA_MTU]) == struct.unpack("=I", outer[rt.IFLA_MTU]) == (1400,)


def test_an_address_has_its_broadcast_address() -> None:
    request = rt.add_address(3, "10.9.1.2", 20)
    assert struct.unpack_from("=BBBBI", request.body) == (socket.AF_INET, 20, 0, 0, 3)
    values = rt.parse_attributes(request.body[8:])
    assert socket.inet_ntoa(values[rt.IFA_BROADCAST]) == "10.9.15.255"
    assert values[rt.IFA_LOCAL] == values[rt.IFA_ADDRESS] == socket.inet_aton("10.9.1.2")
    assert request.tolerated == (errno.EEXIST,)


def test_a_default_route() -> None:
    request = rt.add_default_route(3, "10.9.0.1")
    family, length, *_ = struct.unpack_from("=BBBBBBBBI", request.body)
    assert (family, length) == (socket.AF_INET, 0)
    values = rt.parse_attributes(request.body[12:])
    assert socket.inet_ntoa(values[rt.RTA_GATEWAY]) == "10.9.0.1"
    assert struct.unpack("=I", values[rt.RTA_OIF]) == (3,)


def test_a_link_is_read() -> None:
    slave = rt.attribute(rt.IFLA_INFO_SLAVE_DATA, rt.attribute(rt.IFLA_BRPORT_STATE, b"\x03"))
    body = (
        struct.pack("=BxHiII", 0, 1, 42, rt.IFF_UP, 0)
        + rt.text(rt.IFLA_IFNAME, "nb1")
        + rt.number(rt.IFLA_MTU, 1400)
        + rt.number(rt.IFLA_MASTER, 7)
        + rt.attribute(rt.IFLA_ADDRESS, b"\x02\x6e\x00\x00\x00\x01")
        + rt.attribute(rt.IFLA_LINKINFO, rt.text(rt.IFLA_INFO_KIND, "veth") + slave)
        + rt.attribute(rt.IFLA_STATS64, struct.pack("=24Q", *range(24)))
    )
    link = rt.Link(body)
    assert (link.index, link.name, link.mtu, link.master, link.kind) == (42, "nb1", 1400, 7, "veth")
    assert link.mac == "02:6e:00:00:00:01"
    assert link.is_up
    assert link.port_state == rt.BR_STATE_FORWARDING
    assert link.traffic == tuple(range(8))


def test_a_link_that_says_little_is_read() -> None:
    link = rt.Link(struct.pack("=BxHiII", 0, 1, 1, 0, 0))
    assert (link.name, link.mtu, link.master, link.kind, link.port_state, link.is_up) == ("", 0, 0, "", 0, False)
    assert link.traffic == (0,) * 8
