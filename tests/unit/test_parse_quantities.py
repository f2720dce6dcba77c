from __future__ import annotations

import signal
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse.quantities import (
    format_duration,
    format_signal,
    format_size,
    parse_cpus,
    parse_duration,
    parse_signal,
    parse_size,
    parse_time,
)


def one_line(error: UsageError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("1b", 1),
        ("64m", 64 << 20),
        ("64M", 64 << 20),
        ("64mb", 64 << 20),
        ("64MiB", 64 << 20),
        ("1.5g", 3 << 29),
        (" 2 k ", 2048),
        ("1t", 1 << 40),
        ("7p", 7 << 50),
        ("0.5k", 512),
        (4096, 4096),
        ((1 << 63) - 1, (1 << 63) - 1),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10x", "'x' is not a unit of size"),
        ("10 kilo", "'kilo' is not a unit of size"),
        ("-1", "cannot be negative"),
        ("-64m", "cannot be negative"),
        ("0", "too small, it must be at least 1 byte"),
        ("0.0001b", "too small"),
        ("", "not a size"),
        ("m", "not a size"),
        ("1..5m", "not a size"),
        ("1,5m", "not a size"),
        ("8192p", "too large"),
        ("99999999999999999999", "too large"),
        ("9" * 5000, "not a size"),
        ("1e3", "not a size"),
        ("nan", "not a size"),
        (-5, "too small"),
        (1 << 63, "too large"),
        (True, "not a whole number"),
        (1.5, "not a size"),
        ("٣m", "not a size"),
    ],
)
def test_bad_sizes(text: str | int, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "memory")
    assert reason in str(caught.value)
    assert str(caught.value).startswith("memory ")
    assert "\n" not in str(caught.value)


def test_least_size() -> None:
    with pytest.raises(UsageError, match="at least 6m"):
        parse_size("5m", "memory", 6 << 20)


@given(st.integers(1, (1 << 63) - 1))
def test_size_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.one_of(st.text(), st.text(alphabet="0123456789.kmgtpbi -", max_size=40)))
def test_random_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        assert 1 <= parse_size(text) < 1 << 63
    except UsageError as error:
        one_line(error)


@pytest.mark.parametrize(("text", "expected"), [("1", 1.0), ("0.5", 0.5), (".5", 0.5), ("1.", 1.0), (2, 2.0), (1.25, 1.25), ("0.01", 0.01)])
def test_cpus(text: str | float, expected: float) -> None:
    assert parse_cpus(text) == expected


@pytest.mark.parametrize("text", ["0", "0.001", "-1", "", ".", "one", "1e3", "inf", "nan", "9999", 1e300, float("nan"), True, "1,5"])
def test_bad_cpus(text: str | float) -> None:
    with pytest.raises(UsageError, match="^cpus "):
        parse_cpus(text)


@given(st.one_of(st.text(), st.floats(), st.integers()))
def test_random_cpus(value: str | float) -> None:
    try:
        assert 0.01 <= parse_cpus(value) <= 8192
    except UsageError as error:
        one_line(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("1h30m", 5400.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        ("10us", 1e-5),
        (3, 3.0),
        ("0", 0.0),
    ],
)
def test_durations(text: str | float, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "h", "1x", "-1s", "1h 30m", "1h30", "inf", "99999999999h", -1, float("nan"), True])
def test_bad_durations(text: str | float) -> None:
    with pytest.raises(UsageError, match="^duration "):
        parse_duration(text)


@given(st.integers(0, 86400 * 36500 - 1))
def test_duration_round_trip(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", NOW - 600),
        ("0s", NOW),
        ("1700000000", 1_700_000_000.0),
        ("1700000000.25", 1_700_000_000.25),
        (5, 5.0),
        ("2024-05-01T12:00:00Z", datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()),
        ("2024-05-01T12:00:00+02:00", datetime(2024, 5, 1, 10, tzinfo=UTC).timestamp()),
        ("2024-05-01T12:00:00", datetime(2024, 5, 1, 12).timestamp()),
        ("2024-05-01", datetime(2024, 5, 1).timestamp()),
    ],
)
def test_times(text: str | float, expected: float) -> None:
    assert parse_time(text, NOW) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "yesterday", "2024-13-01", "2024-05-01T25:00:00", "0000-00-00", "-1", "12:00", "1h30"])
def test_bad_times(text: str) -> None:
    with pytest.raises(UsageError, match="^since .*not a time; write a duration"):
        parse_time(text, NOW, "since")


@given(st.one_of(st.text(), st.text(alphabet="0123456789-:TZ+.hms", max_size=40), st.datetimes().map(str)))
def test_random_times_are_times_or_usage_errors(text: str) -> None:
    try:
        assert isinstance(parse_time(text, NOW), float)
    except UsageError as error:
        one_line(error)


@given(st.datetimes(min_value=datetime(1971, 1, 2), max_value=datetime(2900, 1, 1), timezones=st.just(UTC)))
def test_time_round_trip(moment: datetime) -> None:
    assert parse_time(moment.isoformat(), NOW) == moment.timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigterm", 15),
        ("15", 15),
        (9, 9),
        ("RTMIN", int(signal.SIGRTMIN)),
        ("RTMIN+3", int(signal.SIGRTMIN) + 3),
        ("SIGRTMAX-1", int(signal.SIGRTMAX) - 1),
        (signal.SIGHUP, 1),
    ],
)
def test_signals(text: str | int, expected: int) -> None:
    assert parse_signal(text) == expected


@pytest.mark.parametrize("text", ["", "0", 0, "65", -9, "-9", "NOPE", "SIG", "RTMIN-1", "RTMAX+1", "RTMIN+99", "SIG_BLOCK", "²"])
def test_bad_signals(text: str | int) -> None:
    with pytest.raises(UsageError, match="^signal "):
        parse_signal(text)


@given(st.integers(1, 64))
def test_signal_round_trip(number: int) -> None:
    assert parse_signal(format_signal(number)) == number


@given(st.text())
def test_random_signals(text: str) -> None:
    try:
        assert 1 <= parse_signal(text) <= 64
    except UsageError as error:
        one_line(error)
