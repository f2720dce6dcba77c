"""The tables of nf_tables that mark packets for a trace, and show them at both ends of each hook: commands of nft(8). Pure.

One is of the family inet. Those of bridge, netdev and arp are made only where somebody else has a chain on a hook of that family: what
bridges switch need not pass the hooks of inet at all, and what a device's ingress drops never gets to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
FIRST, LAST = "first", "last"
OWN_PREFIX = "netbox_trace_"  # a number of the process, one of its own
_PRIORITIES = {FIRST: -450, LAST: 1000}  # before defragmentation, and behind everything but conntrack's last step
_MARKING = ("prerouting", "output", "ingress")
_BRIDGE_WORDS = (("meta nfproto ipv4", "meta protocol ip"), ("meta nfproto ipv6", "meta protocol ip6"))
_WITHOUT_PROTOCOL = ("limit ", "iifname ", "oifname ")
_TABLE = re.compile(r"table (\w+) (\S+) \{")
_BASE_CHAIN = re.compile(r"\s+type \w+ hook (\w+)(?: devices? (?:= )?(?P<devices>\{[^}]*\}|\"[^\"]*\"))? priority ")


def commands(name: str, matches: Sequence[str], listing: str) -> tuple[list[str], tuple[str, ...]]:
    """The commands that make the tables ``name``, and their families. ``matches`` are what packets to mark look like; ``listing`` is what
    ``nft list chains`` says, with priorities as numbers.
    """
    hooks = _hooks(listing)
    lines, families = _table("inet", name, dict.fromkeys(HOOKS, ""), matches), ["inet"]
    if "bridge" in hooks:
        lines += _table("bridge", name, dict.fromkeys(HOOKS, ""), _bridged(matches))
        families.append("bridge")
    devices = hooks.get("netdev", {}).get("ingress")
    if devices:
        where = f" devices = {{ {', '.join(sorted(devices))} }}"
        lines += _table("netdev", name, {"ingress": where}, _bridged(matches))
        families.append("netdev")
    some = [match for match in matches if match.startswith(_WITHOUT_PROTOCOL)]
    if "arp" in hooks and some:
        lines += _table("arp", name, {"input": "", "output": ""}, some, ("input", "output"))
        families.append("arp")
    return lines, tuple(families)


def _hooks(listing: str) -> dict[str, dict[str, set[str]]]:
    """The hooks of each family that somebody's chain hangs on, with the devices."""
    found: dict[str, dict[str, set[str]]] = {}
    family = ""
    for line in listing.splitlines():
        if table := _TABLE.match(line):
            family = "" if table[2].startswith(OWN_PREFIX) else table[1]
        elif family and (chain := _BASE_CHAIN.match(line)):
            names = re.findall(r'[^\s{},"]+', chain["devices"] or "")
            found.setdefault(family, {}).setdefault(chain[1], set()).update(f'"{name}"' for name in names)
    return found


def _table(family: str, name: str, hooks: dict[str, str], matches: Iterable[str], marking: Sequence[str] = _MARKING) -> list[str]:
    lines = [f"add table {family} {name} {{ flags owner ; }}"]
    for hook, devices in hooks.items():
        for end, priority in _PRIORITIES.items():
            lines.append(
                f"add chain {family} {name} {hook}_{end} {{ type filter hook {hook}{devices} priority {priority} ; policy accept ; }}"
            )
    return lines + [
        f"add rule {family} {name} {hook}_{FIRST} {match} meta nftrace set 1" for hook in marking if hook in hooks for match in matches
    ]


def _bridged(matches: Iterable[str]) -> list[str]:
    """The matches in the words of families that see frames; routing is not known there."""
    found = []
    for match in matches:
        for inet, frame in _BRIDGE_WORDS:
            match = match.replace(inet, frame)
        if "fib " not in match:
            found.append(match)
    return found
