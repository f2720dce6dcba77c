"""Many questions at one moment: which are asked in full, and which are answered by what another showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from netbox.errors import HostError, NetboxError, NotFound
from netbox.packet.diagnosis import survey
from netbox.packet.diagnosis.api import Question
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

    def answers(engine: Any, questions: Sequence[Question]) -> list[Answer]:
        asked.extend(item.source for item in questions)
        return [explain(known[item.source], predict(known[item.source]), Observation(real, f"it was {real}")) for item in questions]

    monkeypatch.setattr(survey, "answers", answers)
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
    """It is the answer of that one alone."""

    def gone(engine: Any, questions: Sequence[Question]) -> list[Answer | NetboxError]:
        if any(item.source == "b" for item in questions):
            raise HostError("the simulated neighbour cannot be made")
        return [NotFound(f"no such sandbox: {item.source}") for item in questions]

    monkeypatch.setattr(survey, "answers", gone)
    monkeypatch.setattr(survey, "_foreseen", lambda *rest: {})
    engine: Any = None
    (found,) = survey.survey(engine, [Asked("a", "db", "tcp", 80)], 1.0)
    assert isinstance(found, NotFound)
    all_of_them = survey.survey(engine, [Asked(name, "db", "tcp", 80) for name in ("a", "b", "c")], 1.0)
    assert [type(item) for item in all_of_them] == [NotFound, HostError, NotFound]


def test_what_is_asked_at_once() -> None:
    """All of it sooner or later, never more than some packets between the same two."""
    questions = [*(Asked("a", "db", "tcp", port) for port in range(1, 10)), *(Asked(f"s{number}", "db", "tcp", 80) for number in range(40))]
    batches = list(survey._batches(questions, range(len(questions))))
    assert sorted(number for batch in batches for number in batch) == list(range(len(questions)))
    assert [len([number for number in batch if questions[number].source == "a"]) for batch in batches] == [4, 4, 1]
    assert max(map(len, batches)) == survey._AT_ONCE


def test_examples_are_of_many_sources() -> None:
    sources = ("a", "b", "c")
    questions = [Asked(source, target, "tcp", 80) for target in ("x", "y", "z") for source in sources]
    assert [questions[number].source for number in survey._examples([range(3), range(3, 6), range(6, 9)], questions)] == ["a", "b", "c"]
