"""The device filter of cgroup v2: a BPF program of type BPF_PROG_TYPE_CGROUP_DEVICE, built here and attached by bpf(2).

The kernel runs it whenever a process of the cgroup opens or makes a device node; it returns 1 to allow. Sources: bpf(2), <linux/bpf.h>,
https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from netbox.errors import Unsupported, host_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# <linux/bpf.h>
_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_DETACH, _BPF_PROG_GET_FD_BY_ID, _BPF_PROG_QUERY = 5, 8, 9, 13, 16
_BPF_PROG_TYPE_CGROUP_DEVICE = 15
_BPF_CGROUP_DEVICE = 6
_BPF_F_ALLOW_MULTI, _BPF_F_REPLACE = 2, 4
_TYPE_BITS = {"b": 1, "c": 2}
_ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
_ALL_ACCESS = 7
_ANY = -1
_MAX_ATTACHED = 64

# Opcodes: class | operation | source, <linux/bpf_common.h>
LOAD_WORD, MOVE_IMMEDIATE, MOVE_REGISTER, EXIT = 0x61, 0xB7, 0xBF, 0x95
AND_IMMEDIATE, SHIFT_RIGHT_IMMEDIATE = 0x57, 0x77
JUMP_NOT_EQUAL_IMMEDIATE, JUMP_NOT_EQUAL_REGISTER = 0x55, 0x5D
_R0, _R1, _TYPE, _ACCESS, _MAJOR, _MINOR = 0, 1, 2, 3, 4, 5

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)


def program(rules: Iterable[Sequence[str | int]]) -> bytes:
    """The BPF instructions for an allow list of (kind, major, minor, access); -1 is any number, kind ``a`` both kinds. Pure.

    A request passes when one rule covers it whole, as in the v1 devices controller.
    """
    code = [
        _instruction(LOAD_WORD, _TYPE, _R1, 0, 0),  # access << 16 | type
        _instruction(MOVE_REGISTER, _ACCESS, _TYPE, 0, 0),
        _instruction(AND_IMMEDIATE, _TYPE, 0, 0, 0xFFFF),
        _instruction(SHIFT_RIGHT_IMMEDIATE, _ACCESS, 0, 0, 16),
        _instruction(LOAD_WORD, _MAJOR, _R1, 4, 0),
        _instruction(LOAD_WORD, _MINOR, _R1, 8, 0),
    ]
    for kind, major, minor, access in rules:
        block = _rule(str(kind), int(major), int(minor), str(access))
        code += block
        if len(block) == 2:  # allows everything: the verifier refuses code that cannot be reached
            return b"".join(code)
    code += [_instruction(MOVE_IMMEDIATE, _R0, 0, 0, 0), _instruction(EXIT, 0, 0, 0, 0)]
    return b"".join(code)


def _rule(kind: str, major: int, minor: int, access: str) -> list[bytes]:
    """The tests of one rule, each jumping behind the rule when it fails, then ``return 1``."""
    tests: list[tuple[int, int, int, int]] = []  # opcode, destination, source, immediate
    if kind in _TYPE_BITS:
        tests.append((JUMP_NOT_EQUAL_IMMEDIATE, _TYPE, 0, _TYPE_BITS[kind]))
    mask = sum(_ACCESS_BITS[letter] for letter in set(access))
    if mask != _ALL_ACCESS:
        tests.append((MOVE_REGISTER, _R1, _ACCESS, 0))
        tests.append((AND_IMMEDIATE, _R1, 0, mask))
        tests.append((JUMP_NOT_EQUAL_REGISTER, _R1, _ACCESS, 0))
    for register, value in ((_MAJOR, major), (_MINOR, minor)):
        if value != _ANY:
            tests.append((JUMP_NOT_EQUAL_IMMEDIATE, register, 0, value))
    tests += [(MOVE_IMMEDIATE, _R0, 0, 1), (EXIT, 0, 0, 0)]
    block = []
    for index, (opcode, destination, source, immediate) in enumerate(tests):
        offset = len(tests) - index - 1 if opcode in (JUMP_NOT_EQUAL_IMMEDIATE, JUMP_NOT_EQUAL_REGISTER) else 0
        block.append(_instruction(opcode, destination, source, offset, immediate))
    return block


def _instruction(opcode: int, destination: int, source: int, offset: int, immediate: int) -> bytes:
    return struct.pack("<BBhI", opcode, source << 4 | destination, offset, immediate & 0xFFFFFFFF)


def attach(directory: str, rules: Iterable[Sequence[str | int]]) -> None:
    """Puts the allow list into force on the cgroup at ``directory``, in place of the programs that are attached there.

    The cgroup holds the program: there is nothing to undo but the cgroup. Raises ``Unsupported`` without BPF, else ``HostError``.
    """
    try:
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise host_error("open the cgroup", directory, error) from error
    try:
        _attach(cgroup, program(rules))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL):
            raise Unsupported(
                f"no device rule can be enforced on {directory}: this kernel takes no cgroup device program ({os.strerror(error.errno)})",
                "it needs CONFIG_CGROUP_BPF",
            ) from error
        raise host_error("attach the device program to", directory, error) from error
    finally:
        os.close(cgroup)


def attached(directory: str) -> list[int]:
    """The ids of the device programs attached to the cgroup itself. Raises ``OSError``."""
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _query(cgroup)
    finally:
        os.close(cgroup)


def _attach(cgroup: int, code: bytes) -> None:
    new = _load(code)
    try:
        old = _query(cgroup)
        # One program is replaced in one step; several (all of them must allow) are taken off after the new one is in force.
        replaced = _open_program(old[0]) if len(old) == 1 else -1
        try:
            flags = _BPF_F_ALLOW_MULTI | (_BPF_F_REPLACE if replaced >= 0 else 0)
            _bpf(_BPF_PROG_ATTACH, struct.pack("=IIIII", cgroup, new, _BPF_CGROUP_DEVICE, flags, max(replaced, 0)))
        finally:
            if replaced >= 0:
                os.close(replaced)
        for identity in old if len(old) > 1 else ():
            other = _open_program(identity)
            try:
                _bpf(_BPF_PROG_DETACH, struct.pack("=III", cgroup, other, _BPF_CGROUP_DEVICE))
            finally:
                os.close(other)
    finally:
        os.close(new)


def _load(code: bytes) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"MIT")
    attributes = struct.pack(
        "=IIQQIIQII16s",
        _BPF_PROG_TYPE_CGROUP_DEVICE,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_text),
        0,  # log_level, log_size, log_buf: the verifier is not asked for its log
        0,
        0,
        0,  # kern_version, prog_flags
        0,
        b"netbox_devices",
    )
    return _bpf(_BPF_PROG_LOAD, attributes)


def _query(cgroup: int) -> list[int]:
    identities = (ctypes.c_uint32 * _MAX_ATTACHED)()
    attributes = bytearray(struct.pack("=IIIIQI4x", cgroup, _BPF_CGROUP_DEVICE, 0, 0, ctypes.addressof(identities), _MAX_ATTACHED))
    _bpf(_BPF_PROG_QUERY, attributes)
    count = struct.unpack_from("=I", attributes, 24)[0]
    return list(identities[:count])


def _open_program(identity: int) -> int:
    return _bpf(_BPF_PROG_GET_FD_BY_ID, struct.pack("=III", identity, 0, 0))


def _bpf(command: int, attributes: bytes | bytearray) -> int:
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = (ctypes.c_char * len(attributes)).from_buffer_copy(attributes)
    result = int(_libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if isinstance(attributes, bytearray):
        attributes[:] = buffer.raw
    return result
