"""Mode bridge, with packets: who reaches whom, and who does not."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from netbox.spec import PortSpec
from tests.kernel.network_lab import REFUSAL, TIMEOUT, Lab, Server, ask, out_of_reach, probe, reachable, serve
from tests.support import linux
from tests.support.host import Neighbour, PrivateHost
from tests.support.waiting import wait_until


def test_two_sandboxes_the_host_and_the_outside(lab: Lab, outside: Neighbour, servers: list[Server]) -> None:
    one, two = lab.guest(), lab.guest()
    two.serve("tcp", 80)
    two.serve("udp", 53)
    with outside.inside():
        servers += [serve("tcp", 7000), serve("udp", 7000)]
    servers.append(serve("tcp", 7001))
    assert one.ask("tcp", two.address, 80) == f"{one.address} 80"
    assert one.ask("udp", two.address, 53) == f"{one.address} 53"
    assert one.ask("tcp", one.gateway, 7001) == f"{one.address} 7001"
    assert ask("tcp", two.address, 80) == f"{one.gateway} 80"
    # Outside it is the host's address that is seen.
    assert one.ask("tcp", outside.address, 7000) == f"{outside.host_address} 7000"
    assert one.ask("udp", outside.address, 7000) == f"{outside.host_address} 7000"


def test_scapy_from_inside(lab: Lab, outside: Neighbour, servers: list[Server]) -> None:
    one, two = lab.guest(), lab.guest()
    two.serve("tcp", 80)
    two.serve("udp", 53)
    with outside.inside():
        servers += [serve("tcp", 7000), serve("udp", 7000)]
    assert two.plan.endpoint is not None
    answers = one.probe(
        {"kind": "arp", "address": one.gateway, "interface": "eth0"},
        {"kind": "arp", "address": two.address, "interface": "eth0"},
        {"kind": "ping", "address": one.gateway},
        {"kind": "ping", "address": two.address},
        {"kind": "ping", "address": outside.address},
        {"kind": "tcp", "address": two.address, "port": 80},
        {"kind": "tcp", "address": two.address, "port": 81},
        {"kind": "tcp", "address": outside.address, "port": 7000},
        {"kind": "udp", "address": two.address, "port": 53},
        {"kind": "udp", "address": two.address, "port": 54},
        {"kind": "udp", "address": outside.address, "port": 7000},
    )
    gateway_mac = "02:6e:" + socket.inet_aton(one.gateway).hex(":")
    assert answers[:5] == [gateway_mac, two.plan.endpoint.mac_address, one.gateway, two.address, outside.address]
    assert answers[5:8] == ["SA", "RA", "SA"]
    assert answers[8:] == [f"{one.address} 53", "unreachable", f"{outside.host_address} 7000"]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_from_everywhere(lab: Lab, outside: Neighbour, protocol: str) -> None:
    guest = lab.guest(ports=(PortSpec(80, 8080, protocol=protocol),))
    other = lab.guest()
    guest.serve(protocol, 80)
    with outside.inside():
        assert ask(protocol, outside.host_address, 8080) == f"{outside.address} 80"  # the client's own address
    assert ask(protocol, outside.host_address, 8080) == f"{outside.host_address} 80"
    assert ask(protocol, "127.0.0.1", 8080) == f"{guest.gateway} 80"
    assert ask(protocol, guest.gateway, 8080) is not None
    assert guest.ask(protocol, outside.host_address, 8080) == f"{guest.gateway} 80"
    assert guest.ask(protocol, guest.gateway, 8080) == f"{guest.gateway} 80"
    assert other.ask(protocol, outside.host_address, 8080) == f"{guest.gateway} 80"


@pytest.mark.parametrize(("inside", "outer"), [(9000, 9000), (9100, 9000), (8900, 9000)])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_range_of_ports_keeps_its_order(lab: Lab, outside: Neighbour, protocol: str, inside: int, outer: int) -> None:
    guest = lab.guest(ports=(PortSpec(inside, outer, 5, protocol),))
    for offset in range(5):
        guest.serve(protocol, inside + offset)
    for offset in range(5):
        with outside.inside():
            assert ask(protocol, outside.host_address, outer + offset) == f"{outside.address} {inside + offset}"
        assert ask(protocol, "127.0.0.1", outer + offset) == f"{guest.gateway} {inside + offset}"
    with outside.inside():
        assert out_of_reach(protocol, outside.host_address, outer + 5)
        assert out_of_reach(protocol, outside.host_address, outer - 1)


@pytest.mark.parametrize("hairpin", ["0", "1"])
def test_hairpin_whether_or_not_the_bridge_calls_iptables(lab: Lab, outside: Neighbour, hairpin: str) -> None:
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text(hairpin)
    guest = lab.guest(ports=(PortSpec(80, 8080),))
    guest.serve("tcp", 80)
    other = lab.guest()
    try:
        assert guest.ask("tcp", outside.host_address, 8080) == f"{guest.gateway} 80"
        assert other.ask("tcp", outside.host_address, 8080) == f"{guest.gateway} 80"
        assert other.ask("tcp", guest.address, 80) == f"{other.address} 80"
    finally:
        Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")


def test_a_port_published_on_one_address(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest(ports=(PortSpec(80, 8080, host_ip=outside.host_address), PortSpec(81, 8081, host_ip="127.0.0.1")))
    guest.serve("tcp", 80)
    guest.serve("tcp", 81)
    assert reachable("tcp", outside.host_address, 8080)
    assert out_of_reach("tcp", "127.0.0.1", 8080)
    assert reachable("tcp", "127.0.0.1", 8081)
    assert out_of_reach("tcp", outside.host_address, 8081)
    with outside.inside():
        assert reachable("tcp", outside.host_address, 8080)
        assert out_of_reach("tcp", outside.host_address, 8081)


def test_what_is_not_published_is_out_of_reach(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest(ports=(PortSpec(80, 8080),))
    guest.serve("tcp", 80)
    guest.serve("tcp", 81)
    outside.execute("ip", "route", "add", "10.0.0.0/8", "via", outside.host_address)
    with outside.inside():
        assert out_of_reach("tcp", guest.address, 80)
        assert out_of_reach("tcp", guest.address, 81)
        assert out_of_reach("tcp", outside.host_address, 81)
        assert reachable("tcp", outside.host_address, 8080)
    assert reachable("tcp", guest.address, 81)  # by the host, that is: it is there


def _mac(interface: str) -> str:
    return Path(f"/sys/class/net/{interface}/address").read_text().strip()


def _received(sock: socket.socket, timeout: float = TIMEOUT) -> bytes | None:
    """What comes in, within the time in which it certainly would."""
    sock.settimeout(timeout)
    try:
        return sock.recv(100)
    except TimeoutError:
        return None


def _udp(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def _forge(interface: str, mac: str, source: str, address: str, port: int, payload: str = "forged") -> dict[str, object]:
    frame = {"kind": "frame", "interface": interface, "mac": mac, "source": source, "address": address, "port": port}
    return {**frame, "protocol": "udp", "payload": payload}


def test_a_forged_loopback_address_does_not_come_in_by_the_bridge(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest()
    gateway_mac = _mac("netbox0")
    Path("/proc/sys/net/ipv4/conf/netbox0/accept_local").write_text("1")  # with which the kernel would let the second frame in
    with _udp("127.0.0.1", 9999) as private, _udp("0.0.0.0", 9998) as public:
        guest.probe(
            _forge("eth0", gateway_mac, guest.address, "127.0.0.1", 9999),  # would reach the host's own services
            _forge("eth0", gateway_mac, "127.0.0.1", guest.gateway, 9998),  # would look like the host itself
        )
        guest.probe(_forge("eth0", gateway_mac, guest.address, guest.gateway, 9998, "sound"))  # the way of the frames is sound
        assert _received(public) == b"sound"  # the first to come, so the other ones did not
        assert _received(private, REFUSAL) is None


def test_a_lan_neighbour_does_not_reach_a_port_published_on_loopback(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest(ports=(PortSpec(53, 5353, protocol="udp", host_ip="127.0.0.1"), PortSpec(54, 5454, protocol="udp")))
    with guest.inside():
        hidden, public = _udp("0.0.0.0", 53), _udp("0.0.0.0", 54)
    with hidden, public:
        with outside.inside():
            mac = _host_mac(outside)
            probe(
                _forge(outside.link, mac, outside.address, "127.0.0.1", 5353),
                _forge(outside.link, mac, outside.address, guest.address, 53),
                _forge(outside.link, mac, guest.gateway, guest.address, 53),
            )
        with outside.inside():
            probe(_forge(outside.link, mac, outside.address, outside.host_address, 5454))
        assert _received(public) == b"forged"  # by the same way as those before it
        assert ask("udp", "127.0.0.1", 5353, REFUSAL) is None  # nobody answers, but it arrives
        assert _received(hidden) == b"?"  # the first to come
        assert _received(hidden, REFUSAL) is None


def _host_mac(outside: Neighbour) -> str:
    """The MAC of the host's end of the LAN, as the neighbour learns it."""
    answer = probe({"kind": "arp", "address": outside.host_address, "interface": outside.link})[0]
    assert isinstance(answer, str)
    return answer


