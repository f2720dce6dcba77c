"""What the firewall decided about packets of live traffic: the kernel's records of rules, put together packet by packet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from netbox.kernel.rule_trace import RuleRecord
from netbox.kernel.trace_tables import FIRST, OWN_PREFIX
from netbox.packet.tracing.values import RuleHit

_ARP = b"\0\1"  # the hardware type: Ethernet
_REMEMBERED = 4096  # packets
_MAY_DROP = ("queue", "nfqueue", "tarpit", "rule")  # "rule": it has gone meanwhile
_ENTRANCES = ("prerouting", "output", "bridge prerouting", "netdev ingress", "arp input", "arp output")
_OWN_DEVICES = ("nb*", "netbox0")  # see ``netbox.names``
_OWN, _OTHER, _ANY = (f"limit rate {rate}/second burst {2 * rate} packets" for rate in (100, 200, 50))

# Which packets are traced, in the words of nft(8): what passes our own devices, whatever the rest of the host does; new connections and
# other protocols than TCP; and some of all others.
WORDS = (
    *(f'{way} "{device}" {_OWN}' for device in _OWN_DEVICES for way in ("iifname", "oifname")),
    f"tcp flags & syn == syn {_OTHER}",
    f"meta l4proto != tcp {_OTHER}",
    _ANY,
)


def content(packet: bytes) -> bytes:
    """What tells a packet from others wherever it is, until its addresses are translated: identification, addresses, what follows them.
    ``packet`` begins with the network header.
    """
    if packet[:1] and packet[0] >> 4 == 6:
        return packet[1:6] + packet[8:48]
    if packet[:2] == _ARP:
        return packet[6:28]
    return packet[4:6] + packet[12:28]


class Decisions:
    """The records of the packets that were traced lately. A packet keeps its records when its addresses are translated."""

    def __init__(self) -> None:
        self._packets: OrderedDict[bytes, list[RuleRecord]] = OrderedDict()
        self._streams: OrderedDict[tuple[int, int], list[RuleRecord]] = OrderedDict()

    def take(self, records: Iterable[RuleRecord]) -> None:
        """Notes new records."""
        for record in records:
            found = self._of_nftables(record) if record.backend == "nftables" else self._of_content(record.packet)
            if found is not None and not _is_mark(record):
                found.append(record)
        for kept in (self._packets, self._streams):
            while len(kept) > _REMEMBERED:
                kept.popitem(last=False)

    def of(self, packet: bytes) -> Sequence[RuleRecord]:
        """The records of a packet, those of nf_tables and of the legacy tables each in their order."""
        return self._packets.get(content(packet), ())

    def _of_nftables(self, record: RuleRecord) -> list[RuleRecord] | None:
        """nf_tables shows the packet once for each chain on a hook; its number may be another packet's a moment later."""
        stream = (record.netns, record.identity)
        if not record.packet:
            return self._streams.get(stream)
        enters = record.table.startswith(OWN_PREFIX) and record.chain == FIRST and record.hook in _ENTRANCES
        found = self._of_content(record.packet, None if enters else self._streams.get(stream))
        self._streams[stream] = found
        self._streams.move_to_end(stream)
        return found

    def _of_content(self, packet: bytes, before: list[RuleRecord] | None = None) -> list[RuleRecord]:
        """The list of a packet; ``before`` is that of what it looked like until now."""
        key = content(packet)
        found = self._packets.get(key)
        if found is None:
            found = self._packets[key] = [] if before is None else before
        return found


def _is_mark(record: RuleRecord) -> bool:
    """Whether it is of our own table, or the end of a chain's rules, which the policy's record repeats."""
    return record.table.startswith(OWN_PREFIX) or (record.kind == "rule" and not record.number)


def dropper(hits: Sequence[RuleHit]) -> RuleHit | None:
    """Which of the rules that a dropped packet met in a namespace did it: the two kinds of tables report separately."""
    dropped = next((hit for hit in reversed(hits) if hit.verdict in ("drop", "reject")), None)
    return dropped or (hits[-1] if hits and hits[-1].verdict in _MAY_DROP else None)
