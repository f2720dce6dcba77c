"""The mount table: parsing, and what is unmounted in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.kernel.mounts import MountEntry, mounts_below, parse_mountinfo, read_mountinfo, unescape

LINE = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue"


def escape(text: str) -> str:
    """What the kernel does (seq_file's mangle)."""
    return "".join(f"\\{ord(character):03o}" if character in " \t\n\\#" else character for character in text)


def test_the_example_of_the_manual_page() -> None:
    (entry,) = parse_mountinfo(LINE + "\n")
    options = ("rw", "noatime"), ("master:1", "propagate_from:2"), "ext3", "/dev/root", ("rw", "errors=continue")
    assert entry == MountEntry(36, 35, "98:0", "/mnt1", "/mnt 2", *options)


def test_no_optional_fields() -> None:
    (entry,) = parse_mountinfo("22 27 0:21 / /proc rw - proc proc rw")
    assert (entry.propagation, entry.fstype, entry.mount_point) == ((), "proc", "/proc")


@pytest.mark.parametrize(
    "line", ["x", "36 35 98:0 / /mnt rw master:1 ext3 /dev/root rw", "a b 0:1 / / rw - proc proc rw", "1 2 0:1 / / rw - proc"]
)
def test_a_line_that_is_none(line: str) -> None:
    with pytest.raises(ValueError, match="not a line of mountinfo"):
        parse_mountinfo(line)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_unescape_reverses_the_kernel(text: str) -> None:
    assert unescape(escape(text)) == text


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
words = st.lists(st.text("abcxyz:=09", min_size=1, max_size=9), min_size=1, max_size=3)


@given(
    st.lists(
        st.builds(
            MountEntry,
            st.integers(1, 99999),
            st.integers(1, 99999),
            st.just("0:1"),
            names,
            names,
            words.map(tuple),
            st.lists(st.text("abc:19", min_size=1), max_size=3).map(tuple),
            st.text("abc2", min_size=1),
            names.filter(lambda name: "," not in name),
            words.map(tuple),
        ),
        max_size=5,
    )
)
def test_any_table_is_read_back(entries: list[MountEntry]) -> None:
    lines = []
    for entry in entries:
        head = [
            str(entry.mount_id),
            str(entry.parent_id),
            entry.device,
            escape(entry.root),
            escape(entry.mount_point),
            ",".join(entry.options),
        ]
        tail = ["-", entry.fstype, escape(entry.source), ",".join(entry.super_options)]
        lines.append(" ".join([*head, *entry.propagation, *tail]))
    assert parse_mountinfo("\n".join(lines)) == entries


def test_this_process_has_a_root() -> None:
    assert "/" in [entry.mount_point for entry in read_mountinfo()]


def test_unmounting_begins_with_what_was_mounted_last() -> None:
    points = ["/", "/a", "/a/b", "/ab", "/a", "/a/c/d"]
    entries = [MountEntry(number, 1, "0:1", "/", point, (), (), "tmpfs", "x", ()) for number, point in enumerate(points)]
    assert mounts_below("/a", entries) == ["/a/c/d", "/a", "/a/b", "/a"]
