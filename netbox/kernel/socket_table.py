"""The sockets of a network namespace as /proc/net/{tcp,tcp6,udp,udp6} (proc(5)) and /proc/net/sctp/eps (net/sctp/proc.c) show them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable
from typing import NamedTuple

from netbox.errors import UsageError

_LISTEN = 0x0A  # TCP_LISTEN, include/net/tcp_states.h
_MAPPED = "::ffff:"


class SocketRow(NamedTuple):
    """One socket: where it is bound, its state as <net/tcp_states.h> counts, and the inode that /proc/PID/fd names."""

    address: str
    port: int
    state: int
    inode: int


def parse(text: str) -> list[SocketRow]:
    """The rows of one of the files, without its heading. Pure. A line that is not understood is passed over."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 10 or not fields[0].endswith(":") or not fields[0][:-1].isdecimal():
            continue
        try:
            host, port = fields[1].split(":")
            found.append(SocketRow(_address(host), int(port, 16), int(fields[3], 16), int(fields[9])))
        except ValueError:
            continue
    return found


def parse_sctp(text: str) -> list[SocketRow]:
    """The rows of /proc/net/sctp/eps, one for each local address of an endpoint. Pure. What is not understood is passed over."""
    found = []
    for line in text.splitlines():
        _, _, _, state, _, port, _, inode, *addresses = [*line.split(), *[""] * 8]
        if port.isdecimal() and inode.isdecimal() and state.isdecimal():
            found += [SocketRow(address, int(port), int(state), int(inode)) for address in addresses if address]
    return found


def _address(text: str) -> str:
    """The kernel prints each 32-bit word of the address as a number of its own byte order."""
    words = (bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8))
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    if len(packed) not in (4, 16):
        raise ValueError(f"not an address: {text!r}")
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def conflicts(bound: str, wanted: str) -> bool:
    """Whether a socket on ``bound`` stands in the way of binding ``wanted``, taking ``::`` as both families. Pure."""
    bound, wanted = bound.removeprefix(_MAPPED), wanted.removeprefix(_MAPPED)
    if bound == wanted or "::" in (bound, wanted):
        return True
    return (":" in bound) == (":" in wanted) and "0.0.0.0" in (bound, wanted)


def busy(protocol: str, port: int, address: str | None = None) -> list[SocketRow]:
    """Sockets of the calling thread's namespace that keep a port busy: listening ones for ``tcp``, all for ``udp`` and ``sctp``.

    With ``address`` only those in the way of it. Raises UsageError for another protocol.
    """
    return holders(read(protocol), protocol, port, address)


def read(protocol: str) -> list[SocketRow]:
    """All sockets of a protocol in the calling thread's namespace. The kernel looks through the tables of all namespaces for them, which
    takes milliseconds. Raises UsageError for another protocol than ``tcp``, ``udp`` and ``sctp``.
    """
    if protocol not in ("tcp", "udp", "sctp"):
        raise UsageError(f"cannot look for the holder of a port of protocol {protocol!r}", "tcp, udp and sctp are known")
    found = []
    for name in ("sctp/eps",) if protocol == "sctp" else (protocol, f"{protocol}6"):
        try:
            with open(f"/proc/thread-self/net/{name}", encoding="utf-8") as file:
                found += parse_sctp(file.read()) if protocol == "sctp" else parse(file.read())
        except FileNotFoundError:  # tcp6 without IPv6
            continue
    return found


def holders(rows: Iterable[SocketRow], protocol: str, port: int, address: str | None = None) -> list[SocketRow]:
    """Those of ``rows`` that ``busy`` means. Pure."""
    return [
        row
        for row in rows
        if row.port == port and (protocol != "tcp" or row.state == _LISTEN) and (address is None or conflicts(row.address, address))
    ]
