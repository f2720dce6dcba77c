"""The matrix as JUnit XML: a test case for each pair. What differs from the declaration is a failure. Pure."""

from __future__ import annotations

from xml.etree import ElementTree

from netbox.packet.reachability.values import Cell, Matrix


def render(matrix: Matrix) -> str:
    """One document. Without a declaration nothing fails; each case says what was found."""
    differences = {(cell.source, cell.column): what for cell, what in matrix.differences}
    suite = ElementTree.Element(
        "testsuite",
        name="netbox matrix",
        tests=str(len(matrix.cells)),
        failures=str(len(differences)),
        errors="0",
        skipped="0",
        time=f"{matrix.seconds:.3f}",
    )
    for cell in matrix.cells:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"netbox.matrix.{cell.source}", name=f"{cell.source} -> {cell.column}", time=f"{cell.rtt or 0:.6f}"
        )
        what = differences.get((cell.source, cell.column))
        if what is not None:
            ElementTree.SubElement(case, "failure", message=f"{cell.source} -> {cell.column}: {what}").text = _found(cell)
        else:
            ElementTree.SubElement(case, "system-out").text = _found(cell)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _found(cell: Cell) -> str:
    lines = [f"{cell.state}: {cell.answer}" if cell.answer else cell.state]
    if cell.why is not None:
        lines.append(cell.why.sentence)
        if cell.why.command:
            lines.append(f"to mend it: {cell.why.command}")
    return "\n".join(lines)
