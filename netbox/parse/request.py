"""From the options of ``run`` to a ``SandboxSpec``: one function for the command line and the Python API.

Everything that needs no host is decided here, before anything is touched. What needs the host or the kernel (does the image exist, is the
address in the subnet, may this sysctl be set) is the engine's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, Unpack

from netbox.errors import UsageError
from netbox.parse import addresses, environment, limits, mounts, names, networks, ports, quantities, shaping
from netbox.parse.text import PairsLike, each, parse_integer, plain_text, quote
from netbox.spec import (
    BindMount,
    Device,
    DeviceRule,
    ExposedPort,
    NetworkAttachment,
    NetworkSpec,
    PortSpec,
    Resources,
    SandboxSpec,
    SecuritySpec,
    TmpfsMount,
    Ulimit,
)


class RunOptions(TypedDict, total=False):
    """The keywords of ``build_spec`` and ``Engine.run``. ``None`` means "not asked for".

    Strings have docker's syntax. Where several values are taken, one string stands for a list of one. Sizes are bytes or text as ``64m``.
    """

    name: str | None
    rootfs: str | None
    hostname: str | None
    user: str | None
    working_dir: str | None
    environment: PairsLike | None
    env_files: Iterable[str] | None
    labels: PairsLike | None
    tty: bool
    open_stdin: bool
    remove: bool
    init: bool
    read_only: bool
    time_namespace: bool
    stop_signal: str | int | None
    stop_timeout: str | int | None
    log_max_size: str | int | None
    log_max_files: str | int | None
    shm_size: str | int | None
    storage_size: str | int | None
    volumes: Iterable[str | BindMount] | None
    mounts: Iterable[str | BindMount | TmpfsMount] | None
    tmpfs: Iterable[str | TmpfsMount] | None
    devices: Iterable[str | Device] | None
    device_rules: Iterable[str | DeviceRule] | None
    ulimits: Mapping[str, int | tuple[int, int]] | Iterable[str | Ulimit] | None
    sysctls: PairsLike | None
    memory: str | int | None
    memory_swap: str | int | None
    cpus: str | float | None
    cpu_shares: str | int | None
    cpuset_cpus: str | None
    pids_limit: str | int | None
    blkio_weight: str | int | None
    network: str | Iterable[str | NetworkAttachment] | None
    network_aliases: Iterable[str] | None
    ip: str | None
    mac_address: str | None
    ports: Iterable[str | int | PortSpec] | None
    publish_all: bool
    expose: Iterable[str | int | ExposedPort] | None
    dns: Iterable[str] | None
    dns_search: Iterable[str] | None
    dns_options: Iterable[str] | None
    extra_hosts: PairsLike | None
    net_rate_in: str | int | None
    net_rate_out: str | int | None
    privileged: bool
    cap_add: Iterable[str] | None
    cap_drop: Iterable[str] | None
    security_opt: Iterable[str] | None
    no_new_privileges: bool | None
    seccomp: str | None
    userns: str | None


OPTION_NAMES = frozenset(RunOptions.__annotations__)
_RESOURCE_NAMES = ("memory", "memory_swap", "cpus", "cpu_shares", "cpuset_cpus", "pids_limit", "blkio_weight")
_STOP_TIMEOUT_MAX = 86400 * 365


def build_spec(image: str = "", command: Iterable[str] = (), **options: Unpack[RunOptions]) -> SandboxSpec:
    """The checked request for a sandbox out of ``image``, or out of ``rootfs``.

    Reads the files of ``env_files``, ``os.environ`` for variables without a value, and the working directory for relative paths.
    Raises ``UsageError`` for every mistake in a value, ``TypeError`` for a keyword that does not exist.
    """
    unknown = options.keys() - OPTION_NAMES
    if unknown:
        raise TypeError(f"no such option of a sandbox: {', '.join(sorted(unknown))}")
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    network = _network(given)
    storage_size = given.get("storage_size")
    spec = SandboxSpec(
        image=plain_text(image, "image"),
        command=names.check_command(command),
        resources=_resources(given),
        network=network,
        security=_security(given),
        **_identity(given, network),
        **_environment(given),
        **_mounts(given),
        **_devices(given),
        **_running(given),
        storage_size=None if storage_size is None else quantities.parse_size(storage_size, "storage size", 1 << 20),
    )
    _check_root(spec, given)
    return spec


def _check_root(spec: SandboxSpec, given: Mapping[str, Any]) -> None:
    """Image or rootfs, and what goes with which."""
    if spec.rootfs is not None and spec.image:
        raise UsageError(f"both image {quote(spec.image)} and rootfs {quote(spec.rootfs)} are given", "leave one of the two out")
    if spec.rootfs is None and not spec.image:
        raise UsageError("no image is given", "name an image such as busybox or host, or give --rootfs DIR")
    if spec.rootfs is None and spec.image != "host":
        _check_image(spec.image)
    if spec.rootfs is not None and not spec.command:
        raise UsageError(f"rootfs {quote(spec.rootfs)} has no default command", "write the command after the options")
    if spec.storage_size is not None and (spec.rootfs is not None or spec.read_only):
        why = "rootfs is written to directly" if spec.rootfs is not None else "a read-only sandbox writes nothing"
        raise UsageError(f"storage-opt size limits the writable layer, and here is none: {why}", "leave storage-opt out")


def _check_image(image: str) -> None:
    """An image reference may hold a registry, a path and a tag one day; now it is a name, perhaps with slashes, colons and an @."""
    if len(image) > 255:
        raise UsageError(f"image name {quote(image)}: {len(image)} characters, 255 are allowed", "'netbox image ls' lists the images")
    if not image.isascii() or not image[0].isalnum() or not set(image) <= _IMAGE_CHARACTERS:
        raise UsageError(
            f"image name {quote(image)}: not the name of an image", "options go before the image; 'netbox image ls' lists the images"
        )


_IMAGE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:@")


def _resources(given: Mapping[str, Any]) -> Resources:
    resources = limits.parse_resources(**{key: given[key] for key in _RESOURCE_NAMES if key in given})
    limits.check_resources(resources)
    return resources


def _network(given: Mapping[str, Any]) -> NetworkSpec:
    ip = addresses.parse_sandbox_ip(given["ip"]) if "ip" in given else None
    mac_address = addresses.parse_mac(given["mac_address"]) if "mac_address" in given else None
    mode, attachments = networks.parse_networks(given.get("network"), ip, mac_address, given.get("network_aliases"))
    published = tuple(ports.parse_port(port) for port in each(given.get("ports")))
    exposed = ports.parse_exposed(each(given.get("expose")))
    if given.get("publish_all"):
        published += ports.publish_all(exposed, published)
    ports.check_overlaps(published)
    spec = NetworkSpec(
        mode=mode,
        ip=ip if attachments is None else None,
        mac_address=mac_address if attachments is None else None,
        ports=published,
        dns=tuple(addresses.parse_any_address(server, "dns") for server in each(given.get("dns"))),
        dns_search=tuple(addresses.parse_search_domain(domain) for domain in each(given.get("dns_search"))),
        dns_options=tuple(addresses.parse_dns_option(option) for option in each(given.get("dns_options"))),
        extra_hosts=addresses.parse_extra_hosts(given.get("extra_hosts")),
        networks=attachments,
        expose=exposed,
        rate_in=shaping.parse_rate(given["net_rate_in"], "net-rate-in") if "net_rate_in" in given else None,
        rate_out=shaping.parse_rate(given["net_rate_out"], "net-rate-out") if "net_rate_out" in given else None,
    )
    _check_network(spec)
    return spec


def _check_network(spec: NetworkSpec) -> None:
    """What only a network of the sandbox's own can have, and what a shared one already decides."""
    shared = spec.mode.startswith("container:")
    no_link = {
        "publish": spec.ports,
        "ip": spec.ip,
        "mac-address": spec.mac_address,
        "net-rate-in": spec.rate_in,
        "net-rate-out": spec.rate_out,
    }
    not_own_files = {"dns": spec.dns, "dns-search": spec.dns_search, "dns-option": spec.dns_options, "add-host": spec.extra_hosts}
    if shared or spec.mode in ("host", "none") or spec.mode.startswith("ns:"):
        for option in (name for name, value in no_link.items() if value):
            reason = "the sandbox gets no link of its own"
            raise UsageError(f"{option} cannot be used with network {spec.mode}: {reason}", f"leave {option} out, or use network bridge")
    if shared:
        for option in (name for name, value in not_own_files.items() if value):
            reason = "the other sandbox's files are used"
            raise UsageError(f"{option} cannot be used with network {spec.mode}: {reason}", f"give {option} to the other sandbox")
        if spec.expose:
            raise UsageError(f"expose cannot be used with network {spec.mode}: the ports are the other's", "give it to the other sandbox")
    gatewayless = "it has no gateway" if spec.mode == "none" else "netbox does not know its gateway" if spec.mode.startswith("ns:") else ""
    if gatewayless and any(address == addresses.HOST_GATEWAY for _, address in spec.extra_hosts):
        raise UsageError(f"add-host with host-gateway cannot be used with network {spec.mode}: {gatewayless}", "write an address")


