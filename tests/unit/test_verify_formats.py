"""The course of a verification without its packets, and its reports for machines: TAP and JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from netbox.cli.verify import block, summary
from netbox.packet.verifying import run
from netbox.packet.verifying.formats import junit, tap
from netbox.packet.verifying.run import Outcome

OUTCOMES = {
    "bridge": [Outcome("bridge", "ARP: #1 works", True, "", 0.0002), Outcome("bridge", "NAT <&>", False, 'it said "no"', 0.5)],
    "none": [Outcome("none", "nothing gets out", True)],
}


SKIPPED = {
    "none": [Outcome("none", "nothing gets out", True)],
    "macvlan": [Outcome("macvlan", "left out", True, "this kernel has no macvlan (CONFIG_MACVLAN)", skipped=True)],
}


def verified(monkeypatch: pytest.MonkeyPatch, *modes: str) -> dict[str, list[Outcome]]:
    """The outcomes on a kernel that has IPv6 and no macvlan, where every mode that is tried keeps its one promise."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("netbox.packet.verifying.run.forwarding.is_supported", lambda: True)
    monkeypatch.setattr("netbox.packet.verifying.run.sublinks.lacks_kind", lambda kind: kind == "macvlan")
    monkeypatch.setattr(run, "_verify_mode", lambda engine, mode, progress: [Outcome(mode, "tried", True)])
    engine: Any = None
    finished: list[str] = []
    found = run.verify(engine, modes, finished=lambda mode, outcomes: finished.append(mode))
    assert finished == list(found)
    return found


def test_a_mode_that_the_kernel_cannot_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(monkeypatch)
    assert list(found) == list(run.MODES)
    assert found.pop("macvlan") == SKIPPED["macvlan"]
    assert {outcome.title for group in found.values() for outcome in group} == {"tried"}


def test_it_is_tried_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [outcome.title for outcome in verified(monkeypatch, "macvlan", "none")["macvlan"]] == ["tried"]


def test_what_is_left_out_is_said() -> None:
    assert tap(SKIPPED).splitlines() == [
        "TAP version 13",
        "1..2",
        "ok 1 - none: nothing gets out",
        "ok 2 - macvlan: left out # SKIP this kernel has no macvlan (CONFIG_MACVLAN)",
    ]
    root = ElementTree.fromstring(junit(SKIPPED))
    assert [(suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in root] == [("1", "0", "0"), ("1", "0", "1")]
    assert [item.get("message") for item in root.iter("skipped")] == ["this kernel has no macvlan (CONFIG_MACVLAN)"]
    assert block("macvlan", SKIPPED["macvlan"]) == ["macvlan", "  left out: this kernel has no macvlan (CONFIG_MACVLAN)"]
    flat = [outcome for group in SKIPPED.values() for outcome in group]
    assert summary(flat, 1.26) == "this machine is sound: 1 of 1 promises kept in 1.3 s; left out: macvlan"


def test_tap() -> None:
    assert tap(OUTCOMES).splitlines() == [
        "TAP version 13",
        "1..3",
        "ok 1 - bridge: ARP: 1 works",
        "not ok 2 - bridge: NAT <&>",
        "  ---",
        '  message: "it said \\"no\\""',
        "  ...",
        "ok 3 - none: nothing gets out",
    ]


def test_junit() -> None:
    root = ElementTree.fromstring(junit(OUTCOMES))
    assert root.attrib == {"name": "netbox verify", "tests": "3", "failures": "1", "errors": "0", "skipped": "0"}
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in root] == [("bridge", "2", "1"), ("none", "1", "0")]
    (failure,) = root.iter("failure")
    assert failure.get("message") == 'it said "no"'
    assert [case.get("name") for case in root.iter("testcase")] == ["ARP: #1 works", "NAT <&>", "nothing gets out"]


def test_text() -> None:
    lines = block("bridge", OUTCOMES["bridge"])
    assert lines[0] == "bridge"
    assert lines[1].startswith("  ✓ ARP: #1 works")
    assert lines[2:] == ["  ✗ NAT <&>", '      it said "no"']
    flat = [outcome for group in OUTCOMES.values() for outcome in group]
    assert summary(flat, 1.26).startswith("this machine is not sound: 2 of 3 promises kept in 1.3 s; broken in bridge")
    assert summary(OUTCOMES["none"], 1).startswith("this machine is sound: 1 of 1")
