"""The course of a verification: mode after mode, what is built, what is asked, what goes again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import NetboxError, NoPermission, UsageError
from netbox.kernel import sublinks
from netbox.network import forwarding
from netbox.packet.probing.run import Worker, run_probes
from netbox.packet.verifying import beside, checks
from netbox.packet.verifying.checks import Check
from netbox.packet.verifying.stage import Stage

if TYPE_CHECKING:
    from netbox.engine import Engine

MODES = {**checks.MODES, **beside.MODES}
BUILDING, PROBING, REMOVING = "building", "probing", "removing"
LEFT_OUT = "left out"
_MISSING: dict[str, tuple[Callable[[], bool], str]] = {
    "ipv6": (lambda: not forwarding.is_supported(), "this kernel has no IPv6 (CONFIG_IPV6, or it was started with ipv6.disable=1)"),
    "macvlan": (lambda: sublinks.lacks_kind("macvlan"), "this kernel has no macvlan (CONFIG_MACVLAN)"),
}
"""The modes that a kernel need not have: how to see that it does not, and how to say so. All others need what every sandbox needs."""


class Outcome(NamedTuple):
    """One promise: kept, or ``detail`` says what happened instead. ``seconds`` is the round-trip time where there is one.

    ``skipped`` stands for a whole mode that was left out: nothing is broken, and ``detail`` says what this kernel lacks.
    """

    mode: str
    title: str
    passed: bool
    detail: str = ""
    seconds: float | None = None
    skipped: bool = False


def verify(
    engine: Engine,
    modes: Sequence[str] = (),
    progress: Callable[[str, str], None] = lambda mode, step: None,
    finished: Callable[[str, list[Outcome]], None] = lambda mode, outcomes: None,
) -> dict[str, list[Outcome]]:
    """Proves every mode, or those named; the outcomes by mode. ``progress`` is told (mode, step) on the way, ``finished`` the outcomes of
    each mode. A mode that this kernel cannot have is left out unless it is named: then it is broken.

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
    found: dict[str, list[Outcome]] = {}
    for mode in dict.fromkeys(modes or MODES):
        lacking = None if modes else missing(mode)
        if lacking is None:
            found[mode] = _verify_mode(engine, mode, lambda step, mode=mode: progress(mode, step))  # type: ignore[misc]
        else:
            found[mode] = [Outcome(mode, LEFT_OUT, True, lacking, skipped=True)]
        finished(mode, found[mode])
    return found


def missing(mode: str) -> str | None:
    """What this kernel lacks for a mode, in words; ``None`` when it has all."""
    is_missing, words = _MISSING.get(mode, (lambda: False, ""))
    return words if is_missing() else None


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
