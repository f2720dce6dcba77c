"""The drivers of networks: how an interface of a sandbox is made. A driver is a module with the functions of ``Driver``."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol, cast

from netbox.errors import host_error
from netbox.kernel import rtnetlink
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import RouteSocket
from netbox.network.plan import Endpoint, Traffic
from netbox.state.journal import JournalRow, Recorder


class Driver(Protocol):
    """What an interface on a network needs of the network's driver."""

    def connect(self, endpoint: Endpoint, netns_fd: int, recorder: Recorder, is_default: bool) -> None:
        """Builds the interface in the sandbox's namespace, with the default route by it or without. What would outlive the namespace is
        recorded before it is made. Raises ``HostError``."""

    def is_row_of(self, endpoint: Endpoint, row: JournalRow) -> bool:
        """Whether ``connect`` has recorded this row for this interface. Pure."""

    def traffic(self, endpoint: Endpoint, pid: int) -> Traffic:
        """What went through the interface; ``pid`` is a process in the sandbox's namespace. Raises ``HostError``."""

    def describe(self, endpoint: Endpoint, netns: str, is_default: bool) -> list[str]:
        """What ``connect`` does, as the commands that a person would type; ``netns`` is a name for the namespace. Pure."""


def of(endpoint: Endpoint) -> Driver:
    """The driver of an endpoint's network."""
    from netbox.network.drivers import bridge, macvlan

    modules: dict[str, ModuleType] = {"bridge": bridge, "macvlan": macvlan}
    return cast(Driver, modules[endpoint.driver])


def move_default_route(endpoint: Endpoint, netns_fd: int) -> None:
    """Sends the default route of a sandbox's namespace by one of its interfaces.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        with inside_netns(netns_fd):
            inside = RouteSocket()
        with inside:
            link = inside.link(endpoint.interface)
            if link is not None:
                inside.request(rtnetlink.replace_default_route(link.index, endpoint.gateway))
    except OSError as error:
        raise host_error("set", f"the default route of the sandbox by {endpoint.network}", error) from error
