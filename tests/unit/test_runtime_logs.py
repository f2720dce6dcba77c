"""The log: records, rotation, reading back, following."""

from __future__ import annotations

import builtins
import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.runtime import logs
from netbox.runtime.log_reader import LogLine, read_logs


@given(st.binary(max_size=200), st.integers(0, 2**62))
def test_any_output_is_read_back(data: bytes, moment: int) -> None:
    line = logs.record(moment, "stdout", data)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    values = json.loads(line)
    seconds, _, nanoseconds = values["t"].partition(".")
    assert int(seconds) * 10**9 + int(nanoseconds) == moment
    if "d" in values:
        assert values["d"].encode() == data


@given(st.text())
def test_escape_is_json(text: str) -> None:
    assert json.loads(f'"{logs.escape(text)}"') == text


@given(chunks=st.lists(st.binary(max_size=30), max_size=20), size=st.integers(60, 400))
def test_rotated_files_give_the_same_lines(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], size: int) -> None:
    directory = tmp_path_factory.mktemp("log")
    writer = logs.LogWriter(str(directory), size, 100)
    for chunk in chunks:
        writer.write("stdout", chunk)
    writer.close()
    lines = [line.data for line in read_logs(str(directory))]
    assert b"".join(lines) == b"".join(chunks)
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines[:-1])


def fill(directory: Path, *texts: str, max_size: int = 10**6, max_files: int = 3) -> None:
    writer = logs.LogWriter(str(directory), max_size, max_files)
    for text in texts:
        writer.write("stdout", text.encode())
    writer.close()


def datas(lines: object) -> list[bytes]:
    return [line.data for line in lines]  # type: ignore[attr-defined]


