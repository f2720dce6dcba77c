from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.engine import holding
from netbox.errors import NotFound, UsageError
from netbox.network import manager, modes
from netbox.network.modes import Facts, Request, networked
from netbox.network.plan import Endpoint, JoinTarget, NetworkPlan
from netbox.spec import NetworkSpec, PortSpec

ID = "ab" * 32
ENDPOINT = Endpoint("bridge", "netbox0", "10.9.0.0/20", "10.9.0.1", "10.9.0.2", "02:6e:0a:09:00:02", 1400, "eth0", "nbababababab")
TARGET = JoinTarget("cd" * 32, "web", "webhost", {"hosts": "/x/hosts", "hostname": "/x/hostname", "resolv.conf": "/x/resolv.conf"})
text = st.text(max_size=8)


def prepare(mode: str, hostname: str | None = None, **values: object) -> NetworkPlan:
    spec = NetworkSpec(mode=mode, **values)  # type: ignore[arg-type]
    target = TARGET if mode.startswith("container:") else None
    facts = Facts("big", (ENDPOINT,), spec.ports) if mode == "bridge" else Facts("big")
    return modes.mode(mode).prepare(Request(ID, hostname, spec, target), facts)


@given(
    st.lists(st.builds(PortSpec, st.integers(1, 9), st.integers(0, 9), st.integers(1, 9), text, text), max_size=3),
    st.lists(st.tuples(text, text), max_size=3),
    st.lists(text, max_size=3),
    st.dictionaries(text, text, max_size=3),
)
def test_a_plan_survives_the_trip_through_json(
    ports: list[PortSpec], hosts: list[tuple[str, str]], words: list[str], shared: dict[str, str]
) -> None:
    plan = NetworkPlan(
        ID, "bridge", "web", (ENDPOINT,), tuple(ports), tuple(words), tuple(words), tuple(words), tuple(hosts), shared, "x", True
    )
    assert NetworkPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_namespaces_and_addresses() -> None:
    assert [prepare(mode).namespace for mode in ("bridge", "none", "host", "container:web")] == ["private", "private", "host", "joined"]
    assert [prepare(mode).address for mode in ("bridge", "none", "host", "container:web")] == ["10.9.0.2", "", "", ""]
    assert prepare("bridge").endpoint == ENDPOINT
    assert prepare("none").endpoint is None
    assert ENDPOINT.prefix_length == 20


@pytest.mark.parametrize(
    ("mode", "asked", "hostname"),
    [
        ("bridge", None, ID[:12]),
        ("bridge", "web", "web"),
        ("none", None, ID[:12]),
        ("host", None, "big"),
        ("host", "web", "web"),
        ("container:web", None, "webhost"),
    ],
)
def test_the_host_name_of_each_mode(mode: str, asked: str | None, hostname: str) -> None:
    assert prepare(mode, asked).hostname == hostname


def test_host_gateway_is_the_way_to_the_host() -> None:
    extra = (("host.internal", "host-gateway"), ("db", "10.9.0.9"))
    assert prepare("bridge", extra_hosts=extra).extra_hosts == (("host.internal", "10.9.0.1"), ("db", "10.9.0.9"))
    endpoints = (dataclasses.replace(ENDPOINT, gateway6="fd00:9::1"), dataclasses.replace(ENDPOINT, network="back", gateway="10.8.0.1"))
    request = Request(ID, None, NetworkSpec(extra_hosts=extra))
    planned = networked.prepare(request, Facts("big", endpoints))
    assert planned.extra_hosts == (("host.internal", "10.9.0.1"), ("host.internal", "fd00:9::1"), ("db", "10.9.0.9"))
    assert prepare("host", extra_hosts=extra).extra_hosts == (("host.internal", "127.0.0.1"), ("db", "10.9.0.9"))


def test_published_ports_follow_the_families_of_the_networks() -> None:
    six = dataclasses.replace(ENDPOINT, network="six", subnet6="fd00:9::/64", gateway6="fd00:9::1", address6="fd00:9::2")
    published = (PortSpec(80, 8080), PortSpec(81, 8081), PortSpec(82, 8081, host_ip="::"), PortSpec(83, 8083, host_ip="127.0.0.1"))
    plain = NetworkPlan(ID, "bridge", "web", (ENDPOINT,), published)
    assert holding.in_families(plain) == plain
    both = holding.in_families(dataclasses.replace(plain, endpoints=(ENDPOINT, six)))
    assert [port.with_ipv6 for port in both.ports] == [True, False, False, False]  # 8081 leads elsewhere for IPv6
    assert holding.of_ipv6(both, plain) == [PortSpec(80, 8080, host_ip="::")]
    assert holding.of_ipv6(plain, both) == []
    assert holding.in_families(dataclasses.replace(both, endpoints=(ENDPOINT,))) == plain
    # A LAN or an internal network is none to publish on.
    for apart in (dataclasses.replace(six, driver="macvlan"), dataclasses.replace(six, internal=True)):
        assert holding.in_families(dataclasses.replace(plain, endpoints=(ENDPOINT, apart))).ports == published


