"""What a sandbox sees of this machine, and what it may do: through the command line."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from netbox.engine.runtime_plan import MASKED_PATHS, READ_ONLY_PATHS
from netbox.image import busybox
from netbox.kernel import capabilities
from tests.e2e.boxes import inspect, running, sh
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

ALWAYS_NEW = {"mnt", "pid", "uts", "ipc", "cgroup"}
DOCKER_CAPABILITIES = 0xA80425FB  # moby, oci/caps/defaults.go: the fourteen


@pytest.fixture
def rootfs(private_host: PrivateHost) -> Path:
    """A root file system of its own, without a user database."""
    directory = private_host.base / "rootfs"
    busybox.build(busybox.find_static(), str(directory))
    return directory


@pytest.mark.parametrize(
    ("options", "new"),
    [
        ((), ALWAYS_NEW | {"net"}),
        (("--network", "none"), ALWAYS_NEW | {"net"}),
        (("--network", "host"), ALWAYS_NEW),
        (("--userns", "auto"), ALWAYS_NEW | {"net", "user"}),
        (("--userns", "auto", "--network", "host"), ALWAYS_NEW | {"user"}),
        (("--time-namespace",), ALWAYS_NEW | {"net", "time"}),
        (("--privileged",), ALWAYS_NEW | {"net"}),
    ],
)
def test_namespaces(cli: Cli, options: tuple[str, ...], new: set[str]) -> None:
    lines = sh(cli, "cd /proc/self/ns; for kind in mnt pid net uts ipc cgroup user time; do readlink $kind; done", *options).split()
    inside = {line.partition(":")[0]: line for line in lines}
    assert {kind for kind, link in inside.items() if link != os.readlink(f"/proc/self/ns/{kind}")} == new


def test_two_sandboxes_share_no_namespace(cli: Cli) -> None:
    with running(cli, "box"):
        links = {os.readlink(f"/proc/{inspect(cli, 'box')['pid']}/ns/{kind}") for kind in ALWAYS_NEW | {"net"}}
        assert not links & set(sh(cli, "cd /proc/self/ns; for kind in mnt pid net uts ipc cgroup; do readlink $kind; done").split())


def test_time_starts_at_zero(cli: Cli) -> None:
    offsets = sh(cli, "cat /proc/self/timens_offsets", "--time-namespace").split()
    assert int(offsets[1]) < 0
    assert int(offsets[4]) < 0
    assert sh(cli, "cat /proc/self/timens_offsets").split() == ["monotonic", "0", "0", "boottime", "0", "0"]


class TestUserNamespace:
    def test_root_inside_is_nobody_outside(self, cli: Cli) -> None:
        with running(cli, "one", "--userns", "auto"), running(cli, "two", "--userns", "auto"):
            uids = [os.stat(f"/proc/{inspect(cli, name)['pid']}").st_uid for name in ("one", "two")]
            assert cli("exec", "one", "id", "-u").stdout == "0\n"
            assert min(uids) >= 0x10000
            assert abs(uids[0] - uids[1]) >= 0x10000  # ids of their own, so neither can touch what is the other's

    def test_files_of_the_host_are_out_of_reach(self, cli: Cli, private_host: PrivateHost) -> None:
        shared = private_host.base / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        (shared / "secret").write_text("of root")
        (shared / "secret").chmod(0o600)
        script = "cat /shared/secret; echo mine > /shared/made; chown 7:8 /shared/made; touch /made/here; stat -c %u /shared/secret"
        options = ("--userns", "auto", "-v", f"{shared}:/shared", "-v", f"{private_host.base}/new:/made")
        result = cli("run", "--name", "box", *options, "busybox", "sh", "-c", script)
        assert "secret': Permission denied" in result.stderr or "secret: Permission denied" in result.stderr
        assert result.stdout == "65534\n"
        base = inspect(cli, "box")["runtime"]["userns"]["base"]
        made = (shared / "made").stat()
        assert (made.st_uid, made.st_gid) == (base + 7, base + 8)
        assert (private_host.base / "new" / "here").stat().st_uid == base
        cli("rm", "box")

    def test_nobody_outside_can_run_a_set_uid_file_from_inside(self, cli: Cli, private_host: PrivateHost) -> None:
        """Inside it is root's; on the disk it may be, too: then no user of the host may get at it."""
        with running(cli, "box", "--userns", "auto") as name:
            cli("exec", name, "sh", "-c", "cp /bin/busybox /tmp/su; chmod 4755 /tmp/su; ls -l /tmp/su")
            (copy,) = Path(private_host.root, "sandboxes").glob("*/storage/upper/tmp/su")
            assert copy.stat().st_mode & stat.S_ISUID
            with pytest.raises(PermissionError):
                subprocess.run([str(copy), "id"], user=65534, group=65534, extra_groups=[], timeout=60, check=False)

    @pytest.mark.parametrize("options", [(), ("--read-only",), ("-t",), ("--init",), ("-u", "1000:1000"), ("--network", "none")])
    def test_goes_with_other_options(self, cli: Cli, options: tuple[str, ...]) -> None:
        assert "ok" in sh(cli, "echo x > /dev/null && cat /etc/hosts > /dev/null && ls /dev/pts /dev/shm > /dev/null && echo ok",
                          "--userns", "auto", *options)  # fmt: skip

    def test_the_host_image(self, cli: Cli) -> None:
        script = "id -u; cat /etc/shadow > /dev/null && echo read; echo x > /etc/made && echo written"
        assert sh(cli, script, "--userns", "auto", image="host").split() == ["0", "read", "written"]
        assert not Path("/etc/made").exists()

    def test_a_root_file_system(self, cli: Cli, rootfs: Path) -> None:
        assert sh(cli, "--", "--userns", "auto", "--rootfs", str(rootfs), image="true") == ""
        cli("run", "--rm", "--userns", "auto", "--rootfs", str(rootfs), "sh", "-c", "id -u > /made")
        assert (rootfs / "made").read_text() == "0\n"


