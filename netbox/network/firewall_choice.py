"""Which firewall backend this host gets, and why.

``NETBOX_FIREWALL`` forces one. Else (``auto``) nftables is taken where the host's own rules live in nf_tables, so that all rules are in one
place and one order, or where the legacy tables cannot be had; iptables otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from netbox.errors import UsageError
from netbox.kernel import nftables
from netbox.kernel.iptables import loaded_tables
from netbox.network.firewall import FirewallBackend
from netbox.network.firewall_lock import exclusive

VARIABLE = "NETBOX_FIREWALL"
IPTABLES, NFTABLES, AUTO = "iptables", "nftables", "auto"
NAMES = (IPTABLES, NFTABLES)
_OWN_TABLE = "netbox"  # of ip and ip6
_LEGACY_NAMES = "/proc/thread-self/net/ip_tables_names"


class Choice(NamedTuple):
    """A backend, and why it is taken."""

    name: str
    reason: str


class Situation(NamedTuple):
    """What the choice depends on. ``tables`` are others' nf_tables tables with rules on hooks, or ``None`` when the kernel has none."""

    forced: str
    legacy: bool
    library: bool
    tables: tuple[str, ...] | None


def requested() -> str:
    """What ``NETBOX_FIREWALL`` asks for.

    Raises:
        UsageError: it is none of ``iptables``, ``nftables``, ``auto``.
    """
    value = os.environ.get(VARIABLE) or AUTO
    if value not in (*NAMES, AUTO):
        raise UsageError(f"{VARIABLE}={value}: no such firewall backend", f"choose from {', '.join((*NAMES, AUTO))}")
    return value


def choose() -> Choice:
    """The backend for the calling thread's network namespace. Takes a fraction of a millisecond.

    Raises:
        UsageError: see ``requested``.
    """
    forced = requested()
    if forced != AUTO:
        return decide(Situation(forced, True, True, ()))
    tables = foreign_tables()
    legacy = has_legacy_tables()
    # Loading the library takes some milliseconds: only where the answer matters.
    return decide(Situation(forced, legacy, bool((tables or not legacy) and tables is not None and nftables.is_installed()), tables))


def decide(situation: Situation) -> Choice:
    """The choice. Pure."""
    if situation.forced != AUTO:
        return Choice(situation.forced, f"{VARIABLE} says so")
    if situation.tables:
        where = f"rules of this host are in nf_tables ({', '.join(situation.tables)})"
        if situation.library:
            return Choice(NFTABLES, where)
        if situation.legacy:
            return Choice(IPTABLES, f"{where}, but libnftables1 is not installed")
    if not situation.legacy and situation.tables is not None:
        return Choice(NFTABLES, "the legacy tables are missing")
    return Choice(IPTABLES, "no rules of others are in nf_tables" if situation.tables is not None else "this kernel has no nf_tables")


def backend(name: str) -> FirewallBackend:
    """The backend of this name."""
    if name == NFTABLES:
        from netbox.network.firewall_nftables import NftablesBackend

        return NftablesBackend()
    from netbox.network.firewall_iptables import IptablesBackend

    return IptablesBackend()


def foreign_tables() -> tuple[str, ...] | None:
    """Others' tables of IPv4 or IPv6 that have something on a hook: a rule, or the policy DROP. ``None`` without nf_tables.

    A table that ``iptables -L`` of the nf_tables kind has just made, with nothing in it, is not where a host's rules live.
    """
    try:
        chains = nftables.base_chains()
    except OSError:
        return None
    return tuple(sorted({f"{chain.family} {chain.table}" for chain in chains if (chain.rules or chain.drops) and not _own(chain)}))


def has_legacy_tables() -> bool:
    """Whether python-iptables is there, and a kernel whose legacy tables it can use (or whose module can be loaded)."""
    import importlib.util

    if importlib.util.find_spec("iptc") is None:
        return False
    return os.path.exists(_LEGACY_NAMES) or _module_is_ready()


@contextmanager
def chosen() -> Iterator[FirewallBackend]:
    """The backend for this host, while nobody else of netbox changes rules or takes another one.

    Raises what ``choose`` raises.
    """
    with exclusive():
        yield backend(choose().name)


def remove_everywhere(owners: Iterable[str], but: str = "") -> None:
    """Takes the rules of owners away from every backend that may hold some in the calling thread's network namespace, ``but`` one.

    Raises what ``FirewallBackend.apply`` raises.
    """
    with exclusive():
        remove(owners, occupied() - {but})


def occupied() -> set[str]:
    """The backends that may have something of ours in the calling thread's network namespace. Cheap, and loads no library."""
    import importlib.util

    found = {NFTABLES} if nftables.has_table(_OWN_TABLE) or nftables.has_table(_OWN_TABLE, "ip6") else set()
    # Without python-iptables none of the rules in the legacy tables is ours.
    return found | ({IPTABLES} if (loaded_tables() or loaded_tables(ipv6=True)) and importlib.util.find_spec("iptc") is not None else set())


def remove(owners: Iterable[str], backends: Iterable[str]) -> None:
    """Takes the rules of owners away from every one of the backends. Rules may have moved from one to another since they were put in.

    Raises what ``FirewallBackend.apply`` raises.
    """
    with exclusive():
        for name in sorted(set(backends)):
            backend(name).apply(remove=list(owners))


def _own(chain: nftables.BaseChain) -> bool:
    return chain.table == _OWN_TABLE and chain.family in ("ip", "ip6")


def _module_is_ready() -> bool:
    try:
        with open(f"/lib/modules/{os.uname().release}/modules.dep", encoding="utf-8", errors="replace") as file:
            return "/ip_tables.ko" in file.read()
    except OSError:
        return False
