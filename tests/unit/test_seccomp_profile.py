"""Seccomp profiles: what is selected, and what the compiled program answers, by running the program in an interpreter of classic BPF."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import pyseccomp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbox import policies
from netbox.errors import HostError, UsageError
from netbox.kernel import capabilities, seccomp, seccomp_profile
from netbox.kernel.capabilities import DEFAULT, mask_of
from netbox.kernel.seccomp_profile import Condition, Host, Rule, select

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
KILL_THREAD = 0
HOST = Host("x86_64", (6, 1), DEFAULT)
NATIVE = pyseccomp.system_arch()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = NATIVE) -> int:
    """What the program returns for a system call (struct seccomp_data), by the rules of bpf(4) in the part that seccomp allows."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *([0] * (6 - len(arguments))))
    code: list[tuple[int, int, int, int]] = [struct.unpack_from("=HBBI", program, offset) for offset in range(0, len(program), 8)]
    position, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        if operation == 0x20:  # load a word
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x54:  # and
            accumulator &= value
        elif operation == 0x05:  # jump always
            position += value
        elif operation in (0x15, 0x25, 0x35, 0x45):
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}
            position += if_true if holds[operation] else if_false
        elif operation == 0x06:
            return value
        else:
            raise AssertionError(f"operation {operation:#x}")


def number(name: str) -> int:
    found: int = pyseccomp.resolve_syscall(NATIVE, name)
    assert found >= 0, name
    return found


def profile(*entries: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **members: Any) -> str:
    return json.dumps({"defaultAction": default, "syscalls": list(entries), **members})


def allow(*names: str, **members: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **members}


def selected(*entries: dict[str, Any], host: Host = HOST) -> list[str]:
    return [rule.name for rule in select(profile(*entries), host).rules]


# -- selection -----------------------------------------------------------------------------------------------------------------------------


