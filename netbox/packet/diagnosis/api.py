"""``why``: the question, from beginning to end."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from netbox.errors import NoPermission, UsageError
from netbox.packet import finding
from netbox.packet.diagnosis.asking import Kernel
from netbox.packet.diagnosis.boxes import Records
from netbox.packet.diagnosis.explain import explain
from netbox.packet.diagnosis.gather import Gatherer
from netbox.packet.diagnosis.observe import observe
from netbox.packet.diagnosis.predict import predict
from netbox.packet.diagnosis.values import ICMP, LAN, SCTP, TCP, UDP, Answer, Request

if TYPE_CHECKING:
    from netbox.engine import Engine

PROTOCOLS = (TCP, UDP, SCTP, ICMP)


def why(
    engine: Engine,
    source: str,
    target: str,
    *,
    protocol: str | None = None,
    port: int | None = None,
    ttl: int | None = None,
    size: int | None = None,
    ipv6: bool = False,
    timeout: float = 0.8,
) -> Answer:
    """Why ``source`` does or does not reach ``target``: what should happen, what packets do, and what would mend it.

    ``source`` is a sandbox, ``host`` or ``lan``; ``target`` one of these or an address or name, with ``:PORT`` (and ``/udp``) where one is
    meant. Without a protocol a port means tcp, and no port an ICMP echo. ``ttl`` and ``size`` (bytes of the IP packet) are the kernel's own
    if not given; ``ipv6`` prefers an IPv6 address where there are both; ``timeout`` is how many seconds an answer is waited for.

    Raises:
        UsageError: the target cannot be read, or has no port where one is needed.
        NotFound: there is no such source.
        NoPermission: not root.
    """
    name, request = request_of(target, protocol, port, ttl=ttl, size=size, ipv6=ipv6, timeout=timeout)
    return answer(engine, source, name, request)


def request_of(
    target: str,
    protocol: str | None,
    port: int | None,
    *,
    ttl: int | None = None,
    size: int | None = None,
    ipv6: bool = False,
    timeout: float,
) -> tuple[str, Request]:
    """The name in a target, and what is asked of it. Raises UsageError."""
    name, written, given = finding.parse(target)
    number = port if port is not None else written
    chosen = protocol or given or (TCP if number else ICMP)
    if chosen not in PROTOCOLS:
        raise UsageError(f"no such protocol: {chosen}", f"choose from {', '.join(PROTOCOLS)}")
    if chosen != ICMP and not number:
        raise UsageError(f"{target} has no port, and {chosen} needs one", f"write it as {name}:80")
    if number is not None and not 0 < number < 65536:
        raise UsageError(f"port {number} is out of range", "ports are 1 to 65535")
    return name, Request(chosen, number or 0 if chosen != ICMP else 0, ttl, size, timeout=timeout, ipv6=ipv6 or ":" in name)


def answer(engine: Engine, source: str, target: str, request: Request) -> Answer:
    """The answer to a question whose parts are known. Raises as ``why``."""
    if os.geteuid() != 0:
        raise NoPermission("cannot look into the networks of sandboxes: netbox needs root for that", "run it with sudo")
    with finding.source(engine, LAN) if LAN in (source, target) else contextlib.nullcontext() as lan:
        gatherer = Gatherer(Records(engine), Kernel(), source, target, request, lan.neighbour if lan else None)
        try:
            facts = gatherer.gather()
            prediction = predict(facts)
            return explain(facts, prediction, observe(engine, facts, prediction, gatherer.opened))
        finally:
            gatherer.opened.close()
