"""Rules in the terms of nft(8): how a person would type them, and how ``nft -j list`` shows them. Pure.

A published port is an element of a map, every other rule a rule of its stage's chain. Both carry their owner as comment. What is rendered
here is what the kernel gives back (libnftables-json(5)), so that what stands can be compared with what should.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from netbox.kernel.iptables_entry import validate
from netbox.network.firewall import GUARD, LOOPBACK, LOOPBACK6, LOSS, PUBLISH, STAGES, Redirect, Rule
from netbox.network.firewall_iptables import entry

TABLES = {False: "ip netbox", True: "ip6 netbox"}
"""Of IPv4, and of IPv6."""
FAMILIES = {False: "ip", True: "ip6"}
OWN = "netbox"
"""The comment of the rules that are everybody's."""
PORT, ADDRESS_PORT, PORT_RANGE, OWNED = "port", "address_port", "port_range", "owned"
CHAINS = {stage: stage for stage in STAGES} | {LOSS: GUARD}
"""Of each stage. What gets lost follows what is forged, on the same hook."""
_COMMENT_MAX = 100  # bytes; NFTNL_UDATA_COMMENT_MAXLEN is 128 with the NUL
_STATES = ("INVALID", "ESTABLISHED", "RELATED", "NEW", "UNTRACKED")  # in the order of their bits, which is how they are listed
_STATUSES = ("SNAT", "DNAT")
_SHARES = 1 << 30  # a random number below this; libnftables lists larger moduli as negative numbers


class Term(NamedTuple):
    """A part of a rule: as it is typed, and as it is listed."""

    text: str
    listed: dict[str, Any]


class ChainRule(NamedTuple):
    """A rule of a chain, in the table of IPv4 or of IPv6."""

    chain: str
    terms: tuple[Term, ...]
    comment: str
    ipv6: bool = False

    @property
    def command(self) -> str:
        """The command that adds it at the end of its chain."""
        return f"add {self._typed}"

    @property
    def first_command(self) -> str:
        """The command that adds it at the beginning of its chain."""
        return f"insert {self._typed}"

    @property
    def _typed(self) -> str:
        return f'rule {TABLES[self.ipv6]} {self.chain} {" ".join(term.text for term in self.terms)} comment "{self.comment}"'

    @property
    def listed(self) -> list[dict[str, Any]]:
        """Its expressions as ``nft -j`` shows them."""
        return [term.listed for term in self.terms]


class Element(NamedTuple):
    """A published port, or a range of them. ``shifted`` ranges have an element for each port: a map cannot add."""

    set: str
    protocol: str
    address: str  # empty: every address of this host
    first: int
    last: int
    target: str = ""
    port: int = 0  # of the target, for the first one; 0: the port stays
    owner: str = ""
    ipv6: bool = False

    @property
    def name(self) -> str:
        """What identifies it, in a comment that its owner's entry of the index keeps."""
        return f"{self.set} {self.protocol} {self.address or '*'} {self.first}-{self.last}"

    @property
    def comment(self) -> str:
        """Its owner, and for a shifted range which one it belongs to."""
        return self.owner if self.first == self.last or self.set == PORT_RANGE else f"{self.owner} {self.first}-{self.last}"

    def keys(self) -> list[str]:
        """The keys in the map."""
        if self.set == PORT_RANGE:
            everywhere = "::/0" if self.ipv6 else "0.0.0.0/0"
            return [f"{self.protocol} . {self.address or everywhere} . {self.first}-{self.last}"]
        middle = f" . {self.address}" if self.set == ADDRESS_PORT else ""
        return [f"{self.protocol}{middle} . {number}" for number in range(self.first, self.last + 1)]

    def values(self) -> list[str]:
        """What the keys lead to."""
        if self.set == PORT_RANGE:
            return [self.target]
        return [f"{self.target} . {self.port + offset}" for offset in range(self.last - self.first + 1)]

    def add(self) -> str:
        """The command that adds it."""
        pairs = (f'{key} comment "{self.comment}" : {value}' for key, value in zip(self.keys(), self.values(), strict=True))
        return f"add element {TABLES[self.ipv6]} {self.set} {{ {', '.join(pairs)} }}"

    def delete(self) -> str:
        """The command that takes it away."""
        return f"delete element {TABLES[self.ipv6]} {self.set} {{ {', '.join(self.keys())} }}"


