from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse import build_spec
from netbox.parse.request import OPTION_NAMES
from netbox.spec import (
    BindMount,
    Device,
    DeviceRule,
    ExposedPort,
    NetworkSpec,
    PortSpec,
    Resources,
    SandboxSpec,
    SecuritySpec,
    TmpfsMount,
    Ulimit,
)


def test_the_least() -> None:
    assert build_spec("busybox") == SandboxSpec(image="busybox")
    assert build_spec("busybox", ["true"]) == SandboxSpec(image="busybox", command=("true",))


def test_none_means_not_asked_for() -> None:
    assert build_spec("busybox", **dict.fromkeys(OPTION_NAMES)) == SandboxSpec(image="busybox")  # type: ignore[arg-type]


FULL: dict[str, Any] = {
    "name": "web",
    "hostname": "web.example",
    "user": "1000:1000",
    "working_dir": "/srv/",
    "environment": {"A": "b"},
    "labels": {"role": "web"},
    "tty": True,
    "open_stdin": True,
    "remove": True,
    "init": True,
    "read_only": True,
    "time_namespace": True,
    "stop_signal": "HUP",
    "stop_timeout": "3",
    "log_max_size": "1m",
    "log_max_files": 2,
    "shm_size": "1m",
    "volumes": ["/a:/b:ro"],
    "mounts": ["type=tmpfs,target=/t", BindMount("/c", "/d")],
    "tmpfs": ["/u"],
    "devices": ["/dev/fuse"],
    "device_rules": ["c 1:3 r"],
    "ulimits": ["nofile=10:20"],
    "sysctls": {"net.ipv4.ip_forward": "1"},
    "memory": "64m",
    "memory_swap": "128m",
    "cpus": 1.5,
    "cpu_shares": 512,
    "cpuset_cpus": "0",
    "pids_limit": 50,
    "blkio_weight": 100,
    "network": "bridge",
    "ip": "10.1.2.3",
    "network_aliases": None,
    "mac_address": "02:00:00:00:00:01",
    "ports": ["8080:80", 443, PortSpec(53, 53, 1, "udp")],
    "publish_all": True,
    "expose": ["http=443", "99/udp"],
    "dns": ["1.1.1.1"],
    "dns_search": ["example.org"],
    "dns_options": ["ndots:2"],
    "extra_hosts": {"db": "10.0.0.1"},
    "net_rate_in": "10mbit",
    "net_rate_out": 8_000_000,
    "cap_add": ["net_admin"],
    "cap_drop": ["ALL"],
    "security_opt": ["seccomp=unconfined", "no-new-privileges=false"],
    "userns": "auto",
}
FULL_SPEC = SandboxSpec(
    image="busybox",
    command=("httpd", "-f"),
    name="web",
    hostname="web.example",
    user="1000:1000",
    working_dir="/srv",
    environment=(("A", "b"),),
    labels=(("role", "web"),),
    tty=True,
    open_stdin=True,
    remove=True,
    init=True,
    read_only=True,
    time_namespace=True,
    stop_signal=1,
    stop_timeout=3,
    log_max_size=1 << 20,
    log_max_files=2,
    shm_size=1 << 20,
    binds=(BindMount("/a", "/b", True, create_source=True), BindMount("/c", "/d")),
    tmpfs=(TmpfsMount("/u"), TmpfsMount("/t")),
    devices=(Device("/dev/fuse", "/dev/fuse"),),
    device_rules=(DeviceRule("c", 1, 3, "r"),),
    ulimits=(Ulimit("nofile", 10, 20),),
    sysctls=(("net.ipv4.ip_forward", "1"),),
    resources=Resources(64 << 20, 128 << 20, 1.5, 512, "0", 50, 100),
    network=NetworkSpec(
        "bridge",
        "10.1.2.3",
        "02:00:00:00:00:01",
        (PortSpec(80, 8080), PortSpec(443), PortSpec(53, 53, 1, "udp"), PortSpec(99, protocol="udp")),
        ("1.1.1.1",),
        ("example.org",),
        ("ndots:2",),
        (("db", "10.0.0.1"),),
        rate_in=1_250_000,
        rate_out=1_000_000,
        expose=(ExposedPort(443, 1, "tcp", "http"), ExposedPort(99, 1, "udp")),
    ),
    security=SecuritySpec(False, ("NET_ADMIN",), ("ALL",), False, "unconfined", "auto"),
)


def test_everything() -> None:
    assert build_spec("busybox", ["httpd", "-f"], **FULL) == FULL_SPEC


def test_every_option_is_covered_above() -> None:
    assert set(FULL) | {"rootfs", "env_files", "storage_size", "privileged", "no_new_privileges", "seccomp"} == OPTION_NAMES


def test_a_spec_survives_json() -> None:
    assert SandboxSpec.from_json(json.loads(json.dumps(FULL_SPEC.to_json()))) == FULL_SPEC


