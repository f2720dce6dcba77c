"""nf_tables: commands through libnftables, and a look at everybody's chains through nfnetlink.

libnftables (the library of the ``nft`` command, loaded by ctypes on first use) takes a list of commands as one transaction: the kernel does
all of it or nothing. One context is kept for a moment, because its socket is dear to close: after a deletion the kernel waits for RCU then,
for 10 ms and more. The socket belongs to the network namespace where it was opened, so another namespace gets another context, and a thread
closes the last one when it has not been used for a while. One lock is held around every call.

What is only read, and often, needs no library: chains on hooks, and elements of a set by their keys. The library would read all elements
of all sets for that.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from netbox.errors import FirewallError, NoPermission, Unsupported

LIBRARY = "libnftables.so.1"
PACKAGE_HINT = "install it: apt install libnftables1"
_STATELESS, _HANDLE, _JSON, _TERSE = 1 << 2, 1 << 3, 1 << 4, 1 << 11  # NFT_CTX_OUTPUT_* (<nftables/libnftables.h>)

_NETLINK_NETFILTER = 12
_SUBSYSTEM, _GETCHAIN, _GETTABLE, _GETSETELEM = 10, 4, 1, 13  # NFNL_SUBSYS_NFTABLES, NFT_MSG_* (<linux/netfilter/nf_tables.h>)
_REQUEST, _ACK, _DUMP, _DUMP_INTERRUPTED = 1, 4, 0x300, 0x10  # NLM_F_*
DUMPS_MAX = 4  # where rules change all the time they are taken as they are then
_ELEMENT_KEY, _ELEMENT_USERDATA = 1, 6  # NFTA_SET_ELEM_*
_NESTED = 0x8000
_KEYS_AT_ONCE = 500  # an attribute holds 64 KiB
_KEPT_FOR = 0.2  # seconds
_WAITING_MAX = 64
_ERROR, _DONE = 2, 3  # NLMSG_*
_TABLE_FLAGS, _TABLE_OWNER = 2, 2  # NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6  # NFTA_CHAIN_*
_HOOK_NUMBER, _HOOK_DEVICE, _HOOK_DEVICES = 1, 3, 4  # NFTA_HOOK_HOOKNUM, …_DEV, …_DEVS
_TYPE_MASK = 0x3FFF
_WAIT = 5.0  # seconds
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}  # NFPROTO_*; the others never see routed packets
_LINK_FAMILIES = {3: "arp", 5: "netdev", 7: "bridge"}
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # NF_INET_*

_thread_lock = threading.Lock()
_library: Any = None


class BaseChain(NamedTuple):
    """A chain that hangs on a hook. ``drops`` says that its policy is DROP; ``rules`` counts its rules."""

    family: str
    table: str
    name: str
    hook: str
    drops: bool
    rules: int


class Element(NamedTuple):
    """An element of a set: its key as the kernel has it, and its comment."""

    key: bytes
    comment: str


def run(commands: str) -> None:
    """Runs commands of nft(8), one a line, as one transaction in the calling thread's network namespace.

    Raises:
        FirewallError: the kernel or the library refused; then nothing was done.
        Unsupported: libnftables is missing.
        NoPermission: not root.
    """
    _call(commands, 0)


def listing(terse: bool = False, table: str = "ip netbox") -> list[dict[str, Any]]:
    """A table as libnftables-json(5) shows it, with handles; an empty list when there is none. ``terse`` leaves out the elements of sets.

    Raises what ``run`` raises.
    """
    try:
        text = _call(f"list table {table}", _JSON | _STATELESS | _HANDLE | (_TERSE if terse else 0))
    except FirewallError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    found: list[dict[str, Any]] = json.loads(text)["nftables"]
    return found


def listed(command: str) -> list[dict[str, Any]]:
    """What a ``list`` command of nft(8) says, as ``listing`` shows a table.

    Raises:
        ValueError: the library wrote no JSON, see ``has_owned_table``.
        FirewallError, Unsupported, NoPermission: as ``run``.
    """
    found: list[dict[str, Any]] = json.loads(_call(command, _JSON | _STATELESS | _HANDLE))["nftables"]
    return found


def is_installed() -> bool:
    """Whether the library can be loaded."""
    try:
        load()
    except Unsupported:
        return False
    return True


def load() -> Any:
    """Loads libnftables on first use.

    Raises:
        Unsupported: it is missing.
    """
    global _library
    if _library is None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Unsupported("the library libnftables is missing", PACKAGE_HINT) from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        _library = library
    return _library


def _call(commands: str, flags: int) -> str:
    library = load()
    with _thread_lock:
        context = _kept.context(library)
        library.nft_ctx_output_set_flags(context, flags)
        failed = library.nft_run_cmd_from_buffer(context, commands.encode())
        output: str = library.nft_ctx_get_output_buffer(context).decode(errors="replace")
        errors: str = library.nft_ctx_get_error_buffer(context).decode(errors="replace")
    if failed:
        raise refusal(errors)
    return output


class _Kept:
    """The context and the socket of the namespace that was used last. Used under ``_thread_lock``."""

    def __init__(self) -> None:
        self._context: Any = None
        self._socket: socket.socket | None = None
        self._waiting: list[socket.socket] = []
        self._namespace = (0, 0)
        self._used = 0.0
        self._closer: threading.Thread | None = None

    def context(self, library: Any) -> Any:
        """A context for the calling thread's network namespace."""
        self._use()
        if not self._context:
            self._context = library.nft_ctx_new(0)
            if not self._context:
                raise FirewallError("libnftables cannot be used: no memory, or no netlink socket")
            library.nft_ctx_buffer_output(self._context)
            library.nft_ctx_buffer_error(self._context)
        return self._context

    def channel(self) -> socket.socket:
        """A socket in the calling thread's network namespace. Every answer on it must be read to its end."""
        self._use()
        if self._socket is None:
            self._socket = _socket()
        return self._socket

    def forget_channel(self) -> None:
        """The next question gets another socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close_later(self, sock: socket.socket) -> None:
        """Closes a socket: with the context while there is one, because that is when deletions may be under way."""
        with _thread_lock:
            if self._context and len(self._waiting) < _WAITING_MAX:
                self._waiting.append(sock)
            else:
                sock.close()

    def _use(self) -> None:
        status = os.stat("/proc/thread-self/ns/net")
        namespace = (status.st_dev, status.st_ino)
        if self._namespace != namespace:
            self._free()
            self._namespace = namespace
        self._used = time.monotonic()
        if self._closer is None or not self._closer.is_alive():
            self._closer = threading.Thread(target=self._close_when_idle, name="netbox-nftables", daemon=True)
            self._closer.start()

    def _close_when_idle(self) -> None:
        while True:
            time.sleep(_KEPT_FOR / 2)
            with _thread_lock:
                if time.monotonic() - self._used >= _KEPT_FOR:
                    self._free()
                    self._closer = None
                    return

    def _free(self) -> None:
        if self._context:
            _library.nft_ctx_free(self._context)
            self._context = None
        self.forget_channel()
        for sock in self._waiting:
            sock.close()
        self._waiting.clear()


_kept = _Kept()


_NUMBERS = {os.strerror(number): number for number in (errno.ENOENT, errno.EEXIST, errno.EPERM, errno.EOPNOTSUPP, errno.EBUSY)}


def refusal(errors: str) -> Exception:
    """The error for what the library says: the first line; those below it show the command again."""
    line = next((line for line in errors.splitlines() if "Error:" in line), errors.strip()[:200] or "no reason given")
    reason = line.partition("Error: ")[2] or line
    reason = reason.removeprefix("Could not process rule: ")
    number = next((value for text, value in _NUMBERS.items() if text in reason), 0)
    if number == errno.EPERM:
        return NoPermission("cannot change nf_tables: permission denied", "run it as root (sudo)")
    return FirewallError(f"the firewall refused a change of nf_tables: {reason.rstrip('.')}", None, number)


# -- netlink -------------------------------------------------------------------------------------------------------------------------------


def base_chains() -> list[BaseChain]:
    """Every chain on a hook of IPv4 or IPv6, whoever made it.

    Raises:
        OSError: this kernel has no nf_tables, or refuses to tell.
    """
    found = []
    for family, attributes in _dump(_GETCHAIN):
        if _CHAIN_HOOK not in attributes or family not in _FAMILIES:
            continue
        number = struct.unpack(">I", _attributes(attributes[_CHAIN_HOOK])[_HOOK_NUMBER])[0]
        found.append(
            BaseChain(
                _FAMILIES[family],
                _text(attributes[_CHAIN_TABLE]),
                _text(attributes[_CHAIN_NAME]),
                _HOOKS[number] if number < len(_HOOKS) else str(number),
                attributes.get(_CHAIN_POLICY) == b"\0\0\0\0",  # NF_DROP
                struct.unpack(">I", attributes.get(_CHAIN_USE, bytes(4)))[0],
            )
        )
    return found


def hooked_chains() -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Family (``ip``, ``netdev``, …), table and name of every chain on a hook, with the devices that it is about. Older versions of
    libnftables do not tell of these.

    Raises:
        OSError: this kernel has no nf_tables, or refuses to tell.
    """
    found = {}
    for family, attributes in _dump(_GETCHAIN):
        if _CHAIN_HOOK not in attributes:
            continue
        hook = _attributes(attributes[_CHAIN_HOOK])
        names = [hook[_HOOK_DEVICE]] if _HOOK_DEVICE in hook else [name for _, name in _each_attribute(hook.get(_HOOK_DEVICES, b""))]
        table, chain = (_text(attributes[kind]) for kind in (_CHAIN_TABLE, _CHAIN_NAME))
        found[{**_FAMILIES, **_LINK_FAMILIES}.get(family, ""), table, chain] = tuple(map(_text, names))
    return found