class TestKernelFiles:
    def test_masked_paths_are_empty(self, cli: Cli) -> None:
        script = "; ".join(f"if [ -d {path} ]; then ls -A {path}; elif [ -e {path} ]; then cat {path}; fi" for path in MASKED_PATHS)
        assert sh(cli, script) == ""

    def test_something_is_masked_at_all(self, cli: Cli) -> None:
        """The same paths, privileged: the test above does not pass for want of files."""
        assert sh(cli, "head -c 100 /proc/keys /proc/timer_list; ls /sys/firmware", "--privileged") != ""

    @pytest.mark.parametrize("userns", ["host", "auto"])
    def test_no_path_of_the_kernel_can_be_written(self, cli: Cli, userns: str) -> None:
        paths = [*(path for path in READ_ONLY_PATHS if os.path.exists(path)), "/sys", "/sys/kernel", "/sys/fs/cgroup",
                 "/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness", "/sys/class/net/lo/mtu"]  # fmt: skip
        script = "; ".join(f"{{ [ -d {path} ] && mkdir {path}/x || echo 1 > {path}; }} 2> /dev/null && echo {path}" for path in paths)
        assert sh(cli, f"{script}; mount -o remount,rw /proc/sys 2> /dev/null; echo 1 > /proc/sys/vm/drop_caches; true",
                  "--userns", userns) == ""  # fmt: skip

    @pytest.mark.parametrize("options", [(), ("--network", "host"), ("--userns", "auto"), ("--userns", "auto", "--network", "host")])
    def test_no_cgroup_but_its_own_is_seen(self, cli: Cli, options: tuple[str, ...]) -> None:
        """The paths in /proc/self/cgroup are relative to the sandbox's own, which is the root of what is mounted."""
        script = "cat /proc/self/cgroup; find /sys/fs/cgroup -name 'netbox*'; find /sys/fs/cgroup -mindepth 2 -type d"
        output = sh(cli, script, *options)
        for line in output.split():
            assert re.fullmatch(r"\d+:[^:]*:/", line), line

    def test_sees_only_its_own_links(self, cli: Cli) -> None:
        assert sh(cli, "ls /sys/class/net").split() == ["eth0", "lo"]
        assert sh(cli, "ls /sys/class/net", "--network", "none").split() == ["lo"]


