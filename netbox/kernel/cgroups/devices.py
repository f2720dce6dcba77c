"""Which devices a sandbox may use: the default list, its text for cgroup v1, and the decision itself. Pure.

https://docs.kernel.org/admin-guide/cgroup-v1/devices.html; the list is that of Docker with runc.
"""

from __future__ import annotations

from netbox.errors import UsageError

from .model import DeviceRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ANY = -1
_NUMBER_MAX = 0xFFFFFFFF

ALLOW_ALL = (DeviceRule("a", ANY, ANY, "rwm"),)

DEFAULT_DEVICES = (
    # Any node may be made: opening it is what the rules below decide.
    DeviceRule("c", ANY, ANY, "m"),
    DeviceRule("b", ANY, ANY, "m"),
    DeviceRule("c", 1, 3),  # /dev/null
    DeviceRule("c", 1, 5),  # /dev/zero
    DeviceRule("c", 1, 7),  # /dev/full
    DeviceRule("c", 1, 8),  # /dev/random
    DeviceRule("c", 1, 9),  # /dev/urandom
    DeviceRule("c", 5, 0),  # /dev/tty
    DeviceRule("c", 5, 1),  # /dev/console
    DeviceRule("c", 5, 2),  # /dev/ptmx
    DeviceRule("c", 136, ANY),  # /dev/pts/*
    DeviceRule("c", 10, 200),  # /dev/net/tun
)


def checked(rules: Iterable[Sequence[str | int]]) -> tuple[DeviceRule, ...]:
    """The rules, from any tuples of the same shape. Raises ``UsageError`` for one that means nothing."""
    good = []
    for kind, major, minor, access in rules:
        text = f"device rule '{kind} {_number(major)}:{_number(minor)} {access}'"
        if not isinstance(kind, str) or kind not in ("a", "b", "c"):
            raise UsageError(f"{text}: the kind is neither a, b nor c", "write it like 'c 1:3 rwm'")
        if not isinstance(access, str) or not access or set(access) - set("rwm"):
            raise UsageError(f"{text}: the access is not made of r, w and m", "write it like 'c 1:3 rwm'")
        if not isinstance(major, int) or not isinstance(minor, int) or not (ANY <= major <= _NUMBER_MAX and ANY <= minor <= _NUMBER_MAX):
            raise UsageError(f"{text}: a device number is out of range", "write it like 'c 1:3 rwm' or 'c 136:* rwm'")
        good.append(DeviceRule(kind, major, minor, access))
    return tuple(good)


def v1_line(rule: DeviceRule) -> str:
    """A rule as ``devices.allow`` takes it."""
    return f"{rule.kind} {_number(rule.major)}:{_number(rule.minor)} {''.join(letter for letter in 'rwm' if letter in rule.access)}"


def v1_lines(rules: Iterable[DeviceRule]) -> list[str]:
    """The rules as lines for ``devices.allow``, which takes any ``a`` line for "everything": narrower ones become two."""
    lines = []
    for rule in rules:
        if rule.kind != "a":
            lines.append(v1_line(rule))
        elif rule.major == ANY and rule.minor == ANY and set(rule.access) == set("rwm"):
            lines.append("a")
        else:
            lines += [v1_line(rule._replace(kind=kind)) for kind in "bc"]
    return lines


def allowed(rules: Iterable[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    """Whether one rule grants all of ``access`` (made of ``rwm``) to the device ``kind major:minor``."""
    return any(
        rule.kind in ("a", kind) and rule.major in (ANY, major) and rule.minor in (ANY, minor) and set(access) <= set(rule.access)
        for rule in rules
    )


def _number(value: str | int) -> str:
    return "*" if value == ANY else str(value)
