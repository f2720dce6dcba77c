"""The runtime's configuration printed as the commands that a person would type. Pure, but for a look at which masked paths there are."""

from __future__ import annotations

import os
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def describe(config: Mapping[str, Any]) -> list[str]:
    """The configuration as the commands that a person would type."""
    root = f"{config['run_dir']}/rootfs"
    lines = [*_describe_unshare(config), *_describe_root(config, root)]
    for operation in config["mounts"]:
        lines += _describe_operation(operation, root)
    if config["rootfs"]["read_only"]:
        lines.append(f"mount -o remount,bind,ro {_quote(root)}")
    lines.append(f"cd {_quote(root)} && pivot_root . . && umount -l .")
    lines += [f"sysctl -w {_quote(f'{name}={value}')}" for name, value in config["sysctls"]]
    lines += [f"ulimit {name} {soft}:{hard}" for name, soft, hard in config["rlimits"]]
    argv = [config["init_binary"], "--", *config["argv"]] if config["init_binary"] else config["argv"]
    lines.append(f"{_describe_privileges(config)} {shlex.join(argv)}")
    return lines


def _quote(path: str) -> str:
    return shlex.quote(path)


def _describe_unshare(config: Mapping[str, Any]) -> list[str]:
    names = {"mnt": "mount"}
    options = [f"--{names.get(kind, kind)}" for kind in config["namespaces"]]
    if config["userns"]:
        mapped = f"{config['userns']['base']},0,{config['userns']['size']}"
        options += [f"--map-users={mapped}", f"--map-groups={mapped}"]
    lines = [f"unshare --fork {' '.join(options)}"]
    lines += [f"echo 0 > {_quote(path)}" for path in config["cgroup"]["join"]]
    if config["hostname"]:
        lines.append(f"hostname {_quote(config['hostname'])}")
    return lines


def _describe_root(config: Mapping[str, Any], root: str) -> list[str]:
    rootfs = config["rootfs"]
    lines = [f"mkdir -p {_quote(root)}"]
    if rootfs["directory"]:
        return [*lines, f"mount --rbind {_quote(rootfs['directory'])} {_quote(root)}"]
    storage = f"{config['run_dir']}/storage" if rootfs["upper"] is None else posixpath.dirname(rootfs["upper"])
    if rootfs["tmpfs_size"] is not None:
        lines += [f"mkdir -p {_quote(storage)}", f"mount -t tmpfs -o mode=0755,size={rootfs['tmpfs_size']} tmpfs {_quote(storage)}"]
    options = ",volatile" if rootfs["volatile"] else ""
    for index, path in enumerate(["", *rootfs["stacked"]]):
        suffix = f"-{index}" if index else ""
        lower = path or ":".join(rootfs["lower"])
        lines.append(f"mkdir -p {_quote(f'{storage}/upper{suffix}')} {_quote(f'{storage}/work{suffix}')}")
        data = f"lowerdir={lower},upperdir={storage}/upper{suffix},workdir={storage}/work{suffix}{options}"
        lines.append(f"mount -t overlay -o {_quote(data)} overlay {_quote(root + path)}")
    return lines


def _describe_operation(operation: Sequence[Any], root: str) -> list[str]:
    kind, *arguments = operation
    if kind == "mount":
        source, target, fstype, flags, data = arguments
        options = ",".join([*flags, *([data] if data else [])])
        return [f"mount -t {fstype}{f' -o {_quote(options)}' if options else ''} {_quote(source)} {_quote(root + target)}"]
    if kind == "bind":
        source, target, read_only, recursive, propagation = arguments
        option = "--rbind" if recursive else "--bind"
        return [f"mount {option}{' -o ro' if read_only else ''} --make-{propagation} {_quote(source)} {_quote(root + target)}"]
    if kind == "device":
        return [f"cp -a {_quote(arguments[0])} {_quote(root + arguments[1])}"]
    if kind == "host_devices":
        return [f"cp -a /dev/. {_quote(root + '/dev')}"]
    if kind == "symlink":
        return [f"ln -s {_quote(arguments[0])} {_quote(root + arguments[1])}"]
    if kind == "mask":
        return _describe_mask(arguments[0], _quote(root + arguments[0]))
    if kind == "readonly":
        return [f"mount --rbind -o ro {_quote(root + arguments[0])} {_quote(root + arguments[0])}"]
    if kind == "seal":
        return [f"mount -o remount,bind,ro {_quote(root + arguments[0])}"]
    if kind == "sysctl":
        return [f"sysctl -w {_quote(f'{arguments[0]}={arguments[1]}')}"]
    return []  # "sysctls": where /proc/sys can still be written


def _describe_mask(path: str, target: str) -> list[str]:
    """The host tells directories from files: its /proc and /sys have the same ones."""
    if os.path.isdir(path):
        return [f"mount -t tmpfs -o ro,nosuid,nodev,noexec,size=0,mode=0555 tmpfs {target}"]
    return [f"mount --bind /dev/null {target}"] if os.path.exists(path) else []


def _describe_privileges(config: Mapping[str, Any]) -> str:
    words = ["setpriv", f"--bounding-set=0x{config['capabilities']:x}"]
    user, _, group = config["user"].partition(":")
    if user:
        words.append(f"--reuid={user}")
    if group:
        words.append(f"--regid={group}")
    if config["no_new_privileges"]:
        words.append("--no-new-privs")
    return " ".join(words)
