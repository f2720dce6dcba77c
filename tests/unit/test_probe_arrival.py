"""By what a probe is known where it arrives: NAT may have changed it on the way, and packets of others have the same IP id."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Raw

from netbox.packet.probing import packets
from netbox.packet.probing.packets import Outline
from netbox.packet.probing.station import lasting

OWN, TARGET, OWN6, TARGET6 = "192.0.2.1", "192.0.2.9", "2001:db8::1", "2001:db8::9"
NUMBER = 1234


def built(protocol: str, ipv6: bool, mtu: int = 0, **changed: Any) -> bytes:
    source, target = (OWN6, TARGET6) if ipv6 else (OWN, TARGET)
    values = {"source": source, "address": target, "own_port": 40000, "port": 80, "serial": 7, "name": "db", **changed}
    return packets.build(Outline(protocol, id=NUMBER, **values), mtu)[0]


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp", "sctp", "dns"])
def test_address_translation_leaves_it_recognisable(protocol: str, ipv6: bool) -> None:
    elsewhere: dict[str, Any] = (
        {"source": "2001:db8::7", "address": "2001:db8::8"} if ipv6 else {"source": "192.0.2.7", "address": "192.0.2.8"}
    )
    there = built(protocol, ipv6, own_port=50000, port=81, ttl=60, **elsewhere)
    assert lasting(there[:80] + bytes(10)) == lasting(built(protocol, ipv6))
    assert lasting(built(protocol, ipv6, serial=8, payload=1)) != lasting(there)


@pytest.mark.parametrize("ipv6", [False, True])
def test_the_first_fragment_stands_for_a_long_one(ipv6: bool) -> None:
    assert lasting(built("udp", ipv6, 1500, payload=4000)) == lasting(built("udp", ipv6, payload=4000))


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize(
    "theirs",
    [
        TCP(seq=8, flags="A") / Raw(b"data"),
        UDP() / Raw(b"data"),
        ICMP(type=0, seq=7) / Raw(b"data"),
        SCTP() / SCTPChunkData(data=b"data"),
    ],
)
def test_a_packet_of_others_with_the_same_number(theirs: Any, ipv6: bool) -> None:
    network = IPv6(src=OWN6, dst=TARGET6, fl=NUMBER) if ipv6 else IP(src=OWN, dst=TARGET, id=NUMBER)
    for protocol in ("icmp", "tcp", "udp", "sctp", "dns"):
        assert lasting(bytes(network / theirs)) != lasting(built(protocol, ipv6))


def test_what_is_too_short() -> None:
    with pytest.raises(IndexError):
        lasting(b"\x45\0")