def test_a_foreign_source_address_does_not_get_out(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest()
    with outside.inside():
        sock = _udp("0.0.0.0", 9997)
    with sock:
        guest.probe(_forge("eth0", _mac("netbox0"), "192.0.2.77", outside.address, 9997))
        guest.probe(_forge("eth0", _mac("netbox0"), guest.address, outside.address, 9997, "sound"))
        assert _received(sock) == b"sound"  # the first to come
        assert _received(sock, REFUSAL) is None


def test_an_announcement_goes_out_and_the_first_packet_does_not_wait(lab: Lab) -> None:
    lab.guest()  # brings the bridge up
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with listener:
        listener.bind(("netbox0", 0x0806))
        listener.settimeout(20)
        guest = lab.guest()
        frame = listener.recv(100)
    address = socket.inet_aton(guest.address)
    assert guest.plan.endpoint is not None
    assert frame[0:6] == b"\xff" * 6
    assert frame[22:28].hex(":") == guest.plan.endpoint.mac_address  # sender MAC
    assert frame[28:32] == frame[38:42] == address  # sender and target address: an announcement
    # Neither side has to ask before it can send.
    assert (
        guest.plan.endpoint.mac_address
        in subprocess.run(["ip", "neighbour", "show", guest.address], capture_output=True, text=True, timeout=20, check=True).stdout
    )
    assert "lladdr 02:6e:0a:d2:00:01" in guest.execute("ip", "neighbour", "show", guest.gateway)


def test_a_neighbour_that_remembers_another_mac_learns_the_new_one(lab: Lab) -> None:
    watcher = lab.guest()
    first = lab.guest(ip="10.210.0.77", mac_address="02:00:00:00:00:77")
    assert watcher.probe({"kind": "ping", "address": "10.210.0.77"}) == ["10.210.0.77"]
    first.serve("udp", 9)
    assert watcher.ask("udp", "10.210.0.77", 9)  # the kernel's own neighbour table
    lab.end(first)
    second = lab.guest(ip="10.210.0.77", mac_address="02:00:00:00:00:78")
    # Nothing is sent to it meanwhile: only the announcement can tell.
    wait_until(lambda: "02:00:00:00:00:78" in watcher.execute("ip", "neighbour", "show", "10.210.0.77"), "the announcement")
    second.serve("udp", 9)
    assert watcher.ask("udp", "10.210.0.77", 9)


def test_the_interface_is_as_planned(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest(mac_address="02:42:AC:11:00:02", ip="10.210.3.4")
    assert guest.address == "10.210.3.4"
    shown = guest.execute("ip", "address", "show", "eth0")
    assert "link/ether 02:42:ac:11:00:02" in shown
    assert "inet 10.210.3.4/20 brd 10.210.15.255" in shown
    assert "inet6" not in shown
    assert guest.execute("ip", "route").splitlines() == [
        "default via 10.210.0.1 dev eth0 ",
        "10.210.0.0/20 dev eth0 proto kernel scope link src 10.210.3.4 ",
    ]
    assert "127.0.0.1/8" in guest.execute("ip", "address", "show", "lo")


@pytest.mark.parametrize("mtu", [1280, 1500, 9000])
def test_the_mtu_is_that_of_the_way_out(private_host: PrivateHost, mtu: int) -> None:
    outside = Neighbour(mtu=mtu)
    lab = Lab()
    try:
        guest = lab.guest()
        assert guest.plan.endpoint is not None
        assert guest.plan.endpoint.mtu == mtu
        assert f"mtu {mtu}" in guest.execute("ip", "link", "show", "eth0")
        assert int(Path("/sys/class/net/netbox0/mtu").read_text()) == mtu
    finally:
        lab.close()
        outside.close()


def test_the_bridge_keeps_its_mac(lab: Lab) -> None:
    lab.guest()
    before = _mac("netbox0")
    lab.guest(mac_address="02:00:00:00:00:01")  # lower than all others
    assert _mac("netbox0") == before == "02:6e:0a:d2:00:01"


def test_traffic_is_counted_as_the_sandbox_sees_it(lab: Lab) -> None:
    guest = lab.guest()
    before = lab.manager.statistics(guest.plan, 0)
    with guest.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(50):
            sock.sendto(b"x" * 1000, (guest.gateway, 9))
    after = lab.manager.statistics(guest.plan, 0)
    assert after.tx_packets - before.tx_packets >= 50
    assert after.tx_bytes - before.tx_bytes >= 50 * 1042
    assert after.rx_bytes - before.rx_bytes < 50 * 1042


def test_a_pair_left_by_a_namespace_that_somebody_keeps_is_replaced(lab: Lab) -> None:
    guest = lab.guest()
    kept = guest.netns
    guest.netns = linux.new_network_namespace()
    try:
        lab.manager.attach(guest.plan, guest.netns, guest.journal)
        assert guest.address in guest.execute("ip", "address", "show", "eth0")
        with linux.network_namespace(kept):
            assert {name for _, name in socket.if_nameindex()} == {"lo"}
    finally:
        os.close(kept)
