"""``netbox stats``, ``top`` and ``show``: what a sandbox uses, measured under load."""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netbox.engine import Engine, Sandbox
from netbox.testing import wait_for_port
from tests.e2e.boxes import wait_for_log
from tests.support.cli import Cli
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

MIB = 1 << 20


def run(engine: Engine, script: str, name: str = "box", **options: object) -> Sandbox:
    """A running sandbox whose script has said that it is ready."""
    sandbox = engine.run("busybox", "sh", "-c", script, name=name, **{"network": "none", **options})  # type: ignore[arg-type]
    wait_for_log(sandbox, "ready")
    return sandbox


def measure(cli: Cli, name: str = "box") -> dict[str, Any]:
    (found,) = json.loads(cli("stats", "--no-stream", "--format", "json", name).stdout)
    return dict(found)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory that is not in memory."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("NETBOX_TEST_DISK", "/var/tmp")) as path:
        yield Path(path)


def test_cpu(cli: Cli, engine: Engine) -> None:
    with run(engine, "echo ready; while :; do :; done", cpus=0.5) as busy, run(engine, "echo ready; sleep 1000", "idle"):

        def used(name: str, least: float, most: float) -> dict[str, Any]:
            """Again where the small window has shown only work of other processes, or a process that was still starting."""
            return found if least <= (found := measure(cli, name))["cpu_percent"] < most else {}

        first = wait_until(lambda: used("box", 1, 100), "half a processor")
        assert 0 < first["cpu_ns"] < (time.time() - (busy.started_at or 0)) * 1e9
        wait_until(lambda: used("idle", 0, 1), "idleness")
        wait_until(lambda: busy.stats().cpu_ns > first["cpu_ns"], "more use")


def test_memory(cli: Cli, engine: Engine) -> None:
    with run(engine, "head -c 20m /dev/zero > /dev/shm/file; echo ready; sleep 1000", memory="64m") as sandbox:
        found = measure(cli)
        assert 20 * MIB <= found["memory"] <= 40 * MIB
        assert found["memory_limit"] == 64 * MIB
        row = cli("stats", "--no-stream", "box").stdout.splitlines()[1]
        assert re.search(r"\b2\d(\.\d)?MiB / 64MiB", row)
        sandbox.exec("rm", "/dev/shm/file")
        wait_until(lambda: sandbox.stats().memory < 20 * MIB, "the memory to be given back")


def test_pids(cli: Cli, engine: Engine) -> None:
    with run(engine, "sleep 1000 & sleep 1000 & echo ready; wait", pids_limit=30):
        found = measure(cli)
        assert (found["pids"], found["pids_limit"]) == (3, 30)
        assert cli("stats", "--no-stream", "box").stdout.splitlines()[1].endswith(" 3/30")


def test_block_io(cli: Cli, engine: Engine, disk: Path) -> None:
    write = "dd if=/dev/zero of=/data/x bs=1M count=8 oflag=direct"
    script = f"{write}; dd if=/data/x of=/dev/null bs=1M count=4 iflag=direct; echo ready; sleep 1000"
    with run(engine, script, volumes=[f"{disk}:/data"]):
        found = measure(cli)
        assert 8 * MIB <= found["block_written"] <= 12 * MIB
        assert 4 * MIB <= found["block_read"] <= 8 * MIB


def test_network(cli: Cli, engine: Engine) -> None:
    script = "head -c 3000000 /dev/zero > /tmp/file; echo ready; exec httpd -f -p 80 -h /tmp"
    with run(engine, script, network="bridge") as sandbox:
        address = str(sandbox.ip_address)
        wait_for_port(address, 80, 60)
        before = measure(cli)
        with urllib.request.urlopen(f"http://{address}/file", timeout=60) as answer:
            assert len(answer.read()) == 3_000_000
        after = measure(cli)
        assert 3_000_000 <= after["tx_bytes"] - before["tx_bytes"] <= 4_000_000
        assert 0 < after["rx_bytes"] - before["rx_bytes"] < 1_000_000
        assert after["tx_packets"] > before["tx_packets"]
        assert after["rx_packets"] > before["rx_packets"]


def test_in_every_mode(cli: Cli, engine: Engine) -> None:
    with run(engine, "echo ready; sleep 1000", "target", network="bridge") as target:
        target.exec("ping", "-c", "1", str(target.network_plan["endpoints"][0]["gateway"]))
        for mode, silent in (("none", True), ("host", False), ("container:target", False)):
            with run(engine, "echo ready; sleep 1000", network=mode):
                found = measure(cli)
                assert (found["rx_bytes"] == 0) is silent, mode
                assert (found["tx_bytes"] == 0) is silent, mode


def test_all_that_run(cli: Cli, engine: Engine) -> None:
    header = ["ID", "NAME", "CPU", "%", "MEMORY", "/", "LIMIT", "MEM", "%", "NET", "IN", "/", "OUT", "PACKETS", "IN", "/", "OUT"]
    assert cli("stats", "--no-stream").stdout.split() == [*header, "BLOCK", "READ", "/", "WRITTEN", "PIDS"]
    with (
        run(engine, "echo ready; sleep 1000", "one") as one,
        run(engine, "echo ready; sleep 1000", "two") as two,
        engine.create("busybox", "true", name="three"),
    ):
        lines = cli("stats", "--no-stream").stdout.splitlines()[1:]
        assert [line.split()[:2] for line in lines] == [[two.short_id, "two"], [one.short_id, "one"]]
        two.pause()
        assert [found["name"] for found in json.loads(cli("stats", "--no-stream", "--format", "json").stdout)] == ["two", "one"]
        assert [line.split()[1] for line in cli("stats", "--no-stream", "one").stdout.splitlines()[1:]] == ["one"]