def chain_use(family: str, table: str, name: str) -> int | None:
    """What uses a chain: its rules and the jumps to it. ``None`` when there is no such chain, or no nf_tables. Takes microseconds."""
    number = next(number for number, known in _FAMILIES.items() if known == family)
    body = _attribute(_CHAIN_TABLE, table.encode() + b"\0") + _attribute(_CHAIN_NAME, name.encode() + b"\0")
    try:
        answers = list(_ask(_GETCHAIN, _ACK, body, number))
    except OSError:
        return None
    return int.from_bytes(answers[0][1].get(_CHAIN_USE, b""), "big") if answers else None


def elements(table: str, set_name: str, keys: Sequence[bytes], family: int = socket.AF_INET) -> list[Element] | None:
    """The elements of a set that have these keys; ``None`` when one of them, the set or the table of the family is not there.

    Raises:
        FirewallError: the kernel refuses to tell.
        NoPermission: not root.
    """
    found: list[Element] = []
    place = _attribute(1, table.encode() + b"\0") + _attribute(2, set_name.encode() + b"\0")
    wanted = [_attribute(1 | _NESTED, _attribute(_ELEMENT_KEY | _NESTED, _attribute(1, key))) for key in keys]
    with _thread_lock:
        try:
            for start in range(0, len(wanted), _KEYS_AT_ONCE):
                body = place + _attribute(3 | _NESTED, b"".join(wanted[start : start + _KEYS_AT_ONCE]))
                for _, attributes in _answers(_kept.channel(), _GETSETELEM, _ACK, body, family):
                    found += _elements(attributes)
        except OSError as error:
            _raise_unless_absent(error)
            return None
        except BaseException:  # an interrupt: what is still unread would answer the next question
            _kept.forget_channel()
            raise
    return found


