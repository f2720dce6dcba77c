"""netbox.testing without an engine: owners, labels, orphans, waiting."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

import pytest

from netbox import testing
from netbox.errors import HostError, NotFound


class FakeSandbox:
    def __init__(self, name: str, labels: dict[str, str], error: Exception | None = None) -> None:
        self.name = name
        self.labels = labels
        self.error = error
        self.removed = False

    def remove(self, force: bool = False) -> None:
        assert force
        if self.error is not None:
            raise self.error
        self.removed = True


class FakeEngine:
    def __init__(self, *sandboxes: FakeSandbox) -> None:
        self.sandboxes = list(sandboxes)
        self.created: list[dict[str, Any]] = []

    def list(self, all: bool, filters: Any) -> list[FakeSandbox]:
        assert all
        assert filters == [("label", testing.OWNER_LABEL)]
        return self.sandboxes

    def create(self, image: str, *command: str, **options: Any) -> FakeSandbox:
        self.created.append(options)
        return self.sandboxes[len(self.created) - 1]


def test_an_owner_is_this_process_and_no_other() -> None:
    pid, _, start = testing.owner().partition("-")
    assert int(pid) == os.getpid()
    assert int(start) > 0
    assert testing.owner(2**22 + 1) == ""


def test_orphans_are_those_whose_process_is_gone_or_another_one() -> None:
    pid = os.getpid()
    sandboxes = {
        "mine": FakeSandbox("mine", {testing.OWNER_LABEL: testing.owner()}),
        "gone": FakeSandbox("gone", {testing.OWNER_LABEL: f"{2**22 + 1}-5"}),
        "reused": FakeSandbox("reused", {testing.OWNER_LABEL: f"{pid}-1"}),
        "odd": FakeSandbox("odd", {testing.OWNER_LABEL: "x"}),
        "raced": FakeSandbox("raced", {testing.OWNER_LABEL: "1-0"}, NotFound("no such sandbox")),
    }
    assert testing.remove_orphans(FakeEngine(*sandboxes.values())) == ["gone", "reused", "odd"]  # type: ignore[arg-type]
    assert not sandboxes["mine"].removed


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, []), ("a=b", ["a=b"]), ({"a": "b", "c": "d"}, ["a=b", "c=d"]), (["a=b"], ["a=b"]), ([("a", "b")], ["a=b"])],
)
def test_labels_of_every_form_are_kept_beside_the_owner(given: Any, expected: list[str]) -> None:
    engine = FakeEngine(FakeSandbox("one", {}))
    testing.SandboxFactory(engine).create("busybox", labels=given)  # type: ignore[arg-type]
    assert engine.created == [{"labels": [*expected, f"{testing.OWNER_LABEL}={testing.owner()}"]}]


def test_every_sandbox_is_removed_whatever_the_others_say() -> None:
    sandboxes = [
        FakeSandbox("first", {}),
        FakeSandbox("stuck", {}, HostError("cannot remove stuck: Device or resource busy")),
        FakeSandbox("gone", {}, NotFound("no such sandbox: gone")),
        FakeSandbox("last", {}),
    ]
    factory = testing.SandboxFactory(FakeEngine(*sandboxes))  # type: ignore[arg-type]
    for _ in sandboxes:
        factory.create("busybox")
    with pytest.raises(ExceptionGroup) as caught:
        factory.remove_all()
    assert [str(error) for error in caught.value.exceptions] == ["cannot remove stuck: Device or resource busy"]
    assert [sandbox.removed for sandbox in sandboxes] == [True, False, False, True]
    factory.remove_all()  # nothing is left to do


def test_waiting_for_a_port() -> None:
    address = "127.88.0.1"  # nobody else takes the port here once it is closed
    with socket.create_server((address, 0)) as listener:
        port = listener.getsockname()[1]
        testing.wait_for_port(address, port, timeout=60)
    with pytest.raises(TimeoutError, match=rf"{re.escape(address)}:{port} accepted no connection within 0\.1 s: "):
        testing.wait_for_port(address, port, timeout=0.1)
