"""Names, users, directories, filters, and the options that hold ``key=value``. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

from netbox import names
from netbox.errors import UsageError
from netbox.parse.quantities import parse_size
from netbox.parse.text import each, pairs, parse_boolean, parse_integer, plain_text, quote

_ID_MAX = (1 << 32) - 2  # 4294967295 means "no change" to setuid(2)


def parse_name(value: str, kind: str = "sandbox") -> str:
    """A name for a sandbox, image or network. Raises ``UsageError`` saying which rule it breaks."""
    text = plain_text(value, f"{kind} name")
    if names.valid_name(text):
        return text
    hint = "use letters, digits, '_', '.' and '-', the first a letter or digit"
    if len(text) > 64:
        raise UsageError(f"{kind} name {quote(text)}: {len(text)} characters, 64 are allowed", "choose a shorter name")
    wrong = re.search(r"[^a-zA-Z0-9_.-]", text)
    reason = "it is empty" if not text else f"{quote(wrong[0])} is not allowed in it" if wrong else f"it cannot start with {quote(text[0])}"
    raise UsageError(f"{kind} name {quote(text)}: {reason}", hint)


def parse_user(value: str, option: str = "user") -> str:
    """``uid[:gid]`` or ``name[:group]``; names are looked up inside the sandbox. Raises ``UsageError``."""
    hint = "write uid[:gid] or name[:group], such as 1000:1000"
    text = plain_text(value, option)
    parts = text.split(":")
    if len(parts) > 2:
        raise UsageError(f"{option} {quote(text)}: more than one colon", hint)
    for part in parts:
        if re.fullmatch(r"[0-9]+", part, re.ASCII):
            parse_integer(part, option, 0, _ID_MAX, hint)
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?", part, re.ASCII):
            raise UsageError(f"{option} {quote(text)}: {quote(part)} is neither a number nor a name", hint)
    return text


def parse_working_dir(value: str, option: str = "workdir") -> str:
    """A directory inside the sandbox, absolute. Raises ``UsageError``."""
    text = plain_text(value, option)
    if not text.startswith("/"):
        raise UsageError(f"{option} {quote(text)}: not an absolute path", "start it with /")
    return posixpath.normpath("/" + text.lstrip("/"))


def parse_capabilities(values: Iterable[str] | None, option: str) -> tuple[str, ...]:
    """Names of capabilities as ``NET_ADMIN`` or ``ALL``, in any case, with or without ``CAP_``. Raises ``UsageError`` for odd text."""
    result = []
    for value in each(values):
        name = plain_text(value, option).upper().removeprefix("CAP_")
        if not re.fullmatch(r"[A-Z][A-Z0-9_]{1,40}", name, re.ASCII):
            raise UsageError(f"{option} {quote(value)}: not the name of a capability", "write one such as NET_ADMIN, or ALL")
        result.append(name)
    return tuple(dict.fromkeys(result))


def parse_security_options(values: Iterable[str] | None) -> tuple[bool | None, str | None]:
    """``no-new-privileges[=bool]`` and ``seccomp=FILE|unconfined|default``: both values, ``None`` where not asked for.

    Raises ``UsageError``.
    """
    no_new_privileges: bool | None = None
    seccomp: str | None = None
    for value in each(values):
        text = plain_text(value, "security-opt")
        match = re.fullmatch(r"([a-z-]+)(?:[=:](.+))?", text, re.DOTALL)
        key, setting = (match[1], match[2]) if match else (text, None)
        if key == "no-new-privileges":
            no_new_privileges = True if setting is None else parse_boolean(setting, "security-opt no-new-privileges")
        elif key == "seccomp" and setting:
            seccomp = setting
        elif key in ("apparmor", "label", "systempaths", "credentialspec"):
            raise UsageError(f"security-opt {quote(text)}: {key} is not offered", "use no-new-privileges=… or seccomp=…")
        else:
            raise UsageError(f"security-opt {quote(text)}: unreadable", "write no-new-privileges[=true|false] or seccomp=FILE|unconfined")
    return no_new_privileges, seccomp


def parse_log_options(values: Iterable[str] | None) -> tuple[int | None, int | None]:
    """``max-size=10m`` and ``max-file=3``: bytes and a number of files, ``None`` where not asked for. Raises ``UsageError``."""
    size: int | None = None
    files: int | None = None
    for key, value in pairs(values, "log-opt"):
        if key == "max-size":
            size = parse_log_size(value or "")
        elif key == "max-file":
            files = parse_log_files(value or "")
        else:
            raise UsageError(f"log-opt {quote(key)}: no such option", "write max-size=10m or max-file=3")
    return size, files


def parse_log_size(value: str | int) -> int:
    """The size at which a log is rotated, 4 KiB at least. Raises ``UsageError``."""
    return parse_size(value, "log max-size", 4096)


def parse_log_files(value: str | int) -> int:
    """How many files of a log are kept, 1 to 1000. Raises ``UsageError``."""
    return parse_integer(value, "log max-file", 1, 1000)


def parse_storage_options(values: Iterable[str] | None) -> int | None:
    """``size=1g``: bytes for what the sandbox writes. Raises ``UsageError``."""
    size: int | None = None
    for key, value in pairs(values, "storage-opt"):
        if key != "size":
            raise UsageError(f"storage-opt {quote(key)}: no such option", "write size=1g")
        size = parse_size(value or "", "storage-opt size", 1 << 20)
    return size


def parse_filters(values: Iterable[str] | None, allowed: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``key=value`` filters of a listing; only the ``allowed`` keys. Raises ``UsageError``."""
    result = []
    for key, value in pairs(values, "filter"):
        if key not in allowed:
            raise UsageError(f"filter {quote(key)}: no such filter", "use one of " + ", ".join(allowed))
        if not value:
            raise UsageError(f"filter {quote(key)}: no value", f"write {key}=…")
        result.append((key, value))
    return tuple(result)


def check_command(values: Iterable[str]) -> tuple[str, ...]:
    """A command and its arguments as ``execve(2)`` takes them: text without NUL, the first not empty. Raises ``UsageError``."""
    if isinstance(values, str):
        raise UsageError(f"command {quote(values)}: one string, not a list of arguments", "split it, as in ['sh', '-c', '…']")
    command = tuple(plain_text(value, "argument of the command") for value in values)
    if command and not command[0]:
        raise UsageError("command '': empty", "leave it out for the image's default command")
    return command
