"""What rules of others do to netbox's packets, and how to let them pass: dockerd, ufw, firewalld, or whoever has such rules.

A chain of others that drops what it does not accept drops ours, too, for no accept of ours overrules it in nf_tables. It is an obstacle for
a bridge unless one of its rules names the bridge: then somebody has decided about it. Nothing here changes anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from netbox.errors import Unsupported
from netbox.kernel import nftables

FORWARD, INPUT = "forward", "input"
DOCKERD, UFW, FIREWALLD = "dockerd", "ufw", "firewalld"
_OWN_TABLE = "netbox"
_REMEDIES = {
    (DOCKERD, FORWARD): "netbox repair",
    (UFW, FORWARD): "ufw route allow in on {bridge}; ufw route allow out on {bridge}",
    (UFW, INPUT): "ufw allow in on {bridge} to any port {port}",
    (FIREWALLD, FORWARD): "firewall-cmd --permanent --zone=trusted --add-interface={bridge}; firewall-cmd --reload",
    (FIREWALLD, INPUT): "firewall-cmd --permanent --zone=trusted --add-interface={bridge}; firewall-cmd --reload",
}
_OTHERWISE = {
    FORWARD: "let {bridge} pass in its rules, in and out",
    INPUT: "let UDP and TCP port {port} of {bridge} pass in its rules",
}


class Obstacle(NamedTuple):
    """A chain that drops a bridge's packets: whose it is, what it is called, and the command that lets them pass."""

    program: str
    chain: str
    bridge: str
    remedy: str


def find(hook: str, bridges: Sequence[str], bridges6: Sequence[str] = (), port: int = 53) -> list[Obstacle]:
    """What drops IPv4 packets of ``bridges`` and IPv6 packets of ``bridges6`` on the hook ``forward`` or ``input``.

    Raises:
        FirewallError, NoPermission: the rules cannot be read.
    """
    found = []
    try:
        chains = nftables.base_chains()
    except OSError:
        return []  # this kernel has no nf_tables
    for base in chains:
        asked = {"ip": tuple(bridges), "ip6": tuple(bridges6), "inet": tuple(dict.fromkeys((*bridges, *bridges6)))}[base.family]
        if base.hook != hook or base.table == _OWN_TABLE or not (base.drops or base.rules) or not asked:
            continue
        table = _read(f"{base.family} {base.table}")
        if not (base.drops or table.ends_with_drop(base.name)):
            continue
        program = table.program(base.family, base.table, hook)
        for bridge in asked:
            if not table.names(base.name, bridge):
                remedy = _REMEDIES.get((program, hook), _OTHERWISE[hook]).format(bridge=bridge, port=port)
                found.append(Obstacle(program, f"{base.family} {base.table} {base.name}", bridge, remedy))
    return found


def _read(name: str) -> Table:
    try:
        return Table(nftables.listing(terse=True, table=name))
    except Unsupported:
        return Table([])  # without libnftables the policies are all that is known


class Table:
    """A table of others, as libnftables-json(5) shows it. Pure."""

    def __init__(self, listed: Iterable[dict[str, Any]]) -> None:
        self._rules: dict[str, list[list[dict[str, Any]]]] = {}
        for item in listed:
            if "chain" in item:
                self._rules.setdefault(item["chain"]["name"], [])
            elif "rule" in item:
                self._rules.setdefault(item["rule"]["chain"], []).append(item["rule"]["expr"])

    def program(self, family: str, name: str, hook: str) -> str:
        """Whose it is; empty when it looks like nobody's in particular. In a table that several share, dockerd's chain is asked first."""
        if (family, name) == ("inet", "firewalld"):
            return FIREWALLD
        if hook == FORWARD and "DOCKER-USER" in self._rules:
            return DOCKERD
        if "INPUT_ZONES" in self._rules:  # firewalld with FirewallBackend=iptables
            return FIREWALLD
        return UFW if any(chain.startswith(("ufw-", "ufw6-")) for chain in self._rules) else ""

    def ends_with_drop(self, chain: str) -> bool:
        """Whether the last rule of a chain drops or rejects whatever comes to it."""
        rules = self._rules.get(chain, [])
        last = [item for item in rules[-1] if "counter" not in item] if rules else []
        # What "iptables" has written is not always shown in nft's own words.
        return len(last) == 1 and ("drop" in last[0] or "reject" in last[0] or last[0].get("xt", {}).get("name") == "REJECT")

    def names(self, chain: str, interface: str) -> bool:
        """Whether a rule of the chain, or of one that it leads to, names the interface."""
        todo, seen = [chain], set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            for rule in self._rules.get(name, ()):
                if any(fnmatchcase(interface, pattern) for pattern in _interfaces(rule)):
                    return True
                todo += [item[verb]["target"] for item in rule for verb in ("jump", "goto") if verb in item]
        return False


def _interfaces(rule: Iterable[dict[str, Any]]) -> Iterator[str]:
    for item in rule:
        match = item.get("match", {})
        left = json.dumps(match.get("left"))
        if '"iifname"' in left or '"oifname"' in left:
            yield from _texts(match["right"])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
