from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.network.nameservice import message, zone
from netbox.network.nameservice.message import Question
from netbox.network.nameservice.zone import Answer, Forward, Member, Network, Served, Zones

WEB = Member("1" * 64, "web", ("www", "Api.example.com"), ("10.1.0.2", "fd00::2"))
API = Member("2" * 64, "api-1", ("api",), ("10.1.0.3",), ("192.0.2.9",))
API2 = Member("3" * 64, "api-2", ("api",), ("10.1.0.4",))
DB_FRONT = Member("4" * 64, "db", (), ("10.1.0.5",))
DB_BACK = Member("4" * 64, "db", ("store",), ("10.2.0.5",))
LONE = Member("5" * 64, "lone", (), ("10.2.0.6",))

ZONES = Zones(
    [
        Network(Served("front", "nb-1", ("10.1.0.1",), ("10.1.0.0/24", "fd00::/64")), [WEB, API, API2, DB_FRONT]),
        Network(Served("Back", "nb-2", ("10.2.0.1",), ("10.2.0.0/24",), internal=True), [DB_BACK, LONE]),
    ]
)


def ask(
    name: str, kind: int = message.A, client: str = "10.1.0.2", network: str = "front", turn: int = 0, class_: int = 1
) -> Answer | Forward:
    labels = tuple(name.lower().encode().split(b".")) if name else ()
    return ZONES.decide(network, zone.packed(client), Question(1, 0, labels, b"", kind, class_), turn)


def addresses(answer: Answer | Forward) -> list[str]:
    assert isinstance(answer, Answer)
    assert all(record.ttl == zone.TTL for record in answer.records)
    return [str(ipaddress.ip_address(record.data)) for record in answer.records]


@pytest.mark.parametrize("name", ["web", "www", "api.example.com", "web.front", "web.front.netbox.internal", "111111111111"])
def test_a_sandbox_by_all_its_names(name: str) -> None:
    assert addresses(ask(name)) == ["10.1.0.2"]
    assert addresses(ask(name, message.AAAA)) == ["fd00::2"]
    assert addresses(ask(name, message.ANY)) == ["10.1.0.2", "fd00::2"]
    assert ask(name, 16) == Answer(message.NOERROR)  # TXT: the name is there, such a record is not


def test_no_such_address_is_not_no_such_name() -> None:
    assert ask("api-1", message.AAAA) == Answer(message.NOERROR)


def test_who_shares_an_alias_is_first_in_turn() -> None:
    assert addresses(ask("api")) == ["10.1.0.3", "10.1.0.4"]
    assert addresses(ask("api", turn=1)) == ["10.1.0.4", "10.1.0.3"]
    assert addresses(ask("api", turn=2)) == ["10.1.0.3", "10.1.0.4"]


@pytest.mark.parametrize(
    "name",
    ["nobody", "lone", "store", "nobody.front.netbox.internal", "web.other.netbox.internal", "x.netbox.internal", "web.netbox.internal"],
)
@pytest.mark.parametrize("kind", [message.A, message.AAAA, 16])
def test_unknown_names_of_ours_stay_here(name: str, kind: int) -> None:
    assert ask(name, kind) == Answer(message.NXDOMAIN)


@pytest.mark.parametrize("name", ["example.org", "web.example.org", "nobody.front", "", "web.netbox.internal.example"])
def test_other_names_are_for_others(name: str) -> None:
    assert ask(name) == Forward(())
    assert ask(name, client="10.1.0.3") == Forward(("192.0.2.9",))
    assert ask(name, client="10.1.0.99") == Forward(())  # nobody that we know


def test_the_domains_themselves() -> None:
    assert ask("netbox.internal") == ask("front.netbox.internal") == Answer(message.NOERROR)
    assert ask("back.netbox.internal") == Answer(message.NXDOMAIN)
    assert addresses(ask("db.BACK.netbox.internal", client="10.1.0.5")) == ["10.2.0.5"]