class TestDev:
    NODES = ("full", "null", "random", "tty", "urandom", "zero")
    LINKS = ("fd", "ptmx", "stderr", "stdin", "stdout")
    DIRECTORIES = ("mqueue", "pts", "shm")

    def test_is_minimal(self, cli: Cli) -> None:
        assert sh(cli, "ls -A /dev").split() == sorted(self.NODES + self.LINKS + self.DIRECTORIES)
        assert sorted(sh(cli, "ls -1A /dev | cat", "-t").split()) == sorted((*self.NODES, *self.LINKS, *self.DIRECTORIES, "console"))

    def test_the_nodes_work(self, cli: Cli) -> None:
        script = "head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; cat /dev/null; echo x > /dev/full || echo full"
        assert sh(cli, script, "-u", "1000").split() == ["3", "3", "full"]

    def test_pts_is_its_own(self, cli: Cli) -> None:
        output = sh(cli, "tty; ls /dev/pts; script -qc 'tty' /dev/null 2>&1 || true; stat -c '%a %g' /dev/pts/0; ls -l /dev/ptmx", "-t")
        assert output.replace("\r", "").split()[:3] == ["/dev/pts/0", "0", "ptmx"]
        assert "620 5" in output

    def test_shm(self, cli: Cli) -> None:
        fields = sh(cli, "df -k /dev/shm | tail -1; stat -c %a /dev/shm; echo x > /dev/shm/x && cat /dev/shm/x", "-u", "1000").split()
        assert (fields[1], fields[-2:]) == ("65536", ["1777", "x"])
        assert sh(cli, "df -k /dev/shm | tail -1", "--shm-size", "8m").split()[1] == "8192"

    def test_message_queues_are_its_own(self, cli: Cli) -> None:
        script = "mount | grep -c 'mqueue on /dev/mqueue'; touch /dev/mqueue/x && ls /dev/mqueue"
        assert sh(cli, script).split() == ["1", "x"]
        assert sh(cli, "ls /dev/mqueue") == ""

    def test_system_v_ipc_is_its_own(self, cli: Cli) -> None:
        segment = subprocess.run(["ipcmk", "-M", "4096"], capture_output=True, text=True, timeout=60, check=True).stdout.split()[-1]
        try:
            assert len(Path("/proc/sysvipc/shm").read_text().splitlines()) > 1
            assert len(sh(cli, "cat /proc/sysvipc/shm").splitlines()) == 1
        finally:
            subprocess.run(["ipcrm", "-m", segment], timeout=60, check=True)


