"""The headers of a tar archive, read strictly: ustar, GNU, pax, and the four ways to store a sparse file.

Why not ``tarfile``: it takes a damaged header after the first for the end of the archive, so that a truncated download imports as half an
image; it reads a header of any size into memory, recurses once per extended header, and keeps every member. This reader raises for
whatever it does not understand, holds one entry, and keeps names as bytes.

Sources: POSIX.1-2017 pax(1), "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format" and "Storing Sparse
Files".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

BLOCK = 512
END_MARK = bytes(BLOCK)
SPECIAL_MAX = 1 << 20  # one extended header or long name; Go's archive/tar has the same limit
SPARSE_ENTRIES_MAX = 1 << 20
SIZE_MAX = 2**63 - 1  # off_t

REGULAR, HARD_LINK, SYMBOLIC_LINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_AS_REGULAR = {b"0", b"\0", b"7", b"S"}
_WITHOUT_DATA = {HARD_LINK, SYMBOLIC_LINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO}
_XATTR = b"SCHILY.xattr."


class BadArchive(Exception):
    """The archive is damaged, unsafe or not one. The text is the reason alone, without the archive's name; ``hint`` says what would do."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


class Stream(Protocol):
    """What the reader needs of a stream: ``read(n)`` gives exactly n bytes, fewer only at the end."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""
        ...  # the body of a protocol


@dataclass(slots=True)
class Entry:
    """One member. ``kind`` is one of the constants above; ``size`` the length of the file, ``stored`` of its data in the archive."""

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    stored: int
    link: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None


class TarReader:
    """Iterates over the entries of a stream. ``read`` gives the data of the current entry; what is left of it is skipped."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0
        self._padding = 0
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Raises BadArchive for a header that is damaged, of an unknown type or missing at the end."""
        first = True
        local: dict[bytes, bytes] = {}
        holes: list[tuple[int, int]] = []
        while (block := self._header(first)) != END_MARK:
            first = False
            kind, size = block[156:157], _number(block[124:136], "size")
            if kind in (b"x", b"X"):
                local, holes = _pax_records(self._special(size), local)
            elif kind == b"g":
                self._global, _ = _pax_records(self._special(size), self._global)
            elif kind in (b"L", b"K"):
                local.setdefault(b"path" if kind == b"L" else b"linkpath", self._special(size).split(b"\0")[0])
            elif kind == b"V":  # GNU: a name for the whole archive
                self._expect(size)
            else:
                yield self._entry(block, kind, size, {**self._global, **local}, holes)
                local, holes = {}, []
            self._skip()

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes of the current entry's data, empty at their end. Raises BadArchive when the archive ends before."""
        wanted = min(size, self._left)
        data = self._stream.read(wanted) if wanted else b""
        if len(data) != wanted:
            raise BadArchive("it ends in the middle of a file, so it is truncated")
        self._left -= wanted
        return data

    def _header(self, first: bool) -> bytes:
        block = self._stream.read(BLOCK)
        if not block and first:
            raise BadArchive("it is empty")
        if len(block) < BLOCK and first:
            raise BadArchive("it is not a tar archive")
        if not block:
            raise BadArchive("it has no end mark, so it is truncated")
        if len(block) < BLOCK:
            raise BadArchive("it ends in the middle of a header, so it is truncated")
        if block != END_MARK and not _checksum_fits(block):
            raise BadArchive("it is not a tar archive" if first else "a header's checksum is wrong, so it is damaged")
        return block

    def _expect(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _skip(self) -> None:
        while self._left:
            self.read(SPECIAL_MAX)
        self._expect(self._padding)
        self.read(BLOCK)
        self._expect(0)

    def _special(self, size: int) -> bytes:
        if size > SPECIAL_MAX:
            raise BadArchive(f"an extended header of {size} bytes is larger than {SPECIAL_MAX}")
        self._expect(size)
        return self.read(size)

    def _entry(self, block: bytes, kind: bytes, size: int, pax: dict[bytes, bytes], holes: list[tuple[int, int]]) -> Entry:
        name = pax.get(b"path") or _ustar_name(block)
        if kind in _AS_REGULAR:
            plain_directory = kind == b"\0" and name.endswith(b"/")  # how archives older than POSIX mark one
            kind = kind if kind == b"S" else DIRECTORY if plain_directory else REGULAR
        elif kind not in _WITHOUT_DATA:
            raise BadArchive(f"entry {printable(name)} is of the unknown type {printable(kind)}")
        stored = 0 if kind in _WITHOUT_DATA else _decimal(pax, b"size", size)
        self._expect(stored)
        device = kind in (CHARACTER, BLOCK_DEVICE)
        entry = Entry(
            name=name,
            kind=REGULAR if kind == b"S" else kind,
            mode=_number(block[100:108], "mode") & 0o7777,
            uid=_decimal(pax, b"uid", _number(block[108:116], "uid")),
            gid=_decimal(pax, b"gid", _number(block[116:124], "gid")),
            mtime_ns=_nanoseconds(pax[b"mtime"]) if b"mtime" in pax else _number(block[136:148], "mtime", signed=True) * 10**9,
            size=stored,
            stored=stored,
            link=pax.get(b"linkpath") or block[157:257].split(b"\0")[0],
            major=_number(block[329:337], "major") if device else 0,
            minor=_number(block[337:345], "minor") if device else 0,
            xattrs={key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)},
        )
        if kind == b"S":
            self._old_gnu_map(entry, block)
        elif kind == REGULAR:
            self._pax_map(entry, pax, holes)
        if entry.sparse is not None:
            _check_map(entry, self._left)
        return entry

    def _old_gnu_map(self, entry: Entry, block: bytes) -> None:
        """GNU format: four pieces in the header, 21 in each block that follows it before the data."""
        entry.size = _number(block[483:495], "size")
        pieces = _gnu_pieces(block[386:482])
        more = block[482]
        while more and len(pieces) <= SPARSE_ENTRIES_MAX:
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK:
                raise BadArchive("it ends in the middle of a header, so it is truncated")
            pieces += _gnu_pieces(block[:504])
            more = block[504]
        entry.sparse = pieces

    def _pax_map(self, entry: Entry, pax: dict[bytes, bytes], holes: list[tuple[int, int]]) -> None:
        """Pax formats 0.0 (repeated records, gathered in ``holes``), 0.1 (one record) and 1.0 (text before the data)."""
        if pax.get(b"GNU.sparse.major") == b"1":
            entry.name = pax.get(b"GNU.sparse.name") or entry.name
            entry.size = _decimal(pax, b"GNU.sparse.realsize", entry.size)
            entry.sparse = self._map_before_data()
        elif b"GNU.sparse.map" in pax:
            entry.name = pax.get(b"GNU.sparse.name") or entry.name
            entry.size = _decimal(pax, b"GNU.sparse.size", entry.size)
            entry.sparse = _pairs([_integer(number) for number in pax[b"GNU.sparse.map"].split(b",")])
        elif holes or b"GNU.sparse.size" in pax:
            entry.size = _decimal(pax, b"GNU.sparse.size", entry.size)
            entry.sparse = holes

    def _map_before_data(self) -> list[tuple[int, int]]:
        text, wanted = b"", 1
        numbers: list[int] = []
        while len(numbers) < wanted:
            text += self.read(BLOCK)
            *lines, text = text.split(b"\n")
            numbers += [_integer(line) for line in lines]
            if numbers and numbers[0] > SPARSE_ENTRIES_MAX:
                break
            wanted = 1 + 2 * numbers[0] if numbers else 1
            if len(numbers) < wanted and (len(text) > 32 or not self._left):
                raise BadArchive("the map of a sparse file is damaged")
        return _pairs(numbers[1:wanted])


