"""nf_tables: commands through libnftables, and a look at everybody's chains through nfnetlink.

libnftables (the library of the ``nft`` command, loaded by ctypes on first use) takes a list of commands as one transaction: the kernel does
all of it or nothing. Each call makes a context of its own, which costs 0.02 ms: its socket belongs to the calling thread's network
namespace, and none stays open. The library keeps tables of names in static memory, so one lock of this module is held around every call.

``base_chains`` needs no library: it tells whose chains hang on hooks, from one dump.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import threading
from typing import Any, NamedTuple

from netbox.errors import FirewallError, NoPermission, Unsupported

LIBRARY = "libnftables.so.1"
PACKAGE_HINT = "install it: apt install libnftables1"
_STATELESS, _HANDLE, _JSON, _TERSE = 1 << 2, 1 << 3, 1 << 4, 1 << 11  # NFT_CTX_OUTPUT_* (<nftables/libnftables.h>)

_NETLINK_NETFILTER = 12
_SUBSYSTEM, _GETCHAIN, _GETTABLE = 10, 4, 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_* (<linux/netfilter/nf_tables.h>)
_REQUEST, _DUMP = 1, 0x300  # NLM_F_*
_ERROR, _DONE = 2, 3  # NLMSG_*
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6  # NFTA_CHAIN_*
_HOOK_NUMBER = 1  # NFTA_HOOK_HOOKNUM
_TYPE_MASK = 0x3FFF
_WAIT = 5.0  # seconds
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}  # NFPROTO_*; the others never see routed packets
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


def get_elements(place: str, keys: str) -> str | None:
    """What ``get element PLACE { KEYS }`` prints; ``None`` when one of them, or the set, is not there. Raises what ``run`` raises."""
    try:
        return _call(f"get element {place} {{ {keys} }}", 0)
    except FirewallError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


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
        context = library.nft_ctx_new(0)
        if not context:
            raise FirewallError("libnftables cannot be used: no memory, or no netlink socket")
        try:
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            library.nft_ctx_output_set_flags(context, flags)
            failed = library.nft_run_cmd_from_buffer(context, commands.encode())
            output: str = library.nft_ctx_get_output_buffer(context).decode(errors="replace")
            errors: str = library.nft_ctx_get_error_buffer(context).decode(errors="replace")
        finally:
            library.nft_ctx_free(context)
    if failed:
        raise _refusal(errors)
    return output


_NUMBERS = {os.strerror(number): number for number in (errno.ENOENT, errno.EEXIST, errno.EPERM, errno.EOPNOTSUPP, errno.EBUSY)}


def _refusal(errors: str) -> Exception:
    """The first line of what the library says; the lines below it show the command again."""
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


def has_table(name: str) -> bool:
    """Whether the IPv4 table is there; ``False`` on a kernel without nf_tables."""
    try:
        return any(_FAMILIES.get(family) == "ip" and _text(attributes[1]) == name for family, attributes in _dump(_GETTABLE))
    except OSError:
        return False


def _dump(message: int) -> list[tuple[int, dict[int, bytes]]]:
    """The family and the attributes of every object (struct nfgenmsg, struct nlattr)."""
    found: list[tuple[int, dict[int, bytes]]] = []
    request = struct.pack("=IHHIIBBH", 20, _SUBSYSTEM << 8 | message, _REQUEST | _DUMP, 1, 0, socket.AF_UNSPEC, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_WAIT)
        sock.send(request)
        while True:
            data = sock.recv(1 << 17)
            offset = 0
            while offset + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", data, offset + 16)[0]
                    raise OSError(number, os.strerror(number))
                found.append((data[offset + 16], _attributes(data[offset + 20 : offset + length])))
                offset += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