class TestMounts:
    def test_read_only_root(self, cli: Cli) -> None:
        script = "touch /x; mkdir /etc/x; touch /t/x && echo tmpfs; touch /dev/shm/x && echo shm; echo x > /etc/hosts && echo hosts"
        result = cli("run", "--rm", "--read-only", "--tmpfs", "/t", "busybox", "sh", "-c", script)
        assert result.stdout.split() == ["tmpfs", "shm", "hosts"]
        assert result.stderr.count("Read-only file system") == 2

    def test_tmpfs(self, cli: Cli) -> None:
        result = cli("run", "--rm", "--tmpfs", "/t:size=64k,mode=700,exec", "--mount", "type=tmpfs,target=/u,tmpfs-size=1m", "busybox",
                     "sh", "-c", "stat -c %a /t; grep ' /[tu] ' /proc/mounts; head -c 99999 /dev/zero > /t/x; stat -c %s /t/x")  # fmt: skip
        lines = result.stdout.splitlines()
        assert lines[0] == "700"
        assert {"nosuid", "nodev"} < set(lines[1].split()[3].split(","))
        assert "noexec" not in lines[1]
        assert {"noexec", "size=1024k"} < set(lines[2].split()[3].split(","))
        assert lines[3] == "65536"  # and no more

    def test_binds(self, cli: Cli, private_host: PrivateHost) -> None:
        data = private_host.base / "data"
        data.mkdir()
        (data / "file").write_text("from outside\n")
        options = ("-v", f"{data}:/rw", "-v", f"{data}:/ro:ro", "--mount", f"type=bind,source={data},target=/mount,readonly",
                   "-v", f"{data}/file:/etc/one-file", "-v", f"{private_host.base}/made/by/volume:/made")  # fmt: skip
        script = "cat /rw/file /etc/one-file; echo inside > /rw/new; touch /made/x; touch /ro/x; touch /mount/x; rm /ro/file; true"
        result = cli("run", "--rm", *options, "busybox", "sh", "-c", script)
        assert result.stdout == "from outside\n" * 2
        assert result.stderr.count("Read-only file system") == 3
        assert (data / "new").read_text() == "inside\n"
        assert (private_host.base / "made/by/volume/x").exists()
        assert sorted(os.listdir(data)) == ["file", "new"]

    def test_a_relative_source_is_below_the_working_directory(self, cli: Cli, private_host: PrivateHost) -> None:
        (private_host.base / "here").mkdir()
        process = cli.popen("run", "--rm", "-v", "./here:/data", "busybox", "touch", "/data/x", cwd=private_host.base)
        assert process.communicate(timeout=60) == ("", "")
        assert (private_host.base / "here" / "x").exists()

    def test_read_only_covers_what_is_mounted_below(self, cli: Cli, private_host: PrivateHost) -> None:
        outer = private_host.base / "outer"
        (outer / "inner").mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "inner", str(outer / "inner")], check=True, timeout=60)
        (outer / "inner" / "there").touch()
        try:
            result = cli("run", "--rm", "-v", f"{outer}:/o:ro", "busybox", "sh", "-c", "ls /o/inner; touch /o/inner/x", check=1)
            alone = f"type=bind,source={outer},target=/o,bind-nonrecursive"
            assert cli("run", "--rm", "--mount", alone, "busybox", "ls", "/o/inner").stdout == ""
        finally:
            subprocess.run(["umount", str(outer / "inner")], check=True, timeout=60)
        assert result.stdout == "there\n"
        assert "Read-only file system" in result.stderr

    def test_a_file_of_ones_own_beats_the_made_ones(self, cli: Cli, private_host: PrivateHost) -> None:
        mine = private_host.base / "mine"
        mine.write_text("203.0.113.7 mine\n")
        assert sh(cli, "cat /etc/hosts; cat /etc/hostname", "-v", f"{mine}:/etc/hosts:ro", "--hostname", "box") == "203.0.113.7 mine\nbox\n"

    def test_mounts_do_not_come_back(self, cli: Cli, private_host: PrivateHost) -> None:
        """Neither is a mount made inside seen outside, nor the reverse, unless asked for."""
        shared = private_host.base / "shared"
        shared.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "shared", str(shared)], check=True, timeout=60)
        subprocess.run(["mount", "--make-shared", str(shared)], check=True, timeout=60)
        try:
            (shared / "sub").mkdir()
            with running(cli, "box", "--privileged", "-v", f"{shared}:/s", "-v", f"{shared}:/slave:rslave"):
                cli("exec", "--privileged", "box", "mount", "-t", "tmpfs", "inside", "/s/sub")
                assert "inside" not in Path("/proc/self/mountinfo").read_text()
                subprocess.run(["mount", "-t", "tmpfs", "outside", str(shared / "sub")], check=True, timeout=60)
                mounts = [line.split()[:2] for line in cli("exec", "box", "cat", "/proc/mounts").stdout.splitlines()]
                assert ["inside", "/s/sub"] in mounts
                assert ["outside", "/slave/sub"] in mounts
                assert ["outside", "/s/sub"] not in mounts
        finally:
            subprocess.run(["umount", "-R", str(shared)], check=True, timeout=60)

    def test_a_device_can_be_given(self, cli: Cli) -> None:
        assert sh(cli, "head -c 2 /dev/mine | wc -c", "--device", "/dev/zero:/dev/mine:r") == "2\n"


