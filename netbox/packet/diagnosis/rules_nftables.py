"""Reads what libnftables-json(5) shows. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from netbox.network.firewall import is_owner
from netbox.packet.diagnosis.rules import ACCEPT, CONTINUE, DNAT, DROP, GOTO, JUMP, REJECT, RETURN, Chain, FirewallRule, Match

_OF_BOTH = ("inet", "bridge", "netdev")
_INTERFACES = {"iifname": "in", "iif": "in", "oifname": "out", "oif": "out"}
_FIELDS = {"saddr": "source", "daddr": "destination", "protocol": "protocol", "nexthdr": "protocol"}
_SILENT = ("counter", "log", "meter", "quota", "notrack", "limit")
_ETHER_TYPE = {"protocol": "ether", "field": "type"}
_TRANSPORTS = ("tcp", "udp", "sctp", "udplite", "dccp", "icmp", "icmpv6")
Sets = Mapping[tuple[str, str], Sequence[Any]]


def parse(listing: Sequence[Mapping[str, Any]], family: str = "ip") -> list[Chain]:
    """The chains that packets of a family (``ip``, ``ip6``) meet."""
    wanted = (family, *_OF_BOTH)
    sets: dict[tuple[str, str], Sequence[Any]] = {}
    rules: dict[tuple[str, str], list[FirewallRule]] = {}
    numbers: dict[tuple[str, str], int] = {}
    for item in listing:
        for kind in ("set", "map"):
            if kind in item:
                sets[_table(item[kind]), item[kind]["name"]] = item[kind].get("elem", ())
    for item in listing:
        rule = item.get("rule")
        if rule is not None and rule["family"] in wanted:
            key = (_table(rule), rule["chain"])
            numbers[key] = numbers.get(key, 0) + 1
            rules.setdefault(key, []).extend(_rules(numbers[key], rule, sets))
    found = []
    for item in listing:
        chain = item.get("chain")
        if chain is not None and chain["family"] in wanted:
            table = _table(chain)
            found.append(
                Chain(
                    "nftables",
                    table,
                    chain["name"],
                    tuple(rules.get((table, chain["name"]), ())),
                    f"bridge {chain['hook']}" if chain["family"] == "bridge" and "hook" in chain else chain.get("hook", ""),
                    chain.get("prio", 0),
                    DROP if chain.get("policy") == "drop" else ACCEPT,
                    chain.get("type", "filter"),
                    _devices(chain.get("dev", ())),
                )
            )
    return found


def _devices(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def has_foreign_matches(listing: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some rule has a match that only the ``iptables`` command can print."""
    return any("xt" in part for item in listing for part in item.get("rule", {}).get("expr", ()))


def _table(item: Mapping[str, Any]) -> str:
    return f"{item['family']} {item['table']}"


def _rules(number: int, rule: Mapping[str, Any], sets: Sets) -> Iterator[FirewallRule]:
    """A rule, or one for each verdict of its map. One that stands for several owners, whose elements are in a set, is one for each of
    them.
    """
    owners = _owned(rule, sets)
    if owners:
        for owner, expressions in owners:
            yield from _rules(number, {**rule, "comment": owner, "expr": expressions}, sets)
        return
    comment = rule.get("comment", "")
    owner = comment if is_owner(comment) else ""
    found: list[Match] = []
    text = " ".join(_words(rule["expr"]))
    for part in rule["expr"]:
        key, value = next(iter(part.items()))
        if key == "match":
            found += _protocol_of(value["left"])
            found.append(_match(value, _table(rule), sets))
        elif key == "vmap":
            for choice, verdict in _pairs(value["data"], _table(rule), sets):
                name, target = _verdict(verdict)
                match = _match({"op": "==", "left": value["key"], "right": choice}, _table(rule), sets)
                yield FirewallRule(number, (*found, *_protocol_of(value["key"]), match), name, target, owner, text)
            return
        elif key == "xt":
            found.append(Match("always" if value and value.get("name") == "comment" else "unknown", ("",)))
        elif key in ("accept", "drop", "reject", "return", "jump", "goto", "dnat", "snat", "masquerade", "redirect"):
            name, target = _verdict(part)
            yield FirewallRule(number, tuple(found), name, target, owner, text)
            return
        elif key == "limit" or key not in (*_SILENT, "mangle"):
            found.append(Match("unknown"))
    yield FirewallRule(number, tuple(found), CONTINUE, "", owner, text)


def _owned(rule: Mapping[str, Any], sets: Sets) -> list[tuple[str, list[Any]]]:
    """The owners of the elements of the first set that a rule without an owner asks, each with the expressions for its element."""
    if is_owner(rule.get("comment", "")):
        return []
    for place, part in enumerate(rule["expr"]):
        match = part.get("match", {})
        if match.get("op") == "==" and isinstance(match["right"], str) and match["right"].startswith("@"):
            items = [item["elem"] for item in sets.get((_table(rule), match["right"][1:]), ()) if isinstance(item, dict) and "elem" in item]
            owned = [(str(item.get("comment", "")), {"match": {**match, "right": item["val"]}}) for item in items]
            before, behind = rule["expr"][:place], rule["expr"][place + 1 :]
            return [(owner, [*before, its, *behind]) for owner, its in owned if is_owner(owner)]
    return []


def _pairs(data: Any, table: str, sets: Sets) -> Iterator[tuple[Any, dict[str, Any]]]:
    items = sets.get((table, data[1:]), ()) if isinstance(data, str) else data.get("set", ())
    for item in items:
        if isinstance(item, list) and len(item) == 2 and isinstance(item[1], dict):
            key = item[0]
            yield (key["elem"]["val"] if isinstance(key, dict) and "elem" in key else key), item[1]


