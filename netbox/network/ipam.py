"""Subnets and addresses: which are free, which comes next. Pure; addresses are numbers: the module ``ipaddress`` costs a start 5 ms."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from netbox.errors import Conflict, HostError, UsageError

POOL_PREFIX_LENGTH = 20
MAC_PREFIX = "02:6e"  # locally administered, unicast; the address follows


class Subnet(NamedTuple):
    """A network: its first address as a number, the length of its prefix, and that of an address in bits: 32 for IPv4, 128 for IPv6."""

    base: int
    length: int
    bits: int = 32

    @classmethod
    def parse(cls, text: str) -> Subnet:
        """``10.210.0.0/20`` or ``fd00:1::/64`` as a value; host bits are cleared. Raises ``ValueError``."""
        address, separator, length = text.partition("/")
        bits = 128 if ":" in address else 32
        prefix = int(length) if separator else bits
        if not 0 <= prefix <= bits:
            raise ValueError(f"bad prefix length: {text}")
        return cls(number(address) & _mask(prefix, bits), prefix, bits)

    def __str__(self) -> str:
        return f"{self.written(self.base)}/{self.length}"

    @property
    def last(self) -> int:
        """The last address, which is the broadcast address of IPv4."""
        return self.base | ((1 << (self.bits - self.length)) - 1)

    def written(self, address: int) -> str:
        """An address of this family as text."""
        return dotted(address) if self.bits == 32 else socket.inet_ntop(socket.AF_INET6, address.to_bytes(16, "big"))

    def overlaps(self, other: Subnet) -> bool:
        """Whether they have an address in common."""
        return self.bits == other.bits and self.base <= other.last and other.base <= self.last

    def contains(self, address: int) -> bool:
        """Whether the address lies in it."""
        return self.base <= address <= self.last


def number(address: str) -> int:
    """An address as a number. Raises ``ValueError``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return int.from_bytes(socket.inet_pton(family, address), "big")
    except OSError as error:
        raise ValueError(f"not an address: {address}") from error


def is_link_local(address: str) -> bool:
    """Whether an address is good on one link only: fe80::/10 (RFC 4291)."""
    return ":" in address and number(address) >> 118 == 0xFE80 >> 6


def dotted(value: int) -> str:
    """A number as dotted address."""
    return socket.inet_ntoa(struct.pack("!I", value))


def _mask(length: int, bits: int) -> int:
    return ((1 << length) - 1) << (bits - length)


# Corners of the private ranges (RFC 1918) that other software's defaults leave alone: docker takes 172.17/16 to 172.31/16 and 192.168/16,
# podman 10.88/16 and 10.89/16, libvirt 192.168.122/24, LXC 10.0.3/24, Kubernetes 10.96/12, 10.244/16 and 10.42/15.
USER_PREFIX_LENGTH, USER_PREFIX_LENGTH6 = 24, 64  # of a user-defined network
POOLS = tuple(Subnet.parse(text) for text in ("10.210.0.0/16", "10.201.0.0/16", "10.187.0.0/16", "172.16.0.0/16", "192.168.192.0/18"))

USER_POOLS = (*(Subnet.parse(text) for text in ("10.211.0.0/16", "10.202.0.0/16", "10.188.0.0/16")), *POOLS)
"""For user-defined networks: pools of their own first, so that the default network keeps its subnet."""


def choose_subnet(occupied: Sequence[Subnet], pools: Iterable[Subnet] = POOLS, length: int = POOL_PREFIX_LENGTH) -> Subnet:
    """The first subnet of the pools that overlaps nothing.

    Raises:
        HostError: everything overlaps.
    """
    for pool in pools:
        for base in range(pool.base, pool.last + 1, 1 << (pool.bits - length)):
            candidate = Subnet(base, length, pool.bits)
            if collision(candidate, occupied) is None:
                return candidate
    raise HostError(
        "every subnet that netbox would take overlaps a route or an address of this host", "'ip route show table all' lists them"
    )


def collision(subnet: Subnet, occupied: Iterable[Subnet]) -> Subnet | None:
    """What the subnet overlaps. Default routes do not count, nor the parts with which a VPN covers one: halves (0.0.0.0/1 and 128.0.0.0/1),
    in IPv6 also 2000::/3 and all of fc00::/7.
    """
    for other in occupied:
        if other.length > (1 if other.bits == 32 else 7) and subnet.overlaps(other):
            return other
    return None


def gateway(subnet: Subnet) -> str:
    """The bridge's own address: the first of the subnet."""
    return subnet.written(subnet.base + 1)


def ula_prefix(secret: str) -> Subnet:
    """The /48 of unique local addresses of a host (RFC 4193): fd00::/8, then 40 bits out of ``secret``, such as its machine-id(5), which
    does not show in them.
    """
    import hashlib  # when a network is made

    digest = hashlib.sha256(f"netbox ULA {secret}".encode()).digest()
    return Subnet((0xFD << 40 | int.from_bytes(digest[:5], "big")) << 80, 48, 128)


