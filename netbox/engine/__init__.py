"""The verbs on sandboxes: plan, then apply in a transaction. ``Engine`` is the entry."""

from netbox.engine.engine import Engine, PlanSection
from netbox.engine.networks import Network, Networks
from netbox.engine.observing import Stats
from netbox.engine.sandbox import ExecResult, Sandbox

__all__ = ["Engine", "ExecResult", "Network", "Networks", "PlanSection", "Sandbox", "Stats"]
