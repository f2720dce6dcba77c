"""Packets of a probe, built and read by scapy. Only the worker process imports this module.

``build`` makes whole IP packets (ARP: whole frames) as bytes; ``read`` says what a received packet is the answer to, as a ``Reply`` whose
``key`` equals the ``Sent.key`` of the packet that it answers. Types and codes: RFC 792 (ICMP), RFC 4443 (ICMPv6), RFC 4861 (neighbour
discovery), RFC 9260 (SCTP), RFC 1035 (DNS), RFC 826 (ARP).
"""

from __future__ import annotations

import ipaddress
import logging
import struct
from typing import Any, NamedTuple

# E402: scapy's layers read these settings when they are imported, so the imports come after them.
logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.config import conf  # noqa: E402

conf.route_autoload = False  # the kernel routes; scapy would read every route and link, which takes seconds on a large host
conf.route6_autoload = False
conf.verb = 0

from scapy.error import Scapy_Exception  # noqa: E402
from scapy.layers.dns import DNS, DNSQR, dnstypes  # noqa: E402
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, fragment  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.layers.sctp import SCTP, SCTPChunkAbort, SCTPChunkInit, SCTPChunkInitAck  # noqa: E402
from scapy.packet import NoPayload, Raw  # noqa: E402

from netbox.packet.probing.values import ARP as ARP_PROBE  # noqa: E402
from netbox.packet.probing.values import DNS as DNS_PROBE  # noqa: E402
from netbox.packet.probing.values import ICMP as ICMP_PROBE  # noqa: E402
from netbox.packet.probing.values import ND as ND_PROBE  # noqa: E402
from netbox.packet.probing.values import SCTP as SCTP_PROBE  # noqa: E402
from netbox.packet.probing.values import TCP as TCP_PROBE  # noqa: E402
from netbox.packet.probing.values import UDP as UDP_PROBE  # noqa: E402

ECHO, ECHO_REPLY, ECHO_6, ECHO_REPLY_6, ADVERTISEMENT = 8, 0, 128, 129, 136
_ICMP, _TCP, _UDP, _ICMPV6, _SCTP = 1, 6, 17, 58, 132
_ERRORS = frozenset({3, 11, 12})  # a redirect or a source quench comes beside the answer: the packet has gone on
_ERRORS_6 = frozenset({1, 2, 3, 4})
_SERVICES = {_TCP: TCP_PROBE, _UDP: UDP_PROBE, _SCTP: SCTP_PROBE}
_MX, _TXT, _SRV, _SOA = 15, 16, 33, 6
_FIELDS = {
    _MX: ("preference", "exchange"),
    _SRV: ("priority", "weight", "port", "target"),
    _SOA: ("mname", "rname", "serial", "refresh", "retry", "expire", "minimum"),
}

Key = tuple[Any, ...]


class Outline(NamedTuple):
    """A packet to build. ``own_port`` is the source port, for ICMP the identifier; ``serial`` the TCP sequence number, for ICMP the
    sequence, for SCTP the tag, for DNS the id; ``id`` the IP id or flow label. ``payload`` counts bytes; ``fragment`` sets no DF bit.
    """

    protocol: str
    source: str
    address: str
    own_port: int
    port: int
    serial: int
    id: int
    ttl: int = 64
    payload: int = 0
    dont_fragment: bool = False
    name: str = ""
    record: str = "A"
    mac: str = ""

    @property
    def key(self) -> Key:
        """What its answers are known by."""
        if self.protocol == ICMP_PROBE:
            return (ICMP_PROBE, self.own_port, self.serial)
        if self.protocol in (ARP_PROBE, ND_PROBE):
            return (self.protocol, self.address)
        service = UDP_PROBE if self.protocol == DNS_PROBE else self.protocol
        return (service, self.address, self.own_port, self.port)


class Reply(NamedTuple):
    """A packet that came back. ``kind`` is echo-reply, syn-ack, rst, tcp, datagram, init-ack, abort, sctp, arp, advertisement or error;
    message stands for one that came by a TCP connection.

    ``icmp`` is (type, code) of an error, ``version`` the IP version that its numbers belong to. ``acknowledges`` is the TCP sequence number
    that is confirmed; ``payload`` is what a datagram or message says; ``code``, ``records`` and ``truncated`` come from a DNS answer.
    """

    key: Key
    kind: str
    from_address: str
    ttl: int | None = None
    version: int = 4
    icmp: tuple[int, int] | None = None
    next_mtu: int | None = None
    acknowledges: int | None = None
    mac: str = ""
    payload: bytes = b""
    code: int | None = None
    records: tuple[str, ...] = ()
    truncated: bool = False