def check_address(subnet: Subnet, gateway_address: str, wanted: str, reserved_addresses: Mapping[str, str] | None = None) -> None:
    """Whether a sandbox may have the address; ``reserved_addresses`` are those of ``--aux-address`` with their names.

    Raises:
        UsageError: it lies outside the subnet, or is the network's, the broadcast or the gateway's address.
    """
    option, kind = ("--ip", "an IPv4") if subnet.bits == 32 else ("--ip6", "an IPv6")
    try:
        if (":" in wanted) != (subnet.bits == 128):
            raise ValueError(wanted)
        value = number(wanted)
    except ValueError as error:
        raise UsageError(f"{option} {wanted}: not {kind} address", f"choose one of {subnet}") from error
    if not subnet.contains(value):
        raise UsageError(f"{option} {wanted} is outside the network's subnet {subnet}", f"choose one of {subnet}")
    if value in unusable(subnet):
        raise UsageError(f"{option} {wanted} is {unusable(subnet)[value]} ({subnet})", "choose another one")
    if wanted == gateway_address:
        raise UsageError(f"{option} {wanted} is the network's gateway", "choose another one")
    if reserved_addresses and wanted in reserved_addresses:
        raise UsageError(f"{option} {wanted} is reserved for {reserved_addresses[wanted]} (--aux-address)", "choose another one")


def unusable(subnet: Subnet) -> dict[int, str]:
    """The addresses of a subnet that no host can have. IPv6 knows no broadcast; its first address is that of every router (RFC 4291)."""
    if subnet.bits == 32:
        return {subnet.base: "the address of the network itself", subnet.last: "its broadcast address"}
    return {subnet.base: "the address of every router on the network"}


def next_address(
    subnet: Subnet,
    gateway_address: str,
    taken: Collection[str],
    released: Sequence[str],
    *,
    reserved: Collection[str] = (),
    within: Subnet | None = None,
) -> str:
    """The address for the next sandbox: the lowest that was never used; when there is none, the one that has been free for longest.

    ``within`` is a part of the subnet to which the choice is confined (``--ip-range``), ``reserved`` is nobody's.

    Neighbours and clients remember addresses, so one that was just freed is the worst choice.

    Raises:
        Conflict: the subnet is full.
    """
    used = {gateway_address, *taken, *released, *reserved}
    first, last = (subnet.base + 1, subnet.last - 1) if within is None else (within.base, within.last)
    first, last = max(first, subnet.base + 1), min(last, subnet.last - 1)
    for value in range(first, last + 1):
        address = dotted(value)
        if address not in used:
            return address
    for address in released:
        if address not in taken and first <= number(address) <= last and address != gateway_address and address not in reserved:
            return address
    where = f"the network {subnet}" if within is None else f"the range {within} of the network {subnet}"
    count = sum(":" not in address for address in taken)
    raise Conflict(f"{where} has no free address left: {count} are taken", "remove a sandbox")


def next_address6(
    subnet: Subnet,
    gateway_address: str,
    offset: int,
    taken: Collection[str],
    *,
    reserved: Collection[str] = (),
    within: Subnet | None = None,
) -> str:
    """The IPv6 address for a sandbox whose IPv4 address is the ``offset``-th of its subnet or range: the one at the same place, so that it
    is as stable; where that is not free, the lowest free one behind the places that IPv4 addresses have, or of the range ``within``.

    Raises:
        Conflict: the subnet is full.
    """
    used = {gateway_address, *taken, *reserved}
    room = subnet if within is None else within
    span = 1 << (room.bits - room.length)
    # A /64 has room behind 32 bits of offsets. In a small subnet places are shared.
    behind = 1 << 32 if within is None and span > 1 << 33 else 0
    for place in (offset, *range(behind, behind + len(used) + 2)):
        value = room.base + place
        if 0 <= place < span and value != subnet.base and subnet.written(value) not in used:
            return subnet.written(value)
    where = f"the network {subnet}" if within is None else f"the range {within} of the network {subnet}"
    count = sum(":" in address for address in taken)
    raise Conflict(f"{where} has no free address left: {count} are taken", "remove a sandbox")


def mac_for(address: str) -> str:
    """The MAC that goes with an address: always the same, so that what neighbours remember stays true."""
    return f"{MAC_PREFIX}:{number(address).to_bytes(4, 'big').hex(':')}"


def check_mac(mac: str) -> str:
    """A MAC in its usual form.

    Raises:
        UsageError: it is none, a multicast address, or zero.
    """
    text = mac.lower().replace("-", ":")
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 and set(part) <= set("0123456789abcdef") for part in parts):
        raise UsageError(f"--mac-address {mac}: not a MAC address", "write it as 02:42:ac:11:00:02")
    if int(parts[0], 16) & 1:
        raise UsageError(f"--mac-address {mac} is a multicast address", "the second digit must be even, as in 02:42:ac:11:00:02")
    if not any(int(part, 16) for part in parts):
        raise UsageError(f"--mac-address {mac} is zero", "write it as 02:42:ac:11:00:02")
    return text
