"""The parts of a capture that need no kernel: what is wanted, copies of a packet, verdicts, files and lines."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from netbox.errors import HostError, UsageError
from netbox.kernel.packet_event import PacketEvent
from netbox.network.plan import Endpoint, NetworkPlan
from netbox.packet.capturing.copies import Copies
from netbox.packet.capturing.pcapng import LINKTYPE_ETHERNET, LINKTYPE_RAW
from netbox.packet.capturing.sinks import Lines, PcapngStream, RotatingFiles, open_output, ring_path
from netbox.packet.capturing.values import Interface, Record, Rotation, Selection, Way, parse_limits, parse_rotation
from netbox.packet.capturing.verdicts import Verdicts

WEB = Interface(0, "web/eth0", "eth0 of sandbox web", 1)
END = Interface(1, "web/host-end", "the host's end", 1)


def plan(*networks: str) -> NetworkPlan:
    endpoints = tuple(Endpoint(name, "br", "10.0.0.0/24", "10.0.0.1", "10.0.0.2", "", 1500, "eth0", "nb0") for name in networks)
    return NetworkPlan("0123456789", "bridge", "web", endpoints=endpoints)


def frame(identification: int = 1, ttl: int = 64, destination: int = 3, port: int = 80) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40, identification, 0, ttl, 6, 0) + bytes((10, 0, 0, 2, 10, 0, 0, destination))
    return bytes(12) + b"\x08\x00" + head + struct.pack("!HHII", 40000, port, 5, 0) + bytes(8)


def record(
    interface: Interface = WEB, data: bytes = b"", comment: str = "", time: int = 1_700_000_000_000_000_001, flags: int = 2
) -> Record:
    return (time, Way(interface.number, flags, interface), data or frame(), 60), 1, comment


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """Kind and body of every block; fails when a block is not whole."""
    found, offset = [], 0
    while offset < len(data):
        kind, total = struct.unpack_from("=II", data, offset)
        assert struct.unpack_from("=I", data, offset + total - 4)[0] == total
        found.append((kind, data[offset + 8 : offset + total - 4]))
        offset += total
    return found


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(names=("web",)), True),
        (Selection(names=("0123",)), True),
        (Selection(names=("012",)), False),
        (Selection(names=("db",)), False),
        (Selection(networks=("front",)), True),
        (Selection(networks=("back",)), False),
        (Selection(all=True), True),
        (Selection(labels=(("tier", "a"),)), True),
        (Selection(labels=(("tier", "a"), ("x", "y"))), False),
        (Selection(), False),
    ],
)
def test_who_is_wanted(selection: Selection, expected: bool) -> None:
    assert selection.wants("0123456789", "web", {"tier": "a"}, plan("front")) is expected


@pytest.mark.parametrize(
    ("interfaces", "mode", "expected"),
    [
        ((), "bridge", ["eth0", "host-end", "bridge"]),
        ((), "none", ["eth0", "host-end", "bridge", "lo"]),
        (("any",), "bridge", ["eth0", "host-end", "bridge", "lo"]),
        (("lo",), "bridge", ["lo"]),
        (("host-end", "eth0"), "bridge", ["eth0", "host-end"]),
    ],
)
def test_which_interfaces_are_wanted(interfaces: tuple[str, ...], mode: str, expected: list[str]) -> None:
    selection = Selection(interfaces=interfaces)
    assert [name for name in ("eth0", "host-end", "bridge", "lo") if selection.wants_interface(name, mode)] == expected
    assert selection.wants_interface("host-end1") is ("host-end" in expected)


def test_what_waits() -> None:
    assert not Selection(names=("web",)).waits
    assert Selection(names=("web",), from_start=True).waits
    assert Selection(all=True).waits


@pytest.mark.parametrize("text", ["10", "x50MB", "1x50MB", "10x", "10x5", "-2x50MB", "10x50parsec"])
def test_a_ring_that_makes_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="--ring"):
        parse_rotation(text)


def test_a_ring() -> None:
    assert parse_rotation("10x50MB") == Rotation(10, 50 << 20)
    assert ring_path("/tmp/a.b/trace.pcapng", 3) == "/tmp/a.b/trace_00003.pcapng"
    assert ring_path("trace", 12345) == "trace_12345"


@pytest.mark.parametrize(("count", "duration"), [(0, None), (-1, None), (None, "0"), (None, "soon")])
def test_limits_that_make_no_sense(count: int | None, duration: str | None) -> None:
    with pytest.raises(UsageError):
        parse_limits(count, duration)


def number(copies: Copies, interface: int, data: bytes, time: int) -> int:
    (found,) = copies.identify([(time, Way(interface, 0, WEB), data, len(data))])
    return found


def test_copies_share_a_number() -> None:
    copies = Copies()
    assert number(copies, 0, frame(1), 10) == 1
    assert number(copies, 1, frame(1), 20) == 1
    assert number(copies, 2, frame(1, ttl=63), 30) == 1  # routed
    assert number(copies, 0, frame(2), 40) == 2
    assert number(copies, 0, frame(1), 50) == 3  # sent again
    assert number(copies, 1, frame(1), 60) == 3
    assert number(copies, 2, frame(2), 70) == 2


def test_old_packets_are_forgotten() -> None:
    copies = Copies()
    number(copies, 0, frame(1), 0)
    number(copies, 0, frame(2), 2_000_000_000)
    number(copies, 0, frame(3), 4_000_000_000)
    assert number(copies, 1, frame(1), 4_000_000_001) == 4


class Source:
    """A stream of drops that the test writes."""

    def __init__(self, *events: PacketEvent) -> None:
        self.events: Sequence[PacketEvent] = events

    def read(self) -> Sequence[PacketEvent]:
        return self.events

    def close(self) -> None:
        pass


def drop(data: bytes, reason: str, netns: int = 4) -> PacketEvent:
    return PacketEvent(1, "drop", 2, netns, 3, "eth0", 0x0800, len(data), data[14:], reason, "nf_hook_slow")


def test_a_drop_becomes_the_comment_of_its_packet() -> None:
    verdicts = Verdicts(Source(drop(frame(1), "NETFILTER_DROP"), drop(frame(2, port=81), "NO_SOCKET", netns=9)), {4: "host"})
    assert verdicts.of(frame(1), LINKTYPE_ETHERNET) == ""
    verdicts.read()
    assert verdicts.of(frame(1), LINKTYPE_ETHERNET) == "dropped by the firewall in host (NETFILTER_DROP, nf_hook_slow)"
    assert verdicts.of(frame(2, port=81), LINKTYPE_ETHERNET) == "dropped (NO_SOCKET, nf_hook_slow)"
    assert verdicts.of(frame(1, ttl=63), LINKTYPE_ETHERNET) != ""
    assert verdicts.of(frame(3, port=82), LINKTYPE_ETHERNET) == ""


def test_a_drop_behind_an_address_translation() -> None:
    verdicts = Verdicts(Source(drop(frame(7, destination=9, port=8080), "NETFILTER_DROP")), {})
    verdicts.read()
    assert "NETFILTER_DROP" in verdicts.of(frame(7), LINKTYPE_ETHERNET)
    assert verdicts.of(frame(8), LINKTYPE_ETHERNET) == ""


class Rules:
    """What firewall rules decided, as the test says."""

    def on(self, packet: bytes, dropped_in: int = 0) -> str:
        if dropped_in:
            return "dropped in host by a rule" if packet[22:24] == (80).to_bytes(2, "big") else ""
        return "accepted in host by a rule"


def test_rules_are_named_where_they_are_known() -> None:
    by_firewall, elsewhere = drop(frame(1), "NETFILTER_DROP"), drop(frame(2, port=81), "NO_SOCKET")
    unknown = drop(frame(3, port=82), "NETFILTER_DROP")
    verdicts = Verdicts(Source(by_firewall, elsewhere, unknown), {}, Rules())
    verdicts.read()
    tagged = frame(1)[:12] + b"\x81\x00\x00\x07" + frame(1)[12:]
    for data, link_type in ((frame(1), LINKTYPE_ETHERNET), (tagged, LINKTYPE_ETHERNET), (frame(1)[14:], LINKTYPE_RAW)):
        assert verdicts.of(data, link_type) == "dropped in host by a rule: NETFILTER_DROP in nf_hook_slow"
    assert verdicts.of(frame(2, port=81), LINKTYPE_ETHERNET) == "dropped (NO_SOCKET, nf_hook_slow)"
    assert verdicts.of(frame(3, port=82), LINKTYPE_ETHERNET) == "dropped by the firewall (NETFILTER_DROP, nf_hook_slow)"
    assert verdicts.of(frame(4), LINKTYPE_ETHERNET) == "accepted in host by a rule"


def test_copies_for_others_are_no_drops() -> None:
    to_ping = drop(frame(1), "NO_SOCKET")._replace(function="ping_rcv")
    verdicts = Verdicts(Source(drop(frame(1), "OTHERHOST"), to_ping, drop(b"short", "NETFILTER_DROP")), {})
    verdicts.read()
    assert verdicts.of(frame(1), LINKTYPE_ETHERNET) == ""


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    path.write_text("older, and longer than what comes" * 100)
    stream = PcapngStream.create(str(path), 65535, "tcp")
    stream.add_interface(WEB)
    stream.add_names([("10.0.0.2", "web")])
    stream.write([record(), record(comment="dropped")])
    assert [kind for kind, _ in blocks(path.read_bytes())] == [0x0A0D0D0A, 1, 4, 6, 6]  # nothing waits in a buffer
    stream.close()


def test_a_new_file_is_private(tmp_path: Path) -> None:
    PcapngStream.create(str(tmp_path / "a.pcapng"), 65535, "").close()
    assert (tmp_path / "a.pcapng").stat().st_mode & 0o777 == 0o600


def test_every_file_of_a_ring_is_whole_and_the_oldest_go(tmp_path: Path) -> None:
    ring = RotatingFiles(str(tmp_path / "a.pcapng"), Rotation(3, 65536), 65535, "")
    ring.add_interface(WEB)
    ring.add_names([("10.0.0.2", "web")])
    ring.add_interface(END)
    for number in range(60):
        ring.write([record(data=frame(number) + bytes(1400))] * 20)
    ring.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert files[0].name > "a_00005.pcapng"
    for file in files:
        kinds = [kind for kind, _ in blocks(file.read_bytes())]
        assert kinds[:4] == ([0x0A0D0D0A, 1, 1, 4])
        assert set(kinds[4:]) == {6}
        assert file.stat().st_size < 65536 + 64 * 1600


def test_where_a_file_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot write"):
        open_output(str(tmp_path / "no" / "such"), None, 65535, "")
    with pytest.raises(UsageError, match="--ring needs a file name"):
        open_output("-", Rotation(2, 65536), 65535, "")


def test_lines() -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.add_interface(WEB)
    lines.add_interface(END)
    lines.add_names([("10.0.0.2", "web"), ("10.0.0.3", "db")])
    lines.write([record(), record(END, comment="dropped", flags=1)])
    first, second = out.getvalue().splitlines()
    assert first[8:].startswith(".000000001  web/eth0      out  web:40000 → db:80  TCP ")
    assert second[8:].startswith(".000000001  web/host-end  in   web:40000 → db:80  TCP ")
    assert second.endswith("[dropped]")
    assert "\x1b" not in out.getvalue()


def test_lines_in_colour() -> None:
    out = io.StringIO()
    lines = Lines(out, colour=True)
    lines.write([record(comment="dropped")])
    assert "\x1b[31m  [dropped]\x1b[0m" in out.getvalue()
