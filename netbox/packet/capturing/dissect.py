"""One line about a packet, in words: ARP, IPv4, IPv6 and what is above them. Pure; never fails, whatever the bytes are.

Addresses that belong to a sandbox are written as its name.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping

from netbox.packet.capturing import dissect_transport
from netbox.packet.capturing.dissect_transport import Peers, Short
from netbox.packet.capturing.pcapng import LINKTYPE_RAW

Names = Mapping[str, str]
"""Addresses as text, with the name of their sandbox."""

_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_VLAN = (0x8100, 0x88A8)
_ETHERTYPES = {0x88CC: "LLDP", 0x8863: "PPPoE discovery", 0x8864: "PPPoE", 0x888E: "EAPOL", 0x8847: "MPLS", 0x9000: "loop test"}
_ARP_REQUEST, _ARP_REPLY = 1, 2
_EXTENSIONS = {0: "hop-by-hop", 43: "routing", 60: "destination options"}
_FRAGMENT = 44
_MORE_FRAGMENTS, _OFFSET = 0x2000, 0x1FFF
_TRANSPORTS: dict[int, Callable[[bytes, Peers], str]] = {
    1: dissect_transport.icmp,
    6: dissect_transport.tcp,
    17: dissect_transport.udp,
    58: dissect_transport.icmpv6,
    132: dissect_transport.sctp,
}
_PROTOCOLS = {2: "IGMP", 4: "IP in IP", 41: "IPv6 in IP", 47: "GRE", 50: "ESP", 51: "AH", 59: "no next header", 89: "OSPF", 112: "VRRP"}


def line(data: bytes, link_type: int, names: Names) -> str:
    """``web:40000 → db:80  TCP SYN, seq 1, win 64240, length 0``. ``data`` starts with the link header that ``link_type`` says."""
    try:
        if link_type == LINKTYPE_RAW:
            return _network(_IPV6 if data[:1] and data[0] >> 4 == 6 else _IPV4, data, names)
        return _ethernet(data, names)
    except (Short, struct.error, IndexError):
        return f"cut short after {len(data)} bytes"


def _ethernet(data: bytes, names: Names) -> str:
    (kind,) = struct.unpack_from("!H", data, 12)
    offset, tags = 14, ""
    while kind in _VLAN:
        tag, kind = struct.unpack_from("!HH", data, offset)
        offset += 4
        tags += f"vlan {tag & 0xFFF}, "
    if kind < 0x0600:  # a length: IEEE 802.3 with LLC
        what = "STP" if data[offset : offset + 2] == b"\x42\x42" else "802.3"
        return f"{tags}{_mac(data[6:12])} → {_mac(data[:6])}  {what}, length {kind}"
    if kind not in (_IPV4, _IPV6, _ARP):
        what = _ETHERTYPES.get(kind, f"ethertype 0x{kind:04x}")
        return f"{tags}{_mac(data[6:12])} → {_mac(data[:6])}  {what}, length {len(data) - offset}"
    return tags + _network(kind, data[offset:], names)


def _network(kind: int, data: bytes, names: Names) -> str:
    if kind == _ARP:
        return _arp(data, names)
    return _ipv6(data, names) if kind == _IPV6 else _ipv4(data, names)


def _arp(data: bytes, names: Names) -> str:
    hardware, protocol, hardware_size, protocol_size, operation = struct.unpack_from("!HHBBH", data)
    if (hardware, protocol, hardware_size, protocol_size) != (1, _IPV4, 6, 4):
        return f"ARP for hardware {hardware}, protocol 0x{protocol:04x}"
    sender_mac, sender, _, target = struct.unpack_from("!6s4s6s4s", data, 8)
    who, whom = _name(socket.inet_ntoa(sender), names), _name(socket.inet_ntoa(target), names)
    if sender == target:
        return f"ARP announcement: {who} is at {_mac(sender_mac)}"
    if operation == _ARP_REQUEST:
        return f"ARP who has {whom}? tell {who if any(sender) else _mac(sender_mac)}"
    if operation == _ARP_REPLY:
        return f"ARP {who} is at {_mac(sender_mac)}"
    return f"ARP operation {operation} from {who}"


def _ipv4(data: bytes, names: Names) -> str:
    first, _, total, _, fragment, _, protocol, _, source, destination = struct.unpack_from("!BBHHHBBH4s4s", data)
    peers = Peers(_name(socket.inet_ntoa(source), names), _name(socket.inet_ntoa(destination), names), names)
    end = min(total or len(data), len(data))  # segmentation offload leaves the length 0 where it does not fit
    payload = data[(first & 15) * 4 : end]
    offset = (fragment & _OFFSET) * 8
    if offset:
        more = ", more follow" if fragment & _MORE_FRAGMENTS else ", the last"
        return f"{peers}  {_protocol(protocol)} fragment at {offset}{more}, length {len(payload)}"
    return _transport(protocol, payload, peers) + (", more fragments follow" if fragment & _MORE_FRAGMENTS else "")


def _ipv6(data: bytes, names: Names) -> str:
    _, length, following, _, source, destination = struct.unpack_from("!IHBB16s16s", data)
    peers = Peers(_name(_inet6(source), names), _name(_inet6(destination), names), names)
    offset = 40
    while following in _EXTENSIONS:
        following, size = struct.unpack_from("!BB", data, offset)
        offset += (size + 1) * 8
    if following == _FRAGMENT:
        following, _, place = struct.unpack_from("!BBH", data, offset)
        if place & ~7:
            more = ", more follow" if place & 1 else ", the last"
            return f"{peers}  {_protocol(following)} fragment at {place & ~7}{more}, length {len(data) - offset - 8}"
        offset += 8
    end = min(40 + length, len(data)) if length else len(data)
    return _transport(following, data[offset:end], peers)


def _transport(protocol: int, payload: bytes, peers: Peers) -> str:
    dissector = _TRANSPORTS.get(protocol)
    if dissector is None:
        return f"{peers}  {_protocol(protocol)}, length {len(payload)}"
    try:
        return dissector(payload, peers)
    except (Short, struct.error, IndexError):
        return f"{peers}  {_protocol(protocol)}, cut short after {len(payload)} bytes"


def _protocol(number: int) -> str:
    known = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP", **_PROTOCOLS}
    return known.get(number, f"protocol {number}")


def _name(address: str, names: Names) -> str:
    return names.get(address, address)


def _inet6(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, value)


def _mac(value: bytes) -> str:
    return value.hex(":")
