"""The rows of the database as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class SandboxRow:
    """A sandbox as remembered. ``state`` is created, starting, running or exited; times are seconds since the epoch.

    ``spec`` and ``image`` are JSON values; ``details`` is what the last start planned (network plan, runtime configuration).
    """

    id: str
    name: str
    spec: dict[str, Any]
    image: dict[str, Any]
    state: str
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    pid: int | None = None
    error: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class NetworkRow(NamedTuple):
    """A network: its bridge device, subnet (``10.201.0.0/20``), gateway and MTU in bytes."""

    name: str
    bridge: str
    subnet: str
    gateway: str
    mtu: int
    created_at: float
    options: dict[str, Any]

    @property
    def driver(self) -> str:
        """``bridge`` or ``macvlan``; one with macvlan has a name of a bridge device, and no such device."""
        return str(self.options.get("driver", "bridge"))

    @property
    def parent(self) -> str:
        """The link of the host that a macvlan network is on, otherwise nothing."""
        return str(self.options.get("parent") or "")


class LeaseRow(NamedTuple):
    """An address that a sandbox holds. ``boot_id`` is that of the boot in which it is used; a ``static`` one belongs to the sandbox also
    while it is stopped, then with an empty ``boot_id``.
    """

    network: str
    address: str
    mac: str | None
    sandbox_id: str
    boot_id: str
    static: bool = False
    aliases: tuple[str, ...] = ()


class MemberRow(NamedTuple):
    """A sandbox with an address on a network: what the network knows it by."""

    sandbox_id: str
    name: str
    aliases: tuple[str, ...]
    address: str
    mac: str | None
    state: str


class PortRow(NamedTuple):
    """A host port that a sandbox holds; ``host_ip`` 0.0.0.0 means every address."""

    protocol: str
    host_ip: str
    port: int
    sandbox_id: str


class Event(NamedTuple):
    """Something that happened to a sandbox: create, start, die, stop, kill, pause, …"""

    seq: int
    time: float
    action: str
    sandbox_id: str
    name: str
    attributes: dict[str, Any]
