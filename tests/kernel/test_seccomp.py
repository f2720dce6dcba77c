"""The default profile, and profiles with conditions, under the real kernel: child processes install the filter and make the calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netbox import policies
from netbox.kernel import capabilities, seccomp

ROOT = Path(__file__).resolve().parents[2]
EPERM, ENOSYS, EFAULT, EACCES = 1, 38, 14, 13

# Runs with the filter on; ``call`` gives 0 or the error number of a system call made by number or name.
PREAMBLE = """
import ctypes, errno, json, os, sys
sys.path[:0] = [{root!r}]
from netbox.kernel import seccomp, syscalls
libc = ctypes.CDLL(None, use_errno=True)
numbers = {numbers!r}
def call(what, *arguments):
    number = numbers[what] if isinstance(what, str) else what
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    return ctypes.get_errno() if result == -1 else 0
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
seccomp.install(open({program!r}, "rb").read())
"""
NAMES = (
    "mount umount2 unshare setns keyctl add_key request_key bpf io_uring_setup clone3 ptrace personality chroot pivot_root reboot "
    "init_module open_by_handle_at acct getpid openat2 statx socket kexec_load userfaultfd perf_event_open sethostname"
).split()


@pytest.fixture(scope="module")
def numbers() -> dict[str, int]:
    import pyseccomp

    return {name: pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) for name in NAMES}


class Filtered:
    """Runs Python code in a child process under a compiled profile."""

    def __init__(self, directory: Path, numbers: dict[str, int]) -> None:
        self._directory = directory
        self._numbers = numbers

    def start(self, code: str, profile: str = "", mask: int = capabilities.DEFAULT) -> subprocess.CompletedProcess[str]:
        path = profile or policies.seccomp_default()
        program = seccomp.cached(path, mask, str(self._directory))
        text = PREAMBLE.format(root=str(ROOT), numbers=self._numbers, program=program) + code
        return subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, timeout=20, check=False)

    def evaluate(self, expression: str, profile: str = "", mask: int = capabilities.DEFAULT) -> Any:
        result = self.start(f"print(json.dumps({expression}))", profile, mask)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
def filtered(tmp_path: Path, numbers: dict[str, int]) -> Filtered:
    return Filtered(tmp_path / "cache", numbers)


def test_ordinary_programs_run_under_the_default(filtered: Filtered) -> None:
    result = filtered.start("os.execvp('ls', ['ls', '/proc/self'])")
    assert result.returncode == 0, result.stderr
    assert "status" in result.stdout.split()


def test_threads_processes_and_pipes_work_under_the_default(filtered: Filtered) -> None:
    code = """
