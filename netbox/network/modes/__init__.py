"""The network modes. A mode is a module with the functions of ``Mode``; it need not be a class."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple, Protocol, cast

from netbox.errors import NotFound, UsageError
from netbox.network.plan import Endpoint, JoinTarget, NetworkPlan
from netbox.network.resolve import HostFiles
from netbox.spec import NetworkSpec, PortSpec
from netbox.state.journal import Recorder

NAMES = ("bridge", "host", "none", "container", "ns")
WITH_TARGET = ("container", "ns")


class Request(NamedTuple):
    """What was asked for. ``hostname`` is ``None`` when nobody asked for one."""

    sandbox_id: str
    hostname: str | None
    spec: NetworkSpec
    target: JoinTarget | None = None


class Facts(NamedTuple):
    """What a mode builds its plan on: the host's name, and in mode bridge what was taken for the sandbox (interfaces, ports)."""

    host_name: str
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[PortSpec, ...] = ()
    standing: bool = False
    base_stands: bool = False


class Mode(Protocol):
    """What the manager asks of a mode."""

    uses_network: bool
    """Whether it needs an address, and can publish ports."""

    def check(self, spec: NetworkSpec, hostname: str | None) -> None:
        """Raises ``UsageError`` for what makes no sense in this mode. Pure."""

    def prepare(self, request: Request, facts: Facts) -> NetworkPlan:
        """The plan. Pure."""

    def attach(self, plan: NetworkPlan, netns_fd: int, recorder: Recorder) -> None:
        """Builds what the plan says in the sandbox's namespace. Raises ``HostError``."""

    def files(self, plan: NetworkPlan, host: HostFiles) -> dict[str, str]:
        """The contents of ``hosts``, ``hostname`` and ``resolv.conf``. Pure."""

    def describe(self, plan: NetworkPlan) -> list[str]:
        """What ``attach`` does, as the commands that a person would type. Pure."""


def mode(name: str) -> Mode:
    """The mode of this name; ``container:NAME`` is the mode ``container``, ``ns:PATH`` the mode ``ns``.

    Raises:
        NotFound: there is none.
        UsageError: ``container`` without a name, ``ns`` without a path.
    """
    key, separator, target = name.partition(":")
    if key not in NAMES or (separator and key not in WITH_TARGET):
        raise NotFound(f"no such network: {name}", "choose bridge, host, none, container:NAME or ns:PATH")
    if key == "container" and not target:
        raise UsageError("--network container needs the name of a sandbox", "write it as container:NAME")
    if key == "ns" and not target.startswith("/"):
        raise UsageError("--network ns needs the path of a network namespace", "write it as ns:/run/netns/NAME")
    return _module(key)


def planned(plan: NetworkPlan) -> Mode:
    """The mode of a plan."""
    return _module(plan.mode)


def _module(key: str) -> Mode:
    from netbox.network.modes import container, host, namespace, networked, none

    modules: dict[str, ModuleType] = {"bridge": networked, "host": host, "none": none, "container": container, "ns": namespace}
    return cast(Mode, modules[key])


def refuse(spec: NetworkSpec, mode_name: str, options: Mapping[str, object], hint: str) -> None:
    """Raises ``UsageError`` for the first option that was given and has no meaning in the mode."""
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} cannot be used with --network {mode_name}", hint)