def named_element(name: str, ipv6: bool = False) -> Element:
    """The element that ``Element.name`` named; good for ``delete``."""
    kind, protocol, address, ports = name.split(" ")
    first, _, last = ports.partition("-")
    return Element(kind, protocol, "" if address == "*" else address, int(first), int(last), ipv6=ipv6)


def element(rule: Rule, owner: str) -> Element | None:
    """The rule as an element of a map, if it is a plain published port.

    Raises:
        ValueError: a value that no backend takes.
    """
    _check(rule, owner)
    if not isinstance(rule.verdict, Redirect) or rule.ports is None or not rule.protocol or rule.stage != PUBLISH:
        return None
    if rule.in_interface or rule.out_interface or rule.source or rule.states or rule.probability < 1:
        return None
    if "/" in rule.destination or rule.destination[:1] == "!":
        return None
    (first, last), (target, port) = rule.ports, rule.verdict
    if first != last and first == port:
        return Element(PORT_RANGE, rule.protocol, rule.destination, first, last, target, 0, owner, rule.ipv6)
    kind = ADDRESS_PORT if rule.destination else PORT
    return Element(kind, rule.protocol, rule.destination, first, last, target, port, owner, rule.ipv6)


def chain_rule(rule: Rule, owner: str) -> ChainRule:
    """The rule as a rule of its stage's chain.

    Raises:
        ValueError: a value that no backend takes, or a combination that nf_tables has no rule for.
    """
    _check(rule, owner)
    terms = [
        *_interface("iifname", rule.in_interface),
        *_interface("oifname", rule.out_interface),
        *address_terms("saddr", rule.source, rule.ipv6),
        *address_terms("daddr", rule.destination, rule.ipv6),
        *_transport(rule),
        *connection_terms(rule.states),
        *_share(rule.probability),
        verdict_term(rule),
    ]
    return ChainRule(CHAINS[rule.stage], tuple(terms), owner, rule.ipv6)


def jump(hook: str, stage: str, *terms: Term, ipv6: bool = False) -> ChainRule:
    """A rule that leads to a stage's chain."""
    target = CHAINS[stage]
    return ChainRule(hook, (*terms, Term(f"jump {target}", {"jump": {"target": target}})), OWN, ipv6)


