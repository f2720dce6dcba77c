from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import HostError
from netbox.network.nameservice import files, forwarder, hooks
from netbox.network.nameservice.server import Resolvers
from netbox.network.nameservice.zone import Member, Served
from netbox.network.resolve import HostFiles
from netbox.settings import Settings

SERVED = Served("front", "nb-1", ("10.1.0.1", "fd00::1"), ("10.1.0.0/24",), internal=True)
texts = st.text(max_size=12)
members = st.builds(
    Member,
    texts,
    texts,
    st.lists(texts, max_size=3).map(tuple),
    st.lists(st.ip_addresses().map(str), max_size=3).map(tuple),
    st.lists(texts, max_size=2).map(tuple),
)


@given(st.lists(members, max_size=5))
def test_a_file_keeps_everything(rows: list[Member]) -> None:
    network = files.decode(files.encode(SERVED, rows))
    assert network.served == SERVED
    assert sorted(network.members) == sorted(rows)


@given(st.lists(members, max_size=5))
def test_the_order_of_the_rows_changes_no_byte(rows: list[Member]) -> None:
    assert files.encode(SERVED, rows) == files.encode(SERVED, list(reversed(rows)))


def test_a_reader_sees_every_change(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    files.make(run)
    reader = files.Reader(run)
    assert reader.zones().networks == {}
    for number in range(200):  # faster than time stamps tick
        files.write(run, SERVED, [Member("a", f"box{number}")])
        assert f"box{number}" in reader.zones().networks["front"].names
        assert reader.zones().networks["front"].members[0].name == f"box{number}"
    files.delete(run, "front")
    assert reader.zones().networks == {}
    files.remove(run)
    assert reader.zones().networks == {}
    assert not os.path.exists(files.directory(run))


def test_settled_files_are_not_read_again(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    files.make(run)
    files.write(run, SERVED, [Member("a", "web")])
    path = Path(files.directory(run), "networks")
    os.utime(path, (1, 1))
    reader = files.Reader(run)
    first = reader.zones()
    assert reader.zones() is first
    files.write(run, SERVED._replace(name="back"), [])
    os.utime(path, (2, 2))
    assert set(reader.zones().networks) == {"front", "back"}
    assert reader.zones().networks["front"] is first.networks["front"]  # what has not changed is kept


class NoMembers:
    def network_members(self, network: str) -> Sequence[Member]:
        return [Member("a", "web")]


def test_without_a_network_nothing_is_made(tmp_path: Path) -> None:
    settings = Settings(run=str(tmp_path / "run"))
    hooks.zone_changed(settings, "front", NoMembers())
    hooks.network_down(settings, "front")
    assert not hooks.ensure_running(settings)
    assert not hooks.stop_if_idle(settings)
    assert not hooks.is_running(settings)
    assert not os.path.exists(settings.run)


def test_the_zone_changes_without_the_process(tmp_path: Path) -> None:
    settings = Settings(run=str(tmp_path / "run"))
    files.make(settings.run)
    files.write(settings.run, SERVED, [])
    hooks.zone_changed(settings, "front", NoMembers())
    network = files.read(settings.run, "front")
    assert network is not None
    assert network.served == SERVED
    assert network.members == (Member("a", "web"),)
    assert not hooks.is_running(settings)


HOST = HostFiles(resolv_conf="nameserver 192.0.2.1\nsearch example.org\noptions edns0\n")


@pytest.mark.parametrize(
    ("search", "options", "expected"),
    [
        ((), (), "search front.netbox.internal back.netbox.internal example.org\noptions edns0\n"),
        (("lan",), ("ndots:2",), "search front.netbox.internal back.netbox.internal lan\noptions ndots:2\n"),
        ((".",), (), "options edns0\n"),
    ],
)
def test_resolv_conf(search: tuple[str, ...], options: tuple[str, ...], expected: str) -> None:
    text = hooks.resolv_conf(HOST, ["10.1.0.1", "10.2.0.1"], ["Front", "back"], search, options)
    assert text == "nameserver 10.1.0.1\nnameserver 10.2.0.1\n" + expected


def test_at_most_three_nameservers_count() -> None:
    assert hooks.resolv_conf(HostFiles(), [f"10.0.0.{number}" for number in range(5)], [], [], []).count("nameserver") == 3


def test_the_resolvers_of_the_host() -> None:
    text = "# nameserver 192.0.2.9\nnameserver 127.0.0.53\nnameserver\nsearch a\nnameserver fe80::1%eth0\nnameserver 10.1.0.1\n"
    assert forwarder.nameservers(text, {"10.1.0.1"}) == ("127.0.0.53", "fe80::1%eth0")
    assert forwarder.nameservers("") == ("127.0.0.1",)
    assert forwarder.nameservers("nameserver 10.1.0.1", {"10.1.0.1"}) == ()


def test_a_changed_resolv_conf_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    resolvers = Resolvers(str(path))
    assert resolvers.current(set()) == ("127.0.0.1",)
    path.write_text("nameserver 192.0.2.1\n")
    assert resolvers.current(set()) == ("192.0.2.1",)
    path.write_text("nameserver 192.0.2.22\n")
    assert resolvers.current(set()) == ("192.0.2.22",)


def test_a_file_is_json() -> None:
    assert json.loads(files.encode(SERVED, [])) == {
        "served": ["front", "nb-1", ["10.1.0.1", "fd00::1"], ["10.1.0.0/24"], True, 53],
        "members": [],
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"served": ["a", "b"], "members": []}',
        files.encode(SERVED, [Member("a", "web", (), ("nonsense",))]),
        files.encode(SERVED._replace(subnets=("10.1.0.0",)), []),
    ],
)
def test_a_file_of_another_version_harms_no_other_network(data: bytes, tmp_path: Path) -> None:
    settings = Settings(run=str(tmp_path / "run"))
    files.make(settings.run)
    files.write(settings.run, SERVED._replace(name="good"), [])
    Path(files.directory(settings.run), "networks", "front").write_bytes(data)
    assert set(files.Reader(settings.run).zones().networks) == {"good"}
    with pytest.raises(HostError, match="cannot read the names of network front"):
        hooks.zone_changed(settings, "front", NoMembers())


class Row(NamedTuple):
    sandbox_id: str
    name: str
    aliases: tuple[str, ...]
    address: str
    address6: str = ""
    state: str = "running"


def test_members_out_of_the_state_database() -> None:
    rows = {"front": [Row("a", "web", ("www",), "10.1.0.2", "fd00::2"), Row("b", "early", (), "")]}
    stored = hooks.StoredMembers(
        lambda network: rows.get(network, []),
        lambda sandbox_id: ["192.0.2.9"] if sandbox_id == "a" else [],
    )
    assert stored.network_members("front") == [Member("a", "web", ("www",), ("10.1.0.2", "fd00::2"), ("192.0.2.9",)), Member("b", "early")]
    assert stored.network_members("back") == []
    assert hooks.StoredMembers(lambda network: rows[network]).network_members("front")[0].dns == ()
