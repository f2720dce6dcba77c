"""From what was asked for to the runtime's configuration, and that as commands."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from netbox.engine import runtime_plan
from netbox.engine.runtime_plan import NetworkFiles, RuntimeFacts
from netbox.errors import Unsupported, UsageError
from netbox.image.model import Image
from netbox.kernel.mounts import MountEntry, parse_mountinfo
from netbox.settings import Settings
from netbox.spec import BindMount, Device, NetworkSpec, SandboxSpec, SecuritySpec, TmpfsMount, Ulimit

ID = "0123456789abcdef" * 4
SETTINGS = Settings("/state", "/run/nb", "nb")
FACTS = RuntimeFacts(2, (), (), "/usr/bin/tini-static", "machine")
IMAGE = Image("web", "f" * 64, 0.0, 0, "", ("/layers/2", "/layers/1"), ("serve",), (("LANG", "C"), ("PATH", "/app")), "/srv")
HOST_MOUNTS = """\
27 1 254:0 / / rw - ext4 /dev/vda rw
22 27 0:21 / /proc rw - proc proc rw
24 27 0:6 / /dev rw - devtmpfs devtmpfs rw
30 27 254:1 / /boot rw - ext4 /dev/vda1 rw
31 30 254:2 / /boot/efi rw - vfat /dev/vda2 rw
32 27 0:40 / /tmp rw - tmpfs tmpfs rw
33 32 254:3 / /tmp/disk rw - ext4 /dev/vdb rw
34 27 0:41 / /run rw - tmpfs tmpfs rw
35 34 254:4 / /run/media rw - ext4 /dev/vdc rw
36 27 254:5 / /home rw - xfs /dev/vdd rw
37 27 254:6 / /state rw - ext4 /dev/vde rw
38 37 0:50 / /state/sandboxes/x/rootfs rw - overlay overlay rw
39 27 254:7 / /data rw - ext4 /dev/vdf rw
40 27 0:60 / /data rw - tmpfs tmpfs rw
41 27 0:61 / /nfs rw - nfs4 server:/ rw
"""


def plan(image: Image | None = IMAGE, facts: RuntimeFacts = FACTS, options: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    asked = SandboxSpec(image="" if image is None else "web", **spec)
    return runtime_plan.runtime_config(asked, ID, "name", image, SETTINGS, facts, capabilities=3, **(options or {}))


def operations(config: dict[str, Any], kind: str) -> list[list[Any]]:
    return [operation for operation in config["mounts"] if operation[0] == kind]


def target(config: dict[str, Any], path: str) -> list[Any]:
    """The last operation for a target."""
    found: list[Any] = [operation for operation in config["mounts"] if len(operation) > 2 and operation[2] == path][-1]
    return found


def test_the_configuration_is_json() -> None:
    config = plan(binds=(BindMount("/a", "/b"),), ulimits=(Ulimit("nofile", 1, 2),), options={"console_size": (1, 2)})
    assert json.loads(json.dumps(config)) == config


def test_defaults_come_from_the_image_and_the_spec_wins() -> None:
    config = plan()
    assert (config["argv"], config["cwd"], config["user"]) == (["serve"], "/srv", "")
    assert config["env"] == ["PATH=/app", "HOSTNAME=0123456789ab", "LANG=C"]
    config = plan(
        command=("ls", "-l"), working_dir="/tmp", user="bob", environment=(("LANG", "de"), ("X", "a=b")), tty=True, hostname="box"
    )
    assert (config["argv"], config["cwd"], config["user"], config["hostname"]) == (["ls", "-l"], "/tmp", "bob", "box")
    assert config["env"] == ["PATH=/app", "HOSTNAME=box", "TERM=xterm", "LANG=de", "X=a=b"]


def test_the_user_of_the_image() -> None:
    assert plan(IMAGE._replace(user="app"))["user"] == "app"


def test_overlay_of_an_image() -> None:
    assert plan(remove=True)["rootfs"] == {
        "lower": ["/layers/2", "/layers/1"],
        "upper": f"/state/sandboxes/{ID}/storage/upper",
        "work": f"/state/sandboxes/{ID}/storage/work",
        "tmpfs_size": None,
        "directory": None,
        "stacked": [],
        "read_only": False,
        "volatile": True,
    }
    assert plan()["rootfs"]["volatile"] is False  # it may be started again
    assert plan()["create_directories"] == [f"/state/sandboxes/{ID}/storage"]


def test_rootfs_directory() -> None:
    config = plan(None, rootfs="/my/root", command=("sh",), read_only=True)
    assert (config["rootfs"]["directory"], config["rootfs"]["lower"], config["rootfs"]["read_only"]) == ("/my/root", [], True)
    assert config["create_directories"] == []


def test_host_image_stacks_what_is_stored_and_hides_netbox() -> None:
    facts = FACTS._replace(mounts=tuple(parse_mountinfo(HOST_MOUNTS)))
    config = plan(IMAGE._replace(layers=("/",), host=True), facts)
    assert config["rootfs"]["stacked"] == ["/boot", "/boot/efi", "/home", "/nfs"]
    assert config["rootfs"]["tmpfs_size"] == runtime_plan.DEFAULT_STORAGE
    assert config["rootfs"]["upper"] is None
    assert [operation[1] for operation in operations(config, "mask")][:2] == ["/state", "/run/nb"]
    assert target(config, "/run")[3] == "tmpfs"
    assert plan(IMAGE._replace(host=True), storage_size=5)["rootfs"]["tmpfs_size"] == 5


def test_submounts_covered_later_are_left_out() -> None:
    def entry(point: str, fstype: str = "ext4", number: int = 5, parent: int = 1) -> MountEntry:
        return MountEntry(number, parent, "8:1", "/", point, (), (), fstype, "/dev/sda", ())

    mounts = [entry("/", number=1), entry("/a"), entry("/a/b"), entry("/c"), entry("/a"), entry("/ab"), entry("/c", "tmpfs")]
    assert runtime_plan.host_submounts(mounts) == ["/a", "/ab"]
    assert runtime_plan.host_submounts(mounts, ["/ab"]) == ["/a"]


@pytest.mark.parametrize(
    ("mode", "userns", "net", "join"),
    [
        ("bridge", "host", True, False),
        ("none", "auto", True, False),
        ("host", "host", False, False),
        ("container:web", "auto", False, True),
    ],
)
def test_namespaces(mode: str, userns: str, net: bool, join: bool) -> None:
    config = plan(network=NetworkSpec(mode=mode), security=SecuritySpec(userns=userns), time_namespace=True, options={"userns_base": 1000})
    expected = {"mnt", "pid", "uts", "ipc", "cgroup", "time"} | ({"net"} if net else set()) | ({"user"} if userns == "auto" else set())
    assert (set(config["namespaces"]), config["join_netns"]) == (expected, join)
    assert config["userns"] == ({"base": 1000, "size": 65536} if userns == "auto" else None)


def test_a_fresh_sysfs_needs_an_own_network_namespace() -> None:
    auto = SecuritySpec(userns="auto")
    assert target(plan(security=auto, options={"userns_base": 1}), "/sys")[0] == "mount"
    assert target(plan(security=auto, network=NetworkSpec(mode="host"), options={"userns_base": 1}), "/sys")[0] == "bind"
    assert target(plan(network=NetworkSpec(mode="host")), "/sys")[0] == "mount"


def test_host_network_keeps_the_host_name() -> None:
    config = plan(network=NetworkSpec(mode="host"))
    assert config["hostname"] is None
    assert "HOSTNAME=machine" in config["env"]


def test_cgroup_file_systems_of_both_versions() -> None:
    assert target(plan(), "/sys/fs/cgroup")[3:] == ["cgroup2", ["nosuid", "nodev", "noexec", "ro"], ""]
    config = plan(facts=FACTS._replace(cgroup_version=1, cgroup_hierarchies=("cpu,cpuacct", "memory")))
    assert target(config, "/sys/fs/cgroup/cpu,cpuacct")[5] == "cpu,cpuacct"
    assert target(config, "/sys/fs/cgroup/memory")[5] == "memory"
    assert ["seal", "/sys/fs/cgroup"] in config["mounts"]


def test_hierarchies_are_found_in_the_mount_table() -> None:
    lines = [f"{number} 1 0:{number} / /sys/fs/cgroup/x{number} rw - cgroup cgroup rw,{options}" for number, options in enumerate(
        ("cpu,cpuacct", "memory", "xattr,name=systemd", "memory", "clone_children,cpuset"))]  # fmt: skip
    assert runtime_plan.v1_hierarchies(parse_mountinfo("\n".join(lines))) == ("cpu,cpuacct", "memory", "cpuset")


def test_privileged_lifts_the_masks() -> None:
    config = plan(security=SecuritySpec(privileged=True))
    assert operations(config, "mask") == operations(config, "readonly") == operations(config, "seal") == []
    assert ["host_devices"] in config["mounts"]
    assert "ro" not in target(config, "/sys")[4]
    assert config["no_new_privileges"] is False
    config = plan()
    assert {operation[1] for operation in operations(config, "mask")} == set(runtime_plan.MASKED_PATHS)
    assert {operation[1] for operation in operations(config, "readonly")} == set(runtime_plan.READ_ONLY_PATHS)
    assert config["no_new_privileges"] is True


def test_user_mounts_are_ordered_by_depth_and_before_the_masks() -> None:
    binds = (BindMount("/1", "/a/b/c"), BindMount("/2", "/a/", True, "rslave", False))
    config = plan(binds=binds, tmpfs=(TmpfsMount("/a/b", 4096, 0o700),), devices=(Device("/dev/fuse", "/dev/f"),))
    targets = [operation[2] for operation in config["mounts"] if len(operation) > 2 and str(operation[2]).startswith("/a")]
    assert targets == ["/a", "/a/b", "/a/b/c"]
    assert target(config, "/a") == ["bind", "/2", "/a", True, False, "rslave"]
    assert target(config, "/a/b")[5] == "mode=700,size=4096"
    assert ["device", "/dev/fuse", "/dev/f"] in config["mounts"]
    kinds = [operation[0] for operation in config["mounts"]]
    assert kinds.index("mask") > max(index for index, kind in enumerate(kinds) if kind == "bind")


def test_missing_sources_are_made_only_where_asked() -> None:
    config = plan(binds=(BindMount("/new", "/a", create_source=True), BindMount("/old", "/b")))
    assert config["create_directories"][1:] == ["/new"]


def test_proc_comes_after_every_mount_whose_target_an_image_may_have_chosen() -> None:
    config = plan(binds=(BindMount("/a", "/b"),), init=True, options={"network_files": NetworkFiles("/h", "/n", "/r")})
    assert [operation[0] for operation in config["mounts"][config["mounts"].index(target(config, "/proc")) :]].count("bind") == 0


def test_a_bind_of_the_user_wins_over_a_network_file() -> None:
    config = plan(binds=(BindMount("/mine", "/etc/hosts"),), options={"network_files": NetworkFiles("/h", "/n", "/r")})
    assert [operation[1] for operation in operations(config, "bind")] == ["/mine", "/n", "/r"]


def test_network_files() -> None:
    config = plan(options={"network_files": NetworkFiles("/h", None, "/r")})
    assert target(config, "/etc/hosts")[:2] == ["bind", "/h"]
    assert target(config, "/etc/resolv.conf")[:2] == ["bind", "/r"]
    assert not [operation for operation in config["mounts"] if "/etc/hostname" in operation]


def test_init() -> None:
    config = plan(init=True)
    assert config["init_binary"] == runtime_plan.INIT_TARGET
    assert target(config, runtime_plan.INIT_TARGET)[1] == "/usr/bin/tini-static"
    with pytest.raises(Unsupported, match="apt install tini"):
        plan(init=True, facts=FACTS._replace(init_binary=None))


@pytest.mark.parametrize(
    "spec",
    [
        {"binds": (BindMount("/a", "/"),)},
        {"binds": (BindMount("/a", "//x/.."),)},
        {"binds": (BindMount("/a", "relative"),)},
        {"binds": (BindMount("/a", "/proc/sys"),)},
        {"tmpfs": (TmpfsMount("/proc"),)},
        {"tmpfs": (TmpfsMount("/x/../proc/irq"),)},
        {"devices": (Device("/dev/null", "/proc/kcore"),)},
        {"security": SecuritySpec(userns="auto")},
    ],
)
def test_what_cannot_be(spec: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan(**spec)


def test_no_command() -> None:
    with pytest.raises(UsageError, match="no command"):
        plan(IMAGE._replace(command=()))
    with pytest.raises(UsageError, match="no command"):
        plan(None, rootfs="/r")


def test_sysctls_are_opened_while_proc_can_be_written() -> None:
    config = plan(sysctls=(("net.ipv4.ip_forward", "1"),))
    kinds = [operation[0] for operation in config["mounts"]]
    (proc,) = [index for index, operation in enumerate(config["mounts"]) if operation[2:3] == ["/proc"]]
    assert proc < kinds.index("sysctls") < kinds.index("readonly")
    assert config["sysctls"] == [["net.ipv4.ip_forward", "1"]]
    assert operations(plan(), "sysctls") == []


@pytest.mark.parametrize(("userns", "last"), [("host", 2**31 - 1), ("auto", 65535)])
def test_a_network_of_its_own_gets_docker_s_defaults(userns: str, last: int) -> None:
    base = 100000 if userns == "auto" else None
    config = plan(security=SecuritySpec(userns=userns), options={"userns_base": base})
    assert operations(config, "sysctl") == [
        ["sysctl", "net.ipv4.ip_unprivileged_port_start", "0"],
        ["sysctl", "net.ipv4.ping_group_range", f"0 {last}"],
    ]
    kinds = [operation[0] for operation in config["mounts"]]
    assert kinds.index("sysctl") < kinds.index("readonly")
    for mode in ("host", "container:web", "ns:/run/netns/blue"):
        assert operations(plan(network=NetworkSpec(mode=mode)), "sysctl") == []


def test_every_operation_is_one_that_the_runtime_executes() -> None:
    from netbox.runtime import filesystem

    spec = SandboxSpec(
        image="web", init=True, sysctls=(("a", "b"),), security=SecuritySpec(privileged=True), binds=(BindMount("/a", "/b"),)
    )
    facts = FACTS._replace(cgroup_version=1, cgroup_hierarchies=("memory",))
    known = {*filesystem._OPERATIONS, "bind", "device", "host_devices", "sysctls"}
    for asked in (spec, dataclasses.replace(spec, security=SecuritySpec())):
        config = runtime_plan.runtime_config(asked, ID, "n", IMAGE, SETTINGS, facts, capabilities=0)
        assert {operation[0] for operation in config["mounts"]} <= known


def test_description_is_what_a_person_would_type() -> None:
    config = plan(command=("sh", "-c", "echo hi"), user="bob:crew", read_only=True, sysctls=(("kernel.shmmax", "1"),), init=True,
                  binds=(BindMount("/with space", "/data", True),), options={"cgroup_join": ["/sys/fs/cgroup/nb/x"]})  # fmt: skip
    lines = runtime_plan.describe(config)
    root = f"/run/nb/sandboxes/{ID[:24]}/rootfs"
    storage = f"/state/sandboxes/{ID}/storage"
    assert lines[:6] == [
        "unshare --fork --mount --pid --uts --ipc --cgroup --net",
        "echo 0 > /sys/fs/cgroup/nb/x",
        "hostname 0123456789ab",
        f"mkdir -p {root}",
        f"mkdir -p {storage}/upper {storage}/work",
        f"mount -t overlay -o lowerdir=/layers/2:/layers/1,upperdir={storage}/upper,workdir={storage}/work overlay {root}",
    ]
    assert f"mount -t proc -o nosuid,nodev,noexec proc {root}/proc" in lines
    assert f"mount --rbind -o ro --make-rprivate '/with space' {root}/data" in lines
    assert f"mount --rbind -o ro {root}/proc/sys {root}/proc/sys" in lines
    assert lines[-3:] == [
        f"cd {root} && pivot_root . . && umount -l .",
        "sysctl -w kernel.shmmax=1",
        "setpriv --bounding-set=0x3 --reuid=bob --regid=crew --no-new-privs /dev/netbox-init -- sh -c 'echo hi'",
    ]
    assert all("\n" not in line for line in lines)
