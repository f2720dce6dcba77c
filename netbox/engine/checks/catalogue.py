"""Every feature and tool that netbox needs or can use, and what the answers of the probes mean for it. Pure."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import NamedTuple

OK, LIMITED, MISSING = "ok", "limited", "missing"
_ORDER = (OK, LIMITED, MISSING)


class Observation(NamedTuple):
    """What was found out about one thing: a state, what there is to say about it, and the error number where the kernel refused.

    ``remedy`` replaces the catalogue's where the observer knows better.
    """

    state: str
    detail: str = ""
    errno: int = 0
    remedy: str = ""


class Fact(NamedTuple):
    """One line of the check. ``state`` is ``ok``, ``limited`` or ``missing``; ``remedy`` is empty when there is nothing to get."""

    group: str
    name: str
    state: str
    required: bool
    purpose: str
    detail: str
    remedy: str


class Row(NamedTuple):
    """A line of the catalogue: which observations decide (the worst of them), whether the main job needs it, what for, how to get it.

    With ``backend`` the main job needs it only where that firewall backend is chosen.
    """

    name: str
    keys: tuple[str, ...]
    required: bool
    purpose: str
    remedy: str
    backend: str = ""


def _row(name: str, keys: str, purpose: str, remedy: str, backend: str = "") -> Row:
    return Row(name, tuple(keys.split()), True, purpose, remedy, backend)


def _extra(name: str, keys: str, purpose: str, remedy: str) -> Row:
    return Row(name, tuple(keys.split()), False, purpose, remedy)


CATALOGUE: dict[str, tuple[Row, ...]] = {
    "machine": (
        _row("root", "host.root", "namespaces, links and rules are root's", "run netbox as root (sudo)"),
        _row("kernel", "host.kernel", "x86_64 or aarch64, Linux 5.12 or newer", "a newer kernel"),
        _row(
            "system calls",
            "call.clone3 call.pidfd_open call.openat2 call.close_range",
            "clone3, pidfd_open, openat2, close_range",
            "Linux 5.9 or newer; inside another container, a seccomp filter that lets them pass",
        ),
        _row(
            "state directory", "host.state", "images, writable layers, the database", "set NETBOX_ROOT to a directory on ext4, xfs or btrfs"
        ),
        _row("python packages", "python.click python.pyroute2 python.pyseccomp", "what netbox imports", "pip install {names}"),
        _extra("zstandard", "python.zstandard", "images packed with zstd", "pip install zstandard"),
        _extra("busybox", "tool.busybox", "the image 'busybox'", "apt install busybox-static"),
        _extra("tini", "tool.tini", "--init: a reaper as pid 1", "apt install tini"),
    ),
    "namespaces": (
        _row("mount", "namespace.mnt", "a file tree of its own", "a kernel with namespaces (CONFIG_NAMESPACES=y)"),
        _row("pid", "namespace.pid", "processes of its own", "CONFIG_PID_NS=y"),
        _row("network", "namespace.net", "links, addresses and ports of its own", "CONFIG_NET_NS=y"),
        _row("uts", "namespace.uts", "a host name of its own", "CONFIG_UTS_NS=y"),
        _row("ipc", "namespace.ipc", "shared memory and queues of its own", "CONFIG_IPC_NS=y"),
        _row("cgroup", "namespace.cgroup", "hides the host's cgroup paths", "CONFIG_CGROUPS=y, Linux 4.6 or newer"),
        _extra(
            "user",
            "namespace.user",
            "--userns=auto: root inside is nobody outside",
            "CONFIG_USER_NS=y; sysctl -w user.max_user_namespaces=15000",
        ),
        _extra("time", "namespace.time", "a clock of its own", "CONFIG_TIME_NS=y, Linux 5.6 or newer"),
        _row("joining", "namespace.join", "exec: enter a running sandbox by its pidfd", "Linux 5.8 or newer"),
    ),
    "cgroups": (
        _row("hierarchy", "cgroup.hierarchy", "counts, limits and ends the processes of a sandbox", "mount -t cgroup2 none /sys/fs/cgroup"),
        _row("devices", "cgroup.devices", "which devices a sandbox may use", "mount -t cgroup -o devices; on v2 CONFIG_CGROUP_BPF=y"),
        _extra("memory", "cgroup.memory", "--memory", "CONFIG_MEMCG=y; boot with cgroup_enable=memory"),
        _extra("swap", "cgroup.swap", "--memory-swap", "boot with swapaccount=1"),
        _extra("cpu", "cgroup.cpu", "--cpus, --cpu-shares", "CONFIG_CFS_BANDWIDTH=y"),
        _extra("cpuset", "cgroup.cpuset", "--cpuset-cpus", "CONFIG_CPUSETS=y"),
        _extra("pids", "cgroup.pids", "--pids-limit", "CONFIG_CGROUP_PIDS=y"),
        _extra("block I/O", "cgroup.blkio", "--blkio-weight", "the scheduler bfq on the disk: echo bfq > /sys/block/DISK/queue/scheduler"),
        _extra("freezer", "cgroup.freezer", "pause, unpause", "CONFIG_CGROUP_FREEZER=y, or cgroup v2 and Linux 5.2"),
    ),
    "network": (
        _row("veth", "network.veth", "the cable of a sandbox", "CONFIG_VETH=y; apt install linux-image-amd64"),
        _row("bridge", "network.bridge", "the switch of a network", "CONFIG_BRIDGE=y"),
        _row("forwarding", "host.ip_forward", "packets between networks", "CONFIG_INET=y, and /proc/sys that can be written"),
        _extra(
            "bridge netfilter",
            "host.bridge_nf",
            "rules between sandboxes of one network",
            "modprobe br_netfilter (CONFIG_BRIDGE_NETFILTER)",
        ),
        _extra("IPv6", "host.ipv6", "IPv6 on the links of sandboxes", "CONFIG_IPV6=y; boot without ipv6.disable=1"),
        _extra("macvlan", "network.macvlan", "networks on the LAN: --driver macvlan", "CONFIG_MACVLAN=y"),
        _extra("VLAN", "network.vlan", "macvlan networks with -o parent=eth0.100", "CONFIG_VLAN_8021Q=y"),
        _extra("tbf", "network.tbf", "--net-rate-in, --net-rate-out, impair --rate", "CONFIG_NET_SCH_TBF=y"),
        _extra("netem", "network.netem", "impair --delay, --jitter, --corrupt", "CONFIG_NET_SCH_NETEM=y"),
        _extra("htb", "network.htb", "impair --to PEER", "CONFIG_NET_SCH_HTB=y, CONFIG_NET_CLS_U32=y"),
    ),
    "firewall": (
        _row("backend", "firewall.backend", "iptables or nftables (NETBOX_FIREWALL)", "apt install libnftables1"),
        _row(
            "ip_tables",
            "firewall.filter firewall.nat",
            "published ports and masquerading",
            "CONFIG_IP_NF_IPTABLES=y, CONFIG_IP_NF_NAT=y",
            "iptables",
        ),
        _row(
            "matches",
            "firewall.tcp firewall.udp firewall.addrtype firewall.conntrack firewall.comment",
            "what netbox's rules look at",
            "CONFIG_NETFILTER_XTABLES=y, CONFIG_NETFILTER_XT_MATCH_ADDRTYPE=y, …_CONNTRACK=y, …_COMMENT=y",
            "iptables",
        ),
        _extra("statistic", "firewall.statistic", "impair --loss, by iptables", "CONFIG_NETFILTER_XT_MATCH_STATISTIC=y"),
        _row(
            "targets",
            "firewall.MASQUERADE firewall.DNAT",
            "what netbox's rules do",
            "CONFIG_NETFILTER_XT_TARGET_MASQUERADE=y, CONFIG_NF_NAT=y",
            "iptables",
        ),
        _row(
            "iptables package",
            "tool.xtables tool.libiptc tool.extensions python.iptc",
            "python-iptables and its libraries",
            "apt install iptables; pip install python-iptables",
            "iptables",
        ),
        _row(
            "nf_tables",
            "firewall.nf_tables tool.libnftables",
            "published ports beside others' rules",
            "CONFIG_NF_TABLES=y, CONFIG_NFT_NAT=y, CONFIG_NFT_MASQ=y, CONFIG_NFT_FIB_IPV4=y, CONFIG_NFT_NUMGEN=y; apt install libnftables1",
            "nftables",
        ),
        _extra("rules", "firewall.rules", "what runs has its rules", "put them back: netbox repair"),
        _extra("forward policy", "firewall.forward", "others' chains let packets pass", "let netbox's bridges pass in those chains"),
        _extra("name queries", "firewall.names", "others' chains let sandboxes ask for names", "let them pass in those chains"),
        _extra("name service", "host.names", "answers for names on user-defined networks", "put it back: netbox repair"),
        _extra("connection tracking", "firewall.ctnetlink", "forgets old UDP connections of a port", "CONFIG_NF_CT_NETLINK=y"),
        _extra("ip6_tables", "firewall.ip6_filter", "rules for IPv6", "CONFIG_IP6_NF_IPTABLES=y, CONFIG_IP6_NF_FILTER=y"),
    ),
    "file systems": (
        _row("tmpfs", "mount.tmpfs", "/dev, /run, --tmpfs", "CONFIG_TMPFS=y"),
        _row("overlay", "mount.overlay", "a writable layer over an image", "CONFIG_OVERLAY_FS=y"),
        _extra("overlay over /", "mount.overlay_root", "the image 'host'", "Linux 5.11 or newer, and a / that is not an overlay itself"),
        _row("proc, sysfs", "mount.proc mount.sysfs", "/proc and /sys of its own", "start netbox where /proc and /sys are not masked"),
        _row("devpts", "mount.devpts", "terminals of its own", "CONFIG_UNIX98_PTYS=y"),
        _row("mqueue", "mount.mqueue", "/dev/mqueue", "CONFIG_POSIX_MQUEUE=y"),
        _row("mount calls", "mount.detached", "fsopen, open_tree, move_mount, mount_setattr", "Linux 5.12 or newer"),
        _row("pivot_root", "mount.pivot_root", "leaves the host's files behind", "a root that is not the initramfs"),
        _extra(
            "idmapped mounts",
            "mount.idmapped",
            "--userns=auto without copying images",
            "Linux 5.12 or newer, and a file system that has them",
        ),
    ),
    "security": (
        _row("seccomp", "security.seccomp", "filters system calls", "CONFIG_SECCOMP_FILTER=y"),
        _row("libseccomp", "tool.libseccomp", "compiles seccomp profiles", "apt install libseccomp2"),
        _row("no_new_privs", "security.no_new_privs", "set-uid programs gain nothing", "Linux 3.5 or newer"),
        _extra("capabilities", "security.capabilities", "what can be granted with --cap-add", "start netbox with full root"),
        _extra(
            "landlock", "security.landlock", "lets programs inside confine themselves", "CONFIG_SECURITY_LANDLOCK=y, and landlock in lsm="
        ),
    ),
    "debugging": (
        _extra("packet socket", "network.packet_socket", "captures", "CONFIG_PACKET=y"),
        _extra("libpcap", "tool.libpcap", "filters of captures", "apt install libpcap0.8"),
        _extra(
            "TRACE",
            "firewall.raw firewall.TRACE",
            "which rule decided about a packet",
            "CONFIG_NETFILTER_XT_TARGET_TRACE=y, CONFIG_IP_NF_RAW=y",
        ),
        _extra("NFLOG", "firewall.NFLOG firewall.nfnetlink_log", "which policy dropped a packet", "CONFIG_NETFILTER_NETLINK_LOG=y"),
        _extra(
            "BPF", "debug.raw_tracepoint host.btf", "where in the kernel a packet ends", "CONFIG_BPF_SYSCALL=y, CONFIG_DEBUG_INFO_BTF=y"
        ),
        _extra("scapy", "python.scapy", "builds and reads packets", "pip install scapy"),
    ),
}

_AS_ROOT = "run it as root (sudo)"
_IN_CONTAINER = "give it the full rights of root; inside another container, start that one with --privileged"
_DISTRIBUTIONS = {"iptc": "python-iptables"}


def judge(observations: Mapping[str, Observation]) -> list[Fact]:
    """A fact for each line of the catalogue. What was not observed counts as missing."""
    unprivileged = observations.get("host.root", Observation(MISSING)).state != OK
    return [_fact(group, row, observations, unprivileged) for group, rows in CATALOGUE.items() for row in rows]


def usable(facts: list[Fact]) -> bool:
    """Whether the main job can run: nothing that it needs is missing."""
    return not any(fact.required and fact.state == MISSING for fact in facts)


def _fact(group: str, row: Row, observations: Mapping[str, Observation], unprivileged: bool) -> Fact:
    found = {key: _observation(key, observations) for key in row.keys}
    state = max((observation.state for observation in found.values()), key=_ORDER.index)
    worst = {key: observation for key, observation in found.items() if observation.state == state}
    detail = _detail(worst, len(found) > 1 and state != OK)
    chosen = observations.get("firewall.backend", Observation(OK)).detail.partition(":")[0]
    required = row.required and row.backend in ("", chosen)
    return Fact(group, row.name, state, required, row.purpose, detail, "" if state == OK else _remedy(row, worst, unprivileged))


def _observation(key: str, observations: Mapping[str, Observation]) -> Observation:
    group = key.partition(".")[0]
    return observations.get(key) or observations.get(f"{group}.*") or Observation(MISSING, "could not be tried")


def _detail(worst: Mapping[str, Observation], named: bool) -> str:
    """Each thing that was said, once, behind the names of those about which it was said."""
    said: dict[str, list[str]] = {}
    for key, observation in worst.items():
        said.setdefault(observation.detail, []).append(_short(key))
    if not named:
        return ", ".join(filter(None, said))
    return ", ".join(f"{', '.join(names)}: {text}" if text else ", ".join(names) for text, names in said.items())


def _remedy(row: Row, worst: Mapping[str, Observation], unprivileged: bool) -> str:
    for observation in worst.values():
        if observation.remedy:
            return observation.remedy
    if any(observation.errno in (errno.EPERM, errno.EACCES) for observation in worst.values()):
        return _AS_ROOT if unprivileged else _IN_CONTAINER
    names = [_short(key) for key in worst]
    return row.remedy.replace("{names}", " ".join(names))


def _short(key: str) -> str:
    name = key.partition(".")[2]
    return _DISTRIBUTIONS.get(name, name)
