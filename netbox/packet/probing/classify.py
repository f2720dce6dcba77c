"""What an answer, or none, means: states and plain words. Pure; types and codes as in RFC 792 and RFC 4443."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from netbox.packet.probing import values
from netbox.packet.probing.values import ProbeAnswer

if TYPE_CHECKING:
    from netbox.packet.probing.packets import Reply

# (type, code) -> state, words. "{who}" is who sent it.
_ERRORS = {
    (3, 0): (values.NO_ROUTE, "network unreachable"),
    (3, 1): (values.UNREACHABLE, "host unreachable"),
    (3, 2): (values.CLOSED, "protocol unreachable"),
    (3, 3): (values.CLOSED, "port unreachable"),
    (3, 4): (values.TOO_BIG, "fragmentation needed"),
    (3, 5): (values.NO_ROUTE, "source route failed"),
    (3, 6): (values.NO_ROUTE, "network unknown"),
    (3, 7): (values.UNREACHABLE, "host unknown"),
    (3, 9): (values.FILTERED, "network administratively prohibited"),
    (3, 10): (values.FILTERED, "host administratively prohibited"),
    (3, 11): (values.NO_ROUTE, "network unreachable for this type of service"),
    (3, 12): (values.UNREACHABLE, "host unreachable for this type of service"),
    (3, 13): (values.FILTERED, "communication administratively prohibited"),
    (11, 0): (values.TIME_EXCEEDED, "time to live exceeded in transit"),
    (11, 1): (values.TIME_EXCEEDED, "fragment reassembly time exceeded"),
    (12, 0): (values.UNREACHABLE, "parameter problem"),
}
_ERRORS_6 = {
    (1, 0): (values.NO_ROUTE, "no route to destination"),
    (1, 1): (values.FILTERED, "communication administratively prohibited"),
    (1, 2): (values.UNREACHABLE, "beyond the scope of the source address"),
    (1, 3): (values.UNREACHABLE, "address unreachable"),
    (1, 4): (values.CLOSED, "port unreachable"),
    (1, 5): (values.FILTERED, "source address failed the policy"),
    (1, 6): (values.FILTERED, "route to destination rejected"),
    (2, 0): (values.TOO_BIG, "packet too big"),
    (3, 0): (values.TIME_EXCEEDED, "hop limit exceeded in transit"),
    (3, 1): (values.TIME_EXCEEDED, "fragment reassembly time exceeded"),
    (4, 0): (values.UNREACHABLE, "erroneous header field"),
    (4, 1): (values.CLOSED, "unrecognized next header"),
    (4, 2): (values.UNREACHABLE, "unrecognized option"),
}
_REPLIES = {
    "echo-reply": (values.ANSWERED, "echo reply"),
    "syn-ack": (values.OPEN, "SYN-ACK"),
    "rst": (values.CLOSED, "RST"),
    "tcp": (values.FILTERED, "a TCP segment that is no answer to a SYN"),
    "datagram": (values.OPEN, "datagram"),
    "init-ack": (values.OPEN, "INIT-ACK"),
    "abort": (values.CLOSED, "ABORT"),
    "sctp": (values.FILTERED, "an SCTP packet that is no answer to an INIT"),
}
_CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
_NXDOMAIN = 3
_SEND_ERRORS = {
    errno.ENETUNREACH: (values.NO_ROUTE, "the source has no route to it"),
    errno.EHOSTUNREACH: (values.NO_ROUTE, "a route of type unreachable forbids it"),
    errno.EACCES: (values.NO_ROUTE, "a route of type prohibit forbids it"),
    errno.EINVAL: (values.NO_ROUTE, "a route of type blackhole swallows it"),
    errno.EPERM: (values.FILTERED, "a firewall rule in the source's own OUTPUT chain drops it"),
    errno.EMSGSIZE: (values.TOO_BIG, "larger than the MTU of the source's own link"),
    errno.ENETDOWN: (values.NO_ROUTE, "the source's link is down"),
    errno.EADDRNOTAVAIL: (values.NO_ROUTE, "the source has no address to send it from"),
    errno.ENODEV: (values.NO_ROUTE, "the source has no link to send it by"),
}


class Question(NamedTuple):
    """The packet that was sent, as far as its answer's meaning depends on it."""

    sequence: int
    protocol: str
    address: str
    port: int | None = None
    ip_id: int | None = None
    reached_by: str = ""


class Observed(NamedTuple):
    """What was seen besides the answer. ``neighbour`` is the next hop that the source could not find by ARP or neighbour discovery."""

    arrived: bool | None = None
    listening: bool | None = None
    neighbour: str | None = None


