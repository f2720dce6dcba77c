"""An answer as text for people: the sentence, the evidence, what mends it. Pure."""

from __future__ import annotations

import textwrap

from netbox.packet.diagnosis.values import Answer

WIDTH = 100
_INDENT = "  "


def lines(answer: Answer, width: int = WIDTH) -> list[tuple[str, str]]:
    """(style, line) pairs; the styles are ``sentence``, ``title``, ``evidence``, ``command``, ``mend``, ``surprise`` and ``empty``."""
    found = [("sentence", line) for line in wrapped(answer.sentence + ".", width)]
    if answer.disagreement:
        found += [("empty", ""), *(("surprise", line) for line in wrapped(f"Unexpected: {answer.disagreement}.", width))]
    if answer.evidence:
        found += [("empty", ""), ("title", "Evidence")]
        column = max(len(what) for what, _ in answer.evidence)
        for what, value in answer.evidence:
            first, *rest = wrapped(value, max(width - column - 5, 20)) or [""]
            found.append(("evidence", f"{_INDENT}{what.ljust(column)}   {first}"))
            found += [("evidence", f"{_INDENT}{' ' * column}   {line}") for line in rest]
    if answer.command:
        found += [("empty", ""), ("title", "To mend it:"), ("command", f"{_INDENT}{answer.command}")]
    elif answer.mend:
        found += [("empty", ""), ("title", "To mend it:"), *(("mend", f"{_INDENT}{line}") for line in wrapped(answer.mend, width - 2))]
    return found


def render(answer: Answer, width: int = WIDTH) -> str:
    """The whole text, without colours."""
    return "\n".join(line for _, line in lines(answer, width))


def wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words; an address or a command is never broken."""
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)
