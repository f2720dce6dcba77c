"""Making a sandbox: every check of the request against this host, then the record. Nothing is touched before all checks have passed."""

from __future__ import annotations

import dataclasses
import os
import stat
import time
from typing import TYPE_CHECKING

from netbox import names
from netbox.engine import events
from netbox.engine.locks import SandboxLock, acquire_or_conflict
from netbox.engine.transaction import Transaction
from netbox.errors import NotFound, Unsupported, UsageError
from netbox.image.model import Image
from netbox.kernel import capabilities, seccomp, sysctl
from netbox.kernel.cgroups import ALLOW_ALL, DEFAULT_DEVICES, DeviceRule, Limits
from netbox.spec import Device, SandboxSpec
from netbox.state.journal import SANDBOX
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context

BUILT_IN_MODES = ("bridge", "host", "none")
TINI = "/usr/bin/tini-static"
_LOCK_PATIENCE = 5.0  # seconds


def create(context: Context, spec: SandboxSpec, state: str = "created") -> tuple[SandboxRow, SandboxLock]:
    """Checks the request, remembers the sandbox and makes its directories. The caller gets the sandbox locked.

    Raises:
        NetboxError: what is wrong with the request, or what the host refused; nothing is left then.
    """
    context.require_root("create a sandbox")
    check(context, spec)
    sandbox_id = names.new_id()
    # A collection may take the directory for one that was left behind, and lets go of it at once: it is made again then.
    lock = acquire_or_conflict(context.settings.sandbox_run(sandbox_id), names.short_id(sandbox_id), _LOCK_PATIENCE)
    try:
        with context.images.reading():
            row = sandbox_row(context, spec, sandbox_id, state)
            row = _remember(context, row, spec)
        events.record(context, row, "create", image=spec.image or spec.rootfs)
    except BaseException:
        # The lock file is inside the run directory: what the undo left of it is removed by the next collection once the lock is free.
        lock.release()
        _remove_empty_run_directory(context.settings.sandbox_run(sandbox_id))
        raise
    return row, lock


def check(context: Context, spec: SandboxSpec) -> None:
    """Everything that needs this host to be checked, without any effect.

    Raises:
        NetboxError: the first thing that is wrong.
    """
    if spec.name is not None:
        context.store.check_name(spec.name)
    _check_network(context, spec)
    mask = capabilities.resolve(spec.security.cap_add, spec.security.cap_drop, spec.security.privileged)
    capabilities.check_grantable(spec.security.cap_add)
    for name, value in spec.sysctls:
        sysctl.check(name, host_network=spec.network.mode == "host")
        sysctl.check_value(name, value)
    context.cgroups.check(limits(spec))
    _check_paths(spec)
    _check_seccomp(spec.security.seccomp, mask)
    if spec.init and not os.access(TINI, os.X_OK):
        raise Unsupported(f"cannot use --init: {TINI} is not there", "apt install tini")


def limits(spec: SandboxSpec) -> Limits:
    """The limits of a request as the cgroup layer takes them."""

    asked = spec.resources
    return Limits(
        memory=asked.memory,
        memory_swap=asked.memory_swap,
        cpus=asked.cpus,
        cpu_shares=asked.cpu_shares,
        cpuset_cpus=asked.cpuset_cpus,
        pids_limit=asked.pids_limit,
        blkio_weight=asked.blkio_weight,
    )


def device_rules(spec: SandboxSpec) -> list[DeviceRule]:
    """The devices that the sandbox may use: every one with ``--privileged``, else Docker's default list and those asked for."""
    if spec.security.privileged:
        return list(ALLOW_ALL)
    asked = [DeviceRule(*rule) for rule in spec.device_rules]
    return [*DEFAULT_DEVICES, *asked, *(_rule_of(device) for device in spec.devices)]


def _rule_of(device: Device) -> DeviceRule:
    status = os.stat(device.source)
    return DeviceRule("b" if stat.S_ISBLK(status.st_mode) else "c", os.major(status.st_rdev), os.minor(status.st_rdev), device.access)


