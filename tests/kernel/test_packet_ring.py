"""The packet ring against the kernel: what passes an interface, VLAN tags, the filter, what is lost."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from netbox.kernel import packet_ring
from netbox.kernel.packet_filter import socket_program
from netbox.kernel.packet_ring import PacketRing
from tests.support import linux
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("private_host")


@pytest.fixture
def pair(private_host: object) -> Iterator[tuple[int, int]]:
    """A veth pair; the indexes of its ends a0 and a1."""
    both = [f"link set {name} addrgenmode none up" for name in ("a0", "a1")]
    for line in ("link add a0 type veth peer name a1", *both):
        subprocess.run(["ip", *line.split()], check=True, timeout=20)
    # The kernel lets packets pass a moment after the carrier is there, in a work of its own: it is done when the next change is.
    wait_until(lambda: all(_operates(name) for name in ("a0", "a1")), "the carrier", timeout=30)
    for line in both:
        subprocess.run(["ip", *line.split()], check=True, timeout=20)
    for name in ("a0", "a1"):
        linux.await_running(name)
    yield socket.if_nametoindex("a0"), socket.if_nametoindex("a1")
    subprocess.run(["ip", "link", "del", "a0"], check=True, timeout=20)


def _operates(name: str) -> bool:
    return Path(f"/sys/class/net/{name}/operstate").read_text() == "up\n"


@contextlib.contextmanager
def ring(ifindex: int, expression: str = "", size: int = 1 << 20, length: int = 65535) -> Iterator[PacketRing]:
    opened = PacketRing(ifindex, socket_program(expression, length, loopback=False), size)
    try:
        yield opened
    finally:
        opened.close()


def send(device: str, *payloads: bytes, kind: int = 0x88B5) -> None:
    """Frames of the ethertype for local experiments."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        for payload in payloads:
            sock.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + kind.to_bytes(2, "big") + payload.ljust(46, b"\0"))


class Places(dict[int, tuple[int, int, int]]):
    """Every place is of interest."""

    def __missing__(self, place: int) -> tuple[int, int, int]:
        return packet_ring.place_parts(place)


class Seen(NamedTuple):
    """A packet, taken apart."""

    time: int
    ifindex: int
    kind: int
    length: int
    hardware: int
    data: bytes


def collect(opened: PacketRing, count: int) -> list[Seen]:
    found: list[packet_ring.Packet[tuple[int, int, int]]] = []

    def enough() -> bool:
        opened.read(Places(), found)
        return len(found) >= count

    wait_until(enough, f"{count} packets", timeout=60)
    return [Seen(time, ifindex, kind, length, hardware, data) for time, (ifindex, hardware, kind), data, length in found]


def test_both_directions(pair: tuple[int, int]) -> None:
    with ring(pair[0]) as opened:
        send("a0", b"out")
        send("a1", b"in")
        out, back = collect(opened, 2)
    assert (out[1], out[2], out[3], out[4]) == (pair[0], packet_ring.OUTGOING, 60, packet_ring.ARPHRD_ETHER)
    assert back[2] == packet_ring.BROADCAST
    assert (out[5][14:17], back[5][14:16]) == (b"out", b"in")
    assert 0 < out[0] <= back[0]


def test_every_interface_of_the_namespace_and_not_lo(pair: tuple[int, int]) -> None:
    with ring(0) as opened:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"over lo", ("127.0.0.1", 9))
        send("a0", b"x")
        assert {packet[1] for packet in collect(opened, 2)} == set(pair)


def test_the_rest_is_all_that_is_there(pair: tuple[int, int]) -> None:
    """Many blocks, and the one that the kernel would hand over only later: all packets were in the ring when the last send returned. Each
    block has been read once before; what is left there does not count.
    """
    with ring(pair[0], size=16 * packet_ring.BLOCK_SIZE) as opened:
        for _ in range(20):
            send("a0", b"before")
            collect(opened, 1)
        send("a0", *[number.to_bytes(2, "big").ljust(1400, b"x") for number in range(2000)])
        opened.stop()
        send("a0", b"too late")
        found: list[packet_ring.Packet[tuple[int, int, int]]] = []
        opened.read_rest(Places(), found)
        received, lost = opened.counters()  # the kernel hands blocks over half full when this test is slow
    assert [int.from_bytes(data[14:16], "big") for _, _, data, _ in found] == list(range(2000 - lost))
    assert received == 2020