_NOTHING = Observed()


def answered(question: Question, reply: Reply, rtt: float, observed: Observed = _NOTHING) -> ProbeAnswer:
    """What came back, put into words."""
    state, words = _meaning(question, reply)
    return ProbeAnswer(
        question.sequence,
        state,
        words,
        from_address=reply.from_address,
        rtt=rtt,
        ttl=reply.ttl,
        icmp=reply.icmp,
        arrived=observed.arrived,
        listening=observed.listening,
        mac_address=reply.mac or None,
        next_mtu=reply.next_mtu,
        records=reply.records,
        truncated=reply.truncated,
        ip_id=question.ip_id,
    )


def _meaning(question: Question, reply: Reply) -> tuple[str, str]:
    if reply.kind == "error" and reply.icmp is not None:
        return _error(question, reply, reply.icmp)
    if reply.kind in ("arp", "advertisement"):
        return values.ANSWERED, f"{question.address} is at {reply.mac or 'an unnamed link-layer address'}"
    if question.protocol == values.DNS and reply.kind in ("datagram", "message"):
        return _dns(reply)
    return _REPLIES[reply.kind]


def _error(question: Question, reply: Reply, icmp: tuple[int, int]) -> tuple[str, str]:
    table = _ERRORS if reply.version == 4 else _ERRORS_6
    state, words = table.get(icmp, (values.UNREACHABLE, f"error of type {icmp[0]}, code {icmp[1]}"))
    if state == values.TOO_BIG and reply.next_mtu:
        words = f"{words}, next hop's MTU {reply.next_mtu}"
    if state == values.CLOSED and (reply.from_address != question.address or question.protocol == values.ICMP):
        state = values.FILTERED  # a REJECT rule on the way says the same, in its own name
    family = "ICMP" if reply.version == 4 else "ICMPv6"
    return state, f"{family} {words}"


def _dns(reply: Reply) -> tuple[str, str]:
    if reply.code is None:
        return values.FAILED, f"a {reply.kind} that is no DNS answer"
    if reply.code == 0:
        cut = ", and more than fits into a datagram (TC)" if reply.truncated else ""
        return values.ANSWERED, (", ".join(reply.records) if reply.records else "NOERROR without a record") + cut
    name = _CODES.get(reply.code, f"response code {reply.code}")
    return (values.NO_SUCH_NAME if reply.code == _NXDOMAIN else values.FAILED), name


def silent(question: Question, observed: Observed = _NOTHING) -> ProbeAnswer:
    """Nothing came back in time."""
    state, words = _silence(question, observed)
    return ProbeAnswer(question.sequence, state, words, arrived=observed.arrived, listening=observed.listening, ip_id=question.ip_id)


def _silence(question: Question, observed: Observed) -> tuple[str, str]:
    if question.protocol in (values.ARP, values.ND):
        return values.NO_ANSWER, f"nobody on the link answers for {question.address}"
    if observed.neighbour is not None:
        return values.UNREACHABLE, f"nobody on the link answers for {observed.neighbour}"
    where = f"arrived at {question.reached_by}" if question.reached_by else "arrived"
    if question.protocol == values.UDP:
        return _udp_silence(observed, where)
    state = values.NO_ANSWER if question.protocol == values.DNS else values.FILTERED
    if observed.arrived is None:
        return state, "nothing came back"
    if not observed.arrived:
        return state, f"nothing came back, and it never {where}"
    listens = {True: ", where a socket listens", False: ", where no socket listens", None: ""}[observed.listening]
    return state, f"nothing came back, although it {where}{listens}"


def _udp_silence(observed: Observed, where: str) -> tuple[str, str]:
    if observed.arrived is None:
        return values.OPEN_OR_FILTERED, "nothing came back, which UDP may do"
    if not observed.arrived:
        return values.FILTERED, f"it never {where}"
    if observed.listening:
        return values.DELIVERED, f"it {where}, where a socket listens that did not answer"
    if observed.listening is None:
        return values.OPEN_OR_FILTERED, f"it {where}, and nothing came back"
    return values.CLOSED, f"it {where}, where no socket listens"


def not_sent(question: Question, error: OSError) -> ProbeAnswer:
    """The source's own kernel refused to send it."""
    number = error.errno or 0
    state, words = _SEND_ERRORS.get(number, (values.UNREACHABLE, f"cannot be sent: {error.strerror or error}"))
    return ProbeAnswer(question.sequence, state, words, ip_id=question.ip_id)
