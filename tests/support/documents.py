"""Code blocks of Markdown documents, so that tests can run what readers are told to type."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

DOCUMENTS = Path(__file__).resolve().parents[2] / "netbox" / "docs"


class Example(NamedTuple):
    """A fenced block: the heading above it, its text, the line where it starts, and the ``text`` block that follows at once, if any."""

    heading: str
    code: str
    line: int
    output: str | None


def examples(name: str, language: str = "python") -> list[Example]:
    """All blocks of one language in ``netbox/docs/<name>``."""
    lines = (DOCUMENTS / name).read_text().splitlines()
    found: list[Example] = []
    heading, position = "", 0
    while position < len(lines):
        line = lines[position]
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("```"):
            end = lines.index("```", position + 1)
            text = "\n".join(lines[position + 1 : end]) + "\n"
            if line == f"```{language}":
                found.append(Example(heading, text, position + 2, None))
            elif line == "```text" and lines[position - 1] == "```" and found:
                found[-1] = found[-1]._replace(output=text)
            position = end
        position += 1
    return found
