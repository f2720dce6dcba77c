"""Names: no server answers, or the server knows no such name."""

from __future__ import annotations

from netbox.packet import resolving
from netbox.packet.diagnosis.values import NOT_ASKED, Facts, Finding


def alias_elsewhere(facts: Facts) -> Finding | None:
    """A sandbox is called so, on a network that the source is not on."""
    found = facts.resolution
    if found is None or found.outcome == resolving.FOUND:
        return None
    for box in facts.boxes:
        item = next((item for item in box.interfaces if found.name in item.aliases), None)
        if item is None or not box.runs:
            continue
        source = facts.source_box
        can_join = source is not None and source.runs and source.mode == "bridge"
        return Finding(
            "name-unknown",
            f"{found.name} is an alias of {box.name} on network {item.network}, and {facts.source_name} is not on it",
            "looking the name up",
            evidence=(("alias", f"{found.name}: {box.name}, on network {item.network}"), ("answer", found.said)),
            command=f"netbox network connect {item.network} {source.name}" if source is not None and can_join else "",
            mend="" if can_join else f"ask for {box.name}",
            expect=(NOT_ASKED,),
        )
    return None


def name_server_down(facts: Facts) -> Finding | None:
    """No server in the source's resolv.conf answers."""
    found = facts.resolution
    if found is None or found.outcome not in (resolving.SILENT, resolving.NO_SERVER):
        return None
    if found.outcome == resolving.NO_SERVER:
        because = f"{facts.source_name} has no name server to ask for {found.name}"
        mend = f"give {facts.source_name} one with --dns" if facts.source_box else "write a nameserver line into /etc/resolv.conf"
    else:
        servers = "the name server " + found.asked[0] if len(found.asked) == 1 else f"the name servers {', '.join(found.asked)}"
        verb = "does" if len(found.asked) == 1 else "do"
        because = f"{servers} {verb} not answer, so {found.name} has no address for {facts.source_name}"
        mend = "start the name server, or give the sandbox another one with --dns"
    evidence = [("asked", ", ".join(found.asked) or "nobody"), ("answer", found.said)]
    return Finding("dns-down", because, "looking the name up", evidence=tuple(evidence), mend=mend, expect=(NOT_ASKED,))


def name_unknown(facts: Facts) -> Finding | None:
    """The server says that there is no such name, and no sandbox is called so."""
    found = facts.resolution
    if found is None or found.outcome not in (resolving.UNKNOWN, resolving.REFUSED):
        return None
    if found.outcome == resolving.REFUSED:
        because = f"the name server of {facts.source_name} refuses to look {found.name} up"
    else:
        because = f"the name {found.name} does not resolve: no sandbox is called so, and {found.said}"
    evidence = [("asked", ", ".join(found.asked)), ("answer", found.said)]
    names = sorted(box.name for box in facts.boxes if box.runs and box is not facts.source_box)
    if names:
        evidence.append(("sandboxes", ", ".join(names[:10]) + (", …" if len(names) > 10 else "")))
    close = _closest(found.name, names)
    mend = f"did you mean {close}?" if close else "write the name as the name server has it"
    return Finding("name-unknown", because, "looking the name up", evidence=tuple(evidence), mend=mend, expect=(NOT_ASKED,))


def _closest(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, names, n=1)), "")
