"""The kernel's description of its own types (BTF): where the fields of its structures lie, and the names of an enum's values.

A program that reads kernel memory needs the offsets of the kernel that runs, not of the one it was written for. BTF has them
(https://docs.kernel.org/bpf/btf.html). Reading all of it takes a tenth of a second, so what was asked for is kept in a file that is named
after the kernel's build.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from netbox.errors import Unsupported

PATH = "/sys/kernel/btf/vmlinux"
_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")  # magic, version, flags, header length, type offset and length, string offset and length
_TYPE = struct.Struct("<III")  # name, info, size or type
_MEMBER = struct.Struct("<III")  # name, type, offset in bits
_ENUM = struct.Struct("<Ii")
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM_KIND, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)
_MODIFIERS = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
_EXTRA = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}  # bytes behind the type
_PER_ITEM = {_STRUCT: 12, _UNION: 12, _ENUM_KIND: 8, _ENUM64: 12, _FUNC_PROTO: 8, _DATASEC: 12}


class Layout(NamedTuple):
    """What was asked for: byte offsets by path (``sk_buff.dev``) and the names of enum values by number."""

    offsets: dict[str, int]
    enums: dict[str, dict[int, str]]


class Btf:
    """BTF data in memory.

    Raises:
        ValueError: the data are not BTF of this byte order.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise ValueError("too short for BTF")
        magic, _, _, length, type_offset, type_length, string_offset, string_length = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("not BTF, or of another byte order")
        self._data = data
        self._types = (length + type_offset, length + type_offset + type_length)
        self._strings = data[length + string_offset : length + string_offset + string_length]
        self._positions = [0, *self._walk()]

    def _walk(self) -> Iterator[int]:
        """The position of every type, in the order of their ids."""
        data, (position, end) = self._data, self._types
        unpack, size = _TYPE.unpack_from, _TYPE.size
        while position < end:
            yield position
            info = unpack(data, position)[1]
            kind = info >> 24 & 0x1F
            position += size + _EXTRA.get(kind, 0) + (info & 0xFFFF) * _PER_ITEM.get(kind, 0)

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _find(self, name: str, kinds: Sequence[int]) -> int:
        """The id of the named type. Compares offsets of strings, which costs much less than names."""
        wanted = set()
        pattern = b"\0" + name.encode() + b"\0"
        place = self._strings.find(pattern)
        while place >= 0:
            wanted.add(place + 1)
            place = self._strings.find(pattern, place + 1)
        for identity in range(1, len(self._positions)):
            offset, info, _ = _TYPE.unpack_from(self._data, self._positions[identity])
            if offset in wanted and (info >> 24 & 0x1F) in kinds:
                return identity
        raise KeyError(name)

    def _resolved(self, identity: int) -> tuple[int, int, int]:
        """(position, kind, count) of a type without its modifiers."""
        while True:
            position = self._positions[identity]
            _, info, target = _TYPE.unpack_from(self._data, position)
            kind = info >> 24 & 0x1F
            if kind not in _MODIFIERS:
                return position, kind, info
            identity = target

    def offset(self, path: str) -> int:
        """The byte offset of ``struct.member.member``, also through structures without a name. Raises ``KeyError``."""
        first, *members = path.split(".")
        identity = self._find(first, (_STRUCT, _UNION))
        bits = 0
        for member in members:
            found = self._member(identity, member)
            if found is None:
                raise KeyError(path)
            identity, bits = found[0], bits + found[1]
        return bits // 8

    def _member(self, identity: int, name: str) -> tuple[int, int] | None:
        position, kind, info = self._resolved(identity)
        if kind not in (_STRUCT, _UNION):
            return None
        bitfields = bool(info >> 31)
        for index in range(info & 0xFFFF):
            offset, type_id, bits = _MEMBER.unpack_from(self._data, position + _TYPE.size + index * _MEMBER.size)
            bits = bits & 0xFFFFFF if bitfields else bits
            if offset and self._name(offset) == name:
                return type_id, bits
            if not offset:
                found = self._member(type_id, name)
                if found is not None:
                    return found[0], bits + found[1]
        return None

    def enum(self, name: str) -> dict[int, str]:
        """The names of an enum's values. Raises ``KeyError``."""
        position = self._positions[self._find(name, (_ENUM_KIND,))]
        count = _TYPE.unpack_from(self._data, position)[1] & 0xFFFF
        items = (_ENUM.unpack_from(self._data, position + _TYPE.size + index * _ENUM.size) for index in range(count))
        return {value: self._name(offset) for offset, value in items}


def layout(offsets: Sequence[str], enums: Sequence[str], cache: str | None = None, path: str = PATH) -> Layout:
    """What the running kernel says. ``cache`` is a directory where the answer is kept; one that cannot be written to is done without.

    Raises:
        Unsupported: this kernel has no BTF, or lacks one of the fields.
    """
    file = f"{cache}/btf-{_key(offsets, enums, path)}.json" if cache else None
    known = _cached(file) if file else None
    if known is not None:
        return known
    try:
        with open(path, "rb") as source:
            btf = Btf(source.read())
        found = Layout({name: btf.offset(name) for name in offsets}, {name: btf.enum(name) for name in enums})
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise Unsupported(f"this kernel does not describe its types: {path}: {reason}", "it needs CONFIG_DEBUG_INFO_BTF") from error
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise Unsupported(f"this kernel's types are not as expected: {error}", "use another tracer (--tracer tracefs)") from error
    if file:
        _keep(file, found)
    return found


def _key(offsets: Sequence[str], enums: Sequence[str], path: str) -> str:
    system = os.uname()
    try:
        size = os.stat(path).st_size
    except OSError:
        size = 0
    text = "\n".join((system.release, system.version, system.machine, str(size), *offsets, *enums))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cached(file: str) -> Layout | None:
    try:
        with open(file, encoding="utf-8") as source:
            data = json.load(source)
        enums = {name: {int(number): text for number, text in values.items()} for name, values in data["enums"].items()}
        return Layout({str(name): int(value) for name, value in data["offsets"].items()}, enums)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _keep(file: str, found: Layout) -> None:
    """Written beside and renamed: a reader sees all of it or nothing."""
    temporary = f"{file}.{threading.get_native_id()}"  # two threads may write the same at once
    try:
        os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as target:
            json.dump({"offsets": found.offsets, "enums": found.enums}, target)
        os.replace(temporary, file)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.ENOTDIR):
            raise


def without_prefix(names: Mapping[int, str], prefix: str) -> dict[int, str]:
    """The names of an enum without what they all begin with."""
    return {number: name.removeprefix(prefix) for number, name in names.items()}
