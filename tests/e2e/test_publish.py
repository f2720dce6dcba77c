"""Publishing ports of a running sandbox and taking them back: at once, kept in the record, and whole whatever is killed in between."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from netbox.engine import Engine, Sandbox, publishing
from netbox.errors import Conflict, HostError, NotFound, UsageError
from netbox.network import firewall_switch, ports
from netbox.runtime import client
from netbox.spec import PortSpec
from netbox.state.journal import LINK, RUN, Journal
from netbox.state.store import Store
from tests.e2e.boxes import inspect, running
from tests.e2e.steps import GOT_THROUGH, in_child, install
from tests.kernel.network_lab import Server, ask, reachable, serve
from tests.support import linux
from tests.support.cli import Cli
from tests.support.host import Neighbour
from tests.support.waiting import wait_until

BACKENDS = pytest.mark.parametrize("backend", ["iptables", "nftables"])
MOST_STEPS = 60


@contextlib.contextmanager
def server(pid: int, protocol: str, port: int) -> Iterator[Server]:
    with linux.network_of(pid):
        started = serve(protocol, port)
    try:
        yield started
    finally:
        started.close()


def is_free(port: int, kind: int = socket.SOCK_STREAM, address: str = "0.0.0.0") -> bool:
    with socket.socket(socket.AF_INET, kind) as sock:
        try:
            sock.bind((address, port))
        except OSError:
            return False
        return True


@BACKENDS
def test_at_once_and_back_again(cli: Cli, outside: Neighbour, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    with running(cli, "web"), server(inspect(cli, "web")["pid"], "tcp", 80), server(inspect(cli, "web")["pid"], "tcp", 8001):
        result = cli("publish", "web", "8080:80", "127.0.0.1:8081:80", "8000-8002:8000-8002")
        assert result.stdout == "80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8081\n8000-8002/tcp -> 0.0.0.0:8000-8002\n"
        assert result.stderr == (
            "netbox publish: ports 8080, 8000-8002 are published on all addresses of this host, also to the LAN; "
            "for this host only: -p 127.0.0.1:8080:80\n"
        )
        assert sorted(cli("port", "web").stdout.splitlines()) == sorted(result.stdout.splitlines())
        with outside.inside():
            assert ask("tcp", outside.host_address, 8080) == f"{outside.address} 80"
            assert ask("tcp", outside.host_address, 8001) == f"{outside.address} 8001"
            assert not reachable("tcp", outside.host_address, 8081)
        assert ask("tcp", "127.0.0.1", 8081)
        assert not any(map(is_free, (8080, 8000, 8001, 8002)))
        assert not is_free(8081, address="127.0.0.1")
        with outside.inside():
            connection = socket.create_connection((outside.host_address, 8080))
        with connection:
            assert cli("unpublish", "web", "80").stdout == "80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8081\n"
            assert connection.recv(100)  # a connection that stands goes on
        with outside.inside():
            assert not reachable("tcp", outside.host_address, 8080)
            assert ask("tcp", outside.host_address, 8001)
        assert all(map(is_free, (8080, 8081)))
        assert not is_free(8001)
        assert cli("unpublish", "--format", "json", "web", "8000-8002").stdout
        assert cli("port", "web").stdout == ""
        assert is_free(8001)


@BACKENDS
def test_kept_over_a_restart(cli: Cli, outside: Neighbour, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And UDP flows again at once, to a client that never stops sending from the same port."""
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    with outside.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock, running(cli, "other"), running(cli, "dns", "-p", "0.0.0.0:5453:54/udp"):
        sock.settimeout(20)
        sock.connect((outside.host_address, 5353))

        def answer() -> str:
            return wait_until(once, "an answer")

        def once() -> str:
            """Sent again where a datagram is lost; an entry of the connection table that leads astray would stay for ever."""
            drain(sock)
            sock.settimeout(1)
            try:
                sock.send(b"?")
                return sock.recv(100).decode()
            except (TimeoutError, ConnectionError):
                return ""

        def nobody() -> None:
            """The host itself says that the port is closed. The kernel says so a few times a second only, so it is asked again."""
            for _ in range(2):
                drain(sock)
                wait_until(refused, "the refusal")

        def refused() -> bool:
            sock.settimeout(1)
            try:
                sock.send(b"?")
                answer = sock.recv(100)
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
            return pytest.fail(f"answered: {answer!r}")

        pid = inspect(cli, "dns")["pid"]
        nobody()  # makes an entry of the connection table that leads to the host itself
        with server(pid, "udp", 53), server(pid, "udp", 54):
            cli("publish", "dns", "0.0.0.0:5353:53/udp")
            assert answer() == f"{outside.address} 53"
            cli("unpublish", "dns", "53/udp")
            nobody()
            cli("publish", "dns", "0.0.0.0:5353:54/udp")
            assert answer() == f"{outside.address} 54"
        cli("stop", "-t", "0", "dns")
        nobody()
        with running(cli, "squatter"):  # takes no address that the old entries lead to
            cli("start", "dns")
            pid = inspect(cli, "dns")["pid"]
            with server(pid, "udp", 54):
                assert answer() == f"{outside.address} 54"
        shown = json.loads(cli("port", "--format", "json", "dns").stdout)
        assert sorted((item["host_port"], item["port"], item["protocol"]) for item in shown) == [(5353, 54, "udp"), (5453, 54, "udp")]


