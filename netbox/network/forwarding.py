"""IPv6 forwarding of the host, for as long as a network with IPv6 stands, and what has to go along with it.

There is one switch for the whole host (``net.ipv6.conf.all.forwarding``), and a host that forwards takes no router advertisements by
default: its own way out would go. So every interface that takes them (``accept_ra`` 1) takes them as a router as well (2) before the switch
is turned. The last network puts all of it back. Source: ip-sysctl of the kernel's documentation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from netbox.errors import HostError, Unsupported
from netbox.kernel import sysctl
from netbox.network.facts import boot_id
from netbox.state.journal import NETWORK
from netbox.state.store import Store

KIND = "ipv6_forwarding"
SWITCH = "net.ipv6.conf.all.forwarding"
_DIRECTORY = "/proc/sys/net/ipv6/conf"


def is_supported() -> bool:
    """Whether this kernel has IPv6."""
    return os.path.exists(_DIRECTORY)


def before(store: Store, own_bridges: Iterable[str]) -> dict[str, str]:
    """The sysctls that ``turn_on`` changes as they were before the first of our networks came up; empty where the host forwards anyway.

    Raises:
        HostError: they cannot be read.
    """
    for owner, scope in store.journal_owners(NETWORK):
        for row in store.journal(owner, scope).rows():
            if row.kind == KIND and row.args["boot_id"] == boot_id():
                return dict(row.args["old"])
    if sysctl.read(SWITCH) != "0":
        return {}
    own = set(own_bridges)
    found = {}
    for interface in sorted(os.listdir(_DIRECTORY)):
        if interface not in own:
            name = f"net/ipv6/conf/{interface}"
            for key, wanted in (("accept_ra", "1"), ("forwarding", "1")):
                if _read(f"{name}/{key}") == wanted:
                    found[f"{name}/{key}"] = wanted
    return {**found, SWITCH: "0"}


def turn_on(old: dict[str, str]) -> None:
    """Lets the host forward, and go on taking router advertisements where it took them.

    Raises:
        HostError: the kernel refuses.
    """
    for name in old:
        if name.endswith("/accept_ra"):
            _write(name, "2")
    if sysctl.read(SWITCH) != "1":
        sysctl.write(SWITCH, "1")


def restore(old: dict[str, str]) -> None:
    """Puts back what ``before`` returned. Interfaces that have gone are passed over.

    Raises:
        HostError: the kernel refuses.
    """
    if SWITCH in old:
        _write(SWITCH, old[SWITCH])  # for every interface; those that forwarded by themselves follow
    for name, value in old.items():
        if name != SWITCH:
            _write(name, value)


def commands(old: dict[str, str]) -> list[str]:
    """What ``turn_on`` does, as a person would type it. Pure."""
    return [f"sysctl -qw {name}=2" for name in old if name.endswith("/accept_ra")] + [f"sysctl -qw {SWITCH}=1"]


def _read(name: str) -> str:
    try:
        return sysctl.read(name)
    except (HostError, Unsupported):  # the interface has just gone
        return ""


def _write(name: str, value: str) -> None:
    try:
        sysctl.write(name, value)
    except Unsupported:
        return  # the interface has gone
