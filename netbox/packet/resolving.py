"""What a name stands for in a sandbox: its own hosts file, then the servers of its own resolv.conf, asked from inside its network.

As the C library does it (resolver(5), hosts(5)), as far as an address is concerned; but all servers are asked at once, so that an answer
takes no longer than the quickest of them. RFC 1035.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import select
import socket
import stat
import struct
import time
from typing import NamedTuple

from netbox.errors import NotFound
from netbox.kernel import namespaces, syscalls

FOUND, UNKNOWN, SILENT, REFUSED, NO_SERVER = "found", "unknown", "silent", "refused", "no server"
_A, _AAAA, _IN = 1, 28, 1
_TC = 0x02  # in the third byte of a message
_SERVFAIL, _NXDOMAIN = 2, 3
_CODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
_PORT = 53
_ALIVE = "says SERVFAIL"  # the server is there; those that it asks are not
_LARGEST_FILE = 1 << 20
_TIMEOUT = 2.0  # seconds


class Resolution(NamedTuple):
    """How a name was looked up. ``outcome`` is one of the constants above: found, unknown (the server says that there is no such name),
    silent (no server answered), refused, or no server; ``asked`` are the servers, ``said`` what the last one said. ``addresses`` of the
    wanted IP version come first.
    """

    name: str
    outcome: str
    addresses: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    said: str = ""


class _Config(NamedTuple):
    servers: tuple[str, ...]
    search: tuple[str, ...]
    ndots: int


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def resolve_here(name: str, ipv6: bool = False) -> str:
    """The address of a name as this machine resolves it. Raises NotFound."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET6 if ipv6 else 0, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        message = f"cannot find {name}: neither a sandbox nor a name that this machine resolves"
        raise NotFound(message, "'netbox ps' lists sandboxes") from error
    addresses = [str(item[4][0]) for item in found]
    return next((address for address in addresses if ":" not in address), addresses[0])


def resolve_in(pid: int, netns_fd: int, title: str, name: str, ipv6: bool = False) -> str:
    """The address of a name as a sandbox resolves it; ``pid`` is one of its processes. Raises NotFound."""
    found = resolve(name, read_inside(pid, "etc/hosts"), read_inside(pid, "etc/resolv.conf"), netns_fd, _TIMEOUT, ipv6)
    addresses = [item for item in found.addresses if ":" in item] if ipv6 else found.addresses
    if not addresses:
        why = found.said if found.outcome != FOUND else "it has no IPv6 address"
        raise NotFound(f"cannot find {name}: no sandbox, and {title} cannot resolve it: {why}", "'netbox ps' lists sandboxes")
    return addresses[0]


def nameserver_of(pid: int) -> str | None:
    """The first name server of a sandbox."""
    return next(iter(parse_config(read_inside(pid, "etc/resolv.conf")).servers), None)


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


def resolve(name: str, hosts: str, resolv_conf: str, netns_fd: int, timeout: float, ipv6: bool = False) -> Resolution:
    """Looks a name up with the texts of a hosts(5) and a resolv.conf(5), from a namespace (-1: this one). ``ipv6`` wants an IPv6 address,
    else one of IPv4; what is there of the other version is found too.

    ``timeout`` is in seconds, for each form of the name; a resolver library waits 5.
    """
    own = [address for version in (ipv6, not ipv6) if (address := from_hosts(hosts, name.rstrip("."), version))]
    if own:
        return Resolution(name, FOUND, tuple(own), (), "/etc/hosts")
    config = parse_config(resolv_conf)
    if not config.servers:
        return Resolution(name, NO_SERVER, (), (), "/etc/resolv.conf names no server")
    own_result = Resolution(name, SILENT, (), config.servers)
    for candidate in candidates(name, config.search, config.ndots):
        result = _ask(name, candidate, config.servers, netns_fd, timeout, _AAAA if ipv6 else _A)
        if result.outcome == FOUND or (result.outcome == SILENT and _ALIVE not in result.said):
            return result
        if candidate == name.rstrip("."):
            own_result = result  # what counts in the end: not what was made up with a search domain
    return own_result


