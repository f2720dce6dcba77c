"""What a program at the source would meet: one connection, datagram or echo by an ordinary socket in the source's network namespace.

Unlike a packet built by hand it goes through all that the kernel does for a program: the choice of a source port, the default TTL, the
neighbour table. Sources: ip(7) for IP_RECVERR, icmp(7), tcp(7).
"""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from netbox.kernel import namespaces
from netbox.packet.diagnosis.packets import checksum, init
from netbox.packet.diagnosis.values import (
    ANSWERED,
    EXPIRED,
    ICMP,
    NO_PORT,
    NO_ROUTE,
    OPEN,
    REFUSED,
    SCTP,
    SILENT,
    TCP,
    UNREACHABLE,
    Request,
)

_IP_TTL, _IP_MTU_DISCOVER, _IP_RECVERR, _IP_PMTUDISC_PROBE = 2, 10, 11, 3
_IPV6_UNICAST_HOPS, _IPV6_RECVERR, _IPV6_MTU_DISCOVER = 16, 25, 23
_MSG_ERRQUEUE = 0x2000
_PING = 84  # bytes: the packet of ping(8)
_TIME_EXCEEDED, _TIME_EXCEEDED6 = 11, 3
_SCTP, _INIT_ACK, _ABORT = 132, 2, 6  # RFC 9260, 3.2
_FIRST_PORT, _LAST_PORT = 32768, 60999
_ECHO = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}
_UNREACHABLE = {0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable", 4: "packet too big",
                9: "network prohibited", 10: "host prohibited", 13: "prohibited by a filter"}  # fmt: skip
_UNREACHABLE6 = {0: "no route", 1: "prohibited by a filter", 2: "beyond the scope of the source address", 3: "address unreachable",
                 4: "port unreachable", 5: "source address refused by a filter", 6: "route rejected"}  # fmt: skip
_TOO_BIG6 = 2


class Attempt(NamedTuple):
    """What came of it: one of the outcomes of ``values``, in words, and after how many seconds."""

    outcome: str
    said: str
    rtt: float | None = None


def attempt(netns_fd: int, address: str, port: int, request: Request, source_port: int = 0) -> Attempt:
    """Tries once. ``netns_fd`` -1 is the calling thread's namespace; ``source_port`` 0 leaves the choice to the kernel.

    Never raises for what the network or the kernel says; ``OSError`` when no socket can be had at all.
    """
    if request.protocol == ICMP:
        return echo(netns_fd, address, request)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind, number = {TCP: (socket.SOCK_STREAM, 0), SCTP: (socket.SOCK_STREAM, _SCTP)}.get(request.protocol, (socket.SOCK_DGRAM, 0))
    if request.protocol == SCTP and not _has_sctp(family):
        return _association(netns_fd, family, address, port, request)
    with _socket(netns_fd, family, kind, number) as sock:
        sock.setblocking(False)
        _prepare(sock, family, request.ttl)
        begun = time.monotonic()
        try:
            if request.source_address or source_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((request.source_address, source_port))
            error = sock.connect_ex((address, port))
            if error not in (0, errno.EINPROGRESS):
                return _failure(error)
            if kind == socket.SOCK_DGRAM:
                sock.send(b"\n")
            return _wait(sock, begun, request, connected=error == 0 and kind == socket.SOCK_STREAM)
        except OSError as failure:
            return _failure(failure.errno or 0)
        finally:
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT stays


