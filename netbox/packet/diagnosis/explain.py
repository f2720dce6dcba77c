"""Compares what was expected with what packets did, and says it in words. Pure.

Packets are believed: what was expected and did not happen is told, and is not the answer.
"""

from __future__ import annotations

from dataclasses import replace

from netbox.packet.diagnosis import path
from netbox.packet.diagnosis.causes import IDS
from netbox.packet.diagnosis.publishing import source_interface, target_interface
from netbox.packet.diagnosis.values import (
    ANSWER,
    EXPIRED,
    HOST,
    NO_PORT,
    NO_ROUTE,
    NOT_ASKED,
    REACHED,
    REFUSED,
    SILENT,
    UNREACHABLE,
    Answer,
    Facts,
    Finding,
    Observation,
    Prediction,
)

REACHABLE, UNKNOWN = "reachable", "unknown"

# What a drop reason of the kernel (<net/dropreason-core.h>) is about, where nothing was expected.
_REASONS = {
    "IP_RPFILTER": "reverse-path-filter",
    "NO_SOCKET": "not-listening",
    "IP_INNOROUTES": "no-route",
    "IP_OUTNOROUTES": "no-route",
    "IP_INHDR": "ttl-expired",
    "PKT_TOO_BIG": "mtu",
    "NEIGH_FAILED": "stale-neighbour",
    "NEIGH_QUEUEFULL": "stale-neighbour",
    "OTHERHOST": "wrong-mac",
    "DEV_READY": "link-down",
}
_OUTCOMES = {REFUSED: "not-listening", EXPIRED: "ttl-expired", NO_PORT: "source-ports-used-up", NO_ROUTE: "no-route"}


def explain(facts: Facts, prediction: Prediction, observation: Observation) -> Answer:
    """The answer."""
    found = prediction.blocked
    if observation.outcome == NOT_ASKED:
        return _blocked(facts, prediction, observation, found or _untried(facts))
    if found is not None and found.source_port:
        if observation.reached and not observation.special:
            return _only_new_ones(facts, prediction, observation, found)
        if observation.reached and observation.special not in REACHED:
            return _blocked(facts, prediction, observation, found)
        found = None  # it is not that, or not that alone
    if found is not None and found.size:
        if observation.reached and observation.large and observation.large not in REACHED:
            return _blocked(facts, prediction, observation, found)
        found = None if not observation.reached else found
    if observation.reached and facts.request.size and observation.large and observation.large not in REACHED:
        because = f"small packets get through, and for one of {facts.request.size} bytes {observation.large_said}"
        return _blocked(
            facts, prediction, observation, Finding("mtu", because, "", mend="send smaller packets, or look at the MTUs on the way")
        )
    if observation.reached:
        if found is not None and observation.outcome in found.expect:
            return _blocked(facts, prediction, observation, found)
        return _reachable(facts, prediction, observation, None if found and found.uncertain else found)
    if found is not None and (not found.expect or observation.outcome in found.expect) and not _contradicts(found, observation):
        return _blocked(facts, prediction, observation, found)
    other = _alternative(prediction, observation) or _observed(facts, prediction, observation)
    surprise = ""
    if facts.target is None and found is None:
        pass  # what is not on this host was never promised
    elif found is not None:
        surprise = f"expected was that {found.because}; packets did something else: {observation.said}"
    elif other.cause not in [item.cause for item in prediction.notes]:
        surprise = f"expected was that packets get through; they did not: {observation.said}"
    return _blocked(facts, prediction, observation, other, surprise)


def _untried(facts: Facts) -> Finding:
    """Nothing is expected to be in the way, and nothing could be sent to see."""
    if facts.target_kind == HOST and not facts.address:
        return Finding("no-route", f"{facts.source_name} has no route to the host", "", mend=f"give {facts.source_name} a default route")
    why = f"{facts.target_title} has no address" if not facts.address else "no packet could be sent to see whether it can"
    return Finding(UNKNOWN, why, "", mend=f"look at {facts.target_name}: netbox inspect {facts.target_name}" if not facts.address else "")


def _contradicts(found: Finding, observation: Observation) -> bool:
    """Whether a trace saw the packet die at a rule, and not at the one that was expected (or where none was)."""
    if not observation.place or found.cause in ("source-paused", "target-paused"):
        return False
    if observation.foreign:
        return not found.place
    return bool(found.place) and _chain(found.place) != _chain(observation.place)


def _chain(place: str) -> str:
    """The chain of a rule's place. Its number may have changed since the rules were read."""
    words = place.split()
    return words[-3] if len(words) > 2 and words[-2] == "rule" else words[-2] if len(words) > 1 else place


