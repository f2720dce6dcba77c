"""Published host ports: claimed in the database against other sandboxes, and held by a bound socket against other programs."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterable

from netbox.errors import Conflict, NoPermission, UsageError, host_error
from netbox.spec import PortSpec
from netbox.state.store import Store

_ATTEMPTS = 64
_SPARE_FILES = 32
_LAST_PORT = 65535


def reserve(store: Store, sandbox_id: str, ports: Iterable[PortSpec]) -> tuple[tuple[PortSpec, ...], list[socket.socket]]:
    """Takes host ports for a sandbox; a ``host_port`` of 0 becomes one that the kernel chose (the first of a run of free ones for a range).

    Raises:
        Conflict: a sandbox or another program has a port; the message names it.
        UsageError: the host has no such address, or the ports are more than this process may have open files.
    """
    ports = tuple(ports)
    _check_file_limit(sum(port.length for port in ports))
    reserved: list[PortSpec] = []
    sockets: list[socket.socket] = []
    try:
        for port in ports:
            chosen, held = _reserve_one(store, sandbox_id, port)
            reserved.append(chosen)
            sockets += held
    except BaseException:
        _close(sockets)
        raise
    return tuple(reserved), sockets


def check(store: Store, sandbox_id: str, ports: Iterable[PortSpec]) -> None:
    """Whether ``reserve`` would succeed now; nothing stays taken. Raises what it raises."""
    try:
        with store.database.transaction():
            _close(reserve(store, sandbox_id, ports)[1])
            raise _RollBack
    except _RollBack:
        pass


class _RollBack(Exception):
    """Ends a transaction whose changes must not stay."""


def _reserve_one(store: Store, sandbox_id: str, port: PortSpec) -> tuple[PortSpec, list[socket.socket]]:
    if port.host_port:
        _claim(store, sandbox_id, port)  # first, because its message names the sandbox
        return port, _bind_range(port)
    for attempt in range(_ATTEMPTS):
        first = _bind(port, 0)
        chosen = port._replace(host_port=first.getsockname()[1])
        held = [first]
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


def _claim(store: Store, sandbox_id: str, port: PortSpec) -> None:
    with store.database.transaction():  # all of a range, or none
        for offset in range(port.length):
            store.claim_port(sandbox_id, port.protocol, port.host_ip, port.host_port + offset)


def _bind_range(port: PortSpec, start: int = 0) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for offset in range(start, port.length):
            sockets.append(_bind(port, port.host_port + offset))
    except BaseException:
        _close(sockets)
        raise
    return sockets


def _bind(port: PortSpec, number: int) -> socket.socket:
    """A socket that holds a port and never receives: packets for it are sent on before they get there."""
    is_tcp = port.protocol == "tcp"
    kind = (socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM) | socket.SOCK_CLOEXEC
    try:
        sock = socket.socket(socket.AF_INET, kind)
    except OSError as error:
        raise host_error("open", f"a socket for port {number}/{port.protocol}", error) from error
    try:
        if is_tcp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # a stray datagram does not stay
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

        address = None if port.host_ip == "0.0.0.0" else port.host_ip
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
