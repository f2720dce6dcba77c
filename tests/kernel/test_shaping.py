"""Shaped links with packets: what a token bucket lets through, what a rule loses, and that only the right peer and direction are hit.

Packets are counted, not timed: a burst of datagrams passes a bucket up to its size and what its queue holds, however slow the machine is.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from netbox.errors import HostError, Unsupported
from netbox.kernel import traffic_control as tc
from netbox.network import shaping
from netbox.network.shaping import Impairment
from tests.kernel.network_lab import Guest, Lab
from tests.support.host import Neighbour, PrivateHost

SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>
PORT = 7100
PAYLOAD = 1000  # bytes
FRAME = PAYLOAD + 42  # with UDP, IPv4 and Ethernet
BURST = 200  # packets


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def impair(guest: Guest, *items: Impairment, previous: Sequence[Impairment] = (), rates: tuple[int, int] = (0, 0)) -> None:
    """As the engine does, the journal row first: the end of the guest takes the host's rules away."""
    wanted = shaping.placed(guest.plan, items)
    for item in wanted:
        if item.loss:
            guest.journal.record("impairment", owner=f"impair:{guest.id[:12]}", state="standing", impairment=item.to_json())
    shaping.apply(guest.plan, guest.netns, *rates, wanted, previous)


class Arrived(int):
    """A number of packets, and how many seconds the sender took for all of them."""

    sending: float

    def __new__(cls, number: int, sending: float) -> Arrived:
        made = super().__new__(cls, number)
        made.sending = sending
        return made


def arrived(
    sender: Guest, receiver: Guest, count: int = BURST, payload: int = PAYLOAD, pause: bool = False, all_lost: bool = False
) -> Arrived:
    """How many of ``count`` datagrams arrive. ``pause``: the sender takes its time.

    A mark goes before them and one behind, each again until it arrives: the way is known, and nothing is queued any more. Where marks
    would be lost, too (``all_lost``), what has not come for a while does not come.
    """
    with receiver.inside():
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender.inside():
        source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sink, source:
        sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        sink.bind(("0.0.0.0", PORT))
        source.connect((receiver.address, PORT))
        if not all_lost:
            until_mark(source, sink, b"before")
        started = time.monotonic()
        for number in range(count):
            source.send(bytes(payload))
            if pause and number % 50 == 49:
                time.sleep(0.002)
        sending = time.monotonic() - started
        return Arrived(until_silence(sink) if all_lost else until_mark(source, sink, b"after"), sending)


def until_mark(source: socket.socket, sink: socket.socket, mark: bytes) -> int:
    """How many datagrams come before the mark, which is sent again whenever nothing has come for a while."""
    found, deadline = 0, time.monotonic() + 60
    sink.settimeout(0.25)
    source.send(mark)
    while True:
        try:
            data = sink.recv(2048)
        except TimeoutError:
            assert time.monotonic() < deadline, f"no mark came through; {found} datagrams did"
            source.send(mark)
            continue
        if data == mark:
            return found
        found += data.count(0) == len(data)  # not a mark that was sent too often


def until_silence(sink: socket.socket) -> int:
    """How many datagrams come before nothing comes for a while."""
    found = 0
    sink.settimeout(0.4)
    with contextlib.suppress(TimeoutError):
        while sink.recv(2048):
            found += 1
    return found


class Bucket:
    """How many packets of a burst pass a bucket: what the bucket and the queue hold, and what flows while the burst is sent."""

    def __init__(self, rate: int) -> None:
        self._rate = rate

    def __contains__(self, found: Arrived) -> bool:
        burst, limit = tc.tbf_sizes(self._rate, 1500)
        least = limit // FRAME
        return least - 2 <= found < least + burst // FRAME + 5 + self._rate * found.sending / FRAME


def test_the_rates_of_a_link(lab: Lab) -> None:
    web, db = lab.guest(), lab.guest()
    assert arrived(web, db) == arrived(db, web) == BURST
    impair(web, rates=(62_500, 0))
    assert arrived(db, web) in Bucket(62_500)
    assert arrived(web, db) == BURST  # the other direction is free
    impair(web, rates=(0, 125_000))
    assert arrived(web, db) in Bucket(125_000)
    assert arrived(db, web) == BURST
    impair(web)
    assert arrived(web, db) == arrived(db, web) == BURST


