"""Which name is whose: from the members of the networks to the answer for one question. Pure."""

from __future__ import annotations

import socket
from collections import namedtuple

from netbox.network.nameservice import message
from netbox.network.nameservice.message import Question, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NamedTuple

    class Member(NamedTuple):
        """A sandbox on a network: its names there, its IPv4 and IPv6 addresses there, and the resolvers that ``--dns`` gave it."""

        sandbox_id: str
        name: str
        aliases: tuple[str, ...] = ()
        addresses: tuple[str, ...] = ()
        dns: tuple[str, ...] = ()

    class Served(NamedTuple):
        """A network that the name service serves: bridge device, gateway addresses (where it listens) and subnets (``10.201.0.0/20``).
        Names outside are not resolved for sandboxes that are on ``internal`` networks only. ``port`` is another one than 53 where a program
        of the host has that."""

        name: str
        bridge: str
        gateways: tuple[str, ...]
        subnets: tuple[str, ...] = ()
        internal: bool = False
        port: int = 53

    class Answer(NamedTuple):
        """What is known here: a response code and records."""

        code: int
        records: tuple[Record, ...] = ()

    class Forward(NamedTuple):
        """What others know: asked of the sandbox's own resolvers, of the host's where it has none."""

        resolvers: tuple[str, ...] = ()
else:
    Member = namedtuple("Member", "sandbox_id name aliases addresses dns", defaults=((), (), ()))
    Served = namedtuple("Served", "name bridge gateways subnets internal port", defaults=((), False, 53))
    Answer = namedtuple("Answer", "code records", defaults=((),))
    Forward = namedtuple("Forward", "resolvers", defaults=((),))

DOMAIN = "netbox.internal"  # "internal" is set aside for private use and never delegated (ICANN, 2024)
TTL = 5  # seconds; nothing on a sandbox's address outlives it by more
_SHORT_ID = 12
_LOOPBACK = {message.A: bytes((127, 0, 0, 1)), message.AAAA: bytes(15) + b"\1"}


def domain(network: str) -> str:
    """The search domain of a network."""
    return f"{network}.{DOMAIN}".lower()


def packed(address: str) -> bytes:
    """An address as 4 or 16 bytes. Raises OSError for what is none."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def subnet(text: str) -> tuple[int, int, int]:
    """``10.201.0.0/20`` as (bytes of an address, prefix without its host bits, number of host bits)."""
    address, _, length = text.partition("/")
    value = packed(address)
    host_bits = len(value) * 8 - int(length)
    return len(value), int.from_bytes(value, "big") >> host_bits, host_bits


def reverse_address(labels: Sequence[bytes]) -> bytes | None:
    """The address that a name below in-addr.arpa or ip6.arpa stands for (RFC 1035, 3.5; RFC 3596, 2.5); ``None`` for another name."""
    end = tuple(labels[-2:])
    if end == (b"in-addr", b"arpa") and len(labels) == 6:
        numbers = [int(label) for label in labels[3::-1] if label.isdigit() and len(label) <= 3]
        return bytes(numbers) if len(numbers) == 4 and max(numbers) < 256 else None
    if end == (b"ip6", b"arpa") and len(labels) == 34:
        digits = b"".join(labels[31::-1])
        return bytes.fromhex(digits.decode()) if len(digits) == 32 and all(digit in b"0123456789abcdef" for digit in digits) else None
    return None


def text_of(labels: Iterable[bytes]) -> str:
    """A dotted name. A dot inside a label is escaped, so that it is never taken for one between labels."""
    return ".".join(label.decode("latin-1").replace("\\", "\\\\").replace(".", "\\.") for label in labels)


class Network:
    """The names of one network."""

    def __init__(self, served: Served, members: Iterable[Member]) -> None:
        self.served = served
        self.members = tuple(members)
        self.names: dict[str, list[Member]] = {}
        self.addresses: dict[bytes, Member] = {}
        self.subnets = [subnet(text) for text in served.subnets]
        self.suffixes = (f".{domain(served.name)}", f".{served.name.lower()}")
        for member in self.members:
            for name in {item.lower() for item in (member.name, *member.aliases, member.sandbox_id[:_SHORT_ID])}:
                self.names.setdefault(name, []).append(member)
            for address in member.addresses:
                self.addresses[packed(address)] = member

    def find(self, name: str) -> list[Member]:
        """The members that answer to a name, with or without the network's own."""
        found = self.names.get(name)
        for suffix in self.suffixes:
            if not found and name.endswith(suffix):
                found = self.names.get(name[: -len(suffix)])
        return found or []

    def contains(self, address: bytes) -> bool:
        """Whether the address is in one of the network's subnets."""
        number = int.from_bytes(address, "big")
        return any(size == len(address) and number >> host_bits == prefix for size, prefix, host_bits in self.subnets)


