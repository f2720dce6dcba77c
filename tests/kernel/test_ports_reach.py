"""Who reaches a published port, who does not, and whom the sandbox sees: with packets, forged ones too, on both backends."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netbox.errors import Conflict
from netbox.network import ports
from netbox.spec import NetworkAttachment, PortSpec
from tests.kernel.network_lab import Guest, Lab, ask, probe
from tests.support.host import Neighbour
from tests.support.waiting import wait_until

LONG = 60.0  # seconds for what is certain to come
RETRIES = 40  # a second and a half each
QUIET = 0.2  # seconds in which what came before would have come, too


def seen(guest: Guest | None, protocol: str, address: str) -> str | None:
    """What the server behind port 8080 says about a client; asked again where the datagram is lost because a bridge is just learning."""

    def once() -> str | None:
        return guest.ask(protocol, address, 8080, 3.0) if guest is not None else ask(protocol, address, 8080, 3.0)

    return wait_until(once, f"an answer from {address}", LONG)


# -- the client's address ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_address_of_a_client_on_another_network_is_kept(lab: Lab, outside: Neighbour, protocol: str) -> None:
    for name in ("front", "back"):
        lab.define(name)
    web = lab.guest(networks=(NetworkAttachment("front"),), ports=(PortSpec(80, 8080, protocol=protocol),))
    web.serve(protocol, 80)
    sibling, stranger = lab.guest(networks=(NetworkAttachment("front"),)), lab.guest(networks=(NetworkAttachment("back"),))
    for address in (outside.host_address, stranger.gateway, web.gateway):
        assert seen(stranger, protocol, address) == f"{stranger.address} 80"
    assert seen(sibling, protocol, outside.host_address) == f"{web.gateway} 80"
    assert seen(web, protocol, outside.host_address) == f"{web.gateway} 80"
    assert seen(None, protocol, "127.0.0.1") == f"{web.gateway} 80"
    with outside.inside():
        assert seen(None, protocol, outside.host_address) == f"{outside.address} 80"


def test_a_sandbox_that_could_answer_directly_sees_the_host(lab: Lab, outside: Neighbour) -> None:
    """It is on the client's network too, where its answer would come from an address that the client does not know."""
    for name in ("front", "back"):
        lab.define(name)
    both = (NetworkAttachment("front"), NetworkAttachment("back"))
    web = lab.guest(networks=both, ports=(PortSpec(80, 8080),))
    web.serve("tcp", 80)
    assert web.plan.way_out is not None
    assert web.plan.way_out.network == "back"
    client = lab.guest(networks=(NetworkAttachment("front"),))
    assert seen(client, "tcp", outside.host_address) == f"{web.plan.way_out.gateway} 80"


