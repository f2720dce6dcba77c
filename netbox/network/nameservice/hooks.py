"""What the rest of netbox calls to have names served. Everything here may be called by several processes at once.

The sequence of a network's life is ``network_up``, any number of ``zone_changed``, ``network_down``. ``ensure_running`` at the start of
every netbox command puts a killed name service back, with all its networks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from netbox.errors import Conflict, HostError, host_error
from netbox.kernel import flock
from netbox.network import dockerd
from netbox.network.nameservice import files
from netbox.network.nameservice.zone import Member, Served, domain
from netbox.network.resolve import NO_SEARCH, HostFiles, search_and_options
from netbox.runtime import interpreter
from netbox.settings import Settings
from netbox.state.journal import Recorder

JOURNAL_KIND = "nameservice"
PORTS: tuple[int, ...] = (53, *range(61053, 61069))
"""Where names are served: the first one that is free. The others are above what the kernel gives to connections (ip_local_port_range)."""
MAX_NAMESERVERS = 3  # MAXNS, resolv.conf(5)
_TIMEOUT = 20.0  # seconds, for the process to start, to answer or to end, and for the lock
_POLL_INTERVAL = 0.002
_IP_FREEBIND = 15  # <linux/in.h>


class Members(Protocol):
    """Who is on a network now: what the state database knows."""

    def network_members(self, network: str) -> Sequence[Member]:
        """The running sandboxes on the network."""


class MemberRow(Protocol):
    """A row of the state database: a sandbox that uses a network now."""

    @property
    def sandbox_id(self) -> str:
        """The sandbox's id."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """What ``--network-alias`` calls it on this network."""

    @property
    def address(self) -> str:
        """Its IPv4 address on this network."""

    @property
    def address6(self) -> str:
        """Its IPv6 address on this network; empty without IPv6."""


class StoredMembers:
    """Members out of rows of the state database. ``resolvers`` tells what ``--dns`` gave a sandbox."""

    def __init__(
        self,
        rows: Callable[[str], Iterable[MemberRow]],
        resolvers: Callable[[str], Sequence[str]] = lambda _sandbox_id: (),
    ) -> None:
        self._rows, self._resolvers = rows, resolvers

    def network_members(self, network: str) -> Sequence[Member]:
        """See ``Members``."""
        found = []
        for row in self._rows(network):
            addresses = tuple(filter(None, (row.address, row.address6)))
            found.append(Member(row.sandbox_id, row.name, tuple(row.aliases), addresses, tuple(self._resolvers(row.sandbox_id))))
        return found


class Status(NamedTuple):
    """The networks on file, and the processes that serve them as (``server`` or ``standby``, pid)."""

    networks: tuple[str, ...]
    processes: tuple[tuple[str, int], ...]


def network_up(settings: Settings, served: Served, members: Members, recorder: Recorder) -> int:
    """Serves a network whose bridge stands, with its gateway addresses. Serving it already is fine. Returns the port: 53, or another one
    where a program of the host has port 53 of all addresses; the firewall has to lead questions there then.

    ``recorder`` is the network's journal; its row is undone by ``network_down``. Call it when the bridge has its row, so that it is undone
    before that.

    Raises:
        Conflict: other programs have all ports that could be used.
        HostError: the process cannot be started, or the kernel refuses.
    """
    recorder.record(JOURNAL_KIND, network=served.name)
    with _changing(settings):
        for port in PORTS:
            _write(settings, served._replace(port=port), members)
            errors = _synchronize(settings)
            if served.name not in errors:
                return port
            number, reason = errors[served.name]
            if number != errno.EADDRINUSE:
                break
        _delete(settings, served.name)
        _synchronize(settings)
        raise _refusal(served, number, str(reason))


