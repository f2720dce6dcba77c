"""Seccomp filters: compile a profile once, keep the program, install it with one prctl (seccomp(2)).

``cached`` and ``install`` are on the path of a start and load nothing; only compiling needs ``seccomp_profile`` and with it libseccomp.
"""

from __future__ import annotations

import ctypes
import errno
import os
from _thread import get_native_id  # threading would cost milliseconds

from netbox.errors import UsageError, host_error
from netbox.kernel import syscalls

_PR_SET_SECCOMP = 22  # <linux/prctl.h>
_SECCOMP_MODE_FILTER = 2  # <linux/seccomp.h>
_INSTRUCTION_SIZE = 8  # struct sock_filter, <linux/filter.h>
_INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS
_INCOMING = ".incoming"
_PROFILE_HINT = "give a profile in the OCI JSON format, or 'unconfined'"
_FORMAT = "1"  # counted up when the same profile gives another program
_LIBRARY_DIRECTORIES = (f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib")


class _Program(ctypes.Structure):
    """struct sock_fprog, <linux/filter.h>."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def compile_profile(json_text: str, capability_mask: int) -> bytes:
    """The BPF program of an OCI or Docker profile for a process with these capabilities, on this machine's architecture and kernel.

    Raises UsageError for a profile that makes no sense, Unsupported when libseccomp is missing. Takes some 20 ms and as much for the
    import.
    """
    from netbox.kernel import seccomp_profile

    return seccomp_profile.compile_profile(json_text, capability_mask)


def install(program: bytes) -> None:
    """Puts a compiled filter on the calling thread and all that it starts, for good.

    The caller has set no_new_privs or holds CAP_SYS_ADMIN in its user namespace (else OSError EACCES); without no_new_privs that means
    before the capabilities are given up, so the filter must let setuid, setgid, setgroups, capset, prctl and execve pass.
    """
    count, rest = divmod(len(program), _INSTRUCTION_SIZE)
    if rest or not 0 < count <= _INSTRUCTIONS_MAX:
        raise OSError(errno.EINVAL, f"not a seccomp program: {len(program)} bytes")
    header = _Program(count, program)
    syscalls.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))


def check(profile_path: str, capability_mask: int) -> None:
    """Whether the profile can be read and makes sense here. Does not need libseccomp, and writes nothing.

    Raises UsageError.
    """
    from netbox.kernel import seccomp_profile

    with _about(profile_path):
        seccomp_profile.select(_decoded(_content(profile_path)), seccomp_profile.this_host(capability_mask))


def cached(profile_path: str, capability_mask: int, cache_dir: str) -> str:
    """The path of the compiled program of a profile, compiled and kept in ``cache_dir`` when it is not there yet.

    The name of the file is a hash of everything that decides about the program: text, capabilities, architecture, kernel version (for
    ``minKernel``), libseccomp and this code. Several processes may compile the same at once: the last rename wins, with equal content.
    Raises UsageError when the profile cannot be read, HostError when the cache cannot be written, and what ``compile_profile`` raises.
    """
    text = _content(profile_path)
    path = f"{cache_dir}/{_key(text, capability_mask)}.bpf"
    try:
        if os.stat(path).st_size > 0:
            return path
    except OSError:  # not there, or not to be looked at: writing it will tell
        pass
    with _about(profile_path):
        program = compile_profile(_decoded(text), capability_mask)
    _write(path, program)
    return path


def _content(profile_path: str) -> bytes:
    try:
        with open(profile_path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"cannot read the seccomp profile {profile_path}: {error.strerror}", "give a readable file") from None


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"not text: {error.reason} at byte {error.start}", _PROFILE_HINT) from None


class _about:
    """``with _about(path):`` names the profile in the UsageErrors from inside."""

    def __init__(self, profile_path: str) -> None:
        self._path = profile_path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UsageError):
            raise UsageError(f"seccomp profile {self._path}: {error.message}", error.hint or _PROFILE_HINT) from None


def _key(text: bytes, capability_mask: int) -> str:
    try:
        from _blake2 import blake2b  # what hashlib hands out, without its 3 ms for loading OpenSSL
    except ImportError:
        from hashlib import blake2b
    system = os.uname()
    parts = (_FORMAT, f"{capability_mask:x}", system.machine, ".".join(system.release.split(".")[:2]), _libseccomp_version())
    return blake2b("\0".join(parts).encode() + b"\0" + text, digest_size=16).hexdigest()


def _libseccomp_version() -> str:
    """The version as the library's file name tells it, because loading the library costs milliseconds."""
    for directory in _LIBRARY_DIRECTORIES:
        try:
            return os.readlink(f"{directory}/libseccomp.so.2")
        except OSError:
            continue
    return ""


def _write(path: str, program: bytes) -> None:
    directory = os.path.dirname(path)
    incoming = f"{path}.{get_native_id()}{_INCOMING}"  # of the thread: two of one process may write the same at once
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        _remove_abandoned(directory)
        try:
            with open(incoming, "wb") as file:
                file.write(program)
            os.rename(incoming, path)  # a reader sees a whole program or none
        except OSError:
            _remove(incoming)
            raise
    except OSError as error:
        raise host_error("write", path, error) from None


def _remove_abandoned(directory: str) -> None:
    """Removes what a process left that was killed while it wrote."""
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name.removesuffix(_INCOMING)
            if name != entry.name and not os.path.exists(f"/proc/{name.rpartition('.')[2]}"):
                _remove(entry.path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
