"""Impairments of a running sandbox's link: put in force, lifted, over by themselves.

The journal of the run holds them: a row of kind ``impairment`` each, with its deadline, written before the kernel is touched. A row is
``pending`` until its effect stands, and ``ending`` from before its effect is taken away; who finds such a row under the lock knows that the
process that was at it is dead, and completes or reverts its work. A deadline is kept by a small process of its own (``runtime.timer``);
when that is killed, by the next netbox command. At the end of the sandbox the rows are undone like all others.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from netbox import names
from netbox.engine import ending
from netbox.errors import NetboxError, NotFound, UsageError, WrongState, host_error
from netbox.settings import Settings
from netbox.state import journal as journals
from netbox.state.journal import RUN, Journal, JournalRow
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.network.firewall import RuleGroup
    from netbox.network.plan import NetworkPlan
    from netbox.network.shaping import Impairment

KIND = "impairment"
STANDING, PENDING, OVER = "standing", "pending", "ending"
_TIMER = "impairment-"
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def now() -> float:
    """Seconds of CLOCK_BOOTTIME, which nobody sets and which goes on in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def in_force(context: Context, row: SandboxRow) -> list[Impairment]:
    """What stands now, in the order in which it came; nothing when the sandbox does not run."""
    from netbox.network.shaping import Impairment

    if row.state != "running":
        return []
    return [Impairment.from_json(entry.args["impairment"]) for entry in _rows(_journal(context, row)) if _stands(entry)]


def request(asked: Mapping[str, str | float | None], to: str | None, direction: str, duration: str | float | None) -> list[Impairment]:
    """What was asked for in words (``rate``, ``loss``, ``corrupt``, ``delay``, ``jitter``), one for each direction. Pure but for the clock.

    Raises:
        UsageError: something cannot be read, or there is nothing to do.
    """
    from netbox.network.shaping import Impairment
    from netbox.parse import shaping as parse

    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    numbers: dict[str, Any] = {key: parse.parse_delay(given[key], key) for key in ("delay", "jitter") if key in given}
    if numbers.get("jitter", 0) > numbers.get("delay", 0):
        raise UsageError(
            "jitter is more than the delay: a packet cannot arrive before it was sent", "give a delay that is as long at least"
        )
    numbers |= {key: parse.parse_share(given[key], key) for key in ("loss", "corrupt") if key in given}
    if "rate" in given:
        numbers["rate"] = parse.parse_rate(given["rate"])
    if not numbers:
        raise UsageError("nothing to impair", "give a rate, loss, corruption or delay")
    directions = parse.parse_direction(direction)
    until = None if duration is None else now() + parse.parse_until(duration)
    if to is not None:
        parse.parse_peer_address(to)
    return [Impairment(way, to or "", until=until, **numbers) for way in directions]


def addressed(context: Context, row: SandboxRow, wanted: Sequence[Impairment]) -> list[Impairment]:
    """The same with the addresses of their peers.

    Raises:
        WrongState, UsageError, NotFound: as ``link_plan`` and ``peer_prefixes``.
    """
    link_plan(context, row)
    return [item._replace(prefixes=peer_prefixes(context, row, item.to) if item.to else ()) for item in wanted]


def documents(context: Context, row: SandboxRow) -> list[dict[str, Any]]:
    """What stands now as JSON values: the numbers of ``Impairment``, and ``seconds_left`` (``None`` without a deadline)."""
    found = []
    for item in in_force(context, row):
        values = item.to_json()
        until = values.pop("until")
        del values["in_queue"]  # how it is done, not what was asked for
        found.append({**values, "prefixes": list(item.prefixes), "seconds_left": None if until is None else max(0.0, until - now())})
    return found


