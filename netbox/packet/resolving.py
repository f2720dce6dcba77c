"""Names as a sandbox would resolve them: its own hosts file first, then the servers of its own resolv.conf, asked from inside its network.

As the C library does it (resolver(5), hosts(5)), as far as an address is concerned; RFC 1035.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import struct

from netbox.errors import NotFound
from netbox.kernel import syscalls
from netbox.kernel.namespaces import inside_netns
from netbox.network.nameservice import message

_HEADER = struct.Struct("!6H")
_LARGEST_FILE = 1 << 20
_TIMEOUT = 2.0  # seconds for each server
_DNS = 53


def resolve_here(name: str, ipv6: bool = False) -> str:
    """The address of a name as this machine resolves it. Raises NotFound."""
    family = socket.AF_INET6 if ipv6 else 0
    try:
        found = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        message_ = f"cannot find {name}: neither a sandbox nor a name that this machine resolves"
        raise NotFound(message_, "'netbox ps' lists sandboxes") from error
    addresses = [str(item[4][0]) for item in found]
    return next((address for address in addresses if ":" not in address), addresses[0])


def resolve_in(pid: int, netns_fd: int, title: str, name: str, ipv6: bool = False) -> str:
    """The address of a name as a sandbox resolves it; ``pid`` is one of its processes. Raises NotFound."""
    kinds = (message.AAAA,) if ipv6 else (message.A, message.AAAA)
    for kind in kinds:
        found = from_hosts(read_inside(pid, "etc/hosts"), name, kind == message.AAAA)
        if found:
            return found
    servers, search = settings(read_inside(pid, "etc/resolv.conf"))
    names = [name] if "." in name else [*(f"{name}.{domain}" for domain in search), name]
    failures = []
    with inside_netns(netns_fd):
        for candidate in names:
            for kind in kinds:
                address, failure = _ask_servers(servers, candidate, kind)
                if address:
                    return address
                failures += [failure] if failure else []
    why = failures[-1] if failures else "it has no name server" if not servers else "there is no such name"
    raise NotFound(f"cannot find {name}: no sandbox, and {title} cannot resolve it: {why}", "'netbox ps' lists sandboxes")


def nameserver_of(pid: int) -> str | None:
    """The first name server of a sandbox."""
    servers, _ = settings(read_inside(pid, "etc/resolv.conf"))
    return servers[0] if servers else None


def read_inside(pid: int, path: str) -> str:
    """A text file below a process's root; empty when there is none. Links are followed inside that root only."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fd = syscalls.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve=syscalls.RESOLVE_IN_ROOT)
    except OSError:
        return ""
    finally:
        os.close(root)
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read(_LARGEST_FILE) if stat.S_ISREG(os.fstat(fd).st_mode) else ""


def from_hosts(text: str, name: str, ipv6: bool) -> str | None:
    """The address that a hosts file has for a name. Pure."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if name.lower() in (word.lower() for word in words[1:]) and (":" in words[0]) == ipv6:
            return words[0]
    return None


def settings(text: str) -> tuple[list[str], list[str]]:
    """The name servers and the search list of a resolv.conf. Pure."""
    servers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            servers.append(words[1])
        elif words[:1] in (["search"], ["domain"]):
            search = [word for word in words[1:] if word != "."]
    return servers, search


def _ask_servers(servers: list[str], name: str, kind: int) -> tuple[str | None, str | None]:
    """An address, or why there is none. The first server that answers decides."""
    failure = None
    for server in servers:
        try:
            answer = _ask(server, name, kind)
        except OSError as error:
            failure = f"its name server {server} does not answer ({error})"
            continue
        if message.code_of(answer) in (message.NOERROR, message.NXDOMAIN):
            return first_address(answer, kind), None
        failure = f"its name server {server} failed (response code {message.code_of(answer)})"
    return None, failure


def _ask(server: str, name: str, kind: int) -> bytes:
    wire = message.encode_name(name)
    if wire is None:
        raise OSError(f"{name!r} is no name")
    id = int.from_bytes(os.urandom(2), "big")
    query = _HEADER.pack(id, message.RD, 1, 0, 0, 0) + wire + struct.pack("!HH", kind, message.CLASS_IN)
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_TIMEOUT)
        sock.connect((server, _DNS))
        sock.send(query)
        while True:
            answer = sock.recv(65535)
            if len(answer) >= _HEADER.size and answer[:2] == query[:2] and answer[2] & 0x80:
                return answer


def first_address(answer: bytes, kind: int) -> str | None:
    """The first address of this type in a DNS answer. Pure; damage means none."""
    try:
        _, _, questions, count, _, _ = _HEADER.unpack_from(answer)
        offset = _HEADER.size
        for _ in range(questions):
            offset = _after_name(answer, offset) + 4
        for _ in range(count):
            offset = _after_name(answer, offset)
            found, _, _, length = struct.unpack_from("!HHIH", answer, offset)
            offset += 10
            if found == kind and length in (4, 16):
                return str(ipaddress.ip_address(answer[offset : offset + length]))
            offset += length
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _after_name(data: bytes, offset: int) -> int:
    while True:
        length = data[offset]
        if length >= 0xC0:
            return offset + 2
        offset += length + 1
        if not length:
            return offset
