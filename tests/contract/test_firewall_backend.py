"""What every firewall backend must do. Needs root: it runs against the kernel, in a private host."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from netbox.errors import FirewallError
from netbox.network import firewall
from netbox.network.firewall import FirewallBackend, RuleGroup
from netbox.network.firewall_iptables import IptablesBackend
from netbox.network.firewall_nftables import NftablesBackend
from netbox.spec import PortSpec
from tests.support import leaks, linux
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

BACKENDS: list[Callable[[], FirewallBackend]] = [IptablesBackend, NftablesBackend]

NETWORK = firewall.network_rules("network:bridge", "netbox0", "10.9.0.0/20")
INTERNAL = firewall.network_rules("network:inner", "nb-2", "10.9.32.0/20", internal=True)
LOSS = RuleGroup(
    "impair:a",
    (
        firewall.Rule(firewall.LOSS, firewall.DROP, in_interface="netbox0", source="10.9.0.2", probability=0.05),
        firewall.Rule(firewall.LOSS, firewall.DROP, in_interface="netbox0", source="10.9.0.2", destination="10.0.0.0/8", probability=1e-6),
    ),
)
OTHER = firewall.network_rules("network:other", "nb-1", "10.9.16.0/20")


def ports(owner: str, *numbers: int) -> RuleGroup:
    return firewall.publish_rules(owner, "10.9.0.2", [PortSpec(80, number) for number in numbers])


@pytest.fixture(params=BACKENDS, ids=lambda made: made.name)
def backend(request: pytest.FixtureRequest, private_host: PrivateHost) -> FirewallBackend:
    made: FirewallBackend = request.param()
    return made


def foreign_rules() -> None:
    for line in ("-A FORWARD -p icmp -j ACCEPT", "-t nat -A PREROUTING -p tcp --dport 1 -j ACCEPT", "-N MINE", "-A MINE -j RETURN"):
        subprocess.run(["iptables-legacy", *line.split()], check=True, timeout=20)


def remove_foreign_rules() -> None:
    for line in ("-D FORWARD -p icmp -j ACCEPT", "-t nat -D PREROUTING -p tcp --dport 1 -j ACCEPT", "-F MINE", "-X MINE"):
        subprocess.run(["iptables-legacy", *line.split()], check=True, timeout=20)


def test_groups_come_and_go_by_owner(backend: FirewallBackend) -> None:
    backend.apply([NETWORK])
    backend.apply([ports("sandbox:a", 8080, 8081), ports("sandbox:b", 9090)])
    assert backend.owners() == {"network:bridge", "sandbox:a", "sandbox:b"}
    assert len(backend.rules()) == len(NETWORK.rules) + 3
    backend.apply(remove=["sandbox:a"])
    assert backend.owners() == {"network:bridge", "sandbox:b"}
    backend.apply(remove=["sandbox:b", "network:bridge"])
    assert backend.owners() == set()


def test_a_rule_for_a_share_of_packets(backend: FirewallBackend) -> None:
    """Half of 400 datagrams to ourselves: the bound is seven standard deviations wide either way."""
    backend.apply(
        [RuleGroup("impair:a", (firewall.Rule(firewall.LOSS, firewall.DROP, in_interface="lo", source="127.0.0.9", probability=0.5),))]
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(0.2)
        source.bind(("127.0.0.9", 0))
        found = 0
        for _ in range(8):
            for _ in range(50):
                source.sendto(b"x", sink.getsockname())
            while True:
                try:
                    sink.recv(9)
                except TimeoutError:
                    break
                found += 1
    assert 130 <= found <= 270
    backend.apply(remove=["impair:a"])
    assert backend.owners() == set()


def test_what_only_some_packets_need_is_there_only_for_them(backend: FirewallBackend) -> None:
    """Every packet of the host would pass it."""
    backend.apply([NETWORK])
    alone = leaks.firewall()
    names = firewall.with_names(OTHER, "nb-1", ["10.9.16.1"], 53)
    backend.apply([LOSS, names])
    assert backend.differences([NETWORK, LOSS, names]) == []
    backend.apply(remove=["impair:a", names.owner])
    assert leaks.firewall() == alone
    assert backend.differences([NETWORK]) == []
    backend.take_down()


def test_the_last_one_takes_everything_along(backend: FirewallBackend) -> None:
    before = leaks.firewall()
    backend.apply([NETWORK, ports("sandbox:a", 8080)])
    assert leaks.firewall() != before
    backend.apply(remove=["network:bridge"])
    backend.apply(remove=["sandbox:a"])
    assert leaks.firewall() == before


def test_applying_twice_is_the_same_as_once(backend: FirewallBackend) -> None:
    backend.apply([NETWORK, ports("sandbox:a", 8080)])
    once = leaks.firewall()
    backend.apply([NETWORK, ports("sandbox:a", 8080)])
    assert leaks.firewall() == once
    assert len(backend.rules()) == len(NETWORK.rules) + 1
    backend.take_down()


def test_a_group_of_the_same_owner_replaces_the_old_one(backend: FirewallBackend) -> None:
    backend.apply([ports("sandbox:a", 8080, 8081)])
    backend.apply([ports("sandbox:a", 9090)])
    assert len(backend.rules()) == 1
    backend.take_down()


def test_removing_what_is_not_there_is_fine(backend: FirewallBackend) -> None:
    before = leaks.firewall()
    backend.apply(remove=["sandbox:nobody"])
    backend.take_down()
    assert leaks.firewall() == before


def test_owners_whose_names_begin_alike_are_different(backend: FirewallBackend) -> None:
    backend.apply([ports("sandbox:a", 8080), ports("sandbox:ab", 8081)])
    backend.apply(remove=["sandbox:a"])
    assert backend.owners() == {"sandbox:ab"}
    backend.take_down()


def test_foreign_rules_stay_as_they_are(backend: FirewallBackend) -> None:
    foreign_rules()
    before = leaks.firewall()
    backend.apply([NETWORK, ports("sandbox:a", 8080)])
    assert before <= leaks.firewall()
    backend.apply(remove=["network:bridge", "sandbox:a"])
    assert leaks.firewall() == before
    backend.apply([NETWORK])
    backend.take_down()
    assert leaks.firewall() == before
    remove_foreign_rules()


def test_two_networks_do_not_disturb_each_other(backend: FirewallBackend) -> None:
    backend.apply([NETWORK])
    alone = leaks.firewall()
    backend.apply([OTHER])
    backend.apply(remove=["network:other"])
    assert leaks.firewall() == alone
    backend.take_down()


def test_a_refused_group_changes_nothing(backend: FirewallBackend) -> None:
    backend.apply([NETWORK])
    before = leaks.firewall()
    # A chain cannot masquerade before routing: the kernel refuses the whole commit.
    wrong = RuleGroup("sandbox:a", (firewall.Rule(firewall.PUBLISH, firewall.MASQUERADE), *ports("sandbox:a", 8080).rules))
    with pytest.raises(FirewallError, match="refused"):
        backend.apply([wrong])
    assert leaks.firewall() == before
    backend.take_down()


def test_a_bad_value_never_gets_to_the_kernel(backend: FirewallBackend) -> None:
    before = leaks.firewall()
    with pytest.raises(ValueError):
        backend.apply([RuleGroup("sandbox:a", (firewall.Rule(firewall.EGRESS, firewall.ACCEPT, in_interface="x" * 99),))])
    assert leaks.firewall() == before


def test_rules_go_to_the_namespace_of_the_calling_thread(backend: FirewallBackend) -> None:
    backend.apply([ports("sandbox:a", 8080)])
    elsewhere = linux.new_network_namespace()
    try:
        with linux.network_namespace(elsewhere):
            assert backend.owners() == set()
            backend.apply([ports("sandbox:b", 8081)])
            assert backend.owners() == {"sandbox:b"}
        assert backend.owners() == {"sandbox:a"}
        with linux.network_namespace(elsewhere):
            backend.take_down()
    finally:
        os.close(elsewhere)
    backend.take_down()


def test_no_namespace_is_kept_alive(backend: FirewallBackend) -> None:
    """A handle that stays open would keep the namespace, and with it the veth pair whose other end is in it."""
    fd = linux.new_network_namespace()
    namespace = f"/proc/{os.getpid()}/fd/{fd}"
    subprocess.run(["ip", "link", "add", "left0", "type", "veth", "peer", "name", "right0", "netns", namespace], check=True, timeout=20)
    with linux.network_namespace(fd):
        backend.apply([ports("sandbox:a", 8080)])
    os.close(fd)
    wait_until(lambda: "left0" not in {name for _, name in socket.if_nameindex()}, "the namespace's end", timeout=30)


def test_threads_at_once(backend: FirewallBackend) -> None:
    backend.apply([NETWORK])
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                backend.apply([ports(f"sandbox:{number}", 8000 + 10 * number + turn)])
            backend.apply(remove=[f"sandbox:{number}"])
        except BaseException as error:  # noqa: BLE001  (handed to the test's own thread)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
        assert not thread.is_alive()
    assert errors == []
    assert backend.owners() == {"network:bridge"}
    backend.take_down()


def test_processes_at_once(backend: FirewallBackend) -> None:
    """Without the lock of iptables some of them fail with EAGAIN, and others' changes come back as ghosts."""
    backend.apply([NETWORK])
    program = (
        "import sys\n"
        f"from {type(backend).__module__} import {type(backend).__name__} as Backend\n"
        "from netbox.network import firewall\n"
        "from netbox.spec import PortSpec\n"
        "n = int(sys.argv[1])\n"
        "for turn in range(15):\n"
        "    Backend().apply([firewall.publish_rules(f'sandbox:{n}', '10.9.0.2', [PortSpec(80, 8000 + n)])])\n"
        "    Backend().apply(remove=[f'sandbox:{n}'])\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", program, str(number)], stderr=subprocess.PIPE, text=True) for number in range(4)]
    for process in started:
        _, errors = process.communicate(timeout=110)
        assert process.returncode == 0, errors
    assert backend.owners() == {"network:bridge"}
    backend.take_down()