def _check_network(context: Context, spec: SandboxSpec) -> None:
    mode = spec.network.mode
    if mode in BUILT_IN_MODES:
        for attachment in spec.network.attachments:
            if attachment.network != names.DEFAULT_NETWORK and context.store.network(attachment.network) is None:
                raise context.network.not_found(attachment.network)
        return
    if mode.startswith("ns:"):
        from netbox.network.modes import namespace

        os.close(namespace.open_namespace(namespace.path_of(mode)))
        return
    if mode.startswith("container:"):
        context.store.find_sandbox(mode.partition(":")[2])
        return
    raise NotFound(f"no such network: {mode}", f"there are {', '.join(BUILT_IN_MODES)}, container:NAME and ns:PATH")


def _check_paths(spec: SandboxSpec) -> None:
    for bind in spec.binds:
        if os.path.islink(bind.source) and not os.path.exists(bind.source):
            raise UsageError(f"cannot bind {bind.source}: it is a link to nothing", "make what it points to first")
        if not bind.create_source and not os.path.exists(bind.source):
            raise UsageError(f"cannot bind {bind.source}: it does not exist", "make it first, or use -v, which makes a directory")
    for device in spec.devices:
        if not _is_device(device.source):
            raise UsageError(f"cannot give device {device.source}: there is no such device", "'ls /dev' lists what this machine has")
    if spec.rootfs is not None and not os.path.isdir(spec.rootfs):
        raise UsageError(f"cannot use {spec.rootfs} as root file system: it is not a directory", "give a directory with a root file system")


def _check_seccomp(profile: str, mask: int) -> None:
    if profile in ("default", "unconfined"):
        return
    if not os.path.isfile(profile):
        raise UsageError(f"no seccomp profile at {profile}", "give the path of a profile in the OCI JSON format, or 'unconfined'")
    seccomp.check(profile, mask)


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def sandbox_row(context: Context, spec: SandboxSpec, sandbox_id: str, state: str, dry_run: bool = False) -> SandboxRow:
    """The record of a new sandbox; makes the image busybox when it is asked for and not there, unless ``dry_run``."""
    image = _image(context, spec, dry_run)
    if not spec.command and not image["command"]:
        raise UsageError(f"no command given, and {spec.image or spec.rootfs} has none of its own", "name a command behind the image")
    return SandboxRow(
        id=sandbox_id,
        name=spec.name or names.generated_name(sandbox_id),
        spec=spec.to_json(),
        image=image,
        state=state,
        created_at=time.time(),
    )


def _image(context: Context, spec: SandboxSpec, dry_run: bool) -> dict[str, object]:
    if spec.rootfs is not None:
        return Image(name="", id="", created_at=0.0, size=0, source=spec.rootfs, layers=())._asdict()
    image = context.images.preview(spec.image) if dry_run else context.images.get(spec.image)
    if spec.storage_size is not None and not image.host:
        raise UsageError(
            f"--storage-opt size applies to the image host, not to {image.name}", "leave it out: the writable layer is on disk"
        )
    return image._asdict()


def _remember(context: Context, row: SandboxRow, spec: SandboxSpec) -> SandboxRow:
    """Returns the record with its name: a generated one that a sandbox has already is drawn again."""
    settings = context.settings
    journal = context.store.journal(names.sandbox_owner(row.id), SANDBOX)
    with Transaction(journal, context) as transaction:
        # One sqlite transaction: a crash leaves either nothing or a sandbox with its journal.
        with context.store.database.transaction():
            transaction.record("sandbox", sandbox_id=row.id)
            transaction.record("directory", path=settings.sandbox_run(row.id))
            transaction.record("directory", path=settings.sandbox_root(row.id))
            while spec.name is None and context.store.has_name(row.name):
                row = dataclasses.replace(row, name=names.generated_name(names.new_id()))
            context.store.insert_sandbox(row)
            _check_network(context, spec)  # again: from now on a network cannot be removed from under it
            if any(item.ip or item.ip6 for item in spec.network.attachments):
                context.network.reserve(row.id, spec.network)
        os.makedirs(settings.sandbox_root(row.id), mode=0o700)  # no user of the host can run a set-uid file of its writable layer
    return row


def _remove_empty_run_directory(path: str) -> None:
    try:
        os.unlink(f"{path}/lock")
        os.rmdir(path)
    except OSError:
        pass  # not empty or gone: the next collection looks at it
