"""The course of a verification: mode after mode, what is built, what is asked, what goes again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import NetboxError, NoPermission, UsageError
from netbox.network import forwarding
from netbox.packet.probing.run import Worker, run_probes
from netbox.packet.verifying import beside, checks
from netbox.packet.verifying.checks import Check
from netbox.packet.verifying.stage import Stage

if TYPE_CHECKING:
    from netbox.engine import Engine

MODES = {**checks.MODES, **beside.MODES}
BUILDING, PROBING, REMOVING = "building", "probing", "removing"


class Outcome(NamedTuple):
    """One promise: kept, or ``detail`` says what happened instead. ``seconds`` is the round-trip time where there is one."""

    mode: str
    title: str
    passed: bool
    detail: str = ""
    seconds: float | None = None


def offered() -> tuple[str, ...]:
    """The modes that this kernel can have: all, but for IPv6 where it has none."""
    return tuple(mode for mode in MODES if mode != "ipv6" or forwarding.is_supported())


def verify(
    engine: Engine, modes: Sequence[str] = (), progress: Callable[[str, str], None] = lambda mode, step: None
) -> dict[str, list[Outcome]]:
    """Proves every mode, or those named; the outcomes by mode. ``progress`` is told (mode, step) on the way.

    What it builds is gone when it returns or raises.

    Raises:
        UsageError: no such mode.
        NoPermission: not root.
        CleanupError: something could not be removed.
    """
    if os.geteuid() != 0:
        raise NoPermission("cannot verify networks: netbox needs root to make sandboxes", "run it with sudo")
    for mode in modes:
        if mode not in MODES:
            raise UsageError(f"no such mode: {mode}", f"one of {', '.join(MODES)}")
    return {mode: _verify_mode(engine, mode, lambda step, mode=mode: progress(mode, step)) for mode in modes or offered()}  # type: ignore[misc]


def _verify_mode(engine: Engine, mode: str, progress: Callable[[str], None]) -> list[Outcome]:
    progress(BUILDING)
    try:
        with Stage(engine) as stage, Worker() as worker:
            promises = MODES[mode](stage)
            progress(PROBING)
            outcomes = _outcomes(mode, promises, worker)
            progress(REMOVING)
        return outcomes
    except (NetboxError, OSError) as error:
        return [Outcome(mode, "sandboxes can be built and probed", False, str(error))]


def _outcomes(mode: str, promises: list[Check], worker: Worker) -> list[Outcome]:
    """All packets at once, so that silence costs its time but once."""
    probes = [check.probe for check in promises if check.probe is not None]
    start = time.monotonic()
    reports = iter(run_probes(probes, worker))
    elapsed = time.monotonic() - start
    outcomes = []
    for check in promises:
        if check.probe is None:
            detail = check.fact() if check.fact is not None else None
            outcomes.append(Outcome(mode, check.title, detail is None, detail or ""))
            continue
        report = next(reports)
        detail = check.judge(report)
        rtt = report.best.rtt if report.best is not None else None
        seconds = rtt if rtt is not None else min(elapsed, report.request.timeout)
        outcomes.append(Outcome(mode, check.title, detail is None, detail or "", seconds))
    return outcomes
