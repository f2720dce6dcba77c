"""What a sandbox sees and may do: root file system, /proc, /sys, /dev, user, limits, namespaces."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netbox.engine.checks import host
from netbox.engine.runtime_plan import NetworkFiles
from netbox.errors import CommandNotExecutable, CommandNotFound, HostError, Unsupported, UsageError
from netbox.kernel import capabilities, seccomp
from netbox.policies import seccomp_default
from netbox.runtime import client
from netbox.spec import BindMount, NetworkSpec, SecuritySpec, TmpfsMount, Ulimit
from tests.kernel.runtime_lab import USERNS_BASE, Lab, Source
from tests.support.host import PrivateHost


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def test_exit_code_output_and_error_are_told_apart(lab: Lab) -> None:
    assert lab.sh("echo out; echo err >&2; exit 7") == (7, "out\n", "err\n")


def test_a_signal_gives_128_and_its_number(lab: Lab) -> None:
    assert lab.sh("kill -TERM $$; sh -c 'kill -KILL $$'; exit $?").code == 137


def test_input_reaches_the_command_and_ends(lab: Lab) -> None:
    data = bytes(range(32, 127)) * 4000
    assert lab.run("md5sum", data=data, open_stdin=True).out == lab.sh("cat > /tmp/x; md5sum < /tmp/x", data=data, open_stdin=True).out


def test_closed_stdin_is_empty(lab: Lab) -> None:
    assert lab.sh("cat; readlink /proc/self/fd/0") == (0, "/dev/null\n", "")


def test_the_command_is_pid_1_and_sees_no_other_process(lab: Lab) -> None:
    assert lab.sh("echo $$; ls -d /proc/[0-9]* | wc -l").out.split()[0] == "1"


def test_nothing_of_the_host_leaks_in(lab: Lab) -> None:
    result = lab.sh("env; ls -d /proc/1/fd; ls /proc/1/fd; cat /proc/1/mountinfo; cat /proc/1/cmdline; grep Sig /proc/self/status; umask")
    assert str(lab.root) not in result.out
    assert lab.settings.run not in result.out
    environment = {line.partition("=")[0] for line in result.out.split("/proc/1/fd")[0].split("\n") if "=" in line}
    assert environment <= {"PATH", "HOSTNAME", "HOME", "SHLVL", "PWD"}
    assert "/proc/1/fd\n0\n1\n2\n" in result.out
    assert "python" not in result.out
    assert "SigIgn:\t0000000000000000" in result.out
    assert "SigBlk:\t0000000000000000" in result.out
    assert result.out.endswith("0022\n")


def test_the_image_stays_as_it_is(lab: Lab) -> None:
    assert lab.sh("echo new > /etc/passwd; rm /bin/ls; touch /made; cat /etc/passwd").out == "new\n"
    image = Path(lab.image.layers[0])
    assert (image / "etc/passwd").read_text().startswith("root")
    assert (image / "bin/ls").is_symlink()
    assert not (image / "made").exists()


def test_masked_paths_read_as_empty_and_proc_sys_is_read_only(lab: Lab) -> None:
    result = lab.sh("cat /proc/keys /proc/timer_list /proc/interrupts; ls /sys/firmware /proc/acpi; echo x > /proc/sys/kernel/hostname")
    assert [line for line in result.out.split("\n") if line and not line.endswith(":")] == []
    assert "can't create /proc/sys/kernel/hostname: Read-only file system" in result.err
    assert result.code == 1


@pytest.mark.parametrize("path", ["/sys/x", "/sys/fs/cgroup/x", "/proc/irq/x", "/proc/bus/x"])
def test_kernel_file_systems_cannot_be_written(lab: Lab, path: str) -> None:
    assert lab.sh(f"mkdir {path}").code == 1


def test_dev_is_minimal(lab: Lab) -> None:
    names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split()
    assert lab.run("ls", "/dev").out.split() == names
    assert (
        lab.sh("head -c 4 /dev/zero | wc -c; echo x > /dev/full || echo full; echo y > /dev/null; touch /dev/shm/a /dev/mqueue").out
        == "4\nfull\n"
    )


def test_read_only_root(lab: Lab) -> None:
    mounts = (TmpfsMount("/tmp", size=1 << 20),)
    result = lab.sh("touch /x; touch /tmp/y && touch /dev/shm/z && echo ok; df -k /tmp | tail -1", read_only=True, tmpfs=mounts)
    assert "touch: /x: Read-only file system" in result.err
    assert result.out.startswith("ok\n")
    assert " 1024 " in result.out


def test_binds(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    binds = (BindMount(str(tmp_path), "/data"), BindMount(str(tmp_path), "/ro", True), BindMount(f"{tmp_path}/file", "/deep/er/f", True))
    result = lab.sh("cat /deep/er/f; echo new > /data/made; echo no > /ro/no; echo no > /deep/er/f", binds=binds)
    assert result.out == "content"
    assert (tmp_path / "made").read_text() == "new\n"
    assert result.err.count("Read-only file system") == 2
    assert not (tmp_path / "no").exists()


def test_a_missing_bind_source_is_named(lab: Lab) -> None:
    with pytest.raises(HostError, match="/nowhere"):
        lab.run("true", binds=(BindMount("/nowhere", "/data"),))


def test_network_files_follow_a_dangling_link_of_the_image(lab: Lab, tmp_path: Path) -> None:
    image = Path(lab.image.layers[0])
    (image / "etc/resolv.conf").symlink_to("../run/resolver/stub.conf")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    files = NetworkFiles(hosts=str(tmp_path / "hosts"), resolv_conf=str(tmp_path / "resolv.conf"))
    result = lab.sh("cat /etc/hosts /etc/resolv.conf", plan={"network_files": files})
    assert result.out == "127.0.0.1 localhost\nnameserver 192.0.2.1\n"
    assert not os.path.exists("/run/resolver")


def test_a_link_of_an_image_cannot_lead_a_mount_out(lab: Lab, tmp_path: Path) -> None:
    inside = Path(lab.image.layers[0], str(tmp_path).lstrip("/"))
    (Path(lab.image.layers[0]) / "data").symlink_to(tmp_path)
    (tmp_path / "host").write_text("host")
    (lab.root / "busybox/source").mkdir()
    result = lab.sh(f"ls {tmp_path}; touch /data/made", binds=(BindMount(str(lab.root / "busybox/source"), "/data"),))
    assert result.out == ""
    assert not inside.exists()
    assert not (tmp_path / "made").exists()


def test_a_relative_link_of_an_image_cannot_lead_a_mount_out(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (Path(lab.image.layers[0]) / "deep").symlink_to("../../../../run/escape")
    (Path(lab.image.layers[0]) / "etc/hosts").symlink_to("../../../run/escape-too")
    result = lab.sh("cat /deep/er/file /run/escape-too", binds=(BindMount(f"{tmp_path}/file", "/deep/er/file"),),
                    plan={"network_files": NetworkFiles(hosts=f"{tmp_path}/file")})  # fmt: skip
    assert result.out == "contentcontent"
    assert not os.path.lexists("/run/escape")
    assert not os.path.lexists("/run/escape-too")


def test_a_link_of_an_image_to_a_descriptor_cannot_lead_a_mount_out(lab: Lab, tmp_path: Path) -> None:
    """The layers are open while init mounts: /proc/self/fd/N/../… would be the host."""
    (tmp_path / "file").write_text("content")
    image = Path(lab.image.layers[0])
    for fd in range(3, 20):
        (image / f"link{fd}").symlink_to(f"/proc/self/fd/{fd}/../../../..{tmp_path}")
        (image / f"flat{fd}").symlink_to(f"/proc/self/fd/{fd}")
    links = [f"/{kind}{fd}/made" for kind in ("link", "flat") for fd in range(3, 20)]
    assert lab.run("true", binds=tuple(BindMount(f"{tmp_path}/file", link) for link in links)).code == 0
    assert sorted(os.listdir(tmp_path)) == ["file"]
    assert not (image / "made").exists()
    assert not (lab.root / "made").exists()


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("bob", "uid=1000(bob) gid=1000(bob) groups=2000(crew)"),
        ("bob:crew", "uid=1000(bob) gid=2000(crew)"),
        ("1000", "uid=1000(bob) gid=1000(bob) groups=2000(crew)"),
        ("4711", "uid=4711 gid=0(root)"),
        ("4711:4712", "uid=4711 gid=4712"),
    ],
)
def test_user(lab: Lab, user: str, expected: str) -> None:
    result = lab.sh("id; echo yes > /dev/stdout; echo $HOME", user=user)
    assert result.out.split("\n")[:2] == [expected, "yes"]
    assert result.out.split("\n")[2] == ("/" if user.startswith("4711") else "/home/bob")


def test_an_unknown_user_is_named(lab: Lab) -> None:
    with pytest.raises(UsageError, match="no user 'nobody-here'"):
        lab.run("true", user="nobody-here")


def test_the_working_directory_is_made(lab: Lab) -> None:
    assert lab.run("pwd", working_dir="/not/there/yet").out == "/not/there/yet\n"


def test_capabilities_of_root_and_of_others(lab: Lab) -> None:
    mask = capabilities.resolve(drop=("CHOWN",))
    for user, permitted in (("", mask), ("bob", 0)):
        out = lab.sh("grep -E 'Cap|NoNewPrivs' /proc/self/status", user=user, plan={"capabilities": mask}).out
        found = {line.split(":")[0]: int(line.split(":")[1], 16) for line in out.split("\n") if line}
        assert found == {"CapInh": 0, "CapPrm": permitted, "CapEff": permitted, "CapBnd": mask, "CapAmb": 0, "NoNewPrivs": 1}


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("user", ["", "bob"])
def test_seccomp_filter_is_in_force(lab: Lab, no_new_privileges: bool, user: str) -> None:
    program = seccomp.cached(str(seccomp_default()), capabilities.DEFAULT, f"{lab.root}/busybox/cache")
    security = SecuritySpec(no_new_privileges=no_new_privileges)
    result = lab.sh("grep -E 'Seccomp:|NoNew' /proc/self/status; unshare -m true", user=user, security=security, plan={"seccomp": program})
    assert result.out == f"NoNewPrivs:\t{int(no_new_privileges)}\nSeccomp:\t2\n"
    assert "Operation not permitted" in result.err


def test_ulimits(lab: Lab) -> None:
    assert lab.sh("ulimit -Sn; ulimit -Hn; ulimit -c", ulimits=(Ulimit("nofile", 100, 200), Ulimit("core", 0, 0))).out == "100\n200\n0\n"


def test_sysctls_are_set_in_the_own_namespaces(lab: Lab) -> None:
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    sysctls = (("net.ipv4.ip_forward", "1"), ("kernel.shmmax", "123456"), ("net/ipv4/conf/lo/forwarding", "0"))
    result = lab.sh(
        "cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmax net/ipv4/conf/lo/forwarding; echo 0 > net/ipv4/ip_forward", sysctls=sysctls
    )
    assert result.out == "1\n123456\n0\n"
    assert "Read-only" in result.err
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before


def test_hostname_and_namespaces(lab: Lab) -> None:
    result = lab.sh(
        "hostname; cd /proc/self/ns; for n in mnt pid uts ipc net cgroup; do readlink $n; done; cat /proc/self/cgroup", hostname="box"
    )
    name, *inside = result.out.split("\n")
    assert name == "box"
    for kind, link in zip(("mnt", "pid", "uts", "ipc", "net", "cgroup"), inside, strict=False):
        assert link != os.readlink(f"/proc/self/ns/{kind}")
    assert all(line.endswith(":/") for line in inside[6:] if line)


def test_host_network_shares_namespace_and_name(lab: Lab) -> None:
    result = lab.sh("readlink /proc/self/ns/net; hostname", network=NetworkSpec(mode="host"))
    assert result.out == f"{os.readlink('/proc/self/ns/net')}\n{socket.gethostname()}\n"


@pytest.mark.parametrize("userns", ["host", "auto"])
def test_joins_the_network_namespace_of_another(lab: Lab, userns: str) -> None:
    with lab.running() as other:
        netns = os.open(f"/proc/{other.pid}/ns/net", os.O_RDONLY)
        try:
            options = {"security": SecuritySpec(userns=userns), "plan": {"userns_base": USERNS_BASE}}
            result = lab.sh("readlink /proc/self/ns/net", netns=netns, network=NetworkSpec(mode="container:x"), **options)
        finally:
            os.close(netns)
        assert result.out.strip() == os.readlink(f"/proc/{other.pid}/ns/net") != os.readlink("/proc/self/ns/net")


def test_time_namespace_counts_from_zero(lab: Lab) -> None:
    outside = float(Path("/proc/uptime").read_text().split()[0])
    begun = time.monotonic()
    inside = float(lab.run("cat", "/proc/uptime", time_namespace=True).out.split()[0])
    assert inside <= time.monotonic() - begun + 0.1 < outside


def test_init_is_pid_1_and_reaps(lab: Lab) -> None:
    orphan = "(sh -c 'echo $$ > /tmp/new; mv /tmp/new /tmp/orphan' &)"
    reaped = "until [ -e /tmp/orphan ] && ! [ -e /proc/$(cat /tmp/orphan) ]; do [ $((i = i + 1)) -lt 1000 ] || exit 6; sleep 0.05; done"
    result = lab.sh(f"ps -o pid,comm | grep -v ps; {orphan}; {reaped}; exit 5", init=True)
    assert result.out.split()[2:4] == ["1", "netbox-init"]
    assert result.code == 5


@pytest.mark.parametrize("init", [False, True])
@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("nosuch", CommandNotFound, "not found in PATH"),
        ("/nosuch", CommandNotFound, "no such file"),
        ("/etc/passwd", CommandNotExecutable, "permission denied"),
        ("/etc", CommandNotExecutable, "permission denied"),
    ],
)
def test_commands_that_cannot_run(lab: Lab, command: str, error: type[Exception], words: str, init: bool) -> None:
    with pytest.raises(error, match=words):
        lab.run(command, init=init)


def test_a_file_that_is_no_program(lab: Lab) -> None:
    bad = Path(lab.image.layers[0], "bin/garbage")
    bad.write_text("neither script nor program")
    bad.chmod(0o755)
    script = Path(lab.image.layers[0], "bin/script")
    script.write_text("#!/no/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(CommandNotExecutable, match="exec format error"):
        lab.run("garbage")
    with pytest.raises(CommandNotFound, match="interpreter"):
        lab.run("script")


def test_rootfs_directory_is_used_directly(lab: Lab) -> None:
    directory = lab.image.layers[0]
    assert lab.sh("echo direct > /made; cat /proc/sys/kernel/osrelease", rootfs=directory).code == 0
    assert Path(directory, "made").read_text() == "direct\n"


def test_privileged(lab: Lab) -> None:
    result = lab.sh(
        "grep CapEff /proc/self/status; mount -t tmpfs x /tmp && echo mounted; ls /dev/fuse /dev/loop-control",
        security=SecuritySpec(privileged=True),
        plan={"capabilities": capabilities.ALL},
    )
    assert f"{capabilities.available():016x}" in result.out
    assert "mounted" in result.out
    expected = [name for name in ("/dev/fuse", "/dev/loop-control") if os.path.exists(name)]
    assert [line for line in result.out.split("\n") if line.startswith("/dev")] == expected


def test_user_namespace_root_is_nobody_outside(lab: Lab) -> None:
    script = "id -u; cat /proc/self/uid_map; touch /made; stat -c %u /made /bin /etc/passwd; echo > /dev/null; read x"
    options = {"security": SecuritySpec(userns="auto"), "open_stdin": True}
    with lab.running("sh", "-c", script, plan={"userns_base": USERNS_BASE}, **options) as sandbox:
        assert os.stat(f"/proc/{sandbox.pid}").st_uid == USERNS_BASE
        assert sandbox.attachment is not None
        code, out, err = client.communicate(sandbox.attachment, b"\n")
    assert (code, err) == (0, b"")
    assert out.split() == [b"0", b"0", b"300000", b"65536", b"0", b"0", b"0"]


@pytest.mark.parametrize("tty", [False, True])
def test_user_namespace_with_user_and_terminal(lab: Lab, tty: bool) -> None:
    result = lab.sh("id -un; echo x > /dev/stdout; mount | grep -c '^sysfs on /sys '", tty=tty, user="bob",
                    security=SecuritySpec(userns="auto"), plan={"userns_base": USERNS_BASE})  # fmt: skip
    assert result.out.split() == ["bob", "x", "1"]


def test_user_namespace_reaches_binds_in_private_directories(lab: Lab, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "hosts").write_text("content")
    result = lab.sh("cat /etc/hosts", security=SecuritySpec(userns="auto"),
                    plan={"userns_base": USERNS_BASE, "network_files": NetworkFiles(hosts=f"{tmp_path}/hosts")})  # fmt: skip
    assert result.out == "content"


@pytest.mark.parametrize("userns", ["host", "auto"])
def test_host_image_is_copy_on_write(lab: Lab, userns: str) -> None:
    image = Source(("/",), host=True)
    script = (
        "id -u; echo mine > /etc/netbox-was-here; cat /etc/netbox-was-here; ls -A /run;head -c 9000000 /dev/zero > /big; stat -c %s /big"
    )
    given: dict[str, Any] = {"storage_size": 8 << 20, "security": SecuritySpec(userns=userns), "plan": {"userns_base": USERNS_BASE}}
    if userns == "auto" and host._probed(host._start_probes())["mount.idmapped"].state != "ok":  # this machine's / cannot be mapped
        with pytest.raises(Unsupported, match="--userns=auto with /: its file system cannot map owners"):
            lab.sh(script, image=image, **given)
        return
    result = lab.sh(script, image=image, **given)
    lines = result.out.split()
    assert lines[:2] == ["0", "mine"]
    assert int(lines[-1]) < 8 << 20
    assert "No space left" in result.err
    assert not os.path.exists("/etc/netbox-was-here")
    assert not os.path.exists("/big")


def test_host_image_hides_netbox_itself(lab: Lab) -> None:
    result = lab.sh(f"ls -A {lab.root} {lab.settings.run} 2>/dev/null; cat /proc/mounts", image=Source(("/",), host=True))
    assert lab.image.layers[0] not in result.out


def test_own_executable_cannot_be_overwritten(lab: Lab) -> None:
    """/proc/self/exe as command is the interpreter of the host: it must not be open for writing (CVE-2019-5736)."""
    command = ("/proc/self/exe", "-S", "-c", "import time; time.sleep(100)")
    options = {"image": Source(("/",), host=True), "environment": (("PYTHONHOME", sys.base_prefix),)}
    with lab.running(*command, **options) as sandbox:
        assert os.readlink(f"/proc/{sandbox.pid}/exe") == "/"  # a mount that is attached nowhere
        executable = os.open(f"/proc/{sandbox.pid}/exe", os.O_PATH)
        read_only = os.fstatvfs(executable).f_flag & os.ST_RDONLY
        os.close(executable)
        assert read_only