def test_rootfs(tmp_path: Path) -> None:
    spec = build_spec("", ["sh"], rootfs=str(tmp_path))
    assert (spec.image, spec.rootfs, spec.command) == ("", str(tmp_path), ("sh",))


def test_env_files_come_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "yes")
    (tmp_path / "env").write_text("A=1\nB=1\nFROM_HERE\n")
    spec = build_spec("busybox", environment=["B=2"], env_files=[str(tmp_path / "env")])
    assert dict(spec.environment) == {"A": "1", "B": "2", "FROM_HERE": "yes"}


@pytest.mark.parametrize(
    ("options", "seccomp", "no_new_privileges"),
    [
        ({}, "default", True),
        ({"privileged": True}, "unconfined", False),
        ({"privileged": True, "seccomp": "default", "no_new_privileges": True}, "default", True),
        ({"privileged": True, "security_opt": ["no-new-privileges"]}, "unconfined", True),
        ({"security_opt": ["seccomp=/x/../p.json"]}, "/p.json", True),
        ({"no_new_privileges": False}, "default", False),
    ],
)
def test_privileges(options: dict[str, Any], seccomp: str, no_new_privileges: bool) -> None:
    security = build_spec("busybox", **options).security
    assert (security.seccomp, security.no_new_privileges) == (seccomp, no_new_privileges)


@pytest.mark.parametrize("mode", ["host", "none", "container:web"])
@pytest.mark.parametrize("options", [{"ports": ["80"]}, {"ip": "10.0.0.2"}, {"mac_address": "02:00:00:00:00:01"}])
def test_only_a_bridge_has_ports_and_addresses(mode: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"cannot be used with network {mode}: the sandbox gets no link"):
        build_spec("busybox", network=mode, **options)


@pytest.mark.parametrize(
    "options", [{"dns": "1.1.1.1"}, {"dns_search": "."}, {"dns_options": "ndots:1"}, {"extra_hosts": "a:1.2.3.4"}, {"hostname": "x"}]
)
def test_a_shared_namespace_shares_its_files(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot be used with network container:web"):
        build_spec("busybox", network="container:web", **options)
    build_spec("busybox", network="none", **options)
    build_spec("busybox", network="host", **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"network": "none", "extra_hosts": ["a:host-gateway"]}, "it has no gateway"),
        ({"memory_swap": "64m"}, "memory-swap needs memory"),
        ({"memory": "64m", "memory_swap": "32m"}, "is below memory"),
        ({"privileged": True, "userns": "auto"}, "privileged cannot be used with userns auto"),
        ({"userns": "keep-id"}, "'keep-id': not a mode of user namespaces"),
        ({"read_only": True, "storage_size": "1g"}, "a read-only sandbox writes nothing"),
        ({"rootfs": "/x"}, "both image 'busybox' and rootfs '/x'"),
        ({"volumes": ["/a:/x"], "tmpfs": ["/x"]}, "two mounts have the target '/x'"),
        ({"ports": ["8080:80", "8080:81"]}, "want the same host port"),
        ({"name": "a/b"}, "'/' is not allowed"),
        ({"stop_timeout": "-1"}, "out of range"),
        ({"stop_signal": "NOPE"}, "no such signal"),
        ({"shm_size": "0"}, "too small"),
        ({"storage_size": "10x"}, "'x' is not a unit"),
        ({"dns": ["nowhere"]}, "not an address"),
        ({"env_files": ["/nonexistent/env"]}, "cannot be read"),
    ],
)
def test_contradictions_and_mistakes(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_spec("busybox", ["true"], **options)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        ("", {}, "no image is given"),
        ("", {"rootfs": "/x"}, "has no default command"),
        ("-p", {}, "not the name of an image"),
        ("a b", {}, "not the name of an image"),
        ("x" * 300, {}, "300 characters, 255 are allowed"),
        ("a\0", {}, "NUL"),
        ("../x", {}, "not the name of an image"),
    ],
)
def test_images(image: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_spec(image, **options)
    assert reason in str(caught.value)


def test_storage_size_needs_a_writable_layer() -> None:
    assert build_spec("host", storage_size="1g").storage_size == 1 << 30
    with pytest.raises(UsageError, match="rootfs is written to directly"):
        build_spec("", ["sh"], rootfs="/x", storage_size="1g")


def test_a_keyword_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="no such option of a sandbox: port"):
        build_spec("busybox", port=80)  # type: ignore[call-arg]


SOME_OPTIONS = sorted(OPTION_NAMES - {"env_files"})


@given(st.text(max_size=20), st.dictionaries(st.sampled_from(SOME_OPTIONS), st.text(max_size=30), max_size=4))
def test_random_requests_give_usage_errors_only(image: str, options: dict[str, Any]) -> None:
    try:
        spec = build_spec(image, **options)
    except UsageError as error:
        line = str(error)
    else:
        line = ""
        assert SandboxSpec.from_json(spec.to_json()) == spec
    assert "\n" not in line
