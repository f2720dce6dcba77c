"""Environment variables, files of them, and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from netbox.errors import UsageError
from netbox.parse.text import PairsLike, each, pairs, quote


def parse_environment(values: PairsLike | None, inherited: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Variables from ``K=V`` strings, pairs or a mapping; the last of a name wins.

    ``K`` alone takes its value from ``inherited`` and is left out where that has none, as docker does. Raises ``UsageError``.
    """
    result: dict[str, str] = {}
    for key, value in pairs(values, "environment"):
        if "=" in key:
            raise UsageError(f"environment variable {quote(key)}: '=' in the name", "take the '=' out of the name")
        if value is not None:
            result[key] = value
        elif key in inherited:
            result[key] = inherited[key]
    return tuple(result.items())


def parse_env_text(text: str, path: str) -> list[str]:
    """The entries of an env-file: one ``K=V`` or ``K`` a line, ``#`` starts a comment line, nothing is unquoted.

    Raises ``UsageError`` with the number of the line.
    """
    entries = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        entry = line.removesuffix("\r").lstrip()
        if not entry or entry.startswith("#"):
            continue
        name = entry.partition("=")[0]
        if not name:
            raise UsageError(f"env-file {quote(path)}, line {number}: no variable name before '='", "write NAME=value")
        if "\0" in entry or any(character.isspace() for character in name):
            raise UsageError(
                f"env-file {quote(path)}, line {number}: white space or NUL in the variable name {quote(name)}", "write NAME=value"
            )
        entries.append(entry)
    return entries


def read_env_files(paths: Iterable[str] | None) -> list[str]:
    """The entries of all files, in order. Raises ``UsageError`` when a file cannot be read or is not UTF-8."""
    entries: list[str] = []
    for path in each(paths):
        try:
            with open(path, encoding="utf-8", newline="") as file:
                text = file.read()
        except UnicodeDecodeError:
            raise UsageError(f"env-file {quote(path)}: not UTF-8 text", "save it as UTF-8") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"env-file {quote(path)}: cannot be read: {reason}", "check the path") from None
        entries += parse_env_text(text, path)
    return entries


def parse_labels(values: PairsLike | None, option: str = "label") -> tuple[tuple[str, str], ...]:
    """Labels from ``key=value`` strings, pairs or a mapping; a key alone has an empty value, the last of a key wins.

    Raises ``UsageError``.
    """
    return tuple({key: value or "" for key, value in pairs(values, option)}.items())
