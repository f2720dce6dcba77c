"""What traces set in a namespace, while others trace there too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.kernel import sysctl
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rule_trace import LOG_SYSCTL, LOG_TO_NETLINK
from netbox.packet.tracing.footprint import Footprint
from netbox.settings import Settings
from tests.support import linux

ANOTHER = """
import sys
from netbox.packet.tracing.footprint import Footprint
from netbox.settings import Settings
footprint = Footprint(Settings(run=sys.argv[1]), 0)
footprint.route_log(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def sandbox(private_host: object) -> Iterator[int]:
    """A namespace of its own with legacy tables."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with inside_netns(home):  # and back
        linux.unshare(linux.CLONE_NEWNET)
        subprocess.run(["iptables-legacy", "-L"], check=True, capture_output=True, timeout=20)
        netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield netns
    os.close(netns)
    os.close(home)


def setting(netns: int) -> str:
    with inside_netns(netns):
        return sysctl.read(LOG_SYSCTL[4])


def test_the_last_one_puts_it_back(sandbox: int, tmp_path: Path) -> None:
    before = setting(sandbox)
    first, second = (Footprint(Settings(run=str(tmp_path)), 0) for _ in range(2))
    assert first.route_log(sandbox, [4])
    assert second.route_log(sandbox, [4])
    first.close()
    assert setting(sandbox) == LOG_TO_NETLINK != before  # somebody still listens
    second.close()
    assert setting(sandbox) == before


def test_it_is_known_what_it_was_when_the_first_is_killed(sandbox: int, tmp_path: Path) -> None:
    before, own = setting(sandbox), Footprint(Settings(run=str(tmp_path)), 0)
    command = [sys.executable, "-c", ANOTHER, str(tmp_path), str(sandbox)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[sandbox]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert own.route_log(sandbox, [4])
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert setting(sandbox) == LOG_TO_NETLINK
    own.close()
    assert setting(sandbox) == before


def test_what_somebody_else_has_set_stays(sandbox: int, tmp_path: Path) -> None:
    with inside_netns(sandbox):
        sysctl.write(LOG_SYSCTL[4], LOG_TO_NETLINK)
    with Footprint(Settings(run=str(tmp_path)), 0) as own:
        own.route_log(sandbox, [4])
    assert setting(sandbox) == LOG_TO_NETLINK
