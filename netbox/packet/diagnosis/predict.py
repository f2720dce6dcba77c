"""From facts to a prediction. Pure."""

from __future__ import annotations

from netbox.packet.diagnosis import path, rules
from netbox.packet.diagnosis.causes import CHECKS
from netbox.packet.diagnosis.values import Facts, Finding, Prediction


def predict(facts: Facts) -> Prediction:
    """The first cause along the path that stops the packet, and what else is worth knowing."""
    blocked: Finding | None = None
    notes: list[Finding] = []
    for check in CHECKS:
        found = check(facts)
        if found is None:
            continue
        if found.blocks and blocked is None:
            blocked = found
        elif found.cause not in [item.cause for item in notes]:
            notes.append(found)
    return Prediction(blocked, tuple(notes), path.describe(facts), _doubts(facts))


def _doubts(facts: Facts) -> tuple[str, ...]:
    """Rules of others that might drop the packet: they ask for something that cannot be known beforehand."""
    if not facts.address or facts.source_route is None:
        return ()
    doubted = [item for ruling in path.rulings(facts) for item in ruling.decision.doubts]
    found = [rules.place(chain, rule) for chain, rule in doubted if not rule.owner and rule.verdict not in (rules.ACCEPT, rules.RETURN)]
    return tuple(dict.fromkeys(found))
