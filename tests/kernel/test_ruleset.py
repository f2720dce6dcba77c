"""Reading everybody's firewall rules."""

from __future__ import annotations

from netbox.kernel import nftables, ruleset
from netbox.kernel.nftables_context import NftablesContext
from tests.support.host import PrivateHost

FOREIGN = """\
add table inet theirs
add set inet theirs names { type ipv4_addr; elements = { 192.0.2.1 }; }
add chain inet theirs filter { type filter hook forward priority 0; }
add chain inet theirs other
add rule inet theirs filter ip saddr @names jump other
add rule inet theirs other drop comment "no way"
"""


def rules() -> list[tuple[str, str, str]]:
    found = [item["rule"] for item in ruleset.nf_tables() if "rule" in item]
    return sorted((rule["table"], rule["chain"], rule.get("comment", "")) for rule in found)


def test_a_table_with_an_owner_hides_nothing(private_host: PrivateHost) -> None:
    nftables.run(FOREIGN)
    foreign = [("theirs", "filter", ""), ("theirs", "other", "no way")]
    assert rules() == foreign
    owner = NftablesContext()
    try:
        owner.run("add table ip owned { flags owner; chain c { type filter hook input priority 0; counter accept; }; }")
        assert nftables.has_owned_table()
        assert rules() == [("owned", "c", ""), *foreign]
        (names,) = [item["set"] for item in ruleset.nf_tables() if "set" in item]
        assert (names["name"], names["elem"]) == ("names", ["192.0.2.1"])
    finally:
        owner.close()
    assert not nftables.has_owned_table()
    assert rules() == foreign
    nftables.run("delete table inet theirs")