@pytest.mark.parametrize("verb", [("stats", "--no-stream"), ("stats",), ("top",)], ids=" ".join)
def test_what_does_not_run_has_none(cli: Cli, engine: Engine, verb: tuple[str, ...]) -> None:
    with engine.create("busybox", "true", name="box"):
        assert cli(*verb, "box", check=125).stderr == f"netbox {verb[0]}: box does not run; start it first (netbox start box)\n"
    assert "no such sandbox: box" in cli(*verb, "box", check=125).stderr


def test_a_stream_of_documents(cli: Cli, engine: Engine) -> None:
    with run(engine, "echo ready; while :; do :; done", cpus=0.2) as sandbox, cli.popen("stats", "--format", "json", "box") as child:
        assert child.stdout is not None
        (first,), (second,) = (json.loads(child.stdout.readline()) for _ in range(2))
        assert second["time"] > first["time"]
        # On a busy machine it may get no time between two of them.
        later = (json.loads(line)[0] for line in itertools.islice(child.stdout, 30))
        assert second["cpu_ns"] > first["cpu_ns"] or any(found["cpu_ns"] > first["cpu_ns"] for found in later)
        sandbox.kill()
        assert child.communicate(timeout=60)[1] == ""  # it ends with the sandbox that was named
        assert child.returncode == 0


def test_the_live_display(cli: Cli, engine: Engine, terminal: Callable[..., Terminal]) -> None:
    window = terminal(rows=24, columns=140)
    before = window.settings()
    with run(engine, "echo ready; sleep 1000", "one"):
        window.type("echo before; " + " ".join([*cli.command, "stats; echo code=$?"]))
        window.expect(" one ")
        with run(engine, "echo ready; sleep 1000", "two"):
            window.expect(" two ")
            wait_until(lambda: window.screen().count("MEMORY / LIMIT") == 1, "the table to be redrawn in its place")
        wait_until(lambda: " two " not in window.screen(), "the row to go")
        window.expect(" one ")
        window.press("C-c")
        screen = window.expect("code=0")
        assert screen.count("MEMORY / LIMIT") == 1
        assert "before" in screen
        assert window.settings() == before


def test_top(cli: Cli, engine: Engine) -> None:
    with run(engine, "sleep 1000 & echo ready; wait", user="1000", init=True) as sandbox:
        # The shell says "ready" after the fork, and its child may still be a shell then.
        wait_until(lambda: "sleep 1000" in [row.command for row in sandbox.top()], "the shell's child to be sleep")
        header, *rows = cli("top", "box").stdout.splitlines()
        assert header.split() == ["PID", "INSIDE", "USER", "STATE", "%CPU", "TIME", "MEMORY", "STARTED", "COMMAND"]
        assert len(rows) == 3
        found = json.loads(cli("top", "--format", "json", "box").stdout)
        assert found[0]["pid"] == sandbox.pid
        assert found[0]["inner_pid"] == 1
        assert {row["uid"] for row in found} == {1000}
        assert {row["command"] for row in found} >= {"sleep 1000", "sh -c sleep 1000 & echo ready; wait"}
        assert all(row["resident"] > 0 for row in found)


def card(cli: Cli, name: str = "box") -> dict[str, str]:
    """The lines of the card: what stands left and right."""
    lines = cli("show", name).stdout.splitlines()
    assert len({len(line) for line in lines}) == 1
    return dict(re.split(r" {2,}", line.strip("│ "), maxsplit=1) for line in lines[1:-1])


def test_show_has_every_line(cli: Cli, engine: Engine) -> None:
    with run(engine, "echo ready; sleep 1000", network="bridge", ports=["18080:80"], memory="64m", pids_limit=10) as sandbox:
        assert f"box · {sandbox.short_id}" in cli("show", "box").stdout.splitlines()[0]
        found = card(cli)
        assert found["state"].startswith("running · Up ")
        assert found["pid"] == str(sandbox.pid)
        assert found["address"].startswith(str(sandbox.ip_address))
        assert re.fullmatch(r"\d+\.\d %, \d+\.\d\d s in all", found["CPU use"])
        assert re.fullmatch(r"\S+B read, \S+B written", found["block I/O"])
        assert re.fullmatch(r"\S+[KM]iB of 64MiB \(\d+\.\d %\)", found["memory"])
        assert found["link"] == sandbox.network_plan["endpoints"][0]["host_interface"]
        assert re.fullmatch(r"\S+B, \d+ packets?", found["bytes in"])
        assert re.fullmatch(r"\S+B, \d+ packets?", found["bytes out"])
        assert found["published"] == "0.0.0.0:18080->80/tcp"
        assert found["processes"] == "1 of 10"
        document = json.loads(cli("show", "--format", "json", "box").stdout)
        assert document["pid"] == sandbox.pid
        assert document["link"] == found["link"]
        assert document["stats"]["memory_limit"] == 64 * MIB


def test_show_in_other_states(cli: Cli, engine: Engine) -> None:
    with engine.create("busybox", "sh", "-c", "exit 3", name="box", ports=["18080:80"]) as sandbox:
        found = card(cli)
        assert (found["state"], found["pid"], found["link"]) == ("created · Created", "-", "-")
        assert found["published"] == "0.0.0.0:18080->80/tcp"
        sandbox.start()
        sandbox.wait(timeout=60)
        assert card(cli)["state"].startswith("exited · Exited (3) ")
    with run(engine, "echo ready; sleep 1000") as sandbox:
        sandbox.pause()
        assert card(cli)["state"].startswith("paused · Up ")
        assert card(cli)["pid"] == str(sandbox.pid)
