"""The matrix for a terminal. Pure: the caller says how wide it is, what it can show, and how to colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from netbox.packet.reachability.values import Cell, Column, Matrix

Paint = Callable[[str, str], str]  # text and the name of a style


class Signs(NamedTuple):
    """How a cell looks. ``unlike`` is put behind one that is not as declared."""

    yes: str
    no: str
    itself: str
    arrow: str
    unlike: str = "!"


UNICODE = Signs("✓", "✗", "·", "→")
ASCII = Signs("yes", "no", "-", "->")


def plain(text: str, style: str) -> str:
    """No colours."""
    return text


def table(matrix: Matrix, width: int, signs: Signs = UNICODE, paint: Paint = plain) -> str:
    """Sources down, targets with their ports across; what is wider than the terminal goes on below."""
    label = max([len("from"), *map(len, matrix.sources)]) + 3
    blocks: list[list[list[Column]]] = [[]]
    used = label
    for _, columns in matrix.targets:
        needed = _group_width(columns, signs)
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = label
        blocks[-1].append(columns)
        used += needed
    return "\n\n".join(_block(matrix, block, label, signs, paint) for block in blocks)


def _widths(columns: Sequence[Column], signs: Signs) -> list[int]:
    least = len(max(signs.yes, signs.no, key=len) + signs.unlike)
    widths = [max(least, len(column.door)) + 2 for column in columns]
    missing = len(columns[0].target) + 2 - sum(widths)
    widths[-1] += max(0, missing)
    return widths


def _group_width(columns: Sequence[Column], signs: Signs) -> int:
    return sum(_widths(columns, signs)) + 1


def _block(matrix: Matrix, groups: Sequence[Sequence[Column]], label: int, signs: Signs, paint: Paint) -> str:
    head, doors = " " * label, "from".ljust(label)
    for columns in groups:
        head += paint(columns[0].target.ljust(_group_width(columns, signs)), "bold")
        for column, width in zip(columns, _widths(columns, signs), strict=True):
            doors += column.door.ljust(width)
        doors += " "
    lines = [head.rstrip(), doors.rstrip()]
    for source in matrix.sources:
        line = source.ljust(label)
        for columns in groups:
            for column, width in zip(columns, _widths(columns, signs), strict=True):
                line += _sign(matrix, matrix.cell(source, column), width, signs, paint)
            line += " "
        lines.append(line.rstrip())
    return "\n".join(lines)


def _sign(matrix: Matrix, cell: Cell | None, width: int, signs: Signs, paint: Paint) -> str:
    if cell is None:
        return paint(signs.itself.ljust(width), "dim")
    text = signs.yes if cell.reachable else signs.no
    if matrix.compared and cell.expected != cell.reachable:
        return paint((text + signs.unlike).ljust(width), "red")
    if matrix.compared:
        return paint(text.ljust(width), "green")
    return paint(text.ljust(width), "green" if cell.reachable else "red")


def reasons(matrix: Matrix, cells: Sequence[Cell], signs: Signs = UNICODE, paint: Paint = plain) -> str:
    """A line or three for each of the cells: what was found, why, what would mend it."""
    differences = {(cell.source, cell.column): what for cell, what in matrix.differences}
    lines = []
    for cell in cells:
        found = f"{cell.state}, {cell.answer}" if cell.answer and cell.answer != cell.state else cell.state
        lines.append(f"{paint(f'{cell.source} {signs.arrow} {cell.column}', 'bold')}: {found}")
        what = differences.get((cell.source, cell.column))
        if what:
            lines.append(f"    {paint(what, 'red')}")
        if cell.why is not None:
            lines.append(f"    {cell.why.sentence}")
            if cell.why.command:
                lines.append(f"    to mend it: {paint(cell.why.command, 'cyan')}")
    return "\n".join(lines)