def test_the_commands_do_what_the_backend_does(backend: FirewallBackend) -> None:
    published = [PortSpec(80, 8080), PortSpec(90, 8000, 11, "udp", "127.0.0.1")]
    groups = [NETWORK, INTERNAL, LOSS, firewall.publish_rules("sandbox:a", "10.9.0.2", published)]
    backend.apply(groups)
    built = leaks.firewall()
    backend.take_down()
    for line in backend.commands(groups, base=True):
        subprocess.run(shlex.split(line.replace("iptables ", "iptables-legacy ", 1)), check=True, timeout=20)
    assert {line for line in leaks.firewall() if " owned" not in line} == {line for line in built if " owned" not in line}
    backend.take_down()


def test_an_internal_network_is_fenced_before_anything_is_let_in(backend: FirewallBackend) -> None:
    """Whatever the order in which networks come: the accept of one is no way into, or out of, an internal one."""
    backend.apply([NETWORK])
    backend.apply([INTERNAL])
    assert backend.owners() == {"network:bridge", "network:inner"}
    assert len(backend.rules()) == len(NETWORK.rules) + len(INTERNAL.rules)
    stages = [line for line in backend.commands([], base=True) if "FORWARD" in line or "rule ip netbox forward" in line]
    assert [stage for line in stages for stage in ("fence", "ingress", "egress") if stage in line.lower()] == ["fence", "ingress", "egress"]
    assert backend.differences([NETWORK, INTERNAL]) == []
    backend.take_down()


