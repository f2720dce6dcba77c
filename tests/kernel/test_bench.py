"""The benchmark runs, and leaves nothing, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import cgroups
from tests.support.host import PrivateHost

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(private_host: PrivateHost, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(*options: str) -> subprocess.Popen[str]:
        env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
        argv = [sys.executable, "-m", "tests.bench", *options]
        return subprocess.Popen(argv, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


def test_the_floor_and_the_command_in_json(bench: Callable[..., subprocess.Popen[str]], private_host: PrivateHost, tmp_path: Path) -> None:
    process = bench("--only", "floor", "--only", "netbox", "--only", "run-bridge", "--rounds", "2", "--format", "json")
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    document = json.loads(out)
    assert document["failures"] == []
    assert set(document["versions"]) == {"floor", "netbox"}
    figure = next(figure for figure in document["figures"] if figure["name"] == "run-bridge")
    assert {subject: len(value["samples"]) for subject, value in figure["subjects"].items()} == {"netbox": 2, "floor": 2}
    for value in figure["subjects"].values():  # which of the two is faster is not certain on a machine that does something else as well
        assert 0 < min(value["samples"]) <= value["median"] <= max(value["samples"])
    assert list(tmp_path.iterdir()) == []
    assert cgroups.below(private_host.cgroup) == set()


def test_an_interrupted_run_leaves_nothing(
    bench: Callable[..., subprocess.Popen[str]], private_host: PrivateHost, tmp_path: Path, wait_until: Callable[..., object]
) -> None:
    process = bench("--only", "floor", "--rounds", "1000000")
    wait_until(lambda: any(path.name == "floor" for path in map(Path, cgroups.below(private_host.cgroup))), "the first round", timeout=60)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=110)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert cgroups.below(private_host.cgroup) == set()


@pytest.mark.parametrize("options", [("--only", "nothing"), ("--rounds", "0"), ("--format", "xml")])
def test_nonsense_is_refused(bench: Callable[..., subprocess.Popen[str]], options: tuple[str, ...]) -> None:
    process = bench(*options)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert options[0] in errors


def test_the_bench_of_captures(private_host: PrivateHost, tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    argv = [sys.executable, "-m", "tests.bench.capture", "--rate", "2000", "--seconds", "0.5", "--check"]
    result = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=110, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1000 received; 4000 sightings on 4 interfaces recorded\n0 dropped by the kernel, 0 missing" in result.stdout
    assert list(tmp_path.iterdir()) == []
    assert cgroups.below(private_host.cgroup) == set()