def impair(context: Context, row: SandboxRow, wanted: Sequence[Impairment]) -> None:
    """Puts impairments in force; one of the same direction and peer is replaced.

    Raises:
        UsageError: the sandbox has no link of its own.
        WrongState: it does not run.
        Unsupported: this kernel lacks something; the message names its option. Nothing is changed then.
        Conflict: two peers overlap.
    """
    from netbox.network import networks, shaping

    context.require_root("impair a sandbox")
    journal = _journal(context, row)
    with networks.locked(context.settings):
        row = _fresh(context, row)
        plan = link_plan(context, row)
        before = _rows(journal)
        wanted = shaping.placed(plan, wanted)
        result = shaping.merged([shaping.Impairment.from_json(entry.args["impairment"]) for entry in before if _stands(entry)], wanted)
        netns = ending.open_namespace(context, row, "net")
        try:
            journal.record_all([_entry(row, item, PENDING) for item in wanted])
            try:
                _expect_running(context, row)
                _apply(context, row, plan, netns, result, _rows(journal))
            except BaseException:
                _revert(context, row, plan, netns, journal)
                raise
            with context.store.database.transaction():
                _expect_running(context, row)  # else the rows are its clean-up's, and nobody would see to further ones
                journal.forget(_rows(journal))
                journal.record_all([_entry(row, item, STANDING) for item in result])
        finally:
            os.close(netns)
        _keep_time(context, row, result)


def lift(context: Context, row: SandboxRow, to: str | None = None) -> int:
    """Lifts what is in force, or only what concerns one peer; returns how many.

    Raises:
        WrongState: it does not run.
        NotFound: nothing is in force for that peer.
    """
    from netbox.network import networks

    context.require_root("lift an impairment")
    link_plan(context, row)
    journal = _journal(context, row)
    with networks.locked(context.settings):
        row = _fresh(context, row)
        rows = [entry for entry in _rows(journal) if to is None or _concerns(entry, to)]
        if to is not None and not rows:
            raise NotFound(f"nothing is in force between {row.name} and {to}", f"'netbox impair {row.name}' lists what is")
        with context.store.database.transaction():
            journal.forget(rows)
            journal.record_all([(KIND, {**entry.args, "state": OVER}) for entry in rows])
        _settle(context, row, journal)
    return sum(_stands(entry) for entry in rows)


def expire(context: Context, row: SandboxRow) -> int:
    """Takes away what is over, and what a killed process left half done; returns how many. Cheap when there is nothing."""
    journal = _journal(context, row)
    if row.state != "running" or os.geteuid() != 0 or all(_stands(entry) for entry in _rows(journal)):
        return 0
    from netbox.network import networks

    with networks.locked(context.settings):
        try:
            return _settle(context, _fresh(context, row), journal)
        except (NotFound, WrongState):
            return 0  # it has just ended: its clean-up sees to the rows


def expire_all(context: Context) -> list[str]:
    """``expire`` for every sandbox; a line for each that had something."""
    done = []
    owners = {entry.owner for entry in journals.of_kind(context.store.database, KIND) if not _stands(entry)}
    if owners:
        for row in context.store.sandboxes():
            if names.sandbox_owner(row.id) in owners and expire(context, row):
                done.append(f"impairment of {row.name}")
    return done


def link_plan(context: Context, row: SandboxRow) -> NetworkPlan:
    """The network of a running sandbox with a link of its own.

    Raises:
        WrongState: it does not run.
        UsageError: it has no link of its own.
    """
    from netbox.network.plan import NetworkPlan

    if row.state != "running":
        raise WrongState(f"cannot impair {row.name}: it does not run", f"start it first (netbox start {row.name})")
    plan = NetworkPlan.from_json(row.details["network"])
    if not plan.endpoints:
        hint = "only a sandbox with --network bridge has one"
        if plan.target_id:
            target = context.store.sandbox(plan.target_id)
            hint = f"impair {target.name if target is not None else names.short_id(plan.target_id)}, whose network it shares"
        raise UsageError(f"cannot impair {row.name}: it has no link of its own (network {row.spec['network']['mode']})", hint)
    return plan


