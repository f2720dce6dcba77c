"""From what was asked for to the configuration that the runtime executes. Pure, except ``host_facts``.

The configuration holds plain JSON values. Its mounts are ordered operations, each a list with its kind first, which
``netbox.runtime.filesystem`` executes inside the new root and ``describe`` prints as commands.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from netbox.engine.runtime_commands import describe
from netbox.errors import Unsupported, UsageError
from netbox.kernel.cgroups.hierarchies import V1_CONTROLLERS
from netbox.kernel.mounts import MountEntry, read_mountinfo
from netbox.names import short_id

if TYPE_CHECKING:
    from netbox.settings import Settings
    from netbox.spec import SandboxSpec

__all__ = ["NetworkFiles", "RootSource", "RuntimeFacts", "check_targets", "describe", "host_facts", "host_submounts", "runtime_config"]

TINI = "/usr/bin/tini-static"
INIT_TARGET = "/dev/netbox-init"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_STORAGE = 512 * 1024 * 1024
_DEV_SIZE = 64 * 1024
_TTY_GROUP = 5
_LAST_GROUP = (1 << 31) - 1
_BOUNDED = ["nosuid", "nodev", "noexec"]
_JOINING = ("container:", "ns:")

# The lists of dockerd (moby, oci/defaults.go).
MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}

# File systems of the kernel's own, and what lies in memory: not part of the machine's root as an image.
_NOT_STORED = frozenset(
    "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue nsfs proc pstore ramfs "
    "rpc_pipefs securityfs selinuxfs sysfs tmpfs tracefs".split()
)
_OWN_IN_SANDBOX = ("/proc", "/sys", "/dev", "/run")


class RuntimeFacts(NamedTuple):
    """What the plan needs to know about the host.

    ``cgroup_hierarchies`` are the mount options of v1 hierarchies; ``init_binary`` is None when absent.
    """

    cgroup_version: int
    cgroup_hierarchies: tuple[str, ...]
    mounts: tuple[MountEntry, ...]
    init_binary: str | None
    hostname: str


class RootSource(Protocol):
    """What the plan needs of an image: layers top first, and defaults for the command."""

    @property
    def layers(self) -> Sequence[str]:
        """Directories, the uppermost first."""

    @property
    def command(self) -> Sequence[str]:
        """The default command."""

    @property
    def environment(self) -> Sequence[Any]:
        """``K=V`` strings or pairs."""

    @property
    def working_dir(self) -> str:
        """The default working directory; empty means ``/``."""

    @property
    def host(self) -> bool:
        """Whether it is this machine's root."""


class NetworkFiles(NamedTuple):
    """The files of the host that appear as /etc/hosts, /etc/hostname and /etc/resolv.conf; None leaves the image's."""

    hosts: str | None = None
    hostname: str | None = None
    resolv_conf: str | None = None


def host_facts(cgroup_version: int) -> RuntimeFacts:
    """Reads the facts from this host. Raises OSError."""
    mounts = tuple(read_mountinfo())
    return RuntimeFacts(
        cgroup_version,
        v1_hierarchies(mounts) if cgroup_version == 1 else (),
        mounts,
        TINI if os.access(TINI, os.X_OK) else None,
        os.uname().nodename,
    )


def v1_hierarchies(mounts: Sequence[MountEntry]) -> tuple[str, ...]:
    """The cgroup v1 hierarchies as mount options (``memory``, ``cpu,cpuacct``), each once. Pure.

    Those in which a sandbox has no cgroup of its own (``name=systemd``) would show it the host's.
    """
    found: dict[str, None] = {}
    for entry in mounts:
        if entry.fstype == "cgroup":
            options = [
                option
                for option in entry.super_options
                if option not in ("rw", "ro", "xattr", "clone_children") and "release_agent" not in option
            ]
            if any(option in V1_CONTROLLERS for option in options):
                found[",".join(options)] = None
    return tuple(found)


