"""The matrix: rows are sources, columns are targets with a port, a cell is what a probe found. Frozen, JSON-able."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

ICMP = "icmp"


class Column(NamedTuple):
    """What is asked for: a sandbox (or ``host``) and ``icmp``, or a protocol (tcp, udp, sctp) and a port."""

    target: str
    protocol: str = ICMP
    port: int | None = None

    @property
    def door(self) -> str:
        """The column without its target: ``5432``, ``53/udp``, ``icmp``."""
        if self.port is None:
            return self.protocol
        return str(self.port) if self.protocol == "tcp" else f"{self.port}/{self.protocol}"

    def __str__(self) -> str:
        return f"{self.target} {self.protocol}" if self.port is None else f"{self.target}:{self.door}"


class Explanation(NamedTuple):
    """Why a cell is as it is: a sentence, and the command that would mend it, where there is one."""

    sentence: str
    command: str | None = None


@dataclass(frozen=True)
class Cell:
    """One probe of the matrix.

    ``state`` is the probe's (``open``, ``filtered``, …), ``answer`` says in words what came back, ``rtt`` is in seconds. ``expected`` is
    what was declared: ``None`` where nothing was.
    """

    source: str
    column: Column
    state: str
    reachable: bool
    answer: str = ""
    rtt: float | None = None
    why: Explanation | None = None
    expected: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The cell as plain JSON values."""
        return {
            "source": self.source,
            "target": self.column.target,
            "protocol": self.column.protocol,
            "port": self.column.port,
            "reachable": self.reachable,
            "state": self.state,
            "answer": self.answer,
            "rtt": self.rtt,
            "expected": self.expected,
            "why": self.why and self.why.sentence,
            "command": self.why and self.why.command,
        }


class Difference(NamedTuple):
    """A cell that is not as declared, or that no line speaks of; ``what`` says which."""

    cell: Cell
    what: str


@dataclass(frozen=True)
class Matrix:
    """All of it. A source is not asked about itself: such pairs have no cell. ``compared`` says that something was declared.

    ``taken_at`` is in seconds since the epoch, ``seconds`` is how long it took.
    """

    sources: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    taken_at: float
    seconds: float
    compared: bool = False

    def cell(self, source: str, column: Column) -> Cell | None:
        """The cell of a row and a column; none where a source would ask itself."""
        return self._index.get((source, column))

    @cached_property
    def _index(self) -> dict[tuple[str, Column], Cell]:
        return {(cell.source, cell.column): cell for cell in self.cells}

    @property
    def targets(self) -> list[tuple[str, list[Column]]]:
        """The columns of each target, in order."""
        found: dict[str, list[Column]] = {}
        for column in self.columns:
            found.setdefault(column.target, []).append(column)
        return list(found.items())

    @property
    def unreachable(self) -> list[Cell]:
        """The cells that were not reached, in order."""
        return [cell for cell in self.cells if not cell.reachable]

    @property
    def differences(self) -> list[Difference]:
        """What is not as declared; empty where nothing was declared."""
        if not self.compared:
            return []
        found = []
        for cell in self.cells:
            if cell.expected is None:
                found.append(Difference(cell, "no line of the file speaks of it"))
            elif cell.expected != cell.reachable:
                declared = "reachable" if cell.expected else "out of reach"
                found.append(Difference(cell, f"declared {declared}, and it is {'reachable' if cell.reachable else 'not'}"))
        return found

    @property
    def summary(self) -> str:
        """One line."""
        reached = sum(cell.reachable for cell in self.cells)
        text = f"{len(self.cells)} pairs, {reached} reachable, {len(self.cells) - reached} not, in {self.seconds:.1f} s"
        if self.compared:
            count = len(self.differences)
            text += "; all as declared" if not count else f"; {count} not as declared"
        return text

    def to_json(self) -> dict[str, Any]:
        """The matrix as plain JSON values."""
        return {
            "taken_at": self.taken_at,
            "seconds": round(self.seconds, 3),
            "sources": list(self.sources),
            "targets": [{"target": column.target, "protocol": column.protocol, "port": column.port} for column in self.columns],
            "cells": [cell.to_json() for cell in self.cells],
            "differences": [{"source": cell.source, "target": str(cell.column), "what": what} for cell, what in self.differences],
        }