def test_the_number_and_size_of_files_is_bounded(tmp_path: Path) -> None:
    fill(tmp_path, *(f"line {number:03d}\n" for number in range(200)), max_size=500, max_files=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert all(path.stat().st_size <= 500 for path in tmp_path.iterdir())
    assert datas(read_logs(str(tmp_path)))[-1] == b"line 199\n"


def test_a_single_file_starts_over(tmp_path: Path) -> None:
    fill(tmp_path, *(f"line {number:03d}\n" for number in range(50)), max_size=300, max_files=1)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_new_writer_appends(tmp_path: Path) -> None:
    fill(tmp_path, "one\n")
    fill(tmp_path, "two\n")
    assert datas(read_logs(str(tmp_path))) == [b"one\n", b"two\n"]


def test_streams_are_put_together_apart(tmp_path: Path) -> None:
    writer = logs.LogWriter(str(tmp_path), 10**6, 3)
    for stream, data in (("stdout", b"ou"), ("stderr", b"er"), ("stdout", b"t\nrest"), ("stderr", b"r\n")):
        writer.write(stream, data)
    writer.close()
    assert [(line.stream, line.data) for line in read_logs(str(tmp_path))] == [
        ("stdout", b"out\n"),
        ("stderr", b"err\n"),
        ("stdout", b"rest"),
    ]


@pytest.mark.parametrize(("tail", "expected"), [(0, []), (2, [b"c\n", b"d\n"]), (9, [b"a\n", b"b\n", b"c\n", b"d\n"])])
def test_tail(tmp_path: Path, tail: int, expected: list[bytes]) -> None:
    fill(tmp_path, "a\nb\n", "c\n", "d\n", max_size=60)
    assert datas(read_logs(str(tmp_path), tail=tail)) == expected


def test_since_and_until(tmp_path: Path) -> None:
    lines = b"".join(logs.record(second * 10**9, "stdout", b"%d\n" % second) for second in range(10))
    (tmp_path / "log").write_bytes(lines)
    assert datas(read_logs(str(tmp_path), since=3, until=5)) == [b"3\n", b"4\n", b"5\n"]
    assert next(read_logs(str(tmp_path), since=8.5)) == LogLine(9.0, "stdout", b"9\n")
    assert datas(read_logs(str(tmp_path), until=4, tail=1)) == [b"4\n"]


def test_damage_costs_only_the_damaged_record(tmp_path: Path) -> None:
    good = logs.record(1, "stdout", b"good\n")
    (tmp_path / "log").write_bytes(good + b'{"t":"1.0","s":"std\n' + b"\xff\n" + good)
    assert datas(read_logs(str(tmp_path))) == [b"good\n", b"good\n"]


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    assert list(read_logs(str(tmp_path / "none"))) == []


def test_following_over_rotations_sees_every_line_and_ends(tmp_path: Path) -> None:
    count, alive = 300, threading.Event()
    alive.set()

    def write() -> None:
        writer = logs.LogWriter(str(tmp_path), 2000, 50)
        for number in range(count):
            writer.write("stdout", b"line %d\n" % number)
            if number % 40 == 0:
                time.sleep(0.03)
        writer.close()
        alive.clear()

    thread = threading.Thread(target=write)
    thread.start()
    got = datas(read_logs(str(tmp_path), follow=True, alive=alive.is_set))
    thread.join(60)
    assert got == [b"line %d\n" % number for number in range(count)]


def test_following_shows_an_unfinished_line(tmp_path: Path) -> None:
    fill(tmp_path, "prompt> ")
    lines = read_logs(str(tmp_path), follow=True)
    assert next(lines).data == b"prompt> "
    lines.close()  # type: ignore[attr-defined]


def test_following_with_tail_begins_at_the_end(tmp_path: Path) -> None:
    fill(tmp_path, "a\n", "b\n", "c\n")
    assert datas(read_logs(str(tmp_path), follow=True, tail=1, alive=lambda: False)) == [b"c\n"]
    assert datas(read_logs(str(tmp_path), follow=True, tail=0, alive=lambda: False)) == []


def test_following_stops_at_until(tmp_path: Path) -> None:
    fill(tmp_path, "a\n")
    begun = time.monotonic()
    assert datas(read_logs(str(tmp_path), follow=True, until=time.time() + 0.2)) == [b"a\n"]
    assert time.monotonic() - begun > 0.1


def test_a_full_disk_costs_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = logs.LogWriter(str(tmp_path), 10**6, 3)
    writer.write("stdout", b"before\n")
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def nearly_full(fd: int, data: bytes) -> int:
        return real(fd, data[:10])

    for broken in (full, nearly_full):
        monkeypatch.setattr(os, "write", broken)
        writer.write("stdout", b"lost\n")
    monkeypatch.setattr(os, "write", real)
    writer.write("stdout", b"after\n")
    writer.close()
    assert writer.lost == 2
    assert datas(read_logs(str(tmp_path))) == [b"before\n", b"after\n"]


def test_a_full_disk_at_a_rotation_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a\n", "b\n", max_size=60)
    writer = logs.LogWriter(str(tmp_path), 60, 3)
    real = os.open

    def full(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", full)
    writer.write("stdout", b"lost\n")
    monkeypatch.setattr(os, "open", real)
    with open(os.devnull, "rb") as other:  # has the next free descriptor: it must not be taken for the log
        writer.write("stdout", b"c\n")
        writer.close()
        assert os.path.samestat(os.fstat(other.fileno()), os.stat(os.devnull))
    assert writer.lost == 1
    assert datas(read_logs(str(tmp_path))) == [b"a\n", b"b\n", b"c\n"]


def test_half_a_record_of_a_killed_monitor_spoils_no_other(tmp_path: Path) -> None:
    fill(tmp_path, "one\n")
    with open(tmp_path / "log", "ab") as file:
        file.write(logs.record(1, "stdout", b"never finished\n")[:-8])
    fill(tmp_path, "two\n")
    fill(tmp_path, "three\n")
    assert datas(read_logs(str(tmp_path))) == [b"one\n", b"two\n", b"three\n"]


def test_a_slow_reader_misses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the last line of a file, which was written after it looked, while those behind it get other names."""
    writer = logs.LogWriter(str(tmp_path), 120, 10)  # two records

    def write(*numbers: int) -> None:
        for number in numbers:
            writer.write("stdout", b"%d\n" % number)

    write(0)
    lines = read_logs(str(tmp_path), follow=True, alive=lambda: False)
    got = [next(lines).data]
    beforehand(monkeypatch, "listdir", os, lambda: write(1, 2))
    got.append(next(lines).data)
    write(3, 4)
    writer.close()
    assert got + datas(lines) == [b"%d\n" % number for number in range(5)]


def test_a_rotation_before_the_oldest_file_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = logs.LogWriter(str(tmp_path), 60, 10)
    writer.write("stdout", b"0\n")
    beforehand(monkeypatch, "open", builtins, lambda: writer.write("stdout", b"1\n"))
    assert datas(read_logs(str(tmp_path))) == [b"0\n", b"1\n"]
    writer.close()


@pytest.mark.parametrize("looks", range(1, 5))
def test_a_rotation_in_the_middle_of_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """The names are looked up one by one; the reader's own file must not seem to be gone, or it would begin afresh."""
    writer = logs.LogWriter(str(tmp_path), 60, 10)
    for number in range(3):
        writer.write("stdout", b"%d\n" % number)
    monkeypatch.setattr(os, "listdir", lambda path: ["log.1", "log.2", "log.3", "log"])
    lines = read_logs(str(tmp_path), follow=True, alive=lambda: False)
    got = [next(lines).data for _ in range(3)]
    beforehand(monkeypatch, "stat", os, lambda: writer.write("stdout", b"3\n"), looks)
    assert got + datas(lines) == [b"%d\n" % number for number in range(4)]
    writer.close()


def beforehand(monkeypatch: pytest.MonkeyPatch, name: str, module: object, action: Callable[[], None], calls: int = 1) -> None:
    """Has ``action`` happen right before a function is called for the ``calls``-th time."""
    real = getattr(module, name)
    left = calls

    def called(*arguments: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if not left:
            action()
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, called)
