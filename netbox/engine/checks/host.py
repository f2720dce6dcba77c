"""Observations of the host: files, tools and packages here, kernel features by the probes in a process of their own."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import json
import os
import subprocess
import sys

from netbox.engine import repair
from netbox.engine.checks import beside
from netbox.engine.checks.catalogue import LIMITED, MISSING, OK, Observation
from netbox.engine.creation import TINI
from netbox.errors import HostError, NetboxError, Unsupported, UsageError
from netbox.image import busybox
from netbox.kernel import iptables, nftables
from netbox.kernel.cgroups import Cgroups, Limits, detect
from netbox.kernel.cgroups.hierarchies import parse_mountinfo, v1_hierarchies
from netbox.network import firewall_choice
from netbox.settings import Settings
from netbox.state.store import Store

_PROBE_TIME = 20.0  # seconds; it takes a fraction of one
_START = "import sys; sys.path[:0] = [{root!r}]; from netbox.kernel.probe import main; main()"
_MACHINES = ("x86_64", "aarch64")
_KERNEL = (5, 12)
_OVERLAY_MAGIC = 0x794C7630  # OVERLAYFS_SUPER_MAGIC, <linux/magic.h>
_TMPFS_MAGIC = 0x01021994
_RULES_SHOWN = 6
_SPACE_WANTED = 256 * 1024 * 1024  # bytes
_PACKAGES = ("click", "pyroute2", "iptc", "pyseccomp", "scapy", "zstandard")
_LIBRARIES = {
    "libiptc": ("libip4tc.so.2", "libip4tc.so.0"),
    "xtables": ("libxtables.so.12", "libxtables.so.11", "libxtables.so.10"),
    "libseccomp": ("libseccomp.so.2",),
    "libnftables": ("libnftables.so.1",),
    "libpcap": ("libpcap.so.0.8", "libpcap.so.1"),
}


def observe(settings: Settings) -> dict[str, Observation]:
    """Everything that the catalogue asks about. Changes nothing; takes a few tenths of a second."""
    probes = _start_probes()
    try:
        found = {**_machine(settings), **_files(), **_cgroups(), **_tools(), **_firewall(settings)}
    except BaseException:
        probes.kill()
        probes.wait()
        raise
    found.update(_probed(probes))
    if found["cgroup.hierarchy"].detail == "v2":  # there the filter is a BPF program
        found["cgroup.devices"] = found.get("security.device_filter", Observation(MISSING))
    return found


# -- kernel features -----------------------------------------------------------------------------------------------------------------------


def _start_probes() -> subprocess.Popen[bytes]:
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    interpreter: str = getattr(sys, "_base_executable", sys.executable)
    command = [interpreter, "-I", "-S", "-c", _START.format(root=package_root)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def _probed(probes: subprocess.Popen[bytes]) -> dict[str, Observation]:
    try:
        output, errors = probes.communicate(timeout=_PROBE_TIME)
    except subprocess.TimeoutExpired:
        os.killpg(probes.pid, 9)
        probes.communicate()
        raise HostError(f"the probes of the kernel did not end within {_PROBE_TIME:.0f} seconds") from None
    if probes.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or [f"exit code {probes.returncode}"]
        raise HostError(f"the probes of the kernel failed: {lines[-1]}")
    answers: dict[str, list[str | int]] = json.loads(output)
    return {key: Observation(str(state), str(detail), int(number)) for key, (state, detail, number) in answers.items()}


# -- the machine ---------------------------------------------------------------------------------------------------------------------------


def _machine(settings: Settings) -> dict[str, Observation]:
    system = os.uname()
    version = tuple(int(part) for part in system.release.split("-")[0].split(".")[:2] if part.isdecimal())
    good = version >= _KERNEL and system.machine in _MACHINES
    return {
        "host.root": Observation(OK) if os.geteuid() == 0 else Observation(MISSING, f"this is uid {os.geteuid()}"),
        "host.kernel": Observation(OK if good else MISSING, f"Linux {system.release}, {system.machine}"),
        "host.state": _state_directory(settings.root),
    }


def _state_directory(path: str) -> Observation:
    """Looks at the nearest directory that exists: netbox makes the rest."""
    place = path
    while not os.path.isdir(place) and place != "/":
        place = os.path.dirname(place)
    if not os.access(place, os.W_OK):
        return Observation(MISSING, f"{place} cannot be written", errno.EACCES)
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    kind = file_system(place)
    if kind == _OVERLAY_MAGIC:
        return Observation(MISSING, f"{path} is on an overlay, which cannot hold the upper layer of another")
    if free < _SPACE_WANTED:
        return Observation(LIMITED, f"{path} has {free // (1 << 20)} MiB left", remedy="free some space")
    if kind == _TMPFS_MAGIC:
        return Observation(LIMITED, f"{path} is on a tmpfs: images and stopped sandboxes do not survive a reboot")
    return Observation(OK, path)


def file_system(path: str) -> int:
    """The magic number of the file system that holds ``path`` (statfs(2)); 0 when it cannot be told."""
    buffer = (ctypes.c_long * 32)()  # struct statfs begins with f_type
    return int(buffer[0]) if ctypes.CDLL(None).statfs(os.fsencode(path), buffer) == 0 else 0


def _files() -> dict[str, Observation]:
    forwarding, bridged = _read("/proc/sys/net/ipv4/ip_forward"), _read("/proc/sys/net/bridge/bridge-nf-call-iptables")
    off = "off until a network needs it"
    return {
        "host.ip_forward": Observation(MISSING) if forwarding is None else Observation(OK, "on" if forwarding == "1" else off),
        "host.bridge_nf": _bridge_netfilter(bridged),
        "host.ipv6": Observation(OK if os.path.exists("/proc/net/if_inet6") else MISSING),
        "host.btf": Observation(OK) if os.path.exists("/sys/kernel/btf/vmlinux") else Observation(MISSING, "no /sys/kernel/btf/vmlinux"),
    }


def _bridge_netfilter(value: str | None) -> Observation:
    if value is None:
        return Observation(MISSING, "not loaded")
    if value != "1":
        return Observation(LIMITED, "off", remedy="sysctl -w net.bridge.bridge-nf-call-iptables=1")
    return Observation(OK, "on")


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


# -- cgroups -------------------------------------------------------------------------------------------------------------------------------


def _cgroups() -> dict[str, Observation]:
    """Asks the implementation that the runtime takes whether it could enforce each limit; that writes nothing."""
    try:
        cgroups = detect()
    except Unsupported as error:
        return {"cgroup.hierarchy": Observation(MISSING, error.message, remedy=error.hint or "")}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        hierarchies = v1_hierarchies(parse_mountinfo(file.read()), os.path.exists)
    found = {f"cgroup.{name}": _enforceable(cgroups, limits) for name, limits in _limits().items()}
    found["cgroup.hierarchy"] = Observation(OK, f"v{cgroups.version}")
    for controller in ("devices", "freezer"):
        there = cgroups.version == 2 or controller in hierarchies
        found[f"cgroup.{controller}"] = (
            Observation(OK) if there else Observation(MISSING, "not mounted", remedy=f"mount -t cgroup -o {controller}")
        )
    return found


def _limits() -> dict[str, Limits]:
    return {
        "memory": Limits(memory=1 << 26),
        "swap": Limits(memory=1 << 26, memory_swap=1 << 27),
        "cpu": Limits(cpus=0.5, cpu_shares=512),
        "cpuset": Limits(cpuset_cpus=str(min(os.sched_getaffinity(0)))),
        "pids": Limits(pids_limit=64),
        "blkio": Limits(blkio_weight=500),
    }


def _enforceable(cgroups: Cgroups, limits: Limits) -> Observation:
    try:
        cgroups.check(limits)
    except (Unsupported, UsageError) as error:
        return Observation(MISSING, error.message.partition(": ")[2] or error.message, remedy=error.hint or "")
    return Observation(OK)


# -- firewall ------------------------------------------------------------------------------------------------------------------------------


def _firewall(settings: Settings) -> dict[str, Observation]:
    choice = firewall_choice.choose()
    missing = choice.name == firewall_choice.NFTABLES and not nftables.is_installed()
    return {
        "firewall.backend": Observation(MISSING if missing else OK, f"{choice.name}: {choice.reason}"),
        "firewall.rules": _rules(settings),
        **beside.observe(settings),
    }


def _rules(settings: Settings) -> Observation:
    """Compares what stands with what should, for running sandboxes and their networks."""
    if os.geteuid() != 0:
        return Observation(LIMITED, "only root can see them", remedy="run it as root (sudo)")
    store = Store(settings)
    try:
        found = repair.differences(store)
    except NetboxError as error:
        return Observation(MISSING, error.message, remedy=error.hint or "")
    finally:
        store.close()
    if not found:
        return Observation(OK)
    shown = [f"{item.kind} ({item.owner or 'of nobody'}): {item.what}" for item in found[:_RULES_SHOWN]]
    rest = [f"and {len(found) - _RULES_SHOWN} more"] if len(found) > _RULES_SHOWN else []
    return Observation(LIMITED, "; ".join(shown + rest))


# -- tools ---------------------------------------------------------------------------------------------------------------------------------


def _tools() -> dict[str, Observation]:
    found = {f"python.{name}": Observation(OK if importlib.util.find_spec(name) else MISSING) for name in _PACKAGES}
    for name, sonames in _LIBRARIES.items():
        found[f"tool.{name}"] = Observation(OK) if any(_loads(soname) for soname in sonames) else Observation(MISSING, f"no {sonames[0]}")
    found["tool.extensions"] = _extensions()
    found["tool.busybox"] = _busybox()
    found["tool.tini"] = Observation(OK, TINI) if os.access(TINI, os.X_OK) else Observation(MISSING, f"no {TINI}")
    return found


def _extensions() -> Observation:
    try:
        return Observation(OK, iptables.extension_directory())
    except Unsupported as error:
        return Observation(MISSING, error.message)


def _busybox() -> Observation:
    try:
        return Observation(OK, busybox.find_static().path)
    except Unsupported as error:
        return Observation(MISSING, error.message.partition(": ")[2])


def _loads(soname: str) -> bool:
    """Whether the dynamic linker finds the library."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True
