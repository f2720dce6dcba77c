"""What was asked for: frozen values, checked, free of effects and of facts about the host.

A ``SandboxSpec`` holds the request after parsing and before planning; it is stored with the sandbox and printed by ``inspect``.
Sizes are bytes, times are seconds, ``None`` means "not asked for".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class PortSpec(NamedTuple):
    """One published port or range of ports: ``-p [ip:][hostport[-range]]:port[-range][/tcp|udp|sctp]``.

    ``host_port`` 0 means: choose a free one. ``length`` ports are published, ``host_port + i`` to ``port + i``. ``choices`` above 1: the
    one port is published on the first free one of ``host_port`` to ``host_port + choices - 1``. ``host_ip`` 0.0.0.0 asks for every address;
    what becomes of it is every IPv4 address, and ``with_ipv6`` every IPv6 one as well, where the sandbox has IPv6.
    """

    port: int
    host_port: int = 0
    length: int = 1
    protocol: str = "tcp"
    host_ip: str = "0.0.0.0"
    choices: int = 1
    with_ipv6: bool = False

    @property
    def by_family(self) -> tuple[PortSpec, ...]:
        """The port as it is held and led on: for IPv4 and for IPv6 by itself."""
        if not self.with_ipv6:
            return (self,)
        own = self._replace(with_ipv6=False)
        return own, own._replace(host_ip="::")

    @property
    def is_settled(self) -> bool:
        """Whether the host port is known."""
        return self.host_port > 0 and self.choices == 1


class ExposedPort(NamedTuple):
    """A port on which the sandbox serves, published or not: ``--expose PORT[-PORT][/protocol]`` or ``--expose NAME=PORT[/protocol]``."""

    port: int
    length: int = 1
    protocol: str = "tcp"
    name: str | None = None


class BindMount(NamedTuple):
    """A directory or file of the host inside the sandbox: ``-v SOURCE:TARGET[:ro]``, ``--mount type=bind,…``."""

    source: str
    target: str
    read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    create_source: bool = False


class TmpfsMount(NamedTuple):
    """A tmpfs inside the sandbox: ``--tmpfs TARGET[:options]``, ``--mount type=tmpfs,…``. ``size`` is in bytes."""

    target: str
    size: int | None = None
    mode: int = 0o1777
    options: tuple[str, ...] = ("nosuid", "nodev", "noexec")


class Ulimit(NamedTuple):
    """A resource limit: the name without ``RLIMIT_`` in lower case, soft and hard values, -1 for unlimited."""

    name: str
    soft: int
    hard: int


class DeviceRule(NamedTuple):
    """An entry of the device allow list: ``--device-cgroup-rule 'c 1:3 rwm'``; -1 stands for ``*``."""

    kind: str
    major: int
    minor: int
    access: str = "rwm"


class Device(NamedTuple):
    """A device node of the host inside the sandbox: ``--device SOURCE[:TARGET[:rwm]]``."""

    source: str
    target: str
    access: str = "rwm"


@dataclass(frozen=True)
class Resources:
    """Limits. ``memory_swap`` counts memory plus swap, -1 for unlimited; ``cpus`` counts processors; ``blkio_weight`` is 10 to 1000."""

    memory: int | None = None
    memory_swap: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    pids_limit: int | None = None
    blkio_weight: int | None = None


class NetworkAttachment(NamedTuple):
    """A network that a sandbox is on: ``--network name=NAME[,ip=…][,ip6=…][,mac-address=…][,alias=…][,gw-priority=…]``.

    The default route goes by the network with the highest ``gw_priority``; the first name in order decides between equals.
    """

    network: str
    ip: str | None = None
    mac_address: str | None = None
    aliases: tuple[str, ...] = ()
    gw_priority: int = 0
    ip6: str | None = None


@dataclass(frozen=True)
class NetworkRequest:
    """A network to be made: ``network create``. What is ``None`` is chosen; ``mtu`` in bytes. ``ipv6``: it has IPv6 too.

    ``driver`` is bridge or macvlan; ``parent`` and ``macvlan_mode`` (private, vepa, bridge, passthru) belong to macvlan.
    """

    name: str
    subnet: str | None = None
    gateway: str | None = None
    ip_range: str | None = None
    aux_addresses: tuple[tuple[str, str], ...] = ()
    internal: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    mtu: int | None = None
    driver: str = "bridge"
    parent: str | None = None
    macvlan_mode: str | None = None
    ipv6: bool = False
    subnet6: str | None = None
    gateway6: str | None = None
    ip_range6: str | None = None


@dataclass(frozen=True)
class NetworkSpec:
    """What was asked of the network. ``mode`` is ``bridge``, ``host``, ``none``, ``container:NAME`` or ``ns:PATH``.

    In mode ``bridge`` the sandbox is on ``networks``; ``None`` stands for the network ``bridge``, with ``ip`` and ``mac_address``.
    ``rate_in`` and ``rate_out`` are bytes a second.
    """

    mode: str = "bridge"
    ip: str | None = None
    mac_address: str | None = None
    ports: tuple[PortSpec, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    rate_in: int | None = None
    rate_out: int | None = None
    networks: tuple[NetworkAttachment, ...] | None = None
    expose: tuple[ExposedPort, ...] = ()

    @property
    def attachments(self) -> tuple[NetworkAttachment, ...]:
        """The networks that the sandbox is on, in the order of its interfaces."""
        if self.networks is not None:
            return self.networks
        return (NetworkAttachment("bridge", self.ip, self.mac_address),) if self.mode == "bridge" else ()

    @property
    def title(self) -> str:
        """``front,back``: what a listing shows; the mode where there are no networks."""
        return ",".join(item.network for item in self.attachments) or ("-" if self.networks is not None else self.mode)


@dataclass(frozen=True)
class SecuritySpec:
    """Privileges.

    ``seccomp`` is ``default``, ``unconfined`` or a profile's path; ``cap_add`` and ``cap_drop`` hold ``NET_ADMIN`` and so on, or ``ALL``.
    """

    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool = True
    seccomp: str = "default"
    userns: str = "host"


@dataclass(frozen=True)
class SandboxSpec:
    """Everything that ``run`` and ``create`` ask for.

    ``image`` is the name of an image; ``rootfs`` a directory of the host used instead of one (then ``image`` is empty).
    ``command`` empty means the image's default. ``stop_signal`` is a number.
    """

    image: str = ""
    command: tuple[str, ...] = ()
    name: str | None = None
    rootfs: str | None = None
    hostname: str | None = None
    user: str | None = None
    working_dir: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    tty: bool = False
    open_stdin: bool = False
    remove: bool = False
    init: bool = False
    read_only: bool = False
    time_namespace: bool = False
    stop_signal: int = 15
    stop_timeout: int = 10
    log_max_size: int = 10 * 1024 * 1024
    log_max_files: int = 3
    shm_size: int = 64 * 1024 * 1024
    storage_size: int | None = None
    binds: tuple[BindMount, ...] = ()
    tmpfs: tuple[TmpfsMount, ...] = ()
    devices: tuple[Device, ...] = ()
    device_rules: tuple[DeviceRule, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    resources: Resources = field(default_factory=Resources)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    security: SecuritySpec = field(default_factory=SecuritySpec)

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values; ``from_json`` reverses it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SandboxSpec:
        """A spec out of what ``to_json`` gave, after a trip through JSON."""
        values = dict(data)
        values["resources"] = Resources(**data["resources"])
        network = dict(data["network"])
        network["ports"] = tuple(PortSpec(*port) for port in network["ports"])
        network["expose"] = tuple(ExposedPort(*port) for port in network.get("expose", ()))
        for key in ("dns", "dns_search", "dns_options"):
            network[key] = tuple(network[key])
        network["extra_hosts"] = _pairs(network["extra_hosts"])
        if network.get("networks") is not None:
            network["networks"] = tuple(
                NetworkAttachment(name, ip, mac, tuple(aliases), *rest) for name, ip, mac, aliases, *rest in network["networks"]
            )
        values["network"] = NetworkSpec(**network)
        security = dict(data["security"])
        security["cap_add"], security["cap_drop"] = tuple(security["cap_add"]), tuple(security["cap_drop"])
        values["security"] = SecuritySpec(**security)
        values["command"] = tuple(data["command"])
        for key in ("environment", "labels", "sysctls"):
            values[key] = _pairs(data[key])
        values["binds"] = tuple(BindMount(*bind) for bind in data["binds"])
        values["tmpfs"] = tuple(TmpfsMount(mount[0], mount[1], mount[2], tuple(mount[3])) for mount in data["tmpfs"])
        values["devices"] = tuple(Device(*device) for device in data["devices"])
        values["device_rules"] = tuple(DeviceRule(*rule) for rule in data["device_rules"])
        values["ulimits"] = tuple(Ulimit(*limit) for limit in data["ulimits"])
        return cls(**values)


def _pairs(rows: Any) -> tuple[tuple[str, str], ...]:
    return tuple((str(key), str(value)) for key, value in rows)
