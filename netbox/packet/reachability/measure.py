"""Asks every pair, in parallel, and has what failed explained."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from netbox.errors import NetboxError, UsageError, WrongState
from netbox.packet.diagnosis.values import EXPIRED, NO_ROUTE, NOT_ASKED, REFUSED, SILENT, UNREACHABLE
from netbox.packet.reachability import expectation, listening
from netbox.packet.reachability.expectation import Statement
from netbox.packet.reachability.values import ICMP, Cell, Column, Explanation, Matrix

if TYPE_CHECKING:
    from netbox.engine import Engine, Sandbox
    from netbox.packet.diagnosis.values import Answer
    from netbox.packet.probing.values import ProbeReport, ProbeRequest

HOST, LAN = "host", "lan"
DEFAULT_TIMEOUT = 1.0
"""Seconds that a probe waits: nobody answers what a rule drops."""

Progress = Callable[[str, int, int], None]  # what is done, how many are, of how many
# What a probe's state is for ``why``.
_OUTCOMES = {
    "closed": REFUSED,
    "filtered": SILENT,
    "no answer": SILENT,
    "no route": NO_ROUTE,
    "unreachable": UNREACHABLE,
    "time exceeded": EXPIRED,
}


def matrix(
    engine: Engine,
    *,
    network: str | None = None,
    names: Sequence[str] = (),
    ports: Sequence[tuple[str, int | None]] = (),
    sources: Collection[str] = (),
    statements: Sequence[Statement] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    explain: bool = True,
    progress: Progress | None = None,
) -> Matrix:
    """Who reaches whom among the running sandboxes, or those of a network, or those that are named.

    ``ports`` are (protocol, port) pairs that every sandbox is asked for, ``("icmp", None)`` among them; without any each is asked for what
    listens in it, and by ICMP where nothing does. ``sources`` may add ``host`` and ``lan``. ``statements`` are what is declared: their
    ports are asked for too. ``explain`` has ``why`` look at each cell that was not reached.

    Raises:
        NotFound: no such sandbox or network.
        WrongState: a named sandbox does not run.
        UsageError: nothing to ask: fewer than two places.
    """
    begun, taken_at = time.monotonic(), time.time()
    boxes = chosen(engine, network, names)
    rows = [box.name for box in boxes]
    rows += [name for name in (HOST, LAN) if name in sources or (statements and name in expectation.sources(statements))]
    if not boxes or len(rows) < 2:
        raise UsageError(
            "a matrix needs two places at least, a running sandbox among them",
            "start sandboxes, or add rows with --host or --lan",
        )
    columns = asked(boxes, ports, statements or ())
    pairs = [(source, column) for source in rows for column in columns if source != column.target]
    if progress is not None:
        progress("probing", 0, len(pairs))
    cells = _probed(engine, pairs, {box.name for box in boxes if not has_address(box)}, timeout)
    if statements is not None:
        cells = [replace(cell, expected=expectation.expected(statements, cell.source, cell.column)) for cell in cells]
    if explain:
        cells = _explained(engine, cells, timeout, progress)
    return Matrix(tuple(rows), tuple(columns), tuple(cells), taken_at, time.monotonic() - begun, statements is not None)


def has_address(box: Sandbox) -> bool:
    """Whether packets can be addressed to a sandbox: not in mode ``none``, nor while it is on no network."""
    mode = box.spec.network.mode
    return mode != "none" and (mode != "bridge" or bool(box.ip_address))


def chosen(engine: Engine, network: str | None, names: Sequence[str]) -> list[Sandbox]:
    """The sandboxes that take part, by name.

    Raises:
        NotFound: no such sandbox or network.
        WrongState: a named sandbox does not run.
    """
    if names:
        boxes = [engine.get(name) for name in names]
        for box in boxes:
            if box.state != "running":
                raise WrongState(f"sandbox {box.name} does not run: it is {box.state}", f"start it first: netbox start {box.name}")
    else:
        boxes = [box for box in engine.list() if box.state == "running"]
    if network is not None:
        members = {member.name for member in engine.networks.get(network).members}
        boxes = [box for box in boxes if box.name in members]
    return sorted({box.id: box for box in boxes}.values(), key=lambda box: box.name)


def asked(boxes: Sequence[Sandbox], ports: Sequence[tuple[str, int | None]], statements: Sequence[Statement]) -> list[Column]:
    """The columns: given ports, else what listens and what is declared."""
    found: list[Column] = []
    for box in boxes:
        if ports:
            mine = [Column(box.name, protocol, port) for protocol, port in ports]
        else:
            mine = [*(listening.columns(box.name, box.pid) if box.pid else []), *expectation.columns(statements, [box.name])]
            mine = sorted(dict.fromkeys(mine), key=lambda column: (column.port or 0, column.protocol))
        found += mine or [Column(box.name)]
    return found


def _request(column: Column, timeout: float) -> ProbeRequest:
    from netbox.packet.probing.values import ProbeRequest

    return ProbeRequest(protocol=ICMP if column.port is None else column.protocol, port=column.port, timeout=timeout)


def _probed(engine: Engine, pairs: Sequence[tuple[str, Column]], nowhere: Collection[str], timeout: float) -> list[Cell]:
    """A cell for each pair; ``nowhere`` are the targets that have no address."""
    from netbox.packet.probing.api import Probe, probe_many

    asked = [(source, column) for source, column in pairs if column.target not in nowhere]
    probes = [Probe(source, column.target, _request(column, timeout)) for source, column in asked]
    reports = dict(zip(asked, probe_many(engine, probes), strict=True))
    return [_cell(source, column, reports.get((source, column))) for source, column in pairs]


def _cell(source: str, column: Column, report: ProbeReport | None) -> Cell:
    if report is None:
        return Cell(source, column, "no address", False, f"{column.target} is on no network")
    best = report.best
    return Cell(source, column, report.state, report.reachable, best.answer if best else "", best.rtt if best else None)


def _explained(engine: Engine, cells: Sequence[Cell], timeout: float, progress: Progress | None) -> list[Cell]:
    """The cells, those that were not reached with the answer of ``why``."""
    from netbox.packet.diagnosis.survey import Asked, survey

    wanted = [cell for cell in cells if not cell.reachable]
    done = 0

    def answered() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("asking why", done, len(wanted))

    questions = [
        Asked(cell.source, cell.column.target, cell.column.protocol, cell.column.port, _OUTCOMES.get(cell.state, NOT_ASKED), cell.answer)
        for cell in wanted
    ]
    reasons = dict(zip([(cell.source, cell.column) for cell in wanted], survey(engine, questions, timeout, answered), strict=True))
    return [replace(cell, why=_explanation(reasons[cell.source, cell.column])) if not cell.reachable else cell for cell in cells]


def _explanation(answer: Answer | NetboxError) -> Explanation:
    if isinstance(answer, NetboxError):  # it ended, say, since it was probed
        return Explanation(str(answer), answer.hint or None)
    return Explanation(answer.sentence, answer.command)
