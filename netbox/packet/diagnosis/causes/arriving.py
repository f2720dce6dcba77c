"""The target's own kernel: its reverse path filter, and its way back."""

from __future__ import annotations

import errno
import os

from netbox.packet.diagnosis import path
from netbox.packet.diagnosis.publishing import target_interface
from netbox.packet.diagnosis.values import NO_ROUTE, SILENT, UNREACHABLE, Facts, Finding

# What a lookup says of such a route (rtnetlink(7)).
_REFUSALS = {errno.EINVAL: "blackhole", errno.EHOSTUNREACH: "unreachable", errno.EACCES: "prohibit"}


def reverse_path(facts: Facts) -> Finding | None:
    """The target would answer by another interface, and its rp_filter is strict."""
    end = target_interface(facts)
    if end is None or facts.target_box is None or facts.target is None:
        return None
    found = path.filtered_by_reverse_path(facts.target, end.interface, facts.arrival_route, facts.return_route)
    if found is None:
        return None
    name, (scope, value) = facts.target_box.name, found
    back = facts.return_route.interface if facts.return_route and not facts.return_route.error else "no interface"
    return Finding(
        "reverse-path-filter",
        f"the reverse path filter of {name} drops it: it came in by {end.interface},"
        f" and an answer to {facts.source_seen} would leave by {back}",
        f"coming in by {end.interface} of {name}",
        evidence=(("route", f"in {name}, for {facts.source_seen}: {back}"), ("rp_filter", f"{value} on {scope} of {name}")),
        command=f"nsenter -t {facts.target_box.pid} -n sysctl -w net.ipv4.conf.{scope}.rp_filter={'2' if value == '1' else '0'}",
        expect=(SILENT,),
    )


def no_way_back(facts: Facts) -> Finding | None:
    """The target cannot send its answer."""
    route, end = facts.return_route, target_interface(facts)
    if route is None or end is None or facts.target_box is None:
        return None
    refused = route.kind in ("blackhole", "unreachable", "prohibit")
    if route.error == 0 and not refused:
        return None
    name = facts.target_box.name
    refused = refused or route.error in _REFUSALS
    how = f"has a route of type {_REFUSALS.get(route.error, route.kind)} for" if refused else "has no route to"
    command = f"nsenter -t {facts.target_box.pid} -n ip route add {facts.source_seen} via {end.gateway_for(facts.source_seen)}"
    return Finding(
        "no-way-back",
        f"{name} cannot answer: it {how} {facts.source_seen}",
        f"the answer, routing in {name}",
        evidence=(("route", f"in {name}, for {facts.source_seen}: {os.strerror(route.error) if route.error else route.kind}"),),
        command="" if refused else command,
        mend=f"take that route away in {name}" if refused else "",
        expect=(SILENT, UNREACHABLE, NO_ROUTE),
    )
