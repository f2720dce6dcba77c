"""Version 2 against a directory of plain files: exact contents, what a host lacks, delegation."""

from __future__ import annotations

from pathlib import Path

import pytest

from netbox.errors import Unsupported, UsageError
from netbox.kernel.cgroups import Limits, detect
from netbox.kernel.cgroups.v2 import V2
from tests.support.cgroup_implementations import on_files

MIB = 1024 * 1024
PATH = "netbox/one"


@pytest.fixture
def v2(tmp_path: Path) -> V2:
    return on_files(tmp_path, PATH)


def block_device(tmp_path: Path, scheduler: str) -> None:
    queue = tmp_path / "block" / "sda" / "queue"
    queue.mkdir(parents=True)
    (queue / "scheduler").write_text(scheduler)


def test_every_limit_lands_in_its_file(tmp_path: Path, v2: V2) -> None:
    limits = Limits(memory=64 * MIB, memory_swap=96 * MIB, cpus=1.5, cpu_shares=2, cpuset_cpus="0-1", pids_limit=20, blkio_weight=300)
    block_device(tmp_path, "none [bfq]")
    sandbox = tmp_path / PATH
    for directory in (sandbox.parent, sandbox):
        (directory / "io.bfq.weight").write_text("default 100")
    v2.check(limits._replace(cpus=0.5))
    v2.apply(PATH, limits)
    assert {name: (sandbox / name).read_text() for name in EXPECTED} == EXPECTED


EXPECTED = {
    "memory.max": str(64 * MIB),
    "memory.swap.max": str(32 * MIB),
    "cpu.max": "150000 100000",
    "cpu.weight": "1",
    "cpuset.cpus": "0-1",
    "pids.max": "20",
    "io.bfq.weight": "300",
}


def test_create_hands_the_controllers_down_but_not_into_the_sandbox(tmp_path: Path, v2: V2) -> None:
    v2.create(PATH)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +io +memory +pids"
    assert (tmp_path / "netbox" / "cgroup.subtree_control").read_text() == "+cpu +io +memory +pids"
    assert (tmp_path / PATH / "cgroup.subtree_control").read_text() == ""


def test_what_is_handed_down_already_is_not_written_again(tmp_path: Path, v2: V2) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("memory pids")
    v2.create(PATH)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +io"


def test_cpuset_is_handed_down_when_it_is_asked_for(tmp_path: Path, v2: V2) -> None:
    (tmp_path / PATH / "cpuset.cpus").unlink()
    with pytest.raises(Unsupported, match=r"--cpuset-cpus cannot be enforced: .*cpuset.cpus does not exist"):
        v2.apply(PATH, Limits(cpuset_cpus="0"))
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpuset"
    assert (tmp_path / "netbox" / "cgroup.subtree_control").read_text() == "+cpuset"


@pytest.mark.parametrize(
    ("limits", "controller"),
    [
        (Limits(memory=64 * MIB), "memory"),
        (Limits(cpus=0.5), "cpu"),
        (Limits(cpu_shares=5), "cpu"),
        (Limits(cpuset_cpus="0"), "cpuset"),
        (Limits(pids_limit=5), "pids"),
        (Limits(blkio_weight=50), "io"),
    ],
)
def test_a_controller_that_is_not_there_is_named(tmp_path: Path, v2: V2, limits: Limits, controller: str) -> None:
    others = {"cpuset", "cpu", "io", "memory", "pids"} - {controller}
    (tmp_path / "cgroup.controllers").write_text(" ".join(others))
    block_device(tmp_path, "[bfq]")
    with pytest.raises(Unsupported, match=rf"has no {controller} controller") as caught:
        v2.check(limits)
    assert caught.value.hint
    (tmp_path / "cgroup.controllers").write_text(f"{controller} hugetlb")
    (tmp_path / "netbox" / "io.bfq.weight").write_text("")
    v2.check(limits)


def test_a_delegated_cgroup_with_processes_in_it_cannot_hand_down(tmp_path: Path, v2: V2) -> None:
    (tmp_path / "cgroup.type").write_text("domain")
    with pytest.raises(Unsupported, match="processes in"):
        v2.check(Limits(memory=64 * MIB))
    (tmp_path / "cgroup.procs").write_text("")
    v2.check(Limits(memory=64 * MIB))
    (tmp_path / "cgroup.procs").write_text("1\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory")
    v2.check(Limits(memory=64 * MIB))


