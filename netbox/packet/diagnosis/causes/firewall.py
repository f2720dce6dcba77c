"""Rules that stop the packet: netbox's own, which keep networks apart, and those of others."""

from __future__ import annotations

from netbox.packet.diagnosis import path, publishing
from netbox.packet.diagnosis.path import Ruling
from netbox.packet.diagnosis.rules import DROP, REJECT
from netbox.packet.diagnosis.values import REFUSED, SILENT, UNREACHABLE, Box, Facts, Finding

_IPTABLES_TABLES = tuple(f"{family} {table}" for family in ("ip", "ip6") for table in ("filter", "nat", "mangle", "raw", "security"))
_DROPPED = (SILENT, UNREACHABLE, "no route", REFUSED)


def _networks(box: Box) -> str:
    return f"{box.name} is on {' and '.join(item.network for item in box.interfaces)}"


def _shared(facts: Facts) -> bool:
    one, other = facts.source_box, facts.target_box
    return bool(one and other and {item.network for item in one.interfaces} & {item.network for item in other.interfaces})


def _strangers(facts: Facts) -> bool:
    """Whether the source addresses another sandbox directly, on a network that it is not on."""
    one, other = facts.source_box, facts.target_box
    if one is None or other is None or one.id == other.id or not one.interfaces or not other.interfaces:
        return False
    if facts.translated is not None or facts.declared is not None or facts.source is facts.host or facts.target is facts.source:
        return False
    return any(item.has(facts.address) for item in other.interfaces) and not _shared(facts)


def _rule(facts: Facts) -> tuple[str, str, str]:
    """The words about the rule that stops the packet, its place and its owner."""
    found = path.refusal(facts)
    if found is None:
        return "", "", ""
    return f", so the packet is dropped by {found.decision.place}", found.decision.place, found.decision.owner


def internal_network(facts: Facts) -> Finding | None:
    """An internal network has no way out and none in."""
    one, other = facts.source_box, facts.target_box
    if one is None or facts.source is facts.host or facts.target is facts.source:
        return None
    inside = bool(one.interfaces) and all(item.internal for item in one.interfaces)
    if _strangers(facts):
        assert other is not None
        hidden = inside or all(item.internal for item in other.interfaces)
        if not hidden:
            return None
        box = one if inside else other
    elif inside and (facts.translated is not None or _is_outside(facts)):
        box = one
    else:
        return None
    network = box.interfaces[0].network
    words, place, owner = _rule(facts)
    way = "it has no way out" if box is one else "nothing outside reaches it"
    evidence = [("network", f"{item.network} is internal") for item in box.interfaces]
    if place:
        evidence.append(("rule", f"{place}, of {_owner(owner)}"))
    command = ""
    if other is not None and other.interfaces and not _shared(facts):
        command = f"netbox network connect {network} {other.name}" if box is one else f"netbox network connect {network} {one.name}"
    return Finding(
        "internal-network",
        f"{box.name} is on {network} only, an internal network: {way}{words}",
        "at the host",
        evidence=tuple(evidence),
        command=command or f"netbox network connect bridge {one.name}",
        expect=_DROPPED,
        place=place,
        owner=owner,
    )


def _is_outside(facts: Facts) -> bool:
    """Whether the address is neither the host's nor a sandbox's."""
    return bool(facts.address) and not publishing.holder(facts, facts.address) and not facts.host.has(facts.address)


def other_network(facts: Facts) -> Finding | None:
    """Networks are isolated from one another."""
    one, other = facts.source_box, facts.target_box
    if not _strangers(facts) or one is None or other is None:
        return None
    words, place, owner = _rule(facts)
    evidence = [("networks", f"{_networks(one)}, {_networks(other)}")]
    if place:
        evidence.append(("rule", f"{place}, of {_owner(owner)}"))
    network = next((item.network for item in other.interfaces if not item.internal), other.interfaces[0].network)
    return Finding(
        "other-network",
        f"they share no network ({_networks(one)}, {other.name} on {' and '.join(item.network for item in other.interfaces)}){words}",
        "at the host",
        evidence=tuple(evidence),
        command=f"netbox network connect {network} {one.name}",
        expect=_DROPPED,
        place=place,
        owner=owner,
    )


def refused_by_rules(facts: Facts) -> Finding | None:
    """Any other rule on the way: of netbox (a network, a sandbox, a policy), or of somebody else."""
    found = path.refusal(facts)
    if found is None or found.decision.owner.startswith("impair:"):
        return None  # an impairment is a cause of its own
    return _own(facts, found) if found.decision.owner else _foreign(facts, found)


