"""Rates and impairments in force."""

from __future__ import annotations

from netbox.packet.diagnosis import path
from netbox.packet.diagnosis.publishing import source_interface, target_interface
from netbox.packet.diagnosis.values import SILENT, Facts, Finding, Throttle


def total_loss(facts: Facts) -> Finding | None:
    """An impairment that loses every packet."""
    return _finding([item for item in path.throttles(facts) if item.loss >= 100.0], blocks=True)


def throttled(facts: Facts) -> Finding | None:
    """A rate or impairment that lets packets through, later or not all; also one that somebody else has put on a link."""
    return _finding(path.throttles(facts), blocks=False) or _foreign(facts)


def _foreign(facts: Facts) -> Finding | None:
    ends = ((facts.source, facts.source_box, source_interface(facts)), (facts.target, facts.target_box, target_interface(facts)))
    for space, box, end in ends:
        if space is None or box is None or end is None or box.throttles:
            continue
        for place, name in ((space, end.interface), (facts.host, end.host_interface)):
            queue = next((item for item in place.queues if item.interface == name), None)
            if queue is None:
                continue
            where = "the host" if place is facts.host else place.label
            prefix = f"nsenter -t {box.pid} -n " if place is not facts.host else ""
            return Finding(
                "impairment",
                f"somebody has put the queueing discipline {queue.kind} on {name} of {where}",
                f"the link of {box.name}",
                blocks=False,
                evidence=(("queue", f"{queue.kind} on {name} of {where}"),),
                command=f"{prefix}tc qdisc del dev {name} root",
                expect=(SILENT,),
            )
    return None


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