def some_elements(table: str, set_name: str, family: int = socket.AF_INET) -> Iterator[Element]:
    """The elements of a set, in no order, as many as the caller takes. Nothing when there is no such set. Raises as ``elements``."""
    body = _attribute(1, table.encode() + b"\0") + _attribute(2, set_name.encode() + b"\0")
    try:
        for _, attributes in _ask(_GETSETELEM, _DUMP, body, family):
            yield from _elements(attributes)
    except InterruptedError:
        pass  # others may have come and gone meanwhile
    except OSError as error:
        _raise_unless_absent(error)


def _raise_unless_absent(error: OSError) -> None:
    if error.errno == errno.ENOENT:
        return
    if error.errno in (errno.EPERM, errno.EACCES):
        raise NoPermission("cannot read nf_tables: permission denied", "run it as root (sudo)") from error
    raise FirewallError(f"cannot read nf_tables: {error.strerror or error}", None, error.errno or 0) from error


def _elements(attributes: dict[int, bytes]) -> Iterator[Element]:
    for _, value in _each_attribute(attributes.get(3, b"")):  # NFTA_SET_ELEM_LIST_ELEMENTS
        fields = _attributes(value)
        key = _attributes(fields.get(_ELEMENT_KEY, b"")).get(1, b"")  # NFTA_DATA_VALUE
        data = fields.get(_ELEMENT_USERDATA, b"")
        # struct nftnl_udata: type, length, value; type 0 is the comment.
        yield Element(key, _text(data[2 : 2 + data[1]]) if len(data) > 2 and data[0] == 0 else "")