# -- what others did to our rules ----------------------------------------------------------------------------------------------------------

GROUPS = [
    NETWORK,
    INTERNAL,
    LOSS,
    firewall.publish_rules("sandbox:a", "10.9.0.2", [PortSpec(80, 8080), PortSpec(53, 5353, protocol="udp", host_ip="127.0.0.1")]),
    firewall.publish_rules("sandbox:b", "10.9.0.3", [PortSpec(9000, 9000, 11), PortSpec(90, 8000, 11, "udp")]),
]
DAMAGE = {
    "everything flushed": {
        "iptables": ["-t raw -F", "-t nat -F", "-t nat -X", "-F", "-X"],
        "nftables": ["flush ruleset"],
    },
    "a chain flushed": {"iptables": ["-F NETBOX-INGRESS"], "nftables": ["flush chain ip netbox ingress"]},
    "published ports gone": {
        "iptables": ["-t nat -F NETBOX-PUBLISH"],
        "nftables": ["flush map ip netbox port", "flush map ip netbox address_port", "flush map ip netbox port_range"],
    },
    "the index gone": {"iptables": [], "nftables": ["flush set ip netbox owned"]},
    "a jump gone": {
        "iptables": ["-D FORWARD -j NETBOX-EGRESS"],
        "nftables": ["flush chain ip netbox forward"],
    },
    "the fence torn down": {"iptables": ["-F NETBOX-FENCE"], "nftables": ["flush chain ip netbox fence"]},
    "a loss edited": {
        "iptables": [
            "-t raw -D NETBOX-LOSS 1",
            "-t raw -A NETBOX-LOSS -s 10.9.0.2 -m statistic --mode random --probability .5 -m comment --comment impair:a -j DROP",
        ],
        "nftables": ['add rule ip netbox guard iifname "netbox0" ip saddr 10.9.0.2 numgen random mod 100 < 50 drop comment "impair:a"'],
    },
    "a rule put in front": {"iptables": ["-I NETBOX-INGRESS -j DROP"], "nftables": ["insert rule ip netbox ingress drop"]},
    "a rule under our name": {
        "iptables": ["-I NETBOX-EGRESS -m comment --comment network:bridge -j ACCEPT"],
        "nftables": ['insert rule ip netbox egress accept comment "network:bridge"'],
    },
    "a port led elsewhere": {
        "iptables": ["-t nat -R NETBOX-PUBLISH 1 -p tcp --dport 8080 -m comment --comment sandbox:a -j DNAT --to 10.9.0.9:80"],
        "nftables": [
            "delete element ip netbox port { tcp . 8080 }",
            'add element ip netbox port { tcp . 8080 comment "sandbox:a" : 10.9.0.9 . 80 }',
        ],
    },
    "a port of nobody's": {
        "iptables": ["-t nat -A NETBOX-PUBLISH -p tcp --dport 4444 -j DNAT --to 10.9.0.9:80"],
        "nftables": ["add element ip netbox port { tcp . 4444 : 10.9.0.9 . 80 }"],
    },
    "the order": {
        "iptables": [
            "-D NETBOX-INGRESS -o netbox0 -m comment --comment network:bridge -j DROP",
            "-I NETBOX-INGRESS -o netbox0 -m comment --comment network:bridge -j DROP",
        ],
        "nftables": [
            "flush chain ip netbox guard",
            'add rule ip netbox guard iifname "netbox0" ip saddr 127.0.0.0/8 drop comment "network:bridge"',
            'add rule ip netbox guard iifname "netbox0" ip daddr 127.0.0.0/8 drop comment "network:bridge"',
        ],
    },
}


