"""What a root file system is built from, opened before the old root is out of reach: layers, writable storage, bind sources.

Without a user namespace init opens them itself. With one, init is nobody outside and could neither reach a directory of mode 0700 nor map
owners: the monitor opens them as detached mounts, mapped by id where the files shall belong to the sandbox's root (mount_setattr(2),
MOUNT_ATTR_IDMAP), and sends the descriptors.
"""

from __future__ import annotations

import os

from netbox.kernel import syscalls
from netbox.runtime.failure import Failure, stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PATH_FLAGS = os.O_PATH | os.O_CLOEXEC
_NO_IDMAP = 22  # EINVAL: this file system cannot be mounted with mapped ids


class Trees:
    """Descriptors by role; ``binds`` and ``devices`` by the index of their operation.

    ``mapped`` says that they are detached mounts, to be attached before an overlay can use them.
    """

    def __init__(self, mapped: bool) -> None:
        self.mapped = mapped
        self.lower: list[int] = []
        self.stacked: list[int] = []
        self.directory: int | None = None
        self.storage: int | None = None
        self.binds: dict[int, int] = {}
        self.devices: dict[int, int] = {}

    def pack(self) -> tuple[dict[str, Any], list[int]]:
        """Values and descriptors for a message."""
        values = {
            "lower": len(self.lower),
            "stacked": len(self.stacked),
            "directory": self.directory is not None,
            "storage": self.storage is not None,
            "binds": list(self.binds),
        }
        single = [fd for fd in (self.directory, self.storage) if fd is not None]
        return values, [*self.lower, *self.stacked, *single, *self.binds.values()]

    @classmethod
    def unpack(cls, values: dict[str, Any], fds: list[int]) -> Trees:
        """Reverses ``pack`` on the other side of a socket."""
        trees = cls(mapped=True)
        rest = iter(fds)
        trees.lower = [next(rest) for _ in range(values["lower"])]
        trees.stacked = [next(rest) for _ in range(values["stacked"])]
        trees.directory = next(rest) if values["directory"] else None
        trees.storage = next(rest) if values["storage"] else None
        trees.binds = dict(zip(values["binds"], rest, strict=True))
        return trees


def open_trees(config: dict[str, Any], userns_fd: int | None = None) -> Trees:
    """Opens everything that the configuration names; as detached mounts with ids mapped by ``userns_fd`` when that is given.

    Raises Failure.
    """
    rootfs = config["rootfs"]
    trees = Trees(mapped=userns_fd is not None)
    trees.lower = [_open(path, userns_fd) for path in rootfs["lower"]]
    trees.stacked = [_open(path, userns_fd) for path in rootfs["stacked"]]
    if rootfs["directory"]:
        trees.directory = _clone(rootfs["directory"], recursive=userns_fd is None)
        if userns_fd is not None:
            _map_ids(trees.directory, rootfs["directory"], userns_fd)
    elif rootfs["upper"]:
        trees.storage = _open(os.path.dirname(rootfs["upper"]), userns_fd)
    for index, operation in enumerate(config["mounts"]):
        if operation[0] == "bind":
            trees.binds[index] = _clone(operation[1], operation[4])
        elif operation[0] == "device":
            _open_device(trees, index, operation[1])
    return trees


def _open_device(trees: Trees, index: int, source: str) -> None:
    """To copy its number; or, in a user namespace, where no node can be made, to mount it."""
    if trees.mapped:
        trees.binds[index] = _clone(source, recursive=False)
        return
    with stage("device", source):
        trees.devices[index] = os.open(source, _PATH_FLAGS)


def _open(path: str, userns_fd: int | None) -> int:
    if userns_fd is None:
        with stage("root file system", path):
            return os.open(path, _PATH_FLAGS)
    tree = _clone(path, recursive=False)
    _map_ids(tree, path, userns_fd)
    return tree


def _clone(path: str, recursive: bool) -> int:
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | (syscalls.AT_RECURSIVE if recursive else 0)
    with stage("bind", path):
        return syscalls.open_tree(path, flags)


def _map_ids(tree: int, path: str, userns_fd: int) -> None:
    try:
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
    except OSError as error:
        if error.errno == _NO_IDMAP:
            raise Failure("user namespace", _NO_IDMAP, path, "its file system cannot map owners (idmapped mounts)") from None
        raise Failure.of("user namespace", error, path) from None
