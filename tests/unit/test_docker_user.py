"""Our rules in the chain of dockerd, while another program changes it too. The commands are a list of rules here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from netbox.errors import FirewallError
from netbox.kernel import iptables_command, nftables
from netbox.kernel.iptables_command import NFT, Side
from netbox.network import docker_user

SIDE = Side("ip", NFT)
OWNER, BRIDGE = "network:bridge", "nb0"
THEIRS = "-s 192.0.2.0/24 -j DROP"
LAST = "-j RETURN"


class Chain:
    """What iptables does with the lines that are used. Before each change somebody else does the next of ``meanwhile``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rules: Sequence[str], *meanwhile: Callable[[list[str]], None]) -> None:
        self.stands: list[str] | None = list(rules)
        self._meanwhile = list(meanwhile)
        monkeypatch.setattr(iptables_command, "rules", lambda side, chain: None if self.stands is None else list(self.stands))
        monkeypatch.setattr(iptables_command, "change", self._change)
        monkeypatch.setattr(docker_user, "_lan_bridges", list)
        monkeypatch.setattr(nftables, "chain_use", lambda *_: None if self.stands is None else len(self.stands))

    def _change(self, side: Side, lines: Sequence[str]) -> None:
        assert self.stands is not None
        if self._meanwhile:
            self._meanwhile.pop(0)(self.stands)
        changed = list(self.stands)
        for line in lines:
            verb, _, rest = line.split(" ", 2)
            if verb == "-D":
                if rest not in changed:
                    raise FirewallError("Bad rule (does a matching rule exist in that chain?)")
                changed.remove(rest)
            else:
                place, rule = rest.split(" ", 1)
                if int(place) > len(changed) + 1:
                    raise FirewallError("Index of insertion too big")
                changed.insert(int(place) - 1, rule)
        self.stands = changed


def flush(stands: list[str]) -> None:
    """As dockerd does when it starts."""
    stands[:] = [LAST]


def test_a_chain_that_gets_shorter_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(monkeypatch, [THEIRS, THEIRS, LAST], flush)
    docker_user._put(SIDE, {OWNER: BRIDGE})
    assert chain.stands == [*docker_user.accepts(OWNER, BRIDGE), LAST]


def test_rules_of_ours_that_another_program_flushes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    old = docker_user.accepts(OWNER, "nb1")
    chain = Chain(monkeypatch, [*old, LAST], flush)
    docker_user._put(SIDE, {OWNER: BRIDGE})
    assert chain.stands == [*docker_user.accepts(OWNER, BRIDGE), LAST]


def test_rules_to_be_withdrawn_that_another_program_flushes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(monkeypatch, [*docker_user.accepts(OWNER, BRIDGE), LAST], flush)
    docker_user.withdraw({"owner": OWNER, "family": "ip", "tables": NFT})
    assert chain.stands == [LAST]


def test_a_refusal_that_stays_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(side: Side, lines: Sequence[str]) -> None:
        raise FirewallError("no")

    chain = Chain(monkeypatch, [LAST])
    monkeypatch.setattr(iptables_command, "change", refuse)
    with pytest.raises(FirewallError, match="no"):
        docker_user._put(SIDE, {OWNER: BRIDGE})
    assert chain.stands == [LAST]


def test_a_dockerd_that_goes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(monkeypatch, [LAST])

    def refuse(side: Side, lines: Sequence[str]) -> None:
        chain.stands = None
        raise FirewallError("No chain by that name")

    monkeypatch.setattr(iptables_command, "change", refuse)
    docker_user._put(SIDE, {OWNER: BRIDGE})