def drain(sock: socket.socket) -> None:
    """Takes what is there already, errors too. A client that gets an error goes on, as those that matter do."""
    sock.setblocking(False)
    while True:
        try:
            sock.recv(100)
        except BlockingIOError:
            break
        except ConnectionError:
            continue
    sock.settimeout(20)


def test_of_a_stopped_sandbox_the_record_changes(cli: Cli) -> None:
    cli("create", "--name", "web", "-p", "0.0.0.0:8080:80", "busybox", "sleep", "100")
    cli("publish", "web", "127.0.0.1:8081:81", "82")
    assert cli("port", "web").stdout == "80/tcp -> 0.0.0.0:8080\n82/tcp -> 0.0.0.0:*\n81/tcp -> 127.0.0.1:8081\n"
    cli("unpublish", "web", "80")
    cli("start", "web")
    shown = cli("port", "web").stdout.splitlines()
    assert len(shown) == 2
    assert shown[1] == "81/tcp -> 127.0.0.1:8081"
    assert not is_free(8081, address="127.0.0.1")
    assert is_free(8080)
    cli("rm", "-f", "web")
    assert is_free(8081)


def test_what_is_refused(cli: Cli) -> None:
    cli("network", "create", "--internal", "inner")
    with (
        running(cli, "web", "-p", "127.0.0.1:8080:80"),
        running(cli, "alone", "--network", "none"),
        running(cli, "in", "--network", "inner"),
    ):
        for arguments, message in (
            (("publish", "web", "127.0.0.1:8080:80"), "port '127.0.0.1:8080:80' is published twice; leave one of the two out"),
            (("publish", "web", "8080:81"), "want the same host port; choose different host ports"),
            (("publish", "web", "80:http"), "'http' is not a port"),
            (("publish", "alone", "80"), "cannot publish a port: alone is on network none; make it anew with --network bridge"),
            (
                ("publish", "in", "80"),
                "cannot publish a port: the sandbox is on internal networks only (inner); add a network with a way out",
            ),
            (("publish", "nobody", "80"), "no such sandbox: nobody"),
            (("unpublish", "web", "81"), "web does not publish 81; it publishes 127.0.0.1:8080:80"),
            (("unpublish", "alone", "81"), "alone does not publish 81; it publishes nothing"),
            (("unpublish", "web", "0.0.0.0:8080:80"), "web does not publish 8080:80; it publishes 127.0.0.1:8080:80"),
        ):
            result = cli(*arguments, check=125)
            assert message in result.stderr
            assert result.stderr.count("\n") == 1
        with socket.create_server(("127.0.0.1", 9000)):
            assert "port 9000/tcp is in use by" in cli("publish", "web", "8090:80", "127.0.0.1:9000:80", check=125).stderr
        assert is_free(8090)  # all of them, or none
        assert cli("port", "web").stdout == "80/tcp -> 127.0.0.1:8080\n"
        with running(cli, "other", "-p", "127.0.0.1:8081:80"):
            assert "port 8081/tcp is published by sandbox other" in cli("publish", "web", "8081:80", check=125).stderr
    cli("network", "rm", "inner")


