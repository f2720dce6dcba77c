"""Giving capabilities up in a child process, and what /proc/self/status says before and after exec."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from netbox.kernel import capabilities
from netbox.kernel.capabilities import ALL, DEFAULT, mask_of

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
PREAMBLE = f"""
import json, os, sys
sys.path[:0] = [{str(ROOT)!r}]
from netbox.kernel import capabilities, syscalls
from netbox.kernel.capabilities import ALL, DEFAULT, mask_of
def sets():
    lines = open("/proc/self/status").read().splitlines()
    return {{line[:6]: int(line[8:], 16) for line in lines if line.startswith("Cap")}}
def become(mask, uid):
    capabilities.limit_bounding(mask)
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    capabilities.apply(mask, uid)
def show_and_exec():
    print(json.dumps(sets()), flush=True)
    os.execv("/bin/grep", ["grep", "^Cap", "/proc/self/status"])
"""


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-I", "-c", PREAMBLE + code], capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def before_and_after_exec(code: str) -> tuple[dict[str, int], dict[str, int]]:
    first, *rest = run(code + "\nshow_and_exec()").splitlines()
    return json.loads(first), {line[:6]: int(line[8:], 16) for line in rest}


def sets(inheritable: int = 0, permitted: int = 0, bounding: int = 0, ambient: int = 0) -> dict[str, int]:
    return dict(zip(KINDS, (inheritable, permitted, permitted, bounding, ambient), strict=True))


@pytest.mark.parametrize("mask", [DEFAULT, 0, mask_of(["NET_ADMIN", "KILL", "SETPCAP"])])
def test_root_gets_the_mask(mask: int) -> None:
    before, after = before_and_after_exec(f"become({mask}, 0)")
    assert before == sets(permitted=mask, bounding=mask)
    assert after == before


@pytest.mark.parametrize("mask", [DEFAULT, 0, ALL])
def test_another_user_gets_the_bounding_set_alone(mask: int) -> None:
    before, after = before_and_after_exec(f"become({mask}, 1000)")
    assert before == sets(bounding=mask & capabilities.available())
    assert after == before


def test_all_means_all_that_this_process_has() -> None:
    before, after = before_and_after_exec("become(ALL, 0)")
    assert before == sets(permitted=capabilities.available(), bounding=capabilities.available())
    assert after == before


def test_no_new_privileges_keeps_roots_set() -> None:
    _, after = before_and_after_exec("become(DEFAULT, 0); syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)")
    assert after == sets(permitted=DEFAULT, bounding=DEFAULT)


@pytest.mark.parametrize("uid", [0, 1000])
def test_inheritable_and_ambient_sets_are_emptied(uid: int) -> None:
    raise_them = f"""
wide = mask_of(["NET_ADMIN", "SETUID", "SETGID", "SETPCAP"])
effective, permitted, _ = syscalls.capget()
syscalls.capset(effective, permitted, wide)
for number in range(41):
    if wide >> number & 1:
        syscalls.prctl(47, 2, number)  # PR_CAP_AMBIENT_RAISE
assert sets()["CapAmb"] == sets()["CapInh"] == wide
become(wide, {uid})
"""
    wide = mask_of(["NET_ADMIN", "SETUID", "SETGID", "SETPCAP"])
    before, after = before_and_after_exec(raise_them)
    assert before == sets(permitted=0 if uid else wide, bounding=wide)
    assert after == before


def test_what_was_kept_across_setuid_is_given_up() -> None:
    keep = "syscalls.prctl(8, 1)\n"  # PR_SET_KEEPCAPS
    before, after = before_and_after_exec(keep + "become(DEFAULT, 1000)")
    assert before == after == sets(bounding=DEFAULT)


def test_nothing_comes_back() -> None:
    code = """
become(DEFAULT, 0)
found = []
for wanted in ((ALL, ALL, 0), (DEFAULT, ALL, 0), (DEFAULT, DEFAULT, ALL)):
    try:
        syscalls.capset(*wanted)
        found.append(0)
    except OSError as error:
        found.append(error.errno)
print(json.dumps(found))
"""
    assert json.loads(run(code)) == [1, 1, 1]


def test_a_process_without_the_right_cannot_limit_but_may_ask_for_what_it_has() -> None:
    code = """
os.setresuid(1000, 1000, 1000)
capabilities.limit_bounding(capabilities.available())
capabilities.apply(ALL, 1000)
try:
    capabilities.limit_bounding(0)
except OSError as error:
    print(error.errno)
"""
    assert run(code).split() == ["1"]
