"""The declared matrix: a file that says who shall reach whom. Pure.

One statement a line; the last one that fits decides, so exceptions come after the rule. Names may hold ``*`` and ``?``::

    # from   to                     reachable?
    *     -> *                      no
    web   -> db:5432                yes
    lan   -> web:80                 yes
    *     -> * icmp                 yes

A target without a port means all of its ports and ICMP; ``db:*`` means its ports. A port without a protocol is one of TCP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from netbox.errors import UsageError
from netbox.packet.reachability.values import ICMP, Column, Matrix

_WORDS = {"yes": True, "no": False}
_LINE = re.compile(r"(?P<source>\S+)\s*(?:->|→)\s*(?P<target>[^\s:]+)(?P<port>:\S+)?(?P<icmp>\s+icmp)?\s+(?P<word>yes|no)", re.IGNORECASE)
_PORT = re.compile(r":(?P<number>\d{1,5}|\*)(?:/(?P<protocol>tcp|udp|sctp))?", re.IGNORECASE)


class Statement(NamedTuple):
    """One line. ``protocol`` is ``*`` for everything, ``port`` a number, ``*`` for any port, or empty for ICMP too."""

    source: str
    target: str
    protocol: str
    port: str
    reachable: bool

    def fits(self, source: str, column: Column) -> bool:
        """Whether it speaks of a cell."""
        if not (fnmatchcase(source, self.source) and fnmatchcase(column.target, self.target)):
            return False
        if self.protocol not in ("*", column.protocol):
            return False
        if not self.port:
            return True
        return column.port is not None and self.port in ("*", str(column.port))


def parse(text: str, name: str = "the expectation") -> list[Statement]:
    """The statements of a file; ``name`` is for messages.

    Raises:
        UsageError: a line that is none; the message says which.
    """
    found = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if line:
            found.append(_statement(line, f"{name}, line {number}"))
    if not found:
        raise UsageError(f"{name} declares nothing", "write lines such as: web -> db:5432 yes")
    return found


def _statement(line: str, where: str) -> Statement:
    match = _LINE.fullmatch(line)
    if match is None or (match["port"] and match["icmp"]):
        raise UsageError(f"{where}: not a statement: {line}", "write it as: web -> db:5432 yes")
    protocol, port = "*", ""
    if match["icmp"]:
        protocol = ICMP
    elif match["port"]:
        door = _PORT.fullmatch(match["port"])
        if door is None or (door["number"] != "*" and not 1 <= int(door["number"]) <= 65535):
            raise UsageError(f"{where}: not a port: {match['port'][1:]}", "write it as 5432, 53/udp or *")
        protocol = (door["protocol"] or ("*" if door["number"] == "*" else "tcp")).lower()
        port = door["number"] if door["number"] == "*" else str(int(door["number"]))
    return Statement(match["source"], match["target"], protocol, port, _WORDS[match["word"].lower()])


def expected(statements: Iterable[Statement], source: str, column: Column) -> bool | None:
    """What is declared for a cell; ``None`` if nothing is."""
    answer = None
    for statement in statements:
        if statement.fits(source, column):
            answer = statement.reachable
    return answer


def columns(statements: Iterable[Statement], targets: Iterable[str]) -> list[Column]:
    """The ports that are named: they are asked for even where nothing listens."""
    names = list(targets)
    found: dict[Column, None] = {}
    for statement in statements:
        for name in names:
            if not fnmatchcase(name, statement.target):
                continue
            if statement.protocol == ICMP:
                found[Column(name)] = None
            elif statement.port.isdecimal():
                found[Column(name, statement.protocol, int(statement.port))] = None
    return list(found)


def sources(statements: Iterable[Statement]) -> set[str]:
    """The sources that are named in full; ``host`` and ``lan`` join the matrix when they are."""
    return {statement.source for statement in statements if not set("*?[") & set(statement.source)}


def render(matrix: Matrix) -> str:
    """The matrix as a file that declares it."""
    rows = [(cell.source, str(cell.column), "yes" if cell.reachable else "no") for cell in matrix.cells]
    left = max((len(row[0]) for row in rows), default=0)
    middle = max((len(row[1]) for row in rows), default=0)
    return "\n".join(f"{source:{left}} -> {column:{middle}}  {word}" for source, column, word in rows)