def _renumbered(found: Finding, observation: Observation) -> Finding:
    """With the rule's number as the packet met it: other rules may have come and gone since they were read."""
    before, now = found.place, observation.place
    if not before or not now or before == now or _chain(before) != _chain(now):
        return found
    old, new = (f"-D {_chain(text)} {text.split()[-1]}" for text in (before, now))
    evidence = tuple((what, value.replace(before, now)) for what, value in found.evidence)
    return replace(found, because=found.because.replace(before, now), evidence=evidence, command=found.command.replace(old, new), place=now)


def _alternative(prediction: Prediction, observation: Observation) -> Finding | None:
    """Another cause that was found and fits what packets did."""
    candidates = [item for item in prediction.notes if not item.source_port and observation.outcome in item.expect]
    if observation.place:
        return next((item for item in candidates if item.place and _chain(item.place) == _chain(observation.place)), None)
    return next(iter(candidates), None)


def _observed(facts: Facts, prediction: Prediction, observation: Observation) -> Finding:
    """A cause out of what packets did alone."""
    what = "the answer" if observation.dropped_at.startswith(ANSWER) else "it"
    where = f" {observation.dropped_at.removeprefix(ANSWER)}" if observation.dropped_at else ""
    if observation.place:
        whose = f"of {observation.owner}" if observation.owner and not observation.foreign else "that is not netbox's"
        cause = "foreign-rule" if observation.foreign or not observation.owner else "own-rule"
        mend = "look at that rule" if cause == "foreign-rule" else ""
        because = f"a firewall rule {whose} drops {what}: {observation.place}"
        return Finding(cause, because, where.strip(), mend=mend, place=observation.place)
    if facts.declared is not None and observation.reason == "NO_SOCKET" and observation.dropped_at.startswith("on the host"):
        because = f"{facts.published_by} publishes port {facts.port}, but no rule of netbox leads there"
        return Finding("rules-missing", because, where.strip(), command="netbox repair")
    if observation.reason in _REASONS:
        cause = _REASONS[observation.reason]
        return Finding(cause, f"{IDS[cause]}: the kernel drops {what}{where} with reason {observation.reason}", where.strip())
    if observation.nobody:
        return Finding(
            "no-neighbour", f"nobody {observation.nobody}", where.strip(), mend="look whether the address is right, and its owner there"
        )
    if facts.target is None and observation.outcome == REFUSED:
        what = f"{facts.request.protocol.upper()} port {facts.port}"
        return Finding("not-listening", f"nothing at {facts.address} listens on {what}: {observation.said}", "", mend="look there")
    if observation.outcome in _OUTCOMES:
        return Finding(_OUTCOMES[observation.outcome], observation.said, where.strip())
    if prediction.doubts and observation.outcome == SILENT:
        rules = ", ".join(prediction.doubts[:3])
        because = f"nothing came back, and a rule that could not be judged beforehand may drop it: {rules}"
        return Finding("foreign-rule", because, "", mend="look at that rule", place=prediction.doubts[0])
    if facts.target is None and observation.outcome in (SILENT, UNREACHABLE) and path.out_interface(facts):
        out = path.out_interface(facts)
        because = f"the packet leaves the host by {out}, and {observation.said}: what happens beyond {out} cannot be seen from here"
        return Finding("beyond-this-host", because, "", mend=f"look at the network behind {out}")
    if observation.reason:
        because = f"the kernel drops {what}{where} with reason {observation.reason} ({observation.function})"
    elif observation.dropped_at:
        because = f"{what} was last seen{where}, and nothing that netbox knows of explains why it goes no further"
    else:
        because = f"{observation.said}, and nothing that netbox knows of explains it"
    return Finding(UNKNOWN, because, where.strip(), mend="see the way of the packet: netbox trace")


def _blocked(facts: Facts, prediction: Prediction, observation: Observation, found: Finding, surprise: str = "") -> Answer:
    found = _renumbered(found, observation)
    verb = "does not reach" if found.cause == "stale-connection" else "cannot reach"
    start = facts.source_name
    if found.source_port:
        start += f", sending from port {found.source_port},"
    sentence = f"{start} {verb} {facts.target_title}: {found.because}"
    if found.size:
        sentence = f"{facts.source_name} cannot reach {facts.target_title} with packets of {found.size} bytes: {found.because}"
    return _answer(facts, prediction, observation, False, sentence, found, _evidence(facts, prediction, observation, found), surprise)


