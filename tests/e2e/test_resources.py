"""Limits of a sandbox, by what they do to the processes in it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from netbox.kernel import cgroups
from tests.e2e.boxes import inspect, running, sh
from tests.support import cgroups as cgroup_tree
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

# option, value, file and content of version 1 and of version 2
FILES = [
    ("--memory", "64m", "memory.limit_in_bytes", "67108864", "memory.max", "67108864"),
    ("--memory-swap", "96m", "memory.memsw.limit_in_bytes", "100663296", "memory.swap.max", "33554432"),
    ("--cpus", "1.5", "cpu.cfs_quota_us", "150000", "cpu.max", "150000 100000"),
    ("--cpu-shares", "512", "cpu.shares", "512", "cpu.weight", "59"),
    ("--cpuset-cpus", "0", "cpuset.cpus", "0", "cpuset.cpus", "0"),
    ("--pids-limit", "50", "pids.max", "50", "pids.max", "50"),
]


def limit_files(private_host: PrivateHost, name: str) -> list[Path]:
    """The file of that name in the cgroups of all sandboxes."""
    return [path for root in cgroup_tree.hierarchies() for path in Path(root, private_host.cgroup).glob(f"*/{name}")]


def contents(private_host: PrivateHost, name: str) -> set[str]:
    return {path.read_text().strip() for path in limit_files(private_host, name)}


def test_every_limit_reaches_the_kernel(cli: Cli, private_host: PrivateHost) -> None:
    version = cgroups.detect().version
    options = [word for option in FILES for word in option[:2]]
    with running(cli, "box", *options):
        for _, _, file1, value1, file2, value2 in FILES:
            file, value = (file1, value1) if version == 1 else (file2, value2)
            assert contents(private_host, file) == {value}, file


class TestMemory:
    def test_who_takes_too_much_is_killed(self, cli: Cli) -> None:
        cli("run", "--name", "box", "-m", "16m", "--memory-swap", "16m", "busybox", "tail", "/dev/zero", check=137)
        document = inspect(cli, "box")
        assert (document["exit_code"], document["oom_killed"], document["state"]) == (137, True, "exited")
        events = [json.loads(line) for line in cli("events", "--since", "1h", "--until", "0s", "--format", "json").stdout.splitlines()]
        assert "oom_killed" in json.dumps(events)
        cli("rm", "box")

    def test_a_child_that_is_killed_does_not_end_the_sandbox(self, cli: Cli) -> None:
        cli("run", "--name", "box", "-m", "16m", "--memory-swap", "16m", "busybox", "sh", "-c", "tail /dev/zero; exit 3", check=3)
        assert inspect(cli, "box")["oom_killed"] is True
        cli("rm", "box")

    def test_a_plain_kill_is_none_for_want_of_memory(self, cli: Cli) -> None:
        cli("run", "--name", "box", "-m", "16m", "busybox", "sh", "-c", "sleep 1000 & kill -KILL $!; wait; exit 0")
        assert inspect(cli, "box")["oom_killed"] is False
        cli("rm", "box")

    def test_files_in_memory_count(self, cli: Cli) -> None:
        limits = ("-m", "16m", "--memory-swap", "16m")
        result = cli("run", "--rm", *limits, "busybox", "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=30", check=137)
        assert result.stdout == ""

    @pytest.mark.parametrize("options", [(), ("--init",), ("--userns", "auto"), ("-t",)])
    def test_the_smallest_limit_is_enough_to_start(self, cli: Cli, options: tuple[str, ...]) -> None:
        assert sh(cli, "echo alive", "-m", "6m", *options).strip() == "alive"


class TestProcessor:
    def test_more_than_its_share_is_throttled(self, cli: Cli) -> None:
        """Spins until the kernel has counted a throttled period; the limit of time of the test's command bounds it."""
        assert (
            sh(cli, "while grep -q 'nr_throttled 0' $(find /sys/fs/cgroup -name cpu.stat); do :; done; echo throttled", "--cpus", "0.1")
            == "throttled\n"
        )

    def test_only_the_given_processors(self, cli: Cli) -> None:
        last = max(os.sched_getaffinity(0))
        assert sh(cli, "grep Cpus_allowed_list /proc/self/status", "--cpuset-cpus", str(last)).split()[1] == str(last)


class TestProcesses:
    def test_no_more_than_the_limit(self, cli: Cli) -> None:
        script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo unreachable"
        result = cli("run", "--rm", "--pids-limit", "5", "busybox", "sh", "-c", script, check=None)
        assert "can't fork" in result.stderr
        assert result.returncode != 0
        assert "unreachable" not in result.stdout

    def test_exec_counts_too(self, cli: Cli) -> None:
        with running(cli, "box", "--pids-limit", "2", command=("sh", "-c", "sleep 100 & wait")):
            cli("exec", "box", "sh", "-c", "true & wait", check=None)
            assert contents_of_pids(cli) <= 2


def contents_of_pids(cli: Cli) -> int:
    (row,) = json.loads(cli("stats", "--no-stream", "--format", "json", "box").stdout)
    return int(row["pids"])