def do_damage(backend: FirewallBackend, name: str) -> bool:
    """Whether there was anything to do."""
    lines = DAMAGE[name][backend.name]
    for line in lines:
        words = ["iptables-legacy", *line.split()] if backend.name == "iptables" else ["nft", line]
        subprocess.run(words, check=True, timeout=20)
    return bool(lines)


def test_every_rule_has_its_place(backend: FirewallBackend) -> None:
    assert backend.places(GROUPS) == [[None] * len(group.rules) for group in GROUPS]
    backend.apply([OTHER])
    backend.apply(GROUPS)
    places = backend.places(GROUPS)
    assert [len(row) for row in places] == [len(group.rules) for group in GROUPS]
    flat = [place for row in places for place in row]
    assert None not in flat
    assert len(set(flat)) == len(flat)
    assert {(owner, place) for owner, place in backend.rules() if owner != "network:other" and "map" not in str(place)} >= {
        (group.owner, place) for group, row in zip(GROUPS, places, strict=True) for place in row if place and "map" not in place
    }
    do_damage(backend, "published ports gone")
    after = backend.places(GROUPS)
    assert after[:3] == places[:3]
    assert after[3:] == [[None] * len(group.rules) for group in GROUPS[3:]]
    backend.take_down()


def test_nothing_differs_where_nobody_touched_anything(backend: FirewallBackend) -> None:
    assert backend.differences([]) == []
    backend.apply(GROUPS)
    assert backend.differences(GROUPS) == []
    backend.apply([OTHER, ports("sandbox:c", 7000)])
    assert backend.differences(GROUPS) == []  # the others may just be starting
    backend.repair(GROUPS)
    assert backend.owners() == {group.owner for group in GROUPS}
    assert backend.differences(GROUPS) == []
    backend.take_down()


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_repaired(backend: FirewallBackend, name: str) -> None:
    backend.apply(GROUPS)
    built = leaks.firewall()
    damaged = do_damage(backend, name)
    found = backend.differences(GROUPS)
    assert bool(found) is damaged
    if name == "everything flushed":
        assert {item.kind for item in found} == {"missing"}
        assert {item.owner for item in found} == {"netbox", *(group.owner for group in GROUPS)}
    if name == "a rule put in front":
        assert [item.kind for item in found] == ["foreign"]
    backend.repair(GROUPS)
    assert backend.differences(GROUPS) == []
    assert leaks.firewall() == built
    backend.apply(remove=[group.owner for group in GROUPS])
    assert backend.owners() == set()
    assert not any("netbox" in line.lower() for line in leaks.firewall())
    flushed_foreign_chains_stay_empty()


