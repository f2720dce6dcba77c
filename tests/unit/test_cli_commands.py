"""Every command against an engine of paper: which verb it calls with what, what it prints, how it exits."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import netbox.engine
from netbox.cli import main, stats
from netbox.cli.run import plan_text
from netbox.engine.observing import Stats
from netbox.errors import CommandNotFound, Conflict, NotFound, WrongState
from netbox.parse import build_spec
from netbox.runtime import protocol
from netbox.runtime.client import Attachment
from netbox.spec import Resources, SandboxSpec
from netbox.state.rows import Event

ID = "0123456789ab" + "c" * 52
STATS = Stats(ID, "web", 100.0, 10**9, 12.5, 6 << 20, 64 << 20, 3, None, 4096, 8192, 1000, 10, 2000, 20)


class FakeSandbox:
    """A sandbox that notes what is asked of it. ``fail`` raises at every verb, ``frames`` is what an attachment brings."""

    def __init__(self, world: World, spec: SandboxSpec, name: str = "web", state: str = "running") -> None:
        self.world = world
        self.spec = spec
        self.name = name
        self.id, self.short_id = ID, ID[:12]
        self.image = spec.image or spec.rootfs
        self.command = spec.command
        self.state = state
        self.pid: int | None = 4242
        self.exit_code: int | None = 3 if state == "exited" else None
        self.error: str | None = None
        self.created_at = time.time() - 605
        self.started_at: float | None = time.time() - 305
        self.finished_at: float | None = time.time() - 65 if state == "exited" else None
        self.ip_address = "10.1.0.2"
        self.networks = {"bridge": "10.1.0.2"}
        self.ip6_address: str | None = None
        self.networks6: dict[str, str] = {}
        self.ports = spec.network.ports

    def __getattr__(self, verb: str) -> Any:
        if verb.startswith("_"):
            raise AttributeError(verb)

        def call(*arguments: Any, **options: Any) -> Any:
            self.world.calls.append((verb, self.name, arguments, options))
            if verb in self.world.failures:
                raise self.world.failures[verb]
            return self.world.results.get(verb)

        return call

    def start(self, attach: bool = False, console_size: tuple[int, int] | None = None) -> Attachment | None:
        self.world.calls.append(("start", self.name, (), {"attach": attach}))
        if "start" in self.world.failures:
            raise self.world.failures["start"]
        return self.world.attachment() if attach else None

    def attach(self) -> Attachment:
        return self.world.attachment()

    def inspect(self) -> dict[str, Any]:
        return {"name": self.name, "state": self.state, "list": [{"a": 1}], "network": {"endpoints": [{"host_interface": "nb012"}]}}

    def stats(self, previous: Stats | None = None) -> Stats:
        if self.state != "running":
            raise WrongState(f"{self.name} does not run")
        return STATS


class World:
    """What the fake engine holds, and what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.results: dict[str, Any] = {}
        self.failures: dict[str, Exception] = {}
        self.frames: list[tuple[int, bytes]] = []
        self.specs: list[SandboxSpec] = []
        self.collected: list[str] = []
        self.past: list[Event] = []
        self.event_options: dict[str, Any] = {}
        web = FakeSandbox(self, build_spec("busybox", ["httpd", "-f"], name="web", ports=["8000-8010:80-90"], labels=["role=web"]))
        self.sandboxes = [web, FakeSandbox(self, build_spec("busybox", ["sh"], open_stdin=True), "old", "exited")]
        self._open: list[Attachment | socket.socket] = []

    def attachment(self) -> Attachment:
        ours, theirs = socket.socketpair()
        for kind, payload in self.frames:
            theirs.sendall(protocol.frame(kind, payload))
        theirs.shutdown(socket.SHUT_WR)
        self._open += [theirs, found := Attachment(ours)]
        return found

    def close(self) -> None:
        for item in self._open:
            item.close()

    def called(self, verb: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == verb]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    found = World()

    class FakeEngine:
        settings = SimpleNamespace(root="/r", run="/x")
        images = SimpleNamespace(list=list)

        def __init__(self, settings: object = None, *, warm: bool = True, prespawned: object = None) -> None:
            pass

        def __enter__(self) -> FakeEngine:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def prepare_run(self, spec: SandboxSpec) -> FakeSandbox:
            found.specs.append(spec)
            return FakeSandbox(found, spec, "new")

        create = prepare_run

        def plan(self, spec: SandboxSpec) -> list[Any]:
            found.specs.append(spec)
            return [SimpleNamespace(title="cgroup", commands=["mkdir x"]), SimpleNamespace(title="command", commands=["true"])]

        def get(self, reference: str) -> FakeSandbox:
            for sandbox in found.sandboxes:
                if sandbox.name == reference:
                    return sandbox
            raise NotFound(f"no such sandbox: {reference}", "'netbox ps -a' lists them all")

        def list(self, all: bool = False, filters: Sequence[tuple[str, str]] = ()) -> Any:
            found.calls.append(("list", all, tuple(filters)))
            return [sandbox for sandbox in found.sandboxes if all or sandbox.state == "running"]

        def gc(self) -> Any:
            return found.collected

        def info(self) -> dict[str, Any]:
            return {"version": "1", "memory": 1 << 30, "sandboxes": {"running": 1}, "networks": ["bridge"]}

        def events(self, **options: Any) -> Iterator[Event]:
            found.event_options = options
            return iter(found.past)

    monkeypatch.setattr(netbox.engine, "Engine", FakeEngine)
    monkeypatch.setattr(main, "_prespawn", lambda arguments: None)
    monkeypatch.setattr(main, "_catch_termination", lambda: None)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("NETBOX_DEBUG", raising=False)
    yield found
    found.close()


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def netbox_command(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process."""

    def run(*arguments: str) -> Result:
        code = main.execute(list(arguments))
        found = capfd.readouterr()
        return Result(code, found.out, found.err)

    return run


# -- run and create ------------------------------------------------------------------------------------------------------------------


def test_run_in_the_foreground_shows_the_output_and_returns_the_code(world: World, netbox_command: Any) -> None:
    world.frames = [(protocol.STDOUT, b"out\n"), (protocol.STDERR, b"err\n"), (protocol.EXIT, b'{"exit_code": 7}')]
    result = netbox_command("run", "--rm", "busybox", "sh", "-c", "exit 7")
    assert (result.code, result.out, result.err) == (7, "out\n", "err\n")
    assert world.specs == [build_spec("busybox", ["sh", "-c", "exit 7"], remove=True)]
    assert world.called("start") == [("new", (), {"attach": True})]
    assert len(world.called("settle")) == 1


def test_run_detached_prints_the_id(world: World, netbox_command: Any) -> None:
    result = netbox_command("run", "-d", "busybox")
    assert (result.code, result.out) == (0, f"{ID}\n")
    assert world.called("start") == [("new", (), {"attach": False})]


def test_every_option_reaches_the_request(world: World, netbox_command: Any, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("F=1\n")
    line = (
        "run -d -it --rm --name n -p 8080:80 -p 53:53/udp --net bridge --ip 10.0.0.9 --mac-address 02:00:00:00:00:01 --dns 1.1.1.1 "
        "--dns-search x.y --dns-option ndots:1 --add-host a:1.2.3.4 -h box -v /a:/b:ro --mount type=tmpfs,target=/m --tmpfs /t:size=1m "
        "--read-only --cap-add net_admin --cap-drop all --security-opt no-new-privileges=false --userns auto -u 1:2 -w /w -e A=b "
        "--ulimit core=0 --sysctl net.x.y=1 --init -m 64m --memory-swap -1 --cpus 1.5 -c 512 --cpuset-cpus 0 --pids-limit 9 "
        "--blkio-weight 10 --device /dev/null -l k=v --stop-signal HUP --stop-timeout 5 --shm-size 1m --log-opt max-size=1m "
        "--log-opt max-file=7 --time-namespace --detach-keys a --sig-proxy=false"
    ).split()
    more = ["--device-cgroup-rule", "c 1:3 r", "--env-file", str(tmp_path / "env")]
    assert netbox_command(*line, *more, "busybox", "cmd", "--rm", "-x").code == 0
    assert world.specs == [
        build_spec(
            "busybox",
            ["cmd", "--rm", "-x"],
            name="n",
            tty=True,
            open_stdin=True,
            remove=True,
            ports=["8080:80", "53:53/udp"],
            network="bridge",
            ip="10.0.0.9",
            mac_address="02:00:00:00:00:01",
            dns="1.1.1.1",
            dns_search="x.y",
            dns_options="ndots:1",
            extra_hosts="a:1.2.3.4",
            hostname="box",
            volumes="/a:/b:ro",
            mounts="type=tmpfs,target=/m",
            tmpfs="/t:size=1m",
            read_only=True,
            cap_add="NET_ADMIN",
            cap_drop="ALL",
            no_new_privileges=False,
            userns="auto",
            user="1:2",
            working_dir="/w",
            environment={"F": "1", "A": "b"},
            ulimits="core=0",
            sysctls="net.x.y=1",
            init=True,
            memory="64m",
            memory_swap=-1,
            cpus=1.5,
            cpu_shares=512,
            cpuset_cpus="0",
            pids_limit=9,
            blkio_weight=10,
            devices="/dev/null",
            device_rules="c 1:3 r",
            labels="k=v",
            stop_signal="HUP",
            stop_timeout=5,
            shm_size="1m",
            log_max_size="1m",
            log_max_files=7,
            time_namespace=True,
        )
    ]


def test_with_rootfs_the_first_argument_is_the_command(world: World, netbox_command: Any, tmp_path: Path) -> None:
    netbox_command("run", "-d", "--rootfs", str(tmp_path), "/bin/sh", "-c", "true")
    assert world.specs == [build_spec("", ["/bin/sh", "-c", "true"], rootfs=str(tmp_path))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "netbox run: no image is given; name one such as busybox or host, or give --rootfs DIR and a command\n"),
        (["run", "-d", "-a", "stdout", "busybox"], "netbox run: -d and -a contradict each other; leave one of them out\n"),
        (["run", "-a", "stdin", "busybox"], "netbox run: -a stdin needs -i; give -i too\n"),
        (
            ["run", "-m", "10x", "busybox"],
            "netbox run: memory '10x': 'x' is not a unit of size; write a number and b, k,",
        ),
        (["run", "--nope"], "netbox run: no such option '--nope'"),
        (["run", "-p"], "netbox run: option '-p' requires an argument; see 'netbox run --help'\n"),
        (["create", "--detach-keys", "x", "busybox"], "netbox create: no such option '--detach-keys'"),
        (["run", "--detach-keys", "ctrl", "busybox"], "netbox run: detach-keys 'ctrl': 'ctrl' is not a key"),
        (
            ["ps", "--format", "xml"],
            "netbox ps: invalid value for '--format': 'xml' is not one of 'table', 'json'; see",
        ),
        (["ps", "extra"], "netbox ps: got unexpected extra argument (extra); see 'netbox ps --help'\n"),
        (["stop"], "netbox stop: missing argument 'SANDBOX...'; see 'netbox stop --help'\n"),
        (["inspec", "x"], "netbox: no such command 'inspec' (did you mean 'inspect'?); see 'netbox --help'\n"),
        (["xyzzy"], "netbox: no such command 'xyzzy'; see 'netbox --help'\n"),
        (["--nope"], "netbox: no such option '--nope'"),
        (["image"], "netbox image: "),
        (["update", "web"], "netbox update: nothing to change; give a limit such as --memory 128m\n"),
        (["logs", "--since", "x", "web"], "netbox logs: since 'x': not a time"),
        (["logs", "--tail", "x", "web"], "netbox logs: tail 'x': not a whole number; write a number of lines, or all\n"),
        (["stop", "-t", "-1", "web"], "netbox stop: stop-timeout '-1': out of range"),
        (["kill", "-s", "NOPE", "web"], "netbox kill: signal 'NOPE': no such signal"),
        (["rename", "web", "a/b"], "netbox rename: sandbox name 'a/b': '/' is not allowed in it"),
        (["ps", "--filter", "color=red"], "netbox ps: filter 'color': no such filter; use one of name, id"),
        (["inspect", "--field", "state.x", "web"], "netbox inspect: field 'state.x': no 'x' in state; there is a plain value\n"),
        (["port", "web", "91"], "netbox port: web publishes no port 91/tcp; 'netbox port web' lists what it publishes\n"),
        (["show", "nope"], "netbox show: no such sandbox: nope; 'netbox ps -a' lists them all\n"),
        (["start", "-a", "web", "old"], "netbox start: -a takes one sandbox; start the others without -a\n"),
        (["start", "-i", "web"], "netbox start: web was made without -i: its stdin is closed"),
        (["exec", "-u", "a b", "web", "id"], "netbox exec: user 'a b': 'a b' is neither a number nor a name"),
    ],
)
def test_mistakes_are_one_line_and_125(arguments: list[str], message: str, world: World, netbox_command: Any) -> None:
    result = netbox_command(*arguments)
    assert result.code == 125
    assert result.err.startswith(message)
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert not [call for call in world.calls if call[0] not in ("list",)]


def test_a_terminal_is_needed_for_it(world: World, netbox_command: Any) -> None:
    result = netbox_command("run", "-it", "busybox")
    assert result.code == 125
    assert result.err == "netbox run: the input device is not a TTY; leave -t out when stdin is a pipe or a file\n"
    assert world.specs == []
    assert netbox_command("exec", "-it", "web", "sh").code == 125
    assert world.calls == []


def test_a_command_that_is_not_there_is_127(world: World, netbox_command: Any) -> None:
    world.failures["start"] = CommandNotFound("cannot execute 'x': executable file not found in PATH")
    result = netbox_command("run", "busybox", "x")
    assert (result.code, result.err) == (127, "netbox run: cannot execute 'x': executable file not found in PATH\n")


def test_a_monitor_that_died_leaves_the_code_to_the_engine(world: World, netbox_command: Any) -> None:
    world.results["wait"] = 137
    assert netbox_command("run", "busybox").code == 137
    assert len(world.called("wait")) == 1


def test_only_the_attached_streams(world: World, netbox_command: Any) -> None:
    world.frames = [(protocol.STDOUT, b"out"), (protocol.STDERR, b"err"), (protocol.EXIT, b'{"exit_code": 0}')]
    result = netbox_command("run", "-a", "stderr", "busybox")
    assert (result.out, result.err) == ("", "err")


def test_cidfile(world: World, netbox_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a message shortens a long path
    path = Path("id")
    assert netbox_command("run", "-d", "--cidfile", str(path), "busybox").code == 0
    assert path.read_text() == ID
    world.specs.clear()
    result = netbox_command("create", "--cidfile", str(path), "busybox")
    assert (result.code, result.err) == (125, f"netbox create: cidfile '{path}': it exists; remove it, or name another file\n")
    assert world.specs == []
    assert netbox_command("create", "--cidfile", f"{tmp_path}/none/id", "busybox").code == 125


def test_a_failed_start_leaves_no_cidfile(world: World, netbox_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, spec: SandboxSpec) -> None:
        raise Conflict("the name is taken")

    monkeypatch.setattr(netbox.engine.Engine, "prepare_run", refuse)
    assert netbox_command("run", "--cidfile", str(tmp_path / "id"), "busybox").code == 125
    assert list(tmp_path.iterdir()) == []


def test_create_prints_the_id_and_starts_nothing(world: World, netbox_command: Any) -> None:
    result = netbox_command("create", "--name", "x", "busybox", "true", "--rm")
    assert (result.code, result.out) == (0, f"{ID}\n")
    assert world.specs == [build_spec("busybox", ["true", "--rm"], name="x")]
    assert world.calls == []


def test_dry_run_prints_sections_and_makes_nothing(world: World, netbox_command: Any) -> None:
    result = netbox_command("run", "--dry-run", "-it", "busybox", "true")
    assert (result.code, result.out) == (0, "# cgroup\nmkdir x\n\n# command\ntrue\n")
    assert world.calls == []


def test_comments_of_a_plan_are_aligned() -> None:
    text = plan_text("t", ["ip link add a  # the pair", "ip link set a up", "iptables -A X  # own chain", "# alone"])
    assert text.split("\n") == ["# t", "ip link add a  # the pair", "ip link set a up", "iptables -A X  # own chain", "# alone"]
    text = plan_text("t", ["a  # one", "bbbb  # two"])
    assert text.split("\n")[1:] == ["a     # one", "bbbb  # two"]


# -- lifecycle -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "verb", "call"),
    [
        (["stop", "-t", "3", "web"], "stop", ("web", (3,), {})),
        (["stop", "web"], "stop", ("web", (None,), {})),
        (["kill", "web"], "kill", ("web", (9,), {})),
        (["kill", "-s", "HUP", "web"], "kill", ("web", (1,), {})),
        (["restart", "-t", "1", "web"], "restart", ("web", (1,), {})),
        (["pause", "web"], "pause", ("web", (), {})),
        (["unpause", "web"], "unpause", ("web", (), {})),
        (["rm", "-f", "web"], "remove", ("web", (), {"force": True})),
        (["rm", "web"], "remove", ("web", (), {"force": False})),
        (["start", "web"], "start", ("web", (), {"attach": False})),
        (["update", "-m", "0", "--pids-limit", "5", "web"], "update", ("web", (Resources(memory=0, pids_limit=5),), {})),
    ],
)
def test_verbs(arguments: list[str], verb: str, call: tuple[Any, ...], world: World, netbox_command: Any) -> None:
    result = netbox_command(*arguments)
    assert (result.code, result.out, result.err) == (0, "web\n", "")
    assert world.called(verb) == [call]


def test_rename_prints_the_new_name(world: World, netbox_command: Any) -> None:
    assert netbox_command("rename", "web", "db").out == "db\n"
    assert world.called("rename") == [("web", ("db",), {})]


def test_wait_prints_the_codes(world: World, netbox_command: Any) -> None:
    world.results["wait"] = 0
    assert netbox_command("wait", "web", "old").out == "0\n0\n"


def test_one_bad_name_does_not_stop_the_others(world: World, netbox_command: Any) -> None:
    result = netbox_command("stop", "nope", "web")
    assert (result.code, result.out) == (125, "web\n")
    assert result.err == "netbox stop: no such sandbox: nope; 'netbox ps -a' lists them all\n"


def test_start_attached(world: World, netbox_command: Any) -> None:
    world.frames = [(protocol.STDOUT, b"hi\n"), (protocol.EXIT, b'{"exit_code": 4}')]
    result = netbox_command("start", "-a", "old")
    assert (result.code, result.out) == (4, "hi\n")


# -- inside --------------------------------------------------------------------------------------------------------------------------


def test_exec(world: World, netbox_command: Any) -> None:
    world.frames = [(protocol.STDERR, b"oops\n"), (protocol.EXIT, b'{"exit_code": 5}')]
    world.results["open_exec"] = world.attachment()
    result = netbox_command("exec", "-u", "1", "-w", "/tmp/", "-e", "A=b", "web", "ls", "-l", "--all")
    assert (result.code, result.err) == (5, "oops\n")
    ((name, command, options),) = world.called("open_exec")
    assert (name, command) == ("web", ("ls", "-l", "--all"))
    assert options == {
        "user": "1",
        "working_dir": "/tmp",
        "environment": ["A=b"],
        "tty": False,
        "stdin": False,
        "detach": False,
        "privileged": False,
        "console_size": None,
    }


def test_exec_detached(world: World, netbox_command: Any) -> None:
    result = netbox_command("exec", "-d", "web", "job")
    assert (result.code, result.out) == (0, "")
    assert world.called("open_exec")[0][2]["detach"] is True


def test_exec_that_lost_its_helper(world: World, netbox_command: Any) -> None:
    world.results["open_exec"] = world.attachment()
    result = netbox_command("exec", "web", "job")
    assert result.code == 125
    assert result.err.startswith("netbox exec: lost the command in web")


def test_attach(world: World, netbox_command: Any) -> None:
    world.frames = [(protocol.STDOUT, b"hi"), (protocol.EXIT, b'{"exit_code": 9}')]
    result = netbox_command("attach", "--no-stdin", "web")
    assert (result.code, result.out) == (9, "hi")


def test_logs(world: World, netbox_command: Any) -> None:
    world.results["logs"] = [
        SimpleNamespace(time=0.0, stream="stdout", data=b"one\n"),
        SimpleNamespace(time=1.5, stream="stderr", data=b"\xff\n"),
        SimpleNamespace(time=2.0, stream="stdout", data=b"end"),
    ]
    assert netbox_command("logs", "web").out == "one\nend"
    result = netbox_command("logs", "-f", "--tail", "5", "--since", "2024-05-01T12:00:00Z", "-t", "web")
    assert result.out == "1970-01-01T00:00:00.000000000Z one\n1970-01-01T00:00:02.000000000Z end"
    assert result.err.startswith("1970-01-01T00:00:01.500000000Z ")
    assert world.called("logs")[1][2] == {"follow": True, "since": 1714564800.0, "until": None, "tail": 5}


def test_top(world: World, netbox_command: Any) -> None:
    values = {"pid": 4242, "inner_pid": 1, "user": "root", "state": "S", "cpu_percent": 1.25, "cpu_seconds": 61.5, "resident": 2 << 20}
    row = SimpleNamespace(**values, started_at=time.time() - 125, command="httpd -f", _asdict=lambda: {**values, "command": "httpd -f"})
    world.results["top"] = [row]
    lines = netbox_command("top", "web").out.splitlines()
    assert lines[0].split() == ["PID", "INSIDE", "USER", "STATE", "%CPU", "TIME", "MEMORY", "STARTED", "COMMAND"]
    assert lines[1].split() == ["4242", "1", "root", "S", "1.2", "1:01", "2MiB", "2", "minutes", "ago", "httpd", "-f"]
    assert json.loads(netbox_command("top", "--format", "json", "web").out)[0]["pid"] == 4242


# -- looking -------------------------------------------------------------------------------------------------------------------------


def test_ps(world: World, netbox_command: Any) -> None:
    lines = netbox_command("ps").out.splitlines()
    assert [word.strip() for word in lines[0].split("   ") if word] == [
        *("ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "NETWORK", "ADDRESS", "PORTS")
    ]
    assert "web" in lines[1]
    assert "10 minutes ago" in lines[1]
    assert "Up 5 minutes" in lines[1]
    assert lines[1].endswith("0.0.0.0:8000-8010->80-90/tcp")
    assert len(lines) == 2


def test_ps_of_all(world: World, netbox_command: Any) -> None:
    lines = netbox_command("ps", "-a").out.splitlines()
    assert "Exited (3) 1 minute ago" in lines[2]
    assert netbox_command("ps", "-q").out == f"{ID[:12]}\n"
    assert netbox_command("ps", "-aq", "--no-trunc").out == f"{ID}\n{ID}\n"
    assert len(netbox_command("ps", "-n", "1").out.splitlines()) == 2
    assert netbox_command("ps", "-lq").out.count("\n") == 1
    netbox_command("ps", "--filter", "status=exited", "--filter", "label=a=b")
    assert world.called("list")[-1] == (False, (("status", "exited"), ("label", "a=b")))


def test_ps_as_json(world: World, netbox_command: Any) -> None:
    (row,) = json.loads(netbox_command("ps", "--format", "json").out)
    assert row["id"] == ID
    assert row["labels"] == {"role": "web"}
    assert row["ports"] == [{"host_ip": "0.0.0.0", "host_port": 8000, "port": 80, "length": 11, "protocol": "tcp"}]
    assert row["command"] == ["httpd", "-f"]


def test_inspect(world: World, netbox_command: Any) -> None:
    assert [item["name"] for item in json.loads(netbox_command("inspect", "web", "old").out)] == ["web", "old"]
    assert netbox_command("inspect", "--format", "json", "web").out.count("\n") == 1
    assert netbox_command("inspect", "--field", "state", "web", "old").out == "running\nexited\n"
    assert netbox_command("inspect", "--field", "list.0.a", "web").out == "1\n"
    assert netbox_command("inspect", "--field", "list.0", "web").out == '{"a":1}\n'
    result = netbox_command("inspect", "nope", "web")
    assert result.code == 125
    assert len(json.loads(result.out)) == 1
    for path in ("list.7", "list.x", "", "nope.x", "list.²"):
        assert netbox_command("inspect", "--field", path, "web").code == 125


def test_port(world: World, netbox_command: Any) -> None:
    assert netbox_command("port", "web").out == "80-90/tcp -> 0.0.0.0:8000-8010\n"
    assert netbox_command("port", "web", "85").out == "0.0.0.0:8005\n"
    assert netbox_command("port", "web", "85/udp").code == 125
    assert netbox_command("port", "web", "8005:85").code == 125
    assert json.loads(netbox_command("port", "--format", "json", "web", "90").out)[0]["host_port"] == 8010


def test_show(world: World, netbox_command: Any) -> None:
    text = netbox_command("show", "web").out
    for words in ("web · 0123456789ab", "running · Up 5 minutes", "4242", "10.1.0.2", "nb012", "12.5 %", "6MiB of 64MiB (9.4 %)"):
        assert words in text
    for words in ("4KiB read, 8KiB written", "1000B, 10 packets", "1.95KiB, 20 packets", "0.0.0.0:8000-8010->80-90/tcp"):
        assert words in text
    assert len({len(line) for line in text.splitlines()}) == 1
    document = json.loads(netbox_command("show", "--format", "json", "web").out)
    assert document["stats"]["memory"] == 6 << 20
    assert document["link"] == "nb012"
    assert "Exited (3)" in netbox_command("show", "old").out


def test_stats_once(world: World, netbox_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netbox.cli.stats.time.sleep", lambda seconds: None)
    lines = netbox_command("stats", "--no-stream").out.splitlines()
    assert lines[0].startswith("ID ")
    assert lines[1].split() == [
        *("0123456789ab", "web", "12.50", "6MiB", "/", "64MiB", "9.38", "1000B", "/", "1.95KiB", "10", "/", "20", "4KiB", "/", "8KiB", "3")
    ]
    (document,) = json.loads(netbox_command("stats", "--no-stream", "--format", "json", "web").out)
    assert document["rx_packets"] == 10
    result = netbox_command("stats", "--no-stream", "old")
    assert (result.code, result.err) == (125, "netbox stats: old does not run\n")


def test_live_stats_end_with_the_sandboxes(world: World, netbox_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            world.sandboxes[0].state = "exited"

    monkeypatch.setattr("netbox.cli.stats.time.sleep", sleep)
    result = netbox_command("stats", "web")
    assert result.code == 0
    assert result.out.count("12.50") == 2


def test_a_live_table_is_drawn_over_the_last_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("netbox.cli.stats.terminal.console_size", lambda: (3, 5))
    assert stats._redraw("123456\nab\nc\nd", 0) == 2
    assert stats._redraw("x", 2) == 1
    assert capsys.readouterr().out == "12345\nab\n\x1b[2A\r\x1b[Jx\n"


def test_live_stats_end_with_ctrl_c(world: World, netbox_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("netbox.cli.stats.time.sleep", sleep)
    result = netbox_command("stats", "--format", "json")
    assert result.code == 0
    assert [len(json.loads(line)) for line in result.out.splitlines()] == [1, 1]


def test_events(world: World, netbox_command: Any) -> None:
    world.past = [Event(1, 0.0, "start", ID, "web", {}), Event(2, 1.0, "die", ID, "web", {"exit_code": 1})]
    result = netbox_command("events", "--since", "1h", "--until", "0s", "--filter", "container=web")
    assert result.out.splitlines()[1] == "1970-01-01T00:00:01.000000000Z sandbox die 0123456789ab (name=web, exit_code=1)"
    assert (world.event_options["follow"], world.event_options["filters"]) == (False, [("sandbox", "web")])
    lines = netbox_command("events", "--format", "json").out.splitlines()
    assert world.event_options["follow"] is True
    assert json.loads(lines[1])["attributes"] == {"exit_code": 1}


def test_gc(world: World, netbox_command: Any) -> None:
    assert netbox_command("gc").out == "nothing to collect\n"
    world.collected = ["sandbox web (0123456789ab)", "bridge netbox0"]
    assert netbox_command("gc").out == "collected sandbox web (0123456789ab)\ncollected bridge netbox0\n"
    assert json.loads(netbox_command("gc", "--format", "json").out) == world.collected


def test_info_and_version(world: World, netbox_command: Any) -> None:
    lines = netbox_command("info").out.splitlines()
    assert lines == ["version    1", "memory     1GiB", "sandboxes  1 running", "networks   bridge"]
    assert json.loads(netbox_command("info", "--format", "json").out)["memory"] == 1 << 30
    assert set(json.loads(netbox_command("version", "--format", "json").out)) == {"netbox", "python", "kernel", "machine"}
    assert netbox_command("version").out.startswith("netbox ")
