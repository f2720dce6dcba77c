"""What is read out of /proc: the parsers, and the real thing about this process and its children."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.kernel import processes, socket_table

NUMBERS = "0 -1 4194560 100 0 0 0 {user} {system} 0 0 20 0 1 0 {start} 9000000 {resident} 18446744073709551615"
NO_PID = 4194304  # one above the highest, proc(5)


def stat_line(command: str, user: int = 7, system: int = 3, start: int = 4242, resident: int = 25) -> str:
    return f"12 ({command}) S 1 12 12 {NUMBERS.format(user=user, system=system, start=start, resident=resident)}\n"


@given(st.text(max_size=15), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**60), st.integers(0, 2**40))
def test_stat_survives_any_command(command: str, user: int, system: int, start: int, resident: int) -> None:
    stat = processes.parse_stat(stat_line(command, user, system, start, resident))
    assert stat == processes.Stat(command, "S", 1, user + system, start, resident)


@given(st.text(max_size=80))
def test_stat_is_parsed_or_refused(text: str) -> None:
    with pytest.raises(ValueError):
        processes.parse_stat(text)


def test_stat_that_is_cut_short() -> None:
    with pytest.raises(ValueError, match="cut short"):
        processes.parse_stat("1 (a) S 0 1 1")


def test_status() -> None:
    text = "Name:\tsh\nPid:\t70\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t70\t9\t1\n"
    assert processes.parse_status(text) == (1001, 1)
    assert processes.parse_status(text.replace("NSpid", "Other")) == (1001, 70)
    for line in text.splitlines(keepends=True)[2:3]:
        with pytest.raises(ValueError):
            processes.parse_status(text.replace(line, ""))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sh\0-c\0echo a\0", "sh -c echo a"),
        ("", ""),
        ("\0\0", ""),
        ("a\0\0b\0", "a  b"),
        ("x\x1b[31m\n\0", "x?[31m?"),
        ("title only", "title only"),
    ],
)
def test_command_line(text: str, line: str) -> None:
    assert processes.parse_command_line(text) == line


@given(st.lists(st.text(min_size=1, max_size=5)))
def test_command_line_is_one_printable_line(words: list[str]) -> None:
    assert processes.parse_command_line("\0".join(words)).isprintable()


def test_start_time_tells_processes_apart() -> None:
    own = processes.start_time(os.getpid())
    assert own is not None
    assert own == processes.start_time(os.getpid())
    assert own <= time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert processes.start_time(NO_PID) is None


def test_rows_of_running_processes() -> None:
    before = time.time()
    program = [sys.executable, "-I", "-S", "-c", "print(flush=True); input()", "an argument"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()  # the program runs, not the copy of this process before its exec
            rows = processes.process_rows([child.pid, NO_PID, os.getpid()])
        finally:
            child.communicate(b"\n")
    assert [row.pid for row in rows] == [os.getpid(), child.pid]
    row = rows[1]
    assert (row.parent, row.uid, row.inner_pid) == (os.getpid(), os.geteuid(), child.pid)
    assert row.command.endswith("an argument")
    assert row.state in "RSD"
    assert row.resident > 0
    assert before - 1 < row.started_at < time.time() + 1
    assert row.cpu_percent >= 0


def test_a_zombie_has_a_row() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    row = processes.process_rows([child.pid])[0]
    child.wait()
    assert (row.state, row.command, row.resident) == ("Z", "[true]", 0)


TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31337 1 0000000000000000 100 0 0 10 0
   1: 0200000A:1F90 0300000A:C001 01 00000000:00000000 00:00000000 00000000     0        0 31338 1 0000000000000000 20 4 30 10 -1
  sl is no number
   2: XYZ:1F90 00000000:0000 0A 0 0 0 0 0 31339
"""


def test_socket_table() -> None:
    if sys.byteorder == "little":
        assert socket_table.parse(TABLE) == [
            socket_table.SocketRow("127.0.0.1", 8080, 0x0A, 31337),
            socket_table.SocketRow("10.0.0.2", 8080, 0x01, 31338),
        ]


@given(st.text(max_size=200))
def test_socket_table_takes_any_text(text: str) -> None:
    assert isinstance(socket_table.parse(text), list)


@pytest.mark.parametrize(
    ("bound", "wanted", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::", "127.0.0.1", True),
        ("::1", "127.0.0.1", False),
        ("::1", "0.0.0.0", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("fe80::1", "::", True),
    ],
)
def test_conflicts(bound: str, wanted: str, expected: bool) -> None:
    assert socket_table.conflicts(bound, wanted) is expected


def _bind_alone(sock: socket.socket, address: str) -> int:
    """Binds to a port that no other program here has with any protocol. Below the ephemeral ones: nobody takes it by chance later."""
    start = 12000 + os.getpid() % 2000 * 8
    for port in range(start, start + 4000):
        if not socket_table.busy("tcp", port) and not socket_table.busy("udp", port):
            with contextlib.suppress(OSError):
                sock.bind((address, port))
                return port
    raise AssertionError("every port is taken")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_holder_of_a_port(protocol: str, kind: int, family: int) -> None:
    address = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.socket(family, kind) as sock:
        port = _bind_alone(sock, address)
        if protocol == "tcp":
            sock.listen()
        with open("/proc/self/comm", encoding="utf-8") as file:
            expected = f"{file.read().strip()} (pid {os.getpid()})"
        assert processes.port_holder(protocol, port) == expected
        assert processes.port_holder(protocol, port, address) == expected
        assert processes.port_holder(protocol, port, "192.0.2.1") is None
        assert processes.port_holder("udp" if protocol == "tcp" else "tcp", port, address) is None
    assert processes.port_holder(protocol, port, address) is None


def test_holder_of_another_protocol() -> None:
    with pytest.raises(UsageError, match="'dccp'"):
        processes.port_holder("dccp", 80)


def test_endpoints_of_sctp() -> None:
    text = (
        " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS\n"
        "00000000 00000000 2   10  29   3868     0 24601 0.0.0.0 \n"
        "00000000 00000000 2   7   30   3869     0 24602 198.51.100.2 2001:db8::2 \n"
        "nonsense\n"
    )
    assert socket_table.parse_sctp(text) == [
        socket_table.SocketRow("0.0.0.0", 3868, 10, 24601),
        socket_table.SocketRow("198.51.100.2", 3869, 7, 24602),
        socket_table.SocketRow("2001:db8::2", 3869, 7, 24602),
    ]


def test_block_bytes_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {7: "rchar: 9\nread_bytes: 1\nwrite_bytes: 20\ncancelled_write_bytes: 5\n", 8: "read_bytes: 2\nwrite_bytes: 40\n"}
    monkeypatch.setattr(processes, "read", lambda pid, name: texts.get(pid, "") if name == "io" else "")
    assert processes.block_bytes([7, 8, 9]) == (3, 60)


def test_block_bytes_of_this_process() -> None:
    assert min(processes.block_bytes([os.getpid()])) >= 0
    assert processes.block_bytes([NO_PID]) == (0, 0)
