"""Rates, shares and delays in the words of tc(8), and the peers of an impairment. Pure."""

from __future__ import annotations

import ipaddress
import re

from netbox.errors import UsageError
from netbox.parse.quantities import parse_duration
from netbox.parse.text import plain_text, quote

RATE_MIN, RATE_MAX = 125, 125_000_000_000  # bytes a second: 1 kbit, 1 tbit
DELAY_MAX = 240_000_000_000  # ns; struct tc_netem_qopt counts 64 ns in 32 bits
DURATION_MIN = 0.1  # seconds
DIRECTIONS = ("in", "out", "both")
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})"
_PREFIXES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_RATE_HINT = "write bits a second such as 10mbit or 500kbit, or bytes such as 1mbps (tc(8))"
_SHARE_HINT = "write a percentage such as 1% or 0.5%"
_TIMES = {
    **dict.fromkeys(("s", "sec", "secs"), 1_000_000_000),
    **dict.fromkeys(("ms", "msec", "msecs"), 1_000_000),
    **dict.fromkeys(("us", "usec", "usecs", ""), 1000),
    **dict.fromkeys(("ns", "nsec", "nsecs"), 1),
}
_DELAY_HINT = "write a time such as 100ms or 1.5s (tc(8))"
_PEER_HINT = "write the name of a sandbox, an address such as 10.0.0.5 or a subnet such as 10.0.0.0/8"


def parse_rate(value: str | int, option: str = "rate") -> int:
    """Bytes a second, from ``10mbit``, ``500kbit``, ``1gbit``, ``1mbps`` (bytes), ``2mibit``; a bare number is bits a second.

    These are the units of tc(8), in any case: ``bit`` and ``bps`` (bytes), with k, m, g, t (powers of 1000) and ki, mi, gi, ti (powers of
    1024). An ``int`` is bits a second, too. Raises ``UsageError``.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else plain_text(value, option)
    match = re.fullmatch(rf"{_NUMBER}\s*(?:([kmgt]i?)?(bit|bps))?", text.strip().lower(), re.ASCII)
    if match is None:
        raise UsageError(f"{option} {quote(value)}: not a rate", _RATE_HINT)
    rate = float(match[1]) * _PREFIXES[match[2] or ""] / (1 if match[3] == "bps" else 8)
    if not RATE_MIN <= rate <= RATE_MAX:
        raise UsageError(f"{option} {quote(value)}: out of range, 1kbit to 1tbit is allowed", _RATE_HINT)
    return round(rate)


def format_rate(rate: int) -> str:
    """The shortest exact form that ``parse_rate`` reads back: ``10mbit``, ``1500kbit``."""
    bits = rate * 8
    for unit in ("t", "g", "m", "k"):
        if bits % _PREFIXES[unit] == 0:
            return f"{bits // _PREFIXES[unit]}{unit}bit"
    return f"{bits}bit"


def parse_share(value: str | float, option: str) -> float:
    """A percentage above 0 and up to 100, with or without ``%``. Raises ``UsageError``."""
    text = repr(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    match = re.fullmatch(rf"\s*{_NUMBER}\s*%?\s*", plain_text(text, option), re.ASCII)
    if match is None:
        raise UsageError(f"{option} {quote(value)}: not a percentage", _SHARE_HINT)
    share = float(match[1])
    if not 0.0000001 <= share <= 100:
        raise UsageError(f"{option} {quote(value)}: out of range, above 0% to 100% is allowed", _SHARE_HINT)
    return share


def format_share(share: float) -> str:
    """``0.5%``, ``10%``; ``parse_share`` reads it back."""
    return f"{share:.9f}".rstrip("0").rstrip(".") + "%"


def parse_delay(value: str | float, option: str) -> int:
    """Nanoseconds, from ``100ms``, ``1.5s``, ``250us``; bare text is microseconds as for tc(8), a Python number is seconds.

    Raises ``UsageError``; longer than four minutes is refused.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        delay = float(value) * 1e9
    else:
        match = re.fullmatch(rf"{_NUMBER}\s*([a-z]*)", plain_text(value, option).strip().lower(), re.ASCII)
        if match is None or match[2] not in _TIMES:
            raise UsageError(f"{option} {quote(value)}: not a time", _DELAY_HINT)
        delay = float(match[1]) * _TIMES[match[2]]
    if not 1 <= delay <= DELAY_MAX:
        raise UsageError(f"{option} {quote(value)}: out of range, 1ns to 4 minutes is allowed", _DELAY_HINT)
    return round(delay)


def format_delay(delay: int) -> str:
    """``100ms``, ``1s``, ``64ns``; ``parse_delay`` reads it back."""
    for unit in ("s", "ms", "us"):
        if delay % _TIMES[unit] == 0:
            return f"{delay // _TIMES[unit]}{unit}"
    return f"{delay}ns"


def parse_until(value: str | float) -> float:
    """How long an impairment lasts, in seconds: ``30s``, ``1m30s``. Raises ``UsageError``."""
    duration = parse_duration(value, "for")
    if duration < DURATION_MIN:
        raise UsageError(f"for {quote(value)}: too short, 100ms is the least", "write a duration such as 30s")
    return duration


def parse_direction(value: str) -> tuple[str, ...]:
    """``in``, ``out`` or ``both`` as the directions that are meant. Raises ``UsageError``."""
    if value not in DIRECTIONS:
        raise UsageError(f"direction {quote(value)}: not a direction", "write in, out or both")
    return ("in", "out") if value == "both" else (value,)


def parse_peer_address(value: str) -> str | None:
    """The canonical prefix of an address or subnet, or ``None`` when it is not an address (but the name of a sandbox perhaps).

    Raises ``UsageError`` for host bits behind the prefix, and the subnet of all addresses.
    """
    text = plain_text(value, "to")
    if ":" not in text and (re.fullmatch(r"[0-9.]+(/[0-9]*)?", text, re.ASCII) is None or "." not in text):
        return None
    kind = "IPv6" if ":" in text else "IPv4"
    try:
        network = ipaddress.IPv6Network(text) if ":" in text else ipaddress.IPv4Network(text)
    except ValueError as error:
        reason = "host bits are set behind its prefix" if "host bits" in str(error) else f"not an {kind} address or subnet"
        raise UsageError(f"to {quote(text)}: {reason}", _PEER_HINT) from None
    if network.prefixlen == 0:
        raise UsageError(f"to {quote(text)}: that is everybody", "leave --to out")
    return str(network)
