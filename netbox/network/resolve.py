"""The contents of a sandbox's /etc/hosts, /etc/hostname and /etc/resolv.conf: hosts(5), resolv.conf(5). Pure but for ``host_files``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from netbox.network.plan import NetworkPlan

HOST_GATEWAY = "host-gateway"
RESOLV_CONF = "/etc/resolv.conf"
SYSTEMD_RESOLV_CONF = (
    "/run/systemd/resolve/resolv.conf"  # the real resolvers behind systemd-resolved's 127.0.0.53 (systemd-resolved.service(8))
)
NO_SEARCH = "."

_LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_UNREACHABLE = "# the resolvers of the host listen on its loopback only and are out of reach from here: name one with --dns\n"


class HostFiles(NamedTuple):
    """What the host's own files say. ``upstream`` is systemd-resolved's list of real resolvers, empty without it."""

    hosts: str = ""
    hostname: str = ""
    resolv_conf: str = ""
    upstream: str = ""


def host_files() -> HostFiles:
    """The files of this host; what is not there is empty."""
    return HostFiles(_read("/etc/hosts"), os.uname().nodename, _read(RESOLV_CONF), _read(SYSTEMD_RESOLV_CONF))


def nameservers(resolv_conf: str) -> list[str]:
    """The addresses of ``nameserver`` lines."""
    return [words[1] for words in _lines(resolv_conf) if words[0] == "nameserver" and len(words) > 1]


def private_files(plan: NetworkPlan, host: HostFiles) -> dict[str, str]:
    """The files of a sandbox with a namespace of its own."""
    reachable = plan.way_out is not None
    return {
        "hosts": hosts(plan.hostname, own_addresses(plan), plan.extra_hosts),
        "hostname": f"{plan.hostname}\n",
        "resolv.conf": resolv_conf(host, plan.dns, plan.dns_search, plan.dns_options, reachable, plan.way_out6 is not None),
    }


def host_mode_files(plan: NetworkPlan, host: HostFiles) -> dict[str, str]:
    """The files of a sandbox in the host's namespace: the host's own, with what was asked for on top."""
    text = host.hosts if not host.hosts or host.hosts.endswith("\n") else f"{host.hosts}\n"
    asked = plan.dns or plan.dns_search or plan.dns_options
    return {
        "hosts": text + "".join(f"{address}\t{name}\n" for name, address in plan.extra_hosts),
        "hostname": f"{plan.hostname}\n",
        "resolv.conf": _merged(host.resolv_conf, plan.dns, plan.dns_search, plan.dns_options, nameservers(host.resolv_conf))
        if asked
        else host.resolv_conf,
    }


def own_addresses(plan: NetworkPlan) -> tuple[str, ...]:
    """The addresses for which the hosts file has the sandbox's name."""
    return tuple(address for endpoint in plan.endpoints for address in endpoint.addresses) or ("127.0.0.1",)


def hosts(hostname: str, addresses: Sequence[str], extra: Iterable[tuple[str, str]]) -> str:
    """A hosts file: loopback, what ``--add-host`` asked for, and the sandbox itself (a name with a domain also without it)."""
    return _LOCALHOST + "".join(f"{value}\t{name}\n" for name, value in extra) + _own_lines(hostname, addresses)


def renewed_hosts(text: str, hostname: str, addresses: Sequence[str]) -> str:
    """A hosts file with other addresses of the sandbox itself. What else is in it, perhaps by the sandbox's own hand, stays."""
    ending = f"\t{_own_names(hostname)}"
    kept = "".join(f"{line}\n" for line in text.splitlines() if not line.endswith(ending))
    return kept + _own_lines(hostname, addresses)


def _own_lines(hostname: str, addresses: Sequence[str]) -> str:
    return "".join(f"{address}\t{_own_names(hostname)}\n" for address in addresses)


def _own_names(hostname: str) -> str:
    return hostname if "." not in hostname else f"{hostname} {hostname.partition('.')[0]}"


def resolv_conf(
    host: HostFiles, dns: Sequence[str], search: Sequence[str], options: Sequence[str], reachable: bool = True, ipv6: bool = False
) -> str:
    """A resolv.conf for a namespace of its own.

    ``dns``, ``search`` and ``options`` each take the place of what the host has; a search list of ``.`` means none. Resolvers on the
    host's loopback are left out: they are out of reach. So are those with an IPv6 address unless the sandbox has a way out by ``ipv6``, and
    every one of the host's with ``reachable`` false.
    """
    source = host.resolv_conf
    usable = [server for server in nameservers(source) if _is_reachable(server, ipv6)]
    if not usable and host.upstream:
        source = host.upstream
        usable = [server for server in nameservers(source) if _is_reachable(server, ipv6)]
    if not reachable:
        return _merged("", dns, search, options, [])
    text = _merged(source, dns, search, options, usable)
    return text if usable or dns else _UNREACHABLE + text


def _merged(source: str, dns: Sequence[str], search: Sequence[str], options: Sequence[str], usable: Sequence[str]) -> str:
    domains, kept = search_and_options(source, search, options)
    text = "".join(f"nameserver {server}\n" for server in (dns or usable))
    if domains:
        text += f"search {' '.join(domains)}\n"
    if kept:
        text += f"options {' '.join(kept)}\n"
    return text


def search_and_options(source: str, search: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    """The search list and the options of a resolv.conf, where ``search`` and ``options`` do not take their place."""
    found_search: list[str] = []
    found_options: list[str] = []
    for words in _lines(source):
        if words[0] in ("search", "domain"):
            found_search = words[1:]  # the last one counts
        elif words[0] == "options":
            found_options += words[1:]
    return [name for name in (search or found_search) if name != NO_SEARCH], list(options or found_options)


def _lines(text: str) -> list[list[str]]:
    return [words for line in text.splitlines() if (words := line.split()) and not words[0].startswith(("#", ";"))]


def _is_reachable(server: str, ipv6: bool) -> bool:
    if ":" in server:  # a link-local one is good on a link of the host only, and :: means this host, as ::1 does
        return ipv6 and "%" not in server and not server.lower().startswith("fe80:") and server not in ("::", "::1")
    return not server.startswith("127.") and server != "0.0.0.0"  # 0.0.0.0 means this host, too


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
