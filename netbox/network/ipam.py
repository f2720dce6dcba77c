"""Subnets and addresses: which are free, which comes next. Pure; IPv4 as numbers, because the module ``ipaddress`` costs a start 5 ms."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from netbox.errors import Conflict, HostError, UsageError

POOL_PREFIX_LENGTH = 20
MAC_PREFIX = "02:6e"  # locally administered, unicast; the address follows


class Subnet(NamedTuple):
    """An IPv4 network: its first address as a number and the length of its prefix in bits."""

    base: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Subnet:
        """``10.210.0.0/20`` as a value; host bits are cleared. Raises ``ValueError``."""
        address, separator, length = text.partition("/")
        bits = int(length) if separator else 32
        if not 0 <= bits <= 32:
            raise ValueError(f"bad prefix length: {text}")
        return cls(number(address) & _mask(bits), bits)

    def __str__(self) -> str:
        return f"{dotted(self.base)}/{self.length}"

    @property
    def last(self) -> int:
        """The broadcast address."""
        return self.base | (~_mask(self.length) & 0xFFFFFFFF)

    def overlaps(self, other: Subnet) -> bool:
        """Whether they have an address in common."""
        return self.base <= other.last and other.base <= self.last

    def contains(self, address: int) -> bool:
        """Whether the address lies in it."""
        return self.base <= address <= self.last


def number(address: str) -> int:
    """A dotted address as a number. Raises ``ValueError``."""
    try:
        return int(struct.unpack("!I", socket.inet_pton(socket.AF_INET, address))[0])
    except OSError as error:
        raise ValueError(f"not an IPv4 address: {address}") from error


def dotted(value: int) -> str:
    """A number as dotted address."""
    return socket.inet_ntoa(struct.pack("!I", value))


def _mask(length: int) -> int:
    return (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF


# Corners of the private ranges (RFC 1918) that other software's defaults leave alone: docker takes 172.17/16 to 172.31/16 and 192.168/16,
# podman 10.88/16 and 10.89/16, libvirt 192.168.122/24, LXC 10.0.3/24, Kubernetes 10.96/12, 10.244/16 and 10.42/15.
USER_PREFIX_LENGTH = 24  # of a user-defined network
POOLS = tuple(Subnet.parse(text) for text in ("10.210.0.0/16", "10.201.0.0/16", "10.187.0.0/16", "172.16.0.0/16", "192.168.192.0/18"))

USER_POOLS = (*(Subnet.parse(text) for text in ("10.211.0.0/16", "10.202.0.0/16", "10.188.0.0/16")), *POOLS)
"""For user-defined networks: pools of their own first, so that the default network keeps its subnet."""


def choose_subnet(occupied: Sequence[Subnet], pools: Iterable[Subnet] = POOLS, length: int = POOL_PREFIX_LENGTH) -> Subnet:
    """The first subnet of the pools that overlaps nothing.

    Raises:
        HostError: everything overlaps.
    """
    for pool in pools:
        for base in range(pool.base, pool.last + 1, 1 << (32 - length)):
            candidate = Subnet(base, length)
            if collision(candidate, occupied) is None:
                return candidate
    raise HostError(
        "every subnet that netbox would take overlaps a route or an address of this host", "'ip route show table all' lists them"
    )


def collision(subnet: Subnet, occupied: Iterable[Subnet]) -> Subnet | None:
    """What the subnet overlaps. Default routes do not count, nor their halves (0.0.0.0/1 and 128.0.0.0/1), with which a VPN covers one."""
    for other in occupied:
        if other.length > 1 and subnet.overlaps(other):
            return other
    return None


def gateway(subnet: Subnet) -> str:
    """The bridge's own address: the first of the subnet."""
    return dotted(subnet.base + 1)


def check_address(subnet: Subnet, gateway_address: str, wanted: str, reserved_addresses: Mapping[str, str] | None = None) -> None:
    """Whether a sandbox may have the address; ``reserved_addresses`` are those of ``--aux-address`` with their names.

    Raises:
        UsageError: it lies outside the subnet, or is the network's, the broadcast or the gateway's address.
    """
    try:
        value = number(wanted)
    except ValueError as error:
        raise UsageError(f"--ip {wanted}: not an IPv4 address", f"choose one of {subnet}") from error
    if not subnet.contains(value):
        raise UsageError(f"--ip {wanted} is outside the network's subnet {subnet}", f"choose one of {subnet}")
    for reserved, what in ((subnet.base, "the address of the network itself"), (subnet.last, "its broadcast address")):
        if value == reserved:
            raise UsageError(f"--ip {wanted} is {what} ({subnet})", "choose another one")
    if wanted == gateway_address:
        raise UsageError(f"--ip {wanted} is the network's gateway", "choose another one")
    if reserved_addresses and wanted in reserved_addresses:
        raise UsageError(f"--ip {wanted} is reserved for {reserved_addresses[wanted]} (--aux-address)", "choose another one")


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
    raise Conflict(f"{where} has no free address left: {len(taken)} are taken", "remove a sandbox")


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
