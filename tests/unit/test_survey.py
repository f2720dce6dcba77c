"""Many questions at one moment: which are asked in full, and which are answered by what another showed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from netbox.errors import NotFound
from netbox.packet.diagnosis import survey
from netbox.packet.diagnosis.explain import explain
from netbox.packet.diagnosis.predict import predict
from netbox.packet.diagnosis.survey import Asked
from netbox.packet.diagnosis.values import Answer, Facts, Observation
from tests.unit.why_facts import DB, across, box, facts, inside

CLOSED = facts(target=inside("db", DB, 3))


def of(source: str, known: Facts = CLOSED) -> Facts:
    """The same facts with a source of another name."""
    assert known.source_box is not None
    return replace(known, source_box=replace(known.source_box, name=source, id=source))


def settled(monkeypatch: pytest.MonkeyPatch, known: dict[str, Facts], outcomes: dict[str, str], real: str) -> tuple[list[str], list[Any]]:
    """Who is asked in full when packets do ``real``, and all answers."""
    asked: list[str] = []

    def answer(engine: Any, source: str, target: str, request: Any) -> Answer:
        asked.append(source)
        return explain(known[source], predict(known[source]), Observation(real, f"it was {real}"))

    monkeypatch.setattr(survey, "answer", answer)
    questions = [Asked(source, "db", "tcp", 80, outcome, "it was so") for source, outcome in outcomes.items()]
    foreseen = {
        number: survey._Foreseen(known[item.source], predict(known[item.source]), survey._key(item, predict(known[item.source])))
        for number, item in enumerate(questions)
        if item.source in known
    }
    monkeypatch.setattr(survey, "_foreseen", lambda *rest: foreseen)
    engine: Any = None
    return asked, survey.survey(engine, questions, 1.0)


def test_one_listener_that_is_missing_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: of(name) for name in ("a", "b", "c")}
    asked, found = settled(monkeypatch, known, {"a": "refused", "b": "refused", "c": "refused"}, "refused")
    assert asked == ["a"]
    assert [item.sentence.partition(" ")[0] for item in found] == ["a", "b", "c"]
    assert {item.cause for item in found} == {"not-listening"}


def test_another_answer_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: of(name) for name in ("a", "b", "c")}
    asked, _ = settled(monkeypatch, known, {"a": "refused", "b": "silent", "c": "refused"}, "refused")
    assert sorted(asked) == ["a", "b"]


def test_what_is_not_as_expected_is_asked_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: of(name) for name in ("a", "b", "c")}
    asked, found = settled(monkeypatch, known, {"a": "refused", "b": "refused", "c": "refused"}, "silent")
    assert sorted(asked) == ["a", "b", "c"]
    assert {item.cause for item in found} == {"unknown"}


def test_one_rule_that_keeps_networks_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: of(name, across()) for name in ("a", "b")}
    known["c"] = of("c", across(source_box=box("c", "10.1.0.9", state="paused")))
    asked, found = settled(monkeypatch, known, dict.fromkeys(known, "silent"), "silent")
    assert sorted(asked) == ["a", "c"]  # what belongs to a source is its own question
    assert [item.cause for item in found] == ["other-network", "other-network", "source-paused"]


def test_a_question_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*rest: Any) -> Answer:
        raise NotFound("no such sandbox: a")

    monkeypatch.setattr(survey, "answer", gone)
    monkeypatch.setattr(survey, "_foreseen", lambda *rest: {})
    engine: Any = None
    (found,) = survey.survey(engine, [Asked("a", "db", "tcp", 80)], 1.0)
    assert isinstance(found, NotFound)