LOCAL = Term("fib daddr type local", {"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}})


def not_loopback(ipv6: bool = False) -> Term:
    """A destination that is not 127.0.0.0/8, or ::1."""
    return address_terms("daddr", f"!{LOOPBACK6 if ipv6 else LOOPBACK}", ipv6)[0]


def lookup(name: str, ipv6: bool = False) -> ChainRule:
    """The rule of PUBLISH that asks a map."""
    ip = FAMILIES[ipv6]
    with_address = name != PORT
    fields: list[dict[str, Any]] = [{"meta": {"key": "l4proto"}}]
    if with_address:
        fields.append({"payload": {"protocol": ip, "field": "daddr"}})
    fields.append({"payload": {"protocol": "th", "field": "dport"}})
    protocols = ["tcp", "udp", "sctp"]
    key = f"meta l4proto . {ip} daddr . th dport" if with_address else "meta l4proto . th dport"
    # With a port among the values the family has to be said; without one it is not listed.
    text, family = ("dnat", {}) if name == PORT_RANGE else (f"dnat {ip}", {"family": ip})
    return ChainRule(
        CHAINS[PUBLISH],
        (
            Term(
                f"meta l4proto {{ {', '.join(protocols)} }}",
                {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": {"set": protocols}}},
            ),
            Term(
                f"{text} to {key} map @{name}",
                {"dnat": {**family, "addr": {"map": {"key": {"concat": fields}, "data": f"@{name}"}}}},
            ),
        ),
        OWN,
        ipv6,
    )


def _check(rule: Rule, owner: str) -> None:
    validate(entry(rule, owner))  # the same values are good for every backend, and none of them can end a word of a command early
    if not owner or " " in owner or len(owner) > _COMMENT_MAX:
        raise ValueError(f"bad owner: {owner!r}")


def match_term(text: str, left: dict[str, Any], right: Any, negated: bool = False, op: str = "==") -> Term:
    """A condition."""
    return Term(text, {"match": {"op": "!=" if negated else op, "left": left, "right": right}})


def _interface(key: str, value: str) -> list[Term]:
    if not value:
        return []
    negated, name = value.startswith("!"), value.removeprefix("!")
    name = name[:-1] + "*" if name.endswith("+") else name
    return [match_term(f'{key} {"!= " if negated else ""}"{name}"', {"meta": {"key": key}}, name, negated)]


def address_terms(field: str, value: str, ipv6: bool) -> list[Term]:
    """The condition about an address; none for an empty value."""
    if not value:
        return []
    ip = FAMILIES[ipv6]
    negated, network = value.startswith("!"), value.removeprefix("!").removesuffix("/128" if ipv6 else "/32")
    address, _, length = network.partition("/")
    right: Any = {"prefix": {"addr": address, "len": int(length)}} if length else address
    text = f"{ip} {field} {'!= ' if negated else ''}{network}"
    return [match_term(text, {"payload": {"protocol": ip, "field": field}}, right, negated)]


def _transport(rule: Rule) -> list[Term]:
    if rule.ports is None:
        return [match_term(f"meta l4proto {rule.protocol}", {"meta": {"key": "l4proto"}}, rule.protocol)] if rule.protocol else []
    first, last = rule.ports
    text = str(first) if first == last else f"{first}-{last}"
    left = {"payload": {"protocol": rule.protocol, "field": "dport"}}
    return [match_term(f"{rule.protocol} dport {text}", left, first if first == last else {"range": [first, last]})]


def connection_terms(states: tuple[str, ...]) -> list[Term]:
    """The condition about a connection; none for no states. Raises ``ValueError`` for a mixture that no one condition can ask for."""
    if not states:
        return []
    for key, known in (("state", _STATES), ("status", _STATUSES)):
        if set(states) <= set(known):
            chosen = [name.lower() for name in known if name in states]
            right: Any = chosen if len(chosen) > 1 else chosen[0]
            return [match_term(f"ct {key} {','.join(chosen)}", {"ct": {"key": key}}, right, op="in")]
    raise ValueError(f"nf_tables has no one rule for the states {states}")


def _share(probability: float) -> list[Term]:
    if probability >= 1:
        return []
    below = max(1, round(probability * _SHARES))
    generator = {"numgen": {"mode": "random", "mod": _SHARES, "offset": 0}}
    return [match_term(f"numgen random mod {_SHARES} < {below}", generator, below, op="<")]


def verdict_term(rule: Rule) -> Term:
    """What becomes of the packet. Raises ``ValueError`` for a redirect that no one rule can make."""
    if isinstance(rule.verdict, str):
        return Term(rule.verdict, {rule.verdict: None})
    if rule.ports is None:
        raise ValueError("a redirect needs ports")
    (first, last), (address, port) = rule.ports, rule.verdict
    if first == last:
        return Term(f"dnat to {f'[{address}]' if rule.ipv6 else address}:{port}", {"dnat": {"addr": address, "port": port}})
    if first == port:
        return Term(f"dnat to {address}", {"dnat": {"addr": address}})
    raise ValueError("a range that is shifted is for plain published ports only")
