"""``netbox capture`` with real sandboxes; what it writes is read by tshark."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from netbox import packet
from netbox.engine import Engine
from netbox.errors import NetboxError
from netbox.packet.capturing.session import Capture
from netbox.packet.capturing.sinks import open_output
from netbox.packet.capturing.values import Selection
from tests.e2e.boxes import await_listener, inspect, running
from tests.support.captures import capturing, tshark
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until

INTERFACE, DIRECTION, IDENTITY, COMMENT = "frame.interface_name", "frame.packet_flags_direction", "frame.packet_id", "frame.comment"
IN, OUT = 1, 2


def address(cli: Cli, name: str) -> str:
    return str(inspect(cli, name)["network"]["endpoints"][0]["address"])


def ping(cli: Cli, name: str, target: str, *options: str, check: int | None = 0) -> bool:
    """Whether an answer came, which ``check`` says it must."""
    return cli("exec", name, "ping", "-c", "1", "-W", "30", "-w", "30", *options, target, check=check).returncode == 0


def gateway_of(cli: Cli, name: str, position: int = 0) -> str:
    return str(inspect(cli, name)["network"]["endpoints"][position]["gateway"])


def test_a_network_from_end_to_end(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    cli("network", "create", "front", "--subnet", "10.77.1.0/24")
    with running(cli, "web", "--network", "front"), running(cli, "db", "--network", "front"):
        with capturing(cli, "--network", "front", "-w", str(path)) as capture:
            ping(cli, "web", "10.77.1.3", "-s", "100")
            assert capture.stop() == 0
        total = len(tshark(path, INTERFACE))
        rows = tshark(path, INTERFACE, DIRECTION, IDENTITY, "frame.time_epoch", "ip.src_host", "ip.dst_host", filter="icmp")
    cli("network", "rm", "front")
    ways: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, direction, identity, _, _, _ in rows:
        ways[identity].append((name, int(direction, 0)))
    request, reply = ways.values()
    assert set(request) == {("web/eth0", OUT), ("web/host-end", IN), ("db/host-end", OUT), ("db/eth0", IN)}
    assert set(reply) == {("db/eth0", OUT), ("db/host-end", IN), ("web/host-end", OUT), ("web/eth0", IN)}
    assert {(source, destination) for *_, source, destination in rows} == {("web", "db"), ("db", "web")}
    times = [row[3] for row in rows]
    assert times == sorted(times)
    assert all(re.fullmatch(r"[0-9]+\.[0-9]{9}", time) for time in times)
    assert any(not time.endswith("000") for time in times)
    assert f"{total} packets recorded, 0 dropped by the kernel" in capture.stderr
    assert re.search(r"^web/eth0 +[1-9][0-9]* +0 +0$", capture.stderr, re.MULTILINE)
    assert "front/bridge" in capture.stderr


def test_what_tshark_is_told_about_interfaces(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with running(cli, "web"), capturing(cli, "web", "-w", str(path), "-f", "icmp", "-s", "64") as capture:
        ping(cli, "web", gateway_of(cli, "web"), "-s", "500")
        capture.stop()
    rows = tshark(path, INTERFACE, "frame.interface_description", "frame.cap_len", "frame.len", "eth.type")
    assert sorted({(row[0], row[1]) for row in rows})[0] == ("web/eth0", "eth0 of sandbox web")
    assert {tuple(row[2:]) for row in rows} == {("64", "542", "0x0800")}
    shown = subprocess.run(["capinfos", str(path)], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "Number of interfaces in file: 2" in shown
    assert "nanoseconds (9)" in shown
    assert shown.count("Number of stat entries = 1") == 2
    assert shown.count("Capture filter = icmp") + shown.count("Filter string = icmp") == 2
    assert "Capture application: netbox" in shown


def test_why_a_packet_was_dropped(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    for name in ("front", "back"):
        cli("network", "create", name)
    with running(cli, "web", "--network", "front"), running(cli, "db", "--network", "back"):
        target = address(cli, "db")
        gateway = gateway_of(cli, "web")
        with capturing(cli, "web", "db", "-w", str(path), "-f", "icmp") as capture:
            ping(cli, "web", target, "-W", "1", check=1)
            ping(cli, "web", gateway)
            capture.stop()
    cli("network", "rm", "front", "back")
    rows = tshark(path, INTERFACE, "ip.dst", COMMENT, filter="icmp.type == 8")
    dropped = [row for row in rows if row[1] == target]
    assert {row[0] for row in dropped} == {"web/eth0", "web/host-end"}
    assert all("dropped by the firewall in host (NETFILTER_DROP" in row[2] for row in dropped)
    assert {(*row, "")[2] for row in rows if row[1] == gateway} == {""}


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_which_rule_decided(cli: Cli, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBOX_FIREWALL", backend)
    path, log = tmp_path / "a.pcapng", Path("/proc/sys/net/netfilter/nf_log/2")
    before = log.read_text()
    for name in ("front", "back"):
        cli("network", "create", name)
    with (
        running(cli, "web", "--network", "front"),
        running(cli, "app", "--network", "front"),
        running(cli, "db", "--network", "back", "-p", "127.0.0.1:8080:80", command=("httpd", "-f", "-p", "80")),
    ):
        address_of_web, address_of_db = address(cli, "web"), address(cli, "db")
        await_listener(cli, "db", 80)
        with capturing(cli, "web", "db", "--verdicts", "-w", str(path)) as capture:
            ping(cli, "app", address_of_web)
            ping(cli, "web", address_of_db, "-W", "1", check=1)
            wait_until(lambda: _get("http://127.0.0.1:8080/"), "an answer")
            assert _tables()
            assert capture.stop() == 0
        assert not _tables()
        assert log.read_text() == before
        with capturing(cli, "web", "--verdicts") as capture:
            assert _tables()
            capture.stop(signal.SIGKILL)
        wait_until(lambda: not _tables(), "the table of a killed capture to go")
        cli("gc")
        assert log.read_text() == before
    cli("network", "rm", "front", "back")
    echo = "icmp.type == 8"
    accepted = tshark(path, INTERFACE, COMMENT, filter=f"{echo} && ip.dst == {address_of_web}")
    dropped = tshark(path, INTERFACE, COMMENT, filter=f"{echo} && ip.dst == {address_of_db}")
    published = tshark(path, INTERFACE, COMMENT, filter="tcp.flags.syn == 1 && tcp.flags.ack == 0")
    chain = {"iptables": "filter NETBOX-INGRESS", "nftables": "ip netbox ingress"}[backend]
    assert {row[0] for row in accepted} == {"web/eth0", "web/host-end"}
    assert all(re.fullmatch(rf"accepted in host by {chain} rule \d+ \(network front\)", row[1]) for row in accepted), accepted
    assert {row[0] for row in dropped} == {"web/eth0", "web/host-end"}
    for row in dropped:
        assert re.fullmatch(rf"dropped in host by {chain} rule \d+ \(network back\): NETFILTER_DROP in \w+", row[1]), row
    assert {row[0] for row in published} == {"db/eth0", "db/host-end"}
    assert all("destination translated in host by " in row[1] for row in published), published


def _get(url: str) -> bool:
    return subprocess.run(["curl", "-s", "-o", "/dev/null", "-m", "5", url], timeout=60, check=False).returncode == 0


def _tables() -> bool:
    """Whether a table of a trace is there."""
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=60, check=True).stdout
    return "netbox_trace_" in listed


def test_from_the_first_packet_on_and_again_after_a_restart(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with capturing(cli, "--from-start", "web", "-w", str(path)) as capture:
        assert "waiting for web" in capture.beginning
        cli("run", "-d", "--name", "other", "busybox", "sleep", "100")
        cli("run", "-d", "--name", "web", "busybox", "sh", "-c", "ping -c 1 -w 5 203.0.113.1; sleep 100")
        cli("restart", "-t", "0", "web")
        capture.stop()
    cli("rm", "-f", "web", "other")
    rows = tshark(path, INTERFACE, "frame.interface_id", "arp.isannouncement", "icmp.type")
    assert {row[0] for row in rows} == {"web/eth0", "web/host-end"}
    runs = [row[1] for row in rows if row[0] == "web/eth0" and row[2] in ("1", "True")]
    assert len(set(runs)) == 2  # the announcement of each run: the very first packet of the link
    for run in sorted(set(runs), key=int):
        own = [row for row in rows if row[1] == run]
        assert own[0][2] in ("1", "True")


def test_sandboxes_come_and_go(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with capturing(cli, "--all", "-w", str(path)) as capture:
        for name in ("one", "two"):
            cli("run", "--rm", "--name", name, "busybox", "sh", "-c", "ping -c 1 -W 30 -w 30 $(ip route | awk '/default/ {print $3}')")
        with running(cli, "three"):
            cli("network", "create", "more")
            cli("network", "connect", "more", "three")
            gateway = gateway_of(cli, "three", 1)
            # The host's end of the new link is found a moment later.
            wait_until(lambda: ping(cli, "three", gateway) and "three/host-end1" in _names(path), "the second link")
        capture.stop()
    cli("network", "rm", "more")
    assert {"one/eth0", "two/eth0", "three/eth0", "three/eth1", "three/host-end1"} <= _names(path)
    assert capture.stderr.count("one/eth0") == 1
    pings = [row[0] for row in tshark(path, INTERFACE, filter="icmp")]
    assert [pings.count(f"{name}/{end}") for name in ("one", "two") for end in ("eth0", "host-end")] == [2, 2, 2, 2]


def _names(path: Path) -> set[str]:
    return {row[0] for row in tshark(path, INTERFACE, check=False)}


def test_a_ring_of_files(cli: Cli, tmp_path: Path) -> None:
    with running(cli, "web"):
        gateway = gateway_of(cli, "web")
        with capturing(cli, "web", "-f", "icmp", "-w", str(tmp_path / "a.pcapng"), "--ring", "3x64k") as capture:
            cli("exec", "web", "ping", "-c", "120", "-i", "0.002", "-s", "1400", gateway)
            capture.stop()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert files[-1].name > "a_00004.pcapng"
    for file in files:
        assert {row[0] for row in tshark(file, "ip.src_host")} == {"web", "host"}


def test_a_killed_capture_leaves_a_file_and_blocks_nobody(cli: Cli, private_host: PrivateHost, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with running(cli, "web"):
        gateway = gateway_of(cli, "web")
        with capturing(cli, "--all", "-w", str(path)) as capture:
            ping(cli, "web", gateway)
            wait_until(lambda: len(tshark(path, INTERFACE, filter="icmp", check=False)) >= 4, "the packets in the file")
            capture.stop(signal.SIGKILL)
        assert len(tshark(path, INTERFACE, filter="icmp")) == 4
        assert (private_host.run / "captures").exists()
        cli("run", "--rm", "busybox", "true")
        assert not (private_host.run / "captures").exists()


def test_a_capture_that_hangs_holds_a_start_up_for_a_moment_only(cli: Cli, tmp_path: Path) -> None:
    with capturing(cli, "--all", "-w", str(tmp_path / "a.pcapng")) as capture:
        capture.process.send_signal(signal.SIGSTOP)
        try:
            assert cli("run", "--rm", "busybox", "echo", "runs").stdout == "runs\n"
        finally:
            capture.process.send_signal(signal.SIGCONT)
        assert capture.stop() == 0


def test_lines_as_they_happen(cli: Cli) -> None:
    with running(cli, "web"):
        gateway = gateway_of(cli, "web")
        with capturing(cli, inspect(cli, "web")["id"][:2], "-f", "icmp", "-c", "4") as capture:
            ping(cli, "web", gateway, "-s", "8")
            assert capture.wait() == 0
    lines = capture.stdout.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{9}  web/eth0      out  web → host  ICMP echo request, id \d+, seq 0, length 8", lines[0])
    assert re.search(r"  web/eth0      in   host → web  ICMP echo reply", lines[3])
    assert "4 packets recorded" in capture.stderr


def test_into_a_pipe(cli: Cli) -> None:
    with running(cli, "web"):
        gateway = gateway_of(cli, "web")
        with cli.popen("capture", "web", "-f", "icmp", "-w", "-") as capture:
            assert capture.stderr is not None
            assert "ctrl-c ends" in capture.stderr.readline()
            with subprocess.Popen(["tshark", "-l", "-r", "-", "-c", "2", "-T", "fields", "-e", "icmp.type"], stdin=capture.stdout,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as reader:  # fmt: skip
                assert capture.stdout is not None
                capture.stdout.close()
                ping(cli, "web", gateway)
                assert reader.communicate(timeout=60)[0].split() == ["8", "8"]
                # The reader is gone: the next packet ends the capture, without a word.
                wait_until(lambda: ping(cli, "web", gateway) and capture.poll() is not None, "the end of the capture")
            assert capture.stderr.read() == ""
            assert capture.returncode == 141


@pytest.mark.usefixtures("outside")
def test_modes_without_a_link_of_their_own(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with (
        running(cli, "alone", "--network", "none"),
        running(cli, "web"),
        running(cli, "guest", "--network", "container:web"),
        running(cli, "open", "--network", "host"),
        capturing(cli, "alone", "guest", "open", "-w", str(path)) as capture,
    ):
        assert capture.beginning.split(";")[0].split(" ", 1)[1].split(", ") == ["host/eth0", "web/eth0", "alone/lo"]
        ping(cli, "alone", "127.0.0.1")
        ping(cli, "open", "198.51.100.1")
        capture.stop()
    assert {tuple(row) for row in tshark(path, INTERFACE, filter="icmp.type == 8")} == {("alone/lo",), ("host/eth0",)}
    assert len(tshark(path, INTERFACE, filter="icmp && ip.addr == 127.0.0.1")) == 2  # not once out and once in


def test_it_ends_with_what_it_records(cli: Cli, tmp_path: Path) -> None:
    with running(cli, "web"), capturing(cli, "web", "-w", str(tmp_path / "a.pcapng")) as capture:
        cli("rm", "-f", "web")
        assert capture.wait() == 0
    with capturing(cli, "--all", "--duration", "50ms") as capture:
        assert capture.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to capture; name sandboxes"),
        (("nobody",), "no such sandbox: nobody; 'netbox ps' lists those that run; --from-start"),
        (("idle",), "cannot capture idle: it does not run"),
        (("--network", "nowhere"), "no such network: nowhere"),
        (("--all", "-f", "tcp porto"), "capture filter 'tcp porto': can't parse filter expression: syntax error"),
        (("--all", "--ring", "10x50MB"), "--ring needs a file name"),
        (("--all", "-c", "0"), "--count 0: it must be at least 1"),
        (("--all", "-w", "/nowhere/a"), "cannot write /nowhere/a: No such file or directory"),
    ],
)
def test_what_is_refused(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    if "idle" in arguments:
        cli("create", "--name", "idle", "busybox", "true")
    kept = tmp_path / "kept"
    kept.write_text("kept")
    result = cli("capture", *arguments, *(() if "-w" in arguments or "--ring" in arguments else ("-w", str(kept))), check=125)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert kept.read_text() == "kept"
    if "idle" in arguments:
        cli("rm", "idle")


def test_from_python(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with (
        packet.capture(engine, "web", write=str(path), from_start=True, filter="icmp") as recording,
        engine.run("busybox", "sleep", "100", name="web") as box,
    ):
        gateway = box.network_plan["endpoints"][0]["gateway"]
        assert box.exec("ping", "-c", "1", "-W", "30", "-w", "30", gateway).exit_code == 0
        wait_until(lambda: recording.total == 4, "four packets")
    assert sum(item.packets for item in recording.summary) == 4
    assert len(tshark(path, INTERFACE)) == 4
    recording.stop()
    with pytest.raises(NetboxError, match="no such sandbox"):
        packet.capture(engine, "nobody", write=str(path))
    with pytest.raises(NetboxError, match="cannot write"):
        packet.capture(engine, all=True, write=str(tmp_path / "no" / "such"))


def test_what_waits_in_the_rings_at_the_end_is_recorded(engine: Engine, tmp_path: Path) -> None:
    """A capture that did not keep up when it was stopped, or when the sandbox ended: more than it reads in one turn. What a ring had no
    room for, as blocks are handed over half full when this test is slow, is counted.
    """
    path, count = tmp_path / "a.pcapng", 4000
    with engine.run("busybox", "sleep", "100", name="web") as box:
        gateway = box.network_plan["endpoints"][0]["gateway"]
        assert box.exec("ping", "-c", "1", "-W", "30", "-w", "30", gateway).exit_code == 0  # its MAC is known: no packet waits for it
        capture = Capture(engine, Selection(("web",)), filter="udp port 9")
        capture.open(open_output(str(path), None, 65535, ""))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                sock.sendto(bytes(1400), (box.ip_address, 9))
        capture.stop()
        capture.run()
        summary = {item.name: item for item in capture.close()}
    assert summary["web/host-end"].packets + summary["web/host-end"].lost == count, summary


def test_whom_a_sandbox_talks_to_has_a_name(cli: Cli) -> None:
    with running(cli, "web"), running(cli, "db"), capturing(cli, "web", "-f", "icmp", "-c", "1") as capture:
        ping(cli, "web", address(cli, "db"))
        capture.wait()
    assert "web → db  ICMP" in capture.stdout
