"""The firewall rules of the calling thread's network namespace, everybody's, as chains."""

from __future__ import annotations

from netbox.kernel import ruleset
from netbox.packet.diagnosis import rules_iptables, rules_nftables
from netbox.packet.diagnosis.rules import Chain

_IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")


def read_chains(family: str = "ip") -> tuple[Chain, ...]:
    """All chains that packets of a family (``ip``, ``ip6``) may meet.

    Raises:
        Unsupported: a tool or library is missing.
        FirewallError, NoPermission: the kernel refuses to tell.
    """
    found = rules_iptables.parse(ruleset.legacy(family))
    listing = ruleset.nf_tables()
    chains = rules_nftables.parse(listing, family) if listing else []
    if rules_nftables.has_foreign_matches(listing):
        # The iptables command of the nf_tables kind made these rules, and alone can say what they match.
        mine = [f"{family} {name}" for name in _IPTABLES_TABLES]
        chains = [chain for chain in chains if chain.table not in mine]
        chains += rules_iptables.parse(ruleset.translated(family), "nftables", f"{family} ")
    return (*found, *chains)