class TestPrivileges:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ((), DOCKER_CAPABILITIES),
            (("--cap-drop", "ALL"), 0),
            (("--cap-drop", "all", "--cap-add", "NET_BIND_SERVICE"), 1 << 10),
            (("--cap-add", "cap_net_admin", "--cap-drop", "CAP_CHOWN"), DOCKER_CAPABILITIES & ~1 | 1 << 12),
            (("--privileged",), capabilities.available()),
            (("-u", "1000", "--cap-add", "NET_ADMIN"), 0),
        ],
    )
    def test_capabilities(self, cli: Cli, options: tuple[str, ...], expected: int) -> None:
        status = dict(line.split(":\t") for line in sh(cli, "grep Cap /proc/self/status", *options).splitlines())
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == expected
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        bounding = expected if "-u" not in options else DOCKER_CAPABILITIES | 1 << 12
        assert int(status["CapBnd"], 16) == bounding

    def test_capabilities_have_their_effect(self, cli: Cli) -> None:
        assert "Operation not permitted" in cli("run", "--rm", "busybox", "ip", "link", "set", "eth0", "mtu", "1400", check=2).stderr
        sh(cli, "ip link set eth0 mtu 1400", "--cap-add", "NET_ADMIN")
        assert "Operation not permitted" in cli("run", "--rm", "--cap-drop", "CHOWN", "busybox", "chown", "1", "/tmp", check=1).stderr
        assert cli("run", "--rm", "busybox", "mount", "-t", "tmpfs", "x", "/mnt", check=None).returncode != 0
        sh(cli, "mount -t tmpfs x /mnt", "--cap-add", "SYS_ADMIN")

    @pytest.mark.parametrize(
        ("options", "privileges", "mode"),
        [
            ((), "1", "2"),
            (("--security-opt", "no-new-privileges=false"), "0", "2"),
            (("--security-opt", "seccomp=unconfined"), "1", "0"),
            (("--privileged",), "0", "0"),
        ],
    )
    def test_no_new_privileges_and_seccomp(self, cli: Cli, options: tuple[str, ...], privileges: str, mode: str) -> None:
        output = sh(cli, "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status", *options)
        assert output == f"NoNewPrivs:\t{privileges}\nSeccomp:\t{mode}\n"

    def test_a_set_uid_program_gains_nothing(self, cli: Cli, private_host: PrivateHost) -> None:
        program = private_host.base / "busybox"  # its applet su keeps the privilege, and says so when it has none
        program.write_bytes(Path("/bin/busybox").read_bytes())
        program.chmod(0o4755)
        command = ("-u", "1000", "-v", f"{program}:/bin/su", "busybox", "su", "root", "-c", "id -u")
        assert "must be suid" in cli("run", "--rm", *command, check=1).stderr
        subprocess.run(["mount", "-o", "remount,suid", "/run"], check=True, timeout=60)
        assert "must be suid" in cli("run", "--rm", *command, check=1).stderr
        result = cli("run", "--rm", "--security-opt", "no-new-privileges=false", *command, check=None)
        assert "must be suid" not in result.stderr

    def test_the_default_profile(self, cli: Cli) -> None:
        script = "unshare -U true 2>&1 || echo refused"
        assert "refused" in sh(cli, script)
        assert sh(cli, script, "--security-opt", "seccomp=unconfined") == ""

    def test_a_profile_of_ones_own(self, cli: Cli, private_host: PrivateHost) -> None:
        profile = private_host.base / "profile.json"
        rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
        profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
        result = cli("run", "--rm", "--security-opt", f"seccomp={profile}", "busybox", "mkdir", "/x", check=1)
        assert "supported" in result.stderr

    def test_exec_has_the_same_bounds(self, cli: Cli) -> None:
        with running(cli, "box", "--cap-drop", "ALL"):
            first, second = (
                cli(*command, "sh", "-c", "grep -E 'Cap|NoNew|Seccomp:' /proc/$1/status; ls -l /proc/self/ns", "sh", pid).stdout
                for command, pid in ((("exec", "box"), "1"), (("exec", "box"), "self"))
            )
            assert first.split("total")[0] == second.split("total")[0]
            assert "CapEff:\t0000000000000000" in first