def _wait(sock: socket.socket, begun: float, request: Request, connected: bool) -> Attempt:
    """Until the socket is connected, says something, or an error arrives."""
    stream = sock.type == socket.SOCK_STREAM
    poll = select.poll()
    poll.register(sock, select.POLLOUT if stream else select.POLLIN)
    deadline = begun + request.timeout
    while not connected:
        late = time.monotonic() >= deadline  # asked before the last look, so that what has come by then counts
        events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not events and not late:
            continue
        if not events:
            return Attempt(SILENT, f"nothing came back within {request.timeout:g} s")
        rtt = time.monotonic() - begun
        icmp = _icmp_error(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if icmp is not None:
            return icmp._replace(rtt=rtt)
        if error:
            return _failure(error)._replace(rtt=rtt)
        if not stream and not events[0][1] & select.POLLIN:
            continue
        connected = True
    rtt = time.monotonic() - begun
    return Attempt(OPEN if stream else ANSWERED, "the connection was accepted" if stream else "an answer came back", rtt)


def echo(netns_fd: int, address: str, request: Request, size: int = 0) -> Attempt:
    """An ICMP echo; ``size`` is that of the whole IP packet, which is not to be fragmented then."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    number = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    identity, headers = random.randrange(1 << 16), 28 if family == socket.AF_INET else 48
    payload = bytes(max(0, (size or _PING) - headers))
    asked, answered = _ECHO[family]
    message = struct.pack("!BBHHH", asked, 0, 0, identity, 1) + payload
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]

    def answer(body: bytes) -> Attempt | None:
        ours = len(body) >= 8 and body[0] == answered and struct.unpack_from("!H", body, 4)[0] == identity
        return Attempt(ANSWERED, "the echo was answered") if ours else None

    with _socket(netns_fd, family, socket.SOCK_RAW, number) as sock:
        _prepare(sock, family, request.ttl, whole=bool(size))
        return _ask_raw(sock, family, address, request, message, answer)


def _association(netns_fd: int, family: int, address: str, port: int, request: Request) -> Attempt:
    """The first message of an SCTP association by hand: this kernel has no SCTP for programs, and the target may have one of its own."""
    own = random.randrange(_FIRST_PORT, _LAST_PORT)

    def answer(body: bytes) -> Attempt | None:
        if len(body) <= 12 or struct.unpack_from("!HH", body) != (port, own):
            return None
        kind = body[12]
        said = {_INIT_ACK: (OPEN, "INIT-ACK came back"), _ABORT: (REFUSED, "the association was refused (ABORT)")}.get(kind)
        return Attempt(*said) if said else None

    with _socket(netns_fd, family, socket.SOCK_RAW, _SCTP) as sock:
        _prepare(sock, family, request.ttl)
        return _ask_raw(sock, family, address, request, init(own, port), answer)


def _has_sctp(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, _SCTP).close()
    except OSError:
        return False
    return True


def _ask_raw(
    sock: socket.socket, family: int, address: str, request: Request, message: bytes, answer: Callable[[bytes], Attempt | None]
) -> Attempt:
    """Sends what stands behind the IP header, and waits until ``answer`` knows what something that came in means."""
    with sock:
        sock.setblocking(False)
        begun = time.monotonic()
        try:
            if request.source_address:
                sock.bind((request.source_address, 0))
            sock.connect((address, 0))
            sock.send(message)
        except OSError as failure:
            return _failure(failure.errno or 0)
        while True:
            left = begun + request.timeout - time.monotonic()  # asked before the last look, so that what has come by then counts
            if not select.select([sock], [], [], max(0.0, left))[0]:
                if left > 0:
                    continue
                return Attempt(SILENT, f"nothing came back within {request.timeout:g} s")
            rtt = time.monotonic() - begun
            try:
                data = sock.recv(65536)
                found = answer(data[(data[0] & 15) * 4 :] if family == socket.AF_INET else data)
            except OSError:
                found = _icmp_error(sock, message)
            if found is not None:
                return found._replace(rtt=rtt)


def _socket(netns_fd: int, family: int, kind: int, number: int) -> socket.socket:
    if netns_fd >= 0:
        return namespaces.socket_in(netns_fd, family, kind, number)
    return socket.socket(family, kind | socket.SOCK_CLOEXEC, number)


def _prepare(sock: socket.socket, family: int, ttl: int | None, whole: bool = False) -> None:
    level = socket.IPPROTO_IPV6 if family == socket.AF_INET6 else socket.IPPROTO_IP
    hops, errors, discover = (
        (_IPV6_UNICAST_HOPS, _IPV6_RECVERR, _IPV6_MTU_DISCOVER) if family == socket.AF_INET6 else (_IP_TTL, _IP_RECVERR, _IP_MTU_DISCOVER)
    )
    sock.setsockopt(level, errors, 1)
    if ttl is not None:
        sock.setsockopt(level, hops, ttl)
    if whole:
        sock.setsockopt(level, discover, _IP_PMTUDISC_PROBE)


def _icmp_error(sock: socket.socket, message: bytes = b"") -> Attempt | None:
    """The ICMP error that the socket met, with who sent it (struct sock_extended_err, <linux/errqueue.h>). A raw socket hears of packets of
    others to the same address, too: there it is the one about ``message``, whose checksum the kernel may have filled in.
    """
    while True:
        try:
            quoted, ancillary, _, _ = sock.recvmsg(2048, 512, _MSG_ERRQUEUE)
        except OSError:
            return None
        if not message or (quoted[:2], quoted[4:8]) == (message[:2], message[4:8]):
            break
    for level, _, data in ancillary:
        if level not in (socket.IPPROTO_IP, socket.IPPROTO_IPV6) or len(data) < 24:
            continue
        number, origin, kind, code = struct.unpack_from("=IBBB", data)
        if origin not in (2, 3):  # SO_EE_ORIGIN_ICMP, …_ICMP6; else the own kernel's
            return _failure(number)
        offender = data[16:]
        who = socket.inet_ntop(socket.AF_INET, offender[4:8]) if origin == 2 else socket.inet_ntop(socket.AF_INET6, offender[8:24])
        if kind == (_TIME_EXCEEDED if origin == 2 else _TIME_EXCEEDED6):
            return Attempt(EXPIRED, f"{who} says: {'ICMP' if origin == 2 else 'ICMPv6'} time exceeded")
        words = (_UNREACHABLE if origin == 2 else _UNREACHABLE6).get(code, f"unreachable, code {code}")
        words = "ICMP " + words if origin == 2 else "ICMPv6 " + ("packet too big" if kind == _TOO_BIG6 else words)
        refused = number == errno.ECONNREFUSED
        return Attempt(REFUSED if refused else UNREACHABLE, f"{who} says: {words}")
    return None


def _failure(number: int) -> Attempt:
    """What an errno of the socket calls means."""
    outcome, said = {
        errno.ECONNREFUSED: (REFUSED, "the connection was refused (RST)"),
        errno.ECONNRESET: (REFUSED, "the connection was reset (RST)"),
        errno.ENETUNREACH: (NO_ROUTE, "the source's kernel has no route (ENETUNREACH)"),
        errno.EHOSTUNREACH: (UNREACHABLE, "the source's kernel cannot reach the host (EHOSTUNREACH)"),
        errno.EADDRNOTAVAIL: (NO_PORT, "the source's kernel has no port left (EADDRNOTAVAIL)"),
        errno.EAGAIN: (NO_PORT, "the source's kernel has no port left (EAGAIN)"),
        errno.EPERM: (SILENT, "the source's own firewall does not let it out (EPERM)"),
        errno.EACCES: (NO_ROUTE, "the source's kernel has a route that prohibits it (EACCES)"),
        errno.EINVAL: (NO_ROUTE, "the source's kernel has a route that drops it (EINVAL)"),
        errno.EMSGSIZE: (UNREACHABLE, "the packet is too large for a link on the way (EMSGSIZE)"),
        errno.EADDRINUSE: ("not asked", "the source port is in use, so it could not be tried"),
        errno.ETIMEDOUT: (SILENT, "nothing came back"),
    }.get(number, (UNREACHABLE, f"the source's kernel says: {os.strerror(number)}"))
    return Attempt(outcome, said)