def test_more_ports_than_one_message_carries(cli: Cli) -> None:
    with running(cli, "many", "-p", "127.0.0.1:20000-20599:20000-20599", command=("httpd", "-f", "-p", "20599")):
        assert not any(is_free(number, address="127.0.0.1") for number in (20000, 20250, 20251, 20599))
        cli("publish", "many", "127.0.0.1:21000-21599:21000-21599")
        assert not any(is_free(number, address="127.0.0.1") for number in (20000, 20599, 21000, 21253, 21599))
        cli("unpublish", "many", "20000-20599")
        assert all(is_free(number, address="127.0.0.1") for number in (20000, 20599))
        assert not any(is_free(number, address="127.0.0.1") for number in (21000, 21599))


def test_expose_and_publish_all(cli: Cli) -> None:
    with running(cli, "web", "-P", "--expose", "http=80", "--expose", "53/udp", "--expose", "9000-9002", "-p", "127.0.0.1:8080:80"):
        document = inspect(cli, "web")
        assert document["spec"]["network"]["expose"] == [[80, 1, "tcp", "http"], [53, 1, "udp", None], [9000, 3, "tcp", None]]
        chosen = {(port.port, port.length, port.protocol): port for port in (PortSpec(*item) for item in document["network"]["ports"])}
        assert set(chosen) == {(80, 1, "tcp"), (53, 1, "udp"), (9000, 3, "tcp")}
        assert all(port.host_port for port in chosen.values())
    assert "publish-all (-P): no port is exposed; expose some" in cli("run", "-P", "busybox", "true", check=125).stderr
    assert (
        "expose cannot be used with network container:web"
        in cli("run", "--network", "container:web", "--expose", "80", "busybox", "true", check=125).stderr
    )


def test_the_notice(cli: Cli) -> None:
    def notice(*options: str, env: dict[str, str] | None = None) -> str:
        return cli("run", "--rm", *options, "busybox", "true", env=env).stderr

    text = " published on all addresses of this host, also to the LAN; for this host only: -p "
    assert notice("-p", "8080:80") == f"netbox run: port 8080 is{text}127.0.0.1:8080:80\n"
    assert notice("-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "5353:53/udp") == (
        f"netbox run: ports 8080, 5353/udp are{text}127.0.0.1:8080:80\n"
    )
    assert notice("-p", "8000-8003:8000-8003").startswith(f"netbox run: ports 8000-8003 are{text}127.0.0.1:8000-8003:8000-8003")
    for silent in ("0.0.0.0:8080:80", "127.0.0.1:8080:80"):
        assert notice("-p", silent) == ""
    assert notice("-p", "8080:80", env={"NETBOX_NOTICES": "0"}) == ""
    result = cli("create", "--name", "later", "-p", "80", "busybox", "true")
    assert result.stderr == f"netbox create: port 80 (on a free host port) will be{text}127.0.0.1::80\n"
    assert cli("publish", "--format", "json", "later", "81").stderr == ""
    cli("rm", "later")


# -- Python API and killed processes -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("private_host")
def test_from_python() -> None:
    with Engine() as engine, engine.run("busybox", "sleep", "60") as sandbox:
        (web, dns) = sandbox.publish("127.0.0.1::80", PortSpec(53, 5353, protocol="udp", host_ip="127.0.0.1"))
        assert web.host_port
        assert [*sandbox.ports] == [web, dns]
        assert sandbox.unpublish(80) == (web,)
        assert [*sandbox.ports] == [dns]
        assert [*sandbox.spec.network.ports] == [dns]
        with pytest.raises(NotFound):
            sandbox.unpublish(80)
        with pytest.raises(UsageError):
            sandbox.publish("nonsense")


