"""The ends themselves: sandboxes that do not run, are paused, or have no network."""

from __future__ import annotations

from netbox.packet.diagnosis.values import NOT_ASKED, OPEN, REFUSED, SILENT, Box, Facts, Finding


def source_not_running(facts: Facts) -> Finding | None:
    """The source has ended, or was never started."""
    return _not_running(facts.source_box, "source-not-running") if facts.source_box and not facts.source_box.runs else None


def target_not_running(facts: Facts) -> Finding | None:
    """The target was named and does not run."""
    return _not_running(facts.target_box, "target-not-running") if facts.target_box and not facts.target_box.runs else None


def _not_running(box: Box, cause: str) -> Finding:
    how = {"created": "has not been started", "starting": "is just starting"}.get(box.state, "has ended")
    code = f" with exit code {box.exit_code}" if box.state == "exited" and box.exit_code is not None else ""
    evidence = [("state", f"{box.name} is {box.state}" + (f", {box.error}" if box.error else ""))]
    if box.wanted_networks:
        evidence.append(("networks", f"{', '.join(box.wanted_networks)}, once it runs"))
    return Finding(
        cause,
        f"{box.name} {how}{code}, so it has no network",
        f"at {box.name}",
        evidence=tuple(evidence),
        command=f"netbox start {box.name}" if box.state != "starting" else "",
        expect=(NOT_ASKED, SILENT, "unreachable"),
    )


def source_paused(facts: Facts) -> Finding | None:
    """The source's processes are frozen: they send nothing, whatever the network does."""
    return _paused(facts.source_box, "source-paused", "send nothing") if facts.source_box else None


def target_paused(facts: Facts) -> Finding | None:
    """The target's processes are frozen: the kernel still completes handshakes for them, and nobody answers."""
    if facts.target_box is None or facts.target is facts.source:
        return None
    return _paused(facts.target_box, "target-paused", "answer nothing (the kernel goes on accepting connections for them)")


def _paused(box: Box, cause: str, what: str) -> Finding | None:
    if box.state != "paused":
        return None
    return Finding(
        cause,
        f"{box.name} is paused: its processes {what}",
        f"at {box.name}",
        evidence=(("state", f"{box.name} is paused"),),
        command=f"netbox unpause {box.name}",
        expect=(OPEN, "answered", SILENT, REFUSED, NOT_ASKED),
    )


def no_network(facts: Facts) -> Finding | None:
    """A sandbox of mode none, or on no network at all."""
    for box in (facts.source_box, facts.target_box):
        if box is None or not box.runs or box.interfaces or box.mode not in ("none", "bridge"):
            continue
        if facts.source_box is not None and facts.target_box is not None and facts.source_box.id == facts.target_box.id:
            return None
        if box is facts.target_box and facts.source.identity == (facts.target.identity if facts.target else None):
            return None
        because = f"{box.name} has no network (--network none)" if box.mode == "none" else f"{box.name} is on no network"
        other = facts.target_box if box is facts.source_box else facts.source_box
        name = next((item.network for item in (other.interfaces if other else ())), "bridge")
        return Finding(
            "no-network",
            because,
            f"at {box.name}",
            evidence=(("network", f"{box.name}: {box.mode}"),),
            command=f"netbox network connect {name} {box.name}" if box.mode == "bridge" else "",
            mend="" if box.mode == "bridge" else f"make {box.name} again with --network {name}",
            expect=(NOT_ASKED, "no route", SILENT),
        )
    return None