def build(outline: Outline, mtu: int = 0) -> list[bytes]:
    """The packet, in fragments where it is longer than ``mtu`` (0: never) and may be cut."""
    if outline.protocol == ARP_PROBE:
        query = ARP(hwsrc=outline.mac, psrc=outline.source, pdst=outline.address, hwdst="00:00:00:00:00:00")
        return [bytes(Ether(src=outline.mac, dst="ff:ff:ff:ff:ff:ff") / query)]
    packet = _network(outline) / _transport(outline)
    if outline.payload:
        packet /= Raw(_filling(outline.payload))
    whole = bytes(packet)
    if not mtu or len(whole) <= mtu or outline.dont_fragment:
        return [whole]
    if ":" in outline.address:
        header = IPv6(whole[:40])
        del header.nh, header.plen  # of the fragments
        return [bytes(part) for part in fragment6(header / IPv6ExtHdrFragment(id=outline.id) / IPv6(whole).payload, mtu)]
    return [bytes(part) for part in fragment(IP(whole), fragsize=(mtu - 20) & ~7)]


def _network(outline: Outline) -> Any:
    if ":" not in outline.address:
        return IP(src=outline.source, dst=outline.address, id=outline.id, ttl=outline.ttl, flags="DF" if outline.dont_fragment else 0)
    if outline.protocol == ND_PROBE:  # with another hop limit it is discarded, RFC 4861, 7.1.1
        return IPv6(src=outline.source, dst=solicited_node(outline.address), hlim=255, fl=outline.id)
    return IPv6(src=outline.source, dst=outline.address, fl=outline.id, hlim=outline.ttl)


def _transport(outline: Outline) -> Any:
    ports = {"sport": outline.own_port, "dport": outline.port}
    if outline.protocol == TCP_PROBE:
        return TCP(**ports, seq=outline.serial, flags="S", window=64240, options=[("MSS", 1460)])
    if outline.protocol == UDP_PROBE:
        return UDP(**ports)
    if outline.protocol == SCTP_PROBE:
        streams = {"n_out_streams": 1, "n_in_streams": 1}
        return SCTP(**ports) / SCTPChunkInit(init_tag=outline.serial, init_tsn=outline.serial, a_rwnd=65535, **streams)
    if outline.protocol == DNS_PROBE:
        return UDP(**ports) / Raw(query(outline.name, outline.record, outline.serial & 0xFFFF))
    if outline.protocol == ND_PROBE:
        return ICMPv6ND_NS(tgt=outline.address) / ICMPv6NDOptSrcLLAddr(lladdr=outline.mac)
    if ":" in outline.address:
        return ICMPv6EchoRequest(id=outline.own_port, seq=outline.serial)
    return ICMP(type=ECHO, id=outline.own_port, seq=outline.serial)


def query(name: str, record: str, identity: int) -> bytes:
    """What a name server is asked, with recursion desired."""
    return bytes(DNS(id=identity, rd=1, qd=DNSQR(qname=name, qtype=record)))


def _filling(size: int) -> bytes:
    pattern = bytes(range(0x20, 0x60))
    return (pattern * (size // len(pattern) + 1))[:size]


def solicited_node(address: str) -> str:
    """The multicast address that a neighbour solicitation goes to (RFC 4291, 2.7.1)."""
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("ff02::1:ff00:0")) | int(ipaddress.IPv6Address(address)) & 0xFFFFFF))


def read(data: bytes, version: int) -> Reply | None:
    """What a received IP packet is, if it may be an answer to a probe."""
    packet = IP(data) if version == 4 else IPv6(data)
    ttl = packet.ttl if version == 4 else packet.hlim
    reply = _service_reply(packet) or (_icmp_reply(packet) if version == 4 else _icmp6_reply(packet))
    return None if reply is None else reply._replace(from_address=_plain(packet.src), ttl=ttl, version=version)


def read_arp(frame: bytes) -> Reply | None:
    """The ARP reply in a frame."""
    packet = Ether(frame)
    if ARP not in packet or packet[ARP].op != 2:
        return None
    return Reply((ARP_PROBE, packet[ARP].psrc), "arp", packet[ARP].psrc, mac=packet[ARP].hwsrc)


