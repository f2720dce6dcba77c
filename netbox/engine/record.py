"""What a sandbox is, as of the last look: the attributes that ``Sandbox`` has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netbox import names
from netbox.engine import observing
from netbox.spec import PortSpec, SandboxSpec
from netbox.state.rows import SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context


class Record:
    """A sandbox's record. Only ``state`` looks at the machine."""

    _context: Context
    _row: SandboxRow

    @property
    def id(self) -> str:
        """The full id, 64 hexadecimal digits."""
        return self._row.id

    @property
    def short_id(self) -> str:
        """The first twelve digits of the id."""
        return names.short_id(self._row.id)

    @property
    def name(self) -> str:
        """The name."""
        return self._row.name

    @property
    def spec(self) -> SandboxSpec:
        """What was asked for."""
        return SandboxSpec.from_json(self._row.spec)

    @property
    def image(self) -> str:
        """The image's name, or the directory used as root file system."""
        return str(self._row.spec["image"] or self._row.spec["rootfs"])

    @property
    def command(self) -> tuple[str, ...]:
        """The command with its arguments."""
        return tuple(self._row.spec["command"]) or tuple(self._row.image["command"])

    @property
    def labels(self) -> dict[str, str]:
        """The labels."""
        return dict(self._row.spec["labels"])

    @property
    def state(self) -> str:
        """created, starting, running, paused or exited, at this moment."""
        return observing.state_of(self._context, self._row)

    @property
    def exit_code(self) -> int | None:
        """The exit code of the last run; 128 + n after signal n."""
        return self._row.exit_code

    @property
    def error(self) -> str | None:
        """Why the last start failed, or what else went wrong."""
        return self._row.error

    @property
    def pid(self) -> int | None:
        """The host's pid of the sandbox's pid 1."""
        return self._row.pid

    @property
    def created_at(self) -> float:
        """Seconds since the epoch."""
        return self._row.created_at

    @property
    def started_at(self) -> float | None:
        """Seconds since the epoch."""
        return self._row.started_at

    @property
    def finished_at(self) -> float | None:
        """Seconds since the epoch."""
        return self._row.finished_at

    @property
    def network_plan(self) -> dict[str, Any]:
        """The network of the last start, as JSON values; empty before the first."""
        return dict(self._row.details.get("network") or {})

    @property
    def ip_address(self) -> str | None:
        """The IPv4 address of a running sandbox of mode bridge."""
        endpoints = self.network_plan.get("endpoints") or []
        return str(endpoints[0]["address"]) if endpoints and self._row.state == "running" else None

    @property
    def networks(self) -> dict[str, str | None]:
        """Its networks, the one with the default route first, with its address on each: ``None`` while it does not run."""
        if self._row.state == "running":
            return {str(item["network"]): str(item["address"]) for item in self.network_plan.get("endpoints") or []}
        return {item.network: None for item in self.spec.network.attachments}

    @property
    def networks6(self) -> dict[str, str]:
        """Its IPv6 addresses by network while it runs, in the order of ``networks``; only of networks that have IPv6."""
        endpoints = (self.network_plan.get("endpoints") or []) if self._row.state == "running" else []
        return {str(item["network"]): str(item["address6"]) for item in endpoints if item.get("address6")}

    @property
    def ip6_address(self) -> str | None:
        """The first of its IPv6 addresses while it runs, if it has any."""
        return next(iter(self.networks6.values()), None)

    @property
    def ports(self) -> tuple[PortSpec, ...]:
        """The published ports; those of a running sandbox with the host ports that were chosen."""
        if self._row.state == "running":
            return tuple(PortSpec(*port) for port in self.network_plan.get("ports") or [])
        return tuple(PortSpec(*port) for port in self._row.spec["network"]["ports"])
