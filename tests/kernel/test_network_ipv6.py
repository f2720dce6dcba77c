"""Networks with IPv6, with packets: who reaches whom, and who does not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.errors import Conflict, UsageError
from netbox.kernel import conntrack
from netbox.spec import NetworkAttachment, NetworkSpec, PortSpec
from tests.kernel.network_lab import Guest, Lab, Server, ask, out_of_reach, probe, reachable, serve
from tests.support.host import Neighbour, PrivateHost
from tests.support.waiting import wait_until

BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")


@pytest.fixture
def one_lab(private_host: PrivateHost) -> Iterator[Lab]:
    """For what does not depend on the firewall's backend."""
    made = Lab()
    yield made
    made.close()


def on(lab: Lab, *networks: str, ports: tuple[PortSpec, ...] = ()) -> Guest:
    return lab.guest(networks=tuple(NetworkAttachment(name) for name in networks), ports=ports)


def test_neighbours_the_host_and_the_outside(lab: Lab, outside: Neighbour, servers: list[Server]) -> None:
    """At once: nobody waits for duplicate address detection, which takes a second and more."""
    row = lab.define("front", ipv6=True)
    assert row.subnet6.startswith("fd")
    assert row.subnet6.endswith("/64")
    one, two = on(lab, "front"), on(lab, "front")
    assert one.address6 == row.subnet6.replace("/64", "2")
    assert one.gateway6 == row.gateway6 == row.subnet6.replace("/64", "1")
    two.serve("tcp", 80, "::")
    two.serve("udp", 53, "::")
    with outside.inside():
        servers += [serve("tcp", 7000, "::"), serve("udp", 7000, "::")]
    servers.append(serve("tcp", 7001, "::"))
    assert one.ask("tcp", two.address6, 80) == f"{one.address6} 80"
    assert one.ask("udp", two.address6, 53) == f"{one.address6} 53"
    assert one.ask("tcp", one.gateway6, 7001) == f"{one.address6} 7001"
    assert ask("tcp", two.address6, 80) == f"{one.gateway6} 80"
    assert one.ask("tcp", outside.address6, 7000) == f"{outside.host_address6} 7000"
    assert one.ask("udp", outside.address6, 7000) == f"{outside.host_address6} 7000"
    # Neighbour discovery works in both directions when nothing is remembered.
    subprocess.run(["ip", "-6", "neigh", "flush", "dev", row.bridge], check=True, timeout=20)
    one.execute("ip", "-6", "neigh", "flush", "dev", "eth0")
    assert one.ask("tcp", two.address6, 80) == f"{one.address6} 80"
    assert ask("tcp", two.address6, 80) == f"{one.gateway6} 80"
    assert "tentative" not in one.execute("ip", "-6", "address")
    assert (
        "tentative"
        not in subprocess.run(["ip", "-6", "address", "show", row.bridge], capture_output=True, text=True, check=True, timeout=20).stdout
    )


def test_networks_are_strangers(lab: Lab, outside: Neighbour) -> None:
    lab.define("front", ipv6=True)
    lab.define("back", ipv6=True)
    one, two = on(lab, "front"), on(lab, "back", ports=(PortSpec(80, 8080),))
    two.serve("tcp", 80, "::")
    assert one.plan.endpoints[0].subnet6 != two.plan.endpoints[0].subnet6
    with one.inside():
        assert out_of_reach("tcp", two.address6, 80)
        assert reachable("tcp", outside.host_address6, 8080)
    both = on(lab, "front", "back")
    addresses = {endpoint.network: endpoint.address6 for endpoint in both.plan.endpoints}
    assert both.ask("tcp", two.address6, 80) == f"{addresses['back']} 80"
    # It is no router either.
    one.execute("ip", "-6", "route", "add", f"{two.address6}/128", "via", addresses["front"])
    with one.inside():
        assert out_of_reach("tcp", two.address6, 80)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_from_everywhere(lab: Lab, outside: Neighbour, protocol: str) -> None:
    lab.define("front", ipv6=True)
    guest = on(lab, "front", ports=(PortSpec(80, 8080, protocol=protocol), PortSpec(90, 9000, 3, protocol)))
    assert [(port.host_ip, port.host_port, port.with_ipv6) for port in guest.plan.ports] == [
        ("0.0.0.0", 8080, True),
        ("0.0.0.0", 9000, True),
    ]
    other = on(lab, "front")
    for address in ("0.0.0.0", "::"):
        guest.serve(protocol, 80, address)
        guest.serve(protocol, 92, address)
    guest.serve(protocol, 81, "::")
    with outside.inside():
        assert ask(protocol, outside.host_address6, 8080) == f"{outside.address6} 80"  # the client's own address
        assert ask(protocol, outside.host_address6, 9002) == f"{outside.address6} 92"
        assert ask(protocol, outside.host_address, 8080) == f"{outside.address} 80"
    assert ask(protocol, outside.host_address6, 8080) == f"{outside.host_address6} 80"
    assert ask(protocol, "127.0.0.1", 8080) == f"{guest.gateway} 80"
    assert guest.ask(protocol, outside.host_address6, 8080) == f"{guest.gateway6} 80"
    assert other.ask(protocol, outside.host_address6, 8080) == f"{guest.gateway6} 80"
    outside.execute("ip", "-6", "route", "add", "fd00::/8", "via", outside.host_address6)
    with outside.inside():
        assert out_of_reach(protocol, guest.address6, 81)
    assert other.ask(protocol, guest.address6, 81) == f"{other.address6} 81"  # it is there