def _security(given: Mapping[str, Any]) -> SecuritySpec:
    no_new_privileges, seccomp = names.parse_security_options(given.get("security_opt"))
    no_new_privileges = given.get("no_new_privileges", no_new_privileges)
    seccomp = given.get("seccomp", seccomp)
    privileged = bool(given.get("privileged"))
    userns = plain_text(given.get("userns", "host"), "userns")
    if userns not in ("host", "auto"):
        raise UsageError(f"userns {quote(userns)}: not a mode of user namespaces", "write auto or host")
    if privileged and userns == "auto":
        raise UsageError(
            "privileged cannot be used with userns auto: the privileges would end at the user namespace", "leave one of the two out"
        )
    if seccomp is None:
        seccomp = "unconfined" if privileged else "default"
    elif seccomp not in ("default", "unconfined"):
        seccomp = mounts.parse_source(seccomp, "seccomp profile")
    return SecuritySpec(
        privileged=privileged,
        cap_add=names.parse_capabilities(given.get("cap_add"), "cap-add"),
        cap_drop=names.parse_capabilities(given.get("cap_drop"), "cap-drop"),
        no_new_privileges=not privileged if no_new_privileges is None else bool(no_new_privileges),
        seccomp=seccomp,
        userns=userns,
    )


def _identity(given: Mapping[str, Any], network: NetworkSpec) -> dict[str, Any]:
    if "hostname" in given and network.mode.startswith("container:"):
        raise UsageError(f"hostname cannot be used with network {network.mode}: the name is the other sandbox's", "leave hostname out")
    parsers = {
        "name": names.parse_name,
        "hostname": addresses.parse_hostname,
        "user": names.parse_user,
        "working_dir": names.parse_working_dir,
        "rootfs": limits.parse_rootfs,
    }
    return {key: parse(given[key]) for key, parse in parsers.items() if key in given}


