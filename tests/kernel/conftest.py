"""Fixtures of the tests against the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.network_lab import Lab, Server, serve
from tests.support.host import Neighbour, PrivateHost


@pytest.fixture(params=["iptables", "nftables"])
def backend(request: pytest.FixtureRequest, private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> str:
    """One firewall backend after the other."""
    monkeypatch.setenv("NETBOX_FIREWALL", request.param)
    return str(request.param)


@pytest.fixture
def lab(backend: str) -> Iterator[Lab]:
    """Guests on the private host, with each firewall backend."""
    made = Lab()
    yield made
    made.close()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Servers that are put in here end with the test."""
    running: list[Server] = []
    yield running
    for server in running:
        server.close()


@pytest.fixture
def server(outside: Neighbour) -> Iterator[Neighbour]:
    """The neighbour answers at port 7 with the address that it sees."""
    with outside.inside():
        answers = serve("tcp", 7)
    yield outside
    answers.close()
