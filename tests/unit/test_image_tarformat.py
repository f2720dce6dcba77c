"""The tar reader: what tarfile writes is read back, and whatever else arrives raises BadArchive and nothing else."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbox.image.tarformat import BLOCK, DIRECTORY, REGULAR, SYMBOLIC_LINK, BadArchive, Entry, TarReader, printable

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
COMPONENT = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda text: text not in (".", "..")
)
NAME = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)


def read_all(data: bytes) -> list[tuple[Entry, bytes]]:
    reader = TarReader(io.BytesIO(data))
    return [(entry, b"".join(iter(lambda: reader.read(100), b""))) for entry in reader]


def member(name: str, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def tar(*members: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(
    name: bytes = b"file", kind: bytes = b"0", size: bytes = b"00000000000\0", mtime: bytes = b"00000000000\0", rest: bytes = b""
) -> bytes:
    block = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + mtime + b" " * 8 + kind + bytes(100) + b"ustar\00000"
    block = (block + rest).ljust(BLOCK, b"\0")
    return block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]


def pax(*records: bytes, body: bytes = b"", entry: bytes | None = None) -> bytes:
    text = b""
    for record in records:
        length = len(record) + 2
        while len(str(length)) + len(record) + 2 != length:
            length += 1
        text += str(length).encode() + b" " + record + b"\n"
    blocks = header(b"pax", b"x", f"{len(text):011o}\0".encode()) + text.ljust(-(-len(text) // BLOCK) * BLOCK, b"\0")
    main = header(size=f"{len(body):011o}\0".encode()) if entry is None else entry
    return blocks + main + body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\0") + bytes(2 * BLOCK)


@pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
@given(
    files=st.lists(st.tuples(NAME, st.binary(max_size=1500), st.integers(0, 0o7777), st.integers(0, 2**20)), min_size=1, max_size=5),
    mtime=st.integers(0, 2**33 - 1),
)
@settings(max_examples=60, deadline=None)
def test_what_tarfile_writes_is_read_back(format_: int, files: list[tuple[str, bytes, int, int]], mtime: int) -> None:
    if format_ == tarfile.USTAR_FORMAT:
        files = [(f"f{number}", *rest) for number, (_, *rest) in enumerate(files)]  # type: ignore[misc]
    data = tar(*((member(name, mode=mode, uid=owner, gid=owner, mtime=mtime), body) for name, body, mode, owner in files), format_=format_)
    found = [(entry.name, body, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size) for entry, body in read_all(data)]
    assert found == [(name.encode(), body, mode, owner, owner, mtime * 10**9, len(body)) for name, body, mode, owner in files]


@pytest.mark.parametrize("format_", ["gnu", "pax"])
def test_long_names_and_targets(format_: str) -> None:
    name, target = "d/" * 100 + "n" * 200, "t" * 300
    info = member(name, type=tarfile.SYMTYPE, linkname=target)
    ((entry, _),) = read_all(tar((info, b""), format_=FORMATS[format_]))
    assert (entry.kind, entry.name, entry.link) == (SYMBOLIC_LINK, name.encode(), target.encode())


def test_ustar_prefix_is_part_of_the_name() -> None:
    name = "a" * 90 + "/" + "b" * 90
    ((entry, _),) = read_all(tar((member(name), b"x"), format_=tarfile.USTAR_FORMAT))
    assert entry.name == name.encode()


def test_directory_of_an_archive_older_than_posix_ends_in_a_slash() -> None:
    ((entry, _),) = read_all(header(b"old/", b"\0") + bytes(BLOCK))
    assert entry.kind == DIRECTORY


def test_names_are_bytes() -> None:
    ((entry, _),) = read_all(header(b"caf\xe9") + bytes(BLOCK))
    assert entry.name == b"caf\xe9"


def test_data_that_nobody_read_is_skipped() -> None:
    data = tar((member("a"), b"1" * 700), (member("b"), b"2"))
    assert [entry.name for entry in TarReader(io.BytesIO(data))] == [b"a", b"b"]


def test_volume_label_is_no_file() -> None:
    assert [entry.name for entry, _ in read_all(header(b"label", b"V") + header(b"a") + bytes(BLOCK))] == [b"a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1700000000.123456789", 1700000000123456789),
        (b"1700000000", 1700000000 * 10**9),
        (b"1.5", 1500000000),
        (b"1.1234567899", 1123456789),
        (b"-1.5", -1500000000),
    ],
)
def test_times_keep_their_nanoseconds(text: bytes, expected: int) -> None:
    ((entry, _),) = read_all(pax(b"mtime=" + text))
    assert entry.mtime_ns == expected


def test_negative_time_of_gnu_tar() -> None:
    raw = (-5).to_bytes(12, "big", signed=True)
    ((entry, _),) = read_all(header(mtime=raw) + bytes(BLOCK))
    assert entry.mtime_ns == -5 * 10**9


def test_pax_values_override_the_header_for_one_entry_only() -> None:
    data = pax(b"path=long", b"uid=70000", b"gid=3", b"SCHILY.xattr.user.k=a\nb\0c")[: -2 * BLOCK] + header(b"next") + bytes(BLOCK)
    (first, _), (second, _) = read_all(data)
    assert (first.name, first.uid, first.gid, first.xattrs) == (b"long", 70000, 3, {b"user.k": b"a\nb\0c"})
    assert (second.name, second.uid, second.xattrs) == (b"next", 0, {})


def test_global_pax_header_holds_until_the_end() -> None:
    text = b"11 uid=1234\n"
    text = b"12 uid=1234\n"
    data = header(b"g", b"g", f"{len(text):011o}\0".encode()) + text.ljust(BLOCK, b"\0") + header(b"a") + header(b"b") + bytes(BLOCK)
    assert [entry.uid for entry, _ in read_all(data)] == [1234, 1234]


SPARSE = {
    "0.0": [
        b"GNU.sparse.size=2000",
        *(b"GNU.sparse.offset=0", b"GNU.sparse.numbytes=3", b"GNU.sparse.offset=1000", b"GNU.sparse.numbytes=2"),
    ],
    "0.1": [b"GNU.sparse.size=2000", b"GNU.sparse.name=s", b"GNU.sparse.map=0,3,1000,2"],
}


@pytest.mark.parametrize("version", SPARSE)
def test_sparse_map_in_the_extended_header(version: str) -> None:
    ((entry, data),) = read_all(pax(*SPARSE[version], body=b"abcde"))
    assert (entry.size, entry.sparse, data) == (2000, [(0, 3), (1000, 2)], b"abcde")


def test_sparse_map_before_the_data() -> None:
    body = b"2\n0\n3\n1000\n2\n".ljust(BLOCK, b"\0") + b"abcde"
    ((entry, data),) = read_all(
        pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=s", b"GNU.sparse.realsize=2000", body=body)
    )
    assert (entry.name, entry.size, entry.sparse, data) == (b"s", 2000, [(0, 3), (1000, 2)], b"abcde")


@pytest.mark.parametrize(
    "map_",
    [b"0,3,1,2", b"1000,2,0,3", b"0,5,2500,0", b"0,3", b"0,3,1000", b"0,9", b"0,-5,5,10", b"a,b", b"99999999999999999999999,1"],
    ids=["overlap", "backwards", "beyond the end", "too little", "odd", "too much", "negative", "letters", "huge"],
)
def test_sparse_maps_that_lie(map_: bytes) -> None:
    with pytest.raises(BadArchive):
        read_all(pax(b"GNU.sparse.size=2000", b"GNU.sparse.map=" + map_, body=b"abcde"))


def test_sparse_map_without_an_end() -> None:
    body = b"9" * (4 * BLOCK)
    with pytest.raises(BadArchive, match="map of a sparse file"):
        read_all(pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=5", body=body))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a tar archive"),
        (b"x" * 2048, "not a tar archive"),
        (header(), "no end mark"),
        (header() + header()[:300], "middle of a header"),
        (header(size=b"00000001000\0") + b"x" * 500, "middle of a file"),
        (header() + b"x" * BLOCK, "checksum is wrong"),
        (header(size=b"0000000zzzz\0") + bytes(BLOCK), "not a number"),
        (header(size=b"\xff" * 12) + bytes(BLOCK), "negative size"),
        (header(kind=b"Z") + bytes(BLOCK), "unknown type 'Z'"),
        (header(kind=b"D") + bytes(BLOCK), "unknown type 'D'"),
        (header(b"L", b"L", b"77777777777\0") + bytes(BLOCK), "larger than"),
        (header(b"x", b"x", b"77777777777\0") + bytes(BLOCK), "larger than"),
        (pax(b"uid=-1"), "not a number"),
        (pax(b"mtime=nan"), "not a number"),
        (pax(b"size=" + b"9" * 30), "not a number"),
        (pax(b"nonsense"), "extended header is damaged"),
    ],
)
def test_damage_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(BadArchive, match=reason):
        read_all(data)


def test_a_thousand_extended_headers_in_a_row_need_no_recursion() -> None:
    assert [entry.name for entry, _ in read_all((header(b"g", b"g") + header(b"x", b"x")) * 2000 + header(b"a") + bytes(BLOCK))] == [b"a"]


def test_an_extended_header_of_many_small_records_takes_linear_time() -> None:
    text = b"5 a=\n" * 200_000
    data = (
        header(b"x", b"x", f"{len(text):011o}\0".encode()) + text.ljust(-(-len(text) // BLOCK) * BLOCK, b"\0") + header(b"a") + bytes(BLOCK)
    )
    assert [entry.name for entry, _ in read_all(data)] == [b"a"]


SAMPLE = tar((member("d", type=tarfile.DIRTYPE), b""), (member("d/" + "n" * 150, mtime=1.25), b"x" * 600), (member("e"), b"y"))


def test_every_truncation_is_noticed() -> None:
    end = SAMPLE.rstrip(b"\0")
    last_block = -(-len(end) // BLOCK) * BLOCK
    for length in range(0, last_block + BLOCK, 37):
        with pytest.raises(BadArchive):
            read_all(SAMPLE[:length])


@given(st.binary(max_size=3000))
@settings(max_examples=200, deadline=None)
def test_noise_raises_bad_archive(data: bytes) -> None:
    with pytest.raises(BadArchive):
        read_all(data.rstrip(b"\0"))


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_damaged_archive_is_read_or_refused(changes: list[tuple[int, int]], mend: bool) -> None:
    data = bytearray(SAMPLE)
    for position, value in changes:
        data[position] = value
        if mend:  # a wrong checksum would hide what the rest of the header does
            start = position // BLOCK * BLOCK
            block = data[start : start + BLOCK]
            data[start + 148 : start + 156] = f"{sum(block) - sum(block[148:156]) + 256:06o}\0 ".encode()
    try:
        entries = read_all(bytes(data))
    except BadArchive:
        return
    assert all(len(body) == entry.stored for entry, body in entries if entry.kind == REGULAR and entry.sparse is None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [(b"plain", "'plain'"), (b"a\nb", "'a\\x0ab'"), (b"\xff", "'\\xff'"), (b"\x1b[31m", "'\\x1b[31m'")],
)
def test_names_in_messages_are_one_harmless_line(name: bytes, expected: str) -> None:
    assert printable(name) == expected


def test_long_names_in_messages_are_shortened() -> None:
    assert len(printable(b"x" * 5000)) < 130
