"""The store: every question and change that the rest of netbox has for the database."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Any

from netbox.errors import Conflict, NotFound
from netbox.names import ID_LENGTH, short_id
from netbox.settings import Settings
from netbox.spec import PortSpec
from netbox.state import journal
from netbox.state.database import Database
from netbox.state.rows import Event, LeaseRow, MemberRow, NetworkRow, PortRow, SandboxRow

_SANDBOX_COLUMNS = "id, name, spec, image, state, created_at, started_at, finished_at, exit_code, pid, error, details"
_JSON_COLUMNS = frozenset({"spec", "image", "details"})
_UPDATABLE = frozenset({"name", "spec", "state", "started_at", "finished_at", "exit_code", "pid", "error", "details"})
EVENTS_KEPT = 10_000


class Store:
    """The database below ``settings.root``. Cheap to make: the file opens on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database)

    def close(self) -> None:
        """Closes the calling thread's connection."""
        self.database.close()

    # -- sandboxes ---------------------------------------------------------------------------------------------------------------------

    def insert_sandbox(self, row: SandboxRow) -> None:
        """Remembers a new sandbox.

        Raises:
            Conflict: another sandbox has the name.
        """
        try:
            self.database.change(
                f"INSERT INTO sandboxes ({_SANDBOX_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row.id, row.name, json.dumps(row.spec), json.dumps(row.image), row.state, row.created_at, row.started_at, row.finished_at,
                row.exit_code, row.pid, row.error, json.dumps(row.details),
            )  # fmt: skip
        except sqlite3.IntegrityError as error:
            raise self._name_taken(row.name) from error

    def update_sandbox(self, sandbox_id: str, **values: Any) -> None:
        """Changes columns of a sandbox's row.

        Raises:
            Conflict: the new name is another sandbox's.
        """
        unknown = values.keys() - _UPDATABLE
        if unknown:
            raise ValueError(f"not columns of a sandbox: {sorted(unknown)}")
        columns = ", ".join(f"{key} = ?" for key in values)
        parameters = [json.dumps(value) if key in _JSON_COLUMNS else value for key, value in values.items()]
        try:
            self.database.change(f"UPDATE sandboxes SET {columns} WHERE id = ?", *parameters, sandbox_id)
        except sqlite3.IntegrityError as error:
            raise self._name_taken(str(values.get("name"))) from error

    def change_spec(self, sandbox_id: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Replaces a sandbox's spec by what ``change``, which is pure, makes of the one that it has by now: what others change at the same
        time is not lost. No sandbox is fine.
        """
        with self.database.transaction():
            row = self.sandbox(sandbox_id)
            if row is not None:
                self.update_sandbox(sandbox_id, spec=change(row.spec))

    def delete_sandbox(self, sandbox_id: str) -> None:
        """Forgets a sandbox and frees the addresses that were kept for it; no row is fine."""
        with self.database.transaction():
            self.database.change("DELETE FROM sandboxes WHERE id = ?", sandbox_id)
            self._free_leases(sandbox_id, None)

    def sandbox(self, sandbox_id: str) -> SandboxRow | None:
        """The sandbox with this full id."""
        rows = self.database.query(f"SELECT {_SANDBOX_COLUMNS} FROM sandboxes WHERE id = ?", sandbox_id)
        return _sandbox_row(rows[0]) if rows else None

    def sandboxes(self) -> list[SandboxRow]:
        """Every sandbox, newest first."""
        return [_sandbox_row(row) for row in self.database.query(f"SELECT {_SANDBOX_COLUMNS} FROM sandboxes ORDER BY created_at DESC")]

    def find_sandbox(self, reference: str) -> SandboxRow:
        """The sandbox that a full id, a name or an unambiguous prefix of an id addresses, tried in this order.

        Raises:
            NotFound: nothing answers to the reference.
            Conflict: the prefix is ambiguous.
        """
        rows = self.database.query(f"SELECT {_SANDBOX_COLUMNS} FROM sandboxes WHERE id = ? OR name = ?", reference, reference)
        if not rows and 0 < len(reference) <= ID_LENGTH and all(digit in "0123456789abcdef" for digit in reference):
            rows = self.database.query(f"SELECT {_SANDBOX_COLUMNS} FROM sandboxes WHERE id GLOB ? LIMIT 3", reference + "*")
            if len(rows) > 1:
                names = ", ".join(f"{short_id(row[0])} ({row[1]})" for row in rows)
                raise Conflict(f"{reference} is ambiguous: {names}", "give more digits of the id, or the name")
        if not rows:
            raise NotFound(f"no such sandbox: {reference}", "'netbox ps -a' lists them all")
        return _sandbox_row(rows[0])

    def check_name(self, name: str) -> None:
        """Raises:
        Conflict: a sandbox has this name.
        """
        if self.has_name(name):
            raise self._name_taken(name)

    def has_name(self, name: str) -> bool:
        """Whether a sandbox has this name."""
        return bool(self.database.query("SELECT 1 FROM sandboxes WHERE name = ?", name))

    def _name_taken(self, name: str) -> Conflict:
        holder = self.database.query("SELECT id FROM sandboxes WHERE name = ?", name)
        owner = f"sandbox {short_id(holder[0][0])}" if holder else "another sandbox"
        return Conflict(f"the name {name} is taken by {owner}", f"remove it (netbox rm {name}), rename it, or choose another name")

    # -- networks ----------------------------------------------------------------------------------------------------------------------

    def network(self, name: str) -> NetworkRow | None:
        """The network of this name."""
        rows = self.database.query("SELECT name, bridge, subnet, gateway, mtu, created_at, options FROM networks WHERE name = ?", name)
        return _network_row(rows[0]) if rows else None

    def networks(self) -> list[NetworkRow]:
        """Every network, by name."""
        rows = self.database.query("SELECT name, bridge, subnet, gateway, mtu, created_at, options FROM networks ORDER BY name")
        return [_network_row(row) for row in rows]

    def put_network(self, row: NetworkRow) -> None:
        """Remembers a network, in place of one of the same name.

        Raises:
            Conflict: another one has the bridge or the subnet.
        """
        try:
            self.database.change(
                "INSERT INTO networks VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET bridge = excluded.bridge,"
                " subnet = excluded.subnet, gateway = excluded.gateway, mtu = excluded.mtu, options = excluded.options",
                *row[:6], json.dumps(row.options),
            )  # fmt: skip
        except sqlite3.IntegrityError as error:
            raise Conflict(f"the bridge {row.bridge} or the subnet {row.subnet} is another network's", "choose another one") from error

    def delete_network(self, name: str) -> None:
        """Forgets a network and the addresses that it had given out; none is fine."""
        with self.database.transaction():
            self.database.change("DELETE FROM networks WHERE name = ?", name)
            self.database.change("DELETE FROM leases WHERE network = ?", name)

    # -- leases ------------------------------------------------------------------------------------------------------------------------

    def allocate_lease(
        self,
        network: str,
        sandbox_id: str,
        boot_id: str,
        choose: Callable[[dict[str, str], list[str]], tuple[str, str | None, str]],
        *,
        static: bool = False,
        static6: bool = False,
        aliases: Iterable[str] = (),
    ) -> str:
        """Takes an address for a sandbox, in place of one that it had on the network; two processes never get the same.

        ``choose`` is pure: it gets the addresses of others with their sandboxes' ids and the free ones that were used before, the longest
        free first, and returns (IPv4 address, MAC, IPv6 address or nothing). A lease of an earlier boot is void unless it is
        static, and a static one without a sandbox.

        Raises:
            NetboxError: what ``choose`` raises.
        """
        with self.database.transaction():
            rows = self.database.query(
                "SELECT address, l.sandbox_id, boot_id = ? OR (static AND s.id IS NOT NULL) FROM leases l"
                " LEFT JOIN sandboxes s ON s.id = l.sandbox_id WHERE network = ? ORDER BY released_at, l.rowid",
                boot_id, network,
            )  # fmt: skip
            taken = {address: holder for address, holder, valid in rows if holder not in (None, sandbox_id) and valid}
            address, mac, address6 = choose(
                taken, [address for address, holder, _ in rows if address not in taken and holder != sandbox_id]
            )
            self._free_leases(sandbox_id, network)
            for item, kept in ((address, static), (address6, static6)):
                if item:
                    self.database.change(
                        "INSERT OR REPLACE INTO leases (network, address, mac, sandbox_id, boot_id, static, aliases)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?)",
                        network, item, mac, sandbox_id, boot_id, kept, json.dumps(list(aliases)),
                    )  # fmt: skip
        return address

    def release_leases(self, sandbox_id: str, network: str | None = None) -> None:
        """Frees a sandbox's addresses; they come back last. Static ones are kept for it, unused. With ``network``, only the address on that
        one, and for good: the sandbox leaves it.
        """
        with self.database.transaction():
            if network is None:
                self.database.change(
                    "UPDATE leases SET boot_id = '' WHERE sandbox_id = ? AND static AND sandbox_id IN (SELECT id FROM sandboxes)",
                    sandbox_id,
                )
                self._free_leases(sandbox_id, None, keep_idle=True)
            else:
                self._free_leases(sandbox_id, network)

    def _free_leases(self, sandbox_id: str, network: str | None, keep_idle: bool = False) -> None:
        self.database.change(
            "UPDATE leases SET sandbox_id = NULL, mac = NULL, static = 0, aliases = '[]', released_at = ?"
            " WHERE sandbox_id = ? AND (? IS NULL OR network = ?) AND NOT (? AND static AND boot_id = '')",
            time.time(), sandbox_id, network, network, keep_idle,
        )  # fmt: skip

    def leases(self, network: str | None = None) -> list[LeaseRow]:
        """The addresses that sandboxes hold."""
        rows = self.database.query(
            "SELECT network, address, mac, sandbox_id, boot_id, static, aliases FROM leases"
            " WHERE sandbox_id IS NOT NULL AND (? IS NULL OR network = ?)",
            network, network,
        )  # fmt: skip
        return [LeaseRow._make([*row[:5], bool(row[5]), tuple(json.loads(row[6]))]) for row in rows]

    def network_members(self, network: str, boot_id: str | None = None) -> list[MemberRow]:
        """The sandboxes that have an address on a network, by name; with ``boot_id`` only those that use it now, in this boot."""
        rows = self.database.query(
            "SELECT s.id, s.name, l.aliases, l.address, l.mac, s.state FROM leases l JOIN sandboxes s ON s.id = l.sandbox_id"
            " WHERE l.network = ? AND (? IS NULL OR l.boot_id = ?) ORDER BY s.name",
            network, boot_id, boot_id,
        )  # fmt: skip
        found: dict[str, MemberRow] = {}
        for identity, name, aliases, address, mac, state in rows:
            known = found.get(identity) or MemberRow(identity, name, tuple(json.loads(aliases)), "", mac, state)
            found[identity] = known._replace(**{"address6" if ":" in address else "address": address})
        return list(found.values())

    def network_users(self, network: str) -> list[str]:
        """The names of the sandboxes that are on a network, running or not."""
        found = []
        for name, text in self.database.query("SELECT name, spec FROM sandboxes"):
            asked = json.loads(text).get("network", {})
            # What ``NetworkSpec.attachments`` says, without the whole request.
            on = [item[0] for item in asked["networks"]] if asked.get("networks") is not None else [asked.get("mode")]
            if network in on:
                found.append(name)
        return sorted(found)

    # -- ports -------------------------------------------------------------------------------------------------------------------------

    def claim_port(self, sandbox_id: str, protocol: str, host_ip: str, port: int) -> None:
        """Takes a host port for a sandbox.

        Raises:
            Conflict: a sandbox has the port on this address, or on every address of its family.
        """
        with self.database.transaction():
            rows = self.database.query(
                "SELECT p.sandbox_id, s.name FROM ports p LEFT JOIN sandboxes s ON s.id = p.sandbox_id"
                " WHERE protocol = ? AND port = ? AND (instr(host_ip, ':') > 0) = ?"
                " AND (host_ip = ? OR host_ip IN ('0.0.0.0', '::') OR ? IN ('0.0.0.0', '::'))",
                protocol, port, ":" in host_ip, host_ip, host_ip,
            )  # fmt: skip
            if rows:
                holder, name = rows[0]
                raise Conflict(
                    f"port {port}/{protocol} is published by sandbox {name or short_id(holder)}",
                    "choose another port, or stop that sandbox",
                )
            self.database.change("INSERT INTO ports VALUES (?, ?, ?, ?)", protocol, host_ip, port, sandbox_id)

    def release_ports(self, sandbox_id: str) -> None:
        """Frees a sandbox's host ports."""
        self.database.change("DELETE FROM ports WHERE sandbox_id = ?", sandbox_id)

    def keep_ports(self, sandbox_id: str, ports: Iterable[PortSpec]) -> None:
        """Frees the host ports of a sandbox but for these."""
        by_family = [its for port in ports for its in port.by_family]
        kept = {(port.protocol, port.host_ip, port.host_port + offset) for port in by_family for offset in range(port.length)}
        with self.database.transaction():
            for row in self.ports(sandbox_id):
                if row[:3] not in kept:
                    self.database.change("DELETE FROM ports WHERE protocol = ? AND host_ip = ? AND port = ?", *row[:3])

    def ports(self, sandbox_id: str | None = None) -> list[PortRow]:
        """The host ports that sandboxes hold."""
        rows = self.database.query(
            "SELECT protocol, host_ip, port, sandbox_id FROM ports WHERE ? IS NULL OR sandbox_id = ? ORDER BY port", sandbox_id, sandbox_id
        )
        return [PortRow(*row) for row in rows]

    # -- ranges of user ids ------------------------------------------------------------------------------------------------------------

    def allocate_id_range(self, sandbox_id: str, bases: Iterable[int]) -> int:
        """Takes the first free of the given bases of user id ranges for a sandbox.

        Raises:
            Conflict: all are taken.
        """
        with self.database.transaction():
            taken = {row[0] for row in self.database.query("SELECT base FROM id_ranges")}
            for base in bases:
                if base not in taken:
                    self.database.change("INSERT INTO id_ranges VALUES (?, ?)", base, sandbox_id)
                    return base
        raise Conflict("every range of user ids is taken", "remove a sandbox that runs with --userns=auto")

    def release_id_range(self, sandbox_id: str) -> None:
        """Frees a sandbox's range of user ids."""
        self.database.change("DELETE FROM id_ranges WHERE sandbox_id = ?", sandbox_id)

    # -- journal and events ------------------------------------------------------------------------------------------------------------

    def journal(self, owner: str, scope: str) -> journal.Journal:
        """The journal of an owner."""
        return journal.Journal(self.database, owner, scope)

    def journal_owners(self, scope: str | None = None) -> list[tuple[str, str]]:
        """Every (owner, scope) that has something to undo; with ``scope`` only those of it, which is cheap."""
        return journal.owners(self.database, scope)

    def add_event(self, action: str, sandbox_id: str, name: str, **attributes: Any) -> None:
        """Writes down what happened; the oldest events go when there are more than ``EVENTS_KEPT``."""
        self.database.change(
            "INSERT INTO events (time, action, sandbox_id, name, attributes) VALUES (?, ?, ?, ?, ?)",
            time.time(), action, sandbox_id, name, json.dumps(attributes),
        )  # fmt: skip
        self.database.change("DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?", EVENTS_KEPT)

    def events(self, after: int = 0) -> list[Event]:
        """The events behind sequence number ``after``, oldest first."""
        rows = self.database.query("SELECT seq, time, action, sandbox_id, name, attributes FROM events WHERE seq > ? ORDER BY seq", after)
        return [Event._make([*row[:5], json.loads(row[5])]) for row in rows]

    def exit_code_since(self, sandbox_id: str, moment: float) -> int | None:
        """The exit code of the first run of a sandbox that ended after ``moment`` (seconds since the epoch), also of one that was removed;
        ``None`` where nothing tells.
        """
        rows = self.database.query(
            "SELECT attributes FROM events WHERE sandbox_id = ? AND action = 'die' AND time >= ? ORDER BY seq LIMIT 1", sandbox_id, moment
        )
        code = json.loads(rows[0][0]).get("exit_code") if rows else None
        return None if code is None else int(code)


def _sandbox_row(row: tuple[Any, ...]) -> SandboxRow:
    values = dict(zip(_SANDBOX_COLUMNS.split(", "), row, strict=True))
    for column in _JSON_COLUMNS:
        values[column] = json.loads(values[column])
    return SandboxRow(**values)


def _network_row(row: tuple[Any, ...]) -> NetworkRow:
    return NetworkRow._make([*row[:6], json.loads(row[6])])
