"""The driver macvlan with IPv6: addresses of the LAN, its router, announcements, and nothing published there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from netbox.errors import Conflict, UsageError
from netbox.spec import NetworkAttachment, NetworkSpec, PortSpec
from tests.kernel.network_lab import Lab, ask, out_of_reach, serve
from tests.kernel.test_macvlan import ip, lan, on
from tests.support.host import Neighbour, PrivateHost
from tests.support.waiting import wait_until

LAN6 = "2001:db8:100::/64"


@pytest.fixture
def lab(private_host: PrivateHost, outside: Neighbour) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def test_who_reaches_whom(lab: Lab, outside: Neighbour) -> None:
    lan(lab, ipv6=True, subnet6=LAN6, ip_range="198.51.100.64/28", ip_range6="2001:db8:100::40/124")
    a, b = lab.guest(**on("lan")), lab.guest(**on("lan"))
    assert [guest.plan.endpoints[0].addresses for guest in (a, b)] == [
        ("198.51.100.64", "2001:db8:100::40"),
        ("198.51.100.65", "2001:db8:100::41"),
    ]
    for guest in (a, b):
        guest.serve("tcp", 7000, "::")
    with outside.inside():
        servers = [serve("tcp", 7000, "::")]
    try:
        assert a.ask("tcp", b.address6, 7000) == f"{a.address6} 7000"
        assert a.ask("tcp", outside.address6, 7000) == f"{a.address6} 7000"  # no NAT: the LAN sees its own address
        with outside.inside():
            assert ask("tcp", a.address6, 7000) == f"{outside.address6} 7000"
        assert out_of_reach("tcp", a.address6, 7000)  # this host cannot
    finally:
        for server in servers:
            server.close()
    shown = a.execute("ip", "-6", "-o", "address", "show", "dev", "eth0")
    assert f"inet6 {a.address6}/64" in shown
    assert "tentative" not in shown
    assert a.execute("ip", "-6", "route", "show", "default").split()[:5] == ["default", "via", outside.address6, "dev", "eth0"]
    # Nothing of it on the host: no rule, no forwarding.
    assert lab.store.journal_owners("network") == []


def test_passthru_and_dry_run(lab: Lab, outside: Neighbour) -> None:
    """The commands of a dry run are what is done."""
    lan(lab, ipv6=True, subnet6=LAN6, macvlan_mode="passthru")
    plan = lab.manager.preview("f" * 64, None, NetworkSpec(**on("lan")), None)
    commands = lab.manager.describe(plan)
    assert f"ip -n {'f' * 12} address add 2001:db8:100::3/64 nodad dev eth0" in commands
    assert f"ip -6 -n {'f' * 12} route replace default via {outside.address6} dev eth0" in commands
    assert not any("ip6tables" in command or "forwarding" in command for command in commands)
    guest = lab.guest(**on("lan"))
    assert guest.address6 == "2001:db8:100::3"  # the first two are the router's and this host's
    guest.serve("tcp", 7000, "::")
    with outside.inside():
        assert ask("tcp", guest.address6, 7000) == f"{outside.address6} 7000"


def test_its_address_is_announced(lab: Lab, outside: Neighbour) -> None:
    """By an unsolicited neighbour advertisement (RFC 4861, 7.2.6)."""
    lan(lab, ipv6=True, subnet6=LAN6)
    with outside.inside():
        ip("neigh replace 2001:db8:100::9 lladdr 02:00:00:00:00:99 dev lan0 nud stale")
    guest = lab.guest(**on(NetworkAttachment("lan", ip6="2001:db8:100::9")))
    guest.serve("tcp", 7000, "::")
    mac = guest.plan.endpoints[0].mac_address
    # Nothing is sent to it meanwhile: only the announcement can replace the wrong MAC.
    wait_until(lambda: mac in outside.execute("ip", "-6", "neigh", "show", "2001:db8:100::9").stdout, "the announcement")
    with outside.inside():
        assert ask("tcp", "2001:db8:100::9", 7000) is not None


def test_addresses_that_are_somebodys(lab: Lab, outside: Neighbour) -> None:
    ip("-6 route add 2001:db8:7::/64 via 2001:db8:100::4")
    lan(lab, ipv6=True, subnet6=LAN6, aux_addresses=(("printer", "2001:db8:100::3"),), ip_range6="2001:db8:100::/125")
    assert lab.guest(**on("lan")).address6 == "2001:db8:100::5"
    for address, whose in ((outside.host_address6, "this host's own, on eth0"), ("2001:db8:100::4", "a router of this host")):
        with pytest.raises(Conflict, match=f"the address {address} is taken: it is {whose}"):
            lab.guest(**on(NetworkAttachment("lan", ip6=address)))
    with pytest.raises(UsageError, match="is the network's gateway"):
        lab.guest(**on(NetworkAttachment("lan", ip6=outside.address6)))


def test_the_router(lab: Lab, outside: Neighbour) -> None:
    """That of the host, which has a link-local address where it was learned from its advertisements."""
    values: dict[str, Any] = {"ipv6": True, "subnet6": LAN6}
    with pytest.raises(UsageError, match="is this host's own address"):
        lan(lab, gateway6=outside.host_address6, **values)
    with pytest.raises(UsageError, match=r"--ip-range 2001:db8:101::/80 is not a part of the subnet 2001:db8:100::/64"):
        lan(lab, ip_range6="2001:db8:101::/80", **values)
    with outside.inside():
        ip("-6 addr add fe80::1/64 dev lan0 nodad")
        ip("-6 addr add 2001:db8:7::1/128 dev lo")
        server = serve("tcp", 7000, "::")
    try:
        ip("-6 route replace default via fe80::1 dev eth0")
        lan(lab, **values)
        guest = lab.guest(**on("lan"))
        assert guest.gateway6 == "fe80::1"
        assert guest.ask("tcp", "2001:db8:7::1", 7000) == f"{guest.address6} 7000"
    finally:
        server.close()


def test_ports_are_published_on_the_bridge(lab: Lab, outside: Neighbour) -> None:
    """For IPv6 as long as the way out is a bridge: with IPv6 on the LAN alone, nothing is."""
    lan(lab, "a", ipv6=True, subnet6=LAN6)
    lab.define("front", ipv6=True)
    lab.define("plain")
    both, apart = ({**on("a", name), "ports": (PortSpec(80, number),)} for name, number in (("front", 8080), ("plain", 8081)))
    guest, other = lab.guest(**both), lab.guest(**apart)
    assert [port.with_ipv6 for port in (*guest.plan.ports, *other.plan.ports)] == [True, False]
    assert guest.plan.endpoints[0].network == "front"
    assert f"via {guest.gateway6} " in guest.execute("ip", "-6", "route", "show", "default")
    assert f"via {outside.address6} " in other.execute("ip", "-6", "route", "show", "default")
    guest.serve("tcp", 80, "::")
    with outside.inside():
        ip("addr add 2001:db8:7::1/128 dev lo")
        ip("-6 route add 2001:db8:100::2/128 dev lan0 src 2001:db8:7::1")  # a client that is not on the LAN itself
        assert ask("tcp", outside.host_address6, 8080) == "2001:db8:7::1 80"
    with pytest.raises(UsageError, match=r"cannot publish on \[::\]: the sandbox has no IPv6 address"):
        lab.guest(**on("a", "plain"), ports=(PortSpec(80, 8082, host_ip="::"),))
