"""Letting netbox's bridges pass in ``DOCKER-USER``, the chain that dockerd keeps for the rules of others.

Where dockerd has set the policy DROP of FORWARD, an accept of ours in other tables does not overrule it (``firewall_choice``): it must
stand in a chain that the same FORWARD asks. That is all that netbox ever writes into a chain which is not its own::

    -o BRIDGE -j ACCEPT               what comes in: netbox's own rules decide
    -i BRIDGE -o docker0 -j RETURN    towards the bridges of dockerd and libvirt: they decide
    -i BRIDGE -j ACCEPT               whatever else goes out: netbox's own rules decide

Each has its network as comment and a row in the network's journal, written before it. They stand behind the rules of others in the chain,
so what an administrator drops there is dropped. Where both dockerd and netbox are in the legacy tables nothing is put in: an accept of ours
is final there, in our own chains, and in DOCKER-USER it would be one before our own chains were asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from netbox.errors import FirewallError
from netbox.kernel import iptables_command, nftables
from netbox.kernel.iptables import loaded_tables
from netbox.kernel.iptables_command import LEGACY, NFT, Side, words
from netbox.kernel.rtnetlink import RouteSocket
from netbox.network import firewall_choice
from netbox.network.firewall import Difference, is_owner
from netbox.state.journal import NETWORK, JournalRow, of_kind

if TYPE_CHECKING:
    from netbox.state.store import Store

KIND = "docker_user"
"""Of the journal's rows."""
CHAIN = "DOCKER-USER"
FOREIGN_BRIDGES = ("docker0", "br-+", "virbr+")
"""The bridges of dockerd and libvirt, whose sandboxes and guests are not to be reached past their own rules."""
_DOCKERS_NAME = re.compile(r"br-[0-9a-f]{12}")
_LAST = ["-j", "RETURN"]  # dockerd ends the chain with it
_ATTEMPTS = 5


def accepts(owner: str, bridge: str, lan_bridges: Sequence[str] = ()) -> list[str]:
    """The rules for a bridge of ours, as ``iptables -S`` prints them. ``lan_bridges`` are bridges of the host whose names look like
    those of dockerd. Pure.
    """
    comment = f'-m comment --comment "{owner}"'
    return [
        f"-o {bridge} {comment} -j ACCEPT",
        *(f"-i {bridge} -o {other} {comment} -j ACCEPT" for other in lan_bridges),
        *(f"-i {bridge} -o {other} {comment} -j RETURN" for other in FOREIGN_BRIDGES),
        f"-i {bridge} {comment} -j ACCEPT",
    ]


def sides(backend: str) -> dict[Side, int | None]:
    """Where dockerd has its chain and netbox, with this backend, needs a place in it; and what uses the chain there: its rules and the
    jumps to it, ``None`` where only reading them would tell.
    """
    found: dict[Side, int | None] = {}
    for family in ("ip", "ip6"):
        use = nftables.chain_use(family, "filter", CHAIN)
        if use is not None:
            found[Side(family, NFT)] = use
        if backend != firewall_choice.IPTABLES and "filter" in loaded_tables(family == "ip6"):
            side = Side(family, LEGACY)
            if iptables_command.rules(side, CHAIN) is not None:
                found[side] = None
    return found


def follow(store: Store) -> None:
    """Lets the bridges of all networks that stand pass, where they do not yet. Call it under the networks' lock; it takes a fraction of a
    millisecond where there is nothing to do.

    Raises:
        FirewallError, Unsupported, NoPermission: the chain cannot be changed.
    """
    places = sides(firewall_choice.choose().name)
    known = _rows(store)
    if not places and not known:
        return
    bridges = _bridges(store)
    for row in known:
        if _side(row.args) not in places:
            withdraw(row.args)
            store.journal(row.owner, NETWORK).forget([row])
    for side, use in places.items():
        having = {row.owner for row in known if _side(row.args) == side}
        # Somebody may have emptied the chain: fewer rules than ours show it.
        if having >= set(bridges) and use is not None and use > len(bridges) * len(accepts("", "")):
            continue
        for owner in bridges:
            if owner not in having:
                store.journal(owner, NETWORK).record(KIND, owner=owner, family=side.family, tables=side.kind)
        _put(side, bridges)


