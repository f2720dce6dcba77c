"""Version 2: delegation, the device program, and limits where the unified hierarchy has the controllers."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.errors import HostError, Unsupported
from netbox.kernel import devices_bpf
from netbox.kernel.cgroups import Cgroups, Limits, detect
from netbox.kernel.cgroups.hierarchies import parse_mountinfo, v2_hierarchy
from netbox.kernel.cgroups.v2 import V2
from tests.support import cgroup_implementations as implementations
from tests.support.host import PrivateHost

MIB = 1024 * 1024


@pytest.fixture
def root(private_host: PrivateHost) -> Iterator[Path]:
    """The unified hierarchy; what a test enables at its root is disabled again."""
    found = v2_hierarchy(parse_mountinfo(Path("/proc/self/mountinfo").read_text()), lambda path: Path(path).exists())
    assert found is not None
    with implementations.on_kernel("v2"):
        yield Path(found)


class TestHierarchy:
    """Collected where version 2 is mounted, with or without controllers."""

    __test__ = implementations.HAS_V2

    def test_controllers_reach_the_sandbox(self, root: Path, private_host: PrivateHost) -> None:
        there = (root / "cgroup.controllers").read_text().split()
        cgroups = V2(str(root), controllers=there)
        path = f"{private_host.cgroup}/deep/one"
        cgroups.create(path)
        assert set((root / path / "cgroup.controllers").read_text().split()) >= set(there) - {"cpu"}
        assert (root / path / "cgroup.subtree_control").read_text().split() == []
        cgroups.remove(path)

    def test_there_is_one_device_program_at_a_time(self, root: Path, private_host: PrivateHost) -> None:
        cgroups = V2(str(root))
        path = f"{private_host.cgroup}/one"
        cgroups.create(path)
        assert devices_bpf.attached(str(root / path)) == []
        cgroups.allow_devices(path, [("c", 1, 3, "rwm")])
        first = devices_bpf.attached(str(root / path))
        cgroups.allow_devices(path, [("c", 1, 5, "rwm")])
        second = devices_bpf.attached(str(root / path))
        assert (len(first), len(second)) == (1, 1)
        assert first != second
        cgroups.remove(path)

    def test_the_device_program_of_a_cgroup_that_is_gone(self, root: Path, private_host: PrivateHost) -> None:
        with pytest.raises(HostError) as caught:
            V2(str(root)).allow_devices(f"{private_host.cgroup}/none", [])
        assert caught.value.errno == errno.ENOENT

    def test_a_directory_that_is_no_cgroup_takes_no_program(self, tmp_path: Path) -> None:
        with pytest.raises((HostError, Unsupported), match="device"):
            devices_bpf.attach(str(tmp_path), [])


class TestLimits:
    """Collected where version 2 has the controllers."""

    __test__ = implementations.HAS_V2_LIMITS

    @pytest.fixture
    def sandbox(self, root: Path, private_host: PrivateHost) -> Iterator[tuple[Cgroups, str]]:
        cgroups = V2(str(root))
        path = f"{private_host.cgroup}/limits"
        cgroups.create(path)
        yield cgroups, path
        cgroups.kill(path)
        cgroups.remove(path)

    def python(self, sandbox: tuple[Cgroups, str], code: str) -> subprocess.CompletedProcess[str]:
        argv = implementations.inside(*sandbox, sys.executable, "-I", "-S", "-c", code)
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    def test_it_is_what_this_host_is_detected_as(self, private_host: PrivateHost) -> None:
        assert detect().version == 2

    def test_memory_ends_in_an_oom_kill(self, sandbox: tuple[Cgroups, str]) -> None:
        cgroups, path = sandbox
        cgroups.apply(path, Limits(memory=16 * MIB, memory_swap=16 * MIB))
        assert self.python(sandbox, "b'x' * (64 << 20)").returncode == -9
        assert cgroups.oom_killed(path)

    def test_pids(self, sandbox: tuple[Cgroups, str]) -> None:
        sandbox[0].apply(sandbox[1], Limits(pids_limit=2))
        result = self.python(sandbox, "import os\nos.fork() or os._exit(0)\nos.fork() or os._exit(0)")
        assert "Resource temporarily unavailable" in result.stderr

    def test_cpuset(self, sandbox: tuple[Cgroups, str]) -> None:
        sandbox[0].apply(sandbox[1], Limits(cpuset_cpus="0"))
        assert self.python(sandbox, "import os; print(sorted(os.sched_getaffinity(0)))").stdout == "[0]\n"

    def test_cpus(self, sandbox: tuple[Cgroups, str]) -> None:
        cgroups, path = sandbox
        cgroups.apply(path, Limits(cpus=0.1))
        implementations.is_throttled_to_a_tenth(cgroups, path)
