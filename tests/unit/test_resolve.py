from __future__ import annotations

import dataclasses

import pytest

from netbox.network import resolve
from netbox.network.plan import Endpoint, NetworkPlan
from netbox.network.resolve import HostFiles

HOST = HostFiles(
    hosts="127.0.0.1 localhost\n192.0.2.9 nas",
    hostname="big",
    resolv_conf="# made by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org lan\noptions ndots:2 edns0\n",
)
ENDPOINT = Endpoint("bridge", "netbox0", "10.9.0.0/20", "10.9.0.1", "10.9.0.2", "02:6e:0a:09:00:02", 1500, "eth0", "nb1")

Asked = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def plan(mode: str = "bridge", **values: object) -> NetworkPlan:
    defaults: dict[str, object] = {"endpoints": (ENDPOINT,) if mode == "bridge" else ()}
    return NetworkPlan("1" * 64, mode, "web", **{**defaults, **values})  # type: ignore[arg-type]


def test_hosts_names_the_sandbox_by_its_address() -> None:
    text = resolve.private_files(plan(extra_hosts=(("db", "10.9.0.7"),)), HOST)["hosts"]
    assert text == "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.9.0.7\tdb\n10.9.0.2\tweb\n"


def test_a_name_with_a_domain_stands_with_and_without_it() -> None:
    assert "10.9.0.2\tweb.example.org web\n" in resolve.hosts("web.example.org", ["10.9.0.2"], ())


def test_mode_none_has_loopback_only() -> None:
    files = resolve.private_files(plan("none"), HOST)
    assert files["hosts"].splitlines()[-1] == "127.0.0.1\tweb"
    assert files["resolv.conf"] == ""
    assert files["hostname"] == "web\n"
    assert resolve.private_files(plan("none", dns=("127.0.0.1",)), HOST)["resolv.conf"] == "nameserver 127.0.0.1\n"


def test_the_resolvers_of_the_host_that_can_be_reached() -> None:
    assert resolve.resolv_conf(HOST, (), (), ()) == "nameserver 192.0.2.53\nsearch example.org lan\noptions ndots:2 edns0\n"


def test_resolvers_with_ipv6_are_for_those_who_have_a_way_out_by_it() -> None:
    host = HOST._replace(resolv_conf="nameserver fe80::1%eth0\nnameserver FE80::1\nnameserver ::1\nnameserver ::\n" + HOST.resolv_conf)
    six = dataclasses.replace(ENDPOINT, subnet6="fd00:9::/64", gateway6="fd00:9::1", address6="fd00:9::2")
    inner = dataclasses.replace(six, internal=True)
    found = [resolve.nameservers(resolve.private_files(plan(endpoints=its), host)["resolv.conf"]) for its in ((six,), (ENDPOINT, inner))]
    assert found == [["192.0.2.53", "2001:db8::53"], ["192.0.2.53"]]


def test_systemd_resolved_hides_the_real_resolvers() -> None:
    host = HostFiles(resolv_conf="nameserver 127.0.0.53\noptions edns0\nsearch .\n", upstream="nameserver 192.0.2.1\nsearch home\n")
    assert resolve.resolv_conf(host, (), (), ()) == "nameserver 192.0.2.1\nsearch home\n"


def test_loopback_resolvers_are_left_out_and_a_comment_says_so() -> None:
    host = HostFiles(resolv_conf="nameserver 127.0.0.1\nnameserver ::1\nnameserver 0.0.0.0\n")
    text = resolve.resolv_conf(host, (), (), ())
    assert text.startswith("# ")
    assert "--dns" in text
    assert resolve.nameservers(text) == []
    assert resolve.resolv_conf(host, ("192.0.2.1",), (), ()) == "nameserver 192.0.2.1\n"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((("8.8.4.4", "9.9.9.9"), (), ()), "nameserver 8.8.4.4\nnameserver 9.9.9.9\nsearch example.org lan\noptions ndots:2 edns0\n"),
        (((), ("corp",), ()), "nameserver 192.0.2.53\nsearch corp\noptions ndots:2 edns0\n"),
        (((), (".",), ()), "nameserver 192.0.2.53\noptions ndots:2 edns0\n"),
        (((), (), ("timeout:1",)), "nameserver 192.0.2.53\nsearch example.org lan\noptions timeout:1\n"),
    ],
)
def test_what_was_asked_for_takes_the_place_of_the_hosts(asked: Asked, expected: str) -> None:
    dns, search, options = asked
    assert resolve.resolv_conf(HOST, dns, search, options) == expected


def test_the_last_search_line_counts() -> None:
    host = HostFiles(resolv_conf="domain one\nsearch two three\n; comment\nnameserver\nnameserver 192.0.2.1\n")
    assert resolve.resolv_conf(host, (), (), ()) == "nameserver 192.0.2.1\nsearch two three\n"


def test_mode_host_has_the_hosts_own_files() -> None:
    files = resolve.host_mode_files(plan("host"), HOST)
    assert files == {"hosts": HOST.hosts + "\n", "hostname": "web\n", "resolv.conf": HOST.resolv_conf}
    files = resolve.host_mode_files(plan("host", extra_hosts=(("db", "192.0.2.8"),), dns=("127.0.0.1",)), HOST)
    assert files["hosts"] == HOST.hosts + "\n192.0.2.8\tdb\n"
    assert files["resolv.conf"] == "nameserver 127.0.0.1\nsearch example.org lan\noptions ndots:2 edns0\n"
    kept = resolve.host_mode_files(plan("host", dns_search=("corp",)), HOST)["resolv.conf"]
    assert kept.startswith("nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch corp\n")  # the host reaches them all


def test_the_addresses_of_a_running_sandbox_change() -> None:
    text = resolve.hosts("web.example", ["10.9.0.2"], [("db", "10.9.0.9")]) + "192.0.2.1 mine"
    renewed = resolve.renewed_hosts(text, "web.example", ["10.9.0.2", "10.8.0.2"])
    assert renewed.splitlines()[2:] == ["10.9.0.9\tdb", "192.0.2.1 mine", "10.9.0.2\tweb.example web", "10.8.0.2\tweb.example web"]
    assert resolve.renewed_hosts(renewed, "web.example", ["10.9.0.2", "10.8.0.2"]) == renewed