def has_table(name: str, family: str = "ip") -> bool:
    """Whether the table of the family (``ip``, ``ip6``) is there; ``False`` on a kernel without nf_tables."""
    try:
        return any(_FAMILIES.get(number) == family and _text(attributes[1]) == name for number, attributes in _dump(_GETTABLE))
    except OSError:
        return False


def has_owned_table() -> bool:
    """Whether there is a table with ``flags owner`` in any family. libnftables 1.0.6 (Debian 12) reads past the end of a list when it shows
    such a table in JSON: what it writes then is cut off or has a word of chance in it.
    """
    try:
        flags = [attributes.get(_TABLE_FLAGS, b"") for _, attributes in _dump(_GETTABLE)]
    except OSError:
        return False
    return any(int.from_bytes(value, "big") & _TABLE_OWNER for value in flags)


def _dump(message: int) -> list[tuple[int, dict[int, bytes]]]:
    """Everything of a kind; asked for anew when the rules have changed meanwhile, for then something that stands may have been left out."""
    for _ in range(DUMPS_MAX):
        found = []
        try:
            for item in _ask(message, _DUMP, b"", socket.AF_UNSPEC):
                found.append(item)
            break
        except InterruptedError:
            continue
    return found


def _ask(message: int, flags: int, body: bytes, family: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    sock = _socket()
    try:
        yield from _answers(sock, message, flags, body, family)
    finally:
        _kept.close_later(sock)


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    sock.settimeout(_WAIT)
    return sock


def _answers(sock: socket.socket, message: int, flags: int, body: bytes, family: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """The family and the attributes of every object of the answer (struct nfgenmsg, struct nlattr). ``InterruptedError`` at the end says
    that the rules have changed meanwhile (NLM_F_DUMP_INTR, netlink(7)).
    """
    request = struct.pack("=IHHIIBBH", 20 + len(body), _SUBSYSTEM << 8 | message, _REQUEST | flags, 1, 0, family, 0, 0) + body
    sock.send(request)
    interrupted = False
    while True:
        data = sock.recv(1 << 17)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, its_flags = struct.unpack_from("=IHH", data, offset)
            interrupted = interrupted or bool(its_flags & _DUMP_INTERRUPTED)
            if kind == _DONE:
                if interrupted:
                    raise InterruptedError(errno.EINTR, "the rules have changed meanwhile")
                return
            if kind == _ERROR:
                number = -struct.unpack_from("=i", data, offset + 16)[0]
                if number == 0:
                    return  # the acknowledgement
                raise OSError(number, os.strerror(number))
            yield data[offset + 16], _attributes(data[offset + 20 : offset + length])
            offset += (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    return dict(_each_attribute(data))


def _each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