@pytest.mark.usefixtures("private_host")
def test_a_monitor_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine() as engine, engine.run("busybox", "sleep", "60") as sandbox:

        def keep_ports(*_: object) -> set[bytes]:
            raise HostError("no")

        monkeypatch.setattr(client, "keep_ports", keep_ports)
        with pytest.raises(HostError, match="no"):
            sandbox.publish("127.0.0.1:8080:80")
        monkeypatch.undo()
        assert sandbox.refresh().ports == ()
        engine.gc()
        assert Store(engine.settings).ports() == []
        assert is_free(8080)
        with pytest.raises(Conflict), socket.create_server(("127.0.0.1", 8080)):
            sandbox.publish("127.0.0.1:8080:80")
        sandbox.publish("127.0.0.1:8080:80")
        assert not is_free(8080)


STEPS: list[tuple[Any, str]] = [
    (Journal, "record"),
    (Journal, "forget"),
    (Store, "update_sandbox"),
    (Store, "claim_port"),
    (Store, "keep_ports"),
    (ports, "reserve"),
    (ports, "forget"),
    (client, "keep_ports"),
    (firewall_switch, "publish_again"),
    (publishing, "agree"),
]


def assert_whole(engine: Engine, sandbox: Sandbox) -> None:
    """Rules, claims and sockets are those of the record."""
    store = Store(engine.settings)
    recorded = {(port.protocol, port.host_ip, port.host_port) for port in sandbox.ports}
    assert recorded <= {("tcp", "127.0.0.1", 18080), ("tcp", "127.0.0.1", 18081)}
    assert {row[:3] for row in store.ports()} == recorded
    assert {port for port in (18080, 18081) if not is_free(port, address="127.0.0.1")} == {port for _, _, port in recorded}
    assert engine.repair() == []
    assert len(sandbox.spec.network.ports) == len(recorded)
    assert [owner for owner, _ in store.journal_owners(LINK)] == []
    assert len([row for row in store.journal(f"sandbox:{sandbox.short_id}", RUN).rows() if row.kind == "rules"]) <= 1


@pytest.mark.usefixtures("private_host")
@pytest.mark.parametrize("verb", ["publish", "unpublish"])
def test_killed_at_every_step(verb: str) -> None:
    """The sandbox has another published port every second time, and ends every third time."""

    def attempt() -> int:
        install(STEPS, number)
        with Engine(warm=False) as engine:
            change(engine.get("web"))
        return GOT_THROUGH

    def change(sandbox: Sandbox) -> None:
        if verb == "publish":
            sandbox.publish("127.0.0.1:18081:81")
        else:
            sandbox.unpublish("81")

    with Engine() as engine:
        for number in range(1, MOST_STEPS):
            before = ["127.0.0.1:18080:80"] if number % 2 else []
            before += ["127.0.0.1:18081:81"] if verb == "unpublish" else []
            sandbox = engine.run("busybox", "sleep", "60", name="web", ports=before)
            code = in_child(attempt)
            assert code in (GOT_THROUGH, -signal.SIGKILL), f"step {number}"
            if number % 3:
                engine.gc()
                assert_whole(engine, sandbox.refresh())
                done = any(port.host_port == 18081 for port in sandbox.ports) is (verb == "publish")
                assert done or code != GOT_THROUGH
                if not done:
                    change(sandbox)
                    assert_whole(engine, sandbox.refresh())
            sandbox.remove(force=True)
            engine.gc()
            assert Store(engine.settings).ports() == []
            assert [owner for owner in Store(engine.settings).journal_owners() if owner[1] == LINK] == []
            if code == GOT_THROUGH:
                assert number > 10
                break
        else:
            pytest.fail("a change has more steps than expected")
