from __future__ import annotations

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.cli import output
from netbox.cli.events import line
from netbox.spec import PortSpec
from netbox.state.rows import Event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_on_a_terminal_and_never_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.style("x", "red", Terminal()) == "\x1b[31mx\x1b[0m"
    assert output.style("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.style("x", "red", Terminal()) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert output.style("x", "red", Terminal()) == "x"


def test_an_error_is_one_line_without_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    output.report("netbox run", "no image 'a\x1b[2J'\nor so; try again")
    assert capsys.readouterr().err == "netbox run: no image 'a\\x1b[2J' or so; try again\n"


def test_table() -> None:
    assert output.table(["ID", "SIZE"], [["a", "10"], ["bcd", ""]], right=["SIZE"]).split("\n") == ["ID    SIZE", "a       10", "bcd"]


@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=5))
def test_columns_of_a_table_are_aligned(rows: list[list[str]]) -> None:
    lines = output.table(["A", "B", "C"], rows).split("\n")
    assert len(lines) == len(rows) + 1
    start = lines[0].index("B")
    for text, row in zip(lines[1:], rows, strict=True):
        assert text[:start].rstrip().isprintable()
        if row[1].strip() and row[1].isprintable():
            assert text[start:].startswith(row[1].rstrip())


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (17, "17B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (1536, "1.5KiB"),
        (64 << 20, "64MiB"),
        (1 << 30, "1GiB"),
        (1023 << 10, "1023KiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert output.human_size(size) == text


@given(st.integers(0, 1 << 63))
def test_every_size_is_short(size: int) -> None:
    text = output.human_size(size)
    assert len(text) <= 7
    found = re.fullmatch(r"([0-9.]+)([KMGTPE]i)?B", text)
    assert found
    factor = 1 << 10 * ("KMGTPE".index(found[2][0]) + 1) if found[2] else 1
    assert float(found[1]) * factor == pytest.approx(size, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "less than a second"),
        (0.5, "less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "1 minute"),
        (3599, "59 minutes"),
        (3600, "1 hour"),
        (2 * 86400 - 1, "47 hours"),
        (2 * 86400, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert output.human_duration(seconds) == text


def test_timestamps() -> None:
    assert output.timestamp(0) == "1970-01-01T00:00:00.000000000Z"
    assert output.timestamp(1714564800.25) == "2024-05-01T12:00:00.250000000Z"
    assert output.timestamp(0.9999999999) == "1970-01-01T00:00:00.999999999Z"


def test_ranges_of_ports_are_shown_compactly() -> None:
    ports = [
        PortSpec(81, 8081),
        PortSpec(80, 8080),
        PortSpec(82, 8082),
        PortSpec(53, 53, 1, "udp"),
        PortSpec(90, 9000),
        PortSpec(83, 8083, 2),
    ]
    assert output.ports_text(ports) == "0.0.0.0:8080-8084->80-84/tcp, 0.0.0.0:9000->90/tcp, 0.0.0.0:53->53/udp"
    assert output.ports_text([PortSpec(80), PortSpec(81)]) == "80-81/tcp"
    assert output.ports_text([]) == ""


ports = st.builds(
    PortSpec,
    st.integers(1, 99),
    st.integers(0, 99),
    st.integers(1, 4),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["0.0.0.0", "127.0.0.1"]),
)


@given(st.lists(ports, max_size=8, unique_by=lambda port: (port.protocol, port.host_ip, port.port)))
def test_merging_changes_no_mapping(found: list[PortSpec]) -> None:
    def mappings(items: list[PortSpec]) -> list[tuple[object, ...]]:
        return sorted(
            (port.protocol, port.host_ip, port.port + index, port.host_port + index if port.host_port else 0)
            for item in items
            for port in item.by_family
            for index in range(port.length)
        )

    assert mappings(output.merged_ports(found)) == mappings(found)


def test_card() -> None:
    lines = output.card("web · 0123", [("state", "running"), ("", "x" * 30)]).split("\n")
    assert {len(text) for text in lines} == {len(lines[0])}
    assert lines[0].startswith("╭─ web · 0123 ─")
    assert lines[1].startswith("│ state   running ")
    assert output.card("a long title", []).count("\n") == 1


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [("NAME", lambda item: item), ("SIZE", lambda item: str(len(item)))]
    output.listing(["a", "bb"], columns, lambda item: {"name": item}, output_format="table")
    assert capsys.readouterr().out == "NAME   SIZE\na      1\nbb     2\n"
    output.listing(["a"], columns, lambda item: {"name": item}, output_format="json")
    assert json.loads(capsys.readouterr().out) == [{"name": "a"}]
    output.listing(["a", "bb"], columns, lambda item: {"name": item}, output_format="table", quiet=lambda item: item * 2)
    assert capsys.readouterr().out == "aa\nbbbb\n"
    output.listing([], columns, lambda item: {}, output_format="json")
    assert capsys.readouterr().out == "[]\n"


def test_event_line() -> None:
    event = Event(1, 0.0, "die", "0123456789abcdef", "web", {"exit_code": 7})
    assert line(event) == "1970-01-01T00:00:00.000000000Z sandbox die 0123456789ab (name=web, exit_code=7)"
