"""What packets really do: an ordinary attempt, and one packet whose way the kernel reports.

The attempt says what a program would meet. At the same time one more packet with the same addresses is followed through devices, rules and
namespaces, so that the place where it dies is known. Both are sent from the source's network namespace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from netbox.errors import NetboxError
from netbox.kernel.inspection import InspectionSocket
from netbox.packet.diagnosis.asking import netlink_socket
from netbox.packet.diagnosis.attempt import Attempt, attempt, echo
from netbox.packet.diagnosis.gather import Opened
from netbox.packet.diagnosis.values import DELIVERED, NOT_ASKED, REACHED, SILENT, UDP, Facts, Observation, Prediction

if TYPE_CHECKING:
    from netbox.engine import Engine


_one_trace = threading.Lock()  # the kernel has one reader of its log, and a process one table that marks packets


def observe(engine: Engine, facts: Facts, prediction: Prediction, opened: Opened) -> Observation:
    """Sends packets, if there is anybody to send them and an address to send them to. Takes little more than the request's timeout."""
    if not facts.address or (facts.source_box is not None and opened.source < 0):
        return Observation()
    special = prediction.blocked.source_port if prediction.blocked else 0
    size = facts.request.size or next((item.size for item in (prediction.blocked, *prediction.notes) if item and item.size), 0)
    small = replace(facts.request, size=None)
    source = opened.source if facts.source is not facts.host else -1
    with ThreadPoolExecutor(4) as pool:
        tries: dict[str, Callable[[], Attempt]] = {"plain": lambda: attempt(source, facts.address, facts.port, small)}
        if special:
            tries["special"] = lambda: attempt(source, facts.address, facts.port, small, special)
        if size:
            tries["small"] = lambda: echo(source, facts.address, small)
            tries["large"] = lambda: echo(source, facts.address, small, size)
        running = {name: pool.submit(task) for name, task in tries.items()}
        # In this thread, which has the database open; what takes its time may do so as long as the attempt.
        found = _trace(engine, facts, opened, lambda: not running["plain"].done())
        try:
            results = {name: future.result() for name, future in running.items()}
        except OSError as error:
            return Observation(notes=(f"no packet could be sent: {error.strerror or error}",))
    plain_result = results["plain"]
    found = replace(found, outcome=plain_result.outcome, said=plain_result.said, rtt=plain_result.rtt)
    if "special" in results:
        found = replace(found, special="" if results["special"].outcome == NOT_ASKED else results["special"].outcome)
    if not found.reached:
        found = replace(found, nobody=_unresolved(facts, source))
    if "large" in results and results["small"].outcome in REACHED:
        found = replace(found, large=results["large"].outcome, large_said=results["large"].said)
    return _of_udp(facts, found)


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


def _trace(engine: Engine, facts: Facts, opened: Opened, waits: Callable[[], bool]) -> Observation:
    from netbox.packet.diagnosis import following

    if not facts.source_address:
        return Observation()  # no route, so no packet
    try:
        with _one_trace:
            return following.follow(engine, facts, opened, waits)
    except (NetboxError, OSError) as error:
        return Observation(notes=(f"the packet could not be followed: {error}",))
