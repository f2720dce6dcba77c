"""Traces and drops in words. Pure."""

from __future__ import annotations

from netbox.packet.tracing import values
from netbox.packet.tracing.values import DELIVERED, DROPPED, REPLY, Drop, Hop, RuleHit, Trace

_REASONS = {
    "NETFILTER_DROP": "a firewall rule says so",
    "NO_SOCKET": "no socket listens there",
    "IP_INNOROUTES": "there is no route from there",
    "IP_OUTNOROUTES": "there is no route",
    "IP_RPFILTER": "its source address is not reached by that device (rp_filter)",
    "IP_LOCALNET": "127.0.0.0/8 came in from outside",
    "IP_INVALID_SOURCE": "its source address is none",
    "IP_INVALID_DEST": "its destination address is none",
    "IP_LOCAL_SOURCE": "its source address is the host's own",
    "IP_INADDRERRORS": "its destination address is not forwarded",
    "IP_INHDR": "its header is bad or its TTL has expired",
    "IP_NOPROTO": "nobody there speaks its protocol",
    "OTHERHOST": "it is for another MAC address",
    "PKT_TOO_BIG": "it is larger than the MTU",
    "SOCKET_RCVBUFF": "the socket's buffer is full",
    "SOCKET_FILTER": "the socket's filter refuses it",
    "SOCKET_BACKLOG": "the socket's backlog is full",
    "TCP_LISTEN_OVERFLOW": "the listen backlog is full",
    "TCP_RESET": "the connection was reset",
    "TCP_FLAGS": "its TCP flags do not fit the connection",
    "TCP_CLOSE": "the connection is closed",
    "TCP_OLD_DATA": "the data are there already",
    "NEIGH_FAILED": "nobody answers for the next hop's address",
    "NEIGH_QUEUEFULL": "too many packets wait for the next hop's address",
    "NEIGH_CREATEFAIL": "there is no room for the next hop's address",
    "QDISC_DROP": "the queue or the rate limit of the device",
    "QDISC_OVERLIMIT": "the rate limit of the device",
    "QDISC_CONGESTED": "the queue of the device is congested",
    "TC_INGRESS": "a traffic control filter on the way in",
    "TC_EGRESS": "a traffic control filter on the way out",
    "DEV_READY": "the device is down",
    "FULL_RING": "the device's ring is full",
    "XDP": "an XDP program",
    "CPU_BACKLOG": "a processor's backlog is full",
    "BPF_CGROUP_EGRESS": "a BPF program of the cgroup",
    "UNHANDLED_PROTO": "nobody there speaks its protocol",
    "BRIDGE_INGRESS_STP_STATE": "the bridge's port does not forward yet",
    "IPV6DISABLED": "IPv6 is switched off there",
    "SKB_CSUM": "its checksum is wrong",
    "TCP_CSUM": "its TCP checksum is wrong",
    "UDP_CSUM": "its UDP checksum is wrong",
    "ICMP_CSUM": "its ICMP checksum is wrong",
    "IP_CSUM": "its IP checksum is wrong",
    "SECURITY_HOOK": "a security module",
    "NOMEM": "no memory is left",
}
_BY_FUNCTION = {("IP_INHDR", "ip_forward"): "its TTL has expired", ("IP_INHDR", "ip6_forward"): "its hop limit has expired"}


def reason(name: str, function: str = "") -> str:
    """The kernel's drop reason in words; empty for one without."""
    return _BY_FUNCTION.get((name, function)) or _REASONS.get(name, "")


def rule(hit: RuleHit) -> str:
    """``filter NETBOX-INGRESS rule 8 (network back)``; another program's with its text."""
    told = f": {hit.text}" if hit.owner.kind == "foreign" and hit.position and hit.text else ""
    return f"{hit.place} ({hit.owner}{told})"


def sentence(trace: Trace) -> str:
    """How the trace ended, in one sentence."""
    if trace.outcome == DROPPED and trace.drop is not None:
        return _dropped(trace, trace.drop)
    answer = f"answer: {trace.answer}"
    if trace.outcome == DELIVERED:
        taken = trace.socket
        return f"delivered: it was taken by {taken.netns}; {answer}" if taken else f"delivered: it was answered; {answer}"
    overflow = trace.counters.get("ListenOverflows")
    if overflow:
        return f"lost: the listen backlog of {trace.destination} is full (ListenOverflows +{overflow}); {answer}"
    last = next((hop for hop in reversed(trace.hops) if hop.direction == values.REQUEST), None)
    seen = f", last seen on {last.netns}" + (f" at {last.device}" if last.device else "") if last else ""
    return f"lost: the kernel reported no drop{seen}; {answer}"


def _dropped(trace: Trace, hop: Hop) -> str:
    what = "the answer was dropped" if hop.direction == REPLY else "dropped"
    where = f"on {hop.netns}"
    why = reason(hop.reason, hop.function)
    kernel = f"{hop.reason} in {hop.function}" if hop.function else hop.reason
    if hop.rule is not None:
        return f"{what} {where} by {rule(hop.rule)}" + (f": {kernel}" if kernel else "")
    words = f"{what} {where}: {why or hop.text}" + (f" ({kernel})" if kernel else "")
    return words if trace.answer in ("", "nothing") else f"{words}; answer: {trace.answer}"


def what(hop: Hop) -> str:
    """The last column of a hop's line."""
    if hop.kind == values.RULE and hop.rule is not None:
        hook = hop.text.partition(":")[0]
        return f"{hook}: {rule(hop.rule)}: {hop.rule.verdict}"
    if hop.kind == values.NAT and hop.before is not None and hop.flow is not None:
        by = f", by {rule(hop.rule)}" if hop.rule else ", as for this connection"
        return f"NAT {hop.before} ⇒ {hop.flow}{by}"
    if hop.kind == values.DROP:
        by = f" by {rule(hop.rule)}" if hop.rule else ""
        kernel = f"{hop.reason} in {hop.function}" if hop.function else hop.reason
        why = reason(hop.reason, hop.function)
        told = " — ".join(filter(None, (kernel, why if not hop.rule else "")))
        return f"DROPPED{by}" + (f": {told}" if told else "" if hop.rule else f": {hop.text}")
    if hop.kind == values.SOCKET:
        return hop.text + (f" ({hop.function})" if hop.function else "")
    return hop.text.replace(f" by {hop.device}", "", 1) if hop.kind in (values.DEVICE, values.BRIDGE) else hop.text


def is_detail(hop: Hop) -> bool:
    """Whether the line may be left out of a short trace: chains that ended without a word, jumps, policies that accept."""
    if hop.kind != values.RULE or hop.rule is None:
        return False
    return hop.rule.verdict in ("jump", "return", "continue") or (not hop.rule.position and hop.rule.verdict == "accept")


def drop_line(drop: Drop) -> tuple[str, ...]:
    """Where, device, what, why: the columns of a drop's line."""
    flow = (
        f"{drop.flow.protocol} {drop.flow}" + (f" {drop.flow.detail}" if drop.flow.detail else "") if drop.flow else f"{drop.length} bytes"
    )
    kernel = f"{drop.reason} in {drop.function}" if drop.function else drop.reason
    why = rule(drop.rule) if drop.rule else reason(drop.reason, drop.function)
    return drop.netns, drop.device or "-", flow, kernel + (f": {why}" if why else "")
