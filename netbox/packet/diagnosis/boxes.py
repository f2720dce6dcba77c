"""Sandboxes as the facts have them: out of the records and plans of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from netbox.packet.diagnosis.values import Box, Interface, Throttle
from netbox.parse.shaping import format_rate

if TYPE_CHECKING:
    from netbox.engine import Engine, Sandbox
    from netbox.network.shaping import Impairment


class Records:
    """The sandboxes of this machine. With ``remember`` each is read once, at the beginning."""

    def __init__(self, engine: Engine, *, remember: bool = False) -> None:
        """Raises NetboxError: the state cannot be read."""
        self._engine = engine
        self._remember = remember
        self._detailed: dict[str, Box] = {}
        self.sandboxes = {item.id: item for item in engine.list(all=True)}
        self.boxes = tuple(box(item) for item in self.sandboxes.values())

    def named(self, name: str) -> Box:
        """A sandbox by name, id or beginning of an id; it may be younger than the list. Raises NotFound."""
        known = next((item for item in self.boxes if item.name == name), None) if self._remember else None
        if known is None:
            sandbox = self._engine.get(name)
            self.sandboxes[sandbox.id] = sandbox
            known = box(sandbox)
        return self.detailed(known)

    def detailed(self, found: Box) -> Box:
        """With what throttles its links, and the interfaces of the sandbox whose network it shares."""
        if not self._remember:
            return detailed(found, self.sandboxes[found.id], self.boxes)
        if found.id not in self._detailed:
            self._detailed[found.id] = detailed(found, self.sandboxes[found.id], self.boxes)
        return self._detailed[found.id]


def box(sandbox: Sandbox) -> Box:
    """What the record says."""
    plan, state, spec = sandbox.network_plan, sandbox.state, sandbox.spec.network
    runs = state in ("running", "paused")
    return Box(
        sandbox.id,
        sandbox.name,
        state,
        spec.mode.partition(":")[0],
        tuple(_interface(item) for item in plan.get("endpoints") or []) if runs else (),
        sandbox.ports,
        wanted_networks=tuple(item.network for item in spec.attachments),
        exit_code=sandbox.exit_code,
        error=sandbox.error or "",
        joined=str(plan.get("target_id") or "") if runs else "",
        pid=sandbox.pid if runs else None,
    )


def detailed(found: Box, sandbox: Sandbox, boxes: tuple[Box, ...]) -> Box:
    """With what makes its links worse, and for one that shares another's network with that one's interfaces."""
    holder = next((item for item in boxes if found.joined and item.id == found.joined), found)
    return replace(found, interfaces=holder.interfaces, throttles=_throttles(found, sandbox))


def _interface(item: dict[str, Any]) -> Interface:
    return Interface(
        str(item["network"]),
        str(item["bridge"]),
        str(item["subnet"]),
        str(item["gateway"]),
        str(item["address"]),
        str(item["mac_address"]),
        str(item["interface"]),
        str(item["host_interface"]),
        bool(item.get("internal")),
        str(item.get("parent") or ""),
        str(item.get("address6") or ""),
        str(item.get("gateway6") or ""),
        tuple(item.get("aliases") or ()),
    )


def _throttles(found: Box, sandbox: Sandbox) -> tuple[Throttle, ...]:
    if not found.runs or not found.interfaces:
        return ()
    spec = sandbox.spec.network
    rates = (("in", spec.rate_in), ("out", spec.rate_out))
    own = [Throttle(found.name, way, f"rate {format_rate(rate)}", own=True) for way, rate in rates if rate]
    return (*own, *(_throttle(found.name, item) for item in sandbox.impairments))


def _throttle(name: str, item: Impairment) -> Throttle:
    effects = ", ".join(f"{key} {value}" for key, value in item.effects.items())
    return Throttle(name, item.direction, effects, item.loss, item.prefixes)