def test_published_on_one_address(lab: Lab, outside: Neighbour) -> None:
    lab.define("front", ipv6=True)
    guest = on(
        lab, "front", ports=(PortSpec(80, 8080, host_ip=outside.host_address6), PortSpec(81, 8081), PortSpec(82, 8081, host_ip="::"))
    )
    for number in (80, 81, 82):
        guest.serve("tcp", number, "::")
    guest.serve("tcp", 81)
    with outside.inside():
        assert ask("tcp", outside.host_address6, 8080) == f"{outside.address6} 80"
        assert ask("tcp", outside.host_address6, 8081) == f"{outside.address6} 82"  # the more special one
        assert ask("tcp", outside.host_address, 8081) == f"{outside.address} 81"
        assert out_of_reach("tcp", outside.host_address, 8080)
    assert out_of_reach("tcp", guest.gateway6, 8080)
    for host_ip in ("::", outside.host_address6):
        with pytest.raises(Conflict, match="8080/tcp is published by sandbox"):
            on(lab, "front", ports=(PortSpec(80, 8080, host_ip=host_ip),))
    with serve_on("::", 8082), pytest.raises(Conflict, match="8082/tcp is in use by"):
        on(lab, "front", ports=(PortSpec(80, 8082),))
    with pytest.raises(UsageError, match="this host has no such address"):
        on(lab, "front", ports=(PortSpec(80, 8083, host_ip="2001:db8:9::9"),))


class serve_on:
    def __init__(self, address: str, port: int) -> None:
        self._server = serve("tcp", port, address)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._server.close()


def test_the_loopback_address_of_the_host(lab: Lab, outside: Neighbour) -> None:
    """Where bridged packets do not pass ip6tables it leads to sandboxes, else it refuses at once."""
    BRIDGE_NETFILTER.write_text("0")
    try:
        lab.define("front", ipv6=True)
        lab.define("back", ipv6=True)
        one = on(lab, "front", ports=(PortSpec(80, 8080), PortSpec(80, 8081, host_ip="::1")))
        two = on(lab, "back", ports=(PortSpec(80, 9090, protocol="udp"),))
        one.serve("tcp", 80, "::")
        two.serve("udp", 80, "::")
        assert ask("tcp", "::1", 8080) == f"{one.gateway6} 80"
        assert ask("tcp", "::1", 8081) == f"{one.gateway6} 80"
        assert ask("udp", "::1", 9090) == f"{two.gateway6} 80"
        with outside.inside():
            assert reachable("tcp", outside.host_address6, 8080)
            assert out_of_reach("tcp", outside.host_address6, 8081)
        with serve_on("::1", 7000):
            assert ask("tcp", "::1", 7000) == "::1 7000"
        lab.end(one)
        lab.end(two)
    finally:
        BRIDGE_NETFILTER.write_text("1")
    with pytest.raises(UsageError, match=r"cannot publish on \[::1\]: .* answers to ::1 are lost"):
        on(lab, "front", ports=(PortSpec(80, 8081, host_ip="::1"),))
    again = on(lab, "front", ports=(PortSpec(80, 8080),))
    again.serve("tcp", 80, "::")
    assert ask("tcp", "::1", 8080) is None
    assert reachable("tcp", outside.host_address6, 8080)