def peer_prefixes(context: Context, row: SandboxRow, peer: str) -> tuple[str, ...]:
    """The addresses behind a peer: an address, a subnet, or a sandbox on a network of this one.

    Raises:
        UsageError: it is not on any network of this one.
        NotFound: there is no such sandbox.
    """
    from netbox.parse.shaping import parse_peer_address

    prefix = parse_peer_address(peer)
    if prefix is not None:
        return (prefix,)
    own = {endpoint.network for endpoint in link_plan(context, row).endpoints}
    try:
        other = context.store.find_sandbox(peer)
    except NotFound as error:
        raise NotFound(error.message, "a peer is a sandbox, an address such as 10.0.0.5 or a subnet such as 10.0.0.0/8") from None
    if other.id == row.id:
        raise UsageError(f"to {peer}: that is the sandbox itself", "name the other end")
    endpoints = (other.details.get("network") or {}).get("endpoints") or [] if other.state == "running" else []
    common = [endpoint for endpoint in endpoints if endpoint["network"] in own]
    shared = tuple(f"{endpoint['address']}/32" for endpoint in common)
    shared += tuple(f"{endpoint['address6']}/128" for endpoint in common if endpoint.get("address6"))
    if not shared:
        why = "it shares no network with" if other.state == "running" else "it does not run, so it has no address that"
        raise UsageError(f"to {other.name}: {why} {row.name}{'' if other.state == 'running' else ' could meet'}", "give an address instead")
    return shared


def base_rates(row: SandboxRow) -> tuple[int, int]:
    """The link's own rates in and out, bytes a second; 0 without."""
    network = row.spec["network"]
    return network.get("rate_in") or 0, network.get("rate_out") or 0


def shape(context: Context, row: SandboxRow, plan: NetworkPlan, netns: int) -> None:
    """Gives new links of a sandbox its rates and what impairs it now. ``netns`` is its namespace.

    Raises:
        HostError, Unsupported: the kernel refuses.
    """
    rates, wanted = base_rates(row), in_force(context, row)
    if any(rates) or wanted:
        from netbox.network import shaping

        shaping.apply(plan, netns, *rates, wanted, wanted, _into_host(context))


def follow_links(context: Context, row: SandboxRow, plan: NetworkPlan, netns: int) -> None:
    """Makes the rules for what gets lost those of the links that a running sandbox has. The caller holds the networks' lock.

    Raises:
        FirewallError, Unsupported: the kernel refuses.
    """
    rows = _rows(_journal(context, row))
    if rows:
        from netbox.network import shaping

        # One that is over by now stands until its row goes.
        standing = [shaping.Impairment.from_json(entry.args["impairment"]) for entry in rows if entry.args["state"] == STANDING]
        shaping.lose(plan, netns, standing, _former(rows), _into_host(context))


def expire_command(sandbox_id: str) -> list[str]:
    """The command line that runs ``main`` for a sandbox."""
    code = f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); from netbox.engine.impairing import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", code, sandbox_id]


def main() -> int:
    """What the timer becomes: takes away what is over. Exit code 1 when that failed; the next netbox command tries again."""
    from netbox.engine.context import Context

    context = Context(Settings.from_environment())
    try:
        row = context.store.sandbox(sys.argv[1])
        if row is not None:
            expire(context, row)
    except NetboxError as error:
        print(f"netbox: {error}", file=sys.stderr)
        return 1
    return 0


# -- helpers -------------------------------------------------------------------------------------------------------------------------------


def _fresh(context: Context, row: SandboxRow) -> SandboxRow:
    """The record under the networks' lock: until we had that, somebody may have connected the sandbox to a network, or disconnected it."""
    return context.store.find_sandbox(row.id)


def _journal(context: Context, row: SandboxRow) -> Journal:
    return context.store.journal(names.sandbox_owner(row.id), RUN)


def _rows(journal: Journal) -> list[JournalRow]:
    return [entry for entry in journal.rows() if entry.kind == KIND]


def _stands(entry: JournalRow) -> bool:
    until = entry.args["impairment"]["until"]
    return entry.args["state"] == STANDING and (until is None or until > now())


