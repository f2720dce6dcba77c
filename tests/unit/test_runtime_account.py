"""Users, environment, commands and status files of a sandbox: what needs no process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.runtime import init, privileges, status
from netbox.runtime.failure import Failure

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
bob:x:1000:1001:Bob:/home/bob:/bin/sh
1000:x:77:78::/digits:/bin/sh
bad
#no:x:5:5::/:
broken:x:many:1::/:
"""
GROUP = "root:x:0:root\nbob:x:1001:\ncrew:x:2000:alice,bob\nmore:x:2001:bob\n2000:x:99:\nbad\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, (0,), "/root")),
        ("root", (0, 0, (0,), "/root")),
        ("0", (0, 0, (0,), "/root")),
        ("bob", (1000, 1001, (2000, 2001), "/home/bob")),
        ("bob:crew", (1000, 2000, (), "/home/bob")),
        ("bob:4000", (1000, 4000, (), "/home/bob")),
        ("bob:2000", (1000, 99, (), "/home/bob")),  # a name of digits wins over the number
        ("1000", (77, 78, (), "/digits")),
        ("4711", (4711, 0, (), "/")),
        ("4711:4712", (4711, 4712, (), "/")),
        (":crew", (0, 2000, (), "/root")),
    ],
)
def test_find_account(user: str, expected: tuple[int, int, tuple[int, ...], str]) -> None:
    assert privileges.find_account(user, PASSWD, GROUP) == expected


@pytest.mark.parametrize("user", ["nobody", "bob:nogroup", "#no", "broken", "4294967295", "-1", "1:99999999999", "1.5", "bob:-1", "²"])
def test_accounts_that_do_not_exist(user: str) -> None:
    with pytest.raises(Failure) as failure:
        privileges.find_account(user, PASSWD, GROUP)
    assert failure.value.stage == "user"


def test_without_files_only_numbers_work() -> None:
    assert privileges.find_account("5:6", "", "") == (5, 6, (), "/")
    assert privileges.find_account("", "", "") == (0, 0, (), "/")


@given(st.text(max_size=30), st.text(max_size=200), st.text(max_size=200))
def test_any_text_gives_an_account_or_a_failure(user: str, passwd: str, group: str) -> None:
    try:
        uid, gid, groups, home = privileges.find_account(user, passwd, group)
    except Failure:
        return
    assert all(0 <= number < 2**32 - 1 for number in (uid, gid, *groups))
    assert home


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/forwarding", "net/ipv4/conf/eth0.5/forwarding"),
        ("net.ipv4.conf.eth0/5.forwarding", "net/ipv4/conf/eth0.5/forwarding"),
        ("kernel", "kernel"),
    ],
)
def test_sysctl_names(name: str, path: str) -> None:
    assert init.sysctl_path(name) == path


def test_environment_has_a_home_and_the_last_word_wins() -> None:
    assert init.environment_of(["A=1", "B=x=y", "A=2", "C="], "/home/bob") == {"A": "2", "B": "x=y", "C": "", "HOME": "/home/bob"}
    assert init.environment_of(["HOME=/mine"], "/home/bob") == {"HOME": "/mine"}


def test_candidates_of_a_command() -> None:
    assert init.candidates("ls", {"PATH": "/a:/b::/c"}) == ["/a/ls", "/b/ls", "./ls", "/c/ls"]
    assert init.candidates("./ls", {"PATH": "/a"}) == ["./ls"]
    assert init.candidates("ls", {})[0].startswith("/usr/local/sbin/")


def test_execute_reports_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    (tmp_path / "plain").chmod(0o644)
    (tmp_path / "garbage").write_text("neither")
    (tmp_path / "garbage").chmod(0o755)
    (tmp_path / "script").write_text("#!/no/interpreter/here\n")
    (tmp_path / "script").chmod(0o755)
    environment = {"PATH": f"/nowhere:{tmp_path}"}
    for name, number, words in (
        ("none", 2, ""),
        ("plain", 13, ""),
        ("garbage", 8, ""),
        ("script", 2, "interpreter"),
        ("", 2, ""),
        ("a\0b", 22, "null"),
    ):
        with pytest.raises(Failure) as failure:
            init.execute([name], environment)
        assert (failure.value.stage, failure.value.number) == ("exec", number)
        assert words in failure.value.message


def test_find_looks_before_a_reaper_would(tmp_path: Path) -> None:
    (tmp_path / "ok").write_text("#!/bin/sh\n")
    (tmp_path / "ok").chmod(0o755)
    environment = {"PATH": str(tmp_path)}
    init.find("ok", environment)
    init.find(f"{tmp_path}/ok", environment)
    for name, number in (("none", 2), (str(tmp_path), 13)):
        with pytest.raises(Failure) as failure:
            init.find(name, environment)
        assert failure.value.number == number


def test_status_is_read_back_and_replaced_whole(tmp_path: Path) -> None:
    directory = str(tmp_path)
    assert status.read_status(directory) is None
    assert status.read_status(f"{directory}/none") is None
    status.write_status(directory, {"state": "running", "pid": 5, "started_at": 1.5})
    assert status.read_status(directory) == status.Status("running", 5, None, None, 1.5, None, None, None)
    status.write_status(directory, {"state": "exited", "exit_code": 137, "signal": 9})
    assert status.read_status(directory) == status.Status("exited", None, None, None, None, 137, 9, None)
    assert os.listdir(directory) == ["status.json"]
    (tmp_path / "status.json").write_text("{damaged")
    assert status.read_status(directory) is None


def test_the_lock_is_exclusive_and_can_be_tested(tmp_path: Path) -> None:
    directory = str(tmp_path)
    assert not status.is_locked(directory)
    held = status.acquire_lock(directory)
    assert held is not None
    assert status.is_locked(directory)
    assert status.acquire_lock(directory) is None
    copy = os.dup(held)
    os.close(held)
    assert status.is_locked(directory)  # the open file holds it, not the process
    os.close(copy)
    assert not status.is_locked(directory)


def test_start_time_of_a_process() -> None:
    own = status.start_time(os.getpid())
    assert own == int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    with pytest.raises(FileNotFoundError):
        status.start_time(4194305)
