"""``run --dry-run``: the plan as the commands that a person would type, in the order of the start."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from netbox import names
from netbox.engine import creation, runtime_plan, starting
from netbox.spec import SandboxSpec

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.network.plan import JoinTarget, NetworkPlan


def sections(context: Context, spec: SandboxSpec) -> list[tuple[str, list[str]]]:
    """(title, commands) of each part. Every check of a real start is made; nothing is changed.

    Raises:
        NetboxError: what a real start would refuse.
    """
    creation.check(context, spec)
    row = creation.sandbox_row(context, spec, names.new_id(), "created", dry_run=True)
    target = starting.join_target(context, spec)
    network = context.network.preview(row.id, spec.hostname, spec.network, target)
    base = starting.ID_RANGE_BASES[0] if spec.security.userns == "auto" else None
    runtime = starting.plan_runtime(context, row, spec, network, starting.Options(), userns_base=base, dry_run=True)
    limits = creation.limits(spec)
    return [
        ("cgroup", context.cgroups.describe(context.settings.cgroup(row.id), limits, creation.device_rules(spec))),
        ("network", _network(context, spec, network, target, row.name)),
        ("namespaces and root file system", runtime_plan.describe(runtime)),
        ("command", [shlex.join(runtime["argv"])]),
    ]


def _network(context: Context, spec: SandboxSpec, plan: NetworkPlan, target: JoinTarget | None, name: str) -> list[str]:
    if target is None:
        rates = (spec.network.rate_in or 0, spec.network.rate_out or 0)
        return context.network.describe(plan, name) + (_rates(plan, rates) if any(rates) else [])
    return [f"nsenter --net=/proc/{context.store.find_sandbox(target.sandbox_id).pid}/ns/net  # the network of {target.name}"]


def _rates(plan: NetworkPlan, rates: tuple[int, int]) -> list[str]:
    from netbox.network import shaping

    return shaping.describe(plan, *rates)
