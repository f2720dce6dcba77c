"""Published host ports: claimed in the database against other sandboxes, and held by a bound socket against other programs."""

from __future__ import annotations

import errno
import os
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
ANY_ADDRESS, ANY_ADDRESS6, LOOPBACK6 = "0.0.0.0", "::", "::1"


def reserve(
    store: Store, sandbox_id: str, ports: Iterable[PortSpec], ipv6: bool = False
) -> tuple[tuple[PortSpec, ...], list[socket.socket]]:
    """Takes host ports for a sandbox; a ``host_port`` of 0 becomes one that the kernel chose (the first of a run of free ones for a range).
    With ``ipv6`` the sandbox has an IPv6 address: a port on every address becomes two, of the same number.

    Raises:
        Conflict: a sandbox or another program has a port; the message names it.
        UsageError: the host has no such address, the sandbox has no IPv6 address, or the ports are more than this process may have open
            files.
    """
    wanted = expanded(ports, ipv6)
    _check_file_limit(sum(port.length for twins in wanted for port in twins))
    reserved: list[PortSpec] = []
    sockets: list[socket.socket] = []
    try:
        for twins in wanted:
            chosen, held = _reserve_one(store, sandbox_id, twins)
            reserved += chosen
            sockets += held
    except BaseException:
        _close(sockets)
        raise
    return tuple(reserved), sockets


def expanded(ports: Iterable[PortSpec], ipv6: bool) -> list[tuple[PortSpec, ...]]:
    """Each port for every family that the sandbox has: one for all addresses is joined by its twin for IPv6, unless another one of the
    request has that port there.

    Raises:
        UsageError: a port is asked for on an IPv6 address, and the sandbox has none itself; or on [::1], and the host cannot do it.
    """
    asked = tuple(ports)
    found: list[tuple[PortSpec, ...]] = []
    for port in asked:
        if ":" in port.host_ip and not ipv6:
            raise UsageError(
                f"cannot publish on [{port.host_ip}]: the sandbox has no IPv6 address",
                "put it on a network that has (netbox network create --ipv6), not an internal one",
            )
        if port.host_ip == LOOPBACK6 and not answers_from_loopback():
            raise UsageError(
                "cannot publish on [::1]: bridged packets pass ip6tables here, and answers to ::1 are lost then",
                "publish on 127.0.0.1, or: sysctl -w net.bridge.bridge-nf-call-ip6tables=0",
            )
        twin = port._replace(host_ip=ANY_ADDRESS6)
        alone = not ipv6 or port.host_ip != ANY_ADDRESS or any(_overlap(twin, other) for other in asked if ":" in other.host_ip)
        found.append((port,) if alone else (port, twin))
    return found


def _overlap(one: PortSpec, other: PortSpec) -> bool:
    if one.protocol != other.protocol or not one.host_port or not other.host_port:
        return False
    return one.host_port < other.host_port + other.length and other.host_port < one.host_port + one.length


def check(store: Store, sandbox_id: str, ports: Iterable[PortSpec], ipv6: bool = False) -> None:
    """Whether ``reserve`` would succeed now; nothing stays taken. Raises what it raises."""
    try:
        with store.database.transaction():
            _close(reserve(store, sandbox_id, ports, ipv6)[1])
            raise _RollBack
    except _RollBack:
        pass


class _RollBack(Exception):
    """Ends a transaction whose changes must not stay."""


def _reserve_one(store: Store, sandbox_id: str, twins: tuple[PortSpec, ...]) -> tuple[tuple[PortSpec, ...], list[socket.socket]]:
    port = twins[0]
    if port.host_port:
        _claim(store, sandbox_id, twins)  # first, because its message names the sandbox
        return twins, _bind_ranges(twins)
    for attempt in range(_ATTEMPTS):
        first = _bind(port, 0)
        chosen = tuple(twin._replace(host_port=first.getsockname()[1]) for twin in twins)
        held = [first]
        try:
            if chosen[0].host_port + port.length - 1 > _LAST_PORT:
                raise Conflict(f"the ports behind {chosen[0].host_port} are not enough for {port.length}")
            held += _bind_ranges(chosen, start=1)
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


def _claim(store: Store, sandbox_id: str, twins: tuple[PortSpec, ...]) -> None:
    with store.database.transaction():  # all of a range, or none
        for port in twins:
            for offset in range(port.length):
                store.claim_port(sandbox_id, port.protocol, port.host_ip, port.host_port + offset)


def _bind_ranges(twins: tuple[PortSpec, ...], start: int = 0) -> list[socket.socket]:
    """``start``: how many of the first one's ports are bound already."""
    sockets: list[socket.socket] = []
    try:
        for position, port in enumerate(twins):
            for offset in range(0 if position else start, port.length):
                sockets.append(_bind(port, port.host_port + offset))
    except BaseException:
        _close(sockets)
        raise
    return sockets


def _bind(port: PortSpec, number: int) -> socket.socket:
    """A socket that holds a port and never receives: packets for it are sent on before they get there."""
    is_tcp = port.protocol == "tcp"
    kind = (socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM) | socket.SOCK_CLOEXEC
    is_ipv6 = ":" in port.host_ip
    try:
        sock = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, kind)
    except OSError as error:
        raise host_error("open", f"a socket for port {number}/{port.protocol}", error) from error
    try:
        if is_tcp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # a stray datagram does not stay
        if is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((port.host_ip, number))
        if is_tcp:
            # With the option on both sides another program could listen on the port: this socket only holds it (inet_csk_bind_conflict).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        sock.close()
        raise _bind_error(port, number, error) from error
    return sock


def _bind_error(port: PortSpec, number: int, error: OSError) -> Exception:
    subject = f"port {number}/{port.protocol}"
    if error.errno == errno.EADDRINUSE:
        from netbox.kernel.processes import port_holder  # reads all of /proc: only for the message

        address = None if port.host_ip in (ANY_ADDRESS, ANY_ADDRESS6) else port.host_ip
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
