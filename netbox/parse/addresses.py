"""Addresses, host names and network modes. Pure: nothing is looked up."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping

from netbox.errors import UsageError
from netbox.parse.text import PairsLike, each, plain_text, quote

HOST_GATEWAY = "host-gateway"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOSTNAME_MAX = 64  # __NEW_UTS_LEN, <linux/utsname.h>
_DOMAIN_MAX = 253


def parse_ipv4(value: str, option: str = "address") -> str:
    """An IPv4 address in four decimal numbers that a host can have or bind. Raises ``UsageError``."""
    hint = "write an IPv4 address such as 172.30.0.10"
    text = plain_text(value, option)
    try:
        first = socket.inet_pton(socket.AF_INET, text)[0]
    except (OSError, UnicodeError):
        raise UsageError(f"{option} {quote(text)}: not an IPv4 address", hint) from None
    if 224 <= first <= 239:
        raise UsageError(f"{option} {quote(text)}: a multicast address", hint)
    if first >= 240:
        raise UsageError(f"{option} {quote(text)}: a reserved address", hint)
    return text


def parse_sandbox_ip(value: str, option: str = "ip") -> str:
    """An address that a sandbox can have: IPv4, unicast, neither loopback nor 0.x.x.x. Raises ``UsageError``."""
    text = parse_ipv4(value, option)
    if text.startswith(("127.", "0.")):
        kind = "a loopback address" if text.startswith("127.") else "not the address of a host"
        raise UsageError(f"{option} {quote(text)}: {kind}", "choose an address of the network's subnet")
    return text


def parse_ipv6(value: str, option: str = "address", link_local: bool = False) -> str:
    """An IPv6 address that a host can have or bind, in its shortest form (RFC 5952); brackets are taken off. With ``link_local`` it may be
    good on one link only. Raises ``UsageError``.
    """
    hint = "write an IPv6 address such as fd00:1::10"
    text = plain_text(value, option)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        packed = socket.inet_pton(socket.AF_INET6, bare)
    except (OSError, UnicodeError):
        raise UsageError(f"{option} {quote(text)}: not an IPv6 address", hint) from None
    for is_it, kind in (
        (packed[0] == 0xFF, "a multicast address"),
        (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 and not link_local, "a link-local address, which is good on one link only"),
        (packed[:12] == bytes(10) + b"\xff\xff", "an IPv4 address in the form of IPv6"),
    ):
        if is_it:
            raise UsageError(f"{option} {quote(text)}: {kind}", hint)
    return socket.inet_ntop(socket.AF_INET6, packed)


def parse_sandbox_ip6(value: str, option: str = "ip6", link_local: bool = False) -> str:
    """An IPv6 address that a sandbox can have: unicast, neither loopback nor (without ``link_local``) link-local. Raises ``UsageError``."""
    text = parse_ipv6(value, option, link_local)
    if text in ("::", "::1"):
        kind = "the loopback address" if text == "::1" else "not the address of a host"
        raise UsageError(f"{option} {quote(text)}: {kind}", "choose an address of the network's subnet")
    return text


def parse_any_sandbox_ip(value: str, option: str) -> str:
    """An address of either family that a sandbox can have. Raises ``UsageError``."""
    return parse_sandbox_ip6(value, option) if ":" in plain_text(value, option) else parse_sandbox_ip(value, option)


def parse_any_address(value: str, option: str) -> str:
    """An IPv4 or IPv6 address, for entries that only land in files. Brackets around IPv6 are taken off. Raises ``UsageError``."""
    text = plain_text(value, option)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, bare)
        except (OSError, UnicodeError):
            continue
        return bare
    raise UsageError(f"{option} {quote(text)}: not an address", "write an IPv4 or IPv6 address")


def parse_mac(value: str, option: str = "mac-address") -> str:
    """A MAC address as ``02:42:ac:11:00:02``, lower case. Raises ``UsageError`` for multicast, zero and unreadable ones."""
    hint = "write six pairs of hexadecimal digits such as 02:42:ac:11:00:02"
    text = plain_text(value, option)
    if not re.fullmatch(r"[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(?:\1[0-9a-fA-F]{2}){4}", text, re.ASCII):
        raise UsageError(f"{option} {quote(text)}: not a MAC address", hint)
    mac = text.replace("-", ":").lower()
    if int(mac[:2], 16) & 1:
        raise UsageError(f"{option} {quote(text)}: a multicast address, its first byte is odd", "make the first byte even, such as 02")
    if mac == "00:00:00:00:00:00":
        raise UsageError(f"{option} {quote(text)}: the zero address", hint)
    return mac


def parse_hostname(value: str, option: str = "hostname") -> str:
    """A host name: labels of letters, digits, ``-`` and ``_`` joined by dots, 64 characters at most. Raises ``UsageError``."""
    text = plain_text(value, option)
    if len(text) > _HOSTNAME_MAX:
        raise UsageError(f"{option} {quote(text)}: {len(text)} characters, the kernel takes {_HOSTNAME_MAX}", "choose a shorter one")
    if not _is_domain(text):
        raise UsageError(f"{option} {quote(text)}: not a host name", "use letters, digits, '-' and '.', such as web.example")
    return text


def _is_domain(text: str) -> bool:
    return len(text) <= _DOMAIN_MAX and all(re.fullmatch(_LABEL, label, re.ASCII) for label in text.split("."))


def parse_search_domain(value: str, option: str = "dns-search") -> str:
    """A domain for resolv.conf's ``search``, or ``.`` for none. Raises ``UsageError``."""
    text = plain_text(value, option)
    if text != "." and not _is_domain(text.removesuffix(".")):
        raise UsageError(f"{option} {quote(text)}: not a domain", "write a domain such as example.org, or . for none")
    return text