def test_a_vlan_tag_is_put_back(pair: tuple[int, int]) -> None:
    with ring(pair[1]) as opened:
        send("a0", b"\0\7\x88\xb5tagged", kind=0x8100)  # the kernel strips it on the way in
        (packet,) = collect(opened, 1)
    assert packet[5][12:18] == b"\x81\x00\x00\x07\x88\xb5"
    assert packet[3] == len(packet[5]) == 60


@pytest.mark.parametrize("end", ["a0", "a1"])
def test_a_filter_on_vlan_tags(pair: tuple[int, int], end: str) -> None:
    """The tag is in the packet on its way out, and beside it on its way in."""
    ifindex = socket.if_nametoindex(end)
    port = struct.pack("!BBHHHBBH8sHHHH", 0x45, 0, 28, 1, 0, 64, 17, 0, bytes(8), 1, 53, 8, 0)
    frames = [b"\0\7\x88\xb5seven", b"\0\x08\x88\xb5eight", b"\0\x08\x08\0" + port]
    wanted = {"vlan": frames, "vlan 7": frames[:1], "vlan 8 and not ip": frames[1:2], "vlan and udp port 53": frames[2:], "not vlan": []}
    with contextlib.ExitStack() as stack:
        opened = {expression: stack.enter_context(ring(ifindex, expression)) for expression in wanted}
        send("a0", b"untagged")
        send("a0", *frames, kind=0x8100)
        found = {expression: collect(opened[expression], max(1, len(expected))) for expression, expected in wanted.items()}
    for expression, expected in wanted.items():
        assert [packet[5][12:] for packet in found[expression] if packet[5][12:14] == b"\x81\0"] == [
            b"\x81\0" + data.ljust(46, b"\0") for data in expected
        ], expression
    assert [packet[5][14:22] for packet in found["not vlan"]] == [b"untagged"]


def test_a_filter_and_a_snapshot_length(pair: tuple[int, int]) -> None:
    with ring(pair[1], "ether proto 0x88b6", length=20) as opened:
        send("a0", b"no")
        send("a0", b"yes", kind=0x88B6)
        (packet,) = collect(opened, 1)
        assert (packet[3], len(packet[5]), packet[5][14:17]) == (60, 20, b"yes")
        assert opened.counters() == (1, 0)


def test_places_that_are_left_out(pair: tuple[int, int]) -> None:
    found: list[packet_ring.Packet[str]] = []
    with ring(0) as opened:
        send("a0", b"first", b"second")

        def all_there() -> bool:
            opened.read(_Only(pair[1]), found)
            return opened.counters()[0] >= 4 and len(found) >= 2

        wait_until(all_there, "both packets", timeout=30)
    assert [(way, data[14:20].rstrip(b"\0")) for _, way, data, _ in found] == [("here", b"first"), ("here", b"second")]


class _Only(dict[int, "str | None"]):
    """The packets of one interface."""

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex

    def __missing__(self, place: int) -> str | None:
        return "here" if packet_ring.place_parts(place)[0] == self._ifindex else None


def test_what_is_lost_is_counted(pair: tuple[int, int]) -> None:
    with ring(pair[1], size=2 * packet_ring.BLOCK_SIZE) as opened:
        for number in range(1, 11):  # not more at once than the kernel queues between the two ends
            send("a0", *[bytes(1400)] * 100)
            wait_until(lambda number=number: opened.counters()[0] >= 100 * number, "the frames to be seen")  # type: ignore[misc]
        received, lost = opened.counters()
        assert lost > 0
        assert len(collect(opened, received - lost)) == received - lost
        assert opened.counters() == (1000, lost)


def test_a_device_that_goes_away(pair: tuple[int, int]) -> None:
    with ring(pair[1]) as opened:
        assert not opened.take_error()
        subprocess.run(["ip", "link", "set", "a1", "down"], check=True, timeout=20)
        assert opened.take_error()
        assert not opened.take_error()