# -- SCTP ----------------------------------------------------------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """The checksum of SCTP (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Listener:
    """Answers each INIT with an INIT ACK whose initiate tag is the client's address as it was seen. A raw socket: the kernel may know no
    SCTP.
    """

    def __init__(self, guest: Guest) -> None:
        with guest.inside():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
        self._socket.settimeout(0.05)
        self.seen: list[tuple[str, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                packet, (client, _) = self._socket.recvfrom(2048)
            except OSError:
                continue
            message = packet[(packet[0] & 15) * 4 :]
            source, destination, _, checksum = struct.unpack_from("!HHII", message)
            assert int.from_bytes(struct.pack("<I", crc32c(message[:8] + bytes(4) + message[12:])), "big") == checksum
            if message[12] == 1:  # INIT
                self.seen.append((client, destination))
                self._socket.sendto(self._init_ack(destination, source, message[16:20], client), (client, 0))

    def _init_ack(self, source: int, destination: int, tag: bytes, client: str) -> bytes:
        cookie = struct.pack("!HH4s", 7, 8, b"cook")
        chunk = struct.pack("!BBH4sIHHI", 2, 0, 20 + len(cookie), socket.inet_aton(client), 65536, 1, 1, 1) + cookie
        head = struct.pack("!HH4s", source, destination, tag)
        return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def seen_as(answer: Any) -> str:
    tag, sound = answer
    assert sound
    return socket.inet_ntoa(struct.pack("!I", tag))


def has_sctp_sockets() -> bool:
    """Asks the kernel, which loads its module for that if it has one."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def test_sctp_from_everywhere(lab: Lab, outside: Neighbour) -> None:
    """The client's address is kept, or is the gateway's where no answer could come back. Both ends are the kernel's own SCTP, or built
    by hand where it has none.
    """
    web = lab.guest(ports=(PortSpec(3868, 13868, protocol="sctp"), PortSpec(9000, 9100, 3, "sctp"), PortSpec(1, 2, 1, "sctp", "127.0.0.1")))
    sibling = lab.guest()
    with outside.inside():
        assert probe({"kind": "sctp", "address": outside.host_address, "port": 2}) == [None]
    if has_sctp_sockets():
        for port in (1, 3868, 9002):
            web.serve("sctp", port)
        with outside.inside():
            assert ask("sctp", outside.host_address, 13868) == f"{outside.address} 3868"
            assert ask("sctp", outside.host_address, 9102) == f"{outside.address} 9002"
        assert sibling.ask("sctp", outside.host_address, 13868) == f"{web.gateway} 3868"
        assert ask("sctp", outside.host_address, 13868) == f"{outside.host_address} 3868"
        assert ask("sctp", "127.0.0.1", 2) == f"{web.gateway} 1"
        return
    listener = Listener(web)
    try:
        with outside.inside():
            first, ranged = probe(
                {"kind": "sctp", "address": outside.host_address, "port": 13868, "retries": RETRIES},
                {"kind": "sctp", "address": outside.host_address, "port": 9102, "retries": RETRIES},
            )
        assert seen_as(first) == outside.address
        assert seen_as(ranged) == outside.address
        (hairpin,) = sibling.probe({"kind": "sctp", "address": outside.host_address, "port": 13868, "retries": RETRIES})
        assert seen_as(hairpin) == web.gateway
    finally:
        listener.close()
    assert set(listener.seen) == {(outside.address, 3868), (outside.address, 9002), (web.gateway, 3868)}


def test_an_sctp_port_is_in_use(lab: Lab) -> None:
    """A socket holds it against other programs, where there can be such."""
    web = lab.guest(ports=(PortSpec(3868, 13868, protocol="sctp"),))
    assert web.prepared is not None
    if not has_sctp_sockets():
        assert web.prepared.reservations == []
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("0.0.0.0", 13868))
        other.bind(("0.0.0.0", 9000))
        other.listen()
        with pytest.raises(Conflict, match=rf"port 9000/sctp is in use by .*\(pid {os.getpid()}\)"):
            lab.guest(ports=(PortSpec(80, 9000, protocol="sctp"),))


def test_a_dead_sandbox_gets_no_sctp_any_more(lab: Lab, outside: Neighbour) -> None:
    """The connection table knows the association; the same ports must not lead to the old address."""
    first = lab.guest(ports=(PortSpec(3868, 3868, protocol="sctp"),))
    for timeout in Path("/proc/sys/net/netfilter").glob("nf_conntrack_sctp_timeout_*"):
        timeout.write_text("600")  # an INIT would be forgotten after three seconds
    with outside.inside():
        probe({"kind": "sctp", "address": outside.host_address, "port": 3868})
    table = Path("/proc/thread-self/net/nf_conntrack")
    assert any("sctp" in line for line in table.read_text().splitlines())
    lab.end(first)
    assert not any("sctp" in line for line in table.read_text().splitlines())


def test_an_sctp_port_belongs_to_one_sandbox(lab: Lab) -> None:
    first = lab.guest(ports=(PortSpec(3868, 3868, protocol="sctp"), PortSpec(5000, protocol="sctp"), PortSpec(80, 3868)))
    with pytest.raises(Conflict, match=f"port 3868/sctp is published by sandbox {first.id[:12]}"):
        lab.guest(ports=(PortSpec(1, 3868, protocol="sctp"),))
    assert first.plan.ports[1].host_port
    assert first.prepared is not None
    assert len(first.prepared.reservations) == (3 if ports.holds_by_socket("sctp") else 1)


def test_the_first_free_port_of_a_choice(lab: Lab) -> None:
    with socket.create_server(("0.0.0.0", 8001)):
        first = lab.guest(ports=(PortSpec(80, 8000, choices=11), PortSpec(81, 8000)))
        assert [port.host_port for port in first.plan.ports] == [8002, 8000]
    second = lab.guest(ports=(PortSpec(80, 8000, choices=11),))
    assert second.plan.ports == (PortSpec(80, 8001),)
    with pytest.raises(Conflict, match="every port of 8000-8002/tcp is taken"):
        lab.guest(ports=(PortSpec(80, 8000, choices=3),))
    assert {row.port for row in lab.store.ports()} == {8000, 8001, 8002}


# -- forged frames -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def permissive(request: pytest.FixtureRequest, outside: Neighbour) -> Iterator[bool]:
    """Whether the kernel's own checks are off: reverse path, martian addresses, source routes."""
    values = {"rp_filter": "0"}
    if request.param:
        values |= {"route_localnet": "1", "accept_local": "1", "accept_source_route": "1"}
    paths = {Path(f"/proc/sys/net/ipv4/conf/{name}/{key}"): value for name in ("all", outside.host_link) for key, value in values.items()}
    before = {path: path.read_text() for path in paths}
    for path, value in paths.items():
        path.write_text(value)
    yield bool(request.param)
    for path, value in before.items():
        path.write_text(value)


def bound(port: int, address: str = "0.0.0.0") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.settimeout(LONG)
    return sock


def converse(sender: socket.socket, target: tuple[str, int], receiver: socket.socket) -> tuple[str, int]:
    """Sends until it arrives; the sender's address as the receiver sees it."""
    receiver.settimeout(1)

    def once() -> tuple[str, int] | None:
        sender.sendto(b"hello", target)
        try:
            data, address = receiver.recvfrom(100)
        except TimeoutError:
            return None
        return address if data == b"hello" else None

    found = wait_until(once, f"a datagram to {target}", LONG)
    receiver.settimeout(LONG)
    assert found is not None
    return found


def everything_until(sock: socket.socket, sentinel: bytes) -> list[bytes]:
    """What arrives before the sentinel, and what is there when it has come, but for the conversation."""
    found = []
    while (data := sock.recv(100)) != sentinel:
        found.append(data)
    sock.settimeout(QUIET)
    with contextlib.suppress(TimeoutError):
        while True:
            found.append(sock.recv(100))
    return [data for data in found if data != b"hello"]


@pytest.mark.usefixtures("permissive")
@pytest.mark.parametrize("permissive", [False, True], ids=["as it is", "permissive host"], indirect=True)
def test_forged_frames_reach_neither_loopback_ports_nor_sandboxes(lab: Lab, outside: Neighbour) -> None:
    """A neighbour on the LAN writes what it likes into the addresses."""
    web = lab.guest(ports=(PortSpec(53, 5353, protocol="udp", host_ip="127.0.0.1"), PortSpec(54, 5454, protocol="udp")))
    peer = lab.guest()
    with web.inside():
        private, public = bound(53), bound(54)
    with peer.inside():
        friend = bound(5000)
    # Conversations that go on: with the neighbouring sandbox, with the host's 127.0.0.1, and outwards.
    with contextlib.ExitStack() as stack:
        for item in (private, public, friend):
            stack.enter_context(item)
        local, fresh = (stack.enter_context(bound(port, "127.0.0.1")) for port in (6000, 6001))
        stack.enter_context(outside.inside())
        lan = stack.enter_context(bound(7000))
        assert converse(friend, (web.address, 53), private) == (peer.address, 5000)
        assert converse(private, (peer.address, 5000), friend) == (web.address, 53)
        client = converse(local, ("127.0.0.1", 5353), private)
        assert client[0] == web.gateway
        assert converse(private, client, local) == ("127.0.0.1", 5353)
        assert converse(private, (outside.address, 7000), lan)[0] == outside.host_address

        (mac,) = probe({"kind": "arp", "address": outside.host_address, "interface": outside.link})
        frame = {"interface": outside.link, "mac": mac, "protocol": "udp"}
        targets = [
            ("127.0.0.1", 5353),
            ("127.9.9.9", 5353),
            (outside.host_address, 5353),
            (web.gateway, 5353),
            (web.address, 53),
            (web.address, 5353),
            (web.address, 54),  # published, but not by this address
            ("127.0.0.1", 5454),
        ]
        sources = [
            (outside.address, 7000),
            ("127.0.0.1", 6000),
            ("127.0.0.1", 4000),
            (peer.address, 5000),
            (web.gateway, client[1]),
            (web.address, 53),
            (outside.host_address, 4000),
            ("192.0.2.1", 4000),
        ]
        forged: list[dict[str, Any]] = [
            {**frame, "source": source, "source_port": source_port, "address": address, "port": port}
            for source, source_port in sources
            for address, port in targets
        ]
        for routers in (["127.0.0.1"], [web.address], [web.gateway, web.address]):
            for port in (53, 5353):
                forged.append({**frame, "source": outside.address, "address": outside.host_address, "port": port, "route": routers})
        # And that the way is sound: by the published port.
        sound = {**frame, "source": outside.address, "source_port": 4001, "address": outside.host_address, "port": 5454}
        probe({"kind": "frames", "frames": [*forged, {**sound, "payload": "sentinel"}]})
        assert everything_until(public, b"sentinel") == []
        fresh.sendto(b"sentinel", ("127.0.0.1", 5353))  # port 6000's conversation may be forgotten by now, and a forged frame stand for it
        assert everything_until(private, b"sentinel") == []
        private.sendto(b"sentinel", (peer.address, 5000))
        assert everything_until(friend, b"sentinel") == []
