"""Who listens at the target, and whether it has room."""

from __future__ import annotations

from netbox.kernel.socket_diag import SocketFact
from netbox.packet.diagnosis import path
from netbox.packet.diagnosis.publishing import ANY, endpoint
from netbox.packet.diagnosis.values import ICMP, REFUSED, SANDBOX, SCTP, SILENT, TCP, Facts, Finding, Namespace

_LOOPBACK = ("127.", "::1")


def _space(facts: Facts) -> Namespace | None:
    """The namespace in which somebody should listen; ``None`` when we cannot look there."""
    if facts.request.protocol == ICMP or not facts.port or path.kind(facts) == path.NOWHERE:
        return None
    return facts.target


def _listeners(space: Namespace, port: int) -> list[SocketFact]:
    return [item for item in space.sockets if item.port == port and not item.peer_port and (item.protocol != "tcp" or item.state == 10)]


def _title(facts: Facts) -> str:
    if facts.target is facts.host and facts.target_kind != SANDBOX:
        return "the host"
    if facts.target is facts.source and facts.source_box is not None:
        return facts.source_box.name
    return facts.target_box.name if facts.target_box else facts.target_name


def backlog_full(facts: Facts) -> Finding | None:
    """As many connections as the socket has room for wait to be accepted: further ones are dropped without a word."""
    space, (address, port) = _space(facts), facts.destination
    full = [item for item in _listeners(space, port) if item.is_full and item.takes(address)] if space else []
    if not full:
        return None
    item, name = full[0], _title(facts)
    return Finding(
        "backlog-full",
        f"{name} listens on port {port}, but does not accept: {item.waiting} connections wait, and its queue has room for {item.room}",
        f"the listening socket in {name}",
        evidence=(("socket", f"{endpoint(item.address, port)} in {name}, {item.waiting} waiting, backlog {item.room}"),),
        mend=f"look why the program in {name} does not accept connections, or give it a larger backlog (listen(2))",
        expect=(SILENT,),
    )


def other_address(facts: Facts) -> Finding | None:
    """Somebody listens on the port, but not on the address that the packet is for."""
    space, (address, port) = _space(facts), facts.destination
    found = _listeners(space, port) if space else []
    if not found or any(item.takes(address) for item in found):
        return None
    name, bound = _title(facts), found[0].address
    if bound in ANY:
        versions = f"for {_version(bound)}, and the packet is {_version(address)}"
        because = f"the program in {name} listens on {endpoint(bound, port)} only, {versions}"
    elif address.startswith(_LOOPBACK) and not any(item.address.startswith(_LOOPBACK) for item in found):
        because = f"{name} listens on port {port} of {bound} only, not on {address}"
    elif bound.startswith(_LOOPBACK):
        because = f"the program in {name} listens on {endpoint(bound, port)} only, which nobody outside {name} reaches"
    else:
        because = f"the program in {name} listens on {endpoint(bound, port)} only, and the packet is for {address}"
    return Finding(
        "listening-elsewhere",
        because,
        f"the sockets of {name}",
        evidence=tuple(("socket", f"{endpoint(item.address, port)} in {name}") for item in found),
        mend=f"have the program listen on {endpoint('::' if ':' in address else '0.0.0.0', port)} or {endpoint(address, port)}",
        expect=(REFUSED,),
    )


def _version(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def nothing(facts: Facts) -> Finding | None:
    """Nobody listens on the port: the kernel says so (RST, or ICMP port unreachable)."""
    space, port = _space(facts), facts.destination[1]
    if space is None or _listeners(space, port):
        return None
    name = _title(facts)
    others = sorted({item.port for item in space.sockets if not item.peer_port and (item.protocol != "tcp" or item.state == 10)})
    protocol = facts.request.protocol.upper()
    icmp = "ICMPv6" if ":" in facts.destination[0] else "ICMP"
    refusal = {TCP: "answers with a RST", SCTP: f"answers with ABORT, or {icmp} where it has no SCTP"}.get(
        facts.request.protocol, f"answers with {icmp} port unreachable"
    )
    listening = f"{protocol} " + ", ".join(map(str, others[:8])) + (", …" if len(others) > 8 else "") if others else f"no {protocol} port"
    evidence = [("sockets", f"{name} listens on {listening}")]
    box = facts.target_box
    inner = next((item for item in (box.ports if box else ()) if item.host_port == port and item.protocol == facts.request.protocol), None)
    mend = (
        f"start the program in {name} that should listen on port {port}"
        if name != "the host"
        else f"start what should listen on port {port}"
    )
    if inner is not None and facts.translated is None:
        evidence.append(("published", f"port {port} is the host's side; inside {name} it is {inner.port}"))
        mend = f"use {name}:{inner.port}"
    return Finding(
        "not-listening",
        f"nothing in {name} listens on {protocol} port {port}, so its kernel {refusal}".replace("in the host", "on the host"),
        f"the sockets of {name}",
        evidence=tuple(evidence),
        mend=mend,
        expect=(REFUSED, "unreachable"),
    )
