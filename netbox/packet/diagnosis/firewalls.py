"""The firewall rules of the calling thread's network namespace, everybody's, as chains."""

from __future__ import annotations

from netbox.errors import NetboxError
from netbox.kernel import ruleset
from netbox.packet.diagnosis import rules_iptables, rules_nftables
from netbox.packet.diagnosis.rules import Chain, FirewallRule


def read_chains(family: str = "ip") -> tuple[tuple[Chain, ...], tuple[str, ...]]:
    """All chains that packets of a family (``ip``, ``ip6``) may meet, and in words what could not be read."""
    found: list[Chain] = []
    problems: list[str] = []
    for read in (_legacy, _nf_tables):
        try:
            found += read(family)
        except NetboxError as error:
            problems.append(str(error))
    return tuple(found), tuple(problems)


def _legacy(family: str) -> list[Chain]:
    return rules_iptables.parse(ruleset.legacy(family))


def _nf_tables(family: str) -> list[Chain]:
    listing = ruleset.nf_tables()
    chains = rules_nftables.parse(listing, family)
    if not rules_nftables.has_foreign_matches(listing):
        return chains
    try:
        # The iptables command of the nf_tables kind made these rules, and alone can say what they match.
        better = rules_iptables.parse(ruleset.translated(family), "nftables", f"{family} ")
    except NetboxError:
        return chains  # it refuses tables that somebody has changed with nft: what it would know stays unknown
    by_place = {(chain.table, chain.name): {rule.number: rule for rule in chain.rules} for chain in better}
    return [_completed(chain, by_place.get((chain.table, chain.name), {})) for chain in chains]


def _completed(chain: Chain, better: dict[int, FirewallRule]) -> Chain:
    """The chain with what the iptables command knows of rules that have something unknown. Of the others it may know less: sets, say."""
    rules = (better.get(rule.number, rule) if any(match.kind == "unknown" for match in rule.matches) else rule for rule in chain.rules)
    return chain._replace(rules=tuple(rules))
