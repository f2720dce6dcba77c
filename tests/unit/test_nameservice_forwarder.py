"""When other resolvers are asked, in which order, and when that ends: on a clock of the test's own."""

from __future__ import annotations

import selectors
from collections.abc import Iterator

import pytest

from netbox.network.nameservice import forwarder, message
from netbox.network.nameservice.forwarder import MAX_EXCHANGES_PER_CLIENT, Forwarder
from tests.support import dns


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Link:
    """In place of a socket to a resolver."""

    sent: list[tuple[float, str]]
    open: dict[str, Link]

    def __init__(self, exchange: forwarder.Exchange, server: str) -> None:
        self.exchange, self.server = exchange, server
        Link.open[server] = self

    def send(self, data: bytes) -> None:
        self.data = data
        Link.sent.append((clock_of(self.exchange)(), self.server))

    def answers(self, code: int = 0) -> None:
        assert self.exchange.received(self.server, dns.answer_to(self.data, ["192.0.2.80"], code))

    def close(self) -> None:
        pass


def clock_of(exchange: forwarder.Exchange) -> Clock:
    clock = exchange._forwarder.clock
    assert isinstance(clock, Clock)
    return clock


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forwarder]:
    monkeypatch.setattr(forwarder, "Datagram", Link)
    Link.sent, Link.open = [], {}
    with selectors.DefaultSelector() as selector:
        yield Forwarder(selector, Clock())


def ask(asking: Forwarder, *resolvers: str, key: object = 1, client: bytes = b"a") -> list[int]:
    """Asks, and returns the list in which the codes of the answers will be."""
    codes: list[int] = []
    data = dns.query("example.org", id=7)
    query = message.parse(data)
    assert query is not None
    asking.submit(key, client, data, query, resolvers, lambda answer: codes.append(dns.parse(answer).code))
    return codes


def run(asking: Forwarder, until: float) -> None:
    """Lets the time pass, from one deadline to the next."""
    clock = asking.clock
    assert isinstance(clock, Clock)
    while (due := asking.next_deadline()) is not None and due <= until:
        clock.now = due
        asking.expire()
    clock.now = until


def test_a_silent_resolver_is_asked_four_times_and_given_up_after_four_seconds(asking: Forwarder) -> None:
    codes = ask(asking, "one")
    run(asking, 103.9)
    assert codes == []
    run(asking, 104.0)
    assert codes == [dns.SERVFAIL]
    assert Link.sent == [(100.0, "one"), (101.0, "one"), (102.0, "one"), (103.0, "one")]
    assert asking.exchanges == {}


def test_the_next_one_is_asked_after_a_second_and_the_first_again_after_another(asking: Forwarder) -> None:
    codes = ask(asking, "one", "two")
    run(asking, 102.5)
    assert Link.sent == [(100.0, "one"), (101.0, "two"), (102.0, "one")]
    Link.open["two"].answers()
    assert codes == [dns.NOERROR]


def test_a_silent_resolver_is_the_last_one_for_ten_seconds(asking: Forwarder) -> None:
    for begun, expected in ((100.0, ["one", "two"]), (105.0, ["two"]), (112.0, ["one", "two"])):
        run(asking, begun)
        Link.sent.clear()
        codes = ask(asking, "one", "two")
        run(asking, begun + 1)
        Link.open["two"].answers()
        assert codes == [dns.NOERROR]
        assert [server for _, server in Link.sent][: len(expected)] == expected


def test_a_failure_is_told_when_nobody_knows_better(asking: Forwarder) -> None:
    codes = ask(asking, "one", "two")
    Link.open["one"].answers(dns.SERVFAIL)
    assert codes == []
    Link.open["two"].answers(dns.REFUSED)
    assert codes == [dns.REFUSED]
    assert Link.sent == [(100.0, "one"), (100.0, "two")]


def test_a_retransmission_is_no_second_question_and_a_client_has_its_share(asking: Forwarder) -> None:
    first = ask(asking, "one")
    assert ask(asking, "one") == []
    assert len(Link.sent) == 1
    for number in range(1, MAX_EXCHANGES_PER_CLIENT):
        ask(asking, "one", key=("more", number))
    assert ask(asking, "one", key="too much") == [dns.SERVFAIL]
    assert ask(asking, "one", key="of another", client=b"b") == []
    run(asking, 104.0)
    assert first == [dns.SERVFAIL]
    assert ask(asking, "one", key="again") == []
