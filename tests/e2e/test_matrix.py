"""``netbox matrix`` with real sandboxes: who reaches whom, compared, in every format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from netbox.engine import Engine
from netbox.errors import NetboxError
from netbox.packet.diagnosis.api import Question, answers, why
from netbox.packet.diagnosis.values import Answer
from tests.e2e.boxes import await_listener, running
from tests.support.cli import Cli
from tests.support.host import Neighbour

DECLARED = """\
*    -> *          no
web  -> api:8000   yes
api  -> web:80     yes
api  -> db:5432    yes
db   -> api:8000   yes
host -> *:*        yes   # the host reaches its own
lan  -> web:80     yes   # published
"""


@pytest.fixture
def boxes(cli: Cli, outside: Neighbour) -> Iterator[None]:
    """Web and db share no network, api is on both, job is on none."""
    for network in ("front", "back"):
        cli("network", "create", network)
    with (
        running(cli, "web", "--network", "front", "-p", "0.0.0.0:8080:80", command=("httpd", "-f", "-p", "80")),
        running(cli, "db", "--network", "back", command=("nc", "-ll", "-p", "5432", "-e", "cat")),
        running(cli, "api", "--network", "front", "--network", "back", command=("nc", "-ll", "-p", "8000", "-e", "cat")),
        running(cli, "job", "--network", "none"),
    ):
        for name, port in (("web", 80), ("db", 5432), ("api", 8000)):
            await_listener(cli, name, port)
        yield
    cli("network", "prune", "-f")


def test_what_is_declared_is_compared(cli: Cli, boxes: None, tmp_path: Path) -> None:
    declared = tmp_path / "expected"
    declared.write_text(DECLARED)
    result = cli("matrix", "--expect", str(declared), "--format", "json")
    document = json.loads(result.stdout)
    assert document["differences"] == []
    assert document["sources"] == ["api", "db", "job", "web", "host", "lan"]  # the file names host and lan
    found = {(cell["source"], cell["target"], cell["port"]): cell for cell in document["cells"]}
    assert len(found) == 20
    reached = {key for key, cell in found.items() if cell["reachable"]}
    assert reached == {
        ("web", "api", 8000), ("api", "web", 80), ("api", "db", 5432), ("db", "api", 8000),
        ("host", "web", 80), ("host", "db", 5432), ("host", "api", 8000), ("lan", "web", 80),
    }  # fmt: skip
    assert "share no network" in found["web", "db", 5432]["why"]
    assert found["web", "db", 5432]["command"] == "netbox network connect back web"
    assert found["web", "job", None]["state"] == "no address"
    assert found["lan", "api", 8000]["why"]

    declared.write_text(DECLARED.replace("api  -> db:5432    yes", "web  -> db:5432    yes"))
    result = cli("matrix", "--expect", str(declared), "--format", "junit", "--no-why", check=1)
    (suite,) = ElementTree.fromstring(result.stdout)
    assert suite.get("failures") == "2"
    assert {case.get("name") for case in suite if case.find("failure") is not None} == {"api -> db:5432", "web -> db:5432"}


def test_for_people(cli: Cli, boxes: None, tmp_path: Path) -> None:
    result = cli("matrix", "web", "api", "--ports", "80,icmp")
    assert [line.split() for line in result.stdout.splitlines()[:4]] == [
        ["api", "web"],
        ["from", "80", "icmp", "80", "icmp"],
        ["api", "·", "·", "✓", "✓"],
        ["web", "✗", "✓", "·", "·"],
    ]
    assert "web → api:80: closed" in result.stdout
    assert "4 pairs, 3 reachable, 1 not" in result.stdout

    page = tmp_path / "matrix.html"
    result = cli("matrix", "--network", "front", "--lan", "--format", "html", "-o", str(page))
    assert result.stdout == ""
    assert f"{page}: 4 pairs" in result.stderr
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "http://" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "lan → api:8000" in text

    again = tmp_path / "declared"
    again.write_text(cli("matrix", "--format", "expect").stdout)
    assert "all as declared" in cli("matrix", "--expect", str(again)).stdout


def test_from_python(boxes: None) -> None:
    from netbox import packet

    with Engine() as engine:
        found = packet.matrix(engine, network="back", explain=False)
    assert [(cell.source, str(cell.column), cell.reachable) for cell in found.cells] == [
        ("api", "db:5432", True),
        ("db", "api:8000", True),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "a matrix needs two places"),
        (("--ports", "80,x"), "not a port: x"),
        (("--network", "absent"), "no such network"),
        (("absent",), "no such sandbox"),
        (("--expect", "/nonexistent/file"), "cannot read /nonexistent/file"),
    ],
)
def test_what_makes_no_sense(cli: Cli, options: tuple[str, ...], words: str) -> None:
    result = cli("matrix", *options, check=125)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_shared_reasons_are_those_of_each_cell(boxes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked once for several cells says of each what ``why`` says of it."""
    from netbox.packet.diagnosis import survey
    from netbox.packet.reachability.measure import matrix

    asked: list[tuple[str, str]] = []

    def counted(engine: Engine, questions: Sequence[Question]) -> list[Answer | NetboxError]:
        asked.extend((item.source, item.target) for item in questions)
        return answers(engine, questions)

    monkeypatch.setattr(survey, "answers", counted)
    with Engine() as engine:
        found = matrix(engine, names=["web", "db", "api"], ports=[("tcp", 80)], sources=["lan"], timeout=0.3)
        failed = found.unreachable
        assert len(failed) == 7
        assert len(asked) == 6  # web and db ask api for a port on which nothing listens
        for cell in failed:
            assert cell.why is not None
            alone = why(engine, cell.source, cell.column.target, protocol="tcp", port=80, timeout=0.3)
            assert (alone.sentence, alone.command) == (cell.why.sentence, cell.why.command)
