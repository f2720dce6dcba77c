"""The matrix as one HTML page that needs nothing else: the topology, the matrix, and for each failing cell the reason. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape

from netbox.packet.reachability.values import Cell, Column, Matrix

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --faint: #6a737d; --line: #d8dee4; --panel: #f6f8fa;
  --yes: #1a7f37; --yes-paper: #dafbe1; --no: #b42318; --no-paper: #ffebe9; --odd: #9a6700; --odd-paper: #fff3c4; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --faint: #8d96a0; --line: #30363d; --panel: #161b22;
  --yes: #56d364; --yes-paper: #12361f; --no: #ff8077; --no-paper: #4a1a17; --odd: #e3b341; --odd-paper: #3b2e0a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem; max-width: 90rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
.when { color: var(--faint); margin: .25rem 0 0; }
.counts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0 0; padding: 0; list-style: none; }
.counts li { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .5rem 1rem; }
.counts b { display: block; font-size: 1.4rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.counts .yes b { color: var(--yes); } .counts .no b { color: var(--no); } .counts .odd b { color: var(--odd); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
.drawing { padding: 1rem; }
.drawing svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
table { border-collapse: separate; border-spacing: 0; width: max-content; min-width: 100%; }
th, td { padding: .4rem .75rem; text-align: center; border-bottom: 1px solid var(--line); border-left: 1px solid var(--line); }
tr:last-child th, tr:last-child td { border-bottom: 0; }
thead th { background: var(--panel); font-weight: 600; }
thead tr + tr th { font-weight: 400; color: var(--faint); font-variant-numeric: tabular-nums; }
th[scope=row] { text-align: left; background: var(--panel); position: sticky; left: 0; border-left: 0; font-weight: 600; }
thead tr:first-child th:first-child { text-align: left; position: sticky; left: 0; border-left: 0; }
td a { color: inherit; text-decoration: none; display: block; margin: -.4rem -.75rem; padding: .4rem .75rem; }
td.yes { background: var(--yes-paper); color: var(--yes); } td.no { background: var(--no-paper); color: var(--no); }
td.odd { background: var(--odd-paper); color: var(--odd); font-weight: 700; } td.self { color: var(--faint); }
td small { color: inherit; opacity: .8; display: block; font-variant-numeric: tabular-nums; }
.reason { border: 1px solid var(--line); border-left: 4px solid var(--no); border-radius: 6px; padding: .6rem 1rem; margin: 0 0 .6rem; }
.reason.odd { border-left-color: var(--odd); } .reason:target { outline: 2px solid var(--odd); }
.reason h3 { font-size: 1rem; margin: 0; } .reason h3 span { color: var(--faint); font-weight: 400; }
.reason p { margin: .25rem 0 0; overflow-wrap: anywhere; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; background: var(--panel); border: 1px solid var(--line);
  border-radius: 4px; padding: .1rem .35rem; }
"""


def render(matrix: Matrix, drawing: str = "", title: str = "Who reaches whom") -> str:
    """The whole document. ``drawing`` is an SVG element of the topology, put in as it is."""
    numbers = {(cell.source, cell.column): f"cell-{number}" for number, cell in enumerate(_told(matrix))}
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="when">{time.strftime("%-d %B %Y, %H:%M:%S %Z", time.localtime(matrix.taken_at))} · {escape(matrix.summary)}</p>',
        _counts(matrix),
    ]
    if drawing:
        parts += ["<h2>Topology</h2>", f'<div class="scroll drawing">{drawing}</div>']
    parts += ["<h2>Matrix</h2>", _table(matrix, numbers)]
    unlike = [difference.cell for difference in matrix.differences]
    for heading, cells in (("Not as declared", unlike), ("Not reachable, and why", [cell for cell in _told(matrix) if cell not in unlike])):
        if cells:
            parts += [f"<h2>{heading}</h2>", *(_reason(matrix, cell, numbers[cell.source, cell.column]) for cell in cells)]
    return "\n".join([*parts, "</body></html>", ""])


def _told(matrix: Matrix) -> list[Cell]:
    """The cells with an entry below the matrix: what is not as declared, and all that was not reached."""
    unlike = [difference.cell for difference in matrix.differences]
    return unlike + [cell for cell in matrix.unreachable if cell not in unlike]


def _counts(matrix: Matrix) -> str:
    reached = sum(cell.reachable for cell in matrix.cells)
    items = [("yes", reached, "reachable"), ("no", len(matrix.cells) - reached, "not reachable")]
    if matrix.compared:
        items.append(("odd" if matrix.differences else "yes", len(matrix.differences), "not as declared"))
    return '<ul class="counts">' + "".join(f'<li class="{kind}"><b>{count}</b>{text}</li>' for kind, count, text in items) + "</ul>"


def _table(matrix: Matrix, numbers: Mapping[tuple[str, Column], str]) -> str:
    heads = "".join(f'<th colspan="{len(columns)}" scope="colgroup">{escape(target)}</th>' for target, columns in matrix.targets)
    columns = [column for _, group in matrix.targets for column in group]
    doors = "".join(f'<th scope="col">{escape(column.door)}</th>' for column in columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(source)}</th>{"".join(_cell(matrix, source, column, numbers) for column in columns)}</tr>'
        for source in matrix.sources
    )
    head = f'<thead><tr><th rowspan="2">from</th>{heads}</tr><tr>{doors}</tr></thead>'
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _cell(matrix: Matrix, source: str, column: Column, numbers: Mapping[tuple[str, Column], str]) -> str:
    cell = matrix.cell(source, column)
    if cell is None:
        return '<td class="self" title="itself">·</td>'
    unlike = matrix.compared and cell.expected != cell.reachable
    kind = "odd" if unlike else "yes" if cell.reachable else "no"
    detail = f"{cell.rtt * 1e3:.2f} ms" if cell.reachable and cell.rtt is not None else cell.state
    text = f"{'✓' if cell.reachable else '✗'}<small>{escape(detail)}</small>"
    number = numbers.get((source, column))
    if number:
        text = f'<a href="#{number}">{text}</a>'
    return f'<td class="{kind}" title="{escape(f"{source} → {column}: {cell.state}, {cell.answer}")}">{text}</td>'


def _reason(matrix: Matrix, cell: Cell, number: str) -> str:
    what = next((difference.what for difference in matrix.differences if difference.cell is cell), "")
    lines = [f"<h3>{escape(f'{cell.source} → {cell.column}')} <span>{escape(cell.state)}</span></h3>"]
    if what:
        lines.append(f"<p><b>{escape(what)}</b></p>")
    lines.append(f"<p>{escape(cell.why.sentence if cell.why else cell.answer)}</p>")
    if cell.why and cell.why.command:
        lines.append(f"<p>To mend it: <code>{escape(cell.why.command)}</code></p>")
    return f'<section class="reason{" odd" if what else ""}" id="{number}">{"".join(lines)}</section>'
