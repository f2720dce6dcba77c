"""Statistics files and mounts, as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netbox.kernel.cgroups import Usage
from netbox.kernel.cgroups.hierarchies import CgroupMount, parse_mountinfo, v1_hierarchies, v2_hierarchy
from netbox.kernel.cgroups.parse import flat_keyed, limit, number, v1_block_bytes, v1_usage, v2_block_bytes, v2_usage

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 master:1 - cgroup2 cgroup2 rw,nsdelegate
"""


def there(path: str) -> bool:
    return True


def test_the_mounts_of_a_hybrid_host() -> None:
    assert parse_mountinfo(HYBRID) == [
        CgroupMount(1, ("cpu", "cpuacct"), "/", "/sys/fs/cgroup/cpu,cpuacct"),
        CgroupMount(1, ("memory",), "/", "/sys/fs/cgroup/memory"),
        CgroupMount(2, (), "/", "/sys/fs/cgroup/unified"),
    ]
    assert v1_hierarchies(parse_mountinfo(HYBRID), there) == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
    }
    assert v2_hierarchy(parse_mountinfo(HYBRID), there) == "/sys/fs/cgroup/unified"


def test_a_later_mount_hides_an_older_one_and_a_root_beats_a_part() -> None:
    mounts = [
        CgroupMount(1, ("memory",), "/", "/old"),
        CgroupMount(1, ("memory",), "/", "/new"),
        CgroupMount(1, ("memory",), "/docker/1", "/part"),
        CgroupMount(2, (), "/part", "/only"),
    ]
    assert v1_hierarchies(mounts, there) == {"memory": "/new"}
    assert v1_hierarchies(mounts, lambda path: path.startswith(("/old", "/part"))) == {"memory": "/old"}
    assert v1_hierarchies(mounts[2:], there) == {"memory": "/part"}
    assert v2_hierarchy(mounts, there) == "/only"
    assert v2_hierarchy(mounts, lambda path: False) is None


def test_a_mount_point_with_a_space() -> None:
    assert parse_mountinfo("1 2 0:3 / /a\\040b rw - cgroup2 none rw") == [CgroupMount(2, (), "/", "/a b")]


@given(st.text())
def test_any_text_is_mountinfo(text: str) -> None:
    for mount in parse_mountinfo(text):
        assert mount.version in (1, 2)


@given(st.text() | st.none())
def test_any_text_is_statistics(text: str | None) -> None:
    assert number(text, 7) == 7 or text is not None
    assert (limit(text) or 0) >= 0
    assert all(value >= 0 for value in flat_keyed(text).values())
    assert min(v1_block_bytes(text) + v2_block_bytes(text)) >= 0


def test_v1_usage() -> None:
    files = {
        "cpuacct.usage": "5000000",
        "cpuacct.usage_user": "3000000",
        "cpuacct.usage_sys": "2000000",
        "memory.stat": "cache 4096\ninactive_file 1\ntotal_inactive_file 4096",
        "memory.usage_in_bytes": "12288",
        "memory.limit_in_bytes": "67108864",
        "pids.current": "3",
        "pids.max": "max",
        "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 1234",
        "blkio.throttle.io_service_bytes_recursive": "8:0 Read 100\n8:0 Write 20\n8:0 Total 120\n8:16 Read 1\nTotal 121",
    }
    assert v1_usage(dict(files), oom_kills=2) == Usage(5_000_000, 3_000_000, 2_000_000, 8192, 67108864, 3, None, 101, 20, 4, 1234, 2)


def test_v2_usage() -> None:
    files = {
        "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 10\nnr_throttled 4\nthrottled_usec 7",
        "memory.stat": "anon 8192\ninactive_file 4096",
        "memory.current": "12288",
        "memory.max": "max",
        "memory.events": "low 0\noom 1\noom_kill 2",
        "pids.current": "3",
        "pids.max": "20",
        "io.stat": "8:0 rbytes=100 wbytes=20 rios=3 wios=1 dbytes=9 dios=9\n8:16 rbytes=1 wbytes=0",
    }
    assert v2_usage(dict(files)) == Usage(5000, 3000, 2000, 8192, None, 3, 20, 101, 20, 4, 7000, 2)


def test_what_is_not_counted_is_zero_and_v1s_huge_number_is_no_limit() -> None:
    assert v1_usage({}, 0) == v2_usage({}) == Usage()
    assert v1_usage({"memory.limit_in_bytes": "9223372036854771712"}, 0).memory_limit is None
    assert v1_usage({"memory.usage_in_bytes": "1", "memory.stat": "total_inactive_file 5"}, 0).memory == 0