def test_capabilities_select_entries() -> None:
    entries = (
        allow("mount", includes={"caps": ["CAP_SYS_ADMIN"]}),
        allow("chroot", includes={"caps": ["CAP_SYS_CHROOT", "CAP_CHOWN"]}),
        allow("bpf", includes={"caps": ["CAP_BPF", "CAP_CHOWN"]}),
        allow("clone", excludes={"caps": ["CAP_SYS_ADMIN"]}),
        allow("acct", excludes={"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}),
        allow("read", includes={"caps": ["CAP_OF_A_LATER_KERNEL"]}),
    )
    assert selected(*entries) == ["chroot", "clone"]
    assert selected(*entries, host=HOST._replace(capability_mask=mask_of(["SYS_ADMIN"]))) == ["mount"]


def test_architecture_and_kernel_select_entries() -> None:
    entries = (
        allow("arch_prctl", includes={"arches": ["amd64", "x32"]}),
        allow("cacheflush", includes={"arches": ["arm64"]}),
        allow("clone", excludes={"arches": ["s390x"]}),
        allow("ptrace", includes={"minKernel": "4.8"}),
        allow("futex", includes={"minKernel": "6.2"}),
        allow("ioperm", excludes={"minKernel": "6.1"}),
    )
    assert selected(*entries) == ["arch_prctl", "clone", "ptrace"]
    assert selected(*entries, host=Host("aarch64", (4, 7), 0)) == ["cacheflush", "clone", "ioperm"]


def test_conditions_on_one_argument_are_alternatives_and_on_several_hold_together() -> None:
    equal = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    other = {"index": 1, "value": 7, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}
    assert select(profile(allow("socket", args=equal)), HOST).rules == (
        Rule("socket", ALLOW, (Condition(0, 4, 1),)),
        Rule("socket", ALLOW, (Condition(0, 4, 2),)),
    )
    assert select(profile(allow("socket", args=[equal[0], other])), HOST).rules == (
        Rule("socket", ALLOW, (Condition(0, 4, 1), Condition(1, 7, 7, 3))),
    )


def test_actions_and_their_errors() -> None:
    found = select(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrno": "ENOSYS",
                "syscalls": [
                    {"name": "read", "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                    {"names": ["write"], "action": "SCMP_ACT_ERRNO"},
                    {"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                    {"names": ["close"], "action": "SCMP_ACT_KILL_PROCESS"},
                ],
            }
        ),
        HOST,
    )
    assert found.default_action == ERRNO | errno.ENOSYS
    assert found.rules == (Rule("read", ERRNO | 13), Rule("write", ERRNO | 1), Rule("close", 0x80000000))  # open repeats the default


def test_architectures() -> None:
    mapped = [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}, {"architecture": "SCMP_ARCH_S390X"}]
    assert select(profile(archMap=mapped), HOST).architectures == ("X86",)
    assert select(profile(architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]), HOST).architectures == ("X32",)
    assert select(profile(), HOST).architectures == ()
    with pytest.raises(UsageError, match="not both"):
        select(profile(archMap=mapped, architectures=["SCMP_ARCH_X86"]), HOST)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "profile: a JSON object is expected"),
        ("{}", "defaultAction None is not supported"),
        (profile(default="SCMP_ACT_NOTIFY"), "SCMP_ACT_NOTIFY"),
        (profile(listenerPath="/run/x"), "listenerPath"),
        (profile(flags=["SECCOMP_FILTER_FLAG_LOG"]), "SECCOMP_FILTER_FLAG_LOG"),
        (profile(syscals=[]), "unknown member 'syscals'"),
        (profile(defaultErrnoRet=5000), "defaultErrnoRet must be a number from 0 to 4095"),
        (profile(defaultErrnoRet="1"), "defaultErrnoRet"),
        (profile(defaultErrno="EGAL"), "'EGAL' is not the name of an error"),
        (profile({"names": ["read"], "action": "ALLOW"}), "entry 1: action 'ALLOW'"),
        (profile(allow("read"), {"action": "SCMP_ACT_ALLOW"}), "entry 2: either names or name"),
        (profile({**allow("read"), "name": "write"}), "entry 1: either names or name"),
        (profile(allow("read\0")), "is not the name of a system call"),
        (profile(allow("re ad")), "is not the name of a system call"),
        (profile(allow("\udcff")), "is not the name of a system call"),
        (profile(allow("read", exclude={"caps": ["CAP_BPF"]})), "unknown member 'exclude'"),
        (profile(allow("read", includes={"cap": ["CAP_BPF"]})), "unknown member 'cap'"),
        (profile(allow("read", includes={"caps": "CAP_BPF"})), "caps must be a list"),
        (profile(allow("read", includes={"minKernel": "new"})), "not a kernel version"),
        (profile(allow("read", args=[{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}])), "index must be a number from 0 to 5"),
        (profile(allow("read", args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}])), "value must be a number"),
        (profile(allow("read", args=[{"index": 0, "value": True, "op": "SCMP_CMP_EQ"}])), "value must be a number"),
        (profile(allow("read", args=[{"index": 0, "value": 1, "op": "=="}])), "op '==' is not supported"),
        (profile(archMap=[{"arch": "x"}]), "unknown member 'arch'"),
    ],
)
def test_refused_profiles(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(text, HOST)
    assert message in caught.value.message
    assert "\n" not in str(caught.value)


_MEMBERS = "defaultAction defaultErrnoRet architectures archMap flags syscalls".split()
_ENTRY = "name names action errnoRet args includes excludes".split()


@given(st.dictionaries(st.sampled_from(_MEMBERS), JSON), st.dictionaries(st.sampled_from(_ENTRY), JSON | st.just("SCMP_ACT_ALLOW")))
def test_any_json_is_a_filter_or_a_usage_error(members: dict[str, Any], entry: dict[str, Any]) -> None:
    for text in (json.dumps(members), json.dumps({"defaultAction": "SCMP_ACT_ERRNO", **members, "syscalls": [entry]})):
        try:
            found = select(text, HOST)
        except UsageError:
            continue
        assert {rule.name for rule in found.rules} <= found.names


@pytest.mark.parametrize(("text", "expected"), [("4.8", (4, 8)), ("6.18.44-fc", (6, 18)), ("5.10-rc1", (5, 10)), ("10.0", (10, 0))])
def test_kernel_version(text: str, expected: tuple[int, int]) -> None:
    assert seccomp_profile.kernel_version(text) == expected


@pytest.mark.parametrize("text", ["", "5", ".8", "v5.4", "5.x", "-1.2", "\u00b2.1"])
def test_refused_kernel_versions(text: str) -> None:
    with pytest.raises(UsageError):
        seccomp_profile.kernel_version(text)


# -- compiled programs ---------------------------------------------------------------------------------------------------------------------

_COMPARE = {
    "SCMP_CMP_NE": lambda argument, value, two: argument != value,
    "SCMP_CMP_LT": lambda argument, value, two: argument < value,
    "SCMP_CMP_LE": lambda argument, value, two: argument <= value,
    "SCMP_CMP_EQ": lambda argument, value, two: argument == value,
    "SCMP_CMP_GE": lambda argument, value, two: argument >= value,
    "SCMP_CMP_GT": lambda argument, value, two: argument > value,
    "SCMP_CMP_MASKED_EQ": lambda argument, value, two: argument & value == two & value,  # libseccomp masks both sides
}
_EDGES = st.sampled_from([0, 1, 2, 0x7F, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1])
_CONDITION = st.fixed_dictionaries(
    {"index": st.integers(0, 2), "value": _EDGES, "valueTwo": _EDGES, "op": st.sampled_from(sorted(_COMPARE))}
)


@settings(deadline=None, max_examples=60)
@given(st.lists(_CONDITION, min_size=1, max_size=3), st.lists(st.tuples(_EDGES, _EDGES, _EDGES), min_size=1, max_size=8))
def test_a_compiled_condition_decides_as_it_says(conditions: list[dict[str, Any]], calls: list[tuple[int, int, int]]) -> None:
    program = seccomp.compile_profile(profile(allow("ioctl", args=conditions)), DEFAULT)
    together = len({condition["index"] for condition in conditions}) == len(conditions)
    for arguments in calls:
        holds = [_COMPARE[each["op"]](arguments[each["index"]], each["value"], each["valueTwo"]) for each in conditions]
        expected = ALLOW if (all(holds) if together else any(holds)) else ERRNO | errno.EPERM
        assert run(program, number("ioctl"), arguments) == expected


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    program = seccomp.compile_profile(profile(allow("read", "openat2")), DEFAULT)
    assert run(program, number("read")) == ALLOW
    assert run(program, number("getpid")) == ERRNO | errno.EPERM
    assert run(program, number("openat2")) == ALLOW
    assert run(program, number("openat2") + 1) == ERRNO | errno.ENOSYS
    assert run(program, 0x3FFFFFFF) == ERRNO | errno.ENOSYS


def test_a_permissive_profile_lets_new_calls_pass() -> None:
    program = seccomp.compile_profile(profile({"names": ["mount"], "action": "SCMP_ACT_ERRNO"}, default="SCMP_ACT_ALLOW"), DEFAULT)
    assert run(program, number("mount")) == ERRNO | errno.EPERM
    assert run(program, 5000) == ALLOW


def test_calls_that_libseccomp_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seccomp_profile._LATE_CALLS, "call_of_tomorrow", 900)
    monkeypatch.setitem(seccomp_profile._LATE_CALLS, "refused_tomorrow", 901)
    refused = {"names": ["refused_tomorrow"], "action": "SCMP_ACT_KILL"}
    program = seccomp.compile_profile(profile(allow("read", "call_of_tomorrow", "call_of_nowhere"), refused), DEFAULT)
    assert run(program, number("read")) == ALLOW
    assert run(program, 899) == ERRNO | errno.EPERM
    assert run(program, 900) == ALLOW
    assert run(program, 901) == KILL_THREAD
    assert run(program, 902) == ERRNO | errno.ENOSYS