class TestLeaks:
    def test_open_files_of_the_caller(self, cli: Cli, private_host: PrivateHost) -> None:
        secret = os.open(private_host.base / "secret", os.O_RDWR | os.O_CREAT, 0o600)
        directory = os.open("/", os.O_PATH | os.O_DIRECTORY)
        try:
            for command in (("run", "--rm"), ("run", "--rm", "--init"), ("run", "--rm", "--userns", "auto")):
                process = cli.popen(*command, "busybox", "sh", "-c", "ls /proc/1/fd; ls /proc/$$/fd; true", pass_fds=(secret, directory))
                out, err = process.communicate(timeout=60)
                assert (set(out.split()), err) == ({"0", "1", "2"}, "")
        finally:
            os.close(secret)
            os.close(directory)

    def test_exec_leaks_no_open_file(self, cli: Cli, private_host: PrivateHost) -> None:
        secret = os.open(private_host.base / "secret", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with running(cli, "box"):
                process = cli.popen("exec", "box", "sh", "-c", "ls /proc/$$/fd; ls /proc/1/fd; true", pass_fds=(secret,))
                out, err = process.communicate(timeout=60)
                assert (set(out.split()), err) == ({"0", "1", "2"}, "")
        finally:
            os.close(secret)

    @pytest.mark.parametrize("image", ["busybox", "host"])
    def test_environment_of_the_caller(self, cli: Cli, image: str) -> None:
        process = cli.popen("run", "--rm", "-e", "PASSED", "-e", "SET=1", image, "cat", "/proc/1/environ",
                            env={"SECRET": "s3cret", "PASSED": "on", "LD_LIBRARY_PATH": "/x", "LANG": "C"})  # fmt: skip
        out, err = process.communicate(timeout=60)
        assert err == ""
        values = dict(line.split("=", 1) for line in out.rstrip("\0").split("\0"))
        assert values.pop("HOSTNAME")
        assert values == {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "PASSED": "on", "SET": "1",
        }  # fmt: skip

    def test_paths_of_the_host(self, cli: Cli, private_host: PrivateHost) -> None:
        """The source of a bind mount is shown by the kernel, in mountinfo alone: what is bound is netbox's files in /etc."""
        script = "cat /proc/1/cmdline /proc/1/environ /proc/mounts /proc/1/maps /proc/self/cgroup; ls -l /proc/1/ /proc/1/fd"
        output = sh(cli, script) + sh(cli, "grep -v ' /etc/host' /proc/self/mountinfo | grep -v ' /etc/resolv.conf '")
        for path in (private_host.root, private_host.run, private_host.cgroup, Path(sys.prefix)):
            assert str(path) not in output
        assert "python" not in output

    def test_processes_of_the_host(self, cli: Cli) -> None:
        assert sh(cli, "echo $$; set -- /proc/[0-9]*; echo $#; kill -0 2 2> /dev/null || echo none").split() == ["1", "1", "none"]

    def test_the_host_image_shows_neither_runtime_files_nor_state(self, cli: Cli, private_host: PrivateHost) -> None:
        (private_host.base / "socket-of-a-daemon").touch()
        with running(cli, "other"):
            output = sh(cli, f"ls -A /run {private_host.root} {private_host.run} 2> /dev/null; ls /tmp /dev", image="host")
        assert "socket-of-a-daemon" not in output
        assert "state.db" not in output
        assert "kmsg" not in output

    def test_signals_are_as_a_program_expects(self, cli: Cli) -> None:
        status = cli("run", "--rm", "busybox", "cat", "/proc/self/status").stdout
        for line in ("SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "Umask:\t0022", "PPid:\t0"):
            assert line in status.splitlines()


class TestProcess:
    def test_user_directory_and_variables(self, cli: Cli, private_host: PrivateHost) -> None:
        (private_host.base / "variables").write_text("# comment\nA=from file\nB=of file\n")
        script = "id -u; id -g; pwd; echo $A; echo $B; hostname; echo $HOSTNAME; echo $HOME"
        options = (
            "-u",
            "12:34",
            "-w",
            "/deep/down",
            "-e",
            "B=given",
            "--env-file",
            f"{private_host.base}/variables",
            "--hostname",
            "web.example",
        )
        assert sh(cli, script, *options).splitlines() == [
            "12", "34", "/deep/down", "from file", "given", "web.example", "web.example", "/",
        ]  # fmt: skip

    def test_ulimits(self, cli: Cli) -> None:
        options = ("--ulimit", "nofile=100:200", "--ulimit", "core=0", "--ulimit", "fsize=8192")
        result = cli("run", "--rm", *options, "busybox", "sh", "-c",
                     "ulimit -Sn; ulimit -Hn; ulimit -c; head -c 20000 /dev/zero > /tmp/x; stat -c %s /tmp/x")  # fmt: skip
        assert result.stdout.split() == ["100", "200", "0", "8192"]

    def test_sysctls(self, cli: Cli) -> None:
        before = {name: Path("/proc/sys", name).read_text() for name in ("kernel/msgmax", "net/ipv4/ip_default_ttl")}
        options = [word for value in ("kernel.msgmax=4096", "net.ipv4.ip_default_ttl=42", "net.ipv4.conf.eth0.log_martians=1",
                                      "net.ipv4.ping_group_range=0 7") for word in ("--sysctl", value)]  # fmt: skip
        script = "cd /proc/sys; cat kernel/msgmax net/ipv4/ip_default_ttl net/ipv4/conf/eth0/log_martians net/ipv4/ping_group_range"
        assert sh(cli, script, *options).split() == ["4096", "42", "1", "0", "7"]
        assert sh(cli, "cat /proc/sys/kernel/msgmax", "--userns", "auto", *options[:2]).split() == ["4096"]
        assert before == {name: Path("/proc/sys", name).read_text() for name in before}

    @pytest.mark.parametrize("userns", ["host", "auto"])
    def test_every_user_may_listen_on_port_80_and_ping(self, cli: Cli, userns: str) -> None:
        paths = [Path("/proc/sys/net/ipv4", name) for name in ("ping_group_range", "ip_unprivileged_port_start")]
        before = [path.read_text() for path in paths]
        script = f"cat {paths[0]} {paths[1]} && httpd -p 80 -h / && wget -qO- 127.0.0.1:80/etc/hostname"  # httpd listens before it forks
        options = ("--hostname", "web", "-u", "1000:1000", "--cap-drop", "ALL", "--userns", userns)
        last = "65535" if userns == "auto" else str(2**31 - 1)
        assert sh(cli, script, *options).split() == ["0", last, "0", "web"]
        assert [path.read_text() for path in paths] == before

    @pytest.mark.parametrize("userns", ["host", "auto"])
    def test_init_reaps(self, cli: Cli, userns: str) -> None:
        """An orphan that ends becomes a zombie of pid 1: with --init it goes away, and exit codes and signals still arrive."""
        script = "(sleep 0.05 & echo $! > /tmp/orphan); while kill -0 $(cat /tmp/orphan) 2> /dev/null; do sleep 0.01; done; echo $$; exit 5"
        result = cli("run", "--rm", "--init", "--userns", userns, "busybox", "sh", "-c", script, check=5)
        assert result.stdout != "1\n"

    def test_without_init_the_command_is_pid_1(self, cli: Cli) -> None:
        with running(cli, "box", command=("sh", "-c", "(sleep 0.05 &); exec sleep 100")):
            # A zombie that has no parent but pid 1 stays, although that has executed another program.
            there = "until [ $(cat /proc/1/comm) = sleep ]; do sleep 0.01; done"
            script = f"{there}; while ! grep -q 'State:.Z' /proc/[0-9]*/status 2> /dev/null; do sleep 0.01; done; cat /proc/1/comm"
            assert cli("exec", "box", "sh", "-c", script).stdout == "sleep\n"

    def test_init_passes_signals_on(self, cli: Cli) -> None:
        with running(cli, "box", "--init", command=("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")):
            wait_until(lambda: "ready" in cli("logs", "box").stdout, "the trap")
            cli("kill", "-s", "TERM", "box")
            assert cli("wait", "box").stdout == "9\n"


class TestRoots:
    def test_the_host_image_is_copy_on_write(self, cli: Cli) -> None:
        passwd = Path("/etc/passwd").read_bytes()
        script = "echo changed > /etc/passwd; rm /bin/ls; touch /made /usr/made /tmp/made; cat /etc/passwd"
        assert sh(cli, script, image="host") == "changed\n"
        assert Path("/etc/passwd").read_bytes() == passwd
        assert Path("/bin/ls").exists()
        assert not any(Path(path).exists() for path in ("/made", "/usr/made", "/tmp/made"))

    def test_the_host_image_has_a_size_limit(self, cli: Cli) -> None:
        result = cli("run", "--rm", "--storage-opt", "size=2m", "host", "sh", "-c", "head -c 4000000 /dev/zero > /big", check=1)
        assert "No space left on device" in result.stderr

    def test_what_a_stopped_sandbox_wrote_is_there_again(self, cli: Cli) -> None:
        cli("run", "--name", "box", "busybox", "sh", "-c", "test -e /made && echo again; touch /made")
        cli("start", "-a", "box")
        assert cli("logs", "box").stdout == "again\n"
        cli("rm", "box")

    def test_an_image_stays_as_it_was(self, cli: Cli) -> None:
        sh(cli, "rm -r /bin /etc; echo gone")
        assert sh(cli, "ls -d /bin /etc") == "/bin\n/etc\n"

    def test_a_root_file_system_is_written_to(self, cli: Cli, rootfs: Path) -> None:
        cli("run", "--rm", "--rootfs", str(rootfs), "--", "sh", "-c", "echo kept > /file; hostname > /name")
        assert (rootfs / "file").read_text() == "kept\n"
        result = cli("run", "--rm", "--read-only", "--rootfs", str(rootfs), "touch", "/x", check=1)
        assert "Read-only file system" in result.stderr
        assert not (rootfs / "x").exists()

    def test_a_root_file_system_that_is_a_link(self, cli: Cli, rootfs: Path) -> None:
        link = rootfs.parent / "link"
        link.symlink_to(rootfs)
        assert cli("run", "--rm", "--rootfs", str(link), "cat", "/proc/1/comm").stdout == "cat\n"

    def test_a_link_in_a_root_cannot_lead_a_mount_out(self, cli: Cli, rootfs: Path, private_host: PrivateHost) -> None:
        target = private_host.base / "victim"
        target.mkdir()
        (rootfs / "data").symlink_to(target)
        (rootfs / "tmp" / "up").symlink_to("../../../../../../../.." + str(target))
        options = ("--tmpfs", "/data", "-v", f"{rootfs}:/tmp/up/x")
        cli("run", "--rm", "--rootfs", str(rootfs), *options, "--", "sh", "-c", "touch /data/x", check=None)
        assert os.listdir(target) == []