import subprocess, threading
found = []
thread = threading.Thread(target=lambda: found.append(subprocess.run(["sh", "-c", "echo one | cat"], capture_output=True).stdout))
thread.start(); thread.join()
print(found[0].decode().strip())
"""
    result = filtered.start(code)
    assert (result.returncode, result.stdout) == (0, "one\n"), result.stderr


def test_the_filter_is_on(filtered: Filtered) -> None:
    status = filtered.evaluate("open('/proc/self/status').read()")
    assert "Seccomp:\t2\n" in status
    assert "Seccomp_filters:\t1\n" in status


@pytest.mark.parametrize(
    "expression",
    [
        "call('mount', 0, 0, 0, 0, 0)",
        "call('umount2', 0, 0)",
        "call('pivot_root', 0, 0)",
        "call('unshare', 0x10000000)",
        "call('setns', -1, 0)",
        "call('keyctl', 0, 0, 0)",
        "call('add_key', 0, 0, 0, 0, 0)",
        "call('request_key', 0, 0, 0, 0)",
        "call('bpf', 0, 0, 0)",
        "call('io_uring_setup', 1, 0)",
        "call('userfaultfd', 0)",
        "call('perf_event_open', 0, 0, 0, 0, 0)",
        "call('init_module', 0, 0, 0)",
        "call('kexec_load', 0, 0, 0, 0)",
        "call('open_by_handle_at', -1, 0, 0)",
        "call('acct', 0)",
        "call('sethostname', 0, 0)",
        "call('personality', 0x0040000)",
        "call('socket', 40, 1, 0)",
        "call('socket', 38, 5, 0)",
    ],
)
def test_refused_by_the_default(filtered: Filtered, expression: str) -> None:
    assert filtered.evaluate(expression) == EPERM


def test_clone_into_a_user_namespace_is_refused_and_clone3_unknown(filtered: Filtered, numbers: dict[str, int]) -> None:
    assert filtered.evaluate("call('clone3', 0, 0)") == ENOSYS
    # The same calls, let through with CAP_SYS_ADMIN, fail for reasons of their own.
    mask = capabilities.resolve(add=["SYS_ADMIN"])
    assert filtered.evaluate("call('clone3', 0, 0)", mask=mask) not in (0, EPERM, ENOSYS)
    assert filtered.evaluate("call('mount', 0, 0, 0, 0, 0)", mask=mask) == EFAULT
    assert filtered.evaluate("call('unshare', 0x04000000)", mask=mask) == 0


def test_allowed_by_the_default(filtered: Filtered) -> None:
    assert filtered.evaluate("[call('getpid'), call('ptrace', 0, 0, 0, 0), call('personality', 0xffffffff), call('socket', 2, 1, 0)]") == [
        0,
        0,
        0,
        0,
    ]
    assert filtered.evaluate("[call('openat2', -1, 0, 0, 24), call('statx', -1, 0, 0, 0, 0)]") == [EFAULT, EFAULT]


def test_chroot_goes_with_its_capability(filtered: Filtered) -> None:
    assert filtered.evaluate("call('chroot', 0)") == EFAULT
    assert filtered.evaluate("call('chroot', 0)", mask=capabilities.resolve(drop=["SYS_CHROOT"])) == EPERM


def test_calls_newer_than_the_profile_look_unknown(filtered: Filtered) -> None:
    assert filtered.evaluate("[call(480), call(9999)]") == [ENOSYS, ENOSYS]


def test_conditions_and_errors_of_a_profile_of_ones_own(filtered: Filtered, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    conditions = [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 0xF, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]
    path.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": EACCES, "args": conditions},
                    {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "excludes": {"caps": ["CAP_SYS_CHROOT"]}},
                ],
            }
        )
    )
    stream_datagram_other_family = "[call('socket', 2, 1 | 0x80000, 0), call('socket', 2, 2, 0), call('socket', 1, 1, 0)]"
    assert filtered.evaluate(stream_datagram_other_family, str(path)) == [EACCES, 0, 0]
    assert filtered.evaluate("call('chroot', 0)", str(path)) == EFAULT
    assert filtered.evaluate("call('chroot', 0)", str(path), mask=0) == 95


def test_a_profile_that_kills(filtered: Filtered, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_KILL_PROCESS"}]}))
    assert filtered.start("call('acct', 0)", str(path)).returncode == -31  # SIGSYS


def test_installing_needs_no_new_privs_or_the_capability(tmp_path: Path) -> None:
    program = seccomp.cached(policies.seccomp_default(), capabilities.DEFAULT, str(tmp_path))
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}]
from netbox.kernel import capabilities, seccomp, syscalls
program = open({program!r}, "rb").read()
capabilities.apply(0, 0)
try:
    seccomp.install(program)
except OSError as error:
    print(error.errno)
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
seccomp.install(program)
print(open("/proc/self/status").read().partition("Seccomp:")[2].split()[0])
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout.split() == [str(EACCES), "2"]


def test_root_gives_up_its_privileges_under_the_filter(tmp_path: Path) -> None:
    """Without no_new_privs the filter goes in first: what follows it on the way to the command must pass."""
    program = seccomp.cached(policies.seccomp_default(), capabilities.DEFAULT, str(tmp_path))
    os.chmod(tmp_path, 0o755)
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}]
from netbox.kernel import capabilities, seccomp, syscalls
capabilities.limit_bounding(capabilities.DEFAULT)
seccomp.install(open({program!r}, "rb").read())
os.setgroups([1000]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
capabilities.apply(capabilities.DEFAULT, 1000)
syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
os.execv("/bin/sh", ["sh", "-c", "id -u; id -G"])
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout.split() == ["1000", "1000"]