def _environment(given: Mapping[str, Any]) -> dict[str, Any]:
    """Files first, so that ``-e`` wins over them, as docker does."""
    entries = environment.read_env_files(given.get("env_files"))
    direct = given.get("environment")
    variables = dict(environment.parse_environment(entries, os.environ))
    variables |= dict(environment.parse_environment(direct, os.environ))
    return {"environment": tuple(variables.items()), "labels": environment.parse_labels(given.get("labels"))}


def _mounts(given: Mapping[str, Any]) -> dict[str, Any]:
    asked = [mounts.parse_mount(mount) for mount in each(given.get("mounts"))]
    binds = [mounts.parse_volume(volume) for volume in each(given.get("volumes"))]
    binds += [mount for mount in asked if isinstance(mount, BindMount)]
    tmpfs = [mounts.parse_tmpfs(mount) for mount in each(given.get("tmpfs"))]
    tmpfs += [mount for mount in asked if isinstance(mount, TmpfsMount)]
    mounts.check_targets([*binds, *tmpfs])
    return {"binds": tuple(binds), "tmpfs": tuple(tmpfs)}


def _devices(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "devices": tuple(limits.parse_device(device) for device in each(given.get("devices"))),
        "device_rules": tuple(limits.parse_device_rule(rule) for rule in each(given.get("device_rules"))),
        "ulimits": limits.parse_ulimits(given.get("ulimits")),
        "sysctls": limits.parse_sysctls(given.get("sysctls")),
    }


def _running(given: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        key: bool(given[key]) for key in ("tty", "open_stdin", "remove", "init", "read_only", "time_namespace") if key in given
    }
    if "stop_signal" in given:
        values["stop_signal"] = quantities.parse_signal(given["stop_signal"], "stop-signal")
    if "stop_timeout" in given:
        values["stop_timeout"] = parse_stop_timeout(given["stop_timeout"])
    if "log_max_size" in given:
        values["log_max_size"] = names.parse_log_size(given["log_max_size"])
    if "log_max_files" in given:
        values["log_max_files"] = names.parse_log_files(given["log_max_files"])
    if "shm_size" in given:
        values["shm_size"] = quantities.parse_size(given["shm_size"], "shm-size", 4096)
    return values


def parse_stop_timeout(value: str | int) -> int:
    """Seconds between the stop signal and SIGKILL. Raises ``UsageError``."""
    return parse_integer(value, "stop-timeout", 0, _STOP_TIMEOUT_MAX, "write a number of seconds")