class Zones:
    """All networks. What a sandbox can ask for is what is on the networks that it is on."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self.networks = {network.served.name: network for network in networks}
        self._of_sandbox: dict[str, list[Network]] = {}
        for network in self.networks.values():
            for identity in {member.sandbox_id for member in network.members}:
                self._of_sandbox.setdefault(identity, []).append(network)

    def decide(self, asked: str, client: bytes, query: Question, turn: int = 0) -> Answer | Forward:
        """What becomes of a question that came to the network ``asked`` from an address. ``turn`` is counted up by the caller: each of
        several addresses is the first one in turn."""
        if query.class_ not in (message.CLASS_IN, message.CLASS_ANY) or query.type in (message.AXFR, message.IXFR):
            return Answer(message.REFUSED)
        here = self.networks.get(asked)
        if here is None:
            return Answer(message.SERVFAIL)
        member = here.addresses.get(client)
        scope = [here]
        if member is not None:
            scope += [network for network in self._of_sandbox[member.sandbox_id] if network is not here]
        known = self._known(scope, query, turn)
        if known is not None:
            return known
        if all(network.served.internal for network in scope):
            return Answer(message.REFUSED)
        return Forward(member.dns if member is not None else ())

    def _known(self, scope: Sequence[Network], query: Question, turn: int) -> Answer | None:
        name = text_of(query.labels)
        for network in scope:
            members = network.find(name)
            if members:
                return Answer(message.NOERROR, _addresses(members, query.type, turn))
        if not query.labels:
            return None  # the root's own records
        if query.labels[-1] == b"localhost":  # RFC 6761, 6.3
            return Answer(message.NOERROR, tuple(Record(kind, data, TTL) for kind, data in _LOOPBACK.items() if _asked(query.type, kind)))
        address = reverse_address(query.labels)
        if address is not None:
            return self._reverse(scope, address, query.type)
        if name == DOMAIN or any(name == domain(network.served.name) for network in scope):
            return Answer(message.NOERROR)
        if len(query.labels) == 1 or name.endswith(f".{DOMAIN}"):
            return Answer(message.NXDOMAIN)
        return None

    def _reverse(self, scope: Sequence[Network], address: bytes, kind: int) -> Answer | None:
        for network in scope:
            member = network.addresses.get(address)
            if member is not None:
                wire = message.encode_name(f"{member.name}.{domain(network.served.name)}")
                records = (Record(message.PTR, wire, TTL),) if wire is not None and _asked(kind, message.PTR) else ()
                return Answer(message.NOERROR, records)
        # An address of a network of ours is nobody else's business.
        return Answer(message.NXDOMAIN) if any(network.contains(address) for network in self.networks.values()) else None


def _asked(kind: int, record: int) -> bool:
    return kind in (record, message.ANY)


def _addresses(members: Iterable[Member], kind: int, turn: int) -> tuple[Record, ...]:
    found = []
    for address in dict.fromkeys(address for member in members for address in member.addresses):
        data = packed(address)
        record = Record(message.A if len(data) == 4 else message.AAAA, data, TTL)
        if _asked(kind, record.type):
            found.append(record)
    start = turn % len(found) if found else 0
    return tuple(found[start:] + found[:start])
