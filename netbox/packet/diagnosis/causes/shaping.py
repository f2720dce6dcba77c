"""Rates and impairments in force."""

from __future__ import annotations

from netbox.packet.diagnosis import path
from netbox.packet.diagnosis.values import SILENT, Facts, Finding, Throttle


def total_loss(facts: Facts) -> Finding | None:
    """An impairment that loses every packet."""
    return _finding([item for item in path.throttles(facts) if item.loss >= 100.0], blocks=True)


def throttled(facts: Facts) -> Finding | None:
    """A rate or impairment that lets packets through, later or not all."""
    return _finding(path.throttles(facts), blocks=False)


def _finding(found: list[Throttle], blocks: bool) -> Finding | None:
    if not found:
        return None
    item = next((throttle for throttle in found if not throttle.own), found[0])
    way = {"in": "what comes to", "out": "what leaves"}[item.direction]
    kind = "its own rate (--net-rate-" + item.direction + ")" if item.own else "an impairment"
    lines = [(f"{each.sandbox} {each.direction}", each.effects + (" (its own rate)" if each.own else "")) for each in found]
    return Finding(
        "impairment",
        f"{kind} of {item.sandbox} is in force for {way} it: {item.effects}",
        f"the link of {item.sandbox}",
        blocks=blocks,
        evidence=tuple(lines),
        command="" if item.own else f"netbox impair {item.sandbox} --off",
        mend=f"start {item.sandbox} with another --net-rate-{item.direction}" if item.own else "",
        expect=(SILENT,),
    )
