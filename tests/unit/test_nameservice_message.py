from __future__ import annotations

import string
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.network.nameservice import message
from netbox.network.nameservice.message import Question, Record
from tests.support import dns

labels = st.text(string.ascii_lowercase + string.digits + "-_", min_size=1, max_size=20)
names = st.lists(labels, min_size=1, max_size=6).map(".".join)


def parsed(data: bytes) -> Question:
    query = message.parse(data)
    assert query is not None
    return query


@given(names, st.sampled_from([1, 12, 15, 28, 255]), st.integers(0, 65535), st.none() | st.integers(0, 65535))
def test_a_question_is_read_as_it_was_asked(name: str, kind: int, id: int, edns: int | None) -> None:
    query = parsed(dns.query(name.upper(), kind, id, edns))
    assert query == Question(
        id, 0x100, tuple(name.encode().split(b".")), query.raw, kind, 1, edns is not None, 512 if edns is None else max(edns, 512), False, 0
    )
    assert query.raw == dns.name(name.upper()) + struct.pack("!HH", kind, 1)


@given(st.binary(max_size=120))
def test_anything_may_come(data: bytes) -> None:
    query = message.parse(data)
    assert query is None or (query.id == int.from_bytes(data[:2], "big") and not query.flags & message.QR)


@given(names, st.data())
def test_anything_that_began_as_a_question(name: str, data: st.DataObject) -> None:
    whole = dns.query(name, edns=4096)
    cut = whole[: data.draw(st.integers(12, len(whole)))]
    query = parsed(cut)
    assert (query.error == message.NOERROR) == (cut == whole)
    dns.parse(message.respond(query, query.error or message.NOERROR))


@given(
    names,
    st.lists(st.tuples(st.sampled_from([message.A, message.AAAA]), st.binary(min_size=16, max_size=16)), max_size=60),
    st.none() | st.integers(0, 4096),
)
def test_an_answer_is_as_long_as_allowed_and_says_when_that_is_too_short(
    name: str, data: list[tuple[int, bytes]], edns: int | None
) -> None:
    query = parsed(dns.query(name, edns=edns))
    records = [Record(kind, raw[: 4 if kind == message.A else 16], 5) for kind, raw in data]
    limit = message.udp_limit(query)
    response = dns.parse(message.respond(query, message.NOERROR, records, limit, authoritative=True))
    assert response.size <= limit <= message.UDP_SIZE
    assert response.truncated == (len(response.answers) < len(records))
    assert [(kind, ttl) for kind, ttl, _ in response.answers] == [(item.type, 5) for item in records[: len(response.answers)]]
    assert response.edns == (None if edns is None else message.UDP_SIZE)
    assert response.id == query.id
    assert response.flags & 0x8580 == 0x8580  # QR, AA, RD, RA
    whole = dns.parse(message.respond(query, message.NOERROR, records))
    assert len(whole.answers) == len(records)
    assert not whole.truncated


def test_what_deserves_no_answer() -> None:
    assert message.parse(b"") is None
    assert message.parse(bytes(11)) is None
    assert message.parse(dns.answer_to(dns.query("a.b"), [])) is None  # else two servers could answer each other for ever


OPT = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (dns.query("a", flags=0x2800), dns.NOTIMP),  # UPDATE
        (struct.pack("!6H", 1, 0x100, 0, 0, 0, 0), dns.FORMERR),
        (struct.pack("!6H", 1, 0x100, 2, 0, 0, 0) + dns.query("a")[12:] * 2, dns.FORMERR),
        (struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", dns.FORMERR),  # a name that points to itself
        (struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", dns.FORMERR),  # 257 bytes
        (struct.pack("!6H", 1, 0x100, 1, 0, 0, 2) + dns.query("a")[12:] + OPT * 2, dns.FORMERR),
        (struct.pack("!6H", 1, 0x100, 1, 0, 0, 1) + dns.query("a")[12:] + b"\0" + struct.pack("!HHIH", 41, 1232, 1 << 16, 0), 16),
    ],
    ids=["opcode", "no-question", "two-questions", "pointer", "long-name", "two-opt", "edns-version"],
)
def test_what_is_answered_with_an_error(data: bytes, code: int) -> None:
    query = parsed(data)
    assert query.error == code
    assert dns.parse(message.respond(query, query.error)).code == code


def test_dnssec_ok_is_given_back() -> None:
    data = struct.pack("!6H", 1, 0x110, 1, 0, 0, 1) + dns.query("a")[12:] + b"\0" + struct.pack("!HHIH", 41, 1232, 0x8000, 0)
    answer = message.respond(parsed(data), message.NXDOMAIN)
    assert answer[-11:] == b"\0" + struct.pack("!HHIH", 41, 1232, 0x8000, 0)
    assert dns.parse(answer).flags & 0x110 == 0x110  # RD and CD


def test_whose_answer_it_is() -> None:
    data = dns.query("Example.org", id=7)
    query = parsed(data)
    good = dns.answer_to(message.with_id(data, 9), ["192.0.2.1"])
    assert message.is_response_to(good, 9, query)
    assert not message.is_response_to(good, 7, query)
    assert not message.is_response_to(good[:8], 9, query)
    assert not message.is_response_to(message.with_id(data, 9), 9, query)  # a query
    assert not message.is_response_to(dns.answer_to(dns.query("example.net", id=9), []), 9, query)
    assert message.is_response_to(struct.pack("!6H", 9, 0x8001, 0, 0, 0, 0), 9, query)  # some answer errors without the question
    assert not message.is_response_to(struct.pack("!6H", 9, 0x8000, 0, 0, 0, 0), 9, query)
    assert message.code_of(dns.answer_to(data, [], 3)) == message.NXDOMAIN


def test_a_resolvers_answer_that_is_too_long_for_the_client() -> None:
    data = dns.query("example.org")
    long = dns.answer_to(data, [f"192.0.2.{number}" for number in range(100)])
    short = dns.parse(message.shortened(long, parsed(data)))
    assert short.truncated
    assert short.answers == []
    asked = dns.query("example.org", edns=4096)
    assert message.shortened(long, parsed(asked)) == long


@given(names)
def test_names_on_the_wire(name: str) -> None:
    assert message.encode_name(name) == dns.name(name)


@pytest.mark.parametrize("name", ["a" * 64, "a..b", ".".join(["a" * 60] * 5)])
def test_names_that_cannot_be_on_the_wire(name: str) -> None:
    assert message.encode_name(name) is None
