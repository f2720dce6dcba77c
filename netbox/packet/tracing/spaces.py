"""The network namespaces of this machine with the names that netbox has for them, and what their devices are."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import host_error
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import RouteSocket
from netbox.names import short_id
from netbox.packet.tracing.assemble import Surroundings

if TYPE_CHECKING:
    from netbox.engine import Engine
    from netbox.engine.sandbox import Sandbox

HOST = "host"
_SAVE_TIMEOUT = 5.0  # seconds


class Space(NamedTuple):
    """An open network namespace. ``label`` is a sandbox's name, ``host`` or ``lan``; ``inode`` is its number, as the kernel reports it."""

    label: str
    fd: int
    inode: int


class Spaces:
    """Namespaces by inode. The host's is the one that this process is in; all are closed at the end of the block."""

    def __init__(self, engine: Engine) -> None:
        self._by_inode: dict[int, Space] = {}
        self.host = self.add(HOST, _open("/proc/thread-self/ns/net"))
        self.sandboxes: list[Sandbox] = []
        self.of_sandbox: dict[str, Space] = {}
        self._names: dict[str, str] = {}
        self.refresh(engine)

    def refresh(self, engine: Engine) -> None:
        """Looks which sandboxes run now, and closes what has ended: an open descriptor would keep a namespace alive."""
        before = set(self.of_sandbox.values())
        self.sandboxes = engine.list()
        self._names = {sandbox.short_id: sandbox.name for sandbox in self.sandboxes}
        running = {sandbox.id for sandbox in self.sandboxes}
        self.of_sandbox = {identity: space for identity, space in self.of_sandbox.items() if identity in running}
        for sandbox in self.sandboxes:
            if sandbox.pid is None or sandbox.id in self.of_sandbox:
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends just now
                self.of_sandbox[sandbox.id] = self.add(sandbox.name, _open(f"/proc/{sandbox.pid}/ns/net"))
        for space in before - {self.host, *self.of_sandbox.values()}:
            self.forget(space.inode)

    def add(self, label: str, fd: int) -> Space:
        """Takes over the descriptor of a namespace; the first name of a shared one counts."""
        inode = os.fstat(fd).st_ino
        known = self._by_inode.get(inode)
        if known is not None:
            os.close(fd)
            return known
        space = Space(label, fd, inode)
        self._by_inode[inode] = space
        return space

    def forget(self, inode: int) -> None:
        """Closes a namespace that has ended."""
        space = self._by_inode.pop(inode, None)
        if space is not None:
            self.of_sandbox = {identity: other for identity, other in self.of_sandbox.items() if other is not space}
            os.close(space.fd)

    def all(self) -> list[Space]:
        """Every one."""
        return list(self._by_inode.values())

    def label(self, inode: int) -> str:
        """The name of a namespace."""
        space = self._by_inode.get(inode)
        return space.label if space else (f"netns:{inode}" if inode else "?")

    def sandbox_name(self, reference: str) -> str:
        """A sandbox's name by its short id; the id where nobody runs with it."""
        return self._names.get(short_id(reference), reference)

    def surroundings(self, order: Iterable[Space]) -> Surroundings:
        """What the assembly of hops needs; ``order`` is the way from source to destination."""
        devices: dict[tuple[int, str], str] = {}
        host = self.host.inode
        with inside_netns(self.host.fd), RouteSocket() as netlink:
            links = netlink.links()
        bridges = {link.index: link.name for link in links if link.kind == "bridge"}
        for sandbox in self.sandboxes:
            self._describe(sandbox, devices)
        return Surroundings(
            {space.inode: space.label for space in self.all()},
            list(dict.fromkeys(space.inode for space in order)),
            devices,
            frozenset((host, name) for name in bridges.values()),
            {str(address): sandbox.name for sandbox in self.sandboxes for address in sandbox.networks.values() if address},
            {
                endpoint["host_interface"]: self.of_sandbox[sandbox.id].inode
                for sandbox in self.sandboxes
                if sandbox.id in self.of_sandbox
                for endpoint in sandbox.network_plan.get("endpoints") or []
            },
            {
                endpoint[key]: endpoint["network"]
                for sandbox in self.sandboxes
                for endpoint in sandbox.network_plan.get("endpoints") or []
                for key in ("subnet", "subnet6")
                if endpoint.get(key)
            },
            {(host, link.name): bridges[link.master] for link in links if link.master in bridges},
        )

    def _describe(self, sandbox: Sandbox, devices: dict[tuple[int, str], str]) -> None:
        for endpoint in sandbox.network_plan.get("endpoints") or []:
            host = self.host.inode
            devices[host, endpoint["host_interface"]] = f"link of {sandbox.name}"
            devices[host, endpoint["bridge"]] = f"network {endpoint['network']}"

    def close(self) -> None:
        """Closes the descriptors."""
        for space in self._by_inode.values():
            os.close(space.fd)
        self._by_inode.clear()

    def __enter__(self) -> Spaces:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def legacy_listing(fd: int, family: int) -> str:
    """What ``iptables-save`` says in a namespace, of the tables that are in use there; nothing where the command is missing.

    Raises ``HostError``.
    """
    command = "iptables-legacy-save" if family == 4 else "ip6tables-legacy-save"
    try:
        with inside_netns(fd):
            result = subprocess.run([command], capture_output=True, text=True, timeout=_SAVE_TIMEOUT, check=False)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        raise host_error("run", command, error if isinstance(error, OSError) else OSError(110, "timeout")) from error
    return result.stdout
