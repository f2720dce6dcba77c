"""The reports of a verification for machines: TAP and JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from netbox.cli.verify import block, summary
from netbox.packet.verifying.formats import junit, tap
from netbox.packet.verifying.run import Outcome

OUTCOMES = {
    "bridge": [Outcome("bridge", "ARP: #1 works", True, "", 0.0002), Outcome("bridge", "NAT <&>", False, 'it said "no"', 0.5)],
    "none": [Outcome("none", "nothing gets out", True)],
}


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
    assert root.attrib == {"name": "netbox verify", "tests": "3", "failures": "1"}
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
