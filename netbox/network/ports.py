"""Published host ports: claimed in the database against other sandboxes, and held by a bound socket against other programs.

A kernel without SCTP sockets cannot give such a port to another program either: there the claim is enough.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import socket
from collections.abc import Iterable

from netbox.errors import Conflict, NoPermission, UsageError, host_error
from netbox.network.facts import answers_from_loopback
from netbox.spec import PortSpec
from netbox.state.store import Store

_ATTEMPTS = 64
_SPARE_FILES = 32
_LAST_PORT = 65535
_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_WITHOUT_SOCKETS = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
_DYNAMIC_PORTS = (49152, 65535)  # RFC 6335, section 6; what is chosen where no socket can be asked
_ANY_ADDRESS, _ANY_ADDRESS6, _LOOPBACK6 = "0.0.0.0", "::", "::1"


def reserve(
    store: Store, sandbox_id: str, ports: Iterable[PortSpec], ipv6: bool = False
) -> tuple[tuple[PortSpec, ...], list[socket.socket]]:
    """Takes host ports for a sandbox; a ``host_port`` of 0 becomes one that the kernel chose (the first of a run of free ones for a range),
    and of several ``choices`` the first free one is taken. With ``ipv6`` the sandbox has an IPv6 address: what is for every address is
    taken on every IPv6 address too.

    Raises:
        Conflict: a sandbox or another program has a port; the message names it.
        UsageError: the host has no such address, the sandbox has no IPv6 address, or the ports are more than this process may have open
            files.
    """
    ports = in_families(ports, ipv6)
    _check_families(ports, ipv6)
    _check_file_limit(sum(port.length * len(port.by_family) for port in ports))
    reserved = list(ports)
    sockets: list[socket.socket] = []
    try:
        # Those with a number of their own first: none of them must be given away as somebody's free one.
        for index, port in sorted(enumerate(ports), key=lambda item: not item[1].is_settled):
            reserved[index], held = _reserve_one(store, sandbox_id, port)
            sockets += held
    except BaseException:
        _close(sockets)
        raise
    return tuple(reserved), sockets


def in_families(ports: Iterable[PortSpec], ipv6: bool) -> tuple[PortSpec, ...]:
    """What is for every address is for those of IPv6 too where the sandbox has it, unless another of the ports is there."""
    asked = tuple(ports)

    def is_free(port: PortSpec) -> bool:
        return not any(":" in other.host_ip and _overlap(port, other) for other in asked)

    return tuple(port._replace(with_ipv6=ipv6 and port.host_ip == _ANY_ADDRESS and is_free(port)) for port in asked)


def _check_families(ports: Iterable[PortSpec], ipv6: bool) -> None:
    for port in ports:
        if ":" in port.host_ip and not ipv6:
            raise UsageError(
                f"cannot publish on [{port.host_ip}]: the sandbox has no IPv6 address",
                "put it on a network that has (netbox network create --ipv6), not an internal one",
            )
        if port.host_ip == _LOOPBACK6 and not answers_from_loopback():
            raise UsageError(
                "cannot publish on [::1]: bridged packets pass ip6tables here, and answers to ::1 are lost then",
                "publish on 127.0.0.1, or: sysctl -w net.bridge.bridge-nf-call-ip6tables=0",
            )


def _overlap(one: PortSpec, other: PortSpec) -> bool:
    if one.protocol != other.protocol or not one.host_port or not other.host_port:
        return False
    return one.host_port < other.host_port + other.length and other.host_port < one.host_port + one.length


def holds_by_socket(protocol: str) -> bool:
    """Whether this kernel has sockets of the protocol, so that ports of it are held by them."""
    try:
        socket.socket(socket.AF_INET, *_KINDS[protocol]).close()
    except OSError as error:
        if error.errno in _WITHOUT_SOCKETS:
            return False
        raise host_error("open", f"a socket for {protocol}", error) from error
    return True


def check(store: Store, sandbox_id: str, ports: Iterable[PortSpec], ipv6: bool = False) -> tuple[PortSpec, ...]:
    """What ``reserve`` would give now, but for ports that the kernel would choose; nothing stays taken. Raises what ``reserve`` raises."""
    ports = in_families(ports, ipv6)
    try:
        with store.database.transaction():
            taken, sockets = reserve(store, sandbox_id, ports, ipv6)
            _close(sockets)
            raise _RollBack
    except _RollBack:
        return tuple(found if asked.host_port else asked for asked, found in zip(ports, taken, strict=True))


def held(ports: Iterable[PortSpec]) -> list[bytes]:
    """The names of the sockets that hold the ports, as ``netbox.runtime.reservations`` has them."""
    found: list[bytes] = []
    ports = tuple(ports)
    protocols = {protocol for protocol in {port.protocol for port in ports} if protocol != "sctp" or holds_by_socket(protocol)}
    for port in (its for item in ports for its in item.by_family):
        if port.protocol in protocols:
            number = _KINDS[port.protocol][1]
            found += [b"%d %s %d" % (number, port.host_ip.encode(), port.host_port + offset) for offset in range(port.length)]
    return found


def forget(ports: Iterable[PortSpec], keep_translated: bool = False) -> None:
    """Has the kernel forget what was sent to published UDP and SCTP ports: an entry of the connection table that was made before the rule
    came, or for one that has gone, bypasses the rules, and every further packet of the client keeps it alive.

    Raises:
        HostError: the kernel refuses.
    """
    for port in (its for item in ports for its in item.by_family):
        if port.protocol != "tcp":
            from netbox.kernel import conntrack  # most publish no such port

            conntrack.flush(port.protocol, port.host_ip, port.host_port, port.length, keep_translated)


class _RollBack(Exception):
    """Ends a transaction whose changes must not stay."""


def _reserve_one(store: Store, sandbox_id: str, port: PortSpec) -> tuple[PortSpec, list[socket.socket]]:
    if port.choices > 1:
        return _reserve_choice(store, sandbox_id, port)
    if port.host_port:
        _claim(store, sandbox_id, port)  # first, because its message names the sandbox
        return port, _bind_range(port)
    for attempt in range(_ATTEMPTS):
        held = _bind(port, 0)
        chosen = port._replace(host_port=held[0].getsockname()[1] if held else random.randint(*_DYNAMIC_PORTS))
        try:
            if chosen.host_port + port.length - 1 > _LAST_PORT:
                raise Conflict(f"the ports behind {chosen.host_port} are not enough for {port.length}")
            held += _bind_range(chosen, start=1)
            _claim(store, sandbox_id, chosen)
        except Conflict:
            _close(held)
            if attempt == _ATTEMPTS - 1:
                raise
        except BaseException:
            _close(held)
            raise
        else:
            return chosen, held
    raise AssertionError("unreachable: the last attempt returns or raises")


def _reserve_choice(store: Store, sandbox_id: str, port: PortSpec) -> tuple[PortSpec, list[socket.socket]]:
    for number in range(port.host_port, port.host_port + port.choices):
        chosen = port._replace(host_port=number, choices=1)
        try:
            with store.database.transaction():  # a claim without its socket must not stay
                return _reserve_one(store, sandbox_id, chosen)
        except Conflict:
            continue
    last = port.host_port + port.choices - 1
    raise Conflict(f"every port of {port.host_port}-{last}/{port.protocol} is taken", "choose another range")


def _claim(store: Store, sandbox_id: str, port: PortSpec) -> None:
    with store.database.transaction():  # all of a range, or none
        for its in port.by_family:
            for offset in range(port.length):
                store.claim_port(sandbox_id, port.protocol, its.host_ip, port.host_port + offset)


def _bind_range(port: PortSpec, start: int = 0) -> list[socket.socket]:
    """``start``: how many ports of the first family are bound already."""
    sockets: list[socket.socket] = []
    try:
        for position, its in enumerate(port.by_family):
            for offset in range(0 if position else start, port.length):
                sockets += _bind(its, port.host_port + offset)
    except BaseException:
        _close(sockets)
        raise
    return sockets


def _bind(port: PortSpec, number: int) -> list[socket.socket]:
    """A socket that holds a port and never receives: packets for it are sent on before they get there. None where the kernel has no such
    sockets.
    """
    is_tcp = port.protocol == "tcp"
    kind, protocol = _KINDS[port.protocol]
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    try:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        if port.protocol == "sctp" and error.errno in _WITHOUT_SOCKETS:
            return []
        raise host_error("open", f"a socket for port {number}/{port.protocol}", error) from error
    try:
        if is_tcp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
        elif port.protocol == "udp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # a stray datagram does not stay
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((port.host_ip, number))
        if is_tcp:
            # With the option on both sides another program could listen on the port: this socket only holds it (inet_csk_bind_conflict).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        sock.close()
        raise _bind_error(port, number, error) from error
    return [sock]


def _bind_error(port: PortSpec, number: int, error: OSError) -> Exception:
    subject = f"port {number}/{port.protocol}"
    if error.errno == errno.EADDRINUSE:
        from netbox.kernel.processes import port_holder  # reads all of /proc: only for the message

        address = None if port.host_ip in (_ANY_ADDRESS, _ANY_ADDRESS6) else port.host_ip
        holder = port_holder(port.protocol, number, address) if number else None
        return Conflict(f"{subject} is in use by {holder or 'another program'}", "choose another port, or stop that program")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(
            f"cannot publish {subject} on {port.host_ip}: this host has no such address", "'ip address' lists those that it has"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NoPermission(f"cannot publish {subject}: permission denied", "run it as root (sudo)")
    return host_error("publish", subject, error)


def _check_file_limit(count: int) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not count or soft == resource.RLIM_INFINITY:
        return
    free = soft - len(os.listdir("/proc/self/fd")) - _SPARE_FILES
    if count > free:
        raise UsageError(
            f"cannot publish {count} ports: each needs an open file, and this process may open {max(free, 0)} more (RLIMIT_NOFILE {soft})",
            f"raise the limit first: ulimit -n {soft - free + count}",
        )


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
