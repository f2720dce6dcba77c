"""Many questions at one moment, such as those of a matrix: what they share is found out once, and each answer is still its own.

The facts of all are taken from one look at the state and the kernel, and each question is predicted from them. Those that should fail at
the same rule, or at the same listener, and of which a probe brought the same answer, have one cause: one of them is asked in full, with
packets that are followed. When that confirms what was expected, the others are answered from their own prediction and their own probe;
else, and for causes that belong to one source, each is asked in full. Those that are asked in full are asked many at once: most of their
time is waiting for answers that do not come.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from netbox.errors import NetboxError
from netbox.packet import finding
from netbox.packet.diagnosis.api import Question, answers, request_of
from netbox.packet.diagnosis.asking import Kernel
from netbox.packet.diagnosis.boxes import Records
from netbox.packet.diagnosis.explain import explain
from netbox.packet.diagnosis.gather import Gatherer
from netbox.packet.diagnosis.predict import predict
from netbox.packet.diagnosis.values import LAN, NOT_ASKED, REACHED, Answer, Facts, Observation, Prediction

if TYPE_CHECKING:
    from netbox.engine import Engine
    from netbox.packet.lan import Neighbour

_AT_ONCE = 32  # questions that are asked in full
_OF_A_PAIR = 4  # of those with the same source and target: a kernel sends six ICMP errors at once to the same machine (icmp_ratelimit)
# Causes that lie on the host or at the target, and how many sources meet them does not matter.
_SHARED = frozenset(
    {
        "no-network",
        "internal-network",
        "other-network",
        "target-not-running",
        "target-paused",
        "published-elsewhere",
        "not-published",
        "foreign-rule",
        "own-rule",
        "backlog-full",
        "listening-elsewhere",
        "not-listening",
    }
)


class Asked(NamedTuple):
    """A question, and what a probe brought: ``outcome`` is one of those of ``values`` (``NOT_ASKED`` where none was sent)."""

    source: str
    target: str
    protocol: str
    port: int | None = None
    outcome: str = NOT_ASKED
    said: str = ""


class _Foreseen(NamedTuple):
    """A question with its facts and what is expected; ``key`` is equal for those of one cause, ``None`` for one that stands alone."""

    facts: Facts
    prediction: Prediction
    key: tuple[object, ...] | None


def survey(
    engine: Engine, questions: Sequence[Asked], timeout: float, answered: Callable[[], None] = lambda: None
) -> list[Answer | NetboxError]:
    """Why each of them fails, in their order; an error stands for a question that cannot be asked (any more). ``timeout`` is in seconds,
    for each packet. ``answered`` is called for every answer.
    """
    results: dict[int, Answer | NetboxError] = {}

    def settle(number: int, found: Answer | NetboxError) -> None:
        results[number] = found
        answered()

    def ask(numbers: Sequence[int]) -> None:
        for some in _batches(questions, numbers):
            for number, found in zip(some, _in_full(engine, [questions[number] for number in some], timeout), strict=True):
                settle(number, found)

    foreseen = _foreseen(engine, questions, timeout)
    groups: dict[tuple[object, ...], list[int]] = {}
    for number in range(len(questions)):
        found = foreseen.get(number)
        groups.setdefault(("alone", number) if found is None or found.key is None else found.key, []).append(number)
    examples = _examples(groups.values(), questions)
    ask(examples)
    rest: list[int] = []
    for members, example in zip(groups.values(), examples, strict=True):
        for number in members:
            if number == example:
                continue
            own = _alike(questions[number], foreseen[number], results[example])
            if own is None:
                rest.append(number)
            else:
                settle(number, own)
    ask(rest)
    return [results[number] for number in range(len(questions))]


def _in_full(engine: Engine, questions: Sequence[Asked], timeout: float) -> list[Answer | NetboxError]:
    """The answers to some questions, each with its own facts and packets. What keeps one from being asked is its answer."""
    try:
        asked = [Question(item.source, *request_of(item.target, item.protocol, item.port, timeout=timeout)) for item in questions]
        return answers(engine, asked)
    except NetboxError as error:
        if len(questions) == 1:
            return [error]
        return [found for item in questions for found in _in_full(engine, [item], timeout)]


def _examples(groups: Iterable[Sequence[int]], questions: Sequence[Asked]) -> list[int]:
    """One question of each group, by turns of another source, so that no kernel has to send many ICMP errors to the same one."""
    used: Counter[str] = Counter()
    found = []
    for members in groups:
        found.append(min(members, key=lambda number: used[questions[number].source]))
        used[questions[found[-1]].source] += 1
    return found


def _batches(questions: Sequence[Asked], numbers: Sequence[int]) -> Iterator[list[int]]:
    """The questions that are asked at once."""
    left = deque(numbers)
    while left:
        batch: list[int] = []
        pairs: Counter[tuple[str, str]] = Counter()
        later = []
        while left and len(batch) < _AT_ONCE:
            number = left.popleft()
            pair = (questions[number].source, questions[number].target)
            if pairs[pair] < _OF_A_PAIR:
                pairs[pair] += 1
                batch.append(number)
            else:
                later.append(number)
        left.extendleft(reversed(later))
        yield batch


def _alike(question: Asked, foreseen: _Foreseen, example: Answer | NetboxError) -> Answer | None:
    """The answer to a question by what an example of its group showed; ``None`` when that says nothing about it."""
    if isinstance(example, NetboxError) or not example.agreed or example.reachable:
        return None
    blocked = foreseen.prediction.blocked
    if blocked is None or example.cause != blocked.cause:
        return None
    seen = example.observation
    own = Observation(question.outcome, question.said, place=seen.place, owner=seen.owner, foreign=seen.foreign, reason=seen.reason)
    found = explain(foreseen.facts, foreseen.prediction, own)
    return found if found.agreed and found.cause == example.cause and not found.reachable else None


def _foreseen(engine: Engine, questions: Sequence[Asked], timeout: float) -> dict[int, _Foreseen]:
    """What is expected of the questions; those of which it cannot be said are missing."""
    found: dict[int, _Foreseen] = {}
    with ExitStack() as stack:
        kernel = stack.enter_context(Kernel(remember=True))
        records = Records(engine, remember=True)
        lan = None
        if any(LAN in (item.source, item.target) for item in questions):
            lan = stack.enter_context(finding.source(engine, LAN)).neighbour
        for number, facts in _facts(records, kernel, questions, timeout, lan):
            prediction = predict(facts)
            found[number] = _Foreseen(facts, prediction, _key(questions[number], prediction))
    return found


def _facts(
    records: Records, kernel: Kernel, questions: Sequence[Asked], timeout: float, lan: Neighbour | None
) -> Iterator[tuple[int, Facts]]:
    for number, item in enumerate(questions):
        try:
            name, request = request_of(item.target, item.protocol, item.port, timeout=timeout)
            gatherer = Gatherer(records, kernel, item.source, name, request, lan)
        except NetboxError:
            continue  # asked by itself it says what is wrong
        try:
            yield number, gatherer.gather()
        except NetboxError:
            continue
        finally:
            gatherer.opened.close()


def _key(question: Asked, prediction: Prediction) -> tuple[object, ...] | None:
    """What questions with one cause have in common."""
    blocked = prediction.blocked
    if blocked is None or blocked.cause not in _SHARED or blocked.uncertain or question.outcome in REACHED:
        return None
    where = (blocked.place,) if blocked.place else (question.target, question.protocol, question.port)
    kind = question.source if question.source in ("host", LAN) else ""
    return blocked.cause, kind, question.outcome, *where
