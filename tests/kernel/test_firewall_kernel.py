"""The two firewall backends on a host: which one is taken, moving from one to the other, repair, and what a change costs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from netbox import names
from netbox.engine import repair
from netbox.kernel import nftables
from netbox.network import firewall, firewall_choice, firewall_switch, obstacles
from netbox.network.firewall import RuleGroup
from netbox.network.firewall_nftables import NftablesBackend
from netbox.settings import Settings
from netbox.spec import PortSpec
from netbox.state.rows import SandboxRow
from netbox.state.store import Store
from tests.e2e.boxes import await_listener, inspect, running
from tests.kernel.network_lab import Guest, Lab, ask
from tests.support import leaks, linux
from tests.support.cli import Cli
from tests.support.host import Neighbour, PrivateHost

BACKENDS = ("iptables", "nftables")


def nft(*lines: str) -> None:
    for line in lines:
        subprocess.run(["nft", line], check=True, timeout=20)


def legacy(*lines: str) -> None:
    for line in lines:
        subprocess.run(["iptables-legacy", *line.split()], check=True, timeout=20)


@pytest.fixture
def lab(private_host: PrivateHost) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


# -- the choice ----------------------------------------------------------------------------------------------------------------------------


def test_auto_goes_where_the_rules_of_the_host_are(private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NETBOX_FIREWALL", raising=False)
    assert firewall_choice.choose().name == "iptables"
    NftablesBackend().apply([firewall.network_rules("network:x", "nb0", "10.9.0.0/20")])
    assert firewall_choice.choose().name == "iptables"  # our own table says nothing about the host
    NftablesBackend().take_down()
    nft("add table ip mine", "add chain ip mine c { type filter hook input priority 0 ; policy accept ; }", "add table ip6 mine6")
    assert firewall_choice.choose().name == "iptables"  # nothing is in it
    nft("add rule ip mine c counter")
    assert firewall_choice.choose() == ("nftables", "rules of this host are in nf_tables (ip mine)")
    assert obstacles.find("forward", ["netbox0"]) == []
    nft("delete table ip mine", "delete table ip6 mine6")
    subprocess.run(["iptables-nft", "-P", "FORWARD", "DROP"], check=True, timeout=20)
    assert firewall_choice.choose() == ("nftables", "rules of this host are in nf_tables (ip filter)")
    assert [item.chain for item in obstacles.find("forward", ["netbox0"])] == ["ip filter FORWARD"]
    nft("delete table ip filter")
    monkeypatch.setattr("netbox.network.firewall_choice._LEGACY_NAMES", "/nonexistent")
    monkeypatch.setattr("netbox.network.firewall_choice._module_is_ready", lambda: False)
    assert firewall_choice.choose() == ("nftables", "the legacy tables are missing")


def test_a_backend_that_does_not_exist_is_refused(private_host: PrivateHost, cli: Cli) -> None:
    refused = cli("run", "--rm", "busybox", "true", check=125, env={"NETBOX_FIREWALL": "pf"})
    assert "NETBOX_FIREWALL=pf: no such firewall backend; choose from iptables, nftables, auto" in refused.stderr


def test_an_accept_of_ours_does_not_overrule_a_drop_of_others(lab: Lab, outside: Neighbour, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the documentation says about dockerd, and that its way out works."""
    monkeypatch.setenv("NETBOX_FIREWALL", "nftables")
    guest = lab.guest(ports=(PortSpec(80, 8080),))
    guest.serve("tcp", 80)
    outside.execute("ip", "route", "add", "10.0.0.0/8", "via", outside.host_address)
    for line in ("-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-P FORWARD DROP"):
        subprocess.run(["iptables-nft", *line.split()], check=True, timeout=20)
    with outside.inside():
        assert ask("tcp", outside.host_address, 8080, 0.6) is None
    for line in ("-I DOCKER-USER -i netbox0 -j ACCEPT", "-I DOCKER-USER -o netbox0 -j ACCEPT"):
        subprocess.run(["iptables-nft", *line.split()], check=True, timeout=20)
    with outside.inside():
        assert ask("tcp", outside.host_address, 8080) == f"{outside.address} 80"
        assert ask("tcp", guest.address, 80, 0.6) is None  # and our own DROP still holds
    nft("delete table ip filter")


