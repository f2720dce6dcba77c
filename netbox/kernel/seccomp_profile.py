"""Seccomp profiles in the JSON format of OCI and Docker: parse, select what applies here (pure), compile with libseccomp.

The meaning of every member is runc's and dockerd's, so that a profile written for them does the same here:

- ``includes``/``excludes`` select an entry by capabilities held (all, any), architecture and ``minKernel``;
- conditions on different arguments must all hold, several conditions on one argument are alternatives;
- a name that this architecture does not have is passed over;
- where the default refuses, a call newer than every name in the profile fails with ENOSYS instead: a C library then falls back to an older
  call, while EPERM would reach the program.

A member that is not known is an error: a misspelt ``excludes`` must not widen what is allowed. Also understood: ``errno`` and
``defaultErrno`` as names, which containers-common writes.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
from types import ModuleType
from typing import Any, NamedTuple

from netbox.errors import HostError, Unsupported, UsageError
from netbox.kernel import capabilities

# Actions, <linux/seccomp.h>.
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_DATA = (_ACTIONS["SCMP_ACT_ERRNO"], _ACTIONS["SCMP_ACT_TRACE"])  # the low 16 bits hold errnoRet
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_ARGUMENT_MAX = (1 << 64) - 1
_ERRNO_MAX = 4095  # MAX_ERRNO, <linux/err.h>

# uname(2)'s machine -> what OCI and Go call it.
_MACHINES = {
    "x86_64": ("X86_64", "amd64"),
    "aarch64": ("AARCH64", "arm64"),
    "i686": ("X86", "386"),
    "armv7l": ("ARM", "arm"),
    "riscv64": ("RISCV64", "riscv64"),
    "ppc64le": ("PPC64LE", "ppc64le"),
    "s390x": ("S390X", "s390x"),
}

# Calls that a libseccomp of a stable distribution may not know yet. From 403 on, every architecture numbers them alike.
_LATE_CALLS = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455, "futex_requeue": 456,
    "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461, "mseal": 462,
    "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468,
    "file_setattr": 469,
}  # fmt: skip


class Condition(NamedTuple):
    """``argument operator value``; for MASKED_EQ ``value`` is the mask and ``value_two`` what the masked argument must be."""

    argument: int
    operator: int
    value: int
    value_two: int = 0


class Rule(NamedTuple):
    """One call, what happens to it, and the conditions which must all hold."""

    name: str
    action: int
    conditions: tuple[Condition, ...] = ()


class Host(NamedTuple):
    """The facts that select entries: machine as uname(2) gives it, kernel (major, minor), capabilities held."""

    machine: str
    kernel: tuple[int, int]
    capability_mask: int


class Filter(NamedTuple):
    """What a profile means on one host. ``names`` are all calls that the profile names, whether or not they apply."""

    default_action: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]
    names: frozenset[str]


def this_host(capability_mask: int) -> Host:
    """The facts about the machine that this runs on."""
    system = os.uname()
    return Host(system.machine, kernel_version(system.release), capability_mask)


def kernel_version(text: str) -> tuple[int, int]:
    """``(4, 8)`` for ``4.8``, ``4.8.0-1-amd64`` and the like. Raises UsageError."""
    major, _, rest = text.partition(".")
    minor = ""
    for character in rest:
        if not character.isdigit():
            break
        minor += character
    if not major.isdecimal() or not minor.isdecimal():
        raise UsageError(f"not a kernel version: {text!r}", "write it as 4.8")
    return int(major), int(minor)


def select(json_text: str, host: Host) -> Filter:
    """Parses a profile and keeps what applies to ``host``. Pure. Raises UsageError naming the entry that makes no sense."""
    try:
        profile = json.loads(json_text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from None
    _members(profile, "profile", _PROFILE_MEMBERS)
    if profile.get("listenerPath") or profile.get("listenerMetadata"):
        raise UsageError("listenerPath is not supported", "use actions other than SCMP_ACT_NOTIFY")
    for flag in _strings(profile, "flags", "profile"):
        if flag not in _HARMLESS_FLAGS:
            raise UsageError(f"flag {flag} is not supported", f"leave it out; {' and '.join(_HARMLESS_FLAGS)} are accepted")
    default = _action(profile, "default", "profile")
    rules: list[Rule] = []
    names: set[str] = set()
    for number, entry in enumerate(_list(profile, "syscalls", "profile"), 1):
        where = f"syscalls entry {number}"
        _members(entry, where, _ENTRY_MEMBERS)
        called = _names(entry, where)
        names.update(called)
        action, alternatives, applies = _action(entry, "", where), _alternatives(entry, where), _applies(entry, where, host)
        if applies and action != default:  # libseccomp refuses a rule that repeats the default
            rules.extend(Rule(name, action, conditions) for name in called for conditions in alternatives)
    return Filter(default, _architectures(profile, host), tuple(rules), frozenset(names))


_PROFILE_MEMBERS = frozenset(
    "defaultAction defaultErrnoRet defaultErrno architectures archMap flags syscalls listenerPath listenerMetadata".split()
)
_ENTRY_MEMBERS = frozenset({"name", "names", "action", "errnoRet", "errno", "args", "includes", "excludes", "comment"})
_SELECTOR_MEMBERS = frozenset({"caps", "arches", "minKernel"})
_ARGUMENT_MEMBERS = frozenset({"index", "value", "valueTwo", "op"})
# A filter goes in before the process has threads, and from 5.16 on no filter turns speculation off: both are so anyway.
_HARMLESS_FLAGS = ("SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW")


def _members(value: Any, where: str, allowed: frozenset[str]) -> None:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: a JSON object is expected")
    unknown = sorted(set(value) - allowed)
    if unknown:
        raise UsageError(f"{where}: unknown member {unknown[0]!r}", f"known are {', '.join(sorted(allowed))}")


def _list(value: dict[str, Any], member: str, where: str) -> list[Any]:
    items = value.get(member)
    if items is None:
        return []
    if not isinstance(items, list):
        raise UsageError(f"{where}: {member} must be a list")
    return items


def _strings(value: dict[str, Any], member: str, where: str) -> list[str]:
    items = _list(value, member, where)
    for item in items:
        if not isinstance(item, str):
            raise UsageError(f"{where}: {member} must be a list of strings")
    return items


def _number(value: dict[str, Any], member: str, where: str, most: int) -> int:
    number = value.get(member, 0)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
        raise UsageError(f"{where}: {member} must be a number from 0 to {most}")
    return number


def _names(entry: dict[str, Any], where: str) -> list[str]:
    single = entry.get("name")
    if single and not isinstance(single, str):
        raise UsageError(f"{where}: name must be a string")
    names = [single] if single else _strings(entry, "names", where)
    if not names or (single and entry.get("names")):
        raise UsageError(f"{where}: either names or name is needed")
    for name in names:
        if not (name.isascii() and name.isidentifier()):
            raise UsageError(f"{where}: {name!r} is not the name of a system call")
    return names


def _action(value: dict[str, Any], prefix: str, where: str) -> int:
    """The action with its data: of an entry, or with ``prefix`` "default" of the profile."""
    members = ("defaultAction", "defaultErrnoRet", "defaultErrno") if prefix else ("action", "errnoRet", "errno")
    name = value.get(members[0])
    if not isinstance(name, str) or name not in _ACTIONS:
        raise UsageError(f"{where}: {members[0]} {name!r} is not supported", f"supported are {', '.join(_ACTIONS)}")
    action = _ACTIONS[name]
    if action not in _WITH_DATA:
        return action
    symbol = value.get(members[2])
    if symbol:
        number = getattr(errno, symbol, None) if isinstance(symbol, str) and symbol.startswith("E") else None
        if not isinstance(number, int):
            raise UsageError(f"{where}: {members[2]} {symbol!r} is not the name of an error", "write it like EPERM")
        return action | number
    return action | (_number(value, members[1], where, _ERRNO_MAX) if value.get(members[1]) is not None else errno.EPERM)


def _alternatives(entry: dict[str, Any], where: str) -> list[tuple[Condition, ...]]:
    """The sets of conditions of which one must hold, each whole."""
    conditions = []
    for argument in _list(entry, "args", where):
        _members(argument, f"{where}, args", _ARGUMENT_MEMBERS)
        operator = argument.get("op")
        if not isinstance(operator, str) or operator not in _OPERATORS:
            raise UsageError(f"{where}: op {operator!r} is not supported", f"supported are {', '.join(_OPERATORS)}")
        value, value_two = (_number(argument, member, where, _ARGUMENT_MAX) for member in ("value", "valueTwo"))
        conditions.append(Condition(_number(argument, "index", where, 5), _OPERATORS[operator], value, value_two))
    if len({condition.argument for condition in conditions}) < len(conditions):
        return [(condition,) for condition in conditions]
    return [tuple(conditions)]


def _applies(entry: dict[str, Any], where: str, host: Host) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    _members(includes, f"{where}, includes", _SELECTOR_MEMBERS)
    _members(excludes, f"{where}, excludes", _SELECTOR_MEMBERS)
    wanted = _held(includes, f"{where}, includes", host)
    unwanted = _held(excludes, f"{where}, excludes", host)
    architecture = _MACHINES.get(host.machine, ("", host.machine))[1]
    only, never = _strings(includes, "arches", where), _strings(excludes, "arches", where)
    return (
        all(wanted)
        and not any(unwanted)
        and (not only or architecture in only)
        and architecture not in never
        and (not includes.get("minKernel") or host.kernel >= _minimum(includes, where))
        and (not excludes.get("minKernel") or host.kernel < _minimum(excludes, where))
    )


def _held(selector: dict[str, Any], where: str, host: Host) -> list[bool]:
    """For each capability that the selector names, whether it is held. One that is newer than this program is not."""
    held = set(capabilities.names_of(host.capability_mask))
    return [name.upper().removeprefix("CAP_") in held for name in _strings(selector, "caps", where)]


def _minimum(selector: dict[str, Any], where: str) -> tuple[int, int]:
    text = selector["minKernel"]
    if not isinstance(text, str):
        raise UsageError(f"{where}: minKernel must be a string such as 4.8")
    return kernel_version(text)


def _architectures(profile: dict[str, Any], host: Host) -> tuple[str, ...]:
    """The architectures besides the native one whose calls the filter judges; all others are killed."""
    listed, mapped = _strings(profile, "architectures", "profile"), _list(profile, "archMap", "profile")
    if listed and mapped:
        raise UsageError("profile: give either architectures or archMap, not both")
    native = "SCMP_ARCH_" + _MACHINES.get(host.machine, (host.machine.upper(), ""))[0]
    found = list(listed)
    for entry in mapped:
        _members(entry, "archMap", frozenset({"architecture", "subArchitectures"}))
        subordinate = _strings(entry, "subArchitectures", "archMap")
        if entry.get("architecture") == native:
            found.extend(subordinate)
    return tuple(dict.fromkeys(name.removeprefix("SCMP_ARCH_") for name in found if name != native))


def compile_profile(json_text: str, capability_mask: int) -> bytes:
    """See ``seccomp.compile_profile``."""
    selected = select(json_text, this_host(capability_mask))
    library = _libseccomp()
    try:
        return _compile(selected, library)
    except OSError as error:
        raise HostError(f"libseccomp cannot compile the profile: {os.strerror(error.errno or 0)}", errno=error.errno or 0) from None


def _libseccomp() -> ModuleType:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is there, the library is not
        raise Unsupported(f"seccomp profiles need libseccomp: {error}", "apt install libseccomp2; pip install pyseccomp") from None
    module: ModuleType = pyseccomp
    return module


def _compile(selected: Filter, library: Any) -> bytes:
    native = library.system_arch()
    program = library.SyscallFilter(selected.default_action)
    program.set_attr(library.Attr.CTL_OPTIMIZE, 2)  # a binary search: the kernel tries every number of a call when a filter is installed
    judged = [native]
    for name in selected.architectures:
        number = getattr(library.Arch, name, None)
        if number is None:
            raise UsageError(f"profile: unknown architecture SCMP_ARCH_{name}")
        if not program.exist_arch(number):
            program.add_arch(number)
            judged.append(number)
    late: list[Rule] = []
    for rule in selected.rules:
        if library.resolve_syscall(native, rule.name) == _UNKNOWN_CALL:
            late.append(rule)
            continue
        program.add_rule(rule.action, rule.name, *(library.Arg(*condition) for condition in rule.conditions))
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        compiled = file.read()
    x32 = getattr(library.Arch, "X32", None)
    return b"".join(_preamble(selected, late, number, library) for number in judged if number != x32) + compiled


_UNKNOWN_CALL = -1  # __NR_SCMP_ERROR: no architecture has it; other negative numbers stand for a call that some architecture has


def _preamble(selected: Filter, late: list[Rule], architecture: int, library: Any) -> bytes:
    """Instructions before libseccomp's for one architecture: the calls that it does not know yet, then ENOSYS for those beyond the profile.

    Calls of x32 share the architecture of x86_64 and carry a bit: they are left to libseccomp's part.
    """
    answers = [(_LATE_CALLS[rule.name], rule.action) for rule in late if rule.name in _LATE_CALLS and not rule.conditions]
    body = [_load(0), (_JUMP_GREATER_EQUAL, 0, 0, _X32_BIT)]
    for number, action in answers:
        body += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, action)]
    if _refuses(selected.default_action):
        known = (library.resolve_syscall(architecture, name) for name in selected.names)
        newest = max([*known, *(_LATE_CALLS.get(name, -1) for name in selected.names)], default=-1)
        if newest > 0:
            body += [(_JUMP_GREATER, 0, 1, newest), (_RETURN, 0, 0, _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS)]
    if len(body) == 2:
        return b""
    body[1] = (_JUMP_GREATER_EQUAL, len(body) - 2, 0, _X32_BIT)
    instructions = [_load(4), (_JUMP_EQUAL, 0, len(body), architecture), *body]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


# Classic BPF, <linux/bpf_common.h>; the loads read struct seccomp_data: the call's number at 0, the architecture at 4.
_JUMP_EQUAL = 0x15
_JUMP_GREATER = 0x25
_JUMP_GREATER_EQUAL = 0x35
_RETURN = 0x06
_X32_BIT = 0x40000000


def _load(offset: int) -> tuple[int, int, int, int]:
    return (0x20, 0, 0, offset)


def _refuses(action: int) -> bool:
    """Whether a default action refuses calls with an error other than ENOSYS, or by a signal."""
    if action & 0xFFFF0000 in (_ACTIONS["SCMP_ACT_ALLOW"], _ACTIONS["SCMP_ACT_LOG"], _ACTIONS["SCMP_ACT_TRACE"]):
        return False
    return action != _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
