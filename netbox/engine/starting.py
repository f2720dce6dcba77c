"""Starting a sandbox: plan, journal, and the handshake with the monitor.

    engine                                       monitor, init
      │  lease, ports, cgroup, directories          interpreter starts
      ├── Start ───────────────────────────────────▶ clone
      │◀─────────────────────── NamespacesReady ────┤
      │  veth, address, route                       overlay, mounts, pivot_root
      ├── NetworkReady ────────────────────────────▶│
      │  published ports                            privileges
      │◀───────────────────────────────── Ready ────┤
      │  record: running                            │
      ├── Go ──────────────────────────────────────▶ exec

Everything that outlives a process is in the journal before it is made, so that an exception or a SIGKILL at any line here leaves nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from netbox import names, policies
from netbox.engine import collector, ending, events, impairing, runtime_plan, undo, watchers
from netbox.engine.creation import TINI, device_rules, limits
from netbox.engine.locks import SandboxLock, held
from netbox.engine.transaction import Transaction
from netbox.errors import NetboxError, WrongState
from netbox.kernel import capabilities, seccomp
from netbox.spec import SandboxSpec
from netbox.state.journal import RUN, SANDBOX
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.image.model import Image
    from netbox.network.plan import JoinTarget, NetworkPlan
    from netbox.runtime.client import Attachment
    from netbox.runtime.launcher import Launcher

# Above what useradd, subuid(5) and systemd-nspawn give out (https://systemd.io/UIDS-GIDS/).
ID_RANGE_BASES = range(0x70000000, 0x7FFE0000, 0x10000)
ID_RANGE_SIZE = 0x10000
_LOCK_PATIENCE = 5.0  # seconds
_LOOK_AGAIN = 0.1  # seconds
FILES = ("hosts", "hostname", "resolv.conf")


class Options(NamedTuple):
    """How a start is attached; who is attached from the start also sees to the clean-up. ``console_size`` is (rows, columns)."""

    attach: bool = False
    console_size: tuple[int, int] | None = None


class Plan(NamedTuple):
    """A start, planned: the network, the runtime configuration, the limits and where the cgroup is."""

    network: NetworkPlan
    runtime: dict[str, Any]
    cgroup: str


def start(
    context: Context, row: SandboxRow, lock: SandboxLock | None, options: Options, launcher: Launcher | None = None
) -> Attachment | None:
    """Starts a created or exited sandbox. ``lock`` is its lock if the caller holds it; it is released in any case.

    Raises:
        WrongState: it runs already.
        CommandNotFound, CommandNotExecutable: the command cannot be executed.
        NetboxError: what the host refused.
    """
    context.require_root("start a sandbox")
    with context.launcher() as launcher:
        if lock is None:
            row, lock = _lock(context, row)
        with lock:
            spec = SandboxSpec.from_json(row.spec)
            if row.state != ending.CREATING:
                context.store.update_sandbox(row.id, state="starting", error=None)
            try:
                with Transaction(context.store.journal(names.sandbox_owner(row.id), RUN), context) as transaction:
                    try:
                        return _start(context, row, spec, lock, options, launcher, transaction)
                    except BaseException:
                        launcher.abort()  # the processes end before what they use is undone
                        raise
            except BaseException as error:
                try:
                    _remember_failure(context, row, spec, error)
                except NetboxError as failure:  # on a full disk, say: the next command goes on
                    error.add_note(str(failure))
                raise


def plan_runtime(
    context: Context,
    row: SandboxRow,
    spec: SandboxSpec,
    network: NetworkPlan,
    options: Options,
    *,
    userns_base: int | None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """The runtime configuration of a start; compiles the seccomp filter into the cache unless ``dry_run``."""
    settings = context.settings
    mask = capabilities.resolve(spec.security.cap_add, spec.security.cap_drop, spec.security.privileged)
    facts = runtime_plan.host_facts(context.cgroups.version)
    return runtime_plan.runtime_config(
        spec,
        row.id,
        row.name,
        _image(row),
        settings,
        facts._replace(init_binary=TINI if os.access(TINI, os.X_OK) else None),
        capabilities=mask,
        seccomp=_seccomp_program(spec, mask, settings.root, dry_run),
        cgroup_join=context.cgroups.join(settings.cgroup(row.id)),
        network_files=_network_files(settings.sandbox_run(row.id), network),
        hostname=network.hostname,
        userns_base=userns_base,
        attach=options.attach,
        claim=options.attach,
        console_size=options.console_size,
        collect=collector.command(row.id),
    )


def join_target(context: Context, spec: SandboxSpec) -> JoinTarget | None:
    """The sandbox whose network namespace ``container:NAME`` asks for.

    Raises:
        NotFound: there is none of the name.
        WrongState: it does not run.
    """
    from netbox.network.plan import JoinTarget

    if not spec.network.mode.startswith("container:"):
        return None
    target = context.store.find_sandbox(spec.network.mode.partition(":")[2])
    if target.state != "running" or not ending.is_alive(context, target):
        raise WrongState(f"cannot share the network of {target.name}: it does not run", f"start it first (netbox start {target.name})")
    plan = target.details["network"]
    root = context.settings.sandbox_run(target.id)
    files = dict(plan.get("shared_files") or {}) or {name: f"{root}/{name}" for name in FILES}
    return JoinTarget(sandbox_id=target.id, name=target.name, hostname=plan["hostname"], files=files, plan=plan)


def _lock(context: Context, row: SandboxRow) -> tuple[SandboxRow, SandboxLock]:
    directory = context.settings.sandbox_run(row.id)
    lock = SandboxLock.acquire(directory)
    deadline = time.monotonic() + _LOCK_PATIENCE
    while lock is None:
        if ending.runs_since(context, row, None):
            raise WrongState(f"{row.name} runs already", f"stop it first (netbox stop {row.name}), or restart it")
        if time.monotonic() >= deadline:
            raise held(row.name)
        lock = SandboxLock.acquire(directory, _LOOK_AGAIN)
    try:
        ending.settle_locked(context, row.id)
        # What the clean-up of its last run has put off has the names that the new run will use.
        journal = context.store.journal(names.sandbox_owner(row.id), RUN)
        undo.replay_rows(journal, list(reversed(journal.rows())), context)
        fresh = context.store.find_sandbox(row.id)
    except BaseException:
        ending.discard_run_directory(context, row.id)
        lock.release()
        raise
    return fresh, lock


def _start(
    context: Context, row: SandboxRow, spec: SandboxSpec, lock: SandboxLock, options: Options, launcher: Launcher, transaction: Transaction
) -> Attachment | None:
    target = join_target(context, spec)
    netns = _target_netns(context, spec, target)
    try:
        return _start_in(context, row, spec, lock, options, launcher, transaction, target, netns)
    finally:
        if netns is not None:
            os.close(netns)


def _start_in(
    context: Context,
    row: SandboxRow,
    spec: SandboxSpec,
    lock: SandboxLock,
    options: Options,
    launcher: Launcher,
    transaction: Transaction,
    target: JoinTarget | None,
    netns: int | None,
) -> Attachment | None:
    base = _id_range(context, row, spec)
    prepared = context.network.prepare(row.id, spec.hostname, spec.network, target, transaction)
    reservations = list(prepared.reservations)
    try:
        plan = Plan(
            prepared.plan,
            plan_runtime(context, row, spec, prepared.plan, options, userns_base=base),
            context.settings.cgroup(row.id),
        )
        _make_cgroup(context, spec, plan.cgroup, transaction)
        _write_files(context, row.id, plan.network)
        launcher.begin(plan.runtime, lock.fd, reservations, netns)
    finally:
        for reservation in reservations:
            reservation.close()
    return _handshake(context, row, plan, launcher, transaction)


def _handshake(context: Context, row: SandboxRow, plan: Plan, launcher: Launcher, transaction: Transaction) -> Attachment | None:
    namespaces = launcher.wait_namespaces()
    with watchers.announce(context.settings, row, plan.network, namespaces) as announcement:
        context.network.attach(plan.network, namespaces.netns, transaction)
        impairing.shape(context, row, plan.network, namespaces.netns)
        announcement.attached()
    launcher.network_ready()
    context.network.publish(plan.network, transaction)
    launcher.wait_ready()
    # Saved before the command can run: whatever dies from here on finds a record that says so.
    with context.store.database.transaction():
        context.store.update_sandbox(
            row.id,
            state="running",
            pid=namespaces.pid,
            started_at=time.time(),
            exit_code=None,
            details={
                **row.details,
                "network": plan.network.to_json(),
                "runtime": plan.runtime,
                "first_run": row.state == ending.CREATING,
            },
        )
        events.record(context, row, "start")
    return launcher.go()


def _image(row: SandboxRow) -> Image | None:
    """The image as it was when the sandbox was made: an import under the same name since then does not matter."""
    from netbox.image.model import Image

    values = row.image
    if not values["layers"]:
        return None
    environment = tuple((key, value) for key, value in values["environment"])
    return Image(**{**values, "layers": tuple(values["layers"]), "command": tuple(values["command"]), "environment": environment})


def _seccomp_program(spec: SandboxSpec, mask: int, root: str, dry_run: bool) -> str | None:
    profile = spec.security.seccomp
    if profile == "unconfined":
        return None
    path = policies.seccomp_default() if profile == "default" else profile
    return str(path) if dry_run else seccomp.cached(str(path), mask, f"{root}/cache/seccomp")


def _network_files(root: str, network: NetworkPlan) -> runtime_plan.NetworkFiles:
    paths: Mapping[str, str] = network.shared_files or {name: f"{root}/{name}" for name in FILES}
    return runtime_plan.NetworkFiles(hosts=paths["hosts"], hostname=paths["hostname"], resolv_conf=paths["resolv.conf"])


def _write_files(context: Context, sandbox_id: str, network: NetworkPlan) -> None:
    root = context.settings.sandbox_run(sandbox_id)
    for name, content in context.network.files(network).items():
        with open(f"{root}/{name}", "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(f"{root}/{name}", 0o644)


def _id_range(context: Context, row: SandboxRow, spec: SandboxSpec) -> int | None:
    if spec.security.userns != "auto":
        return None
    if "userns_base" in row.details:
        return int(row.details["userns_base"])
    # Kept until the sandbox is removed: the files of its writable layer belong to these ids.
    context.store.journal(names.sandbox_owner(row.id), SANDBOX).record("id_range", sandbox_id=row.id)
    base = context.store.allocate_id_range(row.id, ID_RANGE_BASES)
    row.details["userns_base"] = base
    return base


def _make_cgroup(context: Context, spec: SandboxSpec, path: str, transaction: Transaction) -> None:
    manager = context.cgroups
    transaction.record("cgroup", path=path)
    manager.create(path)
    manager.apply(path, limits(spec))
    manager.allow_devices(path, device_rules(spec))


def _target_netns(context: Context, spec: SandboxSpec, target: JoinTarget | None) -> int | None:
    """The network namespace to join, opened before anything is touched."""
    if spec.network.mode.startswith("ns:"):
        from netbox.network.modes import namespace

        return namespace.open_namespace(namespace.path_of(spec.network.mode))
    if target is None:
        return None
    row = context.store.find_sandbox(target.sandbox_id)
    return ending.open_namespace(context, row, "net")


def _remember_failure(context: Context, row: SandboxRow, spec: SandboxSpec, error: BaseException) -> None:
    """Sets the sandbox back to what it was, with the reason. A ``run`` that failed leaves nothing, nor does one made with ``--rm``."""
    code = error.exit_code if isinstance(error, NetboxError) else None
    fresh = context.store.sandbox(row.id)
    if fresh is not None and fresh.state == "running":  # its start is among the events
        events.record(context, row, "die", exit_code=code)
    if spec.remove or row.state == ending.CREATING:
        ending.remove_locked(context, row.id)
        return
    reason = error.message if isinstance(error, NetboxError) else str(error) or error.__class__.__name__
    context.store.update_sandbox(row.id, state="created" if row.finished_at is None else "exited", error=reason, exit_code=code, pid=None)