def send_all(client: socket.socket, size: int) -> None:
    client.sendall(bytes(size))
    client.shutdown(socket.SHUT_WR)


def test_a_rate_on_both_ends_holds_for_connections(lab: Lab) -> None:
    """TCP hands over large segments that are cut for the bucket: all bytes arrive, and the bucket says that they waited."""
    web, db = lab.guest(), lab.guest()
    rate = 1_250_000
    impair(web, rates=(0, rate))
    size = 600_000
    with db.inside():
        listener = socket.create_server(("0.0.0.0", PORT))
    with listener, web.inside():
        client = socket.create_connection((db.address, PORT), timeout=60)
        connection, _ = listener.accept()
        started = time.monotonic()
        with client, connection:
            client.settimeout(100)
            connection.settimeout(100)
            received = 0
            thread = threading.Thread(target=send_all, args=(client, size))
            thread.start()
            while data := connection.recv(65536):
                received += len(data)
            thread.join()
    seconds = time.monotonic() - started
    assert received == size
    burst, _ = tc.tbf_sizes(rate, 1500)
    assert seconds > (size - burst) / rate * 0.9  # never faster than the rate; how much slower is the machine's business


def test_a_rate_for_one_peer_only(lab: Lab, outside: Neighbour) -> None:
    web, db, other = lab.guest(), lab.guest(), lab.guest()
    peer = (f"{db.address}/32",)
    impair(web, Impairment("out", "db", peer, rate=62_500))
    assert arrived(web, db) in Bucket(62_500)
    assert arrived(web, other) == arrived(db, web) == arrived(other, web) == BURST
    impair(web, Impairment("in", "db", peer, rate=62_500))
    assert arrived(db, web) in Bucket(62_500)
    assert arrived(other, web) == arrived(web, db) == BURST


def test_a_peer_inside_a_slower_whole(lab: Lab) -> None:
    web, db, other = lab.guest(), lab.guest(), lab.guest()
    impair(web, Impairment("out", rate=125_000), Impairment("out", "db", (f"{db.address}/32",), rate=62_500), rates=(0, 1_250_000))
    assert arrived(web, other) in Bucket(125_000)
    assert arrived(web, db) in Bucket(62_500)


@pytest.mark.parametrize("direction", ["in", "out"])
def test_loss_is_counted(lab: Lab, direction: str) -> None:
    web, db, other = lab.guest(), lab.guest(), lab.guest()
    count = 1000
    item = Impairment(direction, "db", (f"{db.address}/32",), loss=30.0)
    impair(web, item)
    hit, free = ((db, web), (web, db)) if direction == "in" else ((web, db), (db, web))
    # 700 are expected; the standard deviation is 14.5, and seven of them are allowed either way.
    assert 600 <= arrived(*hit, count, 100, pause=True) <= 800
    assert arrived(*free, count, 100, pause=True) == count
    assert arrived(other, web, count, 100, pause=True) == arrived(web, other, count, 100, pause=True) == count
    impair(web, previous=[item])
    assert arrived(*hit, count, 100, pause=True) == count


def test_all_is_lost_and_no_sender_is_told(lab: Lab) -> None:
    """A drop where a packet is sent would fail the call with EPERM, which a lossy network does not."""
    web, db = lab.guest(), lab.guest()
    assert arrived(web, db, 20) == arrived(db, web, 20) == 20
    impair(web, Impairment("in", loss=100.0), Impairment("out", loss=100.0))
    assert arrived(web, db, 20, all_lost=True) == arrived(db, web, 20, all_lost=True) == 0


def test_loss_towards_the_outside(lab: Lab, outside: Neighbour) -> None:
    web = lab.guest()
    impair(web, Impairment("out", outside.address, (f"{outside.address}/32",), loss=100.0))
    assert web.probe({"kind": "ping", "address": outside.address, "timeout": 1.5}, {"kind": "ping", "address": outside.host_address}) == [
        None,
        outside.host_address,
    ]


