"""What packets really do: an ordinary attempt, and one packet whose way the kernel reports.

The attempt says what a program would meet. At the same time one more packet with the same addresses is followed through devices, rules and
namespaces, so that the place where it dies is known. Both are sent from the source's network namespace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from netbox.kernel.inspection import InspectionSocket
from netbox.packet.diagnosis.asking import netlink_socket
from netbox.packet.diagnosis.attempt import Attempt, attempt, echo
from netbox.packet.diagnosis.gather import Opened
from netbox.packet.diagnosis.values import DELIVERED, NOT_ASKED, REACHED, SILENT, UDP, Facts, Observation, Prediction

if TYPE_CHECKING:
    from netbox.engine import Engine


_one_trace = threading.Lock()  # the kernel has one reader of its log, and a process one table that marks packets


class Case(NamedTuple):
    """A question of which the facts are known, and what is expected. ``opened`` are the namespaces that packets are sent from and to."""

    facts: Facts
    prediction: Prediction
    opened: Opened

    @property
    def source(self) -> int:
        """The namespace of the source; -1 for that of this process."""
        return self.opened.source if self.facts.source is not self.facts.host else -1

    @property
    def can_be_asked(self) -> bool:
        """Whether there is anybody to send packets, and an address to send them to."""
        return bool(self.facts.address) and (self.facts.source_box is None or self.opened.source >= 0)


def observe_all(engine: Engine, cases: Sequence[Case]) -> list[Observation]:
    """Sends packets for each of the cases that can be asked, at once. Takes little more than the longest timeout of their requests."""
    tries = [_tries(case) if case.can_be_asked else {} for case in cases]
    with ThreadPoolExecutor(max(1, sum(map(len, tries)))) as pool:
        running = [{name: pool.submit(task) for name, task in some.items()} for some in tries]
        # In this thread, which has the database open; what takes its time may do so as long as the attempts.
        followed = _traces(engine, cases, lambda: any(not futures["plain"].done() for futures in running if futures))
        return [_joined(case, found, futures) for case, found, futures in zip(cases, followed, running, strict=True)]


def _tries(case: Case) -> dict[str, Callable[[], Attempt]]:
    facts, prediction, source = case.facts, case.prediction, case.source
    special = prediction.blocked.source_port if prediction.blocked else 0
    size = facts.request.size or next((item.size for item in (prediction.blocked, *prediction.notes) if item and item.size), 0)
    small = replace(facts.request, size=None)
    tries: dict[str, Callable[[], Attempt]] = {"plain": lambda: attempt(source, facts.address, facts.port, small)}
    if special:
        tries["special"] = lambda: attempt(source, facts.address, facts.port, small, special)
    if size:
        tries["small"] = lambda: echo(source, facts.address, small)
        tries["large"] = lambda: echo(source, facts.address, small, size)
    return tries


def _joined(case: Case, found: Observation, running: Mapping[str, Future[Attempt]]) -> Observation:
    """What came of the attempts, put to what was seen of the packet that was followed."""
    if not running:
        return Observation()
    try:
        results = {name: future.result() for name, future in running.items()}
    except OSError as error:
        return Observation(notes=(f"no packet could be sent: {error.strerror or error}",))
    plain_result = results["plain"]
    found = replace(found, outcome=plain_result.outcome, said=plain_result.said, rtt=plain_result.rtt)
    if "special" in results:
        found = replace(found, special="" if results["special"].outcome == NOT_ASKED else results["special"].outcome)
    if not found.reached:
        found = replace(found, nobody=_unresolved(case.facts, case.source))
    if "large" in results and results["small"].outcome in REACHED:
        found = replace(found, large=results["large"].outcome, large_said=results["large"].said)
    return _of_udp(case.facts, found)


def _unresolved(facts: Facts, source: int) -> str:
    """The neighbour that was asked for in vain: ``answers for 10.0.0.9 on eth0 of web``; empty when there is none."""
    hops = [(source, facts.source.label, facts.source_route), (-1, "the host", facts.host_route)]
    for fd, label, route in hops:
        if route is None or route.error or route.kind != "unicast":
            continue
        address = route.gateway or route.destination
        try:
            with InspectionSocket(netlink_socket(fd)) as netlink:
                netlink.link_facts()
                entries = netlink.neighbour_facts()
        except OSError:
            continue
        entry = next((item for item in entries if (item.interface, item.address) == (route.interface, address)), None)
        if entry is not None and entry.state in ("incomplete", "failed"):
            return f"answers for {address} on {route.interface} of {label}"
    return ""


def _of_udp(facts: Facts, found: Observation) -> Observation:
    """A datagram that was taken in and not answered has arrived: UDP owes no answer."""
    if facts.request.protocol != UDP or found.outcome != SILENT or not found.taken:
        return found
    return replace(found, outcome=DELIVERED, said="a socket took the datagram, and did not answer")


def _traces(engine: Engine, cases: Sequence[Case], waits: Callable[[], bool]) -> list[Observation]:
    from netbox.packet.diagnosis import following

    found = [Observation()] * len(cases)
    asked = [number for number, case in enumerate(cases) if case.can_be_asked and case.facts.source_address]  # no route, no packet
    if asked:
        with _one_trace:
            seen = following.follow_all(engine, [(cases[number].facts, cases[number].opened) for number in asked], waits)
        for number, observation in zip(asked, seen, strict=True):
            found[number] = observation
    return found
