"""Published ports, ``[ip:][hostport[-range]]:port[-range][/protocol]``, and exposed ones, ``[name=]port[-range][/protocol]``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from netbox.errors import UsageError
from netbox.parse.addresses import parse_ipv4
from netbox.parse.text import parse_integer, quote
from netbox.spec import ExposedPort, PortSpec

PORT_MAX = 65535
PROTOCOLS = ("tcp", "udp", "sctp")
_FORM_HINT = "write [ip:][hostport:]port[/tcp|udp|sctp], such as 8080:80, 127.0.0.1:5353:53/udp or 8000-8010:80-90"
_NAME_HINT = "use up to 15 lower-case letters, digits and single hyphens, at least one letter, as in http or metrics-2"
ANY_ADDRESS = "0.0.0.0"


def parse_port(value: str | int | PortSpec) -> PortSpec:
    """One published port or range; a number is the port inside, its host port chosen by netbox.

    Raises ``UsageError`` for ports outside 1 to 65535, reversed ranges, ranges of unequal length, unknown protocols and IPv6 addresses.
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
    if count == 1 < host_count:
        return PortSpec(port, host_port, 1, protocol, host_ip, host_count)
    if host_count != count:
        raise UsageError(
            f"port {quote(text)}: the ranges differ in length, {host_count} host ports for {count} ports inside",
            "make both ranges equally long, as in 8000-8010:80-90",
        )
    return PortSpec(port, host_port, count, protocol, host_ip)


def _split(rest: str, text: str) -> tuple[str, str | None, str]:
    """Host address, host port (None: to be chosen) and port inside, still as text."""
    if rest.startswith("[") or rest.count(":") > 2:
        raise UsageError(f"port {quote(text)}: publishing on an IPv6 address is not offered yet", "publish on an IPv4 address")
    parts = rest.split(":")
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
    if protocol not in PROTOCOLS:
        raise UsageError(f"port {quote(text)}: {quote(name)} is not a protocol that can be published", "write /tcp, /udp or /sctp")
    return protocol


def _check_port(port: PortSpec) -> PortSpec:
    parse_integer(port.length, "number of ports", 1, PORT_MAX)
    parse_integer(port.port, "port", 1, PORT_MAX)
    parse_integer(port.port + port.length - 1, "last port of a range", 1, PORT_MAX)
    parse_integer(port.host_port, "host port", 0, PORT_MAX)
    parse_integer(port.host_port + port.length - 1, "last host port of a range", 0, PORT_MAX)
    parse_integer(port.choices, "number of host ports to choose from", 1, PORT_MAX if port.host_port and port.length == 1 else 1)
    parse_integer(port.host_port + port.choices - 1, "last host port to choose", 0, PORT_MAX)
    return port._replace(protocol=_protocol(port.protocol, format_port(port)), host_ip=parse_ipv4(port.host_ip, "published address"))


def format_port(port: PortSpec) -> str:
    """The port in the form that ``parse_port`` reads back: ``8080:80``, ``127.0.0.1::53/udp``."""
    inside = _format_range(port.port, port.length) + ("" if port.protocol == "tcp" else f"/{port.protocol}")
    host = _format_range(port.host_port, max(port.length, port.choices)) if port.host_port else ""
    if port.host_ip != ANY_ADDRESS:
        return f"{port.host_ip}:{host}:{inside}"
    return f"{host}:{inside}" if host else inside