def runtime_config(
    spec: SandboxSpec,
    sandbox_id: str,
    name: str,
    image: RootSource | None,
    settings: Settings,
    facts: RuntimeFacts,
    *,
    capabilities: int,
    seccomp: str | None = None,
    cgroup_join: Sequence[str] = (),
    network_files: NetworkFiles = NetworkFiles(),  # noqa: B008  (frozen)
    hostname: str | None = None,
    userns_base: int | None = None,
    userns_size: int = 65536,
    attach: bool = False,
    claim: bool = False,
    console_size: tuple[int, int] | None = None,
    collect: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The configuration of one start.

    ``image`` None means ``spec.rootfs``; ``capabilities`` is a mask, ``seccomp`` the path of a compiled filter, ``userns_base`` the
    first of the host's ids for ``--userns=auto``. Raises UsageError (no command, a mount that cannot be) and Unsupported.
    """
    check_targets(spec)
    if spec.security.userns == "auto" and userns_base is None:
        raise UsageError("--userns=auto needs a range of ids", "none was allocated")
    root = settings.sandbox_root(sandbox_id)
    rootfs = _rootfs(spec, image, settings, facts, f"{root}/storage")
    own_hostname = hostname or spec.hostname or (None if spec.network.mode == "host" else short_id(sandbox_id))
    return {
        "id": sandbox_id,
        "name": name,
        **_process(spec, image, own_hostname or facts.hostname),
        "console_size": list(console_size) if console_size else None,
        "hostname": own_hostname,
        "namespaces": _namespaces(spec),
        "join_netns": spec.network.mode.startswith(_JOINING),
        "userns": {"base": userns_base, "size": userns_size} if spec.security.userns == "auto" else None,
        "rootfs": rootfs,
        "mounts": _mounts(spec, image, settings, facts, network_files, userns_size),
        "create_directories": [
            *([f"{root}/storage"] if rootfs["upper"] else []),
            *(bind.source for bind in spec.binds if bind.create_source),
        ],
        "cgroup": {"version": facts.cgroup_version, "join": list(cgroup_join)},
        "capabilities": capabilities,
        "seccomp": seccomp,
        "log": {"directory": f"{root}/logs", "max_size": spec.log_max_size, "max_files": spec.log_max_files},
        "run_dir": settings.sandbox_run(sandbox_id),
        "attach": attach,
        "claim": claim,
        "collect": list(collect) if collect else None,
        "collect_env": {
            "PATH": DEFAULT_PATH,
            "NETBOX_ROOT": settings.root,
            "NETBOX_RUN": settings.run,
            "NETBOX_CGROUP": settings.cgroup_parent,
        },
    }


def _process(spec: SandboxSpec, image: RootSource | None, hostname: str) -> dict[str, Any]:
    """What runs, as whom, and with which limits."""
    argv = list(spec.command or (image.command if image else ()))
    if not argv:
        raise UsageError("no command: the image has no default one" if image else "no command", "name one after the image")
    return {
        "argv": argv,
        "env": _environment(spec, image, hostname),
        "cwd": posixpath.join("/", spec.working_dir or (image.working_dir if image else "") or "/"),
        "user": spec.user or getattr(image, "user", "") or "",
        "tty": spec.tty,
        "open_stdin": spec.open_stdin,
        "init_binary": INIT_TARGET if spec.init else None,
        "sysctls": [list(pair) for pair in spec.sysctls],
        "rlimits": [list(limit) for limit in spec.ulimits],
        "no_new_privileges": spec.security.no_new_privileges and not spec.security.privileged,
    }


def check_targets(spec: SandboxSpec) -> None:
    """Refuses mounts over the root itself or inside /proc, which would undo the masks, and those without an absolute target.

    Raises UsageError.
    """
    targets = [bind.target for bind in spec.binds] + [tmpfs.target for tmpfs in spec.tmpfs] + [device.target for device in spec.devices]
    for target in targets:
        normal = posixpath.normpath(target)
        if not target.startswith("/"):
            raise UsageError(f"the mount target {target!r} is not absolute", "give a path that begins with /")
        if normal.strip("/") == "" or (normal + "/").startswith("/proc/"):
            raise UsageError(f"nothing can be mounted at {target!r} in a sandbox", "choose a directory below / and outside of /proc")


def _namespaces(spec: SandboxSpec) -> list[str]:
    kinds = ["mnt", "pid", "uts", "ipc", "cgroup"]
    if spec.network.mode != "host" and not spec.network.mode.startswith(_JOINING):
        kinds.append("net")
    if spec.security.userns == "auto":
        kinds.append("user")
    if spec.time_namespace:
        kinds.append("time")
    return kinds


def _environment(spec: SandboxSpec, image: RootSource | None, hostname: str) -> list[str]:
    """Docker's order: PATH and HOSTNAME, TERM with a terminal, the image's, the user's. HOME is the user's, so only init knows it."""
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if spec.tty:
        values["TERM"] = "xterm"
    for item in image.environment if image else ():
        key, _, value = item.partition("=") if isinstance(item, str) else (item[0], "", item[1])
        values[key] = value
    values.update(spec.environment)
    return [f"{key}={value}" for key, value in values.items()]


def _rootfs(spec: SandboxSpec, image: RootSource | None, settings: Settings, facts: RuntimeFacts, storage: str) -> dict[str, Any]:
    rootfs: dict[str, Any] = {
        "lower": [],
        "upper": None,
        "work": None,
        "tmpfs_size": None,
        "directory": None,
        "stacked": [],
        "read_only": spec.read_only,
        "volatile": False,
    }
    if image is None:
        rootfs["directory"] = spec.rootfs
    elif image.host:
        rootfs["lower"] = list(image.layers)
        rootfs["stacked"] = host_submounts(facts.mounts, _hidden(settings))
        rootfs["tmpfs_size"] = spec.storage_size or DEFAULT_STORAGE
    else:
        rootfs["lower"] = list(image.layers)
        rootfs["upper"], rootfs["work"] = f"{storage}/upper", f"{storage}/work"
        rootfs["volatile"] = spec.remove  # nothing outlives it, so unmounting need not write everything to the disk first
    return rootfs


def _hidden(settings: Settings) -> tuple[str, ...]:
    return (settings.root, settings.run)


def host_submounts(mounts: Sequence[MountEntry], hidden: Sequence[str] = ()) -> list[str]:
    """The mount points below / that hold stored files and so belong to the machine's root as an image, parents first. Pure.

    Left out: what has a fresh file system in a sandbox (/proc, /sys, /dev, /run), what is in ``hidden``, and what a later mount covers.
    """
    covers = (*_OWN_IN_SANDBOX, *hidden)
    found: dict[str, None] = {}
    for entry in mounts:
        for path in [path for path in found if _is_below(path, entry.mount_point)]:
            del found[path]  # covered by this later mount
        stored = entry.fstype not in _NOT_STORED and not any(_is_below(entry.mount_point, cover) for cover in covers)
        if stored and entry.mount_point != "/" and not _covered_by_memory(entry, mounts):
            found[entry.mount_point] = None
    return sorted(found, key=lambda path: path.split("/"))


def _covered_by_memory(entry: MountEntry, mounts: Sequence[MountEntry]) -> bool:
    """Whether it lies on a tmpfs or the like: its mount point does not exist in the image then."""
    parents = {other.mount_id: other for other in mounts}
    parent = parents.get(entry.parent_id)
    return parent is not None and parent.mount_point != "/" and parent.fstype in _NOT_STORED


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _mounts(
    spec: SandboxSpec,
    image: RootSource | None,
    settings: Settings,
    facts: RuntimeFacts,
    network_files: NetworkFiles,
    userns_size: int,
) -> list[list[Any]]:
    """In their order. /proc comes last: until then no link of an image can reach a descriptor of init through /proc/self/fd."""
    operations = [*_dev(spec), *_sys(spec, facts)]
    if image is not None and image.host:
        operations.append(["mount", "tmpfs", "/run", "tmpfs", ["nosuid", "nodev"], "mode=0755,size=64m"])
        operations += [["mask", path] for path in _hidden(settings)]
    operations += _user_mounts(spec)
    taken = {posixpath.normpath(bind.target) for bind in spec.binds}  # the user's own /etc/hosts wins
    for source, target in zip(network_files, ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"), strict=True):
        if source and target not in taken:
            operations.append(["bind", source, target, False, False, "rprivate"])
    if spec.init:
        if facts.init_binary is None:
            raise Unsupported(f"cannot use --init: {TINI} is not installed", "apt install tini")
        operations.append(["bind", facts.init_binary, INIT_TARGET, True, False, "rprivate"])
    operations.append(["mount", "proc", "/proc", "proc", _BOUNDED, ""])
    operations += [["sysctl", name, value] for name, value in _network_defaults(spec, userns_size)]
    if spec.sysctls:
        operations.append(["sysctls"])
    if not spec.security.privileged:
        operations += [["mask", path] for path in MASKED_PATHS]
        operations += [["readonly", path] for path in READ_ONLY_PATHS]
    return operations


def _network_defaults(spec: SandboxSpec, userns_size: int) -> list[tuple[str, str]]:
    """What Docker sets in a network namespace of the sandbox's own: every user may listen on port 80 and send ICMP echo requests."""
    if "net" not in _namespaces(spec):
        return []
    last = userns_size - 1 if spec.security.userns == "auto" else _LAST_GROUP
    return [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", f"0 {last}")]


def _dev(spec: SandboxSpec) -> list[list[Any]]:
    shm = ["mount", "shm", "/dev/shm", "tmpfs", _BOUNDED, f"mode=1777,size={spec.shm_size}"]
    return [
        ["mount", "tmpfs", "/dev", "tmpfs", ["nosuid", "strictatime"], f"mode=755,size={_DEV_SIZE}k"],
        ["mount", "devpts", "/dev/pts", "devpts", ["nosuid", "noexec"], f"newinstance,ptmxmode=0666,mode=0620,gid={_TTY_GROUP}"],
        shm,
        ["mount", "mqueue", "/dev/mqueue", "mqueue", _BOUNDED, ""],
        *(["device", f"/dev/{name}", f"/dev/{name}"] for name in DEVICES),
        *(["symlink", value, f"/dev/{name}"] for name, value in _LINKS.items()),
        *([["host_devices"]] if spec.security.privileged else []),
        *(["device", device.source, device.target] for device in spec.devices),
    ]


def _sys(spec: SandboxSpec, facts: RuntimeFacts) -> list[list[Any]]:
    privileged = spec.security.privileged
    flags = _BOUNDED + ([] if privileged else ["ro"])
    operations: list[list[Any]] = [["mount", "sysfs", "/sys", "sysfs", flags, ""]]
    if spec.security.userns == "auto" and "net" not in _namespaces(spec):
        # A fresh sysfs shows a network namespace, which then has to belong to the user namespace.
        operations = [["bind", "/sys", "/sys", True, True, "rprivate"]]
    if facts.cgroup_version == 2:
        return [*operations, ["mount", "cgroup", "/sys/fs/cgroup", "cgroup2", flags, ""]]
    operations.append(["mount", "tmpfs", "/sys/fs/cgroup", "tmpfs", _BOUNDED, "mode=755,size=64k"])
    for options in facts.cgroup_hierarchies:
        operations.append(["mount", "cgroup", f"/sys/fs/cgroup/{options}", "cgroup", flags, options])
    return operations if privileged else [*operations, ["seal", "/sys/fs/cgroup"]]


def _user_mounts(spec: SandboxSpec) -> list[list[Any]]:
    """Parents before what lies inside them, whatever the order on the command line."""
    operations: list[list[Any]] = []
    for tmpfs in spec.tmpfs:
        size = "" if tmpfs.size is None else f",size={tmpfs.size}"
        data = f"mode={tmpfs.mode:o}{size}"
        operations.append(["mount", "tmpfs", posixpath.normpath(tmpfs.target), "tmpfs", list(tmpfs.options), data])
    for bind in spec.binds:
        target = posixpath.normpath(bind.target)
        operations.append(["bind", bind.source, target, bind.read_only, bind.recursive, bind.propagation])
    return sorted(operations, key=lambda operation: str(operation[2]).count("/"))
