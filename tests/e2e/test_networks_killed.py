"""SIGKILL at every step of a connect and of a disconnect of a running sandbox: afterwards record and interfaces agree, and ``gc`` leaves
nothing (the leak check looks).
"""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Any

import pytest

from netbox.engine import Engine, Sandbox, connecting
from netbox.errors import NetboxError
from netbox.network import naming, undo
from netbox.network.manager import NetworkManager
from netbox.settings import Settings
from netbox.state.journal import LINK, Journal
from netbox.state.store import Store
from tests.e2e.steps import GOT_THROUGH, in_child, install
from tests.kernel.network_lab import is_held
from tests.support.host import Neighbour

pytestmark = pytest.mark.usefixtures("private_host")

MOST_STEPS = 60
STEPS = [
    (Journal, "record"),
    (Journal, "move"),
    (Journal, "forget"),
    (Store, "allocate_lease"),
    (Store, "update_sandbox"),
    (NetworkManager, "connect"),
    (NetworkManager, "build"),
    (NetworkManager, "reroute"),
    (connecting, "renew_hosts"),
]


def agree(sandbox: Sandbox) -> None:
    """Interfaces, addresses, default route, hosts file and published port are those of the record, and the port is that of the networks."""
    endpoints = sandbox.network_plan["endpoints"]
    shown = sandbox.exec("ip", "-o", "-4", "addr").stdout.decode()
    found = {(line.split()[1], line.split()[3].partition("/")[0]) for line in shown.splitlines() if " lo " not in line}
    assert found == {(item["interface"], item["address"]) for item in endpoints}
    assert set(sandbox.networks) == {item.network for item in sandbox.spec.network.attachments}
    routes = [line.split() for line in sandbox.exec("ip", "route").stdout.decode().splitlines() if line.startswith("default")]
    assert [words[2] for words in routes] == [endpoints[0]["gateway"]]
    hosts = sandbox.exec("cat", "/etc/hosts").stdout.decode()
    assert {line.split("\t")[0] for line in hosts.splitlines() if line.endswith(sandbox.short_id)} == {
        address for item in endpoints for address in (item["address"], item["address6"]) if address
    }
    assert all(port.with_ipv6 == any(item["address6"] for item in endpoints) for port in sandbox.ports)
    with contextlib.closing(Store(Settings.from_environment())) as store:
        claimed = {row.host_ip for row in store.ports(sandbox.id)}
    assert claimed == {its.host_ip for port in sandbox.ports for its in port.by_family}
    assert is_held("::", 18080) == ("::" in claimed)


@pytest.mark.parametrize("verb", ["connect", "disconnect"])
@pytest.mark.parametrize("end", [False, True], ids=["goes on", "ends"])
def test_killed_at_every_step(verb: str, end: bool) -> None:
    """The network is the first one with IPv6: the port is published there too, or no longer. It happens after every call: what is before
    one is what was after the last.
    """
    at_every_step(verb, end, ipv6=True)


@pytest.mark.parametrize("verb", ["connect", "disconnect"])
def test_killed_at_every_step_on_a_macvlan_network(verb: str, outside: Neighbour) -> None:
    at_every_step(verb, False, driver="macvlan", subnet=outside.network, options={"parent": outside.host_link})


def at_every_step(verb: str, end: bool, **back: Any) -> None:
    def attempt() -> int:
        install(STEPS, number)
        with Engine(warm=False) as engine:
            change(engine.get("web"))
        return GOT_THROUGH

    def change(sandbox: Sandbox) -> None:
        # "back" comes before "front": it takes the default route and the port along.
        if verb == "connect":
            sandbox.connect("back")
        else:
            sandbox.disconnect("back")

    with Engine() as engine:
        engine.networks.create("front")
        engine.networks.create("back", **back)
        for number in range(2, MOST_STEPS, 2):
            networks = ["front", "back"] if verb == "disconnect" else ["front"]
            sandbox = engine.run("busybox", "sleep", "60", name="web", network=networks, ports=["18080:80"])
            code = in_child(attempt)
            assert code in (GOT_THROUGH, -signal.SIGKILL), f"step {number}"
            if end:
                sandbox.remove(force=True)
            else:
                engine.gc()
                agree(sandbox.refresh())
                if code != GOT_THROUGH:  # and what was cut short can be done
                    done = ("back" in sandbox.networks) is (verb == "connect")
                    if not done:
                        change(sandbox)
                    agree(sandbox.refresh())
                sandbox.remove(force=True)
            engine.gc()
            assert [owner for owner in Store(engine.settings).journal_owners() if owner[1] == LINK] == []
            if code == GOT_THROUGH:
                assert number > 13
                break
        else:
            pytest.fail("a change has more steps than expected")
        assert sorted(engine.networks.prune()) == ["back", "front"]


def test_a_connect_that_fails_leaves_the_sandbox_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine() as engine:
        engine.networks.create("front")
        with engine.run("busybox", "sleep", "60") as sandbox:

            def build(*_: object) -> None:
                raise NetboxError("no")

            monkeypatch.setattr(NetworkManager, "build", build)
            with pytest.raises(NetboxError, match="no"):
                sandbox.connect("front")
            agree(sandbox.refresh())
            assert engine.networks.get("front").members == ()
            monkeypatch.undo()
            sandbox.connect("front")
            agree(sandbox.refresh())
        engine.networks.remove("front")


class Killed(BaseException):
    """SIGKILL: no handler of errors sees it."""


@pytest.mark.parametrize("kind", ["nameservice", "network_rules", "bridge", "sysctl"])
def test_a_take_down_that_was_killed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next sandbox finds a network that stands with all its rules, whatever of it was gone already: the bridge goes last."""

    def strike(*_: object) -> None:
        raise Killed

    with Engine() as engine:
        engine.networks.create("front")
        sandbox = engine.run("busybox", "sleep", "1000", network="front")
        monkeypatch.setitem(undo.HANDLERS, kind, strike)
        sandbox.remove(force=True)
        with pytest.raises(Killed):
            engine.gc()
        monkeypatch.undo()
        with engine.run("busybox", "sleep", "1000", network="front"):
            assert engine.repair() == []
        engine.networks.remove("front")


def test_a_start_that_was_killed_when_names_were_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """At another port than 53, to which the firewall leads questions: the next start finds the names served, and the rules missing."""

    def strike(*arguments: Any) -> int:
        serve(*arguments)
        raise Killed

    serve = naming.serve
    with contextlib.ExitStack() as stack, Engine() as engine:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            mine = stack.enter_context(socket.socket(socket.AF_INET, kind))
            mine.bind(("0.0.0.0", 53))
        mine.listen()
        engine.networks.create("front")
        monkeypatch.setattr(naming, "serve", strike)
        with pytest.raises(Killed):
            engine.run("busybox", "sleep", "1000", network="front")
        monkeypatch.undo()
        with engine.run("busybox", "sleep", "1000", network="front"):
            assert engine.repair() == []
        engine.networks.remove("front")
