"""Tries out what this kernel can do, in child processes whose namespaces vanish with them: the machine itself stays as it is.

Run as a process of its own, ``main`` prints one JSON object: key -> [state, detail, errno]; ``group.*`` is the answer of the keys of a
group that are not there. Each group of probes has a child and a network and mount namespace of its own. Without root the children begin in
a user namespace, which still shows what the kernel has. A probe that would make the kernel load a module which is not loaded is not run:
that the module lies ready is the answer then.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import struct

from netbox.kernel import capabilities, namespaces, seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = list[str | int]

OK, LIMITED, MISSING = "ok", "limited", "missing"

_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
_SYSCALL.restype = ctypes.c_long
_CLONE3 = 435
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1  # <linux/landlock.h>
_BPF = 280 if os.uname().machine == "aarch64" else 321
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_CGROUP_DEVICE, _BPF_PROG_TYPE_RAW_TRACEPOINT = 15, 17
_RETURN_ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
_FAR_DESCRIPTOR = 1 << 20
_PATIENCE = 10.0  # seconds that the holder of a user namespace sleeps at most


class Limited(Exception):
    """The feature is there, with something less than it could have; the text says what."""


def outcome(probe: Callable[[], str | None]) -> Answer:
    """What a probe found: it returns a detail or nothing, raises OSError when the kernel refuses, Limited when part is missing."""
    try:
        return [OK, probe() or "", 0]
    except Limited as limit:
        return [LIMITED, str(limit), 0]
    except OSError as error:
        return [MISSING, error.strerror or str(error), error.errno or 0]


class Modules:
    """Which kernel modules are built in, loaded, or lie ready (modprobe(8), modules.builtin and modules.dep of kmod)."""

    def __init__(self, release: str, root: str = "/") -> None:
        directory = f"{root}lib/modules/{release}"
        self._builtin = _text(f"{directory}/modules.builtin")
        self._ready = _text(f"{directory}/modules.dep")
        self._loaded = {line.partition(" ")[0] for line in _text(f"{root}proc/modules").splitlines()}

    def waits(self, name: str) -> bool:
        """Whether using the module would load it now."""
        return name.replace("-", "_") not in self._loaded and not self._listed(name, self._builtin) and self._listed(name, self._ready)

    @staticmethod
    def _listed(name: str, text: str) -> bool:
        return any(f"/{spelling}.ko" in text for spelling in (name.replace("-", "_"), name.replace("_", "-")))


class Group:
    """Collects the answers of one child."""

    def __init__(self, modules: Modules) -> None:
        self.answers: dict[str, Answer] = {}
        self._modules = modules

    def probe(self, key: str, action: Callable[[], str | None], *modules: str) -> bool:
        """Runs ``action`` unless it needs a module that is not loaded; tells whether it ran and succeeded."""
        waiting = [name for name in modules if self._modules.waits(name)]
        if waiting:
            self.answers[key] = [OK, f"the module {waiting[0]} is loaded when it is needed", 0]
            return False
        self.answers[key] = outcome(action)
        return self.answers[key][0] == OK


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def in_child(action: Callable[[], dict[str, Answer]]) -> dict[str, Answer]:
    """Runs ``action`` in a child process and gives back its answers; none of them when the child is killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
            os.close(reading)
            data = json.dumps(action()).encode()
            while data:
                data = data[os.write(writing, data) :]
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    answers: dict[str, Answer] = json.loads(data) if data else {}
    return answers