def _verdict(part: Mapping[str, Any]) -> tuple[str, str]:
    (key, value), *_ = part.items()
    if key in ("jump", "goto"):
        return (JUMP if key == "jump" else GOTO), value["target"]
    if key == "dnat":
        address, port = (value or {}).get("addr", ""), (value or {}).get("port", "")
        return DNAT, f"{address}:{port}" if port and isinstance(address, str) else address if isinstance(address, str) else ""
    simple = {"accept": ACCEPT, "drop": DROP, "reject": REJECT, "return": RETURN, "redirect": DNAT}
    return simple.get(key, ACCEPT), ""


def _match(value: Mapping[str, Any], table: str, sets: Sets) -> Match:
    kind, scale = _kind(value["left"])
    if kind == "unknown" or value.get("op", "==") not in ("==", "!=", "in"):
        return Match("unknown")
    values = tuple(scale(item) for item in _alternatives(value["right"], table, sets))
    if not values and str(value["right"]).startswith("@"):
        return Match("always" if value.get("op") == "!=" else "never", ("",))
    return Match(kind, values, value.get("op") == "!=") if None not in values else Match("unknown")


def _protocol_of(left: Any) -> list[Match]:
    """The protocol that a field belongs to: the listing leaves out that a rule about ``tcp dport`` is about TCP alone."""
    protocol = (left.get("payload") or {}).get("protocol") if isinstance(left, dict) else None
    return [Match("protocol", (protocol,))] if protocol in _TRANSPORTS else []


def _kind(left: Any) -> tuple[str, Any]:
    """What is looked at, and how a value becomes one of ``Match``."""
    if isinstance(left, dict):
        meta, payload = left.get("meta"), left.get("payload")
        connection, fib = left.get("ct"), left.get("fib")
        if meta and meta.get("key") in _INTERFACES:
            return _INTERFACES[meta["key"]], _text
        if meta and meta.get("key") == "l4proto":
            return "protocol", _text
        if (meta and meta.get("key") in ("protocol", "nfproto")) or (payload and payload == _ETHER_TYPE):
            return "version", _text
        if payload and payload.get("field") in _FIELDS and payload.get("protocol") in ("ip", "ip6"):
            return _FIELDS[payload["field"]], _text
        if payload and payload.get("field") == "dport":
            return "port", _port
        if payload and payload.get("field") == "type" and payload.get("protocol") in ("icmp", "icmpv6"):
            return payload["protocol"], _text
        if connection and connection.get("key") in ("state", "status") and not connection.get("dir"):
            return connection["key"], _text
        if fib and fib.get("result") == "type" and "daddr" in fib.get("flags", ()):
            return "local", _text
        if "concat" in left:
            return _concatenation([_kind(part) for part in left["concat"]])
        if "&" in left:
            return _masked(*left["&"])
    return "unknown", _text


def _concatenation(kinds: Sequence[tuple[str, Any]]) -> tuple[str, Any]:
    """Several fields that are looked up together: a value is one for each of them."""
    if any(kind == "unknown" for kind, _ in kinds):
        return "unknown", _text

    def scaled(value: Any) -> tuple[Match, ...] | None:
        parts = value.get("concat", ()) if isinstance(value, dict) else ()
        found = tuple(Match(kind, (scale(part),)) for (kind, scale), part in zip(kinds, parts, strict=False))
        return found if len(found) == len(kinds) and all(None not in match.values for match in found) else None

    return "every", scaled


def _masked(field: Any, mask: Any) -> tuple[str, Any]:
    """A field under a mask: an address under that of a prefix length is the network."""
    kind, _ = _kind(field)
    try:
        length = int(ip_address(mask)).bit_count()
    except ValueError:
        return "unknown", _text
    return (kind, lambda value: f"{value}/{length}") if kind in ("source", "destination") else ("unknown", _text)


def _alternatives(right: Any, table: str, sets: Sets) -> list[Any]:
    if isinstance(right, str) and right.startswith("@"):
        return [item["elem"]["val"] if isinstance(item, dict) and "elem" in item else item for item in sets.get((table, right[1:]), ())]
    if isinstance(right, dict) and "set" in right:
        return list(right["set"])
    return list(right) if isinstance(right, list) else [right]


def _text(value: Any) -> str | None:
    if isinstance(value, dict) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if isinstance(value, dict) and "range" in value:
        return "-".join(map(str, value["range"]))
    return str(value) if isinstance(value, str | int) else None


def _port(value: Any) -> tuple[int, int] | None:
    if isinstance(value, dict) and "range" in value:
        return int(value["range"][0]), int(value["range"][1])
    return (value, value) if isinstance(value, int) else None


def _words(expressions: Sequence[Any]) -> Iterator[str]:
    """A rule in short: enough to recognise it."""
    for part in expressions:
        for key, value in part.items() if isinstance(part, dict) else ():
            if key == "match":
                yield f"{_named(value['left'])} {'!= ' if value.get('op') == '!=' else ''}{_text(value['right']) or '…'}"
            elif key in ("jump", "goto"):
                yield f"{key} {value['target']}"
            elif key not in ("counter", "xt"):
                yield key


def _named(left: Any) -> str:
    """What is looked at, in short."""
    if not isinstance(left, dict):
        return str(left)
    if "concat" in left:
        return " . ".join(map(_named, left["concat"]))
    if "&" in left:
        return _named(left["&"][0])
    inner = next(iter(left.values()))
    return str(inner.get("field") or inner.get("key") or "") if isinstance(inner, dict) else str(inner)
