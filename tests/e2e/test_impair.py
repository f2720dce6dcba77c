"""``netbox impair`` and rates by command line and Python API: live, shown, over by themselves, nothing left after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netbox.engine import Engine, impairing
from netbox.errors import Conflict, HostError, NotFound, Unsupported, UsageError, WrongState
from netbox.network import shaping
from netbox.state.journal import Journal
from tests.e2e.boxes import inside, inspect, running
from tests.e2e.steps import GOT_THROUGH, in_child, install
from tests.e2e.test_network_cli import address
from tests.kernel.test_shaping import has_netem
from tests.support import leaks
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.linux import network_of
from tests.support.waiting import wait_until

MOST_STEPS = 60


def qdiscs(device: str) -> str:
    return subprocess.run(["tc", "qdisc", "show", "dev", device], capture_output=True, text=True, check=True, timeout=60).stdout


def loss_rules() -> list[str]:
    return [line for line in leaks.firewall() if "impair:" in line]


def standing(document: dict[str, Any]) -> dict[str, bool]:
    """Which parts of ``--rate 1mbit --loss 50%`` the kernel has for a sandbox."""
    (endpoint,) = document["network"]["endpoints"]
    with network_of(document["pid"]):
        out, loss_in = qdiscs("eth0"), bool(loss_rules())
    loss_out = bool(loss_rules()) or "loss 50%" in out  # the queue's, where no rule sees bridged packets
    rate_in = "rate 1Mbit" in qdiscs(endpoint["host_interface"])
    return {"rate in": rate_in, "rate out": "rate 1Mbit" in out, "loss in": loss_in, "loss out": loss_out}


def timers() -> list[str]:
    """The command lines of timers: a process of this test has our network namespace, other tests' have not."""
    own = os.stat("/proc/self/ns/net").st_ino
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"netbox.runtime.timer" in line and os.stat(f"/proc/{pid}/ns/net").st_ino == own:
                found.append(pid)
        except OSError:
            continue
    return found


def impaired_for_a_while(cli: Cli, look: Callable[[], Any]) -> tuple[Any, int]:
    """Impairs web for some seconds; what was found within them, and how many they were: more where the machine was too slow."""
    for seconds in (3, 15, 60):
        begun = time.monotonic()
        cli("impair", "web", "--rate", "1mbit", "--loss", "50%", "--for", f"{seconds}s")
        found = look()
        if time.monotonic() - begun < seconds:
            return found, seconds
        wait_until(lambda: cli("impair", "web").stdout == "nothing is in force\n", "the end of the impairment")
        cli("gc")
    return pytest.fail("nothing could be seen within a minute")


def kill_timers() -> None:
    for pid in wait_until(timers, "the timer"):
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: timers() == [])


def test_rates_of_a_start(cli: Cli) -> None:
    with running(cli, "web", "--net-rate-in", "10mbit", "--net-rate-out", "1mbps"):
        document = inspect(cli, "web")
        assert "rate 10Mbit" in qdiscs(document["network"]["endpoints"][0]["host_interface"])
        with inside(cli, "web"):
            assert "rate 8Mbit" in qdiscs("eth0")
        assert "rates       10mbit in, 8mbit out" in cli("show", "web").stdout
        cli("impair", "web", "--rate", "1mbit")
        cli("impair", "web", "--off")
        with inside(cli, "web"):
            assert "rate 8Mbit" in qdiscs("eth0")  # the link's own stays
        cli("restart", "-t", "0", "web")
        with inside(cli, "web"):
            assert "rate 8Mbit" in qdiscs("eth0")


def test_a_dry_run_shows_the_rates(cli: Cli) -> None:
    lines = cli("run", "--dry-run", "--net-rate-in", "10mbit", "busybox", "true").stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("tc ")]
    assert line.endswith("root handle 1: tbf rate 10mbit burst 15140 limit 77640")


