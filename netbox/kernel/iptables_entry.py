"""A rule in the terms of iptables(8): a value, its check, and how a person would type it. Pure."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

_CHAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,27}")
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}\+?")
_COMMENT = re.compile(r"[A-Za-z0-9_.:/ -]{1,255}")
_STATES = frozenset({"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "SNAT", "DNAT"})
_TARGET_NAMES = frozenset({"ACCEPT", "DROP", "RETURN", "MASQUERADE", "DNAT"})
_PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


class Entry(NamedTuple):
    """A rule in the terms of iptables(8). An empty string means "any"; a leading ``!`` in an address or interface negates it.

    ``ports`` are the first and last destination port; ``states`` are those of ``--ctstate``; ``target`` is a verdict or one of our chains,
    ``to_destination`` the address of a DNAT; ``local`` asks for ``addrtype --dst-type LOCAL``; ``probability`` is the share of packets that
    match, at random.
    """

    chain: str
    target: str
    in_interface: str = ""
    out_interface: str = ""
    source: str = ""
    destination: str = ""
    protocol: str = ""
    ports: tuple[int, int] | None = None
    states: tuple[str, ...] = ()
    local: bool = False
    to_destination: str = ""
    comment: str = ""
    probability: float = 1.0


def arguments(entry: Entry) -> list[str]:
    """The entry as the arguments that a person gives to ``iptables`` behind ``-A CHAIN``."""
    words: list[str] = []
    for option, value in (
        ("-s", entry.source),
        ("-d", entry.destination),
        ("-i", entry.in_interface),
        ("-o", entry.out_interface),
        ("-p", entry.protocol),
    ):
        if value:
            words += ["!", option, value[1:]] if value.startswith("!") else [option, value]
    for match, parameters in matches(entry):
        words += ["-m", match]
        for name, value in parameters:
            words += [f"--{name}", value]
    words += ["-j", entry.target]
    if entry.to_destination:
        words += ["--to-destination", entry.to_destination]
    return words


def validate(entry: Entry) -> None:
    """Raises ``ValueError`` for a value that the C code behind python-iptables must never see."""
    if not _CHAIN.fullmatch(entry.chain) or not (entry.target in _TARGET_NAMES or _CHAIN.fullmatch(entry.target)):
        raise ValueError(f"bad chain or target: {entry.chain} {entry.target}")
    for interface in (entry.in_interface, entry.out_interface):
        if interface and not _INTERFACE.fullmatch(interface.removeprefix("!")):
            raise ValueError(f"bad interface name: {interface}")
    for address in (entry.source, entry.destination):
        if address:
            _check_network(address.removeprefix("!"))
    if entry.protocol and entry.protocol not in _PROTOCOLS:
        raise ValueError(f"bad protocol: {entry.protocol}")
    if entry.ports is not None and not (entry.protocol and 0 < entry.ports[0] <= entry.ports[1] <= 65535):
        raise ValueError(f"bad ports: {entry.ports}")
    if not _STATES.issuperset(entry.states):
        raise ValueError(f"bad connection states: {entry.states}")
    if not 0 < entry.probability <= 1:
        raise ValueError(f"bad probability: {entry.probability}")
    if entry.comment and not _COMMENT.fullmatch(entry.comment):
        raise ValueError(f"bad comment: {entry.comment}")
    if (entry.target == "DNAT") != bool(entry.to_destination):
        raise ValueError("a destination is for DNAT, and DNAT needs one")
    if entry.to_destination:
        _check_destination(entry.to_destination)


def _check_network(value: str) -> None:
    address, _, length = value.partition("/")
    _check_address(address)
    if length and not (length.isdigit() and int(length) <= 32):
        raise ValueError(f"bad network: {value}")


def _check_destination(value: str) -> None:
    address, _, ports = value.partition(":")
    _check_address(address)
    numbers = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5})(?:/(\d{1,5}))?)?", ports) if ports else None
    if ports and (numbers is None or not all(0 < int(number) <= 65535 for number in numbers.groups() if number)):
        raise ValueError(f"bad destination: {value}")


def _check_address(value: str) -> None:
    try:
        socket.inet_pton(socket.AF_INET, value)
    except (OSError, ValueError) as error:  # ValueError: an embedded NUL
        raise ValueError(f"bad address: {value!r}") from error


def matches(entry: Entry) -> list[tuple[str, list[tuple[str, str]]]]:
    """The match extensions that the entry needs, each with its options."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    if entry.ports is not None:
        first, last = entry.ports
        found.append((entry.protocol, [("dport", str(first) if first == last else f"{first}:{last}")]))
    if entry.local:
        found.append(("addrtype", [("dst-type", "LOCAL")]))
    if entry.states:
        found.append(("conntrack", [("ctstate", ",".join(entry.states))]))
    if entry.probability < 1:
        found.append(("statistic", [("mode", "random"), ("probability", f"{entry.probability:.10f}")]))
    if entry.comment:
        found.append(("comment", [("comment", entry.comment)]))
    return found
