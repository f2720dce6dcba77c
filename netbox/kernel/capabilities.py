"""Capabilities: names to masks (pure), and the order in which a process gives them up (capabilities(7)).

A mask is an integer with bit n set for capability number n. A process that is about to become a sandbox's command calls, in this order::

    limit_bounding(mask)                while it still has CAP_SETPCAP: what no later exec can get back
    setgroups(…); setgid(…); setuid(…)  while it still has CAP_SETGID and CAP_SETUID
    apply(mask, uid)                    the rest: gives up only, so it needs no capability itself

The result is that of dockerd. Root gets ``mask`` as bounding, permitted and effective set. Any other user gets it as the bounding set
alone: a set-uid or file-capability program may still gain it, unless no_new_privs is set. The inheritable and ambient sets are empty for
both, because a non-empty inheritable set lets file capabilities of an image grant what was not asked for (CVE-2022-24769).
"""

from __future__ import annotations

from netbox.errors import Unsupported, UsageError
from netbox.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# In the order of their numbers, <linux/capability.h>.
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
    "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
ALL = (1 << len(NAMES)) - 1

_NUMBERS = {name: number for number, name in enumerate(NAMES)}

# <linux/prctl.h>
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_KERNEL_CAPABILITIES_MAX = 64  # the sets of capset(2) are 64 bits wide


def mask_of(names: Iterable[str]) -> int:
    """The mask of canonical names, those of ``NAMES``."""
    mask = 0
    for name in names:
        mask |= 1 << _NUMBERS[name]
    return mask


DEFAULT_NAMES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE",
    "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
DEFAULT = mask_of(DEFAULT_NAMES)
"""The fourteen that Docker grants."""


def canonical(name: str) -> str:
    """``NET_ADMIN`` for ``net_admin``, ``CAP_NET_ADMIN`` and the like; ``ALL`` stays. Raises UsageError for an unknown name."""
    upper = name.strip().upper()
    short = upper.removeprefix("CAP_")
    if upper == "ALL" or short in _NUMBERS:
        return short
    import difflib  # 4 ms that only a mistake costs

    close = difflib.get_close_matches(short, NAMES, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "capabilities(7) lists them, for example NET_ADMIN or SYS_PTRACE"
    raise UsageError(f"unknown capability {name!r}", hint)


def resolve(add: Iterable[str] = (), drop: Iterable[str] = (), privileged: bool = False) -> int:
    """The mask that ``--cap-add``, ``--cap-drop`` and ``--privileged`` ask for. Pure.

    As docker-run(1) has it: privileged is everything; ``--cap-add ALL`` is everything less what is dropped; ``--cap-drop ALL`` is only what
    is added; else the default set less what is dropped, plus what is added. Raises UsageError for an unknown name.
    """
    added = {canonical(name) for name in add}
    dropped = {canonical(name) for name in drop}
    if privileged:
        return ALL
    if "ALL" in added:
        return ALL & ~mask_of(dropped - {"ALL"})
    base = 0 if "ALL" in dropped else DEFAULT & ~mask_of(dropped)
    return base | mask_of(added)


def names_of(mask: int) -> list[str]:
    """The names in a mask, in the order of their numbers; a bit without a name is left out."""
    return [name for number, name in enumerate(NAMES) if mask >> number & 1]


def available() -> int:
    """This process's bounding set: the most that a sandbox started from here can get. Capabilities that the kernel lacks are not in it."""
    mask = 0
    for number in range(_KERNEL_CAPABILITIES_MAX):
        try:
            mask |= syscalls.prctl(_PR_CAPBSET_READ, number) << number
        except OSError:  # EINVAL: beyond the last one that this kernel knows
            break
    return mask


def check_grantable(add: Iterable[str]) -> None:
    """Raises Unsupported for a capability, asked for by name, that this process lacks itself. ``ALL`` means what there is."""
    missing = mask_of({canonical(name) for name in add} - {"ALL"}) & ~available()
    if missing:
        names = ", ".join(names_of(missing))
        raise Unsupported(
            f"cannot grant {names}: netbox itself runs without it", "leave it out of --cap-add, or start netbox with full root"
        )


def limit_bounding(mask: int) -> None:
    """Drops everything that is not in ``mask`` from the bounding set. The first of the two steps, before setuid.

    Also drops capabilities newer than ``NAMES``. Needs CAP_SETPCAP when there is something to drop: raises OSError(EPERM).
    """
    surplus = available() & ~mask
    for number in range(surplus.bit_length()):
        if surplus >> number & 1:
            syscalls.prctl(_PR_CAPBSET_DROP, number)


def apply(mask: int, uid: int) -> None:
    """Reduces this thread to ``mask`` for root, to nothing for another ``uid``. The second step, after setuid; gives up only.

    The permitted set is cut before exec, not left to it: under no_new_privs exec keeps what permitted holds, and until then ptrace and
    /proc checks look at it. Raises OSError.
    """
    if uid == 0:
        permitted = syscalls.capget()[1] & mask
    else:
        permitted = 0  # also where SECBIT_NO_SETUID_FIXUP or PR_SET_KEEPCAPS kept something across setuid
    syscalls.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.capset(permitted, permitted, 0)
