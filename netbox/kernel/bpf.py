"""bpf(2): ring buffers and programs on raw tracepoints. Everything hangs on file descriptors and goes with them, however the process ends.

Sources: bpf(2), <linux/bpf.h>, https://docs.kernel.org/bpf/ringbuf.html
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from types import TracebackType

from netbox.errors import Unsupported

_MAP_CREATE, _PROG_LOAD, _RAW_TRACEPOINT_OPEN = 0, 5, 17
_MAP_TYPE_RINGBUF = 27
_PROG_TYPE_RAW_TRACEPOINT = 17
_LICENSE = b"Dual MIT/GPL"  # reading kernel memory is for programs under a license that goes with the GPL
_BUSY, _DISCARD = 1 << 31, 1 << 30
_LENGTH = (1 << 30) - 1
_RECORD_HEADER = 8  # bytes
_LOG_SIZE = 1 << 16
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attributes: bytes) -> int:
    """One bpf(2). Raises ``OSError``."""
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def refused(operation: str, error: OSError) -> Unsupported:
    """The error for a user: which part of BPF this host does not allow."""
    hints = {
        errno.EPERM: "it needs root with CAP_BPF and CAP_PERFMON, and a kernel that is not locked down",
        errno.ENOSYS: "it needs CONFIG_BPF_SYSCALL",
    }
    number = error.errno or 0
    return Unsupported(f"BPF is not allowed here: cannot {operation}: {os.strerror(number)}", hints.get(number))


class RingBuffer:
    """A ring buffer that programs write records into and this process reads, through shared memory.

    ``size`` is in bytes, a power of two and a multiple of the page size. Raises ``Unsupported``.
    """

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        try:
            self.descriptor = call(_MAP_CREATE, struct.pack("=IIII12x16s", _MAP_TYPE_RINGBUF, 0, 0, size, b"netbox_packets"))
        except OSError as error:
            raise refused("make a ring buffer", error) from error
        try:
            self._consumer = mmap.mmap(self.descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
            # The data lie there twice in a row: a record that runs over the end is in one piece.
            self._data = mmap.mmap(self.descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except OSError as error:
            os.close(self.descriptor)
            raise refused("map a ring buffer", error) from error
        self._page, self._mask = page, size - 1
        self._position = 0

    def fileno(self) -> int:
        """Readable when there is a record (poll(2))."""
        return self.descriptor

    def read(self) -> Iterator[bytes]:
        """The records that are there. Not those that come meanwhile: they may come faster than they are read."""
        produced = struct.unpack_from("=Q", self._data, 0)[0]
        while self._position < produced:
            place = self._page + (self._position & self._mask)
            header = struct.unpack_from("=I", self._data, place)[0]
            if header & _BUSY:
                return  # it is being written; the poll tells when it is done
            length = header & _LENGTH
            record = b"" if header & _DISCARD else self._data[place + _RECORD_HEADER : place + _RECORD_HEADER + length]
            self._position += (_RECORD_HEADER + length + 7) & ~7
            struct.pack_into("=Q", self._consumer, 0, self._position)
            if record:
                yield record

    def close(self) -> None:
        """Frees it once no program uses it."""
        self._consumer.close()
        self._data.close()
        os.close(self.descriptor)


def load_raw_tracepoint(code: bytes, name: str) -> int:
    """Loads a program for a raw tracepoint; its descriptor. Raises ``Unsupported``, or ``ValueError`` with the verifier's words."""
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(_LICENSE)

    def attributes(log: ctypes.Array[ctypes.c_char] | None) -> bytes:
        size, address = (len(log), ctypes.addressof(log)) if log is not None else (0, 0)
        return struct.pack(
            "=IIQQIIQII16s",
            _PROG_TYPE_RAW_TRACEPOINT,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(license_text),
            1 if size else 0,
            size,
            address,
            0,
            0,
            name.encode()[:15],
        )

    try:
        return call(_PROG_LOAD, attributes(None))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise refused("load a program", error) from error
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        return call(_PROG_LOAD, attributes(log))
    except OSError as error:
        words = [line for line in log.value.decode(errors="replace").splitlines() if line and not line.startswith("processed")]
        raise ValueError(f"the kernel refuses the program {name}: {words[-1] if words else error.strerror}") from error


def attach_raw_tracepoint(program: int, tracepoint: str) -> int:
    """Attaches a program; it runs until the returned descriptor is closed. Raises ``Unsupported``."""
    name = ctypes.create_string_buffer(tracepoint.encode())
    try:
        return call(_RAW_TRACEPOINT_OPEN, struct.pack("=QI4x", ctypes.addressof(name), program))
    except OSError as error:
        raise refused(f"attach to the tracepoint {tracepoint}", error) from error


class Attached:
    """Programs on tracepoints with the ring buffer that they write into, until it is closed."""

    def __init__(self, ring: RingBuffer) -> None:
        self.ring = ring
        self._descriptors: list[int] = []

    def add(self, tracepoint: str, code: bytes) -> None:
        """Loads a program and attaches it. Raises as ``load_raw_tracepoint`` and ``attach_raw_tracepoint``."""
        program = load_raw_tracepoint(code, f"netbox_{tracepoint}")
        self._descriptors.append(program)
        self._descriptors.append(attach_raw_tracepoint(program, tracepoint))

    def close(self) -> None:
        """Detaches and unloads everything."""
        for descriptor in reversed(self._descriptors):
            os.close(descriptor)
        self._descriptors.clear()
        self.ring.close()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
