"""Reads what iptables-save(8) prints. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from netbox.network.firewall import is_owner
from netbox.packet.diagnosis.rules import (
    ACCEPT,
    CONTINUE,
    DNAT,
    DROP,
    GOTO,
    JUMP,
    REJECT,
    RETURN,
    Chain,
    FirewallRule,
    Match,
)

# <linux/netfilter_ipv4.h>: the place of each table on its hooks.
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_NAT_SOURCE = 100
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": REJECT, "RETURN": RETURN, "DNAT": DNAT}
_PASSING = {"LOG", "NFLOG", "TRACE", "MARK", "CONNMARK", "CT", "TOS", "DSCP", "TTL", "TCPMSS", "CLASSIFY", "CHECKSUM", "AUDIT", "SECMARK"}
_TRANSLATING = {"SNAT", "MASQUERADE", "NETMAP"}
_ADDRESSES = {"-s": "source", "-d": "destination", "--src-range": "source", "--dst-range": "destination"}
_INTERFACES = {"-i": "in", "-o": "out"}
_COMMENT = re.compile(r'-m comment --comment (?:"(?:[^"\\]|\\.)*"|\S+) ?')
_WITH_TEXT = ("--comment", "--log-prefix", "--string", "--nflog-prefix")


def parse(text: str, backend: str = "iptables", prefix: str = "") -> list[Chain]:
    """The chains of all tables. ``prefix`` comes before the table's name in places: ``ip `` for those in nf_tables."""
    found: list[Chain] = []
    for table, lines in _tables(text):
        policies = dict(re.findall(r"^:(\S+) (\S+)", "\n".join(lines), re.MULTILINE))
        rules: dict[str, list[FirewallRule]] = {name: [] for name in policies}
        for line in lines:
            if line.startswith("-A "):
                words = _words(line)
                own = rules.setdefault(words[1], [])
                own.append(_rule(len(own) + 1, words[2:], line.partition(" ")[2].partition(" ")[2]))
        for name, items in rules.items():
            is_base = name in _HOOKS
            source_nat = table == "nat" and name in ("INPUT", "POSTROUTING")
            found.append(
                Chain(
                    backend,
                    prefix + table,
                    name,
                    tuple(items),
                    name.lower() if is_base else "",
                    _NAT_SOURCE if source_nat else _PRIORITIES.get(table, 0),
                    DROP if policies.get(name) == "DROP" else ACCEPT,
                    "nat" if table == "nat" else "filter",
                )
            )
    return found


def _tables(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in text.splitlines():
        if line.startswith("*"):
            name, lines = line[1:].strip(), []
        elif line == "COMMIT" and name:
            yield name, lines
        else:
            lines.append(line)


def _words(line: str) -> list[str]:
    if '"' not in line:
        return line.split()  # a hundred times faster
    try:
        return shlex.split(line)
    except ValueError:  # a quote in a string that iptables-save did not escape
        return line.split()


def _rule(number: int, words: list[str], text: str) -> FirewallRule:
    found: list[Match] = []
    verdict, target, owner = CONTINUE, "", ""
    index, negated = 0, False
    while index < len(words):
        word = words[index]
        value = words[index + 1] if index + 1 < len(words) else ""
        # Without a list of all options of all extensions: what is followed by an option has no value.
        is_flag = word not in _WITH_TEXT and (value == "!" or value[:1] == "-")
        index += 1 if word == "!" or is_flag else 2
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            verdict, target = _target(word, value)
        elif word == "--comment":
            owner = value if is_owner(value) else owner
        elif word in ("--to-destination", "--to"):
            target = value
        elif word == "--tcp-flags":
            index += 1  # two words: which are looked at, which of them are set
            found.append(Match("always" if "SYN" in words[index - 1].split(",") else "unknown", ("",), negated))
        elif word not in ("-m", "--reject-with", "--to-ports", "--to-source", "--log-prefix", "--log-level", "--nflog-group", "--mode"):
            found.append(_match(word, value, negated))
        negated = False
    return FirewallRule(number, tuple(found), verdict, target, owner, _COMMENT.sub("", text))


def _target(option: str, name: str) -> tuple[str, str]:
    if name in _VERDICTS:
        return _VERDICTS[name], ""
    if name in _TRANSLATING:
        return ACCEPT, ""
    if name in _PASSING or name == "":
        return CONTINUE, ""
    if name == "REDIRECT":
        return DNAT, "127.0.0.1"
    return (GOTO if option == "-g" else JUMP), name


def _match(option: str, value: str, negated: bool) -> Match:
    if option in _ADDRESSES:
        return Match(_ADDRESSES[option], tuple(value.split(",")), negated)
    if option in _INTERFACES:
        return Match(_INTERFACES[option], (value,), negated)
    if option == "-p":
        return Match("protocol", (value,), negated)
    if option in ("--dport", "--dports", "--destination-port"):
        return Match("port", tuple(_ports(part) for part in value.split(",")), negated)
    if option in ("--ctstate", "--state"):
        words = value.split(",")
        states = [word for word in words if word not in ("DNAT", "SNAT")]
        # One condition of iptables may name states and translations; they are alternatives.
        return Match("state", tuple(states), negated) if states else Match("status", tuple(words), negated)
    if option == "--dst-type":
        return Match("local", tuple(value.split(",")), negated)
    if option in ("--icmp-type", "--icmpv6-type"):
        return Match(option[2:].partition("-")[0], (value,), negated)
    return Match("unknown", (), negated)


def _ports(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    return int(first or 0), int(last or (65535 if ":" in text else first))
