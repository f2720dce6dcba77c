"""The commands ``iptables-nft`` and ``iptables-legacy``, for a chain of another program, on whichever side it lives.

netbox's own rules do not come here: see ``netbox.kernel.iptables`` and ``netbox.kernel.nftables``. A command takes 2 to 4 ms.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import FirewallError, NoPermission, Unsupported

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

NFT, LEGACY = "nft", "legacy"
_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/local/sbin")
_TIMEOUT = 20.0  # seconds
_LOCK_TIME = 10  # seconds; -w of iptables(8)


class Side(NamedTuple):
    """Where a chain lives: the family ``ip`` or ``ip6``, and the ``kind`` of tables, ``nft`` or ``legacy``."""

    family: str
    kind: str

    @property
    def command(self) -> str:
        """The command that writes there."""
        return f"{'ip6tables' if self.family == 'ip6' else 'iptables'}-{self.kind}"


def rules(side: Side, chain: str) -> list[str] | None:
    """The rules of a chain of the table filter, as ``iptables -S`` prints them, less ``-A CHAIN``; ``None`` where there is no such chain.

    Raises:
        Unsupported: the command is missing.
        NoPermission: not root.
        FirewallError: the kernel refuses.
    """
    result = _run(side, "", ["-w", str(_LOCK_TIME), "-t", "filter", "-S", chain])
    if result.returncode:
        reason = result.stderr.strip()
        if "No chain" in reason or "does not exist" in reason or "incompatible" in reason:
            return None
        raise _refusal(side, reason)
    start = f"-A {chain} "
    return [line.removeprefix(start) for line in result.stdout.splitlines() if line.startswith(start)]


def change(side: Side, lines: Sequence[str]) -> None:
    """Carries out lines such as ``-I CHAIN 3 -j ACCEPT`` on the table filter, all or none; nothing else in it changes.

    Raises what ``rules`` raises.
    """
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    result = _run(side, "-restore", ["--noflush", "-w", str(_LOCK_TIME)], text)
    if result.returncode:
        raise _refusal(side, result.stderr.strip())


def words(rule: str) -> list[str]:
    """A rule without its quotation marks."""
    import shlex  # few hosts need it

    return shlex.split(rule)


def _run(side: Side, suffix: str, arguments: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    import subprocess  # few hosts need it

    name = side.command + suffix
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_DIRECTORIES))
    try:
        return subprocess.run(
            [name, *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            env={**os.environ, "PATH": path, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError as error:
        raise Unsupported(f"the command {name} is missing", "install it: apt install iptables") from error
    except subprocess.TimeoutExpired as error:
        raise FirewallError(f"{name} did not end within {_TIMEOUT:g} s", "find what it waits for: fuser /run/xtables.lock") from error


def _refusal(side: Side, reason: str) -> Exception:
    lines = [line for line in reason.splitlines() if line and not line.startswith("#")]
    if os.geteuid() != 0:
        return NoPermission(f"cannot use {side.command}: permission denied", "run it as root (sudo)")
    return FirewallError(f"{side.command} refuses: {lines[0] if lines else 'it gives no reason'}")
