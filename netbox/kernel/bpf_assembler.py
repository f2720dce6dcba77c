"""A small assembler for eBPF: instructions as calls, jumps by label. Pure.

Registers are numbers: 0 result, 1 to 5 arguments (lost in a call), 6 to 9 kept, 10 the end of the stack. Source: the instruction set's
specification (RFC 9669) and <linux/bpf.h>.
"""

from __future__ import annotations

import struct

_LOAD = {1: 0x71, 2: 0x69, 4: 0x61, 8: 0x79}
_STORE = {1: 0x73, 2: 0x6B, 4: 0x63, 8: 0x7B}
_STORE_IMMEDIATE = {1: 0x72, 2: 0x6A, 4: 0x62, 8: 0x7A}
_ALU = {"+": 0x07, "-": 0x17, "*": 0x27, "|": 0x47, "&": 0x57, "<<": 0x67, ">>": 0x77}
_JUMP = {"==": 0x15, ">": 0x25, ">=": 0x35, "!=": 0x55, "<": 0xA5, "<=": 0xB5}
_CLASS, _WORD = 0x07, 0x06  # BPF_JMP32
_REGISTER = 0x08  # the operand is a register, not a number
_MOVE, _MOVE_REGISTER, _CALL, _EXIT, _GOTO, _LOAD_MAP = 0xB7, 0xBF, 0x85, 0x95, 0x05, 0x18
_PSEUDO_MAP_FD = 1
STACK = 10


class Program:
    """Instructions in the making; ``code()`` resolves the jumps."""

    def __init__(self) -> None:
        self._code: list[bytes] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def _emit(self, opcode: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> None:
        self._code.append(struct.pack("<BBhI", opcode, source << 4 | destination, offset, immediate & 0xFFFFFFFF))

    def move(self, destination: int, source: int) -> None:
        """A register out of another one."""
        self._emit(_MOVE_REGISTER, destination, source)

    def set(self, destination: int, value: int) -> None:
        """A register to a number of 32 bits with sign."""
        self._emit(_MOVE, destination, immediate=value)

    def load(self, size: int, destination: int, base: int, offset: int) -> None:
        """``size`` bytes at ``base + offset`` into a register."""
        self._emit(_LOAD[size], destination, base, offset)

    def store(self, size: int, base: int, offset: int, source: int) -> None:
        """The lower ``size`` bytes of a register to ``base + offset``."""
        self._emit(_STORE[size], base, source, offset)

    def store_number(self, size: int, base: int, offset: int, value: int) -> None:
        """A number to ``base + offset``."""
        self._emit(_STORE_IMMEDIATE[size], base, 0, offset, value)

    def calculate(self, operator: str, destination: int, value: int) -> None:
        """``destination = destination operator value`` in 64 bits."""
        self._emit(_ALU[operator], destination, immediate=value)

    def add_register(self, destination: int, source: int) -> None:
        """``destination += source``."""
        self._emit(_ALU["+"] | _REGISTER, destination, source)

    def jump_if(self, register: int, comparison: str, value: int, label: str) -> None:
        """To the label when the comparison (without sign, 64 bits; the number is extended with sign) holds."""
        self._jumps.append((len(self._code), label))
        self._emit(_JUMP[comparison], register, immediate=value)

    def jump_if_word(self, register: int, comparison: str, value: int, label: str) -> None:
        """The same for the lower 32 bits, with the number as it is."""
        self._jumps.append((len(self._code), label))
        self._emit(_JUMP[comparison] & ~_CLASS | _WORD, register, immediate=value)

    def jump(self, label: str) -> None:
        """To the label."""
        self._jumps.append((len(self._code), label))
        self._emit(_GOTO)

    def label(self, name: str) -> None:
        """The next instruction's name. Raises ``ValueError`` when it is taken."""
        if name in self._labels:
            raise ValueError(f"the label {name} stands twice")
        self._labels[name] = len(self._code)

    def call(self, helper: int) -> None:
        """A helper of the kernel (enum bpf_func_id)."""
        self._emit(_CALL, immediate=helper)

    def load_map(self, destination: int, descriptor: int) -> None:
        """A map's address into a register."""
        self._emit(_LOAD_MAP, destination, _PSEUDO_MAP_FD, immediate=descriptor)
        self._emit(0)

    def exit(self) -> None:
        """The end; register 0 is the result."""
        self._emit(_EXIT)

    def code(self) -> bytes:
        """The program. Raises ``KeyError`` for a jump to a label that is not there."""
        code = list(self._code)
        for place, label in self._jumps:
            opcode, registers, _, immediate = struct.unpack("<BBhI", code[place])
            code[place] = struct.pack("<BBhI", opcode, registers, self._labels[label] - place - 1, immediate)
        return b"".join(code)
