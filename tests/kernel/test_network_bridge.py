"""Mode bridge, with packets: who reaches whom, and who does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netbox.spec import PortSpec
from tests.kernel.network_lab import Lab, ask, reachable, serve
from tests.support.host import Neighbour, PrivateHost


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def test_two_sandboxes_the_host_and_the_outside(lab: Lab, outside: Neighbour) -> None:
    one, two = lab.guest(), lab.guest()
    two.serve("tcp", 80)
    two.serve("udp", 53)
    with outside.inside():
        servers = [serve("tcp", 7000), serve("udp", 7000)]
    host = serve("tcp", 7001)
    try:
        assert one.ask("tcp", two.address, 80) == f"{one.address} 80"
        assert one.ask("udp", two.address, 53) == f"{one.address} 53"
        assert one.ask("tcp", one.gateway, 7001) == f"{one.address} 7001"
        assert ask("tcp", two.address, 80) == f"{one.gateway} 80"
        # Outside it is the host's address that is seen.
        assert one.ask("tcp", outside.address, 7000) == f"{outside.host_address} 7000"
        assert one.ask("udp", outside.address, 7000) == f"{outside.host_address} 7000"
    finally:
        for server in (*servers, host):
            server.close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_from_everywhere(lab: Lab, outside: Neighbour, protocol: str) -> None:
    guest = lab.guest(ports=(PortSpec(80, 8080, protocol=protocol),))
    other = lab.guest()
    guest.serve(protocol, 80)
    with outside.inside():
        assert ask(protocol, outside.host_address, 8080) == f"{outside.address} 80"  # the client's own address
    assert ask(protocol, outside.host_address, 8080) == f"{outside.host_address} 80"
    assert ask(protocol, "127.0.0.1", 8080) == f"{guest.gateway} 80"
    assert ask(protocol, guest.gateway, 8080) is not None
    assert guest.ask(protocol, outside.host_address, 8080) == f"{guest.gateway} 80"
    assert guest.ask(protocol, guest.gateway, 8080) == f"{guest.gateway} 80"
    assert other.ask(protocol, outside.host_address, 8080) == f"{guest.gateway} 80"


def test_what_is_not_published_is_out_of_reach(lab: Lab, outside: Neighbour) -> None:
    guest = lab.guest(ports=(PortSpec(80, 8080),))
    guest.serve("tcp", 80)
    guest.serve("tcp", 81)
    with outside.inside():
        outside.execute("ip", "route", "add", "10.0.0.0/8", "via", outside.host_address)
        assert not reachable("tcp", guest.address, 80)
        assert not reachable("tcp", guest.address, 81)
        assert not reachable("tcp", outside.host_address, 81)
        assert reachable("tcp", outside.host_address, 8080)