def free_port(served: Served) -> int:
    """The port that ``network_up`` would take now for a network whose bridge may not stand yet. Has no effect.

    Raises:
        Conflict: other programs have all ports that could be used.
        HostError: the kernel refuses.
    """
    for port in PORTS:
        try:
            for gateway in served.gateways:
                _look_at(gateway, port)
            return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise host_error("look at", f"port {port} of {', '.join(served.gateways)}", error) from error
    raise _refusal(served, errno.EADDRINUSE, "")


def _look_at(gateway: str, port: int) -> None:
    """Raises OSError when a program has a port of all addresses, or of this one."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((gateway, port))


def zone_changed(settings: Settings, network: str, members: Members) -> None:
    """Publishes who is on a network, after it has changed in the database. In effect when it returns; whether the process runs or not does
    not matter. Nothing happens for a network that is not served.

    Raises:
        HostError: the file cannot be read or written.
    """
    if network not in files.networks(settings.run):
        return
    with _changing(settings):
        try:
            known = files.read(settings.run, network)
        except (OSError, ValueError) as error:
            raise HostError(f"cannot read the names of network {network}: {error}", "stop the sandboxes on it and start again") from error
        if known is not None:
            _write(settings, known.served, members)


def network_down(settings: Settings, network: str) -> None:
    """Serves a network no longer: when it returns, no socket of it is open. The process ends with its last network. Idempotent.

    Raises:
        HostError: a file cannot be removed, or the process does not answer.
    """
    if not _stands(settings):
        return
    with _changing(settings):
        _delete(settings, network)
        _synchronize(settings)


def ensure_running(settings: Settings) -> bool:
    """Starts the process if it should run and does not; returns whether it did. Without any network it looks at one directory.

    Raises:
        HostError: it cannot be started.
    """
    if not files.networks(settings.run) or is_running(settings):
        return False
    with _changing(settings):
        if not files.networks(settings.run) or is_running(settings):
            return False
        _synchronize(settings)
    return True


def stop_if_idle(settings: Settings) -> bool:
    """Ends what a killed command left of the process and its files when no network is served; returns whether there was something.

    Raises:
        HostError: it does not end.
    """
    if not _stands(settings) or files.networks(settings.run):
        return False
    with _changing(settings):
        if files.networks(settings.run):
            return False
        _synchronize(settings)
    return True


def is_running(settings: Settings) -> bool:
    """Whether somebody holds the lock: the server or its standby."""
    try:
        fd = os.open(f"{files.directory(settings.run)}/{files.ALIVE_FILE}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two onlookers do not see each other
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def status(settings: Settings) -> Status:
    """Who serves what now. Changes nothing."""
    report = _tell(settings, files.STATUS) if _stands(settings) and is_running(settings) else None
    if report is None:
        return Status(tuple(files.networks(settings.run)), ())
    pids = (("server", report["pid"]), ("standby", report.get("standby")))
    return Status(tuple(files.networks(settings.run)), tuple((role, pid) for role, pid in pids if pid))


def resolv_conf(host: HostFiles, gateways: Sequence[str], networks: Sequence[str], search: Sequence[str], options: Sequence[str]) -> str:
    """A resolv.conf for a sandbox on user-defined networks, the one with the default route first. Pure.

    The name service is the only resolver; what ``--dns`` names is asked by it (``Member.dns``). The search list is the networks' own
    domains, then ``search`` or the host's; ``.`` means none at all. ``options`` take the place of the host's.
    """
    others, kept = search_and_options(host.resolv_conf, search, options)
    domains = [] if NO_SEARCH in search else list(dict.fromkeys([domain(network) for network in networks] + others))
    text = "".join(f"nameserver {gateway}\n" for gateway in gateways[:MAX_NAMESERVERS])
    text += f"search {' '.join(domains)}\n" if domains else ""
    return text + (f"options {' '.join(kept)}\n" if kept else "")


# -- files and locks -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def _changing(settings: Settings) -> Iterator[None]:
    """The lock under which files change and the process is started and told."""
    path = f"{settings.run}/{files.LOCK_FILE}"
    try:
        os.makedirs(settings.run, mode=0o711, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise host_error("make", path, error) from error
    try:
        if not flock.acquire(fd, 2 * _TIMEOUT):
            raise HostError(f"cannot get the lock {path} within {2 * _TIMEOUT:g} s", f"find its holder with: fuser {path}")
        yield
    finally:
        os.close(fd)


def _stands(settings: Settings) -> bool:
    return os.path.exists(files.directory(settings.run))


def _write(settings: Settings, served: Served, members: Members) -> None:
    try:
        files.make(settings.run)
        files.write(settings.run, served, members.network_members(served.name))
    except OSError as error:
        raise host_error("write", f"the names of network {served.name}", error) from error


def _delete(settings: Settings, network: str) -> None:
    try:
        files.delete(settings.run, network)
    except OSError as error:
        raise host_error("remove", f"the names of network {network}", error) from error


def _wait(deadline: float, what: str, hint: str | None = None) -> None:
    if time.monotonic() > deadline:
        raise HostError(f"cannot {what}: it takes too long", hint)
    time.sleep(_POLL_INTERVAL)


# -- the process ---------------------------------------------------------------------------------------------------------------------------


def _synchronize(settings: Settings) -> dict[str, list[Any]]:
    """Has the process serve what is on file, starting it where it should run, and removes what is left after its end. Call it under the
    lock. Returns what the kernel refused: network -> (errno, reason)."""
    deadline = time.monotonic() + _TIMEOUT
    errors: dict[str, list[Any]] = {}
    while True:
        if is_running(settings):
            report = _tell(settings)
        elif files.networks(settings.run):
            report = _start(settings)
        else:
            break
        if report is not None:
            errors = report["errors"]
            if files.networks(settings.run):
                return errors
        _wait(deadline, "reach the name service", "end it: fuser -k " + f"{files.directory(settings.run)}/{files.ALIVE_FILE}")
    try:
        files.remove(settings.run)
    except OSError as error:
        raise host_error("remove", files.directory(settings.run), error) from error
    return errors


def _tell(settings: Settings, request: bytes = files.SYNCHRONIZE) -> dict[str, Any] | None:
    """Has the running process compare its sockets with the files, or just say who it is. ``None``: it was just taken over by the standby,
    or is ending."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.settimeout(_TIMEOUT)
        try:
            directory = os.open(files.directory(settings.run), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                control.connect(f"/proc/self/fd/{directory}/{files.CONTROL_SOCKET}")
            finally:
                os.close(directory)
            control.send(request)
            return _report(control)
        except OSError:
            return None


def _start(settings: Settings) -> dict[str, Any] | None:
    """Starts the process; ``None`` when it died before its first report."""
    path = f"{files.directory(settings.run)}/{files.ALIVE_FILE}"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise host_error("make", path, error) from error
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with theirs:
            interpreter.spawn("server", theirs.fileno(), "netbox.network.nameservice")
        ours.settimeout(_TIMEOUT)
        order = {"run": settings.run, "command": dockerd.command(), "environment": dockerd.environment()}
        socket.send_fds(ours, [json.dumps(order).encode()], [lock])
        return _report(ours)
    except OSError:
        return None
    finally:
        ours.close()
        os.close(lock)


def _report(sock: socket.socket) -> dict[str, Any] | None:
    data = sock.recv(1 << 20)
    if not data:
        return None
    report: dict[str, Any] = json.loads(data)
    return report


def _refusal(served: Served, number: int, reason: str) -> HostError | Conflict:
    where = " and ".join(f"{gateway}:53" for gateway in served.gateways)
    if number == errno.EADDRINUSE:
        return Conflict(
            f"cannot serve names on {where}: other programs have this port, and {PORTS[1]} to {PORTS[-1]} as well",
            "have them listen on addresses of their own; find them with: ss -lnp 'sport = 53'",
        )
    return HostError(f"cannot serve names of network {served.name} on {where}: {reason}", errno=number)
