"""Limits and devices: resources, ulimits, sysctls, device nodes and rules. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

from netbox.errors import UsageError
from netbox.parse.mounts import parse_source, parse_target
from netbox.parse.quantities import parse_cpus, parse_size
from netbox.parse.text import PairsLike, each, pairs, parse_integer, plain_text, quote
from netbox.spec import Device, DeviceRule, Resources, Ulimit

MEMORY_MIN = 6 << 20
UNLIMITED = -1
# getrlimit(2)
ULIMITS = "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
_RLIMIT_MAX = (1 << 63) - 1
_DEVICE_NUMBER_MAX = (1 << 20) - 1
_CPU_MAX = 8191
_CPU_HINT = "write processors as 0-3 or 0,2"


def parse_resources(
    *,
    memory: str | int | None = None,
    memory_swap: str | int | None = None,
    cpus: str | float | None = None,
    cpu_shares: str | int | None = None,
    cpuset_cpus: str | None = None,
    pids_limit: str | int | None = None,
    blkio_weight: str | int | None = None,
    lift: bool = False,
) -> Resources:
    """Limits one by one; ``None`` stays ``None``. ``check_resources`` looks at them together. Raises ``UsageError``.

    ``memory_swap`` and ``pids_limit`` -1 are unlimited. With ``lift`` (for a change of limits) ``memory`` and ``cpus`` may be 0: no limit.
    """
    return Resources(
        memory=None if memory is None else 0 if lift and _is(memory, 0) else parse_size(memory, "memory", MEMORY_MIN),
        memory_swap=None if memory_swap is None else _memory_swap(memory_swap),
        cpus=None if cpus is None else 0.0 if lift and _is(cpus, 0) else parse_cpus(cpus),
        cpu_shares=None if cpu_shares is None else parse_integer(cpu_shares, "cpu-shares", 2, 262144, "1024 is the default"),
        cpuset_cpus=None if cpuset_cpus is None else parse_cpuset(cpuset_cpus),
        pids_limit=None if pids_limit is None else _pids_limit(pids_limit),
        blkio_weight=None if blkio_weight is None else parse_integer(blkio_weight, "blkio-weight", 10, 1000, "500 is the default"),
    )


def _is(value: str | float, number: int) -> bool:
    return not isinstance(value, bool) and value in (number, str(number))


def _memory_swap(value: str | int) -> int:
    return UNLIMITED if _is(value, UNLIMITED) else parse_size(value, "memory-swap", MEMORY_MIN)


def _pids_limit(value: str | int) -> int:
    if _is(value, UNLIMITED):
        return UNLIMITED
    return parse_integer(value, "pids-limit", 1, 1 << 22, "write a number of processes, or -1 for no limit")


def check_resources(resources: Resources) -> None:
    """Raises ``UsageError`` where limits contradict each other: swap without memory, memory plus swap below memory."""
    if resources.memory_swap is None:
        return
    if not resources.memory:
        raise UsageError("memory-swap needs memory: it counts memory plus swap", "give --memory too")
    if resources.memory_swap != UNLIMITED and resources.memory_swap < resources.memory:
        raise UsageError(
            f"memory-swap {resources.memory_swap} is below memory {resources.memory}: it counts memory plus swap",
            "make it at least as large as memory, or -1 for unlimited swap",
        )


def parse_cpuset(value: str, option: str = "cpuset-cpus") -> str:
    """A list of processors as ``0-3,6``; cpuset(7). Raises ``UsageError``."""
    text = plain_text(value, option)
    if not re.fullmatch(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*", text, re.ASCII):
        raise UsageError(f"{option} {quote(text)}: not a list of processors", _CPU_HINT)
    for part in text.split(","):
        first, _, last = part.partition("-")
        start = parse_integer(first, option, 0, _CPU_MAX, _CPU_HINT)
        if last and parse_integer(last, option, 0, _CPU_MAX, _CPU_HINT) < start:
            raise UsageError(f"{option} {quote(text)}: the range {part} runs backwards", f"write {int(last)}-{start}")
    return text


UlimitValue = int | tuple[int, int]


def parse_ulimits(values: Mapping[str, UlimitValue] | Iterable[str | Ulimit] | None) -> tuple[Ulimit, ...]:
    """Ulimits from ``name=soft[:hard]`` strings, a mapping or values; the last of a name wins. Raises ``UsageError``."""
    if isinstance(values, Mapping):
        limits = [_ulimit_of(name, value) for name, value in values.items()]
    else:
        limits = [parse_ulimit(value) for value in each(values)]
    return tuple({limit.name: limit for limit in limits}.values())


def _ulimit_of(name: str, value: UlimitValue) -> Ulimit:
    soft, hard = value if isinstance(value, tuple) else (value, value)
    return parse_ulimit(Ulimit(name, soft, hard))


def parse_ulimit(value: str | Ulimit) -> Ulimit:
    """``nofile=1024:2048``; -1 is unlimited, one number is both limits. Raises ``UsageError``."""
    hint = "write name=soft[:hard], such as nofile=1024:2048"
    if isinstance(value, Ulimit):
        name, soft_text, hard_text = value.name, str(value.soft), str(value.hard)
    else:
        match = re.fullmatch(r"([a-z]+)=(-?[0-9]+|unlimited)(?::(-?[0-9]+|unlimited))?", plain_text(value, "ulimit"), re.ASCII)
        if match is None:
            raise UsageError(f"ulimit {quote(value)}: unreadable", hint)
        name, soft_text, hard_text = match[1], match[2], match[3] or match[2]
    if name not in ULIMITS:
        raise UsageError(f"ulimit {quote(name)}: no such limit", "use one of " + ", ".join(ULIMITS))
    soft, hard = (
        UNLIMITED if part == "unlimited" else parse_integer(part, f"ulimit {name}", -1, _RLIMIT_MAX, hint)
        for part in (soft_text, hard_text)
    )
    if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        raise UsageError(f"ulimit {name}: the soft limit {soft_text} is above the hard limit {hard_text}"[:200], "raise the hard limit")
    return Ulimit(name, soft, hard)


def format_ulimit(limit: Ulimit) -> str:
    """The limit in the form that ``parse_ulimit`` reads back."""
    return f"{limit.name}={limit.soft}:{limit.hard}"


def parse_sysctls(values: PairsLike | None) -> tuple[tuple[str, str], ...]:
    """Kernel parameters from ``name=value``; slashes in the name become dots, the last of a name wins. Raises ``UsageError``."""
    result: dict[str, str] = {}
    for name, value in pairs(values, "sysctl"):
        if not re.fullmatch(r"[a-z][a-z0-9_]*([./][A-Za-z0-9_.-]*[A-Za-z0-9_-])+", name, re.ASCII) or re.search(r"[./]{2}", name):
            raise UsageError(f"sysctl {quote(name)}: not the name of a kernel parameter", "write one such as net.ipv4.ip_forward=1")
        if not value:
            raise UsageError(f"sysctl {quote(name)}: no value", "write name=value, such as net.ipv4.ip_forward=1")
        if "\n" in value:
            raise UsageError(f"sysctl {quote(name)}: a line break in the value", "write the value on one line")
        result[name if "." in name.partition("/")[0] else name.replace("/", ".")] = value
    return tuple(result.items())


def parse_device(value: str | Device) -> Device:
    """``/dev/source[:/dev/target][:rwm]``. Whether the node exists is seen when the sandbox starts. Raises ``UsageError``."""
    hint = "write /dev/SOURCE[:/dev/TARGET][:rwm]"
    if isinstance(value, Device):
        source, target, access = value
    else:
        parts = plain_text(value, "device").split(":")
        access = parts.pop() if len(parts) > 1 and "/" not in parts[-1] else "rwm"
        if not 1 <= len(parts) <= 2:
            raise UsageError(f"device {quote(value)}: unreadable", hint)
        source, target = parts[0], parts[-1]
    if not source.startswith("/"):
        raise UsageError(f"device {quote(value)}: the source is not an absolute path", hint)
    return Device(parse_source(source, "device"), parse_target(target, "device"), _access(access, "device", value))


def format_device(device: Device) -> str:
    """The device in the form that ``parse_device`` reads back."""
    return f"{device.source}:{device.target}:{device.access}"


def _access(text: str, option: str, value: object) -> str:
    if not text or set(text) - set("rwm") or len(set(text)) != len(text):
        raise UsageError(f"{option} {quote(value)}: the access {quote(text)} is not made of r, w and m", "write rwm, r or rw")
    return "".join(letter for letter in "rwm" if letter in text)


def parse_device_rule(value: str | DeviceRule) -> DeviceRule:
    """``c 1:3 rwm``: kind a, b or c, numbers or ``*``, access; cgroup v1's devices.allow. Raises ``UsageError``."""
    if isinstance(value, DeviceRule):
        value = format_device_rule(value)
    text = plain_text(value, "device-cgroup-rule")
    match = re.fullmatch(r"([abc]) ([0-9]{1,9}|\*):([0-9]{1,9}|\*) ([rwm]{1,3})", text, re.ASCII)
    if match is None:
        raise UsageError(
            f"device-cgroup-rule {quote(text)}: unreadable", "write kind, major:minor and access, such as 'c 1:3 rwm' or 'b 8:* r'"
        )
    numbers = [-1 if part == "*" else parse_integer(part, "device number", 0, _DEVICE_NUMBER_MAX) for part in (match[2], match[3])]
    return DeviceRule(match[1], numbers[0], numbers[1], _access(match[4], "device-cgroup-rule", text))


def format_device_rule(rule: DeviceRule) -> str:
    """The rule in the form that ``parse_device_rule`` reads back."""
    major, minor = ("*" if number == -1 else str(number) for number in (rule.major, rule.minor))
    return f"{rule.kind} {major}:{minor} {rule.access}"


def parse_rootfs(value: str) -> str:
    """The directory given to ``--rootfs``, made absolute. Raises ``UsageError`` for the machine's own root."""
    path = parse_source(value, "rootfs")
    if posixpath.normpath(path) == "/":
        raise UsageError("rootfs '/': the sandbox would write to this machine's own files", "use the image 'host', which copies on write")
    return path
