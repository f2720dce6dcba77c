"""The causes: each is a function of the facts that returns a ``Finding``, or ``None`` where it is not what is wrong. Pure.

They stand here in the order of a packet's path; the first one that stops packets is the prediction. ``IDS`` lists their ids.
"""

from __future__ import annotations

from collections.abc import Callable

from netbox.packet.diagnosis.causes import arriving, ends, firewall, host, links, listening, resolution, sending, shaping
from netbox.packet.diagnosis.values import Facts, Finding

Check = Callable[[Facts], Finding | None]

CHECKS: tuple[Check, ...] = (
    ends.source_not_running,
    ends.source_paused,
    resolution.alias_elsewhere,
    resolution.name_server_down,
    resolution.name_unknown,
    ends.target_not_running,
    ends.no_network,
    links.source_link_down,
    links.source_address_missing,
    firewall.internal_network,
    firewall.other_network,
    sending.no_route,
    sending.source_ports_used_up,
    links.beside_its_parent,
    links.duplicate_mac,
    links.neighbour_entries,
    host.stale_connection,
    host.reverse_path,
    host.published_elsewhere,
    host.not_published,
    host.rules_missing,
    host.forwarding_off,
    host.no_route,
    host.time_to_live,
    firewall.refused_by_rules,
    links.target_link_down,
    links.target_address_missing,
    arriving.reverse_path,
    ends.target_paused,
    arriving.no_way_back,
    listening.backlog_full,
    listening.other_address,
    listening.nothing,
    shaping.total_loss,
    host.too_large,
    shaping.throttled,
)

IDS = {
    "source-not-running": "the source does not run",
    "source-paused": "the source is paused",
    "dns-down": "no name server of the source answers",
    "name-unknown": "the name does not resolve",
    "target-not-running": "the target does not run",
    "target-paused": "the target is paused",
    "no-network": "the source or the target has no network",
    "link-down": "a link on the way is down",
    "address-missing": "an interface has lost its address",
    "internal-network": "the network is internal",
    "other-network": "source and target share no network",
    "no-route": "nobody has a route",
    "source-ports-used-up": "the source has no port left to send from",
    "beside-its-parent": "the host and a sandbox on a LAN by its link",
    "duplicate-mac": "two sandboxes on one network have the same MAC",
    "wrong-mac": "a permanent neighbour entry has a wrong MAC",
    "stale-neighbour": "a neighbour entry is out of date",
    "stale-connection": "connection tracking remembers an old translation",
    "reverse-path-filter": "the reverse path filter drops the packet",
    "published-elsewhere": "the port is published on another address",
    "not-published": "the port is not published",
    "rules-missing": "rules of netbox are missing",
    "forwarding-off": "ip_forward is off",
    "ttl-expired": "the packet's TTL runs out",
    "foreign-rule": "a firewall rule that is not netbox's drops the packet",
    "own-rule": "a firewall rule of netbox drops the packet",
    "backlog-full": "the listening socket's queue is full",
    "listening-elsewhere": "something listens, on another address",
    "not-listening": "nothing listens on the port",
    "no-neighbour": "nobody has the address",
    "beyond-this-host": "it leaves this host and is not answered",
    "no-way-back": "the target has no route for the answer",
    "mtu": "large packets vanish",
    "impairment": "a rate or an impairment is in force",
}