def _concerns(entry: JournalRow, to: str) -> bool:
    """Whether an impairment is about a peer, given by the same words or the same address."""
    from netbox.parse.shaping import parse_peer_address

    impairment = entry.args["impairment"]
    return bool(impairment["to"] == to or [parse_peer_address(to)] == impairment["prefixes"])


def _entry(row: SandboxRow, item: Impairment, state: str) -> tuple[str, dict[str, Any]]:
    return KIND, {"owner": names.impairment_owner(row.id), "state": state, "impairment": item.to_json()}


def _expect_running(context: Context, row: SandboxRow) -> None:
    """After the journal row: a clean-up that did not see the row has recorded the end of the sandbox before."""
    fresh = context.store.sandbox(row.id)
    if fresh is None or fresh.state != "running":
        raise WrongState(f"cannot impair {row.name}: it has just ended")


def _apply(
    context: Context, row: SandboxRow, plan: NetworkPlan, netns: int, wanted: Sequence[Impairment], previous: Sequence[JournalRow]
) -> None:
    from netbox.network import shaping

    shaping.apply(plan, netns, *base_rates(row), wanted, _former(previous), _into_host(context))


def _former(rows: Sequence[JournalRow]) -> list[Impairment]:
    from netbox.network.shaping import Impairment

    return [Impairment.from_json(entry.args["impairment"]) for entry in rows]


def _into_host(context: Context) -> Callable[[RuleGroup], None]:
    """Puts rules where the host's other ones stand."""
    from netbox.network import firewall_switch

    return lambda group: firewall_switch.replace(context.store, group)


def _settle(context: Context, row: SandboxRow, journal: Journal) -> int:
    """Brings the kernel to what stands and forgets the rest. The caller holds the lock."""
    from netbox.network.shaping import Impairment

    rows = _rows(journal)
    gone = [entry for entry in rows if not _stands(entry)]
    if not gone:
        return 0
    standing = [Impairment.from_json(entry.args["impairment"]) for entry in rows if entry not in gone]
    netns = ending.open_namespace(context, row, "net")
    try:
        _apply(context, row, link_plan(context, row), netns, standing, rows)
    finally:
        os.close(netns)
    journal.forget(gone)
    _keep_time(context, row, standing)
    return len(gone)


def _revert(context: Context, row: SandboxRow, plan: NetworkPlan, netns: int, journal: Journal) -> None:
    from netbox.network.shaping import Impairment

    rows = _rows(journal)
    standing = [Impairment.from_json(entry.args["impairment"]) for entry in rows if _stands(entry)]
    try:
        _apply(context, row, plan, netns, standing, rows)
    except NetboxError:
        return  # the rows stay pending: the next netbox command tries again, or the end of the sandbox does
    journal.forget([entry for entry in rows if not _stands(entry)])


def _keep_time(context: Context, row: SandboxRow, standing: Sequence[Impairment]) -> None:
    """One timer for each deadline; those of others end by themselves when their file is gone."""
    directory = context.settings.sandbox_run(row.id)
    wanted = {f"{_TIMER}{item.until!r}": item.until for item in standing if item.until is not None}
    try:
        found = os.listdir(directory)
    except FileNotFoundError:
        return  # the sandbox has just been removed
    for name in found:
        if name.startswith(_TIMER) and name not in wanted:
            os.unlink(f"{directory}/{name}")
    for name, until in wanted.items():
        path = f"{directory}/{name}"
        if not os.path.exists(path):
            _start_timer(context, row, path, until)


def _start_timer(context: Context, row: SandboxRow, path: str, until: float) -> None:
    import subprocess

    from netbox.runtime import timer

    pidfd = ending.open_pidfd(context, row)
    try:
        with open(path, "w", encoding="ascii"):
            pass
        null = subprocess.DEVNULL
        command = timer.command(pidfd, path, until, expire_command(row.id))
        subprocess.run(command, stdin=null, stdout=null, stderr=null, pass_fds=[pidfd], start_new_session=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        failure = error if isinstance(error, OSError) else OSError(0, str(error))
        raise host_error("start", "the timer that lifts the impairment", failure) from error
    finally:
        os.close(pidfd)
