"""Everybody's firewall rules in the calling thread's network namespace, as text or JSON: read only, nothing is changed or created.

Three sources: the legacy tables as ``iptables-legacy-save`` prints them, the tables that the ``iptables`` command of the nf_tables kind
made, and all of nf_tables as libnftables-json(5) has it. Each is asked only where a cheap look at the kernel says that there is something.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from typing import Any

from netbox.errors import FirewallError, Unsupported
from netbox.kernel import nftables

_TIMEOUT = 10.0  # seconds
_NAMES = {"ip": "/proc/thread-self/net/ip_tables_names", "ip6": "/proc/thread-self/net/ip6_tables_names"}
_SAVE = {
    ("legacy", "ip"): ("iptables-legacy-save", "iptables-save"),
    ("legacy", "ip6"): ("ip6tables-legacy-save", "ip6tables-save"),
    ("nft", "ip"): ("iptables-nft-save",),
    ("nft", "ip6"): ("ip6tables-nft-save",),
}


def legacy(family: str = "ip") -> str:
    """The legacy tables (``ip`` or ``ip6``) in the format of iptables-save(8); empty when there are none.

    Raises:
        Unsupported: there are some, and no command that prints them.
        FirewallError: the command failed.
    """
    try:
        with open(_NAMES[family], encoding="ascii") as file:
            names = file.read().split()
    except OSError:
        return ""
    return _save("legacy", family) if names else ""


def translated(family: str = "ip") -> str:
    """The tables of nf_tables that the ``iptables`` command made, in the format of iptables-save(8).

    Raises as ``legacy``.
    """
    return _save("nft", family)


def nf_tables() -> list[dict[str, Any]]:
    """All of nf_tables as libnftables-json(5) shows it; an empty list when nothing hangs on a hook.

    Raises:
        Unsupported: libnftables is missing.
        FirewallError, NoPermission: the kernel refuses to tell.
    """
    try:
        hooked = nftables.hooked_chains()
    except OSError:
        return []
    if not hooked:
        return []
    listing = _listing()
    for chain in (item["chain"] for item in listing if "chain" in item):
        devices = hooked.get((chain["family"], chain["table"], chain["name"]))
        if devices:
            chain["dev"] = list(devices)
    return listing


def _listing() -> list[dict[str, Any]]:
    try:
        if not nftables.has_owned_table():
            return nftables.listed("list ruleset")
    except ValueError:
        pass  # one came in between: every trace has its own for a while
    return _without_tables()


def _without_tables() -> list[dict[str, Any]]:
    """The ruleset without what describes the tables themselves, which cannot always be shown (see ``nftables.has_owned_table``)."""
    found = nftables.listed("list sets") + nftables.listed("list maps")
    for item in nftables.listed("list chains"):
        if chain := item.get("chain"):
            try:
                found += nftables.listed(f"list chain {chain['family']} {chain['table']} {chain['name']}")
            except FirewallError as error:
                if error.errno != errno.ENOENT:  # gone since
                    raise
    return found


def _save(kind: str, family: str) -> str:
    """Runs the command in the calling thread's network namespace: a child is born in that of the thread which starts it."""
    command = next((path for name in _SAVE[kind, family] if (path := shutil.which(name, path=_path()))), None)
    if command is None:
        raise Unsupported(f"cannot read the {kind} iptables rules: {_SAVE[kind, family][0]} is missing", "install it: apt install iptables")
    result = subprocess.run([command], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    if result.returncode:
        reason = next(iter(result.stderr.splitlines()), f"exit code {result.returncode}")
        raise FirewallError(f"cannot read the {kind} iptables rules: {reason}")
    return result.stdout


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
