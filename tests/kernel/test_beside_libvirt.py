"""netbox beside a real libvirtd with its network ``default``, whichever comes first: a guest's network goes on, and a sandbox's does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.e2e.boxes import inspect, running
from tests.kernel.network_lab import ask, out_of_reach, serve
from tests.support import dns
from tests.support.cli import Cli
from tests.support.daemons import Libvirt
from tests.support.host import Neighbour, PrivateHost
from tests.support.others import foreign_rules
from tests.support.waiting import wait_until

PATIENCE = 90.0  # seconds
ANSWER = f"nc -w 20 {Neighbour.address} 7 </dev/null"
SERVERS = ("sh", "-c", "nc -ll -p 81 -e echo hidden & exec nc -ll -p 80 -e echo sandbox")


@pytest.fixture
def libvirt(private_host: PrivateHost) -> Iterator[Libvirt]:
    made = Libvirt(private_host)
    yield made
    made.close()


def both_work(cli: Cli, libvirt: Libvirt, server: Neighbour) -> None:
    """Sandbox and guest reach the neighbour with the host's address; the sandbox's port is reached, the guest has names."""
    assert cli("exec", "web", "sh", "-c", ANSWER).stdout.startswith(server.host_address)

    def published() -> bool:
        with server.inside():
            return ask("tcp", server.host_address, 8080) == "sandbox\n"

    wait_until(published, "the published port", PATIENCE)
    with libvirt.inside():
        assert ask("tcp", server.address, 7, PATIENCE) == f"{server.host_address} 7"
        assert dns.ask(libvirt.gateway, libvirt.name, timeout=PATIENCE).values == [libvirt.gateway]
        assert ask("tcp", libvirt.gateway, 8080, PATIENCE) == "sandbox\n"


def are_strangers(cli: Cli, libvirt: Libvirt) -> None:
    """Neither reaches what the other one does not publish, which is there: the host reaches it."""
    address = inspect(cli, "web")["network"]["endpoints"][0]["address"]
    wait_until(lambda: ask("tcp", address, 81) == "hidden\n", "port 81 of the sandbox", PATIENCE)
    with libvirt.inside():
        assert out_of_reach("tcp", address, 81)
        hidden = serve("tcp", 82)
    with contextlib.closing(hidden):
        assert ask("tcp", libvirt.guest, 82) is not None
        assert cli("exec", "web", "sh", "-c", f"! nc -w 1 {libvirt.guest} 82 </dev/null").stdout == ""


def test_libvirt_last(cli: Cli, libvirt: Libvirt, server: Neighbour) -> None:
    """It starts, and starts again, when it makes its rules anew."""
    with running(cli, "web", "-p", "8080:80", command=SERVERS):
        libvirt.start()
        both_work(cli, libvirt, server)
        before = foreign_rules("nft")
        libvirt.stop()
        libvirt.start()
        both_work(cli, libvirt, server)
        with running(cli, "second"):  # netbox moves to nf_tables, where libvirt's rules are
            both_work(cli, libvirt, server)
            are_strangers(cli, libvirt)
            assert cli("repair").stdout == "nothing to repair\n"
    wait_until(lambda: foreign_rules("nft") == before, "the rules of libvirt as before", PATIENCE)
    assert not any("NETBOX" in line for line in foreign_rules("legacy"))


def test_libvirt_first(cli: Cli, libvirt: Libvirt, server: Neighbour) -> None:
    libvirt.start()
    before = foreign_rules()
    with running(cli, "web", "-p", "8080:80", command=SERVERS):
        both_work(cli, libvirt, server)
        are_strangers(cli, libvirt)
        assert cli("repair").stdout == "nothing to repair\n"
    wait_until(lambda: foreign_rules() == before, "the rules as before", PATIENCE)
