"""Capture filters in libpcap's language, compiled to classic BPF (pcap-filter(7), pcap_compile(3PCAP), <linux/filter.h>).

libpcap is loaded on first use: without a filter nobody needs it. The kernel keeps a packet's VLAN tag beside it, where libpcap looks only
in programs for a live capture: a filter on tags is compiled for one on lo, which hears nothing and is closed at once.
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
from typing import Any

from netbox.errors import Unsupported, UsageError

LINKTYPE_ETHERNET, LINKTYPE_RAW = 1, 101  # https://www.tcpdump.org/linktypes.html
_DLT = {LINKTYPE_ETHERNET: 1, LINKTYPE_RAW: 12}  # the numbers that pcap_open_dead takes
_NETMASK_UNKNOWN = 0xFFFFFFFF
_ERROR_BUFFER = 256
_ON_TAGS = re.compile(r"\bvlan\b")
INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter

# <linux/filter.h>: ancillary data is loaded from offsets above SKF_AD_OFF.
_LD_ABSOLUTE, _JUMP_EQUAL, _JUMP_ALWAYS, _RETURN = 0x20, 0x15, 0x05, 0x06
_IFINDEX, _HARDWARE_TYPE = (0xFFFFF000 + 8), (0xFFFFF000 + 28)
_LOOPBACK_INDEX = 1
_ARPHRD_NONE = 0xFFFE


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libpcap.so.0.8")
    except OSError:
        try:
            library = ctypes.CDLL("libpcap.so.1")
        except OSError as error:
            raise Unsupported(
                "cannot compile a capture filter: libpcap is not installed", "apt-get install libpcap0.8, or capture without -f"
            ) from error
    for name in ("pcap_open_dead", "pcap_create"):
        getattr(library, name).restype = ctypes.c_void_p
    library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
    library.pcap_compile.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32)
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_create.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    for name in ("pcap_set_snaplen", "pcap_set_buffer_size"):
        getattr(library, name).argtypes = (ctypes.c_void_p, ctypes.c_int)
    for name in ("pcap_geterr", "pcap_close", "pcap_activate", "pcap_datalink"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    library.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
    return library


def compile_filter(expression: str, snapshot_length: int, link_type: int = LINKTYPE_ETHERNET, live: bool = False) -> bytes:
    """The instructions of a filter, 8 bytes each; a packet that passes is cut to ``snapshot_length`` bytes. Empty lets all pass.

    ``live`` is for packets as the kernel has them, with VLAN tags beside them; for a filter on tags this needs root.

    Raises:
        UsageError: libpcap does not understand the expression.
        Unsupported: libpcap is not installed, or cannot open lo.
    """
    if not expression.strip():
        return INSTRUCTION.pack(_RETURN, 0, 0, snapshot_length)
    if "\0" in expression:
        raise UsageError(f"capture filter {expression!r}: it has a NUL character")
    library = _library()
    if live and _ON_TAGS.search(expression):
        handle = _live(library, snapshot_length)
    else:
        handle = library.pcap_open_dead(_DLT[link_type], snapshot_length)
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), expression.encode(), 1, _NETMASK_UNKNOWN) != 0:
            reason = (library.pcap_geterr(handle) or b"").decode(errors="replace")
            raise UsageError(f"capture filter {expression!r}: {reason}", "man pcap-filter describes the language")
        code = ctypes.string_at(program.instructions, program.length * INSTRUCTION.size)
        library.pcap_freecode(ctypes.byref(program))
        return code
    finally:
        library.pcap_close(handle)


def _live(library: Any, snapshot_length: int) -> Any:
    """A live capture of Ethernet frames. It is never read."""
    handle = library.pcap_create(b"lo", ctypes.create_string_buffer(_ERROR_BUFFER))
    if handle:
        library.pcap_set_snaplen(handle, snapshot_length)
        library.pcap_set_buffer_size(handle, 1 << 16)
        if library.pcap_activate(handle) >= 0 and library.pcap_datalink(handle) == _DLT[LINKTYPE_ETHERNET]:
            return handle
        reason = (library.pcap_geterr(handle) or b"").decode(errors="replace")
        library.pcap_close(handle)
    else:
        reason = "no memory"
    raise Unsupported(f"cannot compile a filter on VLAN tags: libpcap cannot listen on lo: {reason}", "it needs root, and lo to be up")


def check_filter(expression: str) -> None:
    """Raises what ``compile_filter`` would."""
    compile_filter(expression, 1)


def socket_program(expression: str, snapshot_length: int, *, loopback: bool) -> bytes:
    """The program for a socket that hears every interface of a namespace.

    It chooses by the packet's own hardware type, so that a tunnel without link headers beside an Ethernet is filtered right. Without
    ``loopback`` what passes lo is refused at once.

    Raises:
        UsageError, Unsupported: as ``compile_filter``.
    """
    ethernet = compile_filter(expression, snapshot_length, live=True)
    prefix = b""
    if not loopback:
        prefix = INSTRUCTION.pack(_LD_ABSOLUTE, 0, 0, _IFINDEX)
        prefix += INSTRUCTION.pack(_JUMP_EQUAL, 0, 1, _LOOPBACK_INDEX)
        prefix += INSTRUCTION.pack(_RETURN, 0, 0, 0)
    if not expression.strip():
        return prefix + ethernet
    try:
        raw = compile_filter(expression, snapshot_length, LINKTYPE_RAW)
    except UsageError:
        raw = INSTRUCTION.pack(_RETURN, 0, 0, 0)  # it asks for link headers, which such a device has not
    choice = INSTRUCTION.pack(_LD_ABSOLUTE, 0, 0, _HARDWARE_TYPE)
    choice += INSTRUCTION.pack(_JUMP_EQUAL, 1, 0, _ARPHRD_NONE)
    choice += INSTRUCTION.pack(_JUMP_ALWAYS, 0, 0, len(raw) // INSTRUCTION.size)
    return prefix + choice + raw + ethernet
