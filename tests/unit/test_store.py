"""The store on a real sqlite file: names, leases, ports, the journal, versions and damage."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox import names
from netbox.errors import Conflict, NotFound, StateError
from netbox.settings import Settings
from netbox.spec import BindMount, NetworkSpec, PortSpec, SandboxSpec, TmpfsMount
from netbox.state import database
from netbox.state.rows import NetworkRow, SandboxRow
from netbox.state.store import EVENTS_KEPT, Store

BOOT = "boot-1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings(root=str(tmp_path / "root"), run=str(tmp_path / "run")))


def sandbox(sandbox_id: str, name: str) -> SandboxRow:
    return SandboxRow(id=sandbox_id, name=name, spec={}, image={}, state="created", created_at=1.0)


def test_a_sandbox_is_found_by_id_name_and_prefix(store: Store) -> None:
    store.insert_sandbox(sandbox("ab" * 32, "web"))
    store.insert_sandbox(sandbox("ac" * 32, "db"))
    assert store.find_sandbox("ab" * 32).name == "web"
    assert store.find_sandbox("db").id == "ac" * 32
    assert store.find_sandbox("aba").name == "web"


def test_a_name_goes_before_a_prefix(store: Store) -> None:
    store.insert_sandbox(sandbox("ab" * 32, "web"))
    store.insert_sandbox(sandbox("cd" * 32, "ab"))
    assert store.find_sandbox("ab").id == "cd" * 32


def test_an_ambiguous_prefix_names_the_candidates(store: Store) -> None:
    store.insert_sandbox(sandbox("ab" * 32, "web"))
    store.insert_sandbox(sandbox("ac" * 32, "db"))
    with pytest.raises(Conflict, match="web.*db|db.*web"):
        store.find_sandbox("a")


@pytest.mark.parametrize("reference", ["nothing", "", "ffff", "a*", "%", "../x"])
def test_an_unknown_reference_is_not_found(store: Store, reference: str) -> None:
    store.insert_sandbox(sandbox("ab" * 32, "web"))
    with pytest.raises(NotFound, match="no such sandbox"):
        store.find_sandbox(reference)


def test_two_sandboxes_cannot_have_one_name(store: Store) -> None:
    store.insert_sandbox(sandbox("ab" * 32, "web"))
    with pytest.raises(Conflict, match="web is taken by sandbox abababababab"):
        store.insert_sandbox(sandbox("ac" * 32, "web"))
    store.insert_sandbox(sandbox("ad" * 32, "db"))
    with pytest.raises(Conflict, match="taken"):
        store.update_sandbox("ad" * 32, name="web")


def test_only_columns_can_be_updated(store: Store) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        store.update_sandbox("ab" * 32, nonsense=1)


def first_free(taken: dict[str, str], released: list[str]) -> tuple[str, str | None, str]:
    address = next(f"10.0.0.{n}" for n in range(2, 250) if f"10.0.0.{n}" not in taken)
    return address, None, ""


def test_threads_never_get_the_same_address(store: Store) -> None:
    got: list[str] = []

    def allocate(number: int) -> None:
        for i in range(10):
            got.append(store.allocate_lease("bridge", f"sandbox-{number}-{i}", BOOT, first_free))
        store.close()

    threads = [threading.Thread(target=allocate, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 60


def test_released_addresses_are_offered_oldest_first(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.allocate_lease("bridge", name, BOOT, first_free)
    store.release_leases("b")
    store.release_leases("a")
    offered: list[str] = []

    def look(taken: dict[str, str], released: list[str]) -> tuple[str, str | None, str]:
        offered.extend(released)
        return released[0], None, ""

    assert store.allocate_lease("bridge", "d", BOOT, look) == "10.0.0.3"
    assert offered == ["10.0.0.3", "10.0.0.2"]


def test_leases_of_an_earlier_boot_are_void(store: Store) -> None:
    store.allocate_lease("bridge", "old", "boot-0", first_free)
    assert store.allocate_lease("bridge", "new", BOOT, first_free) == "10.0.0.2"
    assert [lease.sandbox_id for lease in store.leases("bridge")] == ["new"]


def test_a_chooser_that_refuses_changes_nothing(store: Store) -> None:
    def refuse(taken: dict[str, str], released: list[str]) -> tuple[str, str | None, str]:
        raise Conflict("full")

    with pytest.raises(Conflict, match="full"):
        store.allocate_lease("bridge", "a", BOOT, refuse)
    assert store.leases() == []


@pytest.mark.parametrize(
    ("first", "second", "collide"),
    [
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "192.0.2.1", False),
    ],
)
def test_a_port_is_taken_on_its_address_or_on_all(store: Store, first: str, second: str, collide: bool) -> None:
    store.insert_sandbox(sandbox("ab" * 32, "web"))
    store.claim_port("ab" * 32, "tcp", first, 8080)
    store.claim_port("other", "udp", second, 8080)
    if collide:
        with pytest.raises(Conflict, match="8080/tcp is published by sandbox web"):
            store.claim_port("other", "tcp", second, 8080)
    else:
        store.claim_port("other", "tcp", second, 8080)
    store.release_ports("ab" * 32)
    store.claim_port("third", "tcp", first, 8080) if collide else None


def test_id_ranges_run_out(store: Store) -> None:
    assert store.allocate_id_range("a", [100, 200]) == 100
    assert store.allocate_id_range("b", [100, 200]) == 200
    with pytest.raises(Conflict, match="every range"):
        store.allocate_id_range("c", [100, 200])
    store.release_id_range("a")
    assert store.allocate_id_range("c", [100, 200]) == 100


def test_the_journal_keeps_order_owner_and_scope(store: Store) -> None:
    journal = store.journal("sandbox:a", "run")
    journal.record("lease", sandbox_id="a")
    journal.record_all([("cgroup", {"path": "x"}), ("veth", {"name": "nb1"})])
    store.journal("sandbox:a", "sandbox").record("directory", path="/x")
    rows = journal.rows()
    assert [(row.kind, row.args) for row in rows] == [("lease", {"sandbox_id": "a"}), ("cgroup", {"path": "x"}), ("veth", {"name": "nb1"})]
    journal.forget(rows[1:])
    assert [row.kind for row in journal.rows()] == ["lease"]
    assert store.journal_owners() == [("sandbox:a", "run"), ("sandbox:a", "sandbox")]


def test_old_events_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netbox.state.store.EVENTS_KEPT", 3)
    for number in range(5):
        store.add_event("start", "a", "web", number=number)
    assert [event.attributes["number"] for event in store.events()] == [2, 3, 4]
    assert EVENTS_KEPT >= 1000


def test_an_ipv6_address_comes_and_goes_with_the_other_one(store: Store) -> None:
    store.insert_sandbox(sandbox("a", "web"))
    for name in ("a", "b"):
        store.allocate_lease(
            "front", name, BOOT, lambda taken, _: (f"10.0.0.{5 + len(taken)}", None, f"fd00::{5 + len(taken)}"), static6=name == "a"
        )
    assert [lease.address for lease in store.leases("front")] == ["10.0.0.5", "fd00::5", "10.0.0.7", "fd00::7"]
    (member,) = store.network_members("front", BOOT)
    assert (member.name, member.address, member.address6) == ("web", "10.0.0.5", "fd00::5")
    store.release_leases("a")
    store.release_leases("b")
    assert [(lease.address, lease.static) for lease in store.leases("front")] == [("fd00::5", True)]
    with pytest.raises(Conflict, match="fd00::5 is a's"):
        store.allocate_lease("front", "c", BOOT, fixed("fd00::5"))
    store.delete_sandbox("a")
    store.allocate_lease("front", "c", BOOT, fixed("fd00::5"))


def test_a_port_on_every_address_is_one_of_its_family(store: Store) -> None:
    store.claim_port("a", "tcp", "0.0.0.0", 80)
    store.claim_port("b", "tcp", "::", 80)
    for address in ("127.0.0.1", "::1", "::", "0.0.0.0"):
        with pytest.raises(Conflict, match="80/tcp is published"):
            store.claim_port("c", "tcp", address, 80)
    store.claim_port("a", "tcp", "::1", 81)
    store.claim_port("b", "tcp", "fd00::1", 81)
    store.claim_port("b", "tcp", "0.0.0.0", 81)


def test_networks_are_replaced_and_forgotten_with_their_leases(store: Store) -> None:
    row = NetworkRow("bridge", "netbox0", "10.0.0.0/24", "10.0.0.1", 1500, 1.0, {"a": 1})
    store.put_network(row)
    store.put_network(row._replace(mtu=1400))
    assert store.networks() == [row._replace(mtu=1400)]
    store.allocate_lease("bridge", "a", BOOT, first_free)
    store.delete_network("bridge")
    assert store.network("bridge") is None
    assert store.leases() == []


def test_a_network_never_takes_the_subnet_of_another(store: Store) -> None:
    row = NetworkRow("a", "nb-a", "10.0.0.0/24", "10.0.0.1", 1500, 1.0, {})
    store.put_network(row)
    with pytest.raises(Conflict, match=r"the subnet 10\.0\.0\.0/24 is another network's"):
        store.put_network(row._replace(name="b", bridge="nb-b"))
    assert store.networks() == [row]


def fixed(address: str) -> Callable[[dict[str, str], list[str]], tuple[str, str | None, str]]:
    def choose(taken: dict[str, str], released: list[str]) -> tuple[str, str | None, str]:
        if address in taken:
            raise Conflict(f"{address} is {taken[address]}'s")
        return address, None, ""

    return choose


def test_static_leases_outlive_the_run_and_end_with_the_sandbox(store: Store) -> None:
    store.insert_sandbox(sandbox("a", "web"))
    store.allocate_lease("front", "a", BOOT, fixed("10.0.0.5"), static=True, aliases=["db"])
    store.allocate_lease("back", "a", BOOT, fixed("10.1.0.5"))
    store.release_leases("a")
    assert [(lease.network, lease.boot_id, lease.static) for lease in store.leases()] == [("front", "", True)]
    with pytest.raises(Conflict, match="a's"):
        store.allocate_lease("front", "b", BOOT, fixed("10.0.0.5"))
    store.allocate_lease("front", "a", "boot-2", fixed("10.0.0.5"), static=True)  # its own
    with pytest.raises(Conflict, match="a's"):
        store.allocate_lease("front", "b", "boot-3", fixed("10.0.0.5"))  # also after a reboot
    store.delete_sandbox("a")
    assert store.leases() == []
    store.allocate_lease("front", "b", BOOT, fixed("10.0.0.5"))


def test_leaving_a_network_frees_its_address_for_good(store: Store) -> None:
    store.insert_sandbox(sandbox("a", "web"))
    store.allocate_lease("front", "a", BOOT, fixed("10.0.0.5"), static=True)
    store.allocate_lease("back", "a", BOOT, fixed("10.1.0.5"), static=True)
    store.release_leases("a", "front")
    assert [lease.network for lease in store.leases()] == ["back"]
    store.allocate_lease("back", "a", BOOT, fixed("10.1.0.6"))  # another one takes the place of the first
    assert [lease.address for lease in store.leases()] == ["10.1.0.6"]


def test_a_network_knows_its_members_by_name_and_alias(store: Store) -> None:
    for identity, name in (("a", "web"), ("b", "api")):
        store.insert_sandbox(sandbox(identity, name))
    store.allocate_lease("front", "a", BOOT, fixed("10.0.0.5"), static=True, aliases=["db", "cache"])
    store.allocate_lease("front", "b", BOOT, fixed("10.0.0.6"))
    store.allocate_lease("front", "gone", BOOT, fixed("10.0.0.7"))  # no record of it
    store.allocate_lease("back", "b", BOOT, fixed("10.1.0.6"))
    found = [(row.sandbox_id, row.name, row.aliases, row.address) for row in store.network_members("front")]
    assert found == [("b", "api", (), "10.0.0.6"), ("a", "web", ("db", "cache"), "10.0.0.5")]
    store.release_leases("a")
    assert [row.name for row in store.network_members("front", BOOT)] == ["api"]  # web is stopped
    assert [row.name for row in store.network_members("front")] == ["api", "web"]


def test_journal_rows_move_to_another_scope(store: Store) -> None:
    link = store.journal("sandbox:a", "link")
    link.record("lease", sandbox_id="a")
    link.record("reroute", sandbox_id="a")
    link.move(link.rows()[:1], "run")
    assert [row.kind for row in link.rows()] == ["reroute"]
    assert [row.kind for row in store.journal("sandbox:a", "run").rows()] == ["lease"]


def test_looking_makes_nothing(store: Store) -> None:
    assert [*store.sandboxes(), *store.networks(), *store.leases(), *store.events()] == []
    with pytest.raises(NotFound):
        store.find_sandbox("web")
    assert not Path(store.settings.root).exists()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path))
    Store(settings).add_event("start", "a", "web")
    connection = sqlite3.connect(settings.database)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="version 99"):
        Store(settings).sandboxes()


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path))
    Path(settings.database).write_bytes(b"this is no database" * 200)
    with pytest.raises(StateError, match="damaged"):
        Store(settings).sandboxes()


def test_a_full_disk_is_one_line(store: Store) -> None:
    store.add_event("start", "a", "web")
    store.database.query("PRAGMA max_page_count = 1")
    with pytest.raises(StateError, match="disk is full"):
        for number in range(1000):
            store.add_event("start", "a", "web", text="x" * 1000, number=number)


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.database.transaction():
        store.insert_sandbox(sandbox("ab" * 32, "web"))
        raise RuntimeError
    assert store.sandboxes() == []


def test_a_spec_survives_json() -> None:
    import json

    spec = SandboxSpec(
        image="busybox",
        command=("sh", "-c", "true"),
        environment=(("A", "1"),),
        binds=(BindMount("/a", "/b", True),),
        tmpfs=(TmpfsMount("/t", 5),),
        network=NetworkSpec(ports=(PortSpec(80, 8080),), extra_hosts=(("a", "b"),)),
    )
    assert SandboxSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert dataclasses.replace(spec, image="x") != spec


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, 9))
def test_interface_names_fit_the_kernel(sandbox_id: str, index: int) -> None:
    assert len(names.veth(sandbox_id, index)) <= names.INTERFACE_NAME_MAX
    assert names.valid_name(names.generated_name(sandbox_id))


@given(st.text(max_size=100))
def test_bridge_names_fit_the_kernel(network: str) -> None:
    assert len(names.bridge(network)) <= names.INTERFACE_NAME_MAX


def test_an_interrupt_leaves_no_transaction_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written afterwards, by those who undo things, would be in it and never be committed."""
    store.insert_sandbox(sandbox("ab" * 32, "web"))

    def execute(connection: sqlite3.Connection, statement: str, *parameters: object) -> sqlite3.Cursor:
        cursor = sqlite3.Connection.execute(connection, statement, *parameters)  # type: ignore[arg-type]
        if statement.startswith("BEGIN"):
            raise KeyboardInterrupt
        return cursor

    with monkeypatch.context() as patched:
        patched.setattr(database._Connection, "execute", execute, raising=False)
        with pytest.raises(KeyboardInterrupt):
            store.delete_sandbox("ab" * 32)
    with store.database.transaction():
        store.update_sandbox("ab" * 32, state="exited")
    with sqlite3.connect(store.settings.database) as other:
        assert other.execute("SELECT state FROM sandboxes").fetchall() == [("exited",)]
