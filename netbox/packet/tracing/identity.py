"""How one probe and its answers are told from all other packets: for BPF, for nft, and for whoever reads headers. Pure.

NAT leaves the IP id alone (IPv6: the flow label), so that it names the request wherever it is, among packets of others that happen to have
the same: by its kind, or by one of its ports. Answers are known by the port or the echo identifier that they come back to, ICMP errors by
the packet that they quote.
"""

from __future__ import annotations

from typing import NamedTuple

from netbox.kernel.packet_programs import Match
from netbox.packet.tracing.headers import Header
from netbox.packet.tracing.values import REPLY, REQUEST, Flow

_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_FIRST = {"tcp": "SYN", "sctp": "INIT"}  # what opens a connection
_ICMP, _ICMPV6 = 1, 58
_VERSION, _VERSION_4, _VERSION_6 = 0xF0, 0x40, 0x60


class Identity(NamedTuple):
    """What is special about a probe.

    ``version`` is 4 or 6, ``number`` the IP id or the flow label. ``port`` is the source port for ``tcp``, ``udp`` and ``sctp``, the echo
    identifier for ``icmp``; ``target_ports`` are those that the request may be for, before and behind a translation that is known.
    """

    version: int
    protocol: str
    number: int
    port: int
    target_ports: tuple[int, ...] = ()

    def role(self, header: Header | None) -> str | None:
        """``request``, ``reply``, or ``None`` for another packet."""
        if header is None:
            return None
        if header.quoted is not None:
            same = header.quoted.flow.protocol.replace("icmpv6", "icmp") == self.protocol
            return REPLY if same and header.quoted.identity == self.number else None
        flow = header.flow
        if self.protocol == "icmp":
            if flow.protocol not in ("icmp", "icmpv6") or header.echo != self.port:
                return None
            if flow.detail == "echo request":
                return REQUEST if header.identity == self.number else None
            return REPLY if flow.detail == "echo reply" else None
        if flow.protocol != self.protocol:
            return None
        if header.identity == self.number and self._may_be_the_request(flow):
            return REQUEST if flow.destination_port != self.port or flow.source_port == self.port else REPLY
        return REPLY if flow.destination_port == self.port else None

    def _may_be_the_request(self, flow: Flow) -> bool:
        """Of a busy connection each 65,536th packet has the same IP id."""
        if self.protocol in _FIRST:
            return flow.detail == _FIRST[self.protocol]
        return not self.target_ports or flow.source_port == self.port or flow.destination_port in self.target_ports

    def matches(self) -> tuple[Match, ...]:
        """For BPF: see ``packet_programs.Wanted``."""
        start, place = (20, 9) if self.version == 4 else (40, 6)
        error = _ICMP if self.version == 4 else _ICMPV6
        if self.version == 4:
            request = Match(4, 2, self.number, 0, _VERSION, _VERSION_4)
            quoted = Match(start + 8 + 4, 2, self.number, place, 0xFF, error)
        else:
            word = 6 << 28 | self.number
            request = Match(0, 4, word)
            quoted = Match(start + 8, 4, word, place, 0xFF, error)
        if self.protocol == "icmp":
            return request, quoted, Match(start + 4, 2, self.port, place, 0xFF, error)
        number = _NUMBERS[self.protocol]
        return request, quoted, Match(start + 2, 2, self.port, place, 0xFF, number)

    def words(self) -> tuple[str, ...]:
        """For nft: the matches of rules."""
        if self.version == 4:
            request, error = f"ip id {self.number}", "meta nfproto ipv4 meta l4proto icmp"
            quoted = f"{error} icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} @th,96,16 {self.number}"
        else:
            request, error = f"ip6 flowlabel {self.number}", "meta nfproto ipv6 meta l4proto ipv6-icmp"
            kinds = "destination-unreachable, packet-too-big, time-exceeded, parameter-problem"
            quoted = f"{error} icmpv6 type {{ {kinds} }} @th,76,20 {self.number}"
        if self.protocol == "icmp":
            name = "icmp" if self.version == 4 else "icmpv6"
            return request, quoted, f"{error} {name} type echo-reply {name} id {self.port}"
        return request, quoted, f"meta l4proto {self.protocol} th dport {self.port}"