def printable(name: bytes) -> str:
    """A name as it can stand in a one-line message: quoted, control characters escaped, the middle of a long one left out."""
    text = name.decode("utf-8", "backslashreplace")
    text = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
    return f"'{text}'" if len(text) <= 120 else f"'{text[:60]}…{text[-50:]}'"


def _ustar_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _checksum_fits(block: bytes) -> bool:
    """The sum of the header's bytes, its own field taken as blanks."""
    digits = block[148:156].strip(b" \0")
    return digits.isdigit() and not digits.strip(b"01234567") and int(digits, 8) == sum(block) - sum(block[148:156]) + 8 * 0x20


def _number(raw: bytes, what: str, signed: bool = False) -> int:
    """An octal field, ended by NUL or space; or, with the first bit set, GNU's big-endian binary."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        if raw[0] & 0x40:  # negative, in two's complement
            value -= 1 << (8 * len(raw) - 1)
        if value < 0 and not signed:
            raise BadArchive(f"a header has a negative {what}")
        return value
    digits = raw.split(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise BadArchive(f"the {what} in a header is not a number, so it is damaged")
    return int(digits, 8)


def _integer(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise BadArchive(f"{printable(digits)} in an extended header is not a number")
    return int(digits)


def _decimal(pax: dict[bytes, bytes], key: bytes, default: int) -> int:
    return _integer(pax[key]) if key in pax else default


def _nanoseconds(text: bytes) -> int:
    """A pax time, such as ``1700000000.123456789`` or ``-1.5``. A float has too few digits for it."""
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    value = _integer(whole.lstrip(b"-") or b"0") * 10**9 + _integer((fraction + b"0" * 9)[:9])
    return -value if negative else value


def _pax_records(text: bytes, before: dict[bytes, bytes]) -> tuple[dict[bytes, bytes], list[tuple[int, int]]]:
    """Records ``LENGTH KEY=VALUE\\n`` on top of those before; an empty value takes one back. Also the map of sparse format 0.0."""
    records, offsets, lengths = dict(before), [], []
    position = 0
    while position < len(text) and text[position]:  # NULs may follow the last record
        digits, space, _ = text[position : position + 20].partition(b" ")
        end = position + _integer(digits)
        record = text[position + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if not space or not equals or not record.endswith(b"\n") or end > len(text):
            raise BadArchive("an extended header is damaged")
        position = end
        value = value[:-1]
        if key == b"GNU.sparse.offset":
            offsets.append(_integer(value))
        elif key == b"GNU.sparse.numbytes":
            lengths.append(_integer(value))
        elif value or key.startswith(_XATTR):
            records[key] = value
        else:
            records.pop(key, None)
    if len(offsets) != len(lengths):
        raise BadArchive("the map of a sparse file is damaged")
    return records, list(zip(offsets, lengths, strict=True))


def _gnu_pieces(raw: bytes) -> list[tuple[int, int]]:
    pieces = []
    for start in range(0, len(raw), 24):
        if not raw[start] or raw[start : start + 24] == bytes(24):
            break
        pieces.append((_number(raw[start : start + 12], "offset"), _number(raw[start + 12 : start + 24], "size")))
    return pieces


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise BadArchive("the map of a sparse file is damaged")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _check_map(entry: Entry, stored: int) -> None:
    """The pieces must ascend, lie inside the file and use up the stored data, or data of the next entry would be taken for this one's."""
    position, total = 0, 0
    for offset, length in entry.sparse or ():
        if offset < position or offset + length > entry.size:
            raise BadArchive(f"the map of the sparse file {printable(entry.name)} is damaged")
        position, total = offset + length, total + length
    if total != stored or entry.size > SIZE_MAX or len(entry.sparse or ()) > SPARSE_ENTRIES_MAX:
        raise BadArchive(f"the map of the sparse file {printable(entry.name)} is damaged")
