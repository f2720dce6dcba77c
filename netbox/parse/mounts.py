"""Mounts: ``-v``, ``--mount`` and ``--tmpfs``. Pure, but for the working directory that makes a relative source absolute."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable

from netbox.errors import UsageError
from netbox.parse.quantities import parse_size
from netbox.parse.text import parse_boolean, plain_text, quote
from netbox.spec import BindMount, TmpfsMount

PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_PATH_MAX = 4095  # PATH_MAX less the NUL, <linux/limits.h>
_VOLUME_HINT = "write SOURCE:TARGET[:ro] with paths, such as ./data:/data:ro"
_MOUNT_HINT = "write type=bind,source=PATH,target=PATH[,readonly] or type=tmpfs,target=PATH[,tmpfs-size=64m]"
_TMPFS_HINT = "write TARGET[:size=64m,mode=1777,…]"
_TMPFS_FLAGS = {  # word -> the word that it replaces
    "exec": "noexec",
    "suid": "nosuid",
    "dev": "nodev",
    "noexec": "",
    "nosuid": "",
    "nodev": "",
    "noatime": "",
    "nodiratime": "",
    "relatime": "",
    "strictatime": "",
    "ro": "",
    "rw": "ro",
}
_TMPFS_NUMBERS = ("uid", "gid", "nr_inodes")


def parse_target(value: str, option: str) -> str:
    """A path inside the sandbox: absolute, without ``..``, neither ``/`` nor in /proc. Raises ``UsageError``."""
    text = plain_text(value, option)
    if not text.startswith("/"):
        raise UsageError(f"{option} {quote(text)}: a target inside the sandbox must be an absolute path", "start it with /")
    if len(os.fsencode(text)) > _PATH_MAX:
        raise UsageError(f"{option} {quote(text)}: longer than the {_PATH_MAX} bytes of a path", "choose a shorter path")
    if ".." in text.split("/"):
        raise UsageError(f"{option} {quote(text)}: '..' in a target", "write the path without '..'")
    target = posixpath.normpath("/" + text.lstrip("/"))
    if target == "/":
        raise UsageError(f"{option} {quote(text)}: the root cannot be mounted over", "use --rootfs DIR for a root of your own")
    if target == "/proc" or target.startswith("/proc/"):
        raise UsageError(f"{option} {quote(text)}: /proc belongs to the kernel and cannot be mounted over", "choose another target")
    return target


def parse_source(value: str, option: str) -> str:
    """A path of the host, made absolute from the working directory. Raises ``UsageError``."""
    text = plain_text(value, option)
    if not text:
        raise UsageError(f"{option}: the source is empty", _VOLUME_HINT)
    if len(os.fsencode(text)) > _PATH_MAX:
        raise UsageError(f"{option} {quote(text)}: longer than the {_PATH_MAX} bytes of a path", "choose a shorter path")
    return posixpath.normpath("/" + os.path.abspath(text).lstrip("/"))


def parse_volume(value: str | BindMount) -> BindMount:
    """``SOURCE:TARGET[:ro|rw,PROPAGATION]``; a source that does not exist is made, as docker does for ``-v``. Raises ``UsageError``."""
    if isinstance(value, BindMount):
        return _check_bind(value, "volume")
    text = plain_text(value, "volume")
    parts = text.split(":")
    if len(parts) == 1:
        raise UsageError(f"volume {quote(text)}: anonymous volumes are not offered", _VOLUME_HINT)
    if len(parts) > 3:
        raise UsageError(f"volume {quote(text)}: too many colons", "for paths with colons use --mount type=bind,source=…,target=…")
    source = parts[0]
    if source and not source.startswith(("/", ".")):
        raise UsageError(f"volume {quote(text)}: named volumes are not offered", f"for a directory write ./{source}:{parts[1]}"[:120])
    bind = BindMount(parse_source(source, "volume"), parse_target(parts[1], "volume"), create_source=True)
    return _volume_options(bind, parts[2], text) if len(parts) == 3 else bind


def _volume_options(bind: BindMount, options: str, text: str) -> BindMount:
    seen: set[str] = set()
    for word in options.split(","):
        if word in ("ro", "rw"):
            group, bind = "access", bind._replace(read_only=word == "ro")
        elif word in PROPAGATIONS:
            group, bind = "propagation", bind._replace(propagation=word)
        elif word in ("z", "Z", "nocopy"):
            raise UsageError(f"volume {quote(text)}: the option {quote(word)} is not offered", "write ro, rw or a propagation")
        else:
            raise UsageError(f"volume {quote(text)}: {quote(word)} is not an option", "write ro, rw or one of " + ", ".join(PROPAGATIONS))
        if group in seen:
            raise UsageError(f"volume {quote(text)}: {group} is given twice", "leave one of the two out")
        seen.add(group)
    return bind


def format_volume(bind: BindMount) -> str:
    """The mount in the form that ``parse_volume`` reads back."""
    return f"{bind.source}:{bind.target}:{'ro' if bind.read_only else 'rw'},{bind.propagation}"


def _check_bind(bind: BindMount, option: str) -> BindMount:
    if bind.propagation not in PROPAGATIONS:
        raise UsageError(
            f"{option} {quote(bind.target)}: {quote(bind.propagation)} is not a propagation", "use one of " + ", ".join(PROPAGATIONS)
        )
    return bind._replace(source=parse_source(bind.source, option), target=parse_target(bind.target, option))


def parse_mount(value: str | BindMount | TmpfsMount) -> BindMount | TmpfsMount:
    """``type=bind|tmpfs,key=value,…`` as CSV, docker's ``--mount``; a bind's source must exist at the start. Raises ``UsageError``."""
    if isinstance(value, BindMount):
        return _check_bind(value, "mount")
    if isinstance(value, TmpfsMount):
        return _check_tmpfs(value)
    fields = _mount_fields(plain_text(value, "mount"))
    kind = fields.pop("type", None)
    if kind == "bind":
        return _bind_mount(fields, value)
    if kind == "tmpfs":
        return _tmpfs_mount(fields, value)
    reason = "no type" if kind is None else f"mounts of type {quote(kind)} are not offered"
    raise UsageError(f"mount {quote(value)}: {reason}", _MOUNT_HINT)


def _mount_fields(text: str) -> dict[str, str]:
    import csv

    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise UsageError(f"mount {quote(text)}: {error}", _MOUNT_HINT) from None
    aliases = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
    fields: dict[str, str] = {}
    for item in rows[0] if rows else []:
        key, separator, value = item.partition("=")
        key = aliases.get(key.strip().lower(), key.strip().lower())
        if key in fields:
            raise UsageError(f"mount {quote(text)}: {quote(key)} is given twice", "leave one of the two out")
        if not separator and key not in ("readonly", "bind-nonrecursive"):
            raise UsageError(f"mount {quote(text)}: {quote(item)} has no value", _MOUNT_HINT)
        fields[key] = value if separator else "true"
    return fields


def _needed(fields: dict[str, str], key: str, text: str) -> str:
    if not fields.get(key):
        raise UsageError(f"mount {quote(text)}: no {key}", _MOUNT_HINT)
    return fields.pop(key)


def _refuse_rest(fields: dict[str, str], kind: str, text: str) -> None:
    if fields:
        raise UsageError(f"mount {quote(text)}: {quote(min(fields))} is not a key of type={kind}", _MOUNT_HINT)


def _bind_mount(fields: dict[str, str], text: str) -> BindMount:
    source, target = _needed(fields, "source", text), _needed(fields, "target", text)
    read_only = parse_boolean(fields.pop("readonly", "false"), "mount's readonly")
    propagation = fields.pop("bind-propagation", "rprivate")
    recursive = not parse_boolean(fields.pop("bind-nonrecursive", "false"), "mount's bind-nonrecursive")
    wanted = fields.pop("bind-recursive", None)
    if wanted not in (None, "enabled", "disabled"):
        raise UsageError(f"mount {quote(text)}: bind-recursive {quote(wanted)} is not offered", "write bind-recursive=enabled or disabled")
    if wanted is not None:
        recursive = wanted == "enabled"
    _refuse_rest(fields, "bind", text)
    return _check_bind(BindMount(source, target, read_only, propagation, recursive), "mount")


def _tmpfs_mount(fields: dict[str, str], text: str) -> TmpfsMount:
    target = parse_target(_needed(fields, "target", text), "mount")
    size = parse_size(fields.pop("tmpfs-size"), "tmpfs-size") if "tmpfs-size" in fields else None
    mode = _parse_mode(fields.pop("tmpfs-mode", "1777"), text)
    default = TmpfsMount(target)
    options = default.options + (("ro",) if parse_boolean(fields.pop("readonly", "false"), "mount's readonly") else ())
    _refuse_rest(fields, "tmpfs", text)
    return TmpfsMount(target, size, mode, options)


def format_mount(mount: BindMount) -> str:
    """A bind in the form that ``parse_mount`` reads back."""
    import csv
    import io

    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}", f"bind-propagation={mount.propagation}"]
    if mount.read_only:
        fields.append("readonly")
    if not mount.recursive:
        fields.append("bind-recursive=disabled")
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(fields)
    return out.getvalue()


def parse_tmpfs(value: str | TmpfsMount) -> TmpfsMount:
    """``TARGET[:size=64m,mode=1777,exec,…]``; nosuid, nodev and noexec unless the options say otherwise. Raises ``UsageError``.

    The result's ``options`` hold only ``ro``, ``nosuid``, ``nodev``, ``noexec``, the atime words and ``uid=``, ``gid=``, ``nr_inodes=``.
    """
    if isinstance(value, TmpfsMount):
        return _check_tmpfs(value)
    text = plain_text(value, "tmpfs")
    path, separator, words = text.partition(":")
    mount = TmpfsMount(parse_target(path, "tmpfs"))
    size, mode, options = mount.size, mount.mode, mount.options
    for word in words.split(",") if separator else ():
        key, equals, number = word.partition("=")
        if key == "size" and equals:
            size = parse_size(number, "tmpfs size")
        elif key == "mode" and equals:
            mode = _parse_mode(number, text)
        else:
            options = _tmpfs_option(options, word, text)
    return TmpfsMount(mount.target, size, mode, options)


def _tmpfs_option(options: tuple[str, ...], word: str, text: str) -> tuple[str, ...]:
    key, equals, number = word.partition("=")
    if equals and key in _TMPFS_NUMBERS and re.fullmatch(r"[0-9]{1,9}", number, re.ASCII):
        return (*(option for option in options if not option.startswith(f"{key}=")), word)
    if word not in _TMPFS_FLAGS:
        raise UsageError(f"tmpfs {quote(text)}: {quote(word)} is not an option", _TMPFS_HINT)
    cleared = _TMPFS_FLAGS[word] or word
    kept = tuple(option for option in options if option != cleared)
    return kept if _TMPFS_FLAGS[word] else (*kept, word)


def _parse_mode(text: str, whole: str) -> int:
    if not re.fullmatch(r"[0-7]{1,5}", text, re.ASCII) or int(text, 8) > 0o7777:
        raise UsageError(f"tmpfs {quote(whole)}: the mode {quote(text)} is not an octal number up to 7777", "write mode=1777")
    return int(text, 8)


def _check_tmpfs(mount: TmpfsMount) -> TmpfsMount:
    target = parse_target(mount.target, "tmpfs")
    size = None if mount.size is None else parse_size(mount.size, "tmpfs size")
    if not 0 <= mount.mode <= 0o7777:
        raise UsageError(f"tmpfs {quote(target)}: the mode {mount.mode:o} is not an octal number up to 7777", "use 0o1777")
    options: tuple[str, ...] = ()
    for word in mount.options:
        options = _tmpfs_option(options, word, target)
    return TmpfsMount(target, size, mount.mode, options)


def check_targets(mounts: Iterable[BindMount | TmpfsMount]) -> None:
    """Raises ``UsageError`` when two mounts have one target."""
    seen: set[str] = set()
    for mount in mounts:
        if mount.target in seen:
            raise UsageError(f"two mounts have the target {quote(mount.target)}", "leave one of them out")
        seen.add(mount.target)