# -- connections that live through a change ------------------------------------------------------------------------------------------------


class Conversation:
    """A TCP connection from the neighbour through a published port, to an echo in the guest."""

    def __init__(self, guest: Guest, outside: Neighbour, port: int) -> None:
        with guest.inside():
            self._listener = socket.create_server(("0.0.0.0", 7))
        with outside.inside():
            self._client = socket.create_connection((outside.host_address, port), timeout=60)
        self._listener.settimeout(60)
        self._server, _ = self._listener.accept()
        self._server.settimeout(60)

    def goes_on(self) -> bool:
        self.ask()
        return self.is_answered()

    def ask(self) -> None:
        self._client.sendall(b"ping")

    def is_answered(self) -> bool:
        if self._server.recv(10) != b"ping":
            return False
        self._server.sendall(b"pong")
        return self._client.recv(10) == b"pong"

    def close(self) -> None:
        for sock in (self._client, self._server, self._listener):
            sock.close()


def remembered(lab: Lab, guest: Guest) -> None:
    """What the engine saves when the sandbox runs."""
    row = SandboxRow(guest.id, names.short_id(guest.id), {"remove": False}, {"layers": []}, "running", 0.0, details={})
    lab.store.insert_sandbox(row)


@pytest.fixture
def talk(lab: Lab, backend: str, outside: Neighbour) -> Iterator[tuple[Guest, Conversation]]:
    guest = lab.guest(ports=(PortSpec(7, 7007), PortSpec(53, 5353, protocol="udp"), PortSpec(9000, 9000, 3), PortSpec(91, 9100, 3)))
    remembered(lab, guest)
    with contextlib.closing(Conversation(guest, outside, 7007)) as conversation:
        assert conversation.goes_on()
        yield guest, conversation
    lab.store.delete_sandbox(guest.id)


# Rules of a host's own. They track and translate connections: where no rule does, the kernel stops it, and resets the first that speaks.
RESTORED = """
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
COMMIT
*raw
:PREROUTING ACCEPT
COMMIT
"""
CONFIGURED = """
flush ruleset
table inet host {
  chain input { type filter hook input priority 0; ct state established,related accept; }
  chain postrouting { type nat hook postrouting priority 100; oifname "ppp0" masquerade; }
}
"""


def restore(backend: str) -> None:
    """A script of the host puts its own rules in, in place of all that stand: iptables-restore(8), or nft with /etc/nftables.conf."""
    command, text = (["nft", "-f", "-"], CONFIGURED) if backend == "nftables" else (["iptables-legacy-restore"], RESTORED)
    subprocess.run(command, input=text, text=True, check=True, timeout=20)


@pytest.mark.parametrize("damage", ["flush", "edit", "restore"])
def test_repair_puts_exactly_that_back(lab: Lab, backend: str, talk: tuple[Guest, Conversation], outside: Neighbour, damage: str) -> None:
    guest, conversation = talk
    guest.serve("udp", 53)
    guest.serve("tcp", 93)
    assert repair.differences(lab.store) == []
    built = leaks.firewall()
    if damage == "restore":
        restore(backend)
        conversation.ask()  # while nothing of netbox's stands; with iptables what is forwarded is dropped
    elif damage == "flush" and backend == "nftables":
        nft("flush ruleset")
    elif damage == "flush":
        legacy("-t nat -F", "-t nat -X", "-F", "-t raw -F")
    elif backend == "nftables":
        nft("insert rule ip netbox ingress drop", "delete element ip netbox port { tcp . 7007 }")
    else:
        legacy("-I NETBOX-INGRESS -j DROP", "-t nat -D NETBOX-PUBLISH 1")
    with outside.inside():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect((outside.host_address, 5353))
        client.settimeout(0.4)
        client.send(b"?")
        with contextlib.suppress(OSError):  # unreachable, or silence
            client.recv(100)
    found = repair.differences(lab.store)
    assert {item.kind for item in found} == ({"missing", "foreign"} if damage == "edit" else {"missing"})
    assert repair.repair(lab.store) == found
    if damage == "restore":
        assert conversation.is_answered()
        if backend == "nftables":
            nft("delete table inet host")
        else:
            legacy("-P FORWARD ACCEPT", "-D INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT")
    assert leaks.firewall() == built
    assert repair.differences(lab.store) == repair.repair(lab.store) == []
    assert conversation.goes_on()
    client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # that the first one was unreachable may have come late
    with outside.inside(), client:
        assert ask("tcp", outside.host_address, 9102) == f"{outside.address} 93"
        client.settimeout(20)
        client.send(b"?")  # from the same port as before: its entry bypassed the missing rule
        assert client.recv(100).decode() == f"{outside.address} 53"


