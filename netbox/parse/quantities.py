"""Sizes, numbers of processors, durations, points in time, signals. Pure; the current time is an argument."""

from __future__ import annotations

import re

from netbox.errors import UsageError
from netbox.parse.text import parse_integer, quote

SIZE_MAX = (1 << 63) - 1
_SIZE = r"([0-9]{1,20})(?:\.([0-9]{1,20}))?\s*(?:b|([kmgtp])(?:i?b)?)?"
_SIZE_HINT = "write a number and b, k, m, g or t, such as 64m"
_POWERS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_DURATION_PART = r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(ns|us|µs|ms|s|m|h|d)"
_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_HINT = "write seconds or units such as 90s, 10m or 1h30m"
_DURATION_MAX = 100 * 365 * 86400.0
_TIME_HINT = "write a duration such as 10m, a date such as 2024-05-01T12:00:00Z or seconds since 1970"
_SIGNAL_MAX = 64
_CPUS_MAX = 8192


def parse_size(value: str | int, option: str = "size", minimum: int = 1) -> int:
    """Bytes, from ``64m``, ``1.5g``, ``512KiB`` or a number; units are powers of 1024 as docker's.

    Raises ``UsageError`` for negative, zero (or below ``minimum``), too large (2^63 and up) and unreadable sizes.
    """
    if isinstance(value, int):
        return _check_size(parse_integer(value, option, -(1 << 200), 1 << 200, _SIZE_HINT), value, option, minimum)
    if not isinstance(value, str):
        raise UsageError(f"{option} {quote(value)}: not a size", _SIZE_HINT)
    text = value.strip().lower()
    if text.startswith("-"):
        raise UsageError(f"{option} {quote(value)}: a size cannot be negative", _SIZE_HINT)
    match = re.fullmatch(_SIZE, text, re.ASCII)
    if match is None:
        unit = re.fullmatch(r"[0-9]+(?:\.[0-9]+)?\s*(?!(?:[kmgtp]i?b?|b)$)([a-z]+)", text, re.ASCII)
        reason = f"{quote(unit[1])} is not a unit of size" if unit else "not a size"
        raise UsageError(f"{option} {quote(value)}: {reason}", _SIZE_HINT)
    whole, fraction, unit_letter = match[1], match[2] or "", match[3]
    power = _POWERS[unit_letter] if unit_letter else 0
    size = (int(whole) << power) + ((int(fraction) << power) // 10 ** len(fraction) if fraction else 0)
    return _check_size(size, value, option, minimum)


def _check_size(size: int, value: object, option: str, minimum: int) -> int:
    if size > SIZE_MAX:
        raise UsageError(f"{option} {quote(value)}: too large, it must be below 8 EiB", _SIZE_HINT)
    if size < minimum:
        least = "at least 1 byte" if minimum == 1 else f"at least {format_size(minimum)}"
        raise UsageError(f"{option} {quote(value)}: too small, it must be {least}", _SIZE_HINT)
    return size


def format_size(size: int) -> str:
    """The shortest exact form that ``parse_size`` reads back: ``64m``, ``1536k``, ``17``."""
    for unit in ("p", "t", "g", "m", "k"):
        if size and size % (1 << _POWERS[unit]) == 0:
            return f"{size >> _POWERS[unit]}{unit}"
    return str(size)


def parse_cpus(value: str | float, option: str = "cpus") -> float:
    """A number of processors, 0.01 to 8192, in steps of 0.00001 (a period of 100 ms counts microseconds). Raises ``UsageError``."""
    hint = "write a number of processors such as 1.5"
    text = repr(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if not isinstance(text, str) or re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]{0,18})?\s*|\s*\.[0-9]{1,18}\s*", text, re.ASCII) is None:
        raise UsageError(f"{option} {quote(value)}: not a number of processors", hint)
    cpus = float(text)
    if not 0.01 <= cpus <= _CPUS_MAX:
        raise UsageError(f"{option} {quote(value)}: out of range, 0.01 to {_CPUS_MAX} is allowed", hint)
    return round(cpus, 5)


def parse_duration(value: str | float, option: str = "duration") -> float:
    """Seconds, from a number or from units as in ``1h30m``, ``500ms``, ``2d``. Raises ``UsageError``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = _duration_text(value, option)
    else:
        raise UsageError(f"{option} {quote(value)}: not a duration", _DURATION_HINT)
    if not 0 <= seconds <= _DURATION_MAX:
        raise UsageError(f"{option} {quote(value)}: out of range, 0 seconds to 100 years is allowed", _DURATION_HINT)
    return seconds


def _duration_text(value: str, option: str) -> float:
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", text, re.ASCII):
        return float(text)
    if re.fullmatch(f"({_DURATION_PART})+", text) is None or not text[0].isascii():
        raise UsageError(f"{option} {quote(value)}: not a duration", _DURATION_HINT)
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in re.findall(_DURATION_PART, text))


def format_duration(seconds: int) -> str:
    """Whole seconds in the units that ``parse_duration`` reads back: ``1h30m``, ``45s``."""
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_time(value: str | float, now: float, option: str = "time") -> float:
    """Seconds since the epoch: a duration counts back from ``now``, a date is RFC 3339 (local time without a zone), a number is itself.

    These are the forms of ``docker logs --since``. Raises ``UsageError``.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = repr(float(value))
    elif isinstance(value, str):
        text = value.strip()
    else:
        raise UsageError(f"{option} {quote(value)}: not a time", _TIME_HINT)
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{0,12})?", text, re.ASCII):
        return float(text)
    if re.fullmatch(f"({_DURATION_PART})+", text) is not None and text[0].isascii():
        return now - parse_duration(text, option)
    if re.match(r"[0-9]{4}-[0-9]{2}", text, re.ASCII):
        from datetime import datetime

        try:
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    raise UsageError(f"{option} {quote(value)}: not a time", _TIME_HINT)


def parse_signal(value: str | int, option: str = "signal") -> int:
    """The number of a signal given as ``TERM``, ``SIGTERM``, ``RTMIN+3`` or ``15``; signal(7). Raises ``UsageError``."""
    hint = "write a name such as TERM or a number from 1 to 64"
    if isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("-").isdigit()):
        return parse_integer(value, option, 1, _SIGNAL_MAX, hint)
    import signal

    name = value.strip().upper().removeprefix("SIG") if isinstance(value, str) else ""
    offset = re.fullmatch(r"RT(MIN|MAX)([+-])([0-9]{1,2})", name, re.ASCII)
    if offset is not None:
        base = int(signal.SIGRTMIN if offset[1] == "MIN" else signal.SIGRTMAX)
        number = base + int(offset[2] + offset[3])
        if int(signal.SIGRTMIN) <= number <= int(signal.SIGRTMAX):
            return number
    found = signal.Signals.__members__.get(f"SIG{name}")
    if found is None:
        raise UsageError(f"{option} {quote(value)}: no such signal", hint)
    return int(found)


def format_signal(number: int) -> str:
    """The name of a signal without ``SIG``, or its number where it has no name; ``parse_signal`` reads both back."""
    import signal

    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)