def flushed_foreign_chains_stay_empty() -> None:
    """Nothing of ours is left in the built-in chains."""
    result = subprocess.run(["iptables-legacy-save"], capture_output=True, text=True, timeout=20, check=True)
    assert "NETBOX" not in result.stdout


@pytest.mark.parametrize("name", DAMAGE)
def test_an_owner_goes_whatever_was_done_to_its_rules(backend: FirewallBackend, name: str) -> None:
    """The end of a sandbox must not fail, nor leave anything, because somebody edited rules."""
    backend.apply(GROUPS)
    do_damage(backend, name)
    backend.apply(remove=["sandbox:a"])
    assert "sandbox:a" not in backend.owners()
    backend.apply([ports("sandbox:a", 8080)])
    assert "sandbox:a" in backend.owners()
    backend.take_down()
    assert not any("netbox" in line.lower() for line in leaks.firewall())


def test_foreign_rules_are_no_difference_and_stay(backend: FirewallBackend) -> None:
    backend.apply(GROUPS)
    foreign_rules()
    before = leaks.firewall()
    assert backend.differences(GROUPS) == []
    do_damage(backend, "a chain flushed")
    backend.repair(GROUPS)
    assert leaks.firewall() == before
    backend.take_down()
    remove_foreign_rules()


# -- IPv6 ----------------------------------------------------------------------------------------------------------------------------------

NETWORK6 = firewall.dual_stack(NETWORK, "10.9.0.0/20", "fd00:9::/64")
INTERNAL6 = firewall.dual_stack(INTERNAL, "10.9.32.0/20", "fd00:9:1::/64")
PORTS6 = RuleGroup(
    "sandbox:six",
    (
        *ports("sandbox:six", 8080).rules,
        *firewall.publish_rules(
            "sandbox:six",
            "fd00:9::2",
            [
                PortSpec(80, 8080, host_ip="::"),
                PortSpec(53, 5353, protocol="udp", host_ip="2001:db8::1"),
                PortSpec(9000, 9000, 11, host_ip="::"),
                PortSpec(90, 8000, 11, "udp", "::"),
            ],
        ).rules,
    ),
)
GROUPS6 = [NETWORK6, INTERNAL6, PORTS6]
DAMAGE6 = {
    "everything flushed": {"iptables": ["-t nat -F", "-F", "-t raw -F"], "nftables": ["delete table ip6 netbox"]},
    "a chain flushed": {"iptables": ["-F NETBOX-FENCE"], "nftables": ["flush chain ip6 netbox fence"]},
    "a jump gone": {
        "iptables": ["-t nat -D PREROUTING ! -d ::1 -m addrtype --dst-type LOCAL -j NETBOX-PUBLISH"],
        "nftables": ["flush chain ip6 netbox prerouting"],
    },
    "the index gone": {"iptables": [], "nftables": ["flush set ip6 netbox owned"]},
    "a rule put in front": {"iptables": ["-I NETBOX-INGRESS -j DROP"], "nftables": ["insert rule ip6 netbox ingress drop"]},
    "a port led elsewhere": {
        "iptables": ["-t nat -R NETBOX-PUBLISH 1 -p tcp --dport 8080 -m comment --comment sandbox:six -j DNAT --to [fd00:9::9]:80"],
        "nftables": [
            "delete element ip6 netbox port { tcp . 8080 }",
            'add element ip6 netbox port { tcp . 8080 comment "sandbox:six" : fd00:9::9 . 80 }',
        ],
    },
}