def test_a_sandbox_on_two_networks() -> None:
    assert addresses(ask("store", client="10.1.0.5")) == ["10.2.0.5"]
    assert addresses(ask("db", client="10.1.0.5")) == ["10.1.0.5"]  # the network that was asked comes first
    assert addresses(ask("db", client="10.2.0.5", network="Back")) == ["10.2.0.5"]
    assert ask("example.org", client="10.2.0.5", network="Back") == Forward(())  # it has a way out by the other network


def test_an_internal_network_leaks_nothing() -> None:
    assert ask("example.org", client="10.2.0.6", network="Back") == Answer(message.REFUSED)
    assert addresses(ask("db", client="10.2.0.6", network="Back")) == ["10.2.0.5"]


def test_localhost() -> None:
    assert addresses(ask("localhost")) == ["127.0.0.1"]
    assert addresses(ask("a.localhost", message.AAAA)) == ["::1"]


def reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


def test_reverse() -> None:
    for address in WEB.addresses:
        answer = ask(reverse(address), message.PTR)
        assert isinstance(answer, Answer)
        assert [record.data for record in answer.records] == [message.encode_name("web.front.netbox.internal")]
    assert ask(reverse("10.1.0.2"), message.A) == Answer(message.NOERROR)
    assert ask(reverse("10.1.0.77"), message.PTR) == Answer(message.NXDOMAIN)
    assert ask(reverse("fd00::77"), message.PTR) == Answer(message.NXDOMAIN)
    assert ask(reverse("10.2.0.6"), message.PTR) == Answer(message.NXDOMAIN)  # another network's
    assert ask(reverse("192.0.2.1"), message.PTR) == Forward(())
    assert ask("1.0.10.in-addr.arpa", message.PTR) == Forward(())


@given(st.ip_addresses())
def test_reverse_names_are_addresses(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert zone.reverse_address(address.reverse_pointer.encode().split(b".")) == address.packed


@given(st.lists(st.binary(max_size=4), max_size=34), st.sampled_from([(b"in-addr", b"arpa"), (b"ip6", b"arpa"), ()]))
def test_no_name_upsets_the_reading_of_reverse_names(labels: list[bytes], end: tuple[bytes, ...]) -> None:
    found = zone.reverse_address([*labels, *end])
    assert found is None or len(found) in (4, 16)


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_subnets(base: ipaddress.IPv4Address, length: int, address: ipaddress.IPv4Address) -> None:
    network = Network(Served("n", "b", (), (f"{base}/{length}",)), ())
    assert network.contains(address.packed) == (address in ipaddress.ip_network(f"{base}/{length}", strict=False))


@pytest.mark.parametrize(("kind", "class_"), [(message.AXFR, 1), (message.IXFR, 1), (16, 3)])
def test_what_is_refused(kind: int, class_: int) -> None:
    assert ask("version.bind", kind, class_=class_) == Answer(message.REFUSED)


def test_a_network_that_just_went_down() -> None:
    assert ask("web", network="gone") == Answer(message.SERVFAIL)


def test_a_dot_inside_a_label_is_none_between_labels() -> None:
    question = Question(1, 0, (b"web.front",), b"", message.A)
    assert ZONES.decide("front", zone.packed("10.1.0.2"), question) == Answer(message.NXDOMAIN)


@given(
    st.lists(st.binary(min_size=1, max_size=63), max_size=5), st.integers(0, 65535), st.sampled_from(["10.1.0.5", "10.9.9.9", "fd00::2"])
)
def test_every_question_has_an_answer(labels: list[bytes], kind: int, client: str) -> None:
    decision = ZONES.decide("front", zone.packed(client), Question(1, 0, tuple(label.lower() for label in labels), b"", kind))
    assert isinstance(decision, Answer | Forward)
    if len(labels) == 1:
        assert isinstance(decision, Answer)  # a single label never leaves
