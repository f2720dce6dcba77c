"""What stands on disk: a file per served network, written by whoever changes something, read by the name service.

A file is replaced by rename(2), so a reader sees the old or the new one, whole. The name service looks at the directory's time stamp before
every answer, which costs two microseconds: what has been written when a question comes is in its answer.
"""

from __future__ import annotations

import json
import os
import time

from netbox.network.nameservice.zone import Member, Network, Served, Zones

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

DIRECTORY = "nameservice"
LOCK_FILE = "nameservice.lock"
ALIVE_FILE = "alive"
CONTROL_SOCKET = "control"
SYNCHRONIZE, STATUS = b"synchronize", b"status"  # what is asked there
_NETWORKS = "networks"
# Time stamps are as coarse as the kernel's tick (10 ms at most): one that is younger than this may hide a second change.
_SETTLED = 50_000_000  # nanoseconds


def directory(run: str) -> str:
    """Everything of the name service below the run directory."""
    return f"{run}/{DIRECTORY}"


def make(run: str) -> None:
    """Makes the directories. Raises OSError."""
    os.makedirs(run, mode=0o711, exist_ok=True)
    os.makedirs(f"{directory(run)}/{_NETWORKS}", mode=0o700, exist_ok=True)


def remove(run: str) -> None:
    """Removes everything, when the process is gone and no network is left. Raises OSError."""
    for name in (ALIVE_FILE, CONTROL_SOCKET):
        try:
            os.unlink(f"{directory(run)}/{name}")
        except FileNotFoundError:
            pass
    for path in (f"{directory(run)}/{_NETWORKS}", directory(run)):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass


def networks(run: str) -> list[str]:
    """The names of the served networks."""
    try:
        return sorted(name for name in os.listdir(f"{directory(run)}/{_NETWORKS}"))
    except FileNotFoundError:
        return []


def encode(served: Served, members: Iterable[Member]) -> bytes:
    """A network's file. The order of the members is made up here, so that the same members are the same bytes."""
    rows = sorted([member.sandbox_id, member.name, list(member.aliases), list(member.addresses), list(member.dns)] for member in members)
    return json.dumps({"served": list(served), "members": rows}).encode()


def decode(data: bytes) -> Network:
    """Reverses ``encode``. Raises ValueError for what is no such file, also for an address that is none."""
    values: dict[str, Any] = json.loads(data)
    try:
        name, bridge, gateways, subnets, *more = values["served"]  # another version may have written less
        rows = [Member(id, label, tuple(aliases), tuple(addresses), tuple(dns)) for id, label, aliases, addresses, dns in values["members"]]
        return Network(Served(name, bridge, tuple(gateways), tuple(subnets), *more), rows)
    except (KeyError, TypeError, OSError) as error:
        raise ValueError(str(error)) from error


def read(run: str, name: str) -> Network | None:
    """The file of a network, if it is served. Raises OSError, and ValueError for a file that another version wrote."""
    try:
        with open(f"{directory(run)}/{_NETWORKS}/{name}", "rb") as file:
            return decode(file.read())
    except FileNotFoundError:
        return None


def write(run: str, served: Served, members: Iterable[Member]) -> None:
    """Writes or replaces the file of a network. Raises OSError. Two at once would share the temporary file: hold the lock."""
    temporary = f"{directory(run)}/{served.name}.new"
    with open(temporary, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(encode(served, members))
    os.rename(temporary, f"{directory(run)}/{_NETWORKS}/{served.name}")


def delete(run: str, name: str) -> None:
    """Removes the file of a network, also what a killed writer left. Raises OSError."""
    for path in (f"{directory(run)}/{_NETWORKS}/{name}", f"{directory(run)}/{name}.new"):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


class Reader:
    """The files as zones, read again when something has changed."""

    def __init__(self, run: str) -> None:
        self._directory = f"{directory(run)}/{_NETWORKS}"
        self._seen: tuple[int, int] | None = None
        self._files: dict[str, tuple[bytes, Network]] = {}
        self._zones = Zones()

    def zones(self) -> Zones:
        """What the files say now. A directory that is gone has no networks."""
        try:
            status = os.stat(self._directory)
        except FileNotFoundError:
            self._files, self._zones, self._seen = {}, Zones(), None
            return self._zones
        stamp = (status.st_ino, status.st_mtime_ns)
        if stamp != self._seen:
            self._read()
            self._seen = stamp if time.time_ns() - status.st_mtime_ns > _SETTLED else None
        return self._zones

    def _read(self) -> None:
        found: dict[str, tuple[bytes, Network]] = {}
        for name in sorted(os.listdir(self._directory)):
            try:
                with open(f"{self._directory}/{name}", "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                continue  # the network went down just now
            known = self._files.get(name)
            try:
                found[name] = known if known is not None and known[0] == data else (data, decode(data))
            except ValueError:  # another version wrote it; the other networks shall not suffer
                continue
        if found != self._files:
            self._files = found
            self._zones = Zones(network for _, network in found.values())
