"""Choosing packets by a filter of libpcap's language (pcap-filter(7)), on bytes that begin with the network header."""

from __future__ import annotations

from collections.abc import Callable

from netbox.kernel.packet_filter import INSTRUCTION, LINKTYPE_RAW, compile_filter

# Classic BPF, <linux/bpf_common.h>: class, size or operation, mode or source.
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1}
_IMMEDIATE, _ABSOLUTE, _INDIRECT, _MEMORY, _WIRE_LENGTH, _HEADER_LENGTH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
_WORD = 0xFFFFFFFF
_LENGTH = 65535


def acceptor(expression: str) -> Callable[[bytes], bool]:
    """A function that says whether a packet passes the filter. What was cut off does not.

    Raises:
        UsageError: libpcap does not understand the expression.
        Unsupported: libpcap is not installed.
    """
    code = list(INSTRUCTION.iter_unpack(compile_filter(expression, _LENGTH, LINKTYPE_RAW)))
    return lambda packet: _run(code, packet)


def _run(code: list[tuple[int, int, int, int]], packet: bytes) -> bool:
    """The machine of McCanne and Jacobson (1993), as bpf(4) of the BSDs describes it."""
    a = x = place = 0
    memory = [0] * 16
    while place < len(code):
        operation, yes, no, k = code[place]
        place += 1
        kind, detail = operation & 7, operation & 0xF0
        if kind in (_LD, _LDX):
            value = _loaded(operation, k, x, memory, packet)
            if value is None:
                return False
            a, x = (value, x) if kind == _LD else (a, value)
        elif kind in (_ST, _STX):
            memory[k] = a if kind == _ST else x
        elif kind == _ALU:
            a = _calculated(detail, a, x if operation & 8 else k)
        elif kind == _JMP:
            place += k if detail == 0 else yes if _holds(detail, a, x if operation & 8 else k) else no
        elif kind == _RET:
            return bool(a if operation & 0x18 == 0x10 else k)
        else:
            a, x = (a, a) if detail & 0x80 == 0 else (x, x)
    return False


def _loaded(operation: int, k: int, x: int, memory: list[int], packet: bytes) -> int | None:
    mode, size = operation & 0xE0, _SIZES[operation & 0x18]
    if mode == _IMMEDIATE:
        return k
    if mode == _MEMORY:
        return memory[k]
    if mode == _WIRE_LENGTH:
        return len(packet)
    if mode == _HEADER_LENGTH:
        return (packet[k] & 0xF) * 4 if k < len(packet) else None
    start = k + (x if mode == _INDIRECT else 0)
    return int.from_bytes(packet[start : start + size], "big") if start + size <= len(packet) else None


def _calculated(operation: int, a: int, value: int) -> int:
    results: dict[int, Callable[[], int]] = {
        0x00: lambda: a + value,
        0x10: lambda: a - value,
        0x20: lambda: a * value,
        0x30: lambda: a // value if value else 0,
        0x40: lambda: a | value,
        0x50: lambda: a & value,
        0x60: lambda: a << min(value, 32),
        0x70: lambda: a >> min(value, 32),
        0x80: lambda: -a,
        0x90: lambda: a % value if value else 0,
        0xA0: lambda: a ^ value,
    }
    return results[operation]() & _WORD


def _holds(operation: int, a: int, value: int) -> bool:
    return {0x10: a == value, 0x20: a > value, 0x30: a >= value, 0x40: bool(a & value)}[operation]