def test_impaired_shown_and_lifted(cli: Cli) -> None:
    with running(cli, "db"), running(cli, "web"):
        assert cli("impair", "web").stdout == "nothing is in force\n"
        cli("impair", "web", "--rate", "1mbit", "--loss", "50%")
        assert all(standing(inspect(cli, "web")).values())
        cli("impair", "web", "--to", "db", "--loss", "100%", "--direction", "in", "--for", "1h")
        shown = cli("impair", "web").stdout.splitlines()
        assert shown[:2] == ["in   everybody  rate 1mbit, loss 50%", "out  everybody  rate 1mbit, loss 50%"]
        assert shown[2].startswith("in   db         loss 100%, ")
        documents = json.loads(cli("impair", "--format", "json", "web").stdout)
        assert 3000 < documents[2]["seconds_left"] <= 3600
        assert documents[:2] == inspect(cli, "web")["impairments"][:2]
        assert documents[0] == {
            **dict.fromkeys(("corrupt", "loss"), 0.0),
            **dict.fromkeys(("rate", "delay", "jitter"), 0),
            "direction": "in",
            "to": "",
            "prefixes": [],
            "rate": 125_000,
            "loss": 50.0,
            "seconds_left": None,
        }
        assert documents[2]["prefixes"] == [f"{address(cli, 'db')}/32"]
        card = cli("show", "web").stdout
        assert "impaired    in, everybody: rate 1mbit, loss 50%" in card
        assert "in, db: loss 100%, " in card
        cli("exec", "web", "ping", "-c1", "-W1", address(cli, "db"), check=1)
        cli("rm", "-f", "db")
        cli("impair", "web", "--off", "--to", "db")  # also when the peer is gone
        assert len(cli("impair", "web").stdout.splitlines()) == 2
        cli("impair", "web", "--off")
        assert not any(standing(inspect(cli, "web")).values())
        events = cli("events", "--since", "1h", "--until", "0s").stdout
        assert "sandbox impair" in events
        assert "sandbox lift" in events
        wait_until(lambda: timers() == [])


def test_over_by_itself(cli: Cli) -> None:
    with running(cli, "web"):
        document = inspect(cli, "web")
        assert all(impaired_for_a_while(cli, lambda: standing(document))[0].values())
        wait_until(lambda: not any(standing(document).values()))
        wait_until(lambda: timers() == [])
        assert [row for row in inspect(cli, "web")["journal"] if row["kind"] == "impairment"] == []


def test_the_timer_is_killed(cli: Cli) -> None:
    with running(cli, "web"):
        document = inspect(cli, "web")
        _, seconds = impaired_for_a_while(cli, kill_timers)
        time.sleep(seconds + 0.1)
        assert all(standing(document).values())  # nobody has looked
        assert cli("gc").stdout == "collected impairment of web\n"
        assert not any(standing(document).values())


def test_the_end_of_the_sandbox_ends_everything(cli: Cli) -> None:
    with running(cli, "web"):
        cli("impair", "web", "--loss", "50%", "--for", "10m")
        assert standing(inspect(cli, "web"))["loss out"]
        cli("stop", "-t", "0", "web")
        assert loss_rules() == []
        wait_until(lambda: timers() == [])
        assert inspect(cli, "web")["impairments"] == []
        cli("start", "web")
        assert cli("impair", "web").stdout == "nothing is in force\n"
        assert not any(standing(inspect(cli, "web")).values())


def test_what_the_kernel_cannot_do_changes_nothing(engine: Engine) -> None:
    with engine.run("busybox", "sleep", "60") as web:
        web.impair(rate="1mbit", loss=50)
        before = web.impairments
        if has_netem():
            web.impair(delay=0.05, jitter="10ms", corrupt=1)
            assert "netem" in qdiscs(web.network_plan["endpoints"][0]["host_interface"])
            return
        with pytest.raises(Unsupported, match="CONFIG_NET_SCH_NETEM"):
            web.impair(delay=0.05, rate="2mbit")
        assert web.impairments == before
        assert all(standing(web.inspect()).values())


