"""``netbox verify``: every promise is kept on this machine, a broken one is found, nothing stays."""

from __future__ import annotations

import json
import signal
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from tests.support.cli import Cli
from tests.support.leaks import links
from tests.support.waiting import wait_until


def test_every_mode(cli: Cli) -> None:
    result = cli("verify", check=None, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    modes = [line for line in lines if line and not line.startswith(" ")][:-1]
    assert modes == ["bridge", "ipv6", "host", "container", "none", "macvlan", "ns"]
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
    subprocess.run(["iptables-legacy", "-t", "mangle", "-A", *rule], check=True, timeout=60)
    try:
        result = cli("verify", "bridge", check=1, timeout=110)
    finally:
        subprocess.run(["iptables-legacy", "-t", "mangle", "-D", *rule], check=True, timeout=60)
    assert "  ✗ NAT: a sandbox reaches another machine" in result.stdout
    assert "nothing came back, and it never arrived at lan" in " ".join(result.stdout.split())
    assert "  ✓ host: the host reaches a sandbox" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("this machine is not sound: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_after_a_signal(cli: Cli, number: int) -> None:
    with cli.popen("verify", "bridge") as process:
        wait_until(lambda: any(name.startswith("nblan") for name in links()) or process.poll() is not None, "the neighbour", timeout=60)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode in (128 + number, 0)
    assert cli("ps", "-aq").stdout == ""
    assert "verify-" not in cli("network", "ls").stdout


def test_what_a_killed_one_left_goes_with_the_next(cli: Cli) -> None:
    def leaves_something() -> bool:
        """Not where it was over before the signal came."""
        with cli.popen("verify", "bridge") as process:
            wait_until(lambda: any(name.startswith("nblan") for name in links()) or process.poll() is not None, "the neighbour")
            process.kill()
            process.communicate(timeout=60)
        return "verify-" in cli("network", "ls").stdout

    wait_until(leaves_something, "one that is killed in the middle")
    cli("verify", "none")
    assert cli("ps", "-aq").stdout == ""
    assert "verify-" not in cli("network", "ls").stdout