def ours6() -> set[str]:
    return {line for line in leaks.firewall() if "netbox" in line.lower() and ("ip6" in line or "'family': 'ip6'" in line)}


def test_ipv6_comes_and_goes_with_who_has_it(backend: FirewallBackend) -> None:
    before = leaks.firewall()
    backend.apply([OTHER, ports("sandbox:a", 8081)])
    assert ours6() == set()
    backend.apply(GROUPS6)
    assert ours6()
    assert backend.owners() == {"network:other", "sandbox:a", *(group.owner for group in GROUPS6)}
    assert len(backend.rules()) == len(OTHER.rules) + 1 + sum(len(group.rules) for group in GROUPS6)
    built = leaks.firewall()
    backend.apply(GROUPS6)
    assert leaks.firewall() == built
    backend.apply([ports("sandbox:six", 8080)], ["sandbox:six"])  # without IPv6 now
    assert not any("sandbox:six" in line for line in ours6())
    backend.apply(remove=["sandbox:six", "sandbox:a"])
    assert ours6()
    backend.apply(remove=["network:bridge", "network:inner"])
    assert ours6() == set()
    assert backend.differences([OTHER]) == []
    backend.apply(remove=["network:other"])
    assert leaks.firewall() == before
    backend.apply(GROUPS6)
    backend.take_down()
    assert leaks.firewall() == before


def test_the_commands_for_ipv6_do_what_the_backend_does(backend: FirewallBackend) -> None:
    backend.apply(GROUPS6)
    built = leaks.firewall()
    backend.take_down()
    for line in backend.commands(GROUPS6, base=True, base6=True):
        for program in ("ip6tables ", "iptables "):
            line = line.replace(program, program.strip() + "-legacy ", 1) if line.startswith(program) else line
        subprocess.run(shlex.split(line), check=True, timeout=20)
    assert {line for line in leaks.firewall() if " owned" not in line} == {line for line in built if " owned" not in line}
    backend.take_down()


@pytest.mark.parametrize("name", DAMAGE6)
def test_damage_to_ipv6_is_named_and_repaired(backend: FirewallBackend, name: str) -> None:
    backend.apply(GROUPS6)
    assert backend.differences(GROUPS6) == []
    built = leaks.firewall()
    lines = DAMAGE6[name][backend.name]
    for line in lines:
        words = ["ip6tables-legacy", *line.split()] if backend.name == "iptables" else ["nft", line]
        subprocess.run(words, check=True, timeout=20)
    assert bool(backend.differences(GROUPS6)) is bool(lines)
    backend.repair(GROUPS6)
    assert backend.differences(GROUPS6) == []
    assert leaks.firewall() == built
    for line in lines:
        subprocess.run(["ip6tables-legacy", *line.split()] if backend.name == "iptables" else ["nft", line], check=True, timeout=20)
    backend.apply(remove=["sandbox:six"])
    assert "sandbox:six" not in backend.owners()
    backend.take_down()
    assert not any("netbox" in line.lower() for line in leaks.firewall())


def test_an_interface_of_an_ipv6_rule_is_compared_as_a_whole(private_host: PrivateHost) -> None:
    """python-iptables would let "netbox0" match every name whose letters are odd and even where its own are."""
    backend = IptablesBackend()
    rule = firewall.Rule(firewall.LOSS, firewall.DROP, in_interface="lo", ipv6=True)
    like = firewall.Rule(firewall.LOSS, firewall.DROP, in_interface="nm", ipv6=True)  # as l and o
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sink, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as source:
        sink.bind(("::1", 0))
        sink.settimeout(20)
        backend.apply([RuleGroup("impair:a", (like,))])
        source.sendto(b"x", sink.getsockname())
        assert sink.recv(9) == b"x"
        backend.apply([RuleGroup("impair:a", (rule,))])
        sink.settimeout(0.3)
        source.sendto(b"x", sink.getsockname())
        with pytest.raises(TimeoutError):
            sink.recv(9)
    backend.take_down()
