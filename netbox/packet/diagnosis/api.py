"""``why``: the question, from beginning to end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import NetboxError, NoPermission, UsageError
from netbox.packet import finding
from netbox.packet.diagnosis.asking import Kernel
from netbox.packet.diagnosis.boxes import Records
from netbox.packet.diagnosis.explain import explain
from netbox.packet.diagnosis.gather import Gatherer
from netbox.packet.diagnosis.observe import Case, observe_all
from netbox.packet.diagnosis.predict import predict
from netbox.packet.diagnosis.values import ICMP, LAN, SCTP, TCP, UDP, Answer, Request

if TYPE_CHECKING:
    from netbox.engine import Engine

PROTOCOLS = (TCP, UDP, SCTP, ICMP)


class Question(NamedTuple):
    """A question whose parts are known; ``target`` is a name without a port."""

    source: str
    target: str
    request: Request


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
    (found,) = answers(engine, [Question(source, target, request)])
    if isinstance(found, NetboxError):
        raise found
    return found


def answers(engine: Engine, questions: Sequence[Question]) -> list[Answer | NetboxError]:
    """The answers to some questions that are asked at once, in their order; an error stands for one that cannot be asked.

    Raises:
        NoPermission: not root.
        NetboxError: the state cannot be read, or the simulated neighbour cannot be made.
    """
    if os.geteuid() != 0:
        raise NoPermission("cannot look into the networks of sandboxes: netbox needs root for that", "run it with sudo")
    several = len(questions) > 1
    with contextlib.ExitStack() as stack:
        lan = None
        if any(LAN in (item.source, item.target) for item in questions):
            lan = stack.enter_context(finding.source(engine, LAN)).neighbour
        kernel, records = stack.enter_context(Kernel(remember=several)), Records(engine, remember=several)
        cases: list[Case | NetboxError] = []
        for item in questions:
            gatherer = Gatherer(records, kernel, item.source, item.target, item.request, lan)
            stack.callback(gatherer.opened.close)
            try:
                facts = gatherer.gather()
                cases.append(Case(facts, predict(facts), gatherer.opened))
            except NetboxError as error:
                cases.append(error)
        seen = iter(observe_all(engine, [case for case in cases if isinstance(case, Case)]))
        return [explain(case.facts, case.prediction, next(seen)) if isinstance(case, Case) else case for case in cases]