def differences(store: Store) -> list[Difference]:
    """What is missing in the chain, and what has a network of ours as comment but is none of its rules. Changes nothing.

    Raises what ``follow`` raises.
    """
    found = []
    bridges = _bridges(store)
    for side in sides(firewall_choice.choose().name) if bridges else ():
        stands = [rule for rule in iptables_command.rules(side, CHAIN) or [] if is_owner(_comment(rule))]
        for rule in _expected(bridges):
            match = next((item for item in stands if words(item) == words(rule)), None)
            if match is None:
                found.append(Difference("missing", _comment(rule), f"{side.command} -I {CHAIN} {rule}"))
            else:
                stands.remove(match)
        found += [Difference("foreign", _comment(rule), f"a rule of {side.command} {CHAIN}: {rule}") for rule in stands]
    return found


def repair(store: Store) -> None:
    """Makes the rules as they should be. Call it under the networks' lock.

    Raises what ``follow`` raises.
    """
    follow(store)
    bridges = _bridges(store)
    for side in sides(firewall_choice.choose().name) if bridges else ():
        _put(side, bridges)


def withdraw(args: dict[str, Any]) -> None:
    """Undoes a row: takes the rules of its network out of the chain. A chain that is gone is fine.

    Raises what ``follow`` raises.
    """
    side, owner = _side(args), args["owner"]
    if side.kind == NFT and nftables.chain_use(side.family, "filter", CHAIN) is None:
        return
    _edit(side, lambda stands: [f"-D {CHAIN} {rule}" for rule in stands if _comment(rule) == owner])


def commands(backend: str, owner: str, bridge: str) -> list[str]:
    """The commands that a person would type for a bridge. No effects."""
    return [f"{side.command} -I {CHAIN} {rule}" for side in sides(backend) for rule in reversed(accepts(owner, bridge, _lan_bridges()))]


def _put(side: Side, bridges: dict[str, str]) -> None:
    """Puts our rules in front of dockerd's last one, in place of those of ours that stand."""
    expected = list(_expected(bridges))

    def lines(stands: list[str]) -> list[str]:
        ours = [rule for rule in stands if is_owner(_comment(rule))]
        if list(map(words, ours)) == list(map(words, expected)):
            return []
        rest = [rule for rule in stands if rule not in ours]
        before_last = len(rest) if rest and words(rest[-1]) == _LAST else len(rest) + 1
        added = [f"-I {CHAIN} {before_last + offset} {rule}" for offset, rule in enumerate(expected)]
        return [f"-D {CHAIN} {rule}" for rule in ours] + added

    _edit(side, lines)


def _edit(side: Side, lines: Callable[[list[str]], list[str]]) -> None:
    """Carries out what ``lines`` makes of the chain's rules; anew where its owner, or another program, has changed the chain meanwhile: a
    rule to be deleted, or a place in the chain, may be no more.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        stands = iptables_command.rules(side, CHAIN)
        if stands is None:
            return  # dockerd has just gone, with everything
        wanted = lines(stands)
        if not wanted:
            return
        try:
            iptables_command.change(side, wanted)
            return
        except FirewallError:
            if attempt == _ATTEMPTS and iptables_command.rules(side, CHAIN) is not None:
                raise


def _expected(bridges: dict[str, str]) -> Iterable[str]:
    lan_bridges = _lan_bridges()
    for owner, bridge in bridges.items():
        yield from accepts(owner, bridge, lan_bridges)


def _lan_bridges() -> list[str]:
    """Bridges of the host that lead somewhere (``br-lan``), and that ``br-+`` would take for dockerd's."""
    with RouteSocket() as netlink:
        names = sorted(link.name for link in netlink.links() if link.kind == "bridge")
    return [name for name in names if name.startswith("br-") and not _DOCKERS_NAME.fullmatch(name)]


def _bridges(store: Store) -> dict[str, str]:
    """The owners and bridges of the networks that stand."""
    found = {}
    for owner in (row.owner for row in of_kind(store.database, "network_rules")):
        network = store.network(owner.removeprefix("network:"))
        if network is not None:
            found[owner] = network.bridge
    return found


def _rows(store: Store) -> list[JournalRow]:
    return of_kind(store.database, KIND)


def _side(args: dict[str, Any]) -> Side:
    return Side(args["family"], args["tables"])


def _comment(rule: str) -> str:
    parts = words(rule)
    return parts[parts.index("--comment") + 1] if "--comment" in parts[:-1] else ""