def _format_range(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def check_overlaps(ports: Sequence[PortSpec]) -> None:
    """Raises ``UsageError`` when two entries of one request want the same host port, or say the same thing twice."""
    for index, port in enumerate(ports):
        for other in ports[:index]:
            if port == other and port.choices == 1:
                raise UsageError(f"port {quote(format_port(port))} is published twice", "leave one of the two out")
            if _overlap(port, other):
                raise UsageError(
                    f"ports {quote(format_port(other))} and {quote(format_port(port))} want the same host port",
                    "choose different host ports",
                )


def _overlap(one: PortSpec, other: PortSpec) -> bool:
    if one.protocol != other.protocol or not one.is_settled or not other.is_settled:
        return False
    if one.host_ip != other.host_ip and ANY_ADDRESS not in (one.host_ip, other.host_ip):
        return False
    return one.host_port < other.host_port + other.length and other.host_port < one.host_port + one.length


def parse_expose(value: str | int | ExposedPort) -> ExposedPort:
    """One exposed port or range: ``80``, ``8000-8010/udp``, or with the name by which policies know it, ``http=80``.

    Names are those of services in RFC 6335, section 5.1. Raises ``UsageError``.
    """
    if isinstance(value, ExposedPort):
        value = format_expose(value)
    text = str(value)
    name, named, rest = text.partition("=") if "=" in text else ("", "", text)
    ports, separator, protocol = rest.partition("/")
    protocol = _protocol(protocol, text) if separator else "tcp"
    if named and not _is_service_name(name):
        raise UsageError(f"expose {quote(text)}: {quote(name)} is not the name of a port", _NAME_HINT)
    if ":" in ports:
        raise UsageError(f"expose {quote(text)}: only the port inside is exposed", f"publish it instead: -p {text}"[:120])
    first, count = _range(ports, text)
    if named and count > 1:
        raise UsageError(f"expose {quote(text)}: a name stands for one port", "leave the name out, or name a single port")
    return ExposedPort(first, count, protocol, name if named else None)


def _is_service_name(name: str) -> bool:
    return (
        len(name) <= 15
        and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name, re.ASCII) is not None
        and any("a" <= character <= "z" for character in name)
    )


def format_expose(port: ExposedPort) -> str:
    """The form that ``parse_expose`` reads back."""
    return f"{f'{port.name}=' if port.name else ''}{_format_range(port.port, port.length)}/{port.protocol}"


def parse_exposed(values: Iterable[str | int | ExposedPort]) -> tuple[ExposedPort, ...]:
    """All of one request, each once. Raises ``UsageError`` when one name stands for two ports."""
    found = tuple(dict.fromkeys(parse_expose(value) for value in values))
    names: dict[str, ExposedPort] = {}
    for port in found:
        if port.name is not None and names.setdefault(port.name, port) != port:
            known, other = format_expose(names[port.name]), format_expose(port)
            raise UsageError(f"expose: the name {port.name} stands for two ports, {known} and {other}", "choose two names")
    return found


def publish_all(exposed: Iterable[ExposedPort], published: Sequence[PortSpec]) -> tuple[PortSpec, ...]:
    """What ``-P`` adds: the exposed ports that are not published already, each on a free host port.

    Raises ``UsageError`` when nothing is exposed.
    """
    found: dict[tuple[str, int, int], PortSpec] = {}
    nothing = True
    for port in exposed:
        nothing = False
        covered = any(
            item.protocol == port.protocol and item.port <= port.port and port.port + port.length <= item.port + item.length
            for item in published
        )
        if not covered:
            found[port.protocol, port.port, port.length] = PortSpec(port.port, 0, port.length, port.protocol)
    if nothing:
        raise UsageError("publish-all (-P): no port is exposed", "expose some, as in --expose 80, or publish by -p")
    return tuple(found.values())


def selects(selector: str | int | PortSpec, port: PortSpec) -> bool:
    """Whether a published port is meant by what looks like one: host port and address count where they are given. Raises ``UsageError``."""
    wanted = parse_port(selector)
    return (
        (wanted.port, wanted.length, wanted.protocol) == (port.port, port.length, port.protocol)
        and (not wanted.host_port or (wanted.host_port, wanted.choices) == (port.host_port, port.choices))
        and (on_all_addresses(selector) or wanted.host_ip == port.host_ip)
    )


def on_all_addresses(value: str | int | PortSpec) -> bool:
    """Whether a port is published on every address of the host without anybody having said so: ``8080:80``, not ``0.0.0.0:8080:80``."""
    if isinstance(value, PortSpec):
        return value.host_ip == ANY_ADDRESS
    return "[" not in str(value) and not str(value).rpartition(":")[0].rpartition(":")[0]
