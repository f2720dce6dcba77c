"""``netbox check`` for real: on this machine, with fewer rights, and without a trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netbox.engine import check
from netbox.engine.checks import host
from netbox.engine.checks.catalogue import CATALOGUE
from netbox.settings import Settings
from tests.support import linux
from tests.support.cli import Cli
from tests.support.host import PrivateHost

ROOT = Path(__file__).resolve().parents[2]
KEYS = {key for rows in CATALOGUE.values() for row in rows for key in row.keys}


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def made_in_tmp(private_host: PrivateHost) -> Iterator[Callable[[], list[str]]]:
    """What the processes of this test make below /tmp, where others work as well."""
    base = private_host.root / "tmp"
    for name in ("upper", "scratch"):
        (base / name).mkdir(parents=True)
    linux.mount("overlay", "/tmp", "overlay", data=f"lowerdir=/tmp,upperdir={base}/upper,workdir={base}/scratch")

    def made() -> list[str]:
        """Less what Python compiles, where the checkout is."""
        found = [path for path in (base / "upper").rglob("*") if "__pycache__" not in path.parts]
        return [str(path) for path in found if not (path.is_dir() and any(path.rglob("__pycache__")))]

    yield made
    linux.umount("/tmp")
    shutil.rmtree(base)


def test_the_main_job_can_run_here(private_host: PrivateHost, made_in_tmp: Callable[[], list[str]]) -> None:
    before = mounts(), os.listdir("/sys/class/net")
    facts = check.facts(Settings.from_environment())
    assert [each for each in facts if each.required and each.state == "missing"] == []
    assert check.usable(facts)
    assert (mounts(), os.listdir("/sys/class/net")) == before
    assert made_in_tmp() == []


def test_every_line_of_the_catalogue_is_observed(private_host: PrivateHost) -> None:
    observed = host.observe(Settings.from_environment())
    assert set(observed) == KEYS | {"security.device_filter"}
    assert not [key for key, each in observed.items() if each.detail == "could not be tried"]


def test_command(private_host: PrivateHost, cli: Cli) -> None:
    document = json.loads(cli("check", "--format", "json").stdout)
    assert document["usable"] is True
    assert [each["name"] for each in document["facts"]] == [row.name for rows in CATALOGUE.values() for row in rows]
    assert "netbox can run here" in cli("check").stdout


def probed(before: str) -> dict[str, list[object]]:
    """The answers of the probes in a process that first did something to itself."""
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}]
from netbox.kernel import capabilities, probe, probe_network, syscalls
{before}
probe.main()
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=100, check=True)
    answers: dict[str, list[object]] = json.loads(result.stdout)
    return answers


def test_a_user_sees_what_the_kernel_has(private_host: PrivateHost) -> None:
    # PR_SET_DUMPABLE: a change of ids makes /proc/self root's; exec, which an ordinary user's process went through, does not.
    answers = probed("os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000); syscalls.prctl(4, 1)")
    assert answers["unprivileged"] == ["ok", "", 0]
    for key in ("namespace.pid", "namespace.net", "mount.overlay", "mount.proc", "network.veth", "firewall.nat", "security.seccomp"):
        assert answers[key][0] == "ok", key
    assert answers["mount.idmapped"][0] == "missing"


def test_root_without_rights_is_told_so(private_host: PrivateHost) -> None:
    answers = probed("capabilities.limit_bounding(capabilities.DEFAULT); capabilities.apply(capabilities.DEFAULT, 0)")
    assert answers["namespace.pid"] == ["missing", "Operation not permitted", 1]
    assert answers["mount.*"] == answers["network.*"] == answers["firewall.*"] == ["missing", "Operation not permitted", 1]
    assert answers["call.clone3"][0] == "ok"
    assert answers["security.capabilities"][0] == "limited"
    assert "SYS_ADMIN" in str(answers["security.capabilities"][1])
