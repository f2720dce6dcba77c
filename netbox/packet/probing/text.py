"""Reports in words. Pure."""

from __future__ import annotations

from netbox.packet.probing import values
from netbox.packet.probing.values import Hop, PathMtu, ProbeAnswer, ProbeReport


def milliseconds(seconds: float) -> str:
    """``0.21 ms``, ``12.3 ms``: three digits."""
    return f"{seconds * 1000:.3g} ms"


def who(answer: ProbeAnswer) -> str:
    """``db (10.20.30.3)``: who sent an answer; empty where nobody did."""
    return named(answer.from_address, answer.from_name)


def named(address: str | None, name: str | None) -> str:
    """An address with its name, as far as they are known."""
    return f"{name} ({address})" if name and address else address or ""


def headline(report: ProbeReport) -> str:
    """``web → db (10.20.30.3), TCP port 5432``."""
    target = report.target
    published = f", published by {target.place.title}" if target.published and target.place else ""
    return f"{report.source.title} → {target.title}{published}, {report.request.title}"


def answer_text(report: ProbeReport, answer: ProbeAnswer) -> str:
    """``open: SYN-ACK from db (10.20.30.3)``, ``filtered: nothing came back``."""
    told = answer.answer
    if answer.from_address and answer.from_address != report.target.address:
        told = f"{told}, says {who(answer)}"
    return f"{answer.state}: {told}"


def numbers(answer: ProbeAnswer) -> str:
    """``0.21 ms, ttl 64``; empty where nothing came back."""
    parts = [milliseconds(answer.rtt)] if answer.rtt is not None else []
    parts += [f"ttl {answer.ttl}"] if answer.ttl is not None and answer.rtt is not None else []
    return ", ".join(parts)


def sentence(report: ProbeReport) -> str:
    """The whole report in one line."""
    if report.path_mtu is not None:
        return f"{headline(report)}: {path_mtu(report.path_mtu)}"
    best = report.best
    if best is None:
        return f"{headline(report)}: no answer"
    figures = numbers(best)
    line = f"{headline(report)}: {answer_text(report, best)}" + (f", {figures}" if figures else "")
    return f"{line}, {len(report.hops)} {'hop' if len(report.hops) == 1 else 'hops'}" if report.hops else line


def path_mtu(found: PathMtu) -> str:
    """``path MTU 1400: router (10.0.0.1) says that larger packets must be fragmented``."""
    if found.mtu is None:
        return "no answer to the smallest packet, so the path MTU is unknown"
    text = f"path MTU {found.mtu} bytes"
    if found.black_hole:
        seen = f"; they are last seen at {named(found.last_seen, found.last_seen_name)}" if found.last_seen else ""
        return f"{text}: a black hole, larger packets vanish and nobody says so{seen}"
    if found.limited_by:
        return f"{text}: {named(found.limited_by, found.limited_by_name)} says that larger ones do not fit"
    if found.local or found.mtu == found.link_mtu:
        return f"{text}, that of the first link"
    return text


def hop_row(hop: Hop) -> tuple[str, str, str, str]:
    """Number, who, round-trip times, what was said."""
    times = "  ".join(milliseconds(answer.rtt) if answer.rtt is not None else "*" for answer in hop.answers)
    first = next((answer for answer in hop.answers if answer.from_address), hop.answers[0])
    said = "" if first.state == values.TIME_EXCEEDED else f"{first.state}: {first.answer}"
    return str(hop.ttl), named(hop.address, hop.name) or "*", times, said if first.from_address or first.arrived is not None else ""