def test_repair_leaves_what_is_coming_or_going(lab: Lab, backend: str, talk: tuple[Guest, Conversation]) -> None:
    starting = lab.guest(ports=(PortSpec(80, 8080),))  # has rules, and no record that says "running"
    assert repair.differences(lab.store) == []
    owner = names.sandbox_owner(starting.id)
    if backend == "nftables":
        nft("insert rule ip netbox ingress drop")
    else:
        legacy("-I NETBOX-INGRESS -j DROP")
    assert repair.repair(lab.store)
    assert owner in firewall_choice.backend(backend).owners()
    firewall_choice.backend(backend).apply(remove=[owner])
    assert repair.repair(lab.store) == []
    assert owner not in firewall_choice.backend(backend).owners()


def test_a_sandbox_that_ends_meanwhile_gets_no_rules_back(
    lab: Lab, backend: str, talk: tuple[Guest, Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, _ = talk
    owner = names.sandbox_owner(guest.id)
    firewall_choice.backend(backend).apply(remove=[owner])
    answers = iter([{owner}, set[str]()])
    monkeypatch.setattr(repair, "_running", lambda _store: next(answers))
    assert {item.owner for item in repair.repair(lab.store)} >= {owner}
    assert owner not in firewall_choice.backend(backend).owners()


@pytest.mark.parametrize("again", [False, True], ids=["there", "there and back"])
def test_switching_moves_what_stands(
    lab: Lab, backend: str, talk: tuple[Guest, Conversation], outside: Neighbour, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    guest, conversation = talk
    guest.serve("tcp", 93)
    path = [name for name in BACKENDS if name != backend] + ([backend] if again else [])
    for target in path:
        monkeypatch.setenv("NETBOX_FIREWALL", target)
        other = lab.guest()  # the next start is what moves
        assert firewall_switch.standing(lab.store) == {target}
        assert conversation.goes_on()
        owners = {"network:bridge", names.sandbox_owner(guest.id)}
        assert firewall_choice.backend(target).owners() == owners
        assert repair.differences(lab.store) == []
        for name in set(BACKENDS) - {target}:
            assert firewall_choice.backend(name).owners() == set()
        with outside.inside():
            assert ask("tcp", outside.host_address, 9102) == f"{outside.address} 93"
        assert ask("tcp", "127.0.0.1", 9102) == f"{guest.gateway} 93"
        lab.end(other)


def test_what_was_moved_is_taken_away_at_the_end(lab: Lab, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment of the clean-up says. The fixture looks for what is left."""
    first = lab.guest(ports=(PortSpec(80, 8080),))
    monkeypatch.setenv("NETBOX_FIREWALL", "nftables" if backend == "iptables" else "iptables")
    second = lab.guest(ports=(PortSpec(80, 8081),))
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    lab.end(second)
    lab.end(first)


def test_a_network_that_was_flushed_is_whole_after_a_move(lab: Lab, outside: Neighbour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", "nftables")
    lab.guest()
    nft("flush ruleset")
    monkeypatch.setenv("NETBOX_FIREWALL", "iptables")
    guest = lab.guest(ports=(PortSpec(80, 8080),))
    assert repair.differences(lab.store) == []
    guest.serve("tcp", 80)
    outside.execute("ip", "route", "add", "10.0.0.0/8", "via", outside.host_address)
    with outside.inside():
        assert ask("tcp", outside.host_address, 8080) == f"{outside.address} 80"
        assert ask("tcp", guest.address, 80, 0.6) is None


def test_a_move_that_was_killed_half_way_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", "iptables")
    guest = lab.guest(ports=(PortSpec(80, 8080),))
    monkeypatch.setenv("NETBOX_FIREWALL", "nftables")

    class Killed(BaseException):
        pass

    def killed(_self: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("netbox.network.firewall_iptables.IptablesBackend.take_down", killed)
        with pytest.raises(Killed):
            firewall_switch.follow(lab.store)
    assert firewall_switch.standing(lab.store) == {"iptables", "nftables"}
    firewall_switch.follow(lab.store)
    assert firewall_switch.standing(lab.store) == {"nftables"}
    assert firewall_choice.backend("iptables").owners() == set()
    assert firewall_choice.backend("nftables").owners() == {"network:bridge", names.sandbox_owner(guest.id)}


def stands(name: str) -> set[str]:
    """The kinds of owners that have rules."""
    return {owner.partition(":")[0] for owner in firewall_choice.backend(name).owners()}


def test_a_sandbox_on_several_networks_with_an_impaired_link(private_host: PrivateHost, cli: Cli, backend: str, outside: Neighbour) -> None:
    """What should stand follows connect and disconnect, and goes along in a repair and a move."""
    (other,) = set(BACKENDS) - {backend}
    moved = {"NETBOX_FIREWALL": other}

    def published_on(network: str) -> None:
        assert cli("repair", env=moved if stands(other) else None).stdout == "nothing to repair\n"
        (document,) = json.loads(cli("inspect", "web").stdout)
        address = next(item["address"] for item in document["network"]["endpoints"] if item["network"] == network)
        assert any(address in line and "8080" in line for line in leaks.firewall())
        with outside.inside():
            client = socket.create_connection((outside.host_address, 8080), 20)
        with client:
            client.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
            assert client.recv(20).startswith(b"HTTP/1.1 200")

    cli("network", "create", "front")
    cli("network", "create", "--internal", "inner")
    cli("run", "-d", "--name", "web", "-p", "8080:80", "--network", "front", "busybox", "httpd", "-f", "-h", "/etc")
    try:
        await_listener(cli, "web", 80)
        cli("impair", "web", "--to", "192.0.2.9", "--loss", "30%")
        published_on("front")
        cli("network", "connect", "inner", "web")
        cli("network", "connect", "--gw-priority", "7", "bridge", "web")
        published_on("bridge")
        built = leaks.firewall()
        assert len([line for line in built if "impair:" in line and " owned" not in line]) == 3  # one for each interface
        if backend == "nftables":
            nft("flush ruleset")
        else:
            legacy("-t raw -F", "-t nat -F", "-F")
        said = cli("repair").stdout
        for owner in ("network:front", "network:inner", "network:bridge", "sandbox:", "impair:"):
            assert f"put back ({owner}" in said
        assert leaks.firewall() == built
        published_on("bridge")

        cli("run", "--rm", "busybox", "true", env=moved)
        assert (stands(backend), stands(other)) == (set(), {"network", "sandbox", "impair"})
        published_on("bridge")
        # Neither asks for a move: what they change stays where the rest is.
        cli("network", "disconnect", "bridge", "web")
        cli("impair", "web", "--to", "192.0.2.10", "--loss", "30%")
        assert (stands(backend), stands(other)) == (set(), {"network", "sandbox", "impair"})
        published_on("front")
        cli("impair", "web", "--off")
        assert stands(other) == {"network", "sandbox"}
        cli("network", "connect", "bridge", "web")  # brings a network up, so it moves
        assert (stands(backend), stands(other)) == ({"network", "sandbox"}, set())
        published_on("bridge")
        cli("impair", "web", "--loss", "1%")
    finally:
        cli("rm", "-f", "web", env=moved)
        cli("network", "rm", "front", "inner")
        cli("gc")


# -- cost ----------------------------------------------------------------------------------------------------------------------------------


def operations(monkeypatch: pytest.MonkeyPatch, group: RuleGroup) -> list[tuple[str, int]]:
    """What adding and removing a group asks of the kernel: the lines of each batch of commands, the objects of each answer."""
    backend = NftablesBackend()
    seen: list[tuple[str, int]] = []
    real_call, real_ask = nftables._call, nftables._answers

    def counted_call(commands: str, flags: int) -> str:
        output = real_call(commands, flags)
        seen.append(("commands", commands.strip().count("\n") + 1))
        seen.append(("output", len(output)))
        return output

    def counted_ask(sock: socket.socket, message: int, flags: int, body: bytes, family: int) -> Iterator[tuple[int, dict[int, bytes]]]:
        number = len(seen)
        seen.append(("objects", 0))
        for item in real_ask(sock, message, flags, body, family):
            seen[number] = ("objects", seen[number][1] + 1)
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(nftables, "_call", counted_call)
        patch.setattr(nftables, "_answers", counted_ask)
        backend.apply([group])
        backend.apply(remove=[group.owner])
    return seen


def test_a_change_costs_the_same_at_any_size(private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = NftablesBackend()
    network = firewall.network_rules("network:bridge", "netbox0", "10.9.0.0/20")
    port = firewall.publish_rules("sandbox:a", "10.9.0.2", [PortSpec(80, 8080)])

    def publish(count: int) -> None:
        published = [PortSpec(80, 10000 + number) for number in range(count)]
        backend.apply([firewall.publish_rules("sandbox:one", "10.9.0.3", published[: count // 2])])
        backend.apply([firewall.publish_rules("sandbox:other", "10.9.0.4", published[count // 2 :])])

    backend.apply([network])
    publish(2)
    few = operations(monkeypatch, port)
    backend.apply(remove=["sandbox:one", "sandbox:other"])
    publish(1000)
    many = operations(monkeypatch, port)
    assert len(backend.rules()) == 1000 + len(network.rules)
    assert few == many
    assert [count for kind, count in many if kind == "commands"] == [2, 2]  # the element and its entry in the index, in and out
    backend.take_down()


def numbered(number: int) -> RuleGroup:
    """The rules of one of many networks."""
    group = firewall.network_rules(f"network:n{number}", f"nb-{number:08x}", f"10.{number}.0.0/24", internal=number % 2 == 1)
    return firewall.dual_stack(group, f"10.{number}.0.0/24", f"fd00:{number:x}::/64")


def test_a_network_costs_the_same_at_any_number(private_host: PrivateHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a change nor a packet meets more rules: networks are elements of sets."""
    backend = NftablesBackend()

    def rules() -> list[Any]:
        listed = [item for table in ("ip netbox", "ip6 netbox") for item in nftables.listing(True, table)]
        assert not any(item["set"]["flags"] for item in listed if "set" in item and "flags" in item["set"])  # nothing but hash sets
        return [(item["rule"]["chain"], item["rule"]["expr"]) for item in listed if "rule" in item]

    backend.apply([numbered(0), numbered(1)])
    few, packets = operations(monkeypatch, numbered(200)), rules()
    backend.apply([numbered(number) for number in range(2, 100)])
    assert operations(monkeypatch, numbered(200)) == few
    assert operations(monkeypatch, numbered(201))
    assert rules() == packets
    assert backend.owners() == {f"network:n{number}" for number in range(100)}
    assert backend.differences([numbered(number) for number in range(100)]) == []
    backend.apply([firewall.network_rules("network:longer", "nb-longer", "10.250.0.0/28")])
    assert len(rules()) == len(packets) + 4  # the first subnet with this length
    assert backend.differences([numbered(0), numbered(1), firewall.network_rules("network:longer", "nb-longer", "10.250.0.0/28")]) == []
    backend.take_down()


def test_the_first_packet_costs_the_same_at_any_size(private_host: PrivateHost) -> None:
    """The rules that it passes are those of the base; ports are elements of hash tables."""
    backend = NftablesBackend()

    def publishing() -> list[Any]:
        listed = nftables.listing(terse=True)
        return [item["rule"]["expr"] for item in listed if "rule" in item and item["rule"]["chain"] in ("prerouting", "output", "publish")]

    backend.apply([firewall.publish_rules("sandbox:a", "10.9.0.2", [PortSpec(80, 8080)])])
    one = publishing()
    assert len(one) == 5
    ports = [PortSpec(80, 10000 + number, protocol=protocol) for number in range(500) for protocol in ("tcp", "udp")]
    backend.apply([firewall.publish_rules("sandbox:b", "10.9.0.3", [*ports, PortSpec(90, 20000, 100), PortSpec(30000, 30000, 100)])])
    assert publishing() == one
    backend.take_down()


# -- the command ---------------------------------------------------------------------------------------------------------------------------


def test_check_names_it_and_repair_mends_it(private_host: PrivateHost, cli: Cli, backend: str) -> None:
    cli("run", "-d", "--name", "web", "-p", "18080:80", "busybox", "httpd", "-f", "-h", "/etc")
    try:
        await_listener(cli, "web", 80)
        assert cli("repair").stdout == "nothing to repair\n"
        fact = {each["name"]: each for each in json.loads(cli("check", "--format", "json").stdout)["facts"]}
        assert fact["rules"]["state"] == "ok"
        assert fact["backend"]["detail"] == f"{backend}: NETBOX_FIREWALL says so"
        if backend == "nftables":
            nft("flush ruleset")
        else:
            legacy("-t nat -F NETBOX-PUBLISH")
        assert ask("tcp", "127.0.0.1", 18080, 0.6) is None
        document = json.loads(cli("check", "--format", "json").stdout)
        fact = {each["name"]: each for each in document["facts"]}
        assert (fact["rules"]["state"], fact["rules"]["remedy"]) == ("limited", "put them back: netbox repair")
        assert "missing" in fact["rules"]["detail"]
        assert document["usable"] is True
        assert "put back (sandbox:" in cli("repair").stdout
        assert json.loads(cli("repair", "--format", "json").stdout) == []
        with socket.create_connection(("127.0.0.1", 18080), 20) as client:
            client.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
            assert client.recv(20).startswith(b"HTTP/1.1 200")
    finally:
        cli("rm", "-f", "web")
        cli("gc")


IN_A_SANDBOX = {
    "iptables": {
        "flushed": ["iptables-legacy -t raw -F", "iptables-legacy -t raw -X"],
        "a rule taken away": ["iptables-legacy -t raw -F NETBOX-LOSS"],
        "a rule put in": ["iptables-legacy -t raw -A NETBOX-LOSS -p udp -j DROP"],
        "the jump taken away": ["iptables-legacy -t raw -F PREROUTING"],
    },
    "nftables": {
        "flushed": ["nft flush ruleset"],
        "a rule taken away": ["nft flush chain ip netbox guard"],
        "a rule put in": ["nft add rule ip netbox guard udp dport 9 drop"],
    },
}


def test_losses_inside_of_a_sandbox_are_repaired_too(private_host: PrivateHost, cli: Cli, backend: str) -> None:
    """They stand in its own network namespace, where programs of this host and a sandbox with NET_ADMIN can take them away."""
    with running(cli, "web"):
        cli("impair", "web", "--loss", "25%", "--direction", "in")
        store = Store(Settings.from_environment())
        owner = names.impairment_owner(inspect(cli, "web")["id"])
        netns = os.open(f"/proc/{inspect(cli, 'web')['pid']}/ns/net", os.O_RDONLY)

        def rules() -> set[str]:
            with linux.network_namespace(netns):
                return leaks.firewall()

        before = rules()
        assert before
        assert repair.differences(store) == []
        for damage, commands in IN_A_SANDBOX[backend].items():
            with linux.network_namespace(netns):
                for command in commands:
                    subprocess.run(command.split(), check=True, timeout=20)
            found = repair.differences(store)
            assert {item.kind for item in found} == {"foreign" if damage == "a rule put in" else "missing"}, damage
            assert all(item.what.startswith("in web: ") for item in found)
            assert {item.owner for item in found} <= {owner, "netbox", ""}
            assert repair.repair(store) == found
            assert rules() == before, damage
        assert cli("repair").stdout == "nothing to repair\n"
        cli("impair", "web", "--off")
        assert rules() == set()
        assert repair.differences(store) == []
        os.close(netns)
        store.close()