def _own(facts: Facts, found: Ruling) -> Finding:
    decision = found.decision
    kind, _, name = decision.owner.partition(":")
    title = f"{kind} {next((box.name for box in facts.boxes if box.id.startswith(name)), name)}"
    because = f"a rule of {title} drops it: {decision.place}"
    if found.packet.source and decision.chain is not None and decision.chain.name.lower().endswith("egress"):
        because = f"{facts.source_address} is no address of {title}, so its packets are dropped by {decision.place}"
    mend = f"look at {title}: netbox {'network ' if kind == 'network' else ''}inspect {name}"
    one, other = facts.source_box, facts.target_box
    if one is not None and not one.interfaces and other is not None and other.interfaces and facts.translated is None:
        because = f"{one.name} is on no network of netbox, and {other.name} is asked past its published ports: {decision.place} drops it"
        mend = f"publish the port (netbox publish {other.name} PORT:{facts.port or 'PORT'}) and ask for it at an address of the host"
    return Finding(
        "own-rule",
        because,
        f"{found.hook} in {found.space.label}",
        evidence=_evidence(found),
        mend=mend,
        expect=_DROPPED,
        place=decision.place,
        owner=decision.owner,
    )


def _foreign(facts: Facts, found: Ruling) -> Finding:
    decision, chain = found.decision, found.decision.chain
    assert chain is not None
    where = "on the host" if found.space is facts.host else f"inside {found.space.label}"
    verb = "rejects" if decision.verdict == REJECT else "drops"
    software = "nf_tables" if chain.backend == "nftables" else "legacy iptables"
    whose = f"a firewall rule that is not netbox's {verb} it" if decision.rule else f"the policy of a chain that is not netbox's {verb} it"
    command, mend = _mend(facts, found)
    return Finding(
        "foreign-rule",
        f"{whose} {where}: {decision.place} ({software})",
        f"{found.hook} in {found.space.label}",
        evidence=_evidence(found),
        command=command,
        mend=mend,
        expect=(REFUSED, *_DROPPED),
        place=decision.place,
        uncertain=any(rule.verdict not in (DROP, REJECT) for _, rule in decision.doubts),
    )


def _mend(facts: Facts, found: Ruling) -> tuple[str, str]:
    """The command that lets the packet pass, or what would in words."""
    decision, chain = found.decision, found.decision.chain
    assert chain is not None
    box = next((item for item in facts.boxes if item.name == found.space.label and item.pid), None)
    prefix = f"nsenter -t {box.pid} -n " if box is not None and found.space is not facts.host else ""
    program = "ip6tables" if ":" in found.packet.destination else "iptables"
    if found.hook == "forward" and any(item.name == "DOCKER-USER" for item in found.space.chains):
        return _accepting(f"{program} -I DOCKER-USER", found), ""  # where dockerd asks before its own rules
    if chain.backend != "iptables" and chain.table not in _IPTABLES_TABLES:
        return "", f"change that rule: nft list chain {chain.table} {chain.name}"
    variant = f"{prefix}{program}-{'legacy' if chain.backend == 'iptables' else 'nft'}"
    table = chain.table.rpartition(" ")[2]
    option = "" if table == "filter" else f"-t {table} "
    if decision.rule is not None:
        return f"{variant} {option}-D {chain.name} {decision.rule.number}", ""
    return _accepting(f"{variant} {option}-I {chain.name}", found), ""


def _accepting(command: str, found: Ruling) -> str:
    """Rules that accept what comes in there, and on the way through the host its answers."""
    inward, out = found.packet.in_interface, found.packet.out_interface
    if found.hook != "forward" or not inward:
        return f"{command} -d {found.packet.destination} -j ACCEPT"
    ways = [f"-i {inward}"] if inward == out else [f"-i {inward}", f"-o {inward}"]
    return " && ".join(f"{command} {way} -j ACCEPT" for way in ways)


def _owner(text: str) -> str:
    """``network front`` for ``network:front``."""
    return text.replace(":", " ", 1) if text else "somebody else"


def _evidence(found: Ruling) -> tuple[tuple[str, str], ...]:
    decision = found.decision
    text = decision.rule.text if decision.rule else "policy DROP"
    of = f", of {_owner(decision.owner)}" if decision.owner else ""
    ways = (("in", found.packet.in_interface), ("out", found.packet.out_interface))
    known = [f"{word} {name}" for word, name in ways if name]
    lines = [("rule", f"{decision.place}{of}: {text}")]
    if known:
        lines.append(("packet", f"{found.packet.source} → {found.packet.destination}, {', '.join(known)}"))
    return tuple(lines)
