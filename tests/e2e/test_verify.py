"""``netbox verify``: every promise is kept on this machine, a broken one is found, nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest

from tests.support.cli import Cli
from tests.support.leaks import links


def test_every_mode(cli: Cli) -> None:
    result = cli("verify", check=None)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")][:-1] == ["bridge", "ipv6", "host", "container", "none"]
    marks = [line.split()[0] for line in lines if line.startswith("  ")]
    assert set(marks) == {"✓"}
    assert lines[-1].startswith(f"this machine is sound: {len(marks)} of {len(marks)} promises kept")
    assert cli("ps", "-aq").stdout == ""
    assert "verify-" not in cli("network", "ls").stdout


def test_formats(cli: Cli) -> None:
    lines = cli("verify", "none", "--format", "tap").stdout.splitlines()
    assert lines[:2] == ["TAP version 13", f"1..{len(lines) - 2}"]
    assert all(line.startswith(f"ok {number} - none: ") for number, line in enumerate(lines[2:], 1))
    root = ElementTree.fromstring(cli("verify", "container", "--format", "junit").stdout)
    assert root.get("failures") == "0"
    assert json.loads(cli("verify", "none", "--format", "json").stdout)["passed"] is True
    cli("verify", "nonsense", check=125)


def test_a_broken_promise_is_found(cli: Cli) -> None:
    """A rule of somebody else that drops what is forwarded."""
    rule = ["FORWARD", "-j", "DROP"]
    subprocess.run(["iptables-legacy", "-t", "mangle", "-A", *rule], check=True, timeout=20)
    try:
        result = cli("verify", "bridge", check=1)
    finally:
        subprocess.run(["iptables-legacy", "-t", "mangle", "-D", *rule], check=True, timeout=20)
    assert "  ✗ NAT: a sandbox reaches another machine" in result.stdout
    assert "nothing came back, and it never arrived at lan" in " ".join(result.stdout.split())
    assert "  ✓ host: the host reaches a sandbox" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("this machine is not sound: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_after_a_signal(cli: Cli, number: int, wait_until: Callable[..., object]) -> None:
    with cli.popen("verify", "bridge") as process:
        wait_until(lambda: any(name.startswith("nblan") for name in links()) or process.poll() is not None, "the neighbour", timeout=60)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode in (128 + number, 0)
    assert cli("ps", "-aq").stdout == ""
    assert "verify-" not in cli("network", "ls").stdout


def test_what_a_killed_one_left_goes_with_the_next(cli: Cli, wait_until: Callable[..., object]) -> None:
    with cli.popen("verify", "bridge") as process:
        wait_until(lambda: any(name.startswith("nblan") for name in links()), "the neighbour", timeout=60)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert "verify-" in cli("network", "ls").stdout
    cli("verify", "none")
    assert cli("ps", "-aq").stdout == ""
    assert "verify-" not in cli("network", "ls").stdout