def test_a_joining_sandbox_shares_the_targets_files() -> None:
    plan = prepare("container:web")
    assert plan.shared_files == TARGET.files
    assert plan.target_id == TARGET.sandbox_id


@pytest.mark.parametrize(
    ("mode", "values", "hostname", "option"),
    [
        ("host", {"ports": (PortSpec(80, 80),)}, None, "--publish"),
        ("host", {"ip": "10.9.0.5"}, None, "--ip"),
        ("host", {"mac_address": "02:00:00:00:00:01"}, None, "--mac-address"),
        ("none", {"ports": (PortSpec(80, 80),)}, None, "--publish"),
        ("none", {"ip": "10.9.0.5"}, None, "--ip"),
        ("none", {"extra_hosts": (("h", "host-gateway"),)}, None, "host-gateway"),
        ("container:web", {"ports": (PortSpec(80, 80),)}, None, "--publish"),
        ("container:web", {"dns": ("192.0.2.1",)}, None, "--dns"),
        ("container:web", {"dns_search": ("lan",)}, None, "--dns-search"),
        ("container:web", {"dns_options": ("ndots:1",)}, None, "--dns-option"),
        ("container:web", {"extra_hosts": (("h", "192.0.2.1"),)}, None, "--add-host"),
        ("container:web", {}, "other", "--hostname"),
        ("container:web", {"mac_address": "02:00:00:00:00:01"}, None, "--mac-address"),
        ("bridge", {"mac_address": "01:00:00:00:00:01"}, None, "multicast"),
        ("bridge", {"ip": "10.9.0"}, None, "--ip 10.9.0"),
        ("container:", {}, None, "container"),
        ("container", {}, None, "container"),
    ],
)
def test_what_makes_no_sense_in_a_mode_is_refused(mode: str, values: dict[str, object], hostname: str | None, option: str) -> None:
    with pytest.raises(UsageError, match=option) as caught:
        manager.check(NetworkSpec(mode=mode, **values), hostname)  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize("mode", ["bridge", "host", "none", "container:web"])
def test_what_makes_sense_is_let_through(mode: str) -> None:
    manager.check(NetworkSpec(mode=mode), None)


@pytest.mark.parametrize("mode", ["frontend", "bridge:x", "host:", "", "Bridge"])
def test_an_unknown_network(mode: str) -> None:
    with pytest.raises(NotFound, match="no such network"):
        manager.check(NetworkSpec(mode=mode), None)


def test_a_joining_sandbox_needs_a_target() -> None:
    with pytest.raises(UsageError, match="no sandbox to join"):
        modes.mode("container:web").prepare(Request(ID, None, NetworkSpec(mode="container:web")), Facts("big"))


def test_the_default_route_goes_by_priority_then_by_name() -> None:
    def way(*given: tuple[str, int, bool]) -> str | None:
        endpoints = [dataclasses.replace(ENDPOINT, network=name, gw_priority=priority, internal=inner) for name, priority, inner in given]
        plan = NetworkPlan(ID, "bridge", "web", tuple(sorted(endpoints, key=lambda endpoint: endpoint.precedence)))
        return plan.way_out.network if plan.way_out else None

    assert way(("front", 0, False), ("back", 0, False)) == "back"
    assert way(("front", 1, False), ("back", 0, False)) == "front"
    assert way(("front", 0, False), ("back", -1, False)) == "front"
    assert way(("front", 0, False), ("back", 9, True)) == "front"  # an internal network has no way out
    assert way(("back", 9, True)) is None
    assert way() is None


def test_interfaces_are_in_the_order_of_their_numbers() -> None:
    given = ("eth10", "eth2", "eth0")
    plan = NetworkPlan(ID, "bridge", "web", tuple(dataclasses.replace(ENDPOINT, interface=name) for name in given))
    assert [endpoint.interface for endpoint in plan.interfaces] == ["eth0", "eth2", "eth10"]