def test_other_architectures_are_killed_unless_named() -> None:
    x86, x86_64, x32_bit = pyseccomp.Arch.X86, pyseccomp.Arch.X86_64, 0x40000000
    foreign = pyseccomp.Arch.AARCH64 if NATIVE != pyseccomp.Arch.AARCH64 else x86_64
    assert run(seccomp.compile_profile(profile(allow("read")), DEFAULT), 0, architecture=foreign) == KILL_THREAD
    both = seccomp.compile_profile(profile(allow("read"), architectures=["SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]), DEFAULT)
    assert run(both, 3, architecture=x86) == ALLOW  # read of i386
    assert run(both, 0, architecture=x86) == ERRNO | errno.EPERM
    assert run(both, 4000, architecture=x86) == ERRNO | errno.ENOSYS
    assert run(both, 0, architecture=x86_64) == ALLOW
    assert run(both, x32_bit, architecture=x86_64) == ALLOW
    assert run(both, x32_bit + 1, architecture=x86_64) == ERRNO | errno.EPERM


def test_unknown_architecture() -> None:
    with pytest.raises(UsageError, match="SCMP_ARCH_Z80"):
        seccomp.compile_profile(profile(architectures=["SCMP_ARCH_Z80"]), DEFAULT)


# -- the default profile -------------------------------------------------------------------------------------------------------------------


def default(*names: str) -> bytes:
    return seccomp.compile_profile(Path(policies.seccomp_default()).read_text(), DEFAULT | mask_of(names))


@pytest.fixture(scope="module")
def default_program() -> bytes:
    return default()


@pytest.mark.parametrize(
    "name", "read write openat clone execve futex mmap socketpair capset setuid prctl ptrace chroot mknodat io_submit".split()
)
def test_default_allows(default_program: bytes, name: str) -> None:
    assert run(default_program, number(name)) == ALLOW


@pytest.mark.parametrize(
    "name",
    (
        "mount umount2 pivot_root move_mount open_tree fsopen mount_setattr unshare setns add_key request_key keyctl bpf perf_event_open "
        "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct settimeofday clock_settime syslog "
        "quotactl sethostname open_by_handle_at userfaultfd io_uring_setup io_uring_enter io_uring_register process_madvise kcmp "
        "mbind vhangup nfsservctl"
    ).split(),
)
def test_default_refuses(default_program: bytes, name: str) -> None:
    call = pyseccomp.resolve_syscall(NATIVE, name)
    if call >= 0:  # a call that this architecture does not have cannot be made
        assert run(default_program, call) == ERRNO | errno.EPERM


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ("SYS_ADMIN", "mount umount2 unshare setns clone3 fsopen bpf perf_event_open sethostname"),
        ("SYS_MODULE", "init_module finit_module delete_module"),
        ("SYS_PTRACE", "kcmp process_madvise pidfd_getfd"),
        ("SYS_TIME", "settimeofday clock_settime"),
        ("SYS_NICE", "mbind set_mempolicy"),
        ("SYS_BOOT", "reboot"),
        ("SYS_PACCT", "acct"),
        ("SYSLOG", "syslog"),
        ("BPF", "bpf"),
        ("PERFMON", "perf_event_open"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
    ],
)
def test_default_follows_capabilities(default_program: bytes, capability: str, names: str) -> None:
    program = default(capability)
    for name in names.split():
        assert run(default_program, number(name)) != ALLOW
        assert run(program, number(name)) == ALLOW


def test_default_judges_arguments(default_program: bytes) -> None:
    clone, personality, sock = number("clone"), number("personality"), number("socket")
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert run(default_program, clone, (flag | 17,)) == ERRNO | errno.EPERM
        assert run(default("SYS_ADMIN"), clone, (flag | 17,)) == ALLOW
    assert run(default_program, clone, (0x003D0F00,)) == ALLOW  # a thread
    assert run(default_program, number("clone3")) == ERRNO | errno.ENOSYS
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert run(default_program, personality, (value,)) == ALLOW
    for value in (0x0040000, 0x0400000, 1):  # ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, PER_SVR4's number
        assert run(default_program, personality, (value,)) == ERRNO | errno.EPERM
    for family in (1, 2, 10, 16, 17, 37, 39, 41, 44):
        assert run(default_program, sock, (family,)) == ALLOW
    for family in (38, 40):  # AF_ALG, AF_VSOCK
        assert run(default_program, sock, (family,)) == ERRNO | errno.EPERM


def test_default_on_old_kernels() -> None:
    text = Path(policies.seccomp_default()).read_text()
    names = {rule.name for rule in select(text, Host("x86_64", (4, 7), DEFAULT)).rules}
    assert "ptrace" not in names
    assert "read" in names


def test_default_names_each_call_once_under_the_same_conditions() -> None:
    document = json.loads(Path(policies.seccomp_default()).read_text())
    seen = [(name, json.dumps({**entry, "names": 0, "comment": 0})) for entry in document["syscalls"] for name in entry["names"]]
    assert len(seen) == len(set(seen))
    assert all(entry["names"] == sorted(entry["names"]) and entry["comment"] for entry in document["syscalls"])


# -- the cache -----------------------------------------------------------------------------------------------------------------------------


def test_cache_compiles_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = tmp_path / "profile.json", tmp_path / "cache" / "seccomp"
    source.write_text(profile(allow("read")))
    path = seccomp.cached(str(source), DEFAULT, str(cache))
    assert Path(path).read_bytes() == seccomp.compile_profile(source.read_text(), DEFAULT)
    monkeypatch.setattr(seccomp, "compile_profile", lambda *_: pytest.fail("compiled again"))
    assert seccomp.cached(str(source), DEFAULT, str(cache)) == path
    assert os.listdir(cache) == [os.path.basename(path)]


def test_cache_tells_texts_and_capabilities_apart(tmp_path: Path) -> None:
    source = tmp_path / "profile.json"
    source.write_text(profile(allow("mount", includes={"caps": ["CAP_SYS_ADMIN"]})))
    paths = {seccomp.cached(str(source), mask, str(tmp_path)) for mask in (DEFAULT, capabilities.ALL)}
    source.write_text(profile(allow("read")))
    paths.add(seccomp.cached(str(source), DEFAULT, str(tmp_path)))
    assert len(paths) == 3


def test_cache_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    source = tmp_path / "profile.json"
    source.write_text(profile(allow("read")))
    cache = tmp_path / "cache"
    cache.mkdir()
    dead, living = cache / "aa.bpf.4194304.incoming", cache / f"bb.bpf.{os.getppid()}.incoming"  # 4194304 is above every pid, proc(5)
    dead.touch()
    living.touch()
    path = seccomp.cached(str(source), DEFAULT, str(cache))
    assert sorted(os.listdir(cache)) == sorted([living.name, os.path.basename(path)])


def test_cache_says_which_profile_is_wrong(tmp_path: Path) -> None:
    source = tmp_path / "profile.json"
    with pytest.raises(UsageError, match=r"cannot read the seccomp profile .*profile\.json: No such file"):
        seccomp.cached(str(source), DEFAULT, str(tmp_path))
    source.write_text("{")
    with pytest.raises(UsageError, match=r"profile\.json: not JSON"):
        seccomp.cached(str(source), DEFAULT, str(tmp_path))
    source.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"profile\.json: not text"):
        seccomp.cached(str(source), DEFAULT, str(tmp_path))


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    source, blocked = tmp_path / "profile.json", tmp_path / "file"
    source.write_text(profile(allow("read")))
    blocked.touch()
    with pytest.raises(HostError, match=r"cannot write .*file/[0-9a-f]+\.bpf: "):
        seccomp.cached(str(source), DEFAULT, str(blocked))


@pytest.mark.parametrize("program", [b"", b"1234567", bytes(8 * 4097)])
def test_install_refuses_what_is_no_program(program: bytes) -> None:
    with pytest.raises(OSError, match="not a seccomp program"):
        seccomp.install(program)