def parse_dns_option(value: str, option: str = "dns-option") -> str:
    """An option for resolv.conf, such as ``ndots:2``; resolv.conf(5). Raises ``UsageError``."""
    text = plain_text(value, option)
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}(:[0-9]{1,6})?", text, re.ASCII):
        raise UsageError(f"{option} {quote(text)}: not an option of resolv.conf", "write one such as ndots:2 or rotate")
    return text


def parse_extra_hosts(values: PairsLike | None) -> tuple[tuple[str, str], ...]:
    """Entries for /etc/hosts from ``name:address``, ``name=address`` or a mapping; the address may be ``host-gateway``.

    Raises ``UsageError``.
    """
    items: Iterable[str | tuple[str, str]] | None = list(values.items()) if isinstance(values, Mapping) else values
    result = []
    for item in each(items):
        if isinstance(item, tuple):
            name, address = item
        else:
            text = plain_text(item, "add-host")
            match = re.fullmatch(r"([^:=]+)[:=](.+)", text, re.DOTALL)
            if match is None:
                raise UsageError(f"add-host {quote(text)}: no address", "write name:address or name:host-gateway")
            name, address = match[1], match[2]
        if not _is_domain(plain_text(name, "add-host")):
            raise UsageError(f"add-host {quote(item)}: {quote(name)} is not a host name", "write name:address")
        result.append((name, address if address == HOST_GATEWAY else parse_any_address(address, "add-host")))
    return tuple(result)


def parse_network(value: str, option: str = "network") -> str:
    """``bridge``, ``host``, ``none``, ``container:NAME``, ``ns:PATH`` or the name of a network, which the engine looks up.

    Raises ``UsageError``.
    """
    hint = "write bridge, host, none, container:NAME or ns:PATH"
    text = plain_text(value, option)
    kind, separator, target = text.partition(":")
    if separator:
        if kind == "ns":
            if not target.startswith("/"):
                raise UsageError(f"{option} {quote(text)}: {quote(target)} is not an absolute path", "write it as ns:/run/netns/NAME")
            return text
        if kind != "container":
            raise UsageError(f"{option} {quote(text)}: {quote(kind)} is not a kind of network", hint)
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}", target, re.ASCII):
            raise UsageError(f"{option} {quote(text)}: {quote(target)} is not the name or id of a sandbox", hint)
        return text
    if text == "default":
        return "bridge"
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}", text, re.ASCII):
        raise UsageError(f"{option} {quote(text)}: not the name of a network", hint)
    return text
