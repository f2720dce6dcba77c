"""The driver macvlan against the kernel: sandboxes as machines of their own on the LAN of a link."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netbox.errors import CleanupError, Conflict, HostError, NetboxError, NotFound, Unsupported, UsageError
from netbox.kernel import sublinks
from netbox.kernel.rtnetlink import RouteSocket
from netbox.network import parents, shaping
from netbox.network.shaping import IN, OUT, Impairment
from netbox.network.undo import HANDLERS
from netbox.spec import NetworkAttachment, NetworkSpec, PortSpec
from tests.kernel.network_lab import REFUSAL, TIMEOUT, Guest, Lab, ask, out_of_reach, reachable, serve
from tests.support import linux
from tests.support.host import Neighbour, PrivateHost
from tests.support.leaks import links
from tests.support.waiting import wait_until

LAN = Neighbour.network


@pytest.fixture
def lab(private_host: PrivateHost, outside: Neighbour) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, timeout=20)


def lan(lab: Lab, name: str = "lan", **values: Any) -> str:
    request = {"driver": "macvlan", "parent": "eth0", "subnet": LAN, "macvlan_mode": "bridge", **values}
    return lab.define(name, **request).name


def on(*networks: str | NetworkAttachment) -> dict[str, Any]:
    return {"networks": tuple(item if isinstance(item, NetworkAttachment) else NetworkAttachment(item) for item in networks)}


def test_who_reaches_whom(lab: Lab, outside: Neighbour) -> None:
    lan(lab, ip_range="198.51.100.64/28")
    a, b, apart = lab.guest(**on("lan")), lab.guest(**on("lan")), lab.guest()
    assert (a.address, b.address) == ("198.51.100.64", "198.51.100.65")
    for guest in (a, b):
        guest.serve("tcp", 7000)
    with outside.inside():
        servers = [serve("tcp", 7000)]
    try:
        assert a.ask("tcp", b.address, 7000) == f"{a.address} 7000"
        assert a.ask("tcp", outside.address, 7000) == f"{a.address} 7000"  # no NAT: the LAN sees its own address
        with outside.inside():
            assert ask("tcp", a.address, 7000) == f"{outside.address} 7000"
        assert out_of_reach("tcp", a.address, 7000)  # this host cannot
        servers.append(serve("tcp", 7001))
        assert a.ask("tcp", outside.host_address, 7001, REFUSAL) is None  # nor the other way round
        with outside.inside():
            assert reachable("tcp", outside.host_address, 7001)
        with apart.inside():
            assert out_of_reach("tcp", a.address, 7000)
            assert reachable("tcp", outside.address, 7000)
    finally:
        for server in servers:
            server.close()


def test_whether_the_kernel_has_it_is_asked_without_making_one(private_host: PrivateHost) -> None:
    before = links()
    assert [sublinks.lacks_kind(kind) for kind in ("macvlan", "bridge", "veth", "nonesuch")] == [False, False, False, True]
    assert links() == before


@pytest.mark.parametrize(("mode", "each_other"), [("bridge", True), ("private", False), ("vepa", False)])
def test_the_modes(lab: Lab, outside: Neighbour, mode: str, each_other: bool) -> None:
    lan(lab, macvlan_mode=mode)
    a, b = lab.guest(**on("lan")), lab.guest(**on("lan"))
    assert f"macvlan mode {mode}" in a.execute("ip", "-d", "link", "show", "eth0")
    b.serve("udp", 7000)
    assert (a.ask("udp", b.address, 7000, TIMEOUT if each_other else REFUSAL) is not None) is each_other
    with outside.inside():
        assert ask("udp", b.address, 7000) is not None


def test_passthru_has_the_parent_for_itself(lab: Lab, outside: Neighbour) -> None:
    mac = Path("/sys/class/net/eth0/address").read_text().strip()
    lan(lab, macvlan_mode="passthru")
    with pytest.raises(UsageError, match="with macvlan_mode=passthru it is that of eth0"):
        lab.guest(**on(NetworkAttachment("lan", mac_address="02:00:00:00:00:05")))
    server = serve("tcp", 7000)
    try:
        with outside.inside():
            assert reachable("tcp", outside.host_address, 7000)
        a = lab.guest(**on("lan"))
        assert a.plan.endpoints[0].mac_address == mac
        a.serve("tcp", 7000)
        with outside.inside():
            assert ask("tcp", a.address, 7000) is not None
            assert out_of_reach("tcp", outside.host_address, 7000)  # the host is off the LAN meanwhile
    finally:
        server.close()
    with pytest.raises(Conflict, match="another one is there, and macvlan_mode=passthru shares it with nobody"):
        lab.guest(**on("lan"))
    lab.end(a)
    lab.guest(**on("lan"))


def test_the_interface_is_as_planned(lab: Lab) -> None:
    lan(lab)
    guest = lab.guest(**on("lan"))
    (endpoint,) = guest.plan.endpoints
    assert (endpoint.driver, endpoint.parent, endpoint.bridge, endpoint.host_interface) == ("macvlan", "eth0", "", "")
    shown = guest.execute("ip", "-o", "addr", "show", "dev", "eth0")
    assert re.search(rf"inet {endpoint.address}/24 brd 198\.51\.100\.255", shown)
    assert "inet6" not in shown
    assert guest.execute("ip", "route").splitlines()[0].split()[:5] == ["default", "via", "198.51.100.1", "dev", "eth0"]
    assert endpoint.mac_address in guest.execute("ip", "link", "show", "eth0")
    # Nothing of it on the host: no bridge, no rule, no sysctl.
    with RouteSocket() as netlink:
        assert {link.name for link in netlink.links()} == {"lo", "eth0"}
    assert lab.store.journal_owners("network") == []
    assert "netbox" not in subprocess.run(["iptables-legacy-save"], capture_output=True, text=True, check=True, timeout=20).stdout


def test_its_address_is_announced(lab: Lab, outside: Neighbour) -> None:
    lan(lab)
    with outside.inside():
        ip("neigh replace 198.51.100.2 lladdr 02:00:00:00:00:99 dev lan0 nud stale")
        ip("neigh replace 198.51.100.3 lladdr 02:00:00:00:00:99 dev lan0 nud stale")
    guest = lab.guest(**on(NetworkAttachment("lan", ip="198.51.100.3")))
    guest.serve("tcp", 7000)
    mac = guest.plan.endpoints[0].mac_address
    # Nothing is sent to it meanwhile: only the announcement can replace the wrong MAC.
    wait_until(lambda: mac in outside.execute("ip", "neigh", "show", "198.51.100.3").stdout, "the announcement")
    with outside.inside():
        assert ask("tcp", "198.51.100.3", 7000) is not None


def test_addresses_that_are_somebodys_are_not_given_out(lab: Lab, outside: Neighbour) -> None:
    ip("addr add 198.51.100.3/24 dev eth0")
    ip("route add 192.0.2.0/24 via 198.51.100.4")
    lan(lab, aux_addresses=(("printer", "198.51.100.5"),))
    assert lab.guest(**on("lan")).address == "198.51.100.6"
    for address, whose in (("198.51.100.3", "this host's own, on eth0"), ("198.51.100.4", "a router of this host")):
        with pytest.raises(Conflict, match=f"the address {address} is taken: it is {whose}"):
            lab.guest(**on(NetworkAttachment("lan", ip=address)))
    with pytest.raises(UsageError, match="is the network's gateway"):
        lab.guest(**on(NetworkAttachment("lan", ip="198.51.100.1")))
    with pytest.raises(Conflict, match=r"the address 198.51.100.6 is taken by sandbox"):
        lab.guest(**on(NetworkAttachment("lan", ip="198.51.100.6")))


def test_the_gateway(lab: Lab) -> None:
    assert lab.define("a", driver="macvlan", parent="eth0", subnet="198.51.100.0/25", macvlan_mode="bridge").gateway == "198.51.100.1"
    assert lab.define("b", driver="macvlan", parent="eth0", subnet="203.0.113.0/24", macvlan_mode="bridge").gateway == "203.0.113.1"
    ip("route replace default via 198.51.100.254")
    lab.store.delete_network("a")
    assert lab.define("a", driver="macvlan", parent="eth0", subnet=LAN, macvlan_mode="bridge").gateway == "198.51.100.254"
    lab.store.delete_network("a")
    with pytest.raises(UsageError, match="is this host's own address, which its macvlan sandboxes cannot reach"):
        lan(lab, gateway="198.51.100.2")


def test_what_a_parent_must_be(lab: Lab, private_host: PrivateHost) -> None:
    with pytest.raises(NotFound, match=r"parent eth9: this host has no such link; there are eth0"):
        lan(lab, parent="eth9")
    with pytest.raises(NotFound, match=r"parent eth9\.7: this host has no such link"):
        lan(lab, parent="eth9.7")
    with pytest.raises(UsageError, match="parent lo: it is not an Ethernet link"):
        lan(lab, parent="lo")
    with pytest.raises(UsageError, match="-o mtu=9000 is more than that of eth0, 1500"):
        lan(lab, mtu=9000)
    lan(lab)
    ip("link set eth0 down")
    with pytest.raises(HostError, match="the parent eth0 of network lan is down; bring it up: ip link set eth0 up"):
        lab.guest(**on("lan"))
    ip("link set eth0 up")
    ip("link add br9 type bridge")
    ip("link set eth0 master br9")
    try:
        with pytest.raises(Conflict, match="it is a part of a bridge, a bond or another link"):
            lab.guest(**on("lan"))
    finally:
        ip("link del br9")


def test_a_wireless_parent_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/sys/class/net/eth0/phy80211" or there(path))
    with pytest.raises(UsageError, match="it is a wireless link, whose access point drops the frames of any MAC but its own"):
        lan(lab)


def test_subnets(lab: Lab) -> None:
    lan(lab, subnet="198.51.100.0/25")
    with pytest.raises(Conflict, match=r"collides with network lan \(198.51.100.0/25\)"):
        lan(lab, "more")
    ip("link add other type bridge")
    ip("link set other up")
    ip("route add 203.0.113.0/24 dev other")
    try:
        with pytest.raises(Conflict, match=r"the subnet 203.0.113.0/24 collides with route 203.0.113.0/24 dev other"):
            lan(lab, "more", subnet="203.0.113.0/24")
    finally:
        ip("link del other")
    lan(lab, "more", subnet="203.0.113.0/24")
    assert lab.guest(**on("lan")).address == "198.51.100.3"
    assert lab.guest(**on("more")).address == "203.0.113.2"  # several networks on one parent
    ip("link add other type bridge")
    ip("link set other up")
    ip("route add 203.0.113.0/25 dev other")
    try:
        with pytest.raises(Conflict, match="the subnet 203.0.113.0/24 of network more collides with route 203.0.113.0/25 dev other"):
            lab.guest(**on("more"))
    finally:
        ip("link del other")


def test_beside_a_bridge(lab: Lab, outside: Neighbour) -> None:
    """The bridge has the default route unless told otherwise, and the published port."""
    lan(lab, "a")
    both = lab.guest(networks=(NetworkAttachment("a"), NetworkAttachment("bridge")), ports=(PortSpec(80, 8080),))
    assert [endpoint.network for endpoint in both.plan.endpoints] == ["bridge", "a"]
    both.serve("tcp", 80)
    with outside.inside():
        ip("addr add 192.0.2.1/32 dev lo")
        ip("route add 198.51.100.2/32 dev lan0 src 192.0.2.1")  # a client that is not on the LAN itself
        assert ask("tcp", outside.host_address, 8080) == "192.0.2.1 80"
        assert ask("tcp", both.plan.endpoints[1].address, 80) == f"{outside.address} 80"
    assert both.ask("tcp", both.gateway, 8080) is not None
    with pytest.raises(UsageError, match="cannot publish a port: the sandbox's way out is the macvlan network a"):
        lab.guest(**on("a"), ports=(PortSpec(80, 8081),))
    with pytest.raises(UsageError, match="cannot publish a port: the sandbox's way out is the macvlan network a"):
        lab.guest(**on(NetworkAttachment("a", gw_priority=1), "bridge"), ports=(PortSpec(80, 8081),))
    first = lab.guest(**on(NetworkAttachment("a", gw_priority=1), "bridge"))
    assert "via 198.51.100.1 dev eth0" in first.execute("ip", "route", "show", "default")


def test_its_files(lab: Lab) -> None:
    lan(lab)
    lab.define("inner", internal=True)
    alone, beside = lab.guest(**on("lan")), lab.guest(**on("lan", "inner"))
    assert "nameserver 198.51.100.1\n" in lab.manager.files(alone.plan)["resolv.conf"]
    assert f"{alone.address}\t{alone.id[:12]}\n" in lab.manager.files(alone.plan)["hosts"]
    inner = next(endpoint for endpoint in beside.plan.endpoints if endpoint.internal)
    resolvers = [line.split()[1] for line in lab.manager.files(beside.plan)["resolv.conf"].splitlines() if line.startswith("nameserver")]
    assert resolvers == [inner.gateway, "198.51.100.1"]
    with pytest.raises(UsageError, match="network lan has no name service"):
        lab.guest(**on(NetworkAttachment("lan", aliases=("db",))))
    with pytest.raises(UsageError, match="host-gateway: this host is out of reach on a macvlan network"):
        lab.guest(**on("lan"), extra_hosts=(("up", "host-gateway"),))


def test_rates_and_impairments(lab: Lab) -> None:
    lan(lab)
    with pytest.raises(UsageError, match="--net-rate-in: network lan is a macvlan one"):
        lab.guest(**on("lan"), rate_in=125_000)
    guest = lab.guest(**on("lan"), rate_out=125_000)
    shaping.apply(guest.plan, guest.netns, 0, 125_000)
    assert "tbf 1: root" in guest.execute("tc", "qdisc", "show", "dev", "eth0")
    (command,) = shaping.describe(guest.plan, 0, 125_000)
    assert command.startswith(f"tc -n {guest.id[:12]} qdisc add dev eth0 root handle 1: tbf rate 1mbit")
    shaping.placed(guest.plan, [Impairment(IN, loss=5), Impairment(OUT, rate=1000)])
    for refused in (Impairment(OUT, loss=5), Impairment(IN, rate=1000), Impairment(IN, delay=1000)):
        with pytest.raises(UsageError, match="network lan is a macvlan one, whose links have no end on this host"):
            shaping.placed(guest.plan, [refused])


def test_a_link_in_a_namespace_that_lives_on_goes_with_its_sandbox(lab: Lab, outside: Neighbour) -> None:
    lan(lab)
    guest = lab.guest(**on(NetworkAttachment("lan", ip="198.51.100.9")))
    kept = os.dup(guest.netns)  # as another sandbox, or a connection that lingers, keeps it
    try:
        lab.end(guest)
        with linux.network_namespace(kept), RouteSocket() as netlink:
            assert {link.name for link in netlink.links()} == {"lo"}
        again = lab.guest(**on(NetworkAttachment("lan", ip="198.51.100.9")))  # with the same MAC, which the kernel would refuse twice
        again.serve("tcp", 7000)
        with outside.inside():
            assert ask("tcp", "198.51.100.9", 7000) is not None
    finally:
        os.close(kept)


def test_undoing_a_row_whose_number_was_given_to_another_namespace(lab: Lab) -> None:
    lan(lab)
    first = lab.guest(**on("lan"))
    (row,) = [row for row in first.journal.rows() if row.kind == "macvlan"]
    lab.end(first)
    second = lab.guest(**on("lan"))
    (other,) = [row for row in second.journal.rows() if row.kind == "macvlan"]
    second.journal.record("macvlan", **{**row.args, "netnsid": other.args["netnsid"]})
    stale = second.journal.rows()[-1]
    HANDLERS["macvlan"](lab.manager.undo_context(), stale.args)
    second.journal.forget([stale])
    assert second.execute("ip", "-o", "link", "show", "eth0")  # it is not the MAC of the row, so it stays


def test_a_vlan_on_demand(lab: Lab, outside: Neighbour) -> None:
    """The sandbox is on the VLAN with its tag: the neighbour's link of that VLAN answers, the untagged one is out of reach."""
    lan(lab, "tagged", parent="eth0.100", subnet="203.0.113.0/24")
    preview = lab.manager.preview("f" * 64, None, NetworkSpec(**on("tagged")), None)
    assert lab.manager.describe(preview)[:2] == [
        "ip link add link eth0 name eth0.100 type vlan id 100",
        "ip link set eth0.100 alias netbox addrgenmode none up",
    ]
    if has_vlans():
        guest = lab.guest(**on("tagged"))
        with RouteSocket() as netlink:
            made = netlink.link("eth0.100")
        assert made is not None
        assert (made.kind, made.alias, made.is_up) == ("vlan", "netbox", True)
        for line in ("link add link lan0 name lan0.100 type vlan id 100", "addr add 203.0.113.1/24 dev lan0.100", "link set lan0.100 up"):
            outside.execute("ip", *line.split())
        guest.serve("tcp", 7000)
        with outside.inside():
            assert ask("tcp", guest.address, 7000) == "203.0.113.1 7000"
        outside.execute("ip", "link", "del", "lan0.100")
        outside.execute("ip", "addr", "add", "203.0.113.1/24", "dev", "lan0")
        with outside.inside():
            assert out_of_reach("tcp", guest.address, 7000)
        lab.end(guest)
    else:
        with pytest.raises(Unsupported, match=r"parent eth0\.100: this kernel has no VLANs \(CONFIG_VLAN_8021Q\); modprobe 8021q"):
            lab.guest(**on("tagged"))
    lab.manager.release_idle(lab.replay)
    assert not parents.stands("eth0.100")
    assert lab.store.journal_owners("network") == []