def _only_new_ones(facts: Facts, prediction: Prediction, observation: Observation, found: Finding) -> Answer:
    """A program has the port of a connection that goes astray, so that it could not be tried from there; others get through."""
    sentence = f"{facts.source_name} reaches {facts.target_title}{_how(facts)}, but not from port {found.source_port}: {found.because}"
    return _answer(facts, prediction, observation, True, sentence, found, _evidence(facts, prediction, observation, found), "")


def _reachable(facts: Facts, prediction: Prediction, observation: Observation, expected: Finding | None = None) -> Answer:
    """It gets through; how, and what is worth knowing."""
    start, title = facts.source_name, facts.target_title
    surprise = f"expected was that {expected.because}; but packets get through" if expected else ""
    for note in prediction.notes:
        if note.blocks:
            continue
        if note.cause == "mtu" and observation.large and observation.large not in REACHED:
            sentence = f"{start} reaches {title} with small packets only: {note.because}"
            return _answer(facts, prediction, observation, True, sentence, note, _evidence(facts, prediction, observation, note), surprise)
        if note.cause == "impairment":
            sentence = f"{start} reaches {title}{_how(facts)}, but not undisturbed: {note.because}"
            return _answer(facts, prediction, observation, True, sentence, note, _evidence(facts, prediction, observation, note), surprise)
    none = Finding(REACHABLE, "", "", blocks=False)
    sentence = f"{start} reaches {title}{_how(facts)}"
    return _answer(facts, prediction, observation, True, sentence, none, _evidence(facts, prediction, observation, None), surprise)


def _how(facts: Facts) -> str:
    """`` over network front``, `` through the port that web publishes``."""
    way = path.kind(facts)
    inward, end = source_interface(facts), target_interface(facts)
    parts = []
    if way == path.BRIDGED and inward is not None:
        parts.append(f"over network {inward.network}")
    elif facts.translated is not None and facts.published_by:
        parts.append(f"by the port that {facts.published_by} publishes, on network {end.network}" if end else "by a published port")
    elif way == path.FROM_HOST and end is not None:
        parts.append(f"over network {end.network}")
    elif way == path.FORWARDED:
        parts.append(f"by way of the host and {path.out_interface(facts)}")
    elif way == path.INSIDE:
        parts.append(f"inside {facts.source.label}" if facts.source is not facts.host else "on the host itself")
    elif way == path.TO_HOST and inward is not None:
        parts.append(f"over network {inward.network}")
    return f" {parts[0]}" if parts else ""


def _evidence(facts: Facts, prediction: Prediction, observation: Observation, found: Finding | None) -> tuple[tuple[str, str], ...]:
    """What supports the sentence: the cause's own facts, what packets did, where they went."""
    lines = list(found.evidence) if found else []
    lines += [item for item in prediction.path if found is None or not found.blocks or item[0] == "DNAT"]
    if observation.outcome != NOT_ASKED:
        timed = f" after {observation.rtt * 1000:.2f} ms" if observation.rtt is not None else ""
        lines.append((facts.request.title, f"{observation.said}{timed}"))
    if observation.large:
        lines.append(("large packet", observation.large_said))
    if observation.special and found is not None and found.source_port:
        lines.append((f"from port {found.source_port}", "nothing came back" if observation.special == SILENT else observation.special))
    if observation.dropped_at:
        reason = f", reason {observation.reason} in {observation.function}" if observation.reason else ""
        lines.append(("dropped", f"{observation.dropped_at}{reason}"))
    if observation.place and not (found and found.place and _chain(found.place) == _chain(observation.place)):
        lines.append(("rule", observation.place + (f", of {observation.owner}" if observation.owner else "")))
    if found is None or not found.blocks:
        others = [note for note in prediction.notes if note is not found and not note.blocks and note.cause != "mtu"]
        lines += [line for note in others for line in note.evidence]
    lines += [("counter", text) for text in observation.counters]
    lines += [("not known", text) for text in (*facts.problems, *observation.notes)]
    return tuple(dict.fromkeys(lines))


def _answer(
    facts: Facts,
    prediction: Prediction,
    observation: Observation,
    reachable: bool,
    sentence: str,
    found: Finding,
    evidence: tuple[tuple[str, str], ...],
    surprise: str,
) -> Answer:
    return Answer(
        reachable,
        sentence,
        found.cause,
        evidence,
        found.command or None,
        "" if found.command else found.mend,
        not surprise,
        surprise,
        facts.source_name,
        facts.target_title,
        facts.request,
        prediction,
        observation,
    )