class TestDevices:
    """1:11 is kmsg: whoever may open it at all may open it for writing."""

    OPEN = "(: >> {path}) && echo written"

    def test_no_device_but_the_usual_ones(self, cli: Cli) -> None:
        """A node can be made, as in Docker; opening it is refused."""
        script = "mknod /tmp/kmsg c 1 11 && echo made; head -c 1 /dev/zero | wc -c; " + self.OPEN.format(path="/tmp/kmsg")
        result = cli("run", "--rm", "busybox", "sh", "-c", script, check=1)
        assert result.stdout.split() == ["made", "1"]
        assert "Operation not permitted" in result.stderr

    @pytest.mark.parametrize(("access", "output"), [("w", "written\n"), ("rw", "written\n"), ("r", ""), ("m", "")])
    def test_a_rule_allows_one(self, cli: Cli, access: str, output: str) -> None:
        script = "mknod /tmp/kmsg c 1 11; " + self.OPEN.format(path="/tmp/kmsg")
        options = ("--device-cgroup-rule", f"c 1:11 {access}")
        assert cli("run", "--rm", *options, "busybox", "sh", "-c", script, check=None).stdout == output

    @pytest.mark.parametrize(("access", "output"), [("", "written\n"), (":w", "written\n"), (":r", "")])
    @pytest.mark.parametrize("userns", ["host", "auto"])
    def test_a_given_device_is_allowed_as_far_as_asked(self, cli: Cli, access: str, output: str, userns: str) -> None:
        options = ("--device", f"/dev/kmsg:/dev/mine{access}", "--userns", userns)
        expected = output if userns == "host" else ""  # its root is another's, and the node is for root alone
        assert cli("run", "--rm", *options, "busybox", "sh", "-c", self.OPEN.format(path="/dev/mine"), check=None).stdout == expected

    def test_privileged_may_open_all(self, cli: Cli) -> None:
        assert sh(cli, "mknod /tmp/kmsg c 1 11; " + self.OPEN.format(path="/tmp/kmsg"), "--privileged") == "written\n"

    def test_a_user_namespace_makes_no_nodes(self, cli: Cli) -> None:
        result = cli("run", "--rm", "--userns", "auto", "busybox", "mknod", "/tmp/kmsg", "c", "1", "11", check=1)
        assert "Operation not permitted" in result.stderr


class TestNotEnforceable:
    """A limit that this host cannot enforce is an error, and nothing is made (the leak check of every test looks)."""

    def test_block_io_weight(self, cli: Cli) -> None:
        schedulers = " ".join(path.read_text() for path in Path("/sys/block").glob("*/queue/scheduler"))
        result = cli("run", "--rm", "--blkio-weight", "300", "busybox", "true", check=None)
        if re.search(r"\[(bfq|cfq)\]", schedulers):
            assert (result.returncode, result.stderr) == (0, "")
        else:
            assert result.returncode == 125
            assert result.stderr.startswith("netbox run: --blkio-weight cannot be enforced: no disk of this host")
            assert cli("ps", "-aq").stdout == ""

    def test_a_limit_of_a_running_sandbox(self, cli: Cli, private_host: PrivateHost) -> None:
        with running(cli, "box", "-m", "64m"):
            before = inspect(cli, "box")["spec"]["resources"]
            result = cli("update", "--cpuset-cpus", "99", "-m", "32m", "box", check=125)
            assert "processor 99 is not there" in result.stderr
            assert inspect(cli, "box")["spec"]["resources"] == before
            assert contents(private_host, "memory.limit_in_bytes") | contents(private_host, "memory.max") == {"67108864"}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--cpus", "1000"), "the processors of this host"),
            (("--cpuset-cpus", "77"), "processor 77 is not there"),
        ],
    )
    def test_more_than_there_is(self, cli: Cli, options: tuple[str, ...], words: str) -> None:
        for verb in (("run", "--rm"), ("create",), ("run", "--dry-run")):
            result = cli(*verb, *options, "busybox", "true", check=125)
            assert words in result.stderr
            assert result.stdout == ""


def test_limits_hold_after_a_restart(cli: Cli, private_host: PrivateHost) -> None:
    with running(cli, "box", "-m", "64m", "--pids-limit", "20"):
        cli("update", "--pids-limit", "30", "box")
        cli("restart", "-t", "0", "box")
        assert contents(private_host, "pids.max") == {"30"}
        assert contents(private_host, "memory.limit_in_bytes") | contents(private_host, "memory.max") == {"67108864"}


def test_limits_are_lifted(cli: Cli, private_host: PrivateHost) -> None:
    with running(cli, "box", "-m", "64m", "--cpus", "0.5", "--pids-limit", "20"):
        cli("update", "-m", "0", "--cpus", "0", "--pids-limit", "-1", "box")
        assert contents(private_host, "pids.max") == {"max"}
        assert not contents(private_host, "memory.limit_in_bytes") & {"67108864"}
        assert contents(private_host, "cpu.cfs_quota_us") <= {"-1"}


def test_stats_measure(cli: Cli) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 3000000 /dev/zero > /dev/shm/x; touch /tmp/done; exec sleep 100"
    with running(cli, "box", "-m", "64m", "--pids-limit", "20", command=("sh", "-c", script)):
        cli("exec", "box", "sh", "-c", "while [ ! -e /tmp/done ]; do sleep 0.01; done")
        wait_until(lambda: contents_of_pids(cli) == 1, "the command of exec to be forgotten")
        (row,) = json.loads(cli("stats", "--no-stream", "--format", "json", "box").stdout)
        assert row["cpu_ns"] > 1_000_000
        assert 3_000_000 <= row["memory"] < row["memory_limit"] == 64 << 20
        assert row["pids_limit"] == 20