def has_vlans() -> bool:
    made = subprocess.run(["ip", "link", "add", "link", "eth0", "name", "v9", "type", "vlan", "id", "9"], check=False, capture_output=True)
    if made.returncode == 0:
        ip("link del v9")
    return made.returncode == 0


def test_a_shared_vlan_goes_with_its_last_network(lab: Lab) -> None:
    """A link with our alias stands for the VLAN where the kernel has none: what is done with it is the same."""
    ip("link add eth0.100 type bridge")
    ip("link set eth0.100 alias netbox up")
    for name, subnet in (("one", "203.0.113.0/25"), ("two", "203.0.113.128/25")):
        lan(lab, name, parent="eth0.100", subnet=subnet)
    one, two = lab.guest(**on("one")), lab.guest(**on("two"))
    assert {owner for owner, _ in lab.store.journal_owners("network")} == {"network:one", "network:two"}
    lab.end(one)
    assert parents.stands("eth0.100")
    lab.end(two)
    assert not parents.stands("eth0.100")


def test_a_vlan_that_is_not_ours_stays(lab: Lab) -> None:
    ip("link add eth0.100 type bridge")
    ip("link set eth0.100 up")
    try:
        lan(lab, parent="eth0.100", subnet="203.0.113.0/24")
        lab.end(lab.guest(**on("lan")))
        assert parents.stands("eth0.100")
    finally:
        ip("link del eth0.100")


