"""From limits to the values of the kernel's files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.kernel.cgroups import Limits
from netbox.kernel.cgroups.values import (
    cpu_quota_us,
    cpu_weight,
    io_weight,
    memory_swap_total,
    parse_cpu_list,
    v1_writes,
    v2_writes,
    validate,
)

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(memory=-1), "6 MiB"),
        (Limits(memory=6 * MIB - 1), "6 MiB"),
        (Limits(memory=8 * MIB, memory_swap=-2), "less than nothing"),
        (Limits(memory_swap=8 * MIB), "without --memory"),
        (Limits(memory=0, memory_swap=8 * MIB), "without --memory"),
        (Limits(memory=8 * MIB, memory_swap=8 * MIB - 1), "less than --memory"),
        (Limits(cpus=0.009), "0.01 to 4"),
        (Limits(cpus=4.01), "0.01 to 4"),
        (Limits(cpus=-1), "out of range"),
        (Limits(cpus=float("nan")), "out of range"),
        (Limits(cpus=float("inf")), "out of range"),
        (Limits(cpu_shares=1), "2 to 262144"),
        (Limits(cpu_shares=262_145), "2 to 262144"),
        (Limits(cpu_shares=-5), "2 to 262144"),
        (Limits(blkio_weight=9), "10 to 1000"),
        (Limits(blkio_weight=1001), "10 to 1000"),
        (Limits(pids_limit=-2), "less than nothing"),
        (Limits(cpuset_cpus="0-"), "0-"),
        (Limits(cpuset_cpus="3-1"), "3-1"),
        (Limits(cpuset_cpus="a"), "'a'"),
        (Limits(cpuset_cpus="0,,1"), "''"),
        (Limits(cpuset_cpus="0-99999999999"), "no range"),
        (Limits(cpuset_cpus="²"), "'²'"),
    ],
)
def test_nonsense_is_refused(limits: Limits, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(limits, processors=4)
    assert says in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(0, 0, 0.0, 0, "", 0, 0),
        Limits(memory=6 * MIB, memory_swap=6 * MIB, cpus=0.01, cpu_shares=2, cpuset_cpus="0", pids_limit=-1, blkio_weight=10),
        Limits(memory=1 << 40, memory_swap=-1, cpus=4, cpu_shares=262_144, cpuset_cpus="0-2,5", pids_limit=1, blkio_weight=1000),
        Limits(memory_swap=-1),
    ],
)
def test_the_ends_of_every_range_pass(limits: Limits) -> None:
    validate(limits, processors=4)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_any_list_of_processors_reads_back(processors: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(processors)))) == processors


@given(st.integers(0, 4000), st.integers(0, 4000))
def test_a_range_of_processors_holds_both_ends(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert parse_cpu_list(f"{low}-{high}") == frozenset(range(low, high + 1))


@given(st.text(max_size=12))
def test_any_text_is_a_list_of_processors_or_a_usage_error(text: str) -> None:
    try:
        assert parse_cpu_list(text)
    except UsageError:
        pass


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (0, 1), (1024, 100), (262_144, 10_000), (512, 59), (2048, 174)])
def test_shares_become_weights_on_runcs_curve(shares: int, weight: int) -> None:
    assert cpu_weight(shares) == weight


@given(st.integers(2, 262_143))
def test_more_shares_never_weigh_less(shares: int) -> None:
    assert 1 <= cpu_weight(shares) <= cpu_weight(shares + 1) <= 10_000


@given(st.integers(10, 999))
def test_more_blkio_weight_weighs_more(weight: int) -> None:
    assert 1 <= io_weight(weight) < io_weight(weight + 1) <= 10_000


@given(st.floats(0.01, 64))
def test_a_quota_is_one_that_the_kernel_takes(cpus: float) -> None:
    assert cpu_quota_us(cpus) >= 1000  # min_cfs_quota_period in kernel/sched/core.c


@pytest.mark.parametrize(
    ("limits", "total"),
    [
        (Limits(), None),
        (Limits(memory=10 * MIB), 20 * MIB),
        (Limits(memory=10 * MIB, memory_swap=0), 20 * MIB),
        (Limits(memory=10 * MIB, memory_swap=10 * MIB), 10 * MIB),
        (Limits(memory=10 * MIB, memory_swap=-1), -1),
        (Limits(memory=0), -1),
        (Limits(memory_swap=-1), -1),
    ],
)
def test_memory_swap_is_dockers(limits: Limits, total: int | None) -> None:
    assert memory_swap_total(limits) == total


FULL = Limits(memory=64 * MIB, memory_swap=96 * MIB, cpus=1.5, cpu_shares=2048, cpuset_cpus="0-1", pids_limit=20, blkio_weight=300)


def test_the_v1_writes_of_all_limits() -> None:
    assert [(write.controller, write.file, write.value) for write in v1_writes(FULL)] == [
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "20"),
        ("cpu", "cpu.shares", "2048"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "150000"),
        ("memory", "memory.limit_in_bytes", str(64 * MIB)),
        ("memory", "memory.memsw.limit_in_bytes", str(96 * MIB)),
        ("blkio", "blkio.bfq.weight", "300"),
    ]
    assert all(write.required for write in v1_writes(FULL))


def test_the_v2_writes_of_all_limits() -> None:
    assert [(write.controller, write.file, write.value) for write in v2_writes(FULL)] == [
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "20"),
        ("cpu", "cpu.weight", "174"),
        ("cpu", "cpu.max", "150000 100000"),
        ("memory", "memory.max", str(64 * MIB)),
        ("memory", "memory.swap.max", str(32 * MIB)),
        ("io", "io.bfq.weight", "300"),
    ]
    assert v2_writes(FULL, "io.weight")[-1].value == str(io_weight(300))


def test_zero_lifts_every_limit() -> None:
    lifted = Limits(0, 0, 0.0, 0, "", 0, 0)
    assert {write.file: write.value for write in v1_writes(lifted)} == {
        "cpuset.cpus": "",
        "pids.max": "max",
        "cpu.shares": "1024",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "-1",
        "memory.limit_in_bytes": "-1",
        "memory.memsw.limit_in_bytes": "-1",
        "blkio.bfq.weight": "100",
    }
    assert {write.file: write.value for write in v2_writes(lifted, "io.weight")} == {
        "cpuset.cpus": "",
        "pids.max": "max",
        "cpu.weight": "100",
        "cpu.max": "max 100000",
        "memory.max": "max",
        "memory.swap.max": "max",
        "io.weight": "100",
    }


def test_no_limits_write_nothing() -> None:
    assert v1_writes(Limits()) == []
    assert v2_writes(Limits()) == []


@pytest.mark.parametrize(("swap", "required"), [(None, False), (-1, False), (16 * MIB, True)])
def test_swap_must_be_limitable_only_when_it_was_limited_by_name(swap: int | None, required: bool) -> None:
    limits = Limits(memory=8 * MIB, memory_swap=swap)
    assert [write.required for write in v1_writes(limits) + v2_writes(limits) if "swap" in write.option] == [required, required]