def test_forged_loopback_frames_are_dropped(one_lab: Lab, outside: Neighbour) -> None:
    """Neither by a bridge nor by the LAN does a frame get to ::1, also with a route to ::1 by the bridge."""
    one_lab.define("front", ipv6=True)
    guest = on(one_lab, "front")
    loopback, public = serve("udp", 7000, "::1"), serve("udp", 7001, "::")
    try:
        mac = Path(f"/sys/class/net/{guest.plan.endpoints[0].bridge}/address").read_text().strip()
        frame = {"kind": "frame6", "interface": "eth0", "mac": mac}
        sound = {**frame, "source": guest.address6, "address": guest.gateway6, "port": 7001}
        guest.probe(*({**frame, "source": source, "address": "::1", "port": 7000} for source in (guest.address6, "::1")), sound)
        wait_until(lambda: (guest.address6, 4000) in public.clients, "the frame that is sound")
        mac = Path(f"/sys/class/net/{outside.host_link}/address").read_text().strip()
        frame = {"kind": "frame6", "interface": outside.link, "mac": mac, "source": outside.address6}
        with outside.inside():
            probe({**frame, "address": "::1", "port": 7000}, {**frame, "address": outside.host_address6, "port": 7001})
        wait_until(lambda: (outside.address6, 4000) in public.clients, "the frame that is sound")
        # What came before the sound ones on the same ways would be here before this question.
        assert ask("udp", "::1", 7000, source_port=6001) == "::1 7000"
        assert set(loopback.clients) == {("::1", 6001)}
    finally:
        loopback.close()
        public.close()


def test_an_internal_network(lab: Lab, outside: Neighbour, servers: list[Server]) -> None:
    lab.define("inner", ipv6=True, internal=True)
    lab.define("front", ipv6=True)
    one, two, other = on(lab, "inner"), on(lab, "inner"), on(lab, "front", ports=(PortSpec(80, 8080),))
    other.serve("tcp", 80, "::")
    two.serve("tcp", 80, "::")
    with outside.inside():
        servers.append(serve("tcp", 7000, "::"))
    servers.append(serve("tcp", 7001, "::"))
    assert "default" not in one.execute("ip", "-6", "route")
    assert one.ask("tcp", two.address6, 80) == f"{one.address6} 80"
    assert one.ask("tcp", one.gateway6, 7001) == f"{one.address6} 7001"
    one.execute("ip", "-6", "route", "add", "default", "via", one.gateway6)
    with one.inside():
        assert out_of_reach("tcp", outside.address6, 7000)
        assert out_of_reach("tcp", outside.host_address6, 8080)
    with other.inside():
        assert out_of_reach("tcp", two.address6, 80)
    with pytest.raises(UsageError, match="the sandbox is on internal networks only"):
        on(lab, "inner", ports=(PortSpec(80, 8081),))


def test_addresses(one_lab: Lab, outside: Neighbour) -> None:
    one_lab.define(
        "front", subnet="10.20.30.0/24", subnet6="fd00:30::/64", gateway6="fd00:30::fe", ipv6=True, aux_addresses=(("x", "fd00:30::9"),)
    )
    one = one_lab.guest(networks=(NetworkAttachment("front", ip6="fd00:30::2"),))
    two, three = on(one_lab, "front"), one_lab.guest(networks=(NetworkAttachment("front", ip="10.20.30.9"),))
    assert (one.address6, two.address6, three.address6) == ("fd00:30::2", "fd00:30::3", "fd00:30::1:0:0")
    for wanted, why in (
        ("fd00:30::2", f"the address fd00:30::2 is taken by sandbox {one.id[:12]}"),
        ("fd00:30::fe", "is the network's gateway"),
        ("fd00:30::9", "is reserved for x"),
        ("fd00:31::2", "is outside the network's subnet"),
    ):
        with pytest.raises((Conflict, UsageError), match=why):
            one_lab.guest(networks=(NetworkAttachment("front", ip6=wanted),))
    one_lab.define("plain", subnet="10.20.31.0/24")
    with pytest.raises(UsageError, match="network plain has no IPv6"):
        one_lab.guest(networks=(NetworkAttachment("plain", ip6="fd00:30::5"),))
    plain = on(one_lab, "plain")
    assert plain.plan.endpoints[0].addresses == (plain.address,)
    assert "inet6" not in plain.execute("ip", "address", "show", "eth0")
    with pytest.raises(UsageError, match="the sandbox has no IPv6 address"):
        on(one_lab, "plain", ports=(PortSpec(80, 8080, host_ip="::"),))
    for clash, what in (("fd00:30::/48", "network front"), ("2001:db8:100::/64", "route 2001:db8:100::/64 dev eth0")):
        with pytest.raises(Conflict, match=what):
            one_lab.define("second", subnet6=clash, ipv6=True)


