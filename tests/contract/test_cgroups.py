"""One suite for both cgroup versions: against the kernel where it has them, version 2's limits also against a directory of plain files."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netbox.errors import HostError, Unsupported, UsageError
from netbox.kernel.cgroups import ALLOW_ALL, DEFAULT_DEVICES, Cgroups, DeviceRule, Limits
from tests.support import cgroup_implementations as implementations
from tests.support.host import PrivateHost

MIB = 1024 * 1024
Wait = Callable[..., object]


@pytest.fixture(params=implementations.KERNEL)
def cgroups(request: pytest.FixtureRequest, private_host: PrivateHost) -> Iterator[Cgroups]:
    """Each implementation that the kernel of this host has."""
    with implementations.on_kernel(request.param) as found:
        yield found


@pytest.fixture(params=implementations.LIMITING)
def limiting(request: pytest.FixtureRequest, private_host: PrivateHost, tmp_path: Path) -> Iterator[tuple[Cgroups, str]]:
    """Each implementation that can set limits here, and the path of a cgroup that it has made."""
    path = f"{private_host.cgroup}/one"
    if request.param == "v2-files":
        yield implementations.on_files(tmp_path, path), path
        return
    with implementations.on_kernel(request.param) as found:
        found.create(path)
        yield found, path
        found.remove(path)


@pytest.fixture
def path(private_host: PrivateHost) -> str:
    return f"{private_host.cgroup}/one"


@contextlib.contextmanager
def running(cgroups: Cgroups, path: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the cgroup; killed at the end if it still runs."""
    process = subprocess.Popen(implementations.inside(cgroups, path, *command), start_new_session=True)
    try:
        implementations.await_join(cgroups, path, process.pid)
        yield process
    finally:
        cgroups.kill(path)
        process.wait(timeout=60)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_create_and_remove(cgroups: Cgroups, path: str) -> None:
    assert not cgroups.exists(path)
    cgroups.create(path)
    cgroups.create(path)
    assert cgroups.exists(path)
    assert cgroups.processes(path) == []
    cgroups.remove(path)
    assert not cgroups.exists(path)
    assert not cgroups.exists(os.path.dirname(path))
    cgroups.remove(path)


def test_the_empty_parent_stays_while_another_sandbox_is_in_it(cgroups: Cgroups, path: str) -> None:
    other = os.path.dirname(path) + "/other"
    cgroups.create(path)
    cgroups.create(other)
    cgroups.remove(path)
    assert cgroups.exists(other)
    cgroups.remove(other)
    assert not cgroups.exists(os.path.dirname(path))


def test_the_parent_can_be_kept_for_the_next_one(cgroups: Cgroups, path: str) -> None:
    parent = os.path.dirname(path)
    cgroups.create(path)
    cgroups.remove_empty(parent)
    assert cgroups.exists(path)
    cgroups.remove(path, parents=False)
    assert not cgroups.exists(path)
    assert cgroups.exists(parent)
    cgroups.remove_empty(parent)
    assert not cgroups.exists(parent)
    cgroups.remove_empty(parent)


def test_a_deep_parent_is_made_and_removed(cgroups: Cgroups, private_host: PrivateHost) -> None:
    path = f"{private_host.cgroup}/a/b/c"
    cgroups.create(path)
    assert cgroups.exists(path)
    cgroups.remove(path)
    assert not cgroups.exists(private_host.cgroup)


def test_a_process_joins(cgroups: Cgroups, path: str) -> None:
    cgroups.create(path)
    with running(cgroups, path, "sleep", "60") as process:
        assert cgroups.processes(path) == [process.pid]
        lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
        assert sum(line.endswith(f":/{path}") for line in lines) == len(cgroups.join(path))
    cgroups.remove(path)


def test_freeze_stops_everything_and_thaw_goes_on(cgroups: Cgroups, path: str, wait_until: Wait) -> None:
    cgroups.create(path)
    with running(cgroups, path, "sh", "-c", "while :; do :; done") as process:
        wait_until(lambda: cpu_ticks(process.pid) > 0, "a busy process")
        assert not cgroups.is_frozen(path)
        cgroups.freeze(path)
        assert cgroups.is_frozen(path)
        before = cpu_ticks(process.pid)
        time.sleep(0.1)
        assert cpu_ticks(process.pid) == before
        cgroups.freeze(path)
        cgroups.thaw(path)
        assert not cgroups.is_frozen(path)
        wait_until(lambda: cpu_ticks(process.pid) > before, "the process to run again")
    cgroups.remove(path)