def _service_reply(packet: Any) -> Reply | None:
    source = _plain(packet.src)
    if TCP in packet:
        part = packet[TCP]
        flags = part.flags
        kind = "rst" if flags.R else "syn-ack" if flags.S and flags.A else "tcp"
        confirmed = (part.ack - 1) & 0xFFFFFFFF if flags.A else None
        return Reply((TCP_PROBE, source, part.dport, part.sport), kind, source, acknowledges=confirmed)
    if SCTP in packet:
        part = packet[SCTP]
        kind = "init-ack" if SCTPChunkInitAck in packet else "abort" if SCTPChunkAbort in packet else "sctp"
        return Reply((SCTP_PROBE, source, part.dport, part.sport), kind, source)
    if UDP in packet and packet[UDP].underlayer is packet:
        part = packet[UDP]
        return Reply((UDP_PROBE, source, part.dport, part.sport), "datagram", source, payload=bytes(part.payload))
    return None


def with_dns(reply: Reply, identity: int) -> Reply:
    """The reply with what it answers to the query of this identity, if it is an answer to it."""
    try:
        message = DNS(reply.payload)
        if not message.qr or message.id != identity & 0xFFFF:
            return reply
        records = tuple(f"{dnstypes.get(item.type, str(item.type))} {_data(item)}".rstrip() for item in message.an or ())
    except (AttributeError, LookupError, TypeError, ValueError, struct.error, Scapy_Exception):  # bytes that are no message, or half of one
        return reply
    return reply._replace(code=message.rcode, records=records, truncated=bool(message.tc))


def _data(item: Any) -> str:
    """What stands behind the type of a record in a zone file (RFC 1035, 5.1)."""
    names = _FIELDS.get(item.type, ("rdata",))
    values = [getattr(item, name) for name in names if hasattr(item, name)]
    flat = [part for value in values for part in (value if isinstance(value, list) else [value])]
    if item.type == _TXT:
        return " ".join(f'"{_text(part)}"' for part in flat)
    return " ".join(map(_text, flat))


def _text(value: Any) -> str:
    return value.decode(errors="replace").rstrip(".") if isinstance(value, bytes) else str(value).rstrip(".")


def _icmp_reply(packet: Any) -> Reply | None:
    if ICMP not in packet:
        return None
    part = packet[ICMP]
    if part.type == ECHO_REPLY:
        return Reply((ICMP_PROBE, part.id, part.seq), "echo-reply", "", icmp=(part.type, part.code))
    if part.type not in _ERRORS or IPerror not in packet:
        return None
    quoted = packet[IPerror]
    key = _quoted_key(quoted.proto, _plain(quoted.dst), bytes(quoted.payload))
    next_mtu = part.nexthopmtu if (part.type, part.code) == (3, 4) else None
    return None if key is None else Reply(key, "error", "", icmp=(part.type, part.code), next_mtu=next_mtu)


def _icmp6_reply(packet: Any) -> Reply | None:
    if ICMPv6EchoReply in packet:
        part = packet[ICMPv6EchoReply]
        return Reply((ICMP_PROBE, part.id, part.seq), "echo-reply", "", 0, 6, (ECHO_REPLY_6, 0))
    if ICMPv6ND_NA in packet:
        target = _plain(packet[ICMPv6ND_NA].tgt)
        mac = packet[ICMPv6NDOptDstLLAddr].lladdr if ICMPv6NDOptDstLLAddr in packet else ""
        return Reply((ND_PROBE, target), "advertisement", "", 0, 6, (ADVERTISEMENT, 0), mac=mac)
    part = packet.payload
    if isinstance(part, NoPayload) or getattr(part, "type", None) not in _ERRORS_6 or IPerror6 not in packet:
        return None
    quoted = packet[IPerror6]
    key = _quoted_key(quoted.nh, _plain(quoted.dst), bytes(quoted.payload))
    next_mtu = part.mtu if part.type == 2 else None
    return None if key is None else Reply(key, "error", "", 0, 6, (part.type, part.code), next_mtu)


def _quoted_key(protocol: int, address: str, head: bytes) -> Key | None:
    """The key of the packet that an ICMP error quotes; eight bytes of its transport header are always there (RFC 792)."""
    if len(head) < 8:
        return None
    first, second = int.from_bytes(head[0:2], "big"), int.from_bytes(head[2:4], "big")
    if protocol in _SERVICES:
        return (_SERVICES[protocol], address, first, second)
    if protocol in (_ICMP, _ICMPV6):
        return (ICMP_PROBE, int.from_bytes(head[4:6], "big"), int.from_bytes(head[6:8], "big"))
    return None


def _plain(address: str) -> str:
    """The address as Python writes it: scapy's own notation of IPv6 may differ."""
    return str(ipaddress.ip_address(address))