def test_the_host_goes_on_taking_router_advertisements(one_lab: Lab, outside: Neighbour) -> None:
    """As a router it would take none where ``accept_ra`` is 1, and lose its own way out."""
    values = {
        name: Path("/proc/sys/net/ipv6/conf", name)
        for name in ("all/forwarding", "eth0/forwarding", "eth0/accept_ra", "lo/forwarding", "default/accept_ra")
    }
    values["lo/forwarding"].write_text("1")
    before = {name: path.read_text().strip() for name, path in values.items()}
    one_lab.define("front", ipv6=True)
    one_lab.define("back", ipv6=True)
    one_lab.define("inner", ipv6=True, internal=True)
    inner = on(one_lab, "inner")
    assert {name: path.read_text().strip() for name, path in values.items()} == before
    one, two = on(one_lab, "front"), on(one_lab, "back")
    changed = {name: "2" if name.endswith("accept_ra") else "1" for name in values}
    assert {name: path.read_text().strip() for name, path in values.items()} == changed
    one_lab.end(one)
    assert {name: path.read_text().strip() for name, path in values.items()} == changed
    one_lab.end(two)
    assert {name: path.read_text().strip() for name, path in values.items()} == before
    one_lab.end(inner)
    values["lo/forwarding"].write_text("0")


def test_old_flows_do_not_bypass_a_new_port(lab: Lab, outside: Neighbour) -> None:
    lab.define("front", ipv6=True)
    with outside.inside():
        assert ask("udp", outside.host_address6, 5353, 0.2, source_port=6000) is None
    guest = on(lab, "front", ports=(PortSpec(53, 5353, protocol="udp"),))
    guest.serve("udp", 53, "::")
    with outside.inside():
        assert ask("udp", outside.host_address6, 5353, source_port=6000) == f"{outside.address6} 53"
    lab.end(guest)
    guest = on(lab, "front", ports=(PortSpec(53, 5353, protocol="udp"),))
    guest.serve("udp", 53, "::")
    with outside.inside():
        assert ask("udp", outside.host_address6, 5353, source_port=6000) == f"{outside.address6} 53"
    assert conntrack.flush("udp", "2001:db8::99", 5353, 1) == 0
    assert conntrack.flush("udp", "0.0.0.0", 5353, 1) == 0
    assert conntrack.flush("udp", "::", 5353, 2) == 1


def test_the_default_network(one_lab: Lab, outside: Neighbour, monkeypatch: pytest.MonkeyPatch) -> None:
    """NETBOX_IPV6 is asked when it comes up: while it stands, it stays as it is."""
    plain = one_lab.guest()
    assert plain.address6 == ""
    monkeypatch.setenv("NETBOX_IPV6", "1")
    wanting = Lab()
    try:
        assert wanting.manager.preview("e" * 64, None, NetworkSpec(), None).endpoints[0].address6 == ""
        one_lab.end(plain)
        preview = wanting.manager.preview("e" * 64, None, NetworkSpec(), None)
        assert any(line.startswith("ip6tables") or "ip6 netbox" in line for line in wanting.manager.describe(preview))
        six = wanting.guest(ports=(PortSpec(80, 8080),))
        assert six.plan.endpoints[0].addresses == preview.endpoints[0].addresses
        assert six.address6.endswith("::3")  # the freed ::2 comes last
        six.serve("tcp", 80, "::")
        with outside.inside():
            assert ask("tcp", outside.host_address6, 8080) == f"{outside.address6} 80"
        again = one_lab.guest()  # somebody without the setting: the network stands
        assert again.address6.endswith("::4")
        one_lab.end(again)
        wanting.end(six)
        assert one_lab.guest().address6 == ""
        with pytest.raises(UsageError, match="set NETBOX_IPV6=1 while no sandbox is on it"):
            one_lab.guest(networks=(NetworkAttachment("bridge", ip6="fd00::5"),))
    finally:
        wanting.close()
    monkeypatch.setenv("NETBOX_IPV6", "maybe")
    with pytest.raises(UsageError, match="NETBOX_IPV6=maybe: neither 1 nor 0"):
        Lab()


def test_an_announcement_at_start(one_lab: Lab, outside: Neighbour) -> None:
    """Whoever remembers another MAC for the address learns the new one from an unsolicited advertisement (RFC 4861, 7.2.6)."""
    one_lab.define("front", ipv6=True)
    one = on(one_lab, "front")
    old = on(one_lab, "front")
    address = old.address6
    old.serve("tcp", 80, "::")
    assert one.ask("tcp", address, 80) is not None
    one_lab.end(old)
    again = one_lab.guest(networks=(NetworkAttachment("front", ip6=address, mac_address="02:00:00:00:00:77"),))
    again.serve("tcp", 80, "::")
    wait_until(lambda: "02:00:00:00:00:77" in one.execute("ip", "-6", "neigh", "show", address), "the announcement", timeout=60)
    assert one.ask("tcp", address, 80) is not None
