"""Networks: ``--network`` in docker's short and long form, and the options of ``network create``. Pure."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from typing import TypedDict, Unpack

from netbox.errors import UsageError
from netbox.parse import addresses, environment, names
from netbox.parse.text import PairsLike, each, pairs, parse_integer, plain_text, quote
from netbox.spec import NetworkAttachment, NetworkRequest

DEFAULT = "bridge"
DRIVERS = ("bridge", "macvlan")
MACVLAN_MODES = ("bridge", "private", "vepa", "passthru")
MTU_MIN, MTU_MAX = 68, 65535  # RFC 791; of a veth
_PREFIX_MIN, _PREFIX_MAX = 8, 30
_PREFIX6_MIN, _PREFIX6_MAX = 16, 126
MTU6_MIN = 1280  # RFC 8200
_PRIORITY_MAX = (1 << 31) - 1


def parse_attachment(value: str | NetworkAttachment, option: str = "network") -> NetworkAttachment:
    """``front``, or docker's long form ``name=front,ip=10.1.1.5,ip6=fd00::5,mac-address=…,alias=db,gw-priority=1``.

    Raises ``UsageError``.
    """
    if isinstance(value, NetworkAttachment):
        return value
    text = plain_text(value, option)
    if "=" not in text:
        return NetworkAttachment(addresses.parse_network(text, option))
    single: dict[str, str] = {}
    aliases: list[str] = []
    for part in text.split(","):
        key, _, content = part.partition("=")
        if key == "alias" and content:
            aliases.append(content)
        elif key in single or key not in ("name", "ip", "ip6", "mac-address", "gw-priority") or not content:
            why = "is given twice" if key in single else "has no value" if not content else "is not an option of a network"
            hint = "write name=…[,ip=…][,ip6=…][,mac-address=…][,alias=…][,gw-priority=…]"
            raise UsageError(f"{option} {quote(text)}: {quote(key)} {why}", hint)
        else:
            single[key] = content
    if "name" not in single:
        raise UsageError(f"{option} {quote(text)}: no name", "write name=NETWORK,…")
    return make_attachment(
        single["name"],
        ip=single.get("ip"),
        ip6=single.get("ip6"),
        mac_address=single.get("mac-address"),
        aliases=aliases,
        gw_priority=single.get("gw-priority"),
    )


class AttachmentOptions(TypedDict, total=False):
    """The keywords of ``make_attachment`` and ``Sandbox.connect``. ``None`` means "not asked for"."""

    ip: str | None
    ip6: str | None
    mac_address: str | None
    aliases: Iterable[str] | None
    gw_priority: str | int | None


def make_attachment(network: str, **options: Unpack[AttachmentOptions]) -> NetworkAttachment:
    """An attachment out of single options. Raises ``UsageError``."""
    ip, ip6, mac_address, priority = options.get("ip"), options.get("ip6"), options.get("mac_address"), options.get("gw_priority")
    item = NetworkAttachment(
        addresses.parse_network(network),
        None if ip is None else addresses.parse_sandbox_ip(ip),
        None if mac_address is None else addresses.parse_mac(mac_address),
        parse_aliases(options.get("aliases")),
        0 if priority is None else parse_integer(priority, "gw-priority", -_PRIORITY_MAX, _PRIORITY_MAX),
        None if ip6 is None else addresses.parse_sandbox_ip6(ip6),
    )
    check_aliases(item)
    return item


def parse_aliases(values: Iterable[str] | None) -> tuple[str, ...]:
    """Further names of a sandbox on a network. Raises ``UsageError``."""
    return tuple(dict.fromkeys(addresses.parse_hostname(alias, "alias").lower() for alias in each(values)))


def parse_networks(
    values: Iterable[str | NetworkAttachment] | None,
    ip: str | None,
    mac_address: str | None,
    aliases: Iterable[str] | None,
    ip6: str | None = None,
) -> tuple[str, tuple[NetworkAttachment, ...] | None]:
    """The mode, and the networks of mode ``bridge``: ``None`` for the default one alone, to which ``ip`` and ``mac_address`` of the request
    belong. With networks they are those of the first.

    Raises ``UsageError``.
    """
    asked = [parse_attachment(value) for value in each(values)] or [NetworkAttachment(DEFAULT)]
    extra = parse_aliases(aliases)
    for item in asked:
        if item.network in ("host", "none") or ":" in item.network:
            if len(asked) > 1:
                raise UsageError(f"network {item.network} cannot be combined with others", "leave the others out")
            if item != NetworkAttachment(item.network) or extra or ip6:
                raise UsageError(f"network {item.network} has no addresses and aliases of its own", "leave them out")
            return item.network, None
    twice = next((item.network for position, item in enumerate(asked) if item.network in {x.network for x in asked[:position]}), None)
    if twice is not None:
        raise UsageError(f"network {quote(twice)} is given twice", "leave one out")
    first = asked[0]
    if extra:
        asked[0] = first = first._replace(aliases=tuple(dict.fromkeys((*first.aliases, *extra))))
    for item in asked:
        check_aliases(item)
    if asked == [NetworkAttachment(DEFAULT)] and not ip6:
        return DEFAULT, None
    if (ip and first.ip) or (ip6 and first.ip6) or (mac_address and first.mac_address):
        raise UsageError(f"network {quote(first.network)} has two addresses", "give the address in one place")
    asked[0] = first._replace(ip=first.ip or ip, ip6=first.ip6 or ip6, mac_address=first.mac_address or mac_address)
    return DEFAULT, tuple(asked)


def check_aliases(item: NetworkAttachment) -> None:
    """The default network has no names, and so no aliases. Raises ``UsageError``."""
    if item.aliases and item.network == DEFAULT:
        raise UsageError("aliases are offered on user-defined networks only", "make one with 'netbox network create'")


def parse_subnet(value: str, option: str = "subnet") -> str:
    """A network such as ``10.20.30.0/24`` or ``fd00:1::/64``, with room for a gateway and a sandbox. Raises ``UsageError``."""
    text = plain_text(value, option)
    is_ipv6 = ":" in text
    hint = "write one such as fd00:1::/64" if is_ipv6 else "write one such as 10.20.30.0/24"
    address, separator, digits = text.partition("/")
    if not separator:
        raise UsageError(f"{option} {quote(text)}: no prefix length", hint)
    limits, bits = ((_PREFIX6_MIN, _PREFIX6_MAX), 128) if is_ipv6 else ((_PREFIX_MIN, _PREFIX_MAX), 32)
    length = parse_integer(digits, f"{option} {quote(text)}: prefix length", *limits, hint)
    address = addresses.parse_any_sandbox_ip(address, option)
    proper = _network(address, length, bits)
    if proper != address:
        raise UsageError(f"{option} {quote(text)}: not the first address of a network", f"write {proper}/{length}")
    return f"{address}/{length}"


def _network(address: str, length: int, bits: int) -> str:
    """The first address of the network that an address is in."""
    family = socket.AF_INET if bits == 32 else socket.AF_INET6
    number = int.from_bytes(socket.inet_pton(family, address), "big") & (((1 << length) - 1) << (bits - length))
    return socket.inet_ntop(family, number.to_bytes(bits // 8, "big"))


def by_family(values: Iterable[str] | str | None, option: str) -> tuple[str | None, str | None]:
    """The IPv4 and the IPv6 one of at most one value for each. Raises ``UsageError``."""
    found: list[str | None] = [None, None]
    for value in each(values):
        index = int(":" in value)
        if found[index] is not None:
            raise UsageError(f"{option} {quote(value)}: it is the second one of its family", "give one for IPv4 and one for IPv6")
        found[index] = value
    return found[0], found[1]


def parse_range(value: str, option: str = "ip-range") -> str:
    """A part of a subnet such as ``10.20.30.128/25`` or ``fd00:1::8000/113``; a single address may be one, too. Raises ``UsageError``."""
    text = plain_text(value, option)
    address, _, digits = text.partition("/")
    least, bits, example = (_PREFIX6_MIN, 128, "fd00:1::8000/113") if ":" in text else (_PREFIX_MIN, 32, "10.20.30.128/25")
    length = parse_integer(digits or str(bits), f"{option} {quote(text)}: prefix length", least, bits, f"write one such as {example}")
    return f"{_network(addresses.parse_any_sandbox_ip(address, option), length, bits)}/{length}"


def build_network(
    name: str,
    *,
    subnet: Iterable[str] | str | None = None,
    gateway: Iterable[str] | str | None = None,
    ip_range: Iterable[str] | str | None = None,
    aux_addresses: PairsLike | None = None,
    internal: bool = False,
    ipv6: bool = False,
    labels: PairsLike | None = None,
    options: PairsLike | None = None,
    driver: str | None = None,
) -> NetworkRequest:
    """The checked request for a network. ``options`` are those of ``-o``: ``mtu=1400``, ``parent=eth0``. ``subnet``, ``gateway`` and
    ``ip_range`` may be one for each family; an IPv6 subnet is enough for ``ipv6``. Raises ``UsageError``.
    """
    if driver not in (None, *DRIVERS):
        raise UsageError(f"driver {quote(driver)}: no such driver", "use bridge or macvlan")
    given = _parse_options(options, driver or DEFAULT)
    if driver == "macvlan":
        _check_macvlan(given.get("parent"), subnet, internal, ipv6)
    auxiliary: dict[str, str] = {}
    for key, value in pairs(aux_addresses, "aux-address"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", key) or not value:
            raise UsageError(f"aux-address {quote(key)}: not NAME=IP", "write it as router=10.20.30.5")
        address = addresses.parse_any_sandbox_ip(value, f"aux-address {key}")
        if key in auxiliary or address in auxiliary.values():
            raise UsageError(f"aux-address {key}={address}: it is given twice", "leave one out")
        auxiliary[key] = address
    subnet4, subnet6 = by_family(subnet, "subnet")
    gateway4, gateway6 = by_family(gateway, "gateway")
    range4, range6 = by_family(ip_range, "ip-range")
    mtu = None if "mtu" not in given else parse_integer(given["mtu"], "opt mtu", MTU_MIN, MTU_MAX, "write it in bytes, such as mtu=1400")
    if (ipv6 or subnet6) and mtu is not None and mtu < MTU6_MIN:
        raise UsageError(f"opt mtu={mtu}: IPv6 needs {MTU6_MIN} at least", f"write mtu={MTU6_MIN}, or leave --ipv6 out")
    return NetworkRequest(
        name=names.parse_name(name, "network"),
        subnet=None if subnet4 is None else parse_subnet(subnet4),
        gateway=None if gateway4 is None else addresses.parse_sandbox_ip(gateway4, "gateway"),
        ip_range=None if range4 is None else parse_range(range4),
        aux_addresses=tuple(auxiliary.items()),
        internal=bool(internal),
        labels=environment.parse_labels(labels),
        mtu=mtu,
        ipv6=bool(ipv6 or subnet6),
        subnet6=None if subnet6 is None else parse_subnet(subnet6),
        gateway6=None if gateway6 is None else addresses.parse_sandbox_ip6(gateway6, "gateway", link_local=driver == "macvlan"),
        ip_range6=None if range6 is None else parse_range(range6),
        driver=driver or DEFAULT,
        parent=given.get("parent"),
        macvlan_mode=given.get("macvlan_mode", "bridge") if driver == "macvlan" else None,
    )


def _parse_options(options: PairsLike | None, driver: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in pairs(options, "opt"):
        name = "mtu" if key == "com.docker.network.driver.mtu" else key
        if name not in ("mtu", "parent", "macvlan_mode"):
            raise UsageError(
                f"opt {quote(key)}: no such option", "write mtu=1400; with --driver macvlan also parent=eth0, macvlan_mode=bridge"
            )
        if name != "mtu" and driver != "macvlan":
            raise UsageError(f"opt {quote(key)}: it belongs to the driver macvlan", "add --driver macvlan")
        found[name] = value or ""
    parent, mode = found.get("parent"), found.get("macvlan_mode", "bridge")
    if parent is not None and not re.fullmatch(r"[^\s/:]{1,15}", parent):
        raise UsageError(f"opt parent {quote(parent)}: not the name of a link", "write one that 'ip link' shows, such as parent=eth0")
    if mode not in MACVLAN_MODES:
        raise UsageError(f"opt macvlan_mode {quote(mode)}: no such mode", f"use one of {', '.join(MACVLAN_MODES)}")
    return found


def _check_macvlan(parent: str | None, subnet: Iterable[str] | str | None, internal: bool, ipv6: bool) -> None:
    if parent is None:
        raise UsageError("driver macvlan: the link of the host is missing", "name it: -o parent=eth0")
    subnet4, subnet6 = by_family(subnet, "subnet")
    for is_missing, what in ((subnet4 is None, "subnet"), (ipv6 and subnet6 is None, "IPv6 subnet")):
        if is_missing:
            raise UsageError(
                f"driver macvlan: the {what} is missing", f"give that of the LAN, which 'ip addr show dev {parent}' tells: --subnet"
            )
    if internal:
        raise UsageError("--internal cannot be used with the driver macvlan: its sandboxes are on the LAN", "use --driver bridge")
