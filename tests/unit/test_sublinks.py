"""Requests for links on other links, as the kernel reads them (<linux/if_link.h>)."""

from __future__ import annotations

import struct

from netbox.kernel import rtnetlink, sublinks
from netbox.kernel.rtnetlink import parse_attributes

HEADER = 16  # struct ifinfomsg


def information(body: bytes) -> tuple[dict[int, bytes], bytes, dict[int, bytes]]:
    """The link's attributes, its kind, and the attributes of the kind."""
    attributes = parse_attributes(body[HEADER:])
    info = parse_attributes(attributes[rtnetlink.IFLA_LINKINFO])
    return attributes, info[rtnetlink.IFLA_INFO_KIND], parse_attributes(info[rtnetlink.IFLA_INFO_DATA])


def test_a_macvlan_link_in_one_request() -> None:
    request = sublinks.add_macvlan("nb1", parent=7, netns_fd=5, mtu=1400, mac="02:6e:00:00:00:01", mode="private")
    attributes, kind, data = information(request.body)
    assert kind == b"macvlan\0"
    assert data == {1: struct.pack("=I", 1)}  # IFLA_MACVLAN_MODE, MACVLAN_MODE_PRIVATE
    assert attributes[3] == b"nb1\0"
    assert struct.unpack("=III", attributes[5] + attributes[28] + attributes[4]) == (7, 5, 1400)  # parent, namespace, MTU
    assert attributes[1] == bytes.fromhex("026e00000001")


def test_a_vlan() -> None:
    request = sublinks.add_vlan("eth0.100", parent=7, vlan=100)
    attributes, kind, data = information(request.body)
    assert (kind, data, attributes[5]) == (b"vlan\0", {1: struct.pack("=H", 100)}, struct.pack("=I", 7))  # IFLA_VLAN_ID has 16 bits
    marked = sublinks.mark("eth0.100", "netbox")
    assert parse_attributes(marked.body[HEADER:])[20] == b"netbox\0"  # IFLA_IFALIAS
    assert marked.flags == 0  # it changes a link, and makes none
