"""Observations of what others' rules do to netbox's packets, and of the name service."""

from __future__ import annotations

from collections.abc import Sequence

from netbox import names
from netbox.engine.checks.catalogue import LIMITED, MISSING, OK, Observation
from netbox.errors import NetboxError
from netbox.network import naming, obstacles
from netbox.settings import Settings
from netbox.state.journal import of_kind
from netbox.state.rows import NetworkRow
from netbox.state.store import Store


def observe(settings: Settings) -> dict[str, Observation]:
    """What the catalogue asks about. Changes nothing."""
    networks = _standing(settings)
    return {
        "firewall.forward": _obstacles(
            obstacles.FORWARD, [row.bridge for row in networks], names.DEFAULT_BRIDGE, [row.bridge for row in networks if row.subnet6]
        ),
        "firewall.names": _obstacles(obstacles.INPUT, [row.bridge for row in networks if row.name != names.DEFAULT_NETWORK], "BRIDGE"),
        "host.names": _name_service(settings, [row.name for row in networks if row.name != names.DEFAULT_NETWORK]),
    }


def _standing(settings: Settings) -> list[NetworkRow]:
    """The networks with a bridge that are up."""
    try:
        store = Store(settings)
    except NetboxError:  # the row of the state directory says so
        return []
    try:
        owners = dict.fromkeys(row.owner for row in of_kind(store.database, "network_rules"))
        rows = (store.network(owner.removeprefix("network:")) for owner in owners)
        return [row for row in rows if row is not None]
    except NetboxError:
        return []
    finally:
        store.close()


def _obstacles(hook: str, bridges: list[str], example: str, bridges6: Sequence[str] = ()) -> Observation:
    """What is in the way of IPv4 on ``bridges`` and of IPv6 on ``bridges6``. With no network up, ``example`` stands for the bridge that one
    will have. Names are asked for by IPv4 alone.
    """
    try:
        found = obstacles.find(hook, bridges or [example], bridges6)
    except NetboxError as error:
        return Observation(LIMITED, error.message, remedy=error.hint or "")
    if not bridges:
        # Where dockerd's chain is, the bridge is let in when it comes up.
        found = [item for item in found if (item.program, hook) != (obstacles.DOCKERD, obstacles.FORWARD)]
    if not found:
        return Observation(OK)
    what = "what {} sends and gets" if hook == obstacles.FORWARD else "questions from {}"
    said = dict.fromkeys(f"{_chain(item)} drops {what.format(item.bridge)}" for item in found)
    return Observation(LIMITED, "; ".join(said), remedy="; ".join(dict.fromkeys(item.remedy for item in found)))


def _chain(item: obstacles.Obstacle) -> str:
    return f"{item.chain} of {item.program}" if item.program else item.chain


def _name_service(settings: Settings, standing: list[str]) -> Observation:
    """The networks that it serves and the processes that do it: the server and its standby."""
    service = naming.status(settings)
    if not service.networks:
        lacking = ", ".join(standing)
        return Observation(MISSING, f"nobody serves {lacking}") if lacking else Observation(OK, "not needed: no user-defined network is up")
    where = ", ".join(service.networks)
    if not service.processes:
        return Observation(MISSING, f"nobody serves {where}")
    roles = [f"{role} {pid}" for role, pid in service.processes]
    if len(roles) == 1:
        return Observation(LIMITED, f"serves {where}: {roles[0]}, and no standby")
    return Observation(OK, f"serves {where}: {', '.join(roles)}")
