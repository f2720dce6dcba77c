"""Published ports: ``[ip:][hostport[-range]]:port[-range][/protocol]``. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from netbox.errors import UsageError
from netbox.parse.addresses import parse_ipv4, parse_ipv6
from netbox.parse.text import parse_integer, quote
from netbox.spec import PortSpec

PORT_MAX = 65535
_FORM_HINT = "write [ip:][hostport:]port[/tcp|udp], such as 8080:80, 127.0.0.1:5353:53/udp, [::1]:8080:80 or 8000-8010:80-90"
ANY_ADDRESS = "0.0.0.0"
ANY_ADDRESS6 = "::"


def parse_port(value: str | int | PortSpec) -> PortSpec:
    """One published port or range; a number is the port inside, its host port chosen by netbox.

    Raises ``UsageError`` for ports outside 1 to 65535, reversed ranges, ranges of unequal length, unknown protocols.
    """
    if isinstance(value, PortSpec):
        return _check_port(value)
    text = str(value)
    rest, separator, protocol = text.partition("/")
    protocol = _protocol(protocol, text) if separator else "tcp"
    host_ip, host, inside = _split(rest, text)
    port, count = _range(inside, text)
    if host is None:
        return PortSpec(port, 0, count, protocol, host_ip)
    host_port, host_count = _range(host, text, "leave the host port out to have a free one chosen, as in -p 80")
    if host_count != count:
        raise UsageError(
            f"port {quote(text)}: the ranges differ in length, {host_count} host ports for {count} ports inside",
            "make both ranges equally long, as in 8000-8010:80-90",
        )
    return PortSpec(port, host_port, count, protocol, host_ip)


def _split(rest: str, text: str) -> tuple[str, str | None, str]:
    """Host address, host port (None: to be chosen) and port inside, still as text."""
    if rest.startswith("["):
        address, bracket, behind = rest.partition("]")
        parts = behind.split(":")
        if not bracket or len(parts) != 3 or parts[0]:
            raise UsageError(f"port {quote(text)}: no ports behind the address", "write it as [fd00:1::10]:8080:80")
        return parse_ipv6(address[1:], "published address"), parts[1] or None, parts[2]
    parts = rest.split(":")
    if len(parts) > 3:
        raise UsageError(f"port {quote(text)}: an IPv6 address stands in brackets", "write it as [fd00:1::10]:8080:80")
    if len(parts) == 1:
        return ANY_ADDRESS, None, parts[0]
    if len(parts) == 2:
        if "." in parts[0]:
            raise UsageError(
                f"port {quote(text)}: {quote(parts[0])} is not a port", f"for a chosen host port write {parts[0]}::{parts[1]}"[:120]
            )
        return ANY_ADDRESS, parts[0] or None, parts[1]
    return parse_ipv4(parts[0], "published address") if parts[0] else ANY_ADDRESS, parts[1] or None, parts[2]


def _range(part: str, text: str, zero_hint: str | None = None) -> tuple[int, int]:
    """First port and number of ports."""
    if not re.fullmatch(r"[0-9]+(-[0-9]+)?", part, re.ASCII):
        raise UsageError(f"port {quote(text)}: {quote(part)} is not a port", _FORM_HINT)
    first, _, last = part.partition("-")
    start = _number(first, text, zero_hint)
    end = _number(last, text, zero_hint) if last else start
    if end < start:
        raise UsageError(f"port {quote(text)}: the range {start}-{end} runs backwards", f"write {end}-{start}")
    return start, end - start + 1


def _number(digits: str, text: str, zero_hint: str | None) -> int:
    number = int(digits[:20])
    if not 1 <= number <= PORT_MAX:
        hint = zero_hint if zero_hint and number == 0 else f"use ports from 1 to {PORT_MAX}"
        raise UsageError(f"port {quote(text)}: {digits[:20]} is not between 1 and {PORT_MAX}", hint)
    return number


def _protocol(name: str, text: str) -> str:
    protocol = name.lower()
    if protocol == "sctp":
        raise UsageError(f"port {quote(text)}: publishing SCTP is not offered yet", "publish tcp or udp")
    if protocol not in ("tcp", "udp"):
        raise UsageError(f"port {quote(text)}: {quote(name)} is not a protocol that can be published", "write /tcp or /udp")
    return protocol


def _check_port(port: PortSpec) -> PortSpec:
    parse_integer(port.length, "number of ports", 1, PORT_MAX)
    parse_integer(port.port, "port", 1, PORT_MAX)
    parse_integer(port.port + port.length - 1, "last port of a range", 1, PORT_MAX)
    parse_integer(port.host_port, "host port", 0, PORT_MAX)
    parse_integer(port.host_port + port.length - 1, "last host port of a range", 0, PORT_MAX)
    return port._replace(protocol=_protocol(port.protocol, format_port(port)), host_ip=_address(port.host_ip))


def _address(value: str) -> str:
    return parse_ipv6(value, "published address") if ":" in value else parse_ipv4(value, "published address")


def format_port(port: PortSpec) -> str:
    """The port in the form that ``parse_port`` reads back: ``8080:80``, ``127.0.0.1::53/udp``."""
    inside = _format_range(port.port, port.length) + ("" if port.protocol == "tcp" else f"/{port.protocol}")
    host = _format_range(port.host_port, port.length) if port.host_port else ""
    if port.host_ip != ANY_ADDRESS:
        return f"{bracketed(port.host_ip)}:{host}:{inside}"
    return f"{host}:{inside}" if host else inside


def bracketed(address: str) -> str:
    """An address as it stands before a port: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def _format_range(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def check_overlaps(ports: Sequence[PortSpec]) -> None:
    """Raises ``UsageError`` when two entries of one request want the same host port, or say the same thing twice."""
    for index, port in enumerate(ports):
        for other in ports[:index]:
            if port == other:
                raise UsageError(f"port {quote(format_port(port))} is published twice", "leave one of the two out")
            if _overlap(port, other):
                raise UsageError(
                    f"ports {quote(format_port(other))} and {quote(format_port(port))} want the same host port",
                    "choose different host ports",
                )


def _overlap(one: PortSpec, other: PortSpec) -> bool:
    if one.protocol != other.protocol or not one.host_port or not other.host_port:
        return False
    if (":" in one.host_ip) != (":" in other.host_ip):
        return False
    if one.host_ip != other.host_ip and not {ANY_ADDRESS, ANY_ADDRESS6} & {one.host_ip, other.host_ip}:
        return False
    return one.host_port < other.host_port + other.length and other.host_port < one.host_port + one.length
