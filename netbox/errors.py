"""Every error that netbox raises on purpose.

    NetboxError                 125
    ├── UsageError              125   the request makes no sense, whatever the host looks like
    ├── NotFound                125   no such sandbox, image, network
    ├── Conflict                125   a name, port or address is taken
    ├── WrongState              125   the verb does not fit the sandbox's state (start of a running one, exec in a stopped one)
    ├── Unsupported             125   this host cannot do what was asked
    ├── NoPermission            125   root is needed
    ├── HostError               125   a system call failed
    │   └── FirewallError       125   the kernel refused a rule
    ├── StateError              125   the database cannot be used (newer version, full disk, damaged)
    ├── CleanupError            125   an undo failed; what failed stays in the journal
    ├── CommandNotExecutable    126
    └── CommandNotFound         127

A message is one line: what failed, on which object, why. ``hint`` says what would do. The exit codes are those of docker-run(1).
"""

from __future__ import annotations

import errno as _errno
import os


class NetboxError(Exception):
    """The root of the tree. ``message`` says what failed and why, ``hint`` what would do; neither ends in a full stop."""

    exit_code = 125

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(NetboxError):
    """The request makes no sense, whatever the host looks like."""


class NotFound(NetboxError):
    """No sandbox, image or network answers to the name."""


class Conflict(NetboxError):
    """A name, port or address is taken. The message names its holder."""


class WrongState(NetboxError):
    """The verb does not fit the state of the sandbox."""


class Unsupported(NetboxError):
    """This host's kernel or tools cannot do what was asked."""


class NoPermission(NetboxError):
    """The operation needs root."""


class HostError(NetboxError):
    """A system call failed; ``errno`` is its number."""

    def __init__(self, message: str, hint: str | None = None, errno: int = 0) -> None:
        super().__init__(message, hint)
        self.errno = errno


class FirewallError(HostError):
    """The kernel refused a change of the firewall."""


class StateError(NetboxError):
    """The state database cannot be used."""


class CleanupError(NetboxError):
    """Some undo steps failed. What failed stays in the journal for the next ``netbox gc``."""


class CommandNotExecutable(NetboxError):
    """The command exists and cannot be executed."""

    exit_code = 126


class CommandNotFound(NetboxError):
    """The command does not exist in the sandbox."""

    exit_code = 127


_HINTS = {
    _errno.EPERM: "run it as root (sudo)",
    _errno.EACCES: "run it as root (sudo)",
    _errno.ENOSPC: "free some space and try again",
    _errno.EROFS: "choose a directory that can be written to",
    _errno.ENOENT: "check the path",
    _errno.ENOTDIR: "check the path",
    _errno.ENOSYS: "this kernel lacks the call; 'netbox check' lists what is missing",
    _errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def hint_of(number: int) -> str | None:
    """What would do about a failed system call with this errno, where that can be said in general."""
    return _HINTS.get(number)


def host_error(operation: str, subject: str, error: OSError) -> HostError:
    """Turns an ``OSError`` into a one-line ``HostError``: operation, object, reason, what would do."""
    number = error.errno or 0
    reason = os.strerror(number) if number else str(error)
    return HostError(f"cannot {operation} {subject}: {reason}", _HINTS.get(number), number)
