"""DNS messages, as far as a name service that forwards needs them: read the question, write an answer. Pure.

A forwarded message is passed on as bytes, so nothing but its header and question is ever understood. Sources: RFC 1035 (messages),
RFC 2308 (no data), RFC 6891 (EDNS0).
"""

from __future__ import annotations

import struct
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NamedTuple

    class Question(NamedTuple):
        """A query. ``labels`` is the name in lower case; ``raw`` the question section as it came; ``udp_size`` what the client takes in a
        datagram. ``edns`` says whether there is an OPT record, ``dnssec_ok`` is its DO bit. ``error`` is a response code other than 0 for
        a query that is answered with that alone."""

        id: int
        flags: int
        labels: tuple[bytes, ...] = ()
        raw: bytes = b""
        type: int = 0
        class_: int = 1
        edns: bool = False
        udp_size: int = 512
        dnssec_ok: bool = False
        error: int = 0

    class Record(NamedTuple):
        """A record of the answer section; its name is the one that was asked for."""

        type: int
        data: bytes
        ttl: int
else:
    Question = namedtuple(
        "Question",
        "id flags labels raw type class_ edns udp_size dnssec_ok error",
        defaults=((), b"", 0, 1, False, 512, False, 0),
    )
    Record = namedtuple("Record", "type data ttl")

A, NS, SOA, PTR, AAAA, OPT, IXFR, AXFR, ANY = 1, 2, 6, 12, 28, 41, 251, 252, 255
CLASS_IN, CLASS_ANY = 1, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

QR, AA, TC, RD, RA, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
HEADER_SIZE = 12
UDP_MINIMUM = 512  # what every client takes, RFC 1035, 4.2.1
UDP_SIZE = 1232  # what we send and take: no fragment on any path with IPv6's least MTU (https://www.dnsflagday.net/2020/)
TCP_MAXIMUM = 65535
_NAME_MAXIMUM = 255
_LABEL_MAXIMUM = 63
_OPCODE = 0x7800
_DO = 0x8000

_HEADER = struct.Struct("!6H")
_TAIL = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")


class _Malformed(Exception):
    """The message ends too early, or a name is not one."""


def parse(data: bytes) -> Question | None:
    """The question of a query; ``None`` for what deserves no answer: a response (else two servers could answer each other for ever), or
    something without a whole header."""
    if len(data) < HEADER_SIZE:
        return None
    id, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
    if flags & QR:
        return None
    if flags & _OPCODE:
        return Question(id, flags, error=NOTIMP)
    if questions != 1:
        return Question(id, flags, error=FORMERR)
    try:
        labels, offset = _name(data, HEADER_SIZE)
        if offset + 4 > len(data):
            raise _Malformed
        type_, class_ = _TAIL.unpack_from(data, offset)
        offset += 4
        query = Question(id, flags, labels, data[HEADER_SIZE:offset], type_, class_)
        return _with_edns(query, data, offset, answers + authority, additional)
    except _Malformed:
        return Question(id, flags, error=FORMERR)


def _with_edns(query: Question, data: bytes, offset: int, skipped: int, additional: int) -> Question:
    for position in range(skipped + additional):
        at_root = data[offset : offset + 1] == b"\0"
        offset = _skip_name(data, offset)
        if offset + _RECORD.size > len(data):
            raise _Malformed
        type_, size, ttl, length = _RECORD.unpack_from(data, offset)
        offset += _RECORD.size + length
        if offset > len(data):
            raise _Malformed
        if type_ == OPT and position >= skipped:
            if query.edns or not at_root:
                raise _Malformed  # RFC 6891, 6.1.1
            version = ttl >> 16 & 0xFF
            query = query._replace(
                edns=True, udp_size=max(size, UDP_MINIMUM), dnssec_ok=bool(ttl & _DO), error=BADVERS if version else NOERROR
            )
    return query


def _name(data: bytes, offset: int) -> tuple[tuple[bytes, ...], int]:
    """The labels of an uncompressed name, and where it ends."""
    labels: list[bytes] = []
    start = offset
    while True:
        if offset >= len(data):
            raise _Malformed
        length = data[offset]
        offset += 1
        if length > _LABEL_MAXIMUM or offset + length - start > _NAME_MAXIMUM:
            raise _Malformed  # a pointer, too: there is nothing before a question that it could point to
        if not length:
            return tuple(labels), offset
        label = data[offset : offset + length]
        if len(label) < length:
            raise _Malformed
        labels.append(label.lower())
        offset += length


def _skip_name(data: bytes, offset: int) -> int:
    while offset < len(data):
        length = data[offset]
        if length >= 0xC0:
            return offset + 2
        if length > _LABEL_MAXIMUM:
            break
        offset += length + 1
        if not length:
            return offset
    raise _Malformed


def encode_name(name: str) -> bytes | None:
    """A dotted name on the wire; ``None`` for one that DNS cannot carry."""
    wire = b""
    for label in name.encode().split(b".") if name else ():
        if not 0 < len(label) <= _LABEL_MAXIMUM:
            return None
        wire += bytes((len(label),)) + label
    return wire + b"\0" if len(wire) < _NAME_MAXIMUM else None


def udp_limit(query: Question) -> int:
    """How long a datagram of our own may be, in bytes."""
    return min(query.udp_size, UDP_SIZE) if query.edns else UDP_MINIMUM


def respond(query: Question, code: int, records: Sequence[Record] = (), limit: int = TCP_MAXIMUM, authoritative: bool = False) -> bytes:
    """The answer to a query, at most ``limit`` bytes long: as many records as fit, with the TC flag when some did not."""
    opt = b""
    if query.edns:
        opt = b"\0" + _RECORD.pack(OPT, UDP_SIZE, (code >> 4) << 24 | (_DO if query.dnssec_ok else 0), 0)
    flags = QR | RA | query.flags & (RD | CD | _OPCODE) | code & 0xF | (AA if authoritative else 0)
    body = query.raw
    room = limit - HEADER_SIZE - len(body) - len(opt)
    count = 0
    for record in records:
        # 0xC00C points to the name in the question.
        encoded = b"\xc0\x0c" + _RECORD.pack(record.type, CLASS_IN, record.ttl, len(record.data)) + record.data
        if len(encoded) > room:
            flags |= TC
            break
        body += encoded
        room -= len(encoded)
        count += 1
    return _HEADER.pack(query.id, flags, 1 if query.raw else 0, count, 0, 1 if opt else 0) + body + opt


def with_id(data: bytes, id: int) -> bytes:
    """The same message under another id."""
    return id.to_bytes(2, "big") + data[2:]


def code_of(data: bytes) -> int:
    """The response code in a message's header."""
    return data[3] & 0xF


def is_response_to(data: bytes, id: int, query: Question) -> bool:
    """Whether a message from a resolver answers the query that was sent under ``id``. A bare error may come without the question."""
    if len(data) < HEADER_SIZE:
        return False
    found, flags, questions, *_ = _HEADER.unpack_from(data)
    if found != id or not flags & QR:
        return False
    if questions == 0:
        return bool(flags & 0xF)
    return questions == 1 and data[HEADER_SIZE : HEADER_SIZE + len(query.raw)].lower() == query.raw.lower()


def shortened(data: bytes, query: Question) -> bytes:
    """A resolver's answer as it may go to the client in a datagram: whole, or with nothing but the TC flag when it is too long for it."""
    if len(data) <= max(query.udp_size, UDP_MINIMUM):
        return data
    flags = int.from_bytes(data[2:4], "big") | TC
    return _HEADER.pack(int.from_bytes(data[:2], "big"), flags, 1, 0, 0, 0) + query.raw
