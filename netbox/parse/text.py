"""What every parser needs: quoting for messages, whole numbers, lists that may come as one string. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from netbox.errors import UsageError

T = TypeVar("T")
PairsLike = Mapping[str, str] | Iterable[str | tuple[str, str]]

_QUOTED_LENGTH = 60
_DIGITS_MAX = 20


def quote(value: object) -> str:
    """The value as one printable line for a message, cut where it is long."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= _QUOTED_LENGTH else text[: _QUOTED_LENGTH - 1] + "…")


def parse_integer(value: str | int, option: str, minimum: int, maximum: int, hint: str | None = None) -> int:
    """A whole number in decimal digits between two bounds. Raises ``UsageError`` naming ``option``."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UsageError(f"{option} {quote(value)}: not a whole number", hint)
    if isinstance(value, str):
        digits = value.strip()
        unsigned = digits[1:] if digits[:1] == "-" else digits
        if not (unsigned.isascii() and unsigned.isdigit()):
            raise UsageError(f"{option} {quote(value)}: not a whole number", hint)
        if len(unsigned) > _DIGITS_MAX:
            raise UsageError(f"{option} {quote(value)}: out of range, {minimum} to {maximum} is allowed", hint)
        value = int(digits)
    if not minimum <= value <= maximum:
        raise UsageError(f"{option} {quote(value)}: out of range, {minimum} to {maximum} is allowed", hint)
    return value


def parse_boolean(value: str | bool, option: str) -> bool:
    """``true`` or ``1``, ``false`` or ``0``. Raises ``UsageError``."""
    if isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "false": False, "0": False}
    try:
        return known[value.lower()]
    except (KeyError, AttributeError):
        raise UsageError(f"{option} {quote(value)}: neither true nor false", "write true or false") from None


def plain_text(value: object, option: str) -> str:
    """The value if it is a string that a system call can take: no NUL inside. Raises ``UsageError``."""
    if not isinstance(value, str):
        raise UsageError(f"{option} {quote(value)}: not a string")
    if "\0" in value:
        raise UsageError(f"{option} {quote(value)}: holds a NUL character, which no system call can take")
    return value


def each(values: Iterable[T] | None) -> list[T]:
    """The values as a list; a single string, number or named tuple stands for a list of one, ``None`` for an empty one.

    A string is an iterable of strings too, and nobody means its letters.
    """
    if values is None:
        return []
    if isinstance(values, (str, int)) or hasattr(values, "_fields"):
        return cast(list[T], [values])
    return list(values)


def pairs(values: PairsLike | None, option: str) -> list[tuple[str, str | None]]:
    """Mappings, ``key=value`` strings and pairs as one list of pairs. The value is ``None`` for a string without ``=``.

    Raises ``UsageError`` for an empty key or for anything that is not text.
    """
    items: Iterable[str | tuple[str, str]] | None = list(values.items()) if isinstance(values, Mapping) else values
    result: list[tuple[str, str | None]] = []
    for item in each(items):
        key: str
        value: str | None
        if isinstance(item, tuple) and len(item) == 2:
            key, value = plain_text(item[0], option), plain_text(item[1], option)
        else:
            key, separator, rest = plain_text(item, option).partition("=")
            value = rest if separator else None
        if not key:
            raise UsageError(f"{option} {quote(item)}: the part before '=' is empty", "write name=value")
        result.append((key, value))
    return result
