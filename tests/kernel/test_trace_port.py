"""The source port of a packet that is followed: one that no program of the namespace has."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from netbox.kernel.namespaces import socket_in
from netbox.packet.tracing.follow import own_port
from tests.support import linux

FIRST, LAST = 40000, 40003


@pytest.fixture
def netns(private_host: object) -> Iterator[int]:
    """A namespace with four ephemeral ports."""
    fd = linux.new_network_namespace()
    command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "sysctl", "-qw", f"net.ipv4.ip_local_port_range={FIRST} {LAST}"]
    subprocess.run(command, check=True, timeout=20)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(("version", "family"), [(4, socket.AF_INET), (6, socket.AF_INET6)])
@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_a_port_that_is_taken_is_not_used(netns: int, protocol: str, kind: int, version: int, family: int) -> None:
    free = set(range(FIRST, LAST + 1))
    sockets = []
    try:
        while free:
            port = own_port(netns, version, protocol)
            assert port in free
            sockets.append(socket_in(netns, family, kind))
            sockets[-1].bind(("", port))  # a program takes it
            free.remove(port)
    finally:
        for sock in sockets:
            sock.close()


def test_an_echo_has_no_port_but_an_identifier(netns: int) -> None:
    assert 0 < own_port(netns, 4, "icmp") < 1 << 16
