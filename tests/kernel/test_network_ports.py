"""Published ports against other sandboxes and other programs, and what the connection table remembers."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from netbox.errors import Conflict, UsageError
from netbox.kernel import conntrack
from netbox.network import firewall, ports
from netbox.spec import PortSpec
from tests.kernel.network_lab import Lab, ask, out_of_reach, reachable
from tests.support.host import Neighbour


def listener(port: int, address: str = "0.0.0.0") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, port))
        sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock


def test_a_port_of_another_sandbox(lab: Lab) -> None:
    first = lab.guest(ports=(PortSpec(80, 8080),))
    with pytest.raises(Conflict, match=f"port 8080/tcp is published by sandbox {first.id[:12]}"):
        lab.guest(ports=(PortSpec(81, 8080),))
    with pytest.raises(Conflict, match="8080/tcp"):
        lab.guest(ports=(PortSpec(81, 8080, host_ip="127.0.0.1"),))
    lab.guest(ports=(PortSpec(81, 8080, protocol="udp"),))  # another protocol is another port
    assert len(lab.store.ports()) == 2


def test_the_same_port_on_two_addresses(lab: Lab, outside: Neighbour) -> None:
    one = lab.guest(ports=(PortSpec(80, 8080, host_ip="127.0.0.1"),))
    two = lab.guest(ports=(PortSpec(80, 8080, host_ip=outside.host_address),))
    one.serve("tcp", 80)
    two.serve("tcp", 80)
    assert ask("tcp", "127.0.0.1", 8080) == f"{one.gateway} 80"
    with outside.inside():
        assert ask("tcp", outside.host_address, 8080) == f"{outside.address} 80"


def test_a_port_of_another_program(lab: Lab) -> None:
    with listener(8080), pytest.raises(Conflict, match=rf"port 8080/tcp is in use by .*\(pid {os.getpid()}\)"):
        lab.guest(ports=(PortSpec(80, 8080),))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 5353))
        with pytest.raises(Conflict, match="port 5353/udp is in use by"):
            lab.guest(ports=(PortSpec(53, 5353, protocol="udp"),))
    assert lab.store.ports() == []
    lab.guest(ports=(PortSpec(80, 8080), PortSpec(53, 5353, protocol="udp")))


def test_another_program_cannot_take_a_published_port(lab: Lab) -> None:
    guest = lab.guest(ports=(PortSpec(80, 8080), PortSpec(53, 5353, protocol="udp")))
    with pytest.raises(OSError, match="in use"):
        listener(8080)
    with pytest.raises(OSError, match="in use"):
        listener(8080, "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            sock.bind(("0.0.0.0", 5353))
    lab.end(guest)
    listener(8080).close()


def test_connections_in_time_wait_do_not_matter(lab: Lab) -> None:
    with listener(8080) as server:
        client = socket.create_connection(("127.0.0.1", 8080))
        connection, _ = server.accept()
        connection.close()  # the side that closes first keeps the state
        assert client.recv(1) == b""
        client.close()
    lab.guest(ports=(PortSpec(80, 8080),))


def test_an_address_that_the_host_does_not_have(lab: Lab) -> None:
    with pytest.raises(UsageError, match=r"port 8080/tcp on 192\.0\.2\.99: this host has no such address"):
        lab.guest(ports=(PortSpec(80, 8080, host_ip="192.0.2.99"),))


def test_a_free_port_is_chosen(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest(ports=(PortSpec(80), PortSpec(53, protocol="udp"), PortSpec(9000, 0, 6)))
    web, dns, many = guest.plan.ports
    assert web.host_port
    assert dns.host_port
    assert many.host_port + 5 <= 65535
    guest.serve("tcp", 80)
    guest.serve("tcp", 9005)
    assert {row.port for row in lab.store.ports(guest.id)} == {
        web.host_port,
        dns.host_port,
        *range(many.host_port, many.host_port + 6),
    }
    assert guest.prepared is not None
    assert len(guest.prepared.reservations) == 8
    assert ask("tcp", "127.0.0.1", web.host_port) == f"{guest.gateway} 80"
    assert ask("tcp", "127.0.0.1", many.host_port + 5) == f"{guest.gateway} 9005"


def test_half_a_range_is_not_taken(lab: Lab) -> None:
    with listener(8005), pytest.raises(Conflict, match="port 8005/tcp"):
        lab.guest(ports=(PortSpec(8000, 8000, 10),))
    assert lab.store.ports() == []
    first = lab.guest(ports=(PortSpec(80, 8005),))
    with pytest.raises(Conflict, match="port 8005/tcp"):
        lab.guest(ports=(PortSpec(8000, 8000, 10),))
    assert [row.sandbox_id for row in lab.store.ports()] == [first.id]
    listener(8000).close()  # what was bound before the conflict is free again


def test_a_range_beyond_the_limit_of_open_files(lab: Lab) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(UsageError, match="cannot publish 1000 ports") as caught:
            lab.guest(ports=(PortSpec(20000, 20000, 1000),))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.hint is not None
    assert "ulimit -n" in caught.value.hint


def test_a_large_range_is_one_rule(lab: Lab) -> None:
    guest = lab.guest(ports=(PortSpec(30000, 20000, 300),))
    assert [rule.owner for rule in firewall.backend().rules()].count(f"sandbox:{guest.id[:12]}") == 1
    guest.serve("tcp", 30299)
    assert ask("tcp", "127.0.0.1", 20299) == f"{guest.gateway} 30299"


def test_sockets_are_closed_when_a_later_port_is_taken(lab: Lab) -> None:
    with listener(8081):
        with pytest.raises(Conflict, match="8081"):
            ports.reserve(lab.store, "a" * 64, (PortSpec(80, 8080), PortSpec(81, 8081)))
        listener(8080).close()
    lab.store.release_ports("a" * 64)


def test_udp_flows_at_once_to_the_next_sandbox(lab: Lab, outside: Neighbour) -> None:
    """The client never stops sending from the same port, so the kernel would keep sending to the dead one."""
    with outside.inside():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(20)
        client.connect((outside.host_address, 5353))

        def exchange() -> str:
            client.send(b"?")
            return client.recv(100).decode()

        first = lab.guest(ports=(PortSpec(53, 5353, protocol="udp"),))
        first.serve("udp", 53)
        assert exchange() == f"{outside.address} 53"
        lab.end(first)
        second = lab.guest(ports=(PortSpec(54, 5353, protocol="udp"),))
        second.serve("udp", 54)
        assert second.address != first.address
        assert exchange() == f"{outside.address} 54"


def test_datagrams_from_before_the_rule_do_not_bypass_it(lab: Lab, outside: Neighbour) -> None:
    lab.guest()  # something uses connection tracking
    with outside.inside():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(20)
        client.bind((outside.address, 4444))
        client.sendto(b"?", (outside.host_address, 5353))
        guest = lab.guest(ports=(PortSpec(53, 5353, protocol="udp"),))
        guest.serve("udp", 53)
        client.sendto(b"?", (outside.host_address, 5353))
        assert client.recv(100).decode() == f"{outside.address} 53"


def test_only_entries_of_the_port_are_flushed(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest(ports=(PortSpec(53, 5353, protocol="udp"), PortSpec(60, 6000, 3, protocol="udp")))
    guest.serve("udp", 53)
    for offset in range(3):
        guest.serve("udp", 60 + offset)
    with outside.inside():
        for number, port in enumerate((5353, 5353, 6000, 6002)):
            assert ask("udp", outside.host_address, port, source_port=4001 + number)
    assert conntrack.flush("udp", "192.0.2.1", 5353, 1) == 0
    assert conntrack.flush("udp", "0.0.0.0", 5354, 10) == 0
    assert conntrack.flush("udp", outside.host_address, 5353, 1) == 2
    assert conntrack.flush("udp", "0.0.0.0", 6000, 3) == 2
    assert conntrack.flush("udp", "0.0.0.0", 1, 65535) == 0


def test_after_the_end_the_port_is_closed(lab: Lab, outside: Neighbour) -> None:
    lab.guest()
    guest = lab.guest(ports=(PortSpec(80, 8080),))
    guest.serve("tcp", 80)
    with outside.inside():
        assert reachable("tcp", outside.host_address, 8080)
    lab.end(guest)
    with outside.inside():
        assert out_of_reach("tcp", outside.host_address, 8080)
