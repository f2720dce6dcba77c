"""Which sysctls belong to a sandbox, and reading them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import NetboxError, Unsupported, UsageError
from netbox.kernel import sysctl


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("kernel.shmmax", "kernel/shmmax"),
    ],
)
def test_both_ways_to_write_a_name(name: str, path: str) -> None:
    assert sysctl.relative_path(name) == path


@pytest.mark.parametrize(
    "name", ["", "net", "net.", ".net", "net..ipv4", "net/../kernel/shmmax", "net/./x", "net.ipv4 .x", "net.a\nb", "net.a\0b", "/net/x"]
)
def test_refused_names(name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a sysctl"):
        sysctl.relative_path(name)


@given(st.text(alphabet="abn./_ \n\0", max_size=12))
def test_no_name_leaves_proc_sys(name: str) -> None:
    try:
        parts = sysctl.relative_path(name).split("/")
    except UsageError:
        return
    assert len(parts) >= 2
    assert not {"", ".", ".."} & set(parts)


@pytest.mark.parametrize(
    "name",
    [
        "net.ipv4.ip_forward",
        "net.core.somaxconn",
        "net/ipv6/conf/all/disable_ipv6",
        "kernel.shmmax",
        "kernel.msgmnb",
        "kernel.sem",
        "fs.mqueue.msg_max",
    ],
)
def test_what_each_sandbox_has(name: str) -> None:
    sysctl.check(name)
    if name.startswith("net"):
        with pytest.raises(UsageError, match="cannot be set with --network host: it would change this machine's own network"):
            sysctl.check(name, host_network=True)
    else:
        sysctl.check(name, host_network=True)


@pytest.mark.parametrize(
    "name",
    [
        "vm.swappiness",
        "kernel.panic",
        "kernel.msg",
        "fs.file-max",
        "fs.mqueuex.a",
        "network.x",
        "kernel.shmmax.x",
        "user.max_user_namespaces",
    ],
)
def test_what_the_whole_machine_has(name: str) -> None:
    with pytest.raises(UsageError, match="belongs to the whole machine") as caught:
        sysctl.check(name)
    assert name in caught.value.message


def test_host_name_has_an_option_of_its_own() -> None:
    with pytest.raises(UsageError) as caught:
        sysctl.check("kernel.hostname")
    assert caught.value.hint == "use --hostname"


@pytest.mark.parametrize("value", ["", " ", "1\n2", "1\0"])
def test_refused_values(value: str) -> None:
    with pytest.raises(UsageError, match=r"net\.a\.b"):
        sysctl.check_value("net.a.b", value)
    with pytest.raises(UsageError):
        sysctl.write("net.a.b", value)


def test_reading() -> None:
    assert sysctl.read("kernel.ostype") == "Linux"
    assert "\t" in sysctl.read("net.ipv4.ip_local_port_range")


@pytest.mark.parametrize("name", ["kernel.there_is_none", "kernel.ostype.deeper", "net.ipv4"])
def test_reading_what_is_not_there(name: str) -> None:
    with pytest.raises(Unsupported, match="there is no such sysctl") as caught:
        sysctl.read(name)
    assert name in caught.value.message


def test_writing_what_cannot_be_written() -> None:
    with pytest.raises(NetboxError, match=r"cannot set sysctl kernel\.ostype to 'Minix': "):
        sysctl.write("kernel.ostype", "Minix")