def from_hosts(text: str, name: str, ipv6: bool) -> str | None:
    """The address that a hosts file has for a name. Pure."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if name.lower() in (word.lower() for word in words[1:]) and (":" in words[0]) == ipv6:
            return words[0]
    return None


def candidates(name: str, search: tuple[str, ...], ndots: int) -> list[str]:
    """The names to ask for, in order."""
    if name.endswith("."):
        return [name.rstrip(".")]
    with_search = [f"{name}.{domain.strip('.')}" for domain in search if domain.strip(".")]
    return [name, *with_search] if name.count(".") >= ndots else [*with_search, name]


def parse_config(text: str) -> _Config:
    """What resolv.conf says; three servers at most, as the C library takes."""
    servers: list[str] = []
    search: list[str] = []
    ndots = 1
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0].startswith(("#", ";")):
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = words[1:]
        elif words[0] == "options":
            ndots = next((int(word[6:]) for word in words[1:] if word.startswith("ndots:") and word[6:].isdigit()), ndots)
    return _Config(tuple(servers[:3]), tuple(search), ndots)


def query(name: str, identity: int, kind: int = _A) -> bytes:
    """A question, with recursion desired (RFC 1035, 4.1)."""
    labels = b"".join(bytes([len(part)]) + part for part in (label.encode("idna") for label in name.split(".")))
    return struct.pack("!6H", identity, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, _IN)


def parse_answer(data: bytes, identity: int) -> tuple[int, tuple[str, ...]] | None:
    """The response code and the addresses of an answer to ``query``; ``None`` for something else."""
    try:
        own, flags, questions, answers, _, _ = struct.unpack_from("!6H", data)
        if own != identity or not flags & 0x8000:
            return None
        offset = 12
        for _ in range(questions):
            offset = _skip(data, offset) + 4
        found: list[str] = []
        for _ in range(answers):
            offset = _skip(data, offset)
            kind, _, _, length = struct.unpack_from("!HHIH", data, offset)
            value = data[offset + 10 : offset + 10 + length]
            if kind in (_A, _AAAA) and len(value) in (4, 16):
                found.append(socket.inet_ntop(socket.AF_INET if kind == _A else socket.AF_INET6, value))
            offset += 10 + length
    except (struct.error, IndexError):
        return None
    return flags & 0xF, tuple(found)


def _skip(data: bytes, offset: int) -> int:
    while data[offset]:
        if data[offset] & 0xC0:
            return offset + 2
        offset += data[offset] + 1
    return offset + 1


def _ask(name: str, candidate: str, servers: tuple[str, ...], netns_fd: int, timeout: float, wanted: int) -> Resolution:
    """Both address records of one name, of every server; done when the wanted one is there."""
    identity = random.randrange(1 << 15)
    try:
        questions = {identity: query(candidate, identity, _A), identity + 1: query(candidate, identity + 1, _AAAA)}
    except (UnicodeError, ValueError):
        return Resolution(name, UNKNOWN, (), servers, f"{candidate} cannot be a name")
    deadline = time.monotonic() + timeout
    waiting = {_socket(server, netns_fd): server for server in servers}
    opened = list(waiting)
    said, known = "", dict[int, tuple[str, ...]]()  # the addresses by question
    first = identity if wanted == _A else identity + 1
    try:
        for sock, server in list(waiting.items()):
            try:
                sock.connect((server, _PORT))
                for message in questions.values():
                    sock.send(message)
            except OSError as error:
                said = _failure(server, error)
                del waiting[sock]
        while waiting:
            left = deadline - time.monotonic()  # asked before the last look, so that what has come by then counts
            ready = select.select(list(waiting), [], [], max(0.0, left))[0]
            if not ready and left <= 0:
                break
            for sock in ready:
                server = waiting[sock]
                data, failure = _received(sock, server, netns_fd, questions, deadline)
                if failure:
                    said = failure
                    del waiting[sock]
                    continue
                code, addresses, number = next(((*found, key) for key in questions if (found := parse_answer(data, key))), (-1, (), -1))
                if code == 0:
                    known[number] = known.get(number) or addresses
                both = (*known.get(first, ()), *(address for key, some in known.items() if key != first for address in some))
                if known.get(first) or (both and len(known) == len(questions)):
                    return Resolution(name, FOUND, both, servers, f"{server} answered")
                if code == _NXDOMAIN or len(known) == len(questions):
                    return Resolution(name, UNKNOWN, (), servers, f"{server} says {_CODES.get(code, 'that it has no address')}")
                if code == _SERVFAIL:
                    said = f"{server} {_ALIVE}: the servers behind it do not answer"
                    del waiting[sock]
                elif code > 0:
                    return Resolution(name, REFUSED, (), servers, f"{server} says {_CODES.get(code, str(code))}")
        late = tuple(address for some in known.values() for address in some)
        return Resolution(name, FOUND if late else SILENT, late, servers, said or f"no answer within {timeout:g} s")
    finally:
        for sock in opened:
            sock.close()


def _received(sock: socket.socket, server: str, netns_fd: int, questions: dict[int, bytes], deadline: float) -> tuple[bytes, str]:
    """A datagram, in the place of one that is cut off (TC) what the server says by TCP; or why there is none, in words."""
    try:
        data = sock.recv(4096)
    except OSError as error:
        return b"", _failure(server, error)
    message = questions.get(int.from_bytes(data[:2], "big"))
    if message is None or len(data) < 3 or not data[2] & _TC:
        return data, ""
    try:
        return _by_tcp(server, netns_fd, message, deadline), ""
    except OSError as error:
        return b"", f"{server} has more to say than fits into a datagram, and by TCP: {error.strerror or error}"


def _by_tcp(server: str, netns_fd: int, message: bytes, deadline: float) -> bytes:
    """What the server says by TCP, as resolvers ask when an answer by UDP was cut off (RFC 7766, 5). Raises OSError."""
    with _socket(server, netns_fd, socket.SOCK_STREAM) as sock:

        def left() -> float:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError("no answer")
            return seconds

        sock.settimeout(left())
        sock.connect((server, _PORT))
        sock.sendall(len(message).to_bytes(2, "big") + message)
        data = b""
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
            sock.settimeout(left())
            piece = sock.recv(1 << 16)
            if not piece:
                raise ConnectionError("the connection ended without an answer")
            data += piece
    return data[2:]


def _socket(server: str, netns_fd: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    if netns_fd < 0:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC)
    return namespaces.socket_in(netns_fd, family, kind)


def _failure(server: str, error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return f"nothing listens on {server} port {_PORT} (ICMP port unreachable)"
    return f"{server}: {os.strerror(error.errno or 0)}"