def test_a_failure_in_the_middle_goes_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.run("busybox", "sleep", "60") as web:

        def fail(*_: object) -> None:
            monkeypatch.undo()
            raise HostError("the firewall is on strike")

        monkeypatch.setattr(shaping, "_lose", fail)
        with pytest.raises(HostError, match="on strike"):
            web.impair(rate="1mbit", loss=50)
        assert web.impairments == ()
        assert not any(standing(web.inspect()).values())


def test_errors_of_the_api(engine: Engine) -> None:
    with engine.run("busybox", "sleep", "60") as web, engine.run("busybox", "sleep", "60", network="none") as lonely:
        for call, error, text in (
            (lambda: web.impair(), UsageError, "nothing to impair"),
            (lambda: web.impair(rate="fast"), UsageError, "not a rate"),
            (lambda: web.impair(to=web.name, loss=1), UsageError, "that is the sandbox itself"),
            (lambda: web.impair(to=lonely.name, loss=1), UsageError, "shares no network with"),
            (lambda: web.impair(to="nobody", loss=1), NotFound, "a peer is a sandbox"),
            (lambda: lonely.impair(loss=1), UsageError, "no link of its own"),
            (lambda: web.lift_impairments("10.0.0.1"), NotFound, "nothing is in force between"),
        ):
            with pytest.raises(error, match=text):
                call()
        web.impair(to="192.0.2.0/24", loss=1)
        with pytest.raises(Conflict, match="overlaps"):
            web.impair(to="192.0.2.7", loss=1)
        assert web.lift_impairments() == 2
        web.stop(0)
        with pytest.raises(WrongState, match="it does not run"):
            web.impair(loss=1)


# -- SIGKILL at every step -----------------------------------------------------------------------------------------------------------------


STEPS: list[tuple[Any, str]] = [
    (Journal, "record"),
    (Journal, "forget"),
    (shaping, "_queue"),
    (shaping, "_lose"),
    (impairing, "_start_timer"),
]


def kill_at_every_step(engine: Engine, name: str, attempt: Callable[[], None], before: Callable[[], None]) -> int:
    for number in range(1, MOST_STEPS):
        before()

        def body(number: int = number) -> int:
            install(STEPS, number)
            attempt()
            return GOT_THROUGH

        code = in_child(body)
        engine.gc()
        web = engine.get(name)
        found = standing(web.inspect())
        # All of it and said so, or nothing of it and said so.
        assert set(found.values()) == {bool(web.impairments)}, (number, found)
        assert {row["state"] for row in web.inspect()["journal"] if row["kind"] == "impairment"} <= {"standing"}
        if code == GOT_THROUGH:
            return number
        assert code == -signal.SIGKILL
    return pytest.fail("more steps than expected")


def attempt_with(action: Callable[[Any], object]) -> Callable[[], None]:
    def attempt() -> None:
        with Engine(warm=False) as engine:
            action(engine.get("web"))

    return attempt


def test_killed_at_every_step_of_impairing(engine: Engine, private_host: PrivateHost) -> None:
    with engine.run("busybox", "sleep", "600", name="web") as web:
        steps = kill_at_every_step(
            engine,
            "web",
            attempt_with(lambda box: box.impair(rate="1mbit", loss=50, duration=600)),
            lambda: (web.lift_impairments(), None)[1],
        )
        assert steps > 12


def test_killed_at_every_step_of_lifting(engine: Engine, private_host: PrivateHost) -> None:
    with engine.run("busybox", "sleep", "600", name="web") as web:
        steps = kill_at_every_step(
            engine, "web", attempt_with(lambda box: box.lift_impairments()), lambda: web.impair(rate="1mbit", loss=50)
        )
        assert steps > 12
