"""The sqlite file: schema, version, one connection per thread, and sqlite's errors in netbox's words.

WAL mode lets several processes read while one writes; what must be atomic runs in an IMMEDIATE transaction (https://sqlite.org/wal.html,
https://sqlite.org/lang_transaction.html). UNIQUE constraints, not code, make a double lease or a double port impossible.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netbox.errors import NoPermission, StateError, host_error

VERSION = 1
BUSY_TIMEOUT = 10.0  # seconds that a writer waits for another one
_PAUSE = 0.002

SCHEMA = """
CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL, image TEXT NOT NULL, state TEXT NOT NULL, created_at REAL NOT NULL,
    started_at REAL, finished_at REAL, exit_code INTEGER, pid INTEGER, error TEXT, details TEXT NOT NULL DEFAULT '{}');
CREATE TABLE networks (
    name TEXT PRIMARY KEY, bridge TEXT NOT NULL UNIQUE, subnet TEXT NOT NULL UNIQUE, gateway TEXT NOT NULL, mtu INTEGER NOT NULL,
    created_at REAL NOT NULL, options TEXT NOT NULL DEFAULT '{}');
CREATE TABLE leases (
    network TEXT NOT NULL, address TEXT NOT NULL, mac TEXT, sandbox_id TEXT, boot_id TEXT, released_at REAL,
    static INTEGER NOT NULL DEFAULT 0, aliases TEXT NOT NULL DEFAULT '[]', PRIMARY KEY (network, address));
CREATE INDEX leases_sandbox ON leases (sandbox_id);
CREATE TABLE ports (
    protocol TEXT NOT NULL, host_ip TEXT NOT NULL, port INTEGER NOT NULL, sandbox_id TEXT NOT NULL,
    PRIMARY KEY (protocol, host_ip, port));
CREATE TABLE id_ranges (base INTEGER PRIMARY KEY, sandbox_id TEXT NOT NULL);
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, scope TEXT NOT NULL, kind TEXT NOT NULL, args TEXT NOT NULL);
CREATE INDEX journal_owner ON journal (owner, scope, seq);
CREATE INDEX journal_scope ON journal (scope, owner);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, action TEXT NOT NULL, sandbox_id TEXT NOT NULL, name TEXT NOT NULL,
    attributes TEXT NOT NULL DEFAULT '{}');
"""


class _Connection(sqlite3.Connection):
    """Closed when the thread that it belongs to is gone."""

    def __del__(self) -> None:
        try:
            self.close()
        except sqlite3.ProgrammingError:
            pass  # it was never opened


class Database:
    """A sqlite file that is made on first use. Safe for threads and forks: every thread of every process has a connection of its own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = threading.local()
        self._inherited: list[sqlite3.Connection] = []

    def query(self, statement: str, *parameters: Any) -> list[Any]:
        """Runs one statement and returns its rows: none where there is no database yet, for looking makes nothing.

        Raises:
            StateError: the database cannot be used.
        """
        if getattr(self._local, "connection", None) is None and not os.path.exists(self.path):
            return []
        with self._translated():
            return self._connection().execute(statement, parameters).fetchall()

    def change(self, statement: str, *parameters: Any) -> int:
        """Runs one statement that changes rows and returns how many.

        Raises:
            StateError: the database cannot be used.
            sqlite3.IntegrityError: a constraint is violated.
        """
        with self._translated():
            return self._connection().execute(statement, parameters).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """An IMMEDIATE transaction: reads inside see no other writer's half; an exception rolls back. May be nested in the same thread."""
        with self._translated():
            connection = self._connection()
            if connection.in_transaction:
                yield
                return
            try:
                connection.execute("BEGIN IMMEDIATE")  # inside: an interrupt may come as soon as it has begun
                yield
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def close(self) -> None:
        """Closes the calling thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None and self._local.pid == os.getpid():
            connection.close()
        self._local.connection = None

    def _connection(self) -> sqlite3.Connection:
        local = self._local
        if getattr(local, "connection", None) is None or local.pid != os.getpid():
            # A connection must not be carried across a fork (https://sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork).
            # Not even closed: that would let go of locks which the parent believes in.
            if getattr(local, "connection", None) is not None:
                self._inherited.append(local.connection)
            local.connection = self._open()
            local.pid = os.getpid()
        connection: sqlite3.Connection = local.connection
        return connection

    def _open(self) -> sqlite3.Connection:
        directory = os.path.dirname(self.path)
        try:
            os.makedirs(directory, mode=0o711, exist_ok=True)
        except PermissionError as error:
            raise NoPermission(f"cannot create {directory}: permission denied", "run it as root (sudo)") from error
        except OSError as error:
            raise host_error("create", directory, error) from error
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, factory=_Connection)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._switch_to_wal(connection)
            self._create(connection)
        elif version != VERSION:
            raise StateError(
                f"the database {self.path} is of version {version}, this netbox knows version {VERSION}",
                "use the netbox that wrote it, or another directory (NETBOX_ROOT)",
            )
        connection.execute("PRAGMA synchronous = NORMAL")

    @staticmethod
    def _switch_to_wal(connection: sqlite3.Connection) -> None:
        """The switch needs the file alone, and sqlite does not wait for that itself: several that make the database at once meet here."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(_PAUSE)

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have made the tables between the look and the lock.
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in SCHEMA.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.commit()
        os.chmod(self.path, 0o600)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise self._state_error(error) from error

    def _state_error(self, error: sqlite3.DatabaseError) -> StateError | NoPermission:
        text = str(error)
        if "readonly" in text or "unable to open" in text:
            if os.geteuid() != 0:
                return NoPermission(f"cannot use the database {self.path}: permission denied", "run it as root (sudo)")
            return StateError(f"cannot use the database {self.path}: {text}", "is the file system read-only or full?")
        if "full" in text or ("disk I/O" in text and self._disk_is_full()):  # the latter for a file that sqlite maps
            return StateError(f"cannot write the database {self.path}: the disk is full", "free some space and try again")
        if "locked" in text:
            return StateError(
                f"the database {self.path} was locked for {BUSY_TIMEOUT:.0f} s", "another netbox hangs; look for it with 'ps'"
            )
        if "malformed" in text or "not a database" in text:
            return StateError(f"the database {self.path} is damaged: {text}", "move it away; 'netbox gc' then starts afresh")
        return StateError(f"cannot use the database {self.path}: {text}")

    def _disk_is_full(self) -> bool:
        try:
            return os.statvfs(os.path.dirname(self.path)).f_bavail == 0
        except OSError:
            return False
