"""The rules that stand in a network namespace, with text and owners: reads what ``iptables-save`` and ``nft list ruleset`` print. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import NamedTuple

from netbox.kernel.rule_trace import RuleRecord
from netbox.packet.tracing.values import Owner, RuleHit

FOREIGN = Owner("foreign")
_OURS = Owner("netbox")
_HANDLE = re.compile(r"\s# handle (\d+)\s*$")
_TABLE = re.compile(r"table (\w+) (\S+) \{")
_CHAIN = re.compile(r"chain (\S+) \{")
_HOOK = re.compile(r"type (\w+) hook (\w+)(?: devices? .*?)? priority (?:\w+ )?(-?\d+);(?: policy (\w+);)?")
_COMMENT = re.compile(r'comment "([^"]*)"')
_KINDS = ("sandbox", "network", "impair", "policy")
_LEGACY_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_NAT = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
_VERDICTS = re.compile(r"\b(accept|drop|reject|dnat|snat|masquerade|redirect|queue|return)\b")

Naming = Callable[[str], str]
"""A sandbox's short id to its name."""


class Rule(NamedTuple):
    """A rule as it is listed: its position from 1, its text, its comment."""

    position: int
    text: str
    comment: str


class Chain(NamedTuple):
    """A chain; ``priority`` is ``None`` and ``policy`` empty for one that hangs on no hook. Rules by handle or, legacy, by position."""

    priority: int | None
    policy: str
    rules: dict[int, Rule]


class Rules:
    """What stands in one namespace. ``family`` of the legacy tables is ``ip`` or ``ip6``."""

    def __init__(self, nftables: str = "", legacy: str = "", legacy6: str = "", naming: Naming = str) -> None:
        self._chains: dict[tuple[str, str, str, str], Chain] = {}
        self._naming = naming
        self._read_nftables(nftables)
        self._read_legacy(legacy, "ip")
        self._read_legacy(legacy6, "ip6")

    def _read_nftables(self, text: str) -> None:
        family = table = ""
        chain: Chain | None = None
        for line in text.splitlines():
            stripped = line.strip()
            if not line[:1].isspace() and (found := _TABLE.match(stripped)):
                family, table, chain = found[1], found[2], None
            elif stripped.startswith("chain ") and (found := _CHAIN.match(stripped)):
                chain = Chain(None, "", {})
                self._chains["nftables", family, table, found[1]] = chain
                name = found[1]
            elif chain is not None and (hook := _HOOK.match(stripped)):
                chain = Chain(int(hook[3]), hook[4] or "accept", chain.rules)
                self._chains["nftables", family, table, name] = chain
            elif chain is not None and (handle := _HANDLE.search(stripped)):
                body = stripped[: handle.start()]
                comment = _COMMENT.search(body)
                chain.rules[int(handle[1])] = Rule(len(chain.rules) + 1, body, comment[1] if comment else "")
            elif stripped == "}":
                chain = None

    def _read_legacy(self, text: str, family: str) -> None:
        table = ""
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:].strip()
            elif line.startswith(":"):
                name, policy = line[1:].split()[:2]
                self._chains["iptables", family, table, name] = Chain(None, "" if policy == "-" else policy.lower(), {})
            elif line.startswith("-A "):
                words = shlex.split(line)
                comment = words[words.index("--comment") + 1] if "--comment" in words else ""
                rules = self._chains["iptables", family, table, words[1]].rules
                rules[len(rules) + 1] = Rule(len(rules) + 1, line, comment)

    def priority(self, record: RuleRecord) -> int | None:
        """Where on its hook the record's chain hangs; ``None`` for a chain that is jumped to."""
        if record.backend == "iptables":
            return _NAT.get(record.hook, 0) if record.table == "nat" else _LEGACY_PRIORITIES.get(record.table, 0)
        chain = self._chains.get(("nftables", record.family, record.table, record.chain))
        return chain.priority if chain else None

    def knows(self, record: RuleRecord) -> bool:
        """Whether the record's rule was there when the rules were listed."""
        chain = self._chains.get((record.backend, record.family, record.table, record.chain))
        return chain is not None and (record.kind != "rule" or record.number in chain.rules)

    def hit(self, record: RuleRecord) -> RuleHit:
        """The record as a rule with text, verdict and owner."""
        family = "ip" if record.backend == "iptables" and record.family not in ("ip", "ip6") else record.family
        chain = self._chains.get((record.backend, family, record.table, record.chain))
        rule = chain.rules.get(record.number) if chain and record.kind == "rule" else None
        verdict = record.verdict
        if record.kind == "policy":
            verdict = record.verdict or (chain.policy if chain else "") or ("return" if record.backend == "iptables" else "accept")
        elif record.backend == "iptables":
            verdict = _legacy_verdict(rule.text) if rule else record.kind
        elif rule is not None and verdict in ("accept", "continue", "drop", ""):
            named = _VERDICTS.findall(_COMMENT.sub("", rule.text))
            verdict = named[-1] if named and (verdict, named[-1]) != ("drop", "reject") else verdict
        position = rule.position if rule else (record.number if record.backend == "iptables" and record.kind == "rule" else 0)
        text = rule.text if rule else ""
        if record.kind == "policy":
            position, text = 0, f"policy {verdict}"
        return RuleHit(record.backend, family, record.table, record.chain, position, verdict, text, self._owner(record, rule))

    def _owner(self, record: RuleRecord, rule: Rule | None) -> Owner:
        ours = record.chain.startswith("NETBOX-") if record.backend == "iptables" else record.table == "netbox"
        comment = rule.comment if rule else ""
        if not ours:
            return _OURS if rule is not None and "-j NETBOX-" in rule.text else FOREIGN
        return owner(comment, self._naming) or (_OURS if comment.partition("/")[0] in ("", "netbox") else FOREIGN)


def owner(comment: str, naming: Naming) -> Owner | None:
    """The owner that a rule's comment names (``sandbox:0123456789ab``, ``network:front``); ``None`` if it names none."""
    kind, colon, name = comment.partition(" ")[0].partition(":")
    if not colon or kind not in _KINDS:
        return None
    return Owner(kind, naming(name) if kind in ("sandbox", "impair") else name)


def _legacy_verdict(text: str) -> str:
    """The target of a rule of ``iptables-save``: ``drop``, ``dnat``, …; ``jump`` for a chain."""
    words = shlex.split(text)
    for option in ("-j", "-g"):
        if option in words:
            target = words[words.index(option) + 1]
            return target.lower() if target.isupper() and not target.startswith("NETBOX-") else "jump"
    return "continue"


def jump_target(hit: RuleHit) -> str:
    """The chain that a rule of legacy iptables jumps to, or nothing."""
    words = shlex.split(hit.text) if hit.backend == "iptables" and hit.verdict == "jump" else []
    return next((words[place + 1] for place, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")
