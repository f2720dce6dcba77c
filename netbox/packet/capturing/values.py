"""What a capture is asked for, and what it says at its end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from netbox.errors import UsageError
from netbox.kernel import packet_ring
from netbox.network.plan import NetworkPlan
from netbox.parse import parse_duration, parse_size

SNAPSHOT_LENGTH = 262_144  # bytes, as tcpdump's: everything
RING_SIZE = 8 << 20  # bytes for each namespace and each device of the host
LOOPBACK = "lo"
BRIDGE, HOST_END = "bridge", "host-end"
_SMALLEST_FILE = 64 << 10


@dataclass(frozen=True)
class Selection:
    """Which sandboxes: those of ``names`` (names or ids), those on ``networks``, those with all of ``labels``, or ``all``.

    ``interfaces`` picks by name (``eth0``, ``lo``, ``host-end``, ``bridge``); empty means all but lo, which a sandbox without a network is
    heard on all the same. ``from_start`` waits for sandboxes of the names that are not there yet, and for those that start again.
    """

    names: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    all: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    interfaces: tuple[str, ...] = ()
    from_start: bool = False

    @property
    def waits(self) -> bool:
        """Whether sandboxes that start later are recorded too."""
        return self.from_start or self.all or bool(self.networks) or bool(self.labels)

    def wants(self, id: str, name: str, labels: Mapping[str, str], plan: NetworkPlan) -> bool:
        """Whether this sandbox is among those that were asked for."""
        if self.all or any(name == wanted or (len(wanted) >= 4 and id.startswith(wanted)) for wanted in self.names):
            return True
        if any(endpoint.network in self.networks for endpoint in plan.endpoints):
            return True
        return bool(self.labels) and all(labels.get(key) == value for key, value in self.labels)

    def wants_interface(self, name: str, mode: str = "bridge") -> bool:
        """Whether this interface of a wanted sandbox is recorded; ``mode`` is that of its network."""
        if self.interfaces:
            return "any" in self.interfaces or name in self.interfaces or (name.startswith(HOST_END) and HOST_END in self.interfaces)
        return name != LOOPBACK or mode == "none"


class Rotation(NamedTuple):
    """``--ring``: the last ``files`` files of ``size`` bytes each are kept."""

    files: int
    size: int


@dataclass(frozen=True)
class Limits:
    """When a capture ends by itself: after ``count`` packets, after ``duration`` seconds."""

    count: int | None = None
    duration: float | None = None


class Interface(NamedTuple):
    """An interface of the file: its number there, name (``web/eth0``), description, and link type (``pcapng.LINKTYPE_…``)."""

    number: int
    name: str
    description: str
    link_type: int


class Way(NamedTuple):
    """What all packets have in common that pass an interface in one direction: the interface's number, pcapng's flags, the interface."""

    number: int
    flags: int
    interface: Interface


# time, way, data, length: see ``packet_ring.Packet``.
Packet = packet_ring.Packet[Way]
# A packet to be written, its number (the same for all its copies), its comment. Bare tuples: there are some 100,000 a second.
Record = tuple[Packet, int, str]


class InterfaceSummary(NamedTuple):
    """What was recorded on an interface: packets, those that the kernel dropped because the capture was too slow (of the whole namespace,
    said with its first interface), and those that the interface itself dropped meanwhile.
    """

    name: str
    packets: int
    lost: int
    refused: int


def parse_rotation(text: str) -> Rotation:
    """``10x50MB``: ten files of 50 MiB.

    Raises:
        UsageError: it is not of this form.
    """
    hint = "write how many files and how large, such as 10x50MB"
    match = re.fullmatch(r"([0-9]{1,6})x(.+)", text.strip())
    if match is None or int(match[1]) < 2:
        raise UsageError(f"--ring {text!r}: {'not COUNTxSIZE' if match is None else 'at least 2 files are needed'}", hint)
    return Rotation(int(match[1]), parse_size(match[2], "--ring", _SMALLEST_FILE))


def parse_limits(count: int | None, duration: str | float | None) -> Limits:
    """Raises:
    UsageError: a limit is not above zero.
    """
    if count is not None and count < 1:
        raise UsageError(f"--count {count}: it must be at least 1")
    seconds = None if duration is None else parse_duration(duration, "--duration")
    if seconds == 0:
        raise UsageError("--duration 0: it must be above zero")
    return Limits(count, seconds)
