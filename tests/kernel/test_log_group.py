"""NFLOG group 0 with several readers of ours, and with another program's."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.kernel.log_group import LogGroup, holder
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

TARGET = ("127.0.0.9", 9)
MEMBER = """
import os, sys
from netbox.kernel.log_group import LogGroup
group = LogGroup(os.open("/proc/self/ns/net", os.O_RDONLY))
print("ready", flush=True)
sys.stdin.read()
"""
LAST_ACT = """
import os, signal
from netbox.kernel.log_group import LogGroup
LogGroup._drop = lambda group: os.kill(os.getpid(), signal.SIGKILL)
"""
OTHER = """
import os, sys
from netbox.kernel import log_group
log = log_group._bound(os.open("/proc/self/ns/net", os.O_RDONLY))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def netns(private_host: PrivateHost) -> Iterator[int]:
    """This namespace, where datagrams to ``TARGET`` are logged to group 0, each at once."""
    rule = f"OUTPUT -d {TARGET[0]} -j NFLOG --nflog-threshold 1".split()
    subprocess.run(["iptables-legacy", "-A", *rule], check=True, timeout=20)
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)
    subprocess.run(["iptables-legacy", "-D", *rule], check=True, timeout=20)


def send(*payloads: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for payload in payloads:
            sock.sendto(payload, TARGET)


def heard(group: LogGroup, count: int) -> list[str]:
    """The payloads of the next ``count`` datagrams."""
    messages: list[bytes] = []

    def all_there() -> bool:
        messages.extend(group.read())
        return len(messages) >= count

    wait_until(all_there, f"{count} messages", timeout=30)
    return [message.rstrip(b"\0")[-3:].decode() for message in messages]


def has_stopped(pid: int) -> bool:
    """Whether every thread of a process has: a signal to the process comes to them one after the other."""
    statuses = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(status.rpartition(")")[2].split()[0] == "T" for status in statuses)


@contextlib.contextmanager
def another(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs ``code``, once it has said that it is ready."""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_every_reader_has_every_message_and_the_next_one_goes_on(netns: int) -> None:
    first, second = LogGroup(netns), LogGroup(netns)
    try:
        send(b"one")
        assert (heard(first, 1), heard(second, 1)) == (["one"], ["one"])
        send(b"two")
        assert heard(second, 1) == ["two"]  # also while the first does not read
    finally:
        first.close()
    third = None
    try:
        send(b"tri")
        assert heard(second, 1) == ["tri"]
        third = LogGroup(netns)
        send(b"for")
        assert (heard(third, 1), heard(second, 1)) == (["for"], ["for"])
    finally:
        second.close()
        if third is not None:
            third.close()
    with contextlib.closing(LogGroup(netns)) as last:
        assert last.read() == []


def test_a_killed_reader_takes_nothing_with_it(netns: int) -> None:
    with another(MEMBER) as process, contextlib.closing(LogGroup(netns)) as group, contextlib.closing(LogGroup(netns)) as bystander:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: has_stopped(process.pid), "the reader to stop")
        send(b"one")
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        send(b"two")
        assert heard(group, 2) == ["one", "two"]
        send(b"tri")
        assert heard(group, 1) == ["tri"]
        assert heard(bystander, 3) == ["one", "two", "tri"]  # though it has found the new reader only now
        send(b"for")
        assert heard(bystander, 1) == heard(group, 1) == ["for"]


def test_who_finds_the_next_reader_late_has_nothing_twice(netns: int) -> None:
    with another(MEMBER) as process, contextlib.closing(LogGroup(netns)) as group, contextlib.closing(LogGroup(netns)) as bystander:
        send(b"one")
        assert heard(group, 1) == heard(bystander, 1) == ["one"]
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        send(b"two")
        assert heard(group, 1) == ["two"]
        with contextlib.closing(LogGroup(netns)) as newcomer:
            send(b"tri")
            assert heard(newcomer, 1) == ["tri"]  # of what was before it is not told
            assert heard(bystander, 2) == ["two", "tri"]
            assert heard(group, 1) == ["tri"]
            assert [newcomer.read(), bystander.read(), group.read()] == [[], [], []]


def test_what_a_killed_reader_has_handed_on_is_there(netns: int) -> None:
    with another(MEMBER) as process, contextlib.closing(LogGroup(netns)) as group:
        send(b"one")
        wait_until(lambda: select.select(group.filenos(), [], [], 0)[0], "the message from the reader")
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        send(b"two")
        assert heard(group, 2) == ["one", "two"]
        assert group.read() == []


def test_a_reader_killed_before_it_has_done_leaves_no_message_twice(netns: int) -> None:
    with another(LAST_ACT + MEMBER) as process, contextlib.closing(LogGroup(netns)) as group:
        send(b"one")
        assert process.wait(20) == -signal.SIGKILL
        send(b"two")
        assert heard(group, 2) == ["one", "two"]
        send(b"two")  # another one that looks the same
        assert heard(group, 1) == ["two"]
        assert group.read() == []


def test_a_reader_that_was_stopped_is_waited_for_once(netns: int) -> None:
    with another(MEMBER) as process, contextlib.closing(LogGroup(netns)) as group:
        wait_until(lambda: (group.read(), not group.is_waiting)[1], "an answer")
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: has_stopped(process.pid), "the reader to stop")
        send(b"one")
        assert [(group.read(), group.is_waiting) for _ in range(300)] == [([], True)] * 300
        process.send_signal(signal.SIGCONT)
        assert heard(group, 1) == ["one"]
        wait_until(lambda: (group.read(), not group.is_waiting)[1], "an answer again")


def test_another_program_is_named(netns: int) -> None:
    with another(OTHER) as process:
        with pytest.raises(PermissionError):
            LogGroup(netns)
        assert holder(netns).endswith(f"(pid {process.pid})")
    with contextlib.closing(LogGroup(netns)):
        pass
    assert holder(netns) == ""