def test_the_kernel_shows_what_was_asked_for(lab: Lab) -> None:
    web = lab.guest()
    impair(web, Impairment("in", "far", ("192.0.2.0/24",), rate=62_500), rates=(1_250_000, 12_500_000_000))
    device = web.plan.endpoints[0].host_interface
    shown = subprocess.run(["tc", "qdisc", "show", "dev", device], capture_output=True, text=True, check=True).stdout
    assert "qdisc tbf 1: root refcnt" in shown
    assert "rate 10Mbit burst 15140b" in shown
    assert "qdisc htb 4: parent 1:1" in shown
    assert "rate 500Kbit" in shown
    filters = subprocess.run(["tc", "filter", "show", "dev", device, "parent", "4:"], capture_output=True, text=True, check=True).stdout
    assert "match c0000200/ffffff00 at 12" in filters
    assert "rate 100Gbit" in web.execute("tc", "qdisc", "show", "dev", "eth0")


def test_many_peers(lab: Lab) -> None:
    web = lab.guest()
    impair(web, *(Impairment("out", f"10.77.0.{number}", (f"10.77.0.{number}/32",), rate=125_000) for number in range(1, 41)))
    assert web.execute("tc", "qdisc", "show", "dev", "eth0").count("qdisc tbf") == 40


def has_netem() -> bool:
    """Asks tc, on a link of the private host."""
    subprocess.run(["ip", "link", "add", "probe0", "type", "bridge"], check=True)
    try:
        return subprocess.run(["tc", "qdisc", "add", "dev", "probe0", "root", "netem"], capture_output=True, check=False).returncode == 0
    finally:
        subprocess.run(["ip", "link", "del", "probe0"], check=True)


def test_without_bridge_netfilter_netem_loses_what_no_rule_sees(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or, where the kernel has none, a loss that would not happen is refused."""
    web, db, other = lab.guest(), lab.guest(), lab.guest()
    monkeypatch.setattr(shaping, "_BRIDGE_NETFILTER", "/nowhere")
    peer = Impairment("out", "db", (f"{db.address}/32",), loss=100.0)
    far = Impairment("out", "far", ("192.0.2.0/24",), loss=1.0)
    assert [item.in_queue for item in shaping.placed(web.plan, [peer, far, Impairment("out", loss=1.0), Impairment("in", loss=1.0)])] == [
        *(True, False, True, False)
    ]
    if not has_netem():
        for item in (Impairment("out", loss=1.0), peer):
            with pytest.raises(Unsupported, match=r"do not pass the firewall here, and the kernel has no netem .*br_netfilter"):
                impair(web, item)
        return
    impair(web, peer)
    assert arrived(web, db, 20, all_lost=True) == 0
    assert arrived(web, other, 20) == arrived(db, web, 20) == 20
    impair(web, Impairment("out", loss=100.0))
    assert arrived(web, other, 20, all_lost=True) == 0
    impair(web)
    assert arrived(web, db, 20) == 20


def test_delay_jitter_and_corruption(lab: Lab) -> None:
    """The contract of netem where the kernel has it; the error that names the missing option where it does not."""
    web, db = lab.guest(), lab.guest()
    late = Impairment("out", delay=150_000_000, jitter=10_000_000)
    if not has_netem():
        for item in (late, Impairment("in", corrupt=1.0), Impairment("out", "db", (f"{db.address}/32",), delay=1_000_000)):
            with pytest.raises(Unsupported, match=r"netem, which is not there \(CONFIG_NET_SCH_NETEM\); modprobe sch_netem"):
                impair(web, item)
        return
    db.serve("udp", PORT + 1)
    impair(web, late)
    started = time.monotonic()
    assert web.ask("udp", db.address, PORT + 1) == f"{web.address} {PORT + 1}"
    assert time.monotonic() - started >= 0.139
    impair(web, Impairment("in", corrupt=100.0))
    assert arrived(db, web, 50, all_lost=True) < 10  # a bit in the Ethernet header does not always matter
    impair(web, Impairment("out", "db", (f"{db.address}/32",), delay=150_000_000, rate=62_500))
    assert arrived(web, db) in Bucket(62_500)
    impair(web)
    assert arrived(web, db) == BURST


def test_a_link_that_is_gone(lab: Lab) -> None:
    web = lab.guest()
    subprocess.run(["ip", "link", "del", web.plan.endpoints[0].host_interface], check=True)
    with pytest.raises(HostError, match=r"the interface nb\w+ of the sandbox is gone"):
        impair(web, rates=(1000, 0))
