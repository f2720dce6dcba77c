"""Writing sysctls, in a network namespace of the test's own."""

from __future__ import annotations

import errno
import os

import pytest

from netbox.errors import HostError
from netbox.kernel import namespaces, sysctl
from tests.support import linux
from tests.support.host import PrivateHost


def test_write_changes_the_namespace_of_the_calling_thread(private_host: PrivateHost) -> None:
    other = linux.new_network_namespace()
    sysctl.write("net.ipv4.ip_default_ttl", "61")
    sysctl.write("net/ipv4/ping_group_range", "0 100")
    assert sysctl.read("net/ipv4/ip_default_ttl") == "61"
    assert sysctl.read("net.ipv4.ping_group_range").split() == ["0", "100"]
    with namespaces.inside_netns(other):
        assert sysctl.read("net.ipv4.ip_default_ttl") == "64"
        sysctl.write("net.ipv4.ip_default_ttl", "62")
    os.close(other)
    assert sysctl.read("net.ipv4.ip_default_ttl") == "61"


@pytest.mark.parametrize("value", ["many", "99999999999999999999"])
def test_a_value_that_the_kernel_refuses(private_host: PrivateHost, value: str) -> None:
    before = sysctl.read("net.ipv4.ip_default_ttl")
    with pytest.raises(HostError, match=rf"cannot set sysctl net\.ipv4\.ip_default_ttl to '{value}': Invalid argument") as caught:
        sysctl.write("net.ipv4.ip_default_ttl", value)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.hint == "the kernel refuses the value"
    assert sysctl.read("net.ipv4.ip_default_ttl") == before