def test_swap_that_cannot_be_limited_matters_only_when_named(tmp_path: Path, v2: V2) -> None:
    for directory in (tmp_path / "netbox", tmp_path / PATH):
        (directory / "memory.swap.max").unlink()
    v2.check(Limits(memory=64 * MIB))
    v2.apply(PATH, Limits(memory=64 * MIB))
    for limits in (Limits(memory=64 * MIB, memory_swap=65 * MIB), Limits(memory=64 * MIB, memory_swap=64 * MIB)):
        with pytest.raises(Unsupported, match=r"memory\.swap\.max"):
            v2.check(limits)
        with pytest.raises(Unsupported, match=r"memory\.swap\.max"):
            v2.apply(PATH, limits)


def test_memory_in_use_cannot_be_taken_away(tmp_path: Path, v2: V2) -> None:
    sandbox = tmp_path / PATH
    (sandbox / "memory.current").write_text(str(40 * MIB))
    (sandbox / "memory.stat").write_text(f"anon {20 * MIB}\nactive_file {10 * MIB}\ninactive_file {10 * MIB}")
    with pytest.raises(UsageError, match=r"holds 20971520 bytes .*memory.max"):
        v2.apply(PATH, Limits(memory=19 * MIB))
    assert (sandbox / "memory.max").read_text() == "max"
    v2.apply(PATH, Limits(memory=21 * MIB))


def test_a_weight_needs_something_that_heeds_it(tmp_path: Path, v2: V2) -> None:
    block_device(tmp_path, "[none] bfq")
    with pytest.raises(Unsupported, match="no disk of this host"):
        v2.check(Limits(blkio_weight=300))
    (tmp_path / "io.cost.qos").write_text("8:0 enable=1 ctrl=auto rpct=0.00")
    v2.check(Limits(blkio_weight=300))
    v2.apply(PATH, Limits(blkio_weight=300))
    assert (tmp_path / PATH / "io.weight").read_text() == "2930"


def test_an_out_of_memory_kill_is_seen(tmp_path: Path, v2: V2) -> None:
    assert not v2.oom_killed(PATH)
    (tmp_path / PATH / "memory.events").write_text("oom 1\noom_kill 1\noom_group_kill 0")
    assert v2.oom_killed(PATH)


def test_the_commands_of_a_person(tmp_path: Path, v2: V2) -> None:
    enable = "echo '+cpu +io +memory +pids' >"
    assert v2.describe(PATH, Limits(memory=64 * MIB, cpus=0.5), [("c", 1, 3, "rwm")]) == [
        f"mkdir -p {tmp_path}/{PATH}",
        f"{enable} {tmp_path}/cgroup.subtree_control",
        f"{enable} {tmp_path}/netbox/cgroup.subtree_control",
        f"# attach a cgroup_device BPF program to {tmp_path}/{PATH} (bpftool cgroup show)",
        f"echo '50000 100000' > {tmp_path}/{PATH}/cpu.max",
        f"echo '{64 * MIB}' > {tmp_path}/{PATH}/memory.max",
        f"echo '{64 * MIB}' > {tmp_path}/{PATH}/memory.swap.max",
    ]


def test_detection_by_what_is_mounted(tmp_path: Path) -> None:
    for name in ("unified", "freezer", "cpu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    lines = {
        "unified": f"41 31 0:38 / {tmp_path}/unified rw - cgroup2 cgroup2 rw\n",
        "freezer": f"42 31 0:39 / {tmp_path}/freezer rw - cgroup cgroup rw,freezer\n",
        "cpu": f"43 31 0:40 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu\n",
    }
    table = tmp_path / "mountinfo"

    def detected(*names: str) -> int:
        table.write_text("".join(lines[name] for name in names))
        return detect(str(table)).version

    assert detected("unified") == 2
    assert detected("unified", "freezer") == 1
    assert detected("unified", "cpu") == 2
    assert detected("cpu") == 1
    with pytest.raises(Unsupported, match="no cgroup hierarchy"):
        detected()