def enter_user_namespace() -> None:
    """Makes an unprivileged process root in a user namespace of its own (user_namespaces(7)). Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(namespaces.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
            file.write(text)


# -- namespaces ----------------------------------------------------------------------------------------------------------------------------


def _namespaces(group: Group) -> None:
    group.answers |= in_child(lambda: {"namespace.user": outcome(lambda: syscalls.unshare(namespaces.CLONE_NEWUSER))})
    for kind in ("mnt", "uts", "ipc", "cgroup", "net", "time", "pid"):
        group.probe(f"namespace.{kind}", lambda kind=kind: syscalls.unshare(namespaces.KINDS[kind]))  # type: ignore[misc]
    group.probe("namespace.join", _join)
    if group.answers["namespace.mnt"][0] == group.answers["namespace.pid"][0] == OK:
        _keep_mounts_private()
        group.answers |= in_child(
            _first_process
        )  # the next child is pid 1 of the new namespace, and the last: nothing forks in it afterwards


def _keep_mounts_private() -> None:
    """A new mount namespace still passes mounts on to the old one, where the root is shared (mount_namespaces(7))."""
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def _join() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        syscalls.setns(pidfd, namespaces.CLONE_NEWUTS)
    finally:
        os.close(pidfd)


def _first_process() -> dict[str, Answer]:
    def mount_proc() -> None:
        if os.getpid() != 1:
            raise OSError(errno.EINVAL, f"the first process has the pid {os.getpid()}")
        syscalls.mount("proc", _scratch(), "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)

    return {"mount.proc": outcome(mount_proc)}


# -- calls and file systems ----------------------------------------------------------------------------------------------------------------


def _calls(group: Group) -> None:
    group.probe("call.clone3", _clone3)
    group.probe("call.pidfd_open", lambda: os.close(os.pidfd_open(os.getpid())))
    group.probe("call.openat2", lambda: os.close(syscalls.openat2(syscalls.AT_FDCWD, "/", os.O_PATH, resolve=syscalls.RESOLVE_IN_ROOT)))
    group.probe("call.close_range", lambda: syscalls.close_range(_FAR_DESCRIPTOR, _FAR_DESCRIPTOR))


def _clone3() -> None:
    """Asks with an argument of no size: a kernel that has the call answers EINVAL, one without (or a filter around this process) ENOSYS."""
    _SYSCALL(ctypes.c_long(_CLONE3), None, ctypes.c_long(0))
    number = ctypes.get_errno()
    if number != errno.EINVAL:
        raise OSError(number, os.strerror(number))


def _scratch() -> str:
    """A directory to mount over."""
    for path in ("/tmp", "/run", "/mnt"):
        if os.path.isdir(path):
            return path
    return "/"


def _file_systems(group: Group) -> None:
    base = _scratch()
    syscalls.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWNET | namespaces.CLONE_NEWIPC)
    _keep_mounts_private()
    if not group.probe("mount.tmpfs", lambda: syscalls.mount("tmpfs", base, "tmpfs", 0, "size=1m")):
        return
    for name in ("lower", "upper", "work", "upper2", "work2", "target", "root", "root/old"):
        os.mkdir(f"{base}/{name}")
    with open(f"{base}/lower/file", "w", encoding="utf-8") as file:
        file.write("lower")
    target = f"{base}/target"
    group.probe("mount.overlay", lambda: _overlay(base), "overlay")
    group.probe("mount.overlay_root", lambda: _overlay_root(base), "overlay")
    for key, kind, data in (("sysfs", "sysfs", None), ("devpts", "devpts", "newinstance,ptmxmode=0666"), ("mqueue", "mqueue", None)):
        group.probe(f"mount.{key}", lambda kind=kind, data=data: _mount(kind, target, data))  # type: ignore[misc]
    group.probe("mount.detached", lambda: _detached(target))
    group.probe("mount.idmapped", _idmapped)
    group.probe("mount.pivot_root", lambda: _pivot(f"{base}/root"))


def _mount(kind: str, target: str, data: str | None) -> None:
    syscalls.mount(kind, target, kind, 0, data)
    syscalls.umount2(target, syscalls.MNT_DETACH)


def _overlay(base: str) -> None:
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    syscalls.mount("overlay", f"{base}/target", "overlay", 0, options)
    try:
        with open(f"{base}/target/file", "a", encoding="utf-8") as file:
            file.write(" and upper")
        if _text(f"{base}/lower/file") != "lower" or _text(f"{base}/target/file") != "lower and upper":
            raise OSError(errno.EIO, "copying up does not work")
    finally:
        syscalls.umount2(f"{base}/target", syscalls.MNT_DETACH)


def _overlay_root(base: str) -> None:
    syscalls.mount("overlay", f"{base}/target", "overlay", 0, f"lowerdir=/,upperdir={base}/upper2,workdir={base}/work2")
    syscalls.umount2(f"{base}/target", syscalls.MNT_DETACH)


def _detached(target: str) -> None:
    context = syscalls.fsopen("tmpfs")
    syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
    mount = syscalls.fsmount(context)
    syscalls.mount_setattr(mount, "", syscalls.AT_EMPTY_PATH, set_=syscalls.MOUNT_ATTR_RDONLY)
    syscalls.move_mount(mount, target)
    os.close(syscalls.open_tree(target))
    syscalls.umount2(target, syscalls.MNT_DETACH)


def _idmapped() -> None:
    """Shows a copy of the root mount with other owners (mount_setattr(2)); the copy is never attached anywhere."""
    holder = _user_namespace_holder()
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{holder}/{name}", "w", encoding="utf-8") as file:
                file.write("0 100000 65536")
        owners = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        tree = syscalls.open_tree("/")
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, set_=syscalls.MOUNT_ATTR_IDMAP, userns_fd=owners)
    finally:
        os.kill(holder, 9)
        os.waitpid(holder, 0)


def _user_namespace_holder() -> int:
    """The pid of a child in a new user namespace that sleeps until it is killed. Raises OSError when the namespace cannot be had."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
            syscalls.unshare(namespaces.CLONE_NEWUSER)
            os.write(writing, b"1")
            os.close(writing)
            select.select([], [], [], _PATIENCE)
        finally:
            os._exit(1)
    os.close(writing)
    ready = os.read(reading, 1)
    os.close(reading)
    if not ready:
        os.waitpid(pid, 0)
        raise OSError(errno.EPERM, "no user namespace to map to")
    return pid


