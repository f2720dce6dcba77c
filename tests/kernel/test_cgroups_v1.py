"""Version 1: the kernel enforces what was set."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.errors import Unsupported, UsageError
from netbox.kernel.cgroups import Cgroups, Limits, detect
from netbox.kernel.cgroups.hierarchies import parse_mountinfo, v1_hierarchies
from netbox.kernel.cgroups.v1 import V1
from tests.support import cgroup_implementations as implementations
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

MIB = 1024 * 1024


@pytest.fixture
def sandbox(private_host: PrivateHost) -> Iterator[tuple[Cgroups, str]]:
    cgroups = implementations.named("v1")
    path = f"{private_host.cgroup}/limits"
    cgroups.create(path)
    yield cgroups, path
    cgroups.kill(path)
    cgroups.remove(path)


def python(sandbox: tuple[Cgroups, str], code: str) -> subprocess.CompletedProcess[str]:
    argv = implementations.inside(*sandbox, sys.executable, "-I", "-S", "-c", code)
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def hierarchies() -> dict[str, str]:
    return v1_hierarchies(parse_mountinfo(Path("/proc/self/mountinfo").read_text()), os.path.exists)


class TestVersion1:
    """Collected where version 1 has the controllers."""

    __test__ = implementations.HAS_V1

    def test_it_is_what_this_host_is_detected_as(self, private_host: PrivateHost) -> None:
        assert detect().version == 1

    def test_memory_ends_in_an_oom_kill(self, sandbox: tuple[Cgroups, str]) -> None:
        cgroups, path = sandbox
        cgroups.apply(path, Limits(memory=16 * MIB, memory_swap=16 * MIB))
        assert not cgroups.oom_killed(path)
        assert python(sandbox, "b'x' * (64 << 20)").returncode == -9
        assert cgroups.oom_killed(path)
        assert cgroups.measure(path).oom_kills == 1

    def test_an_oom_kill_in_a_cgroup_made_inside_counts(self, sandbox: tuple[Cgroups, str]) -> None:
        cgroups, path = sandbox
        cgroups.apply(path, Limits(memory=16 * MIB, memory_swap=16 * MIB))
        cgroups.create(f"{path}/inner")
        assert python((cgroups, f"{path}/inner"), "b'x' * (64 << 20)").returncode == -9
        assert cgroups.oom_killed(path)

    def test_pids(self, sandbox: tuple[Cgroups, str]) -> None:
        sandbox[0].apply(sandbox[1], Limits(pids_limit=2))
        result = python(sandbox, "import os\nos.fork() or os._exit(0)\nos.fork() or os._exit(0)")
        assert "Resource temporarily unavailable" in result.stderr

    def test_cpuset(self, sandbox: tuple[Cgroups, str]) -> None:
        cgroups, path = sandbox
        code = "import os; print(sorted(os.sched_getaffinity(0)))"
        everything = python(sandbox, code).stdout
        cgroups.apply(path, Limits(cpuset_cpus="0"))
        assert python(sandbox, code).stdout == "[0]\n"
        cgroups.apply(path, Limits(cpuset_cpus=""))
        assert python(sandbox, code).stdout == everything

    def test_cpus(self, sandbox: tuple[Cgroups, str]) -> None:
        cgroups, path = sandbox
        cgroups.apply(path, Limits(cpus=0.1))
        implementations.is_throttled_to_a_tenth(cgroups, path)

    def test_memory_in_use_cannot_be_taken_away(self, sandbox: tuple[Cgroups, str]) -> None:
        cgroups, path = sandbox
        code = "import sys\nheld = b'x' * (32 << 20)\nprint('ready', flush=True)\nsys.stdin.read()"
        argv = implementations.inside(cgroups, path, sys.executable, "-I", "-S", "-c", code)
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert cgroups.measure(path).memory > 32 * MIB
            cgroups.apply(path, Limits(memory=64 * MIB, memory_swap=64 * MIB))
            with pytest.raises(UsageError, match=r"--memory: the kernel refused .*memory.limit_in_bytes") as caught:
                cgroups.apply(path, Limits(memory=8 * MIB, memory_swap=64 * MIB))
            assert "uses more" in (caught.value.hint or "")
            assert process.poll() is None
            process.communicate(timeout=60)
        assert cgroups.measure(path).memory_limit == 64 * MIB

    def test_a_value_that_the_kernel_refuses_names_the_file(self, sandbox: tuple[Cgroups, str]) -> None:
        with pytest.raises(UsageError, match=r"--pids-limit: .*/pids.max"):
            sandbox[0].apply(sandbox[1], Limits(pids_limit=1 << 40))

    def test_a_weight_needs_a_scheduler_that_heeds_it(self, private_host: PrivateHost, tmp_path: Path) -> None:
        queue = tmp_path / "sda" / "queue"
        queue.mkdir(parents=True)
        (queue / "scheduler").write_text("[none] mq-deadline bfq\n")
        cgroups = V1(hierarchies(), str(tmp_path))
        with pytest.raises(Unsupported, match="no disk of this host"):
            cgroups.check(Limits(blkio_weight=300))
        (queue / "scheduler").write_text("none mq-deadline [bfq]\n")
        cgroups.check(Limits(blkio_weight=300))

    def test_a_missing_controller_is_named(self, private_host: PrivateHost) -> None:
        there = hierarchies()
        cgroups = V1({name: path for name, path in there.items() if name not in ("pids", "freezer", "devices")})
        cgroups.check(Limits(memory=64 * MIB))
        with pytest.raises(Unsupported, match="--pids-limit cannot be enforced: no pids controller"):
            cgroups.check(Limits(pids_limit=5))
        with pytest.raises(Unsupported, match="--pids-limit"):
            cgroups.apply("x", Limits(pids_limit=5))
        with pytest.raises(Unsupported, match="freezer"):
            cgroups.freeze("x")
        with pytest.raises(Unsupported, match="devices"):
            cgroups.allow_devices("x", [])

    def test_kill_without_a_freezer(self, private_host: PrivateHost) -> None:
        cgroups = V1({name: path for name, path in hierarchies().items() if name == "pids"})
        path = f"{private_host.cgroup}/plain"
        cgroups.create(path)
        argv = implementations.inside(cgroups, path, "sh", "-c", "sleep 60 & sleep 61 & wait")
        with subprocess.Popen(argv) as process:
            implementations.await_join(cgroups, path, process.pid)
            cgroups.kill(path)
            assert process.wait(timeout=60) == -9
        cgroups.remove(path)

    def test_creating_is_cheap(self, private_host: PrivateHost) -> None:
        """A tenth of a millisecond a hierarchy, when nobody else has the processor or the kernel's lock: once is enough to show it."""
        cgroups = implementations.named("v1")
        path = f"{private_host.cgroup}/one"

        def cheap() -> bool:
            start = time.perf_counter()
            cgroups.create(path)
            took = time.perf_counter() - start
            cgroups.remove(path)
            return took < 0.02

        wait_until(cheap, "a cgroup that is made in 20 ms", timeout=60)
