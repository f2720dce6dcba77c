"""The blocks of a pcapng file as bytes (IETF draft-ietf-opsawg-pcapng). Pure.

Blocks are in the byte order of this machine, which the section header tells. Time stamps are in nanoseconds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from netbox.packet.capturing.values import Record

LINKTYPE_ETHERNET, LINKTYPE_RAW = 1, 101  # https://www.tcpdump.org/linktypes.html
INBOUND, OUTBOUND = 1, 2
UNICAST, MULTICAST, BROADCAST, PROMISCUOUS = 1, 2, 3, 4

_SECTION_HEADER, _INTERFACE, _NAMES, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 4, 5, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_COMMENT = 1
_SHB_OS, _SHB_APPLICATION = 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_RESOLUTION, _IF_FILTER = 2, 3, 9, 11
_FLAGS, _PACKET_ID = 2, 5
_START, _END, _RECEIVED, _INTERFACE_DROPS, _SYSTEM_DROPS = 2, 3, 4, 5, 7
_NANOSECONDS = 9  # a negative power of ten
_IPV4_NAME, _IPV6_NAME = 1, 2
_OPTION_MAX = 0xFFFF
_RECORD = struct.Struct("=HH")
_END_OF_OPTIONS = _RECORD.pack(0, 0)
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class Statistics(NamedTuple):
    """Counters of an interface: times in nanoseconds since the epoch, numbers of packets. ``lost`` is what the capture was too slow for,
    ``refused`` what the interface itself has dropped meanwhile.
    """

    began: int
    ended: int
    received: int
    lost: int
    refused: int = 0


def section_header(application: str, system: str) -> bytes:
    """The Section Header Block, of a section whose length is not known."""
    body = struct.pack("=IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
    return _block(_SECTION_HEADER, body + _text(_SHB_OS, system) + _text(_SHB_APPLICATION, application) + _END_OF_OPTIONS)


def interface(name: str, description: str, snapshot_length: int, link_type: int = LINKTYPE_ETHERNET, filter: str = "") -> bytes:
    """An Interface Description Block. Interfaces are numbered from 0 in the order of their blocks."""
    body = struct.pack("=HHI", link_type, 0, snapshot_length)
    body += _text(_IF_NAME, name) + _text(_IF_DESCRIPTION, description) + _option(_IF_RESOLUTION, bytes([_NANOSECONDS]))
    if filter:
        body += _option(_IF_FILTER, b"\0" + filter.encode())  # 0: the filter is libpcap's text
    return _block(_INTERFACE, body + _END_OF_OPTIONS)


def names(records: Iterable[tuple[str, str]]) -> bytes:
    """A Name Resolution Block: (address, name) pairs, IPv4 and IPv6. Empty without any."""
    body = b""
    for address, name in records:
        six = ":" in address
        value = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, address) + name.encode() + b"\0"
        body += _record(_IPV6_NAME if six else _IPV4_NAME, value)
    return _block(_NAMES, body + _END_OF_OPTIONS) if body else b""


def packets(records: Iterable[Record]) -> list[bytes]:
    """Enhanced Packet Blocks. The length of a packet is that on the wire; copies of one packet share their number."""
    blocks: list[bytes] = []
    add, forms, options = blocks.append, _forms, _options
    for (time, (number, flags, _), data, length), identity, comment in records:
        captured = len(data)
        if comment or captured not in forms:
            form, extra = _form(captured, comment)
        else:
            form, extra = forms[captured], b""
        total = form.size
        high, low = time >> 32, time & 0xFFFFFFFF
        add(form.pack(_PACKET, total, number, high, low, captured, length, data, extra, options[flags], identity, total))
    return blocks


class _Options(dict[int, bytes]):
    """The option epb_flags, and what comes before the number in the option epb_packetid, for each value of the flags."""

    def __missing__(self, flags: int) -> bytes:
        found = self[flags] = struct.pack("=HHIHH", _FLAGS, 4, flags, _PACKET_ID, 8)
        return found


_options = _Options()
_forms: dict[int, struct.Struct] = {}
_FORMS_MAX = 4096


def _form(captured: int, comment: str) -> tuple[struct.Struct, bytes]:
    """The block of a packet of so many bytes as one structure, and the option with the comment. Zeros fill up, and end the options."""
    extra = _text(_COMMENT, comment)
    form = struct.Struct(f"=7I{captured}s{-captured % 4}x{len(extra)}s12sQ4xI")
    if not extra and len(_forms) < _FORMS_MAX:
        _forms[captured] = form
    return form, extra


def statistics(number: int, counters: Statistics) -> bytes:
    """An Interface Statistics Block, written when an interface is through."""
    body = struct.pack("=III", number, counters.ended >> 32, counters.ended & 0xFFFFFFFF)
    for code, moment in ((_START, counters.began), (_END, counters.ended)):
        body += _option(code, struct.pack("=II", moment >> 32, moment & 0xFFFFFFFF))
    for code, count in ((_RECEIVED, counters.received), (_INTERFACE_DROPS, counters.refused), (_SYSTEM_DROPS, counters.lost)):
        body += _option(code, struct.pack("=Q", count))
    return _block(_STATISTICS, body + _END_OF_OPTIONS)


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("=II", kind, total) + body + struct.pack("=I", total)


def _record(code: int, value: bytes) -> bytes:
    return _RECORD.pack(code, len(value)) + value + _PADDING[len(value) & 3]


def _option(code: int, value: bytes) -> bytes:
    return _record(code, value[:_OPTION_MAX])


def _text(code: int, value: str) -> bytes:
    return _option(code, value.encode(errors="replace")) if value else b""
