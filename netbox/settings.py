"""Where netbox keeps what: one frozen value, read once from the environment."""

from __future__ import annotations

import os
from typing import NamedTuple

from netbox.errors import UsageError


class Settings(NamedTuple):
    """Directories and the cgroup below which every sandbox lives.

    ``root`` (``NETBOX_ROOT``) survives a reboot, ``run`` (``NETBOX_RUN``) does not. ``cgroup_parent`` (``NETBOX_CGROUP``) is a path
    relative to each cgroup hierarchy. ``ipv6`` (``NETBOX_IPV6``, 1 or 0) gives the network ``bridge`` IPv6 when it comes up next.
    """

    root: str = "/var/lib/netbox"
    run: str = "/run/netbox"
    cgroup_parent: str = "netbox"
    ipv6: bool = False

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings that ``NETBOX_ROOT``, ``NETBOX_RUN``, ``NETBOX_CGROUP`` and ``NETBOX_IPV6`` ask for.

        Raises:
            UsageError: ``NETBOX_IPV6`` is neither 1 nor 0.
        """
        default = cls()
        return cls(
            root=os.path.abspath(os.environ.get("NETBOX_ROOT") or default.root),
            run=os.path.abspath(os.environ.get("NETBOX_RUN") or default.run),
            cgroup_parent=(os.environ.get("NETBOX_CGROUP") or default.cgroup_parent).strip("/"),
            ipv6=_switch("NETBOX_IPV6", default.ipv6),
        )

    @property
    def database(self) -> str:
        """The sqlite file."""
        return f"{self.root}/state.db"

    @property
    def images(self) -> str:
        """The directory with one subdirectory per image."""
        return f"{self.root}/images"

    def sandbox_root(self, sandbox_id: str) -> str:
        """What a sandbox keeps until it is removed: writable layer, logs, hosts file."""
        return f"{self.root}/sandboxes/{sandbox_id}"

    def sandbox_run(self, sandbox_id: str) -> str:
        """What a sandbox keeps while it runs: lock, control socket, status."""
        return f"{self.run}/sandboxes/{sandbox_id[:24]}"

    def cgroup(self, sandbox_id: str) -> str:
        """The sandbox's cgroup, relative to each hierarchy's root."""
        return f"{self.cgroup_parent}/{sandbox_id}"


def _switch(variable: str, default: bool) -> bool:
    value = os.environ.get(variable) or str(int(default))
    if value not in ("0", "1"):
        raise UsageError(f"{variable}={value}: neither 1 nor 0", "write 1 for yes, 0 for no")
    return value == "1"