def test_kill_leaves_nobody_of_those_who_keep_forking(cgroups: Cgroups, path: str, wait_until: Wait) -> None:
    cgroups.create(path)
    script = "forks() { for i in 1 2 3 4 5 6 7 8; do (while :; do (:); done) & done; wait; }; forks"
    with running(cgroups, path, "sh", "-c", script) as process:
        wait_until(lambda: len(cgroups.processes(path)) > 5, "eight forking processes")
        cgroups.kill(path)
        wait_until(lambda: not cgroups.processes(path), "the end of all")
        assert process.wait(timeout=60) == -signal.SIGKILL
    cgroups.remove(path)


def test_another_signal_reaches_everyone(cgroups: Cgroups, path: str, wait_until: Wait) -> None:
    cgroups.create(path)
    with running(cgroups, path, "sh", "-c", "sleep 60 & sleep 61 & wait") as process:
        wait_until(lambda: len(cgroups.processes(path)) == 3, "three processes")
        cgroups.kill(path, signal.SIGTERM)
        wait_until(lambda: not cgroups.processes(path), "the end of all")
        assert process.wait(timeout=60) == -signal.SIGTERM
    assert not cgroups.is_frozen(path)
    cgroups.remove(path)


def test_a_paused_sandbox_stays_paused_for_a_signal_and_dies_of_a_kill(cgroups: Cgroups, path: str, wait_until: Wait) -> None:
    cgroups.create(path)
    with running(cgroups, path, "sh", "-c", "trap 'exit 7' TERM; while :; do :; done") as process:
        wait_until(lambda: catches(process.pid, signal.SIGTERM), "a shell with its trap")
        cgroups.freeze(path)
        cgroups.kill(path, signal.SIGTERM)
        assert cgroups.is_frozen(path)
        assert process.poll() is None
        cgroups.kill(path, signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    cgroups.remove(path)


def test_remove_waits_for_the_dying_and_names_the_living(cgroups: Cgroups, path: str) -> None:
    cgroups.create(path)
    with running(cgroups, path, "sleep", "60") as process:
        with pytest.raises(HostError, match=str(process.pid)) as caught:
            cgroups.remove(path, timeout=0.05)
        assert caught.value.errno == errno.EBUSY
        assert caught.value.hint
        cgroups.kill(path)
        cgroups.remove(path)
    assert not cgroups.exists(path)


def test_cgroups_made_inside_are_killed_and_removed_too(cgroups: Cgroups, path: str) -> None:
    cgroups.create(path)
    cgroups.create(f"{path}/inner/most")
    with running(cgroups, f"{path}/inner/most", "sleep", "60") as process:
        assert cgroups.processes(path) == [process.pid]
        cgroups.freeze(path)
        cgroups.kill(path)
        assert process.wait(timeout=60) == -signal.SIGKILL
    cgroups.remove(path)
    assert not cgroups.exists(path)


def test_what_is_gone(cgroups: Cgroups, path: str) -> None:
    cgroups.kill(path)
    cgroups.kill(path, signal.SIGTERM)
    assert cgroups.processes(path) == []
    assert not cgroups.is_frozen(path)
    assert not cgroups.oom_killed(path)
    for act in (cgroups.measure, cgroups.freeze, cgroups.thaw):
        with pytest.raises(HostError) as caught:
            act(path)
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_another_clean_up_removes_while_it_is_killed(
    cgroups: Cgroups, path: str, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    cgroups.create(path)
    write = os.write

    def late(descriptor: int, data: bytes) -> int:
        cgroups.remove(path)
        return write(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", late)
        cgroups.kill(path, number)
    assert not cgroups.exists(path)


def test_processor_time_is_measured(cgroups: Cgroups, path: str, wait_until: Wait) -> None:
    cgroups.create(path)
    assert cgroups.measure(path).cpu_ns == 0
    with running(cgroups, path, "sh", "-c", "while :; do :; done"):
        wait_until(lambda: cgroups.measure(path).cpu_ns > 20_000_000, "20 ms of processor time")
        wait_until(lambda: cgroups.measure(path).cpu_user_ns > 0, "a tick that finds it in its own code")
        assert cgroups.measure(path).oom_kills == 0
    cgroups.remove(path)


def opens(cgroups: Cgroups, path: str, device: str) -> bool:
    code = "import os, sys\ntry:\n    os.open(sys.argv[1], os.O_RDONLY)\nexcept PermissionError:\n    sys.exit(9)"
    argv = implementations.inside(cgroups, path, sys.executable, "-I", "-S", "-c", code, device)
    result = subprocess.run(argv, timeout=20, check=False)
    assert result.returncode in (0, 9)
    return result.returncode == 0


def test_devices_outside_the_list_are_refused(cgroups: Cgroups, path: str) -> None:
    cgroups.create(path)
    assert opens(cgroups, path, "/dev/kmsg")
    cgroups.allow_devices(path, DEFAULT_DEVICES)
    assert not opens(cgroups, path, "/dev/kmsg")
    assert opens(cgroups, path, "/dev/null")
    cgroups.allow_devices(path, [DeviceRule("c", 1, 5, "r")])  # replaces the first list
    assert opens(cgroups, path, "/dev/zero")
    assert not opens(cgroups, path, "/dev/null")
    cgroups.allow_devices(path, ALLOW_ALL)
    assert opens(cgroups, path, "/dev/kmsg")
    cgroups.allow_devices(path, [])
    assert not opens(cgroups, path, "/dev/null")
    with pytest.raises(UsageError, match="x"):
        cgroups.allow_devices(path, [("c", 1, 3, "x")])
    cgroups.remove(path)


def test_many_come_and_go_below_one_parent(cgroups: Cgroups, private_host: PrivateHost) -> None:
    """The last one out removes the parent that the next one is about to use."""
    code = (
        "import sys; from tests.support.cgroup_implementations import named\n"
        "cgroups = named(sys.argv[1])\n"
        "for turn in range(60):\n"
        "    path = f'{sys.argv[2]}/{sys.argv[3]}-{turn}'; cgroups.create(path); cgroups.remove(path)"
    )
    argv = [sys.executable, "-c", code, f"v{cgroups.version}", private_host.cgroup]
    others = [subprocess.Popen([*argv, str(number)], stderr=subprocess.PIPE) for number in range(3)]
    for other in others:
        _, errors = other.communicate(timeout=110)
        assert (other.returncode, errors) == (0, b"")
    assert not cgroups.exists(private_host.cgroup)


def test_limits_are_set_and_told(limiting: tuple[Cgroups, str]) -> None:
    cgroups, path = limiting
    cgroups.apply(path, Limits())
    assert (cgroups.measure(path).memory_limit, cgroups.measure(path).pids_limit) == (None, None)
    limits = Limits(memory=64 * MIB, memory_swap=64 * MIB, cpus=0.5, cpu_shares=512, cpuset_cpus="0", pids_limit=20)
    cgroups.check(limits)
    cgroups.apply(path, limits)
    usage = cgroups.measure(path)
    assert (usage.memory_limit, usage.pids_limit) == (64 * MIB, 20)


@pytest.mark.parametrize("swap", [None, 0, -1, 1])
def test_memory_is_raised_and_lowered(limiting: tuple[Cgroups, str], swap: int | None) -> None:
    """The kernel keeps memory below memory plus swap, so the order of the two writes depends on the direction."""
    cgroups, path = limiting
    for size in (64, 512, 32, 33, 0, 16):
        total = size * MIB + 1024 * MIB if swap == 1 and size else None if swap == 1 else swap
        cgroups.apply(path, Limits(memory=size * MIB, memory_swap=total))
        assert cgroups.measure(path).memory_limit == (size * MIB or None)


def test_what_was_not_named_stays(limiting: tuple[Cgroups, str]) -> None:
    cgroups, path = limiting
    cgroups.apply(path, Limits(memory=64 * MIB, pids_limit=20))
    cgroups.apply(path, Limits(pids_limit=-1))
    assert (cgroups.measure(path).memory_limit, cgroups.measure(path).pids_limit) == (64 * MIB, None)


def test_the_described_commands_do_the_same(limiting: tuple[Cgroups, str]) -> None:
    cgroups, path = limiting
    limits = Limits(memory=64 * MIB, cpus=0.5, cpu_shares=512, cpuset_cpus="0", pids_limit=20)
    for command in cgroups.describe(path, limits):
        subprocess.run(["sh", "-e", "-c", command], check=True, timeout=20)
    usage = cgroups.measure(path)
    assert (usage.memory_limit, usage.pids_limit) == (64 * MIB, 20)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory=1),
        Limits(memory_swap=64 * MIB),
        Limits(cpus=4096),
        Limits(cpu_shares=1),
        Limits(pids_limit=-7),
        Limits(blkio_weight=5),
    ],
)
def test_check_refuses_what_makes_no_sense(limiting: tuple[Cgroups, str], limits: Limits) -> None:
    with pytest.raises(UsageError) as caught:
        limiting[0].check(limits)
    assert caught.value.hint


def test_check_refuses_processors_that_are_not_there(limiting: tuple[Cgroups, str]) -> None:
    with pytest.raises(Unsupported, match="processor 8000 is not there"):
        limiting[0].check(Limits(cpuset_cpus="0,8000"))