def test_traffic_is_counted_as_the_sandbox_sees_it(lab: Lab, outside: Neighbour) -> None:
    lan(lab)
    guest = lab.guest(**on("lan"))
    with outside.inside():
        server = serve("udp", 7000)
    try:
        before = lab.manager.statistics(guest.plan, sleeper(guest))
        for _ in range(10):
            assert guest.ask("udp", outside.address, 7000) is not None
        after = lab.manager.statistics(guest.plan, sleeper(guest))
        assert after.tx_packets - before.tx_packets >= 10
        assert after.rx_packets - before.rx_packets >= 10
    finally:
        server.close()
        for process in SLEEPERS:
            process.kill()
            process.wait()
        SLEEPERS.clear()


SLEEPERS: list[subprocess.Popen[bytes]] = []


def sleeper(guest: Guest) -> int:
    with guest.inside():
        SLEEPERS.append(subprocess.Popen(["sleep", "600"]))
    return SLEEPERS[-1].pid


def test_a_failure_of_the_kernel_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lan(lab)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", "the interface")

    with monkeypatch.context() as patch:
        patch.setattr("netbox.network.drivers.macvlan._configure", fail)
        with pytest.raises((NetboxError, CleanupError), match="cannot connect the sandbox to eth0"):
            lab.guest(**on("lan"))
    assert [lease for lease in lab.store.leases() if lease.sandbox_id] == []
    lab.guest(**on("lan"))
