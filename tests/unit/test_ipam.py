from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import Conflict, HostError, UsageError
from netbox.network import ipam
from netbox.network.ipam import Subnet

SMALL = Subnet.parse("10.9.8.0/29")  # 1 is the gateway, 2 to 6 are for sandboxes
GATEWAY = "10.9.8.1"

networks = st.builds(
    lambda base, length: ipaddress.IPv4Network((base, length), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)


@given(networks, networks)
def test_subnets_agree_with_the_standard_library(one: ipaddress.IPv4Network, two: ipaddress.IPv4Network) -> None:
    mine, other = Subnet.parse(str(one)), Subnet.parse(str(two))
    assert str(mine) == str(one)
    assert ipam.dotted(mine.last) == str(one.broadcast_address)
    assert mine.overlaps(other) == one.overlaps(two)
    assert mine.contains(other.base) == (two.network_address in one)


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.256/8", "::1/129", "fd00:::/64", "10.0.0.0/x"])
def test_a_malformed_subnet_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Subnet.parse(text)


@given(st.lists(networks.filter(lambda network: network.prefixlen >= 9), max_size=12))
def test_the_chosen_subnet_overlaps_nothing(occupied: list[ipaddress.IPv4Network]) -> None:
    subnets = [Subnet.parse(str(network)) for network in occupied]
    try:
        chosen = ipam.choose_subnet(subnets)
    except HostError:
        assert all(any(pool.overlaps(subnet) for subnet in subnets) for pool in ipam.POOLS)
        return
    assert chosen.length == 20
    assert not any(chosen.overlaps(subnet) for subnet in subnets)


def test_the_first_free_subnet_of_the_first_pool_is_chosen() -> None:
    assert str(ipam.choose_subnet([])) == "10.210.0.0/20"
    assert str(ipam.choose_subnet([Subnet.parse("10.210.0.0/19")])) == "10.210.32.0/20"
    assert str(ipam.choose_subnet([Subnet.parse("10.0.0.0/8")])) == "172.16.0.0/20"


def test_default_routes_and_their_halves_do_not_count() -> None:
    routes = [Subnet.parse(text) for text in ("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1")]
    assert str(ipam.choose_subnet(routes)) == "10.210.0.0/20"


def test_no_subnet_left() -> None:
    with pytest.raises(HostError, match="overlaps"):
        ipam.choose_subnet([Subnet.parse(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")])


def test_unused_addresses_come_first_and_in_order() -> None:
    assert ipam.next_address(SMALL, GATEWAY, (), ()) == "10.9.8.2"
    assert ipam.next_address(SMALL, GATEWAY, {"10.9.8.2", "10.9.8.3"}, ()) == "10.9.8.4"
    assert ipam.next_address(SMALL, GATEWAY, {"10.9.8.2"}, ["10.9.8.3"]) == "10.9.8.4"


def test_the_last_freed_address_comes_back_last() -> None:
    released = ["10.9.8.5", "10.9.8.2", "10.9.8.6"]
    taken = {"10.9.8.3", "10.9.8.4"}
    assert ipam.next_address(SMALL, GATEWAY, taken, released) == "10.9.8.5"


def test_an_address_of_another_subnet_does_not_come_back() -> None:
    taken = {"10.9.8.3", "10.9.8.4", "10.9.8.5", "10.9.8.2"}
    assert ipam.next_address(SMALL, GATEWAY, taken, ["192.0.2.7", GATEWAY, "10.9.8.7", "10.9.8.6"]) == "10.9.8.6"


def test_a_full_subnet() -> None:
    with pytest.raises(Conflict, match=r"10\.9\.8\.0/29 has no free address"):
        ipam.next_address(SMALL, GATEWAY, {f"10.9.8.{n}" for n in range(2, 7)}, ())


@given(st.lists(st.sampled_from(["take", "free"]), max_size=40), st.randoms(use_true_random=False))
def test_an_address_is_never_given_out_twice(steps: list[str], random: object) -> None:
    taken: list[str] = []
    released: list[str] = []
    for step in steps:
        if step == "take":
            if len(taken) == 5:
                continue
            address = ipam.next_address(SMALL, GATEWAY, set(taken), released)
            assert address not in taken
            assert SMALL.base < ipam.number(address) < SMALL.last
            assert address != GATEWAY
            if address in released:
                assert released[0] == address  # the longest free
                released.remove(address)
            taken.append(address)
        elif taken:
            address = taken.pop(random.randrange(len(taken)))  # type: ignore[attr-defined]
            released.append(address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.9.9.1", "outside"),
        ("10.9.8.0", "network itself"),
        ("10.9.8.7", "broadcast"),
        ("10.9.8.1", "gateway"),
        ("10.9.8", "not an IPv4 address"),
        ("fe80::1", "not an IPv4 address"),
    ],
)
def test_an_address_that_a_sandbox_cannot_have(address: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ipam.check_address(SMALL, GATEWAY, address)


def test_an_address_that_a_sandbox_can_have() -> None:
    ipam.check_address(SMALL, GATEWAY, "10.9.8.2")


@given(st.integers(0, 2**32 - 1))
def test_the_mac_follows_from_the_address(value: int) -> None:
    mac = ipam.mac_for(ipam.dotted(value))
    assert mac.startswith("02:6e:")
    assert int(mac[6:].replace(":", ""), 16) == value
    assert ipam.check_mac(mac) == mac


@pytest.mark.parametrize(
    ("mac", "why"),
    [
        ("01:00:5e:00:00:01", "multicast"),
        ("ff:ff:ff:ff:ff:ff", "multicast"),
        ("00:00:00:00:00:00", "zero"),
        ("02:42:ac:11:00", "not a MAC"),
        ("02:42:ac:11:00:02:03", "not a MAC"),
        ("02:42:ac:11:00:gg", "not a MAC"),
        ("0242.ac11.0002", "not a MAC"),
        ("", "not a MAC"),
    ],
)
def test_a_mac_that_a_sandbox_cannot_have(mac: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ipam.check_mac(mac)


def test_a_mac_is_written_in_one_way() -> None:
    assert ipam.check_mac("02-42-AC-11-00-02") == "02:42:ac:11:00:02"


def test_ranges_and_reserved_addresses() -> None:
    subnet, within = Subnet.parse("10.9.8.0/24"), Subnet.parse("10.9.8.252/30")
    reserved = {"10.9.8.253": "router"}
    assert ipam.next_address(subnet, "10.9.8.1", (), (), reserved=reserved) == "10.9.8.2"
    assert ipam.next_address(subnet, "10.9.8.1", (), (), reserved=reserved, within=within) == "10.9.8.252"
    assert ipam.next_address(subnet, "10.9.8.1", ["10.9.8.252"], (), reserved=reserved, within=within) == "10.9.8.254"
    # What was freed outside of the range, or is reserved since, does not come back.
    freed = ["10.9.8.7", "10.9.8.253", "10.9.8.254"]
    assert ipam.next_address(subnet, "10.9.8.1", ["10.9.8.252"], freed, reserved=reserved, within=within) == "10.9.8.254"
    with pytest.raises(Conflict, match=r"the range 10\.9\.8\.252/30 of the network 10\.9\.8\.0/24 has no free address left: 2 are taken"):
        ipam.next_address(subnet, "10.9.8.1", ["10.9.8.252", "10.9.8.254"], (), reserved=reserved, within=within)
    with pytest.raises(UsageError, match=r"reserved for router \(--aux-address\)"):
        ipam.check_address(subnet, "10.9.8.1", "10.9.8.253", reserved)


def test_user_defined_networks_leave_the_default_one_its_place() -> None:
    first = ipam.choose_subnet([], ipam.USER_POOLS, ipam.USER_PREFIX_LENGTH)
    assert str(first) == "10.211.0.0/24"
    assert not first.overlaps(ipam.choose_subnet([]))
    assert str(ipam.choose_subnet([first], ipam.USER_POOLS, ipam.USER_PREFIX_LENGTH)) == "10.211.1.0/24"
    assert set(ipam.POOLS) <= set(ipam.USER_POOLS)


# -- IPv6 ----------------------------------------------------------------------------------------------------------------------------------

ULA = Subnet.parse("fd00:1::/64")
networks6 = st.builds(
    lambda base, length: ipaddress.IPv6Network((base, length), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)
)


@given(networks6, networks6, networks)
def test_subnets_of_ipv6_too(one: ipaddress.IPv6Network, two: ipaddress.IPv6Network, other: ipaddress.IPv4Network) -> None:
    mine = Subnet.parse(str(one))
    assert ipaddress.IPv6Network(str(mine)) == one
    assert mine.last == int(one.broadcast_address)
    assert mine.overlaps(Subnet.parse(str(two))) == one.overlaps(two)
    assert not mine.overlaps(Subnet.parse(str(other)))


@given(st.text(max_size=40), st.lists(networks6.filter(lambda network: network.prefixlen >= 50), max_size=12))
def test_a_host_has_a_prefix_of_its_own(secret: str, occupied: list[ipaddress.IPv6Network]) -> None:
    prefix = ipam.ula_prefix(secret)
    assert ipaddress.IPv6Network(str(prefix)).subnet_of(ipaddress.IPv6Network("fd00::/8"))
    assert ipam.ula_prefix(secret) == prefix
    taken = [Subnet.parse(str(network)) for network in occupied]
    first = ipam.choose_subnet(taken, [prefix], 64)
    second = ipam.choose_subnet([*taken, first], [prefix], 64)
    assert first.length == 64
    assert prefix.contains(first.base)
    assert not first.overlaps(second)
    assert all(not first.overlaps(other) for other in taken)


def test_ways_out_of_ipv6_are_no_collision() -> None:
    for text in ("::/0", "::/1", "2000::/3", "fc00::/7"):
        assert ipam.collision(ULA, [Subnet.parse(text)]) is None
    assert ipam.collision(ULA, [Subnet.parse("fd00::/8")]) is not None


def test_the_ipv6_address_follows_the_other_one() -> None:
    gateway = ipam.gateway(ULA)
    assert gateway == "fd00:1::1"
    assert ipam.next_address6(ULA, gateway, 5, ()) == "fd00:1::5"
    assert ipam.next_address6(ULA, gateway, 5, {"fd00:1::5"}) == "fd00:1::1:0:0"
    assert ipam.next_address6(ULA, gateway, 5, (), reserved={"fd00:1::5", "fd00:1::1:0:0"}) == "fd00:1::1:0:1"
    small = Subnet.parse("fd00:2::/125")
    assert ipam.next_address6(small, "fd00:2::1", 9, ()) == "fd00:2::2"
    with pytest.raises(Conflict, match="no free address"):
        ipam.next_address6(small, "fd00:2::1", 9, {f"fd00:2::{n}" for n in range(2, 8)})


def test_ipv6_addresses_of_a_range() -> None:
    within = Subnet.parse("fd00:1::c0/126")

    def next_one(offset: int, *taken: str) -> str:
        return ipam.next_address6(ULA, "fd00:1::1", offset, taken, within=within, reserved={"fd00:1::c0"})

    assert next_one(3) == "fd00:1::c3"
    assert next_one(9) == next_one(0) == "fd00:1::c1"
    assert next_one(1, "fd00:1::c1") == "fd00:1::c2"
    with pytest.raises(Conflict, match=r"the range fd00:1::c0/126 of the network fd00:1::/64 has no free address left: 3 are taken"):
        next_one(0, "fd00:1::c1", "fd00:1::c2", "fd00:1::c3")
    first = Subnet.parse("fd00:1::/112")  # whose first address is that of every router
    assert ipam.next_address6(ULA, "fd00:1::1", 0, (), within=first) == "fd00:1::2"


@given(st.lists(st.integers(2, 250), max_size=60), st.integers(64, 122))
def test_an_ipv6_address_is_never_given_out_twice(offsets: list[int], length: int) -> None:
    subnet = Subnet.parse(f"fd00:3::/{length}")
    taken: set[str] = set()
    for offset in offsets:
        address = ipam.next_address6(subnet, "fd00:3::1", offset, taken)
        assert address not in taken
        assert address != "fd00:3::1"
        assert subnet.base < ipam.number(address) <= subnet.last
        taken.add(address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("fd00:2::5", "outside"),
        ("fd00:1::", "every router"),
        ("fd00:1::1", "gateway"),
        ("fd00:1::9", "reserved for router"),
        ("10.0.0.1", "not an IPv6 address"),
        ("fd00:1:", "not an IPv6 address"),
    ],
)
def test_an_ipv6_address_that_a_sandbox_cannot_have(address: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"--ip6 .*{why}"):
        ipam.check_address(ULA, "fd00:1::1", address, {"fd00:1::9": "router"})
    ipam.check_address(ULA, "fd00:1::1", "fd00:1::5")