def _pivot(new_root: str) -> None:
    """Last of its group: the child's root is another one afterwards."""
    syscalls.mount("tmpfs", new_root, "tmpfs", 0, "size=64k")
    os.mkdir(f"{new_root}/old")
    syscalls.pivot_root(new_root, f"{new_root}/old")


# -- security and debugging ----------------------------------------------------------------------------------------------------------------


def _security(group: Group) -> None:
    group.probe("security.capabilities", _capabilities)
    group.probe("security.landlock", _landlock)
    group.probe("security.device_filter", lambda: _load_bpf(_BPF_PROG_TYPE_CGROUP_DEVICE))
    group.probe("debug.raw_tracepoint", lambda: _load_bpf(_BPF_PROG_TYPE_RAW_TRACEPOINT))
    group.probe("security.no_new_privs", _no_new_privileges)
    group.probe("security.seccomp", lambda: seccomp.install(_RETURN_ALLOW))


def _no_new_privileges() -> None:
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def _capabilities() -> str:
    missing = capabilities.names_of(capabilities.ALL & ~capabilities.available() & ~(-1 << _last_capability() + 1))
    if missing:
        raise Limited(f"this process lacks {', '.join(missing)}")
    return ""


def _last_capability() -> int:
    text = _text("/proc/sys/kernel/cap_last_cap").strip()
    return int(text) if text.isdecimal() else len(capabilities.NAMES) - 1


def _landlock() -> str:
    version = _SYSCALL(ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_long(0), ctypes.c_long(_LANDLOCK_CREATE_RULESET_VERSION))
    if version < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"ABI {version}"


def _load_bpf(kind: int) -> None:
    """Loads the program "return 0" (bpf(2)); it is attached to nothing and goes with its descriptor."""
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    text = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(struct.pack("=IIQQ", kind, 2, ctypes.addressof(code), ctypes.addressof(text)) + bytes(48))
    descriptor = _SYSCALL(ctypes.c_long(_BPF), ctypes.c_long(_BPF_PROG_LOAD), attributes, ctypes.c_long(72))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)


def run() -> dict[str, Answer]:
    """All probes. The calling process must be single-threaded and should end afterwards."""
    from netbox.kernel import probe_network

    modules = Modules(os.uname().release)
    answers: dict[str, Answer] = {}
    if os.geteuid() != 0:
        answers["unprivileged"] = outcome(enter_user_namespace)
    groups = {
        "namespace": _namespaces,
        "call": _calls,
        "mount": _file_systems,
        "security": _security,
        "network": probe_network.links,
        "firewall": probe_network.firewall,
    }
    for name, probes in groups.items():
        answers |= in_child(lambda name=name, probes=probes: _answers(name, probes, modules))  # type: ignore[misc]
    return answers


def _answers(name: str, probes: Callable[[Group], None], modules: Modules) -> dict[str, Answer]:
    group = Group(modules)
    try:
        probes(group)
    except OSError as error:  # a step that every probe of the group stands on: the answer for all that were not reached
        group.answers[f"{name}.*"] = [MISSING, error.strerror or str(error), error.errno or 0]
    return group.answers


def main() -> None:
    """Prints the answers."""
    os.write(1, json.dumps(run()).encode())
