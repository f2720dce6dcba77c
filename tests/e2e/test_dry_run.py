"""``run --dry-run``: the plan as commands that can be typed, every check of a real start, and no effect."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from tests.e2e.boxes import inspect, running
from tests.support.cli import Cli
from tests.support.host import Neighbour, PrivateHost

TITLES = ["# cgroup", "# network", "# namespaces and root file system", "# command"]


def sections(output: str) -> dict[str, list[str]]:
    """The commands by title."""
    found: dict[str, list[str]] = {}
    for block in output.strip().split("\n\n"):
        title, *commands = block.split("\n")
        found[title] = commands
    return found


def everything(private_host: PrivateHost) -> list[str]:
    """All files of netbox but its database, with their times, and the links of the host."""
    found = [f"{path} {path.lstat().st_mtime_ns}" for directory in (private_host.root, private_host.run)
             for path in directory.rglob("*") if not path.name.startswith("state.db")]  # fmt: skip
    return sorted([*found, *os.listdir("/sys/class/net"), *os.listdir("/run")])


@pytest.mark.parametrize(
    "options",
    [
        ("-p", "18080:80", "-p", "18081-18083:1-3/udp", "-m", "64m", "--cpus", "0.5", "--pids-limit", "9"),
        ("--network", "none", "--read-only", "--tmpfs", "/t:size=1m", "--init", "--ulimit", "nofile=9", "--sysctl", "kernel.msgmax=9"),
        ("--network", "host", "--privileged", "-u", "1000"),
        ("--userns", "auto", "--time-namespace", "--cap-drop", "ALL", "-v", "/etc:/e:ro", "--hostname", "box"),
    ],
)
@pytest.mark.parametrize("image", ["busybox", "host"])
def test_nothing_changes(cli: Cli, private_host: PrivateHost, options: tuple[str, ...], image: str) -> None:
    """On a fresh host: not even the image is made, the filter compiled, or a missing source of a volume made."""
    before = everything(private_host)
    result = cli("run", "--dry-run", *options, "-v", f"{private_host.base}/absent:/absent", image, "httpd", "-f")
    assert result.stderr == ""
    assert list(sections(result.stdout)) == TITLES
    assert sections(result.stdout)["# command"] == ["httpd -f"]
    assert everything(private_host) == before
    assert private_host.leftovers(timeout=0) == []
    assert cli("ps", "-aq").stdout == ""


def test_nothing_changes_beside_running_sandboxes(cli: Cli, private_host: PrivateHost) -> None:
    with running(cli, "box", "-p", "18080:80"):
        before = everything(private_host)
        rules = subprocess.run(["iptables-legacy-save"], capture_output=True, text=True, timeout=60, check=True).stdout.count("\n-A")
        commands = sections(cli("run", "--dry-run", "-p", "18081:80", "busybox", "true").stdout)["# network"]
        assert not any(command.startswith("ip link add netbox0") for command in commands)  # the network stands already
        assert everything(private_host) == before
        after = subprocess.run(["iptables-legacy-save"], capture_output=True, text=True, timeout=60, check=True).stdout.count("\n-A")
        assert after == rules


def test_the_network_can_be_built_by_hand(cli: Cli, outside: Neighbour) -> None:
    """The commands, run by a shell in a namespace of its own, give a sandbox's network; a start gives the same."""
    options = ("--name", "box", "-p", "18080:80", "-p", "127.0.0.1:18081:81/udp", "busybox")
    commands = sections(cli("run", "--dry-run", *options, "sleep", "100").stdout)["# network"]
    netns = next(shlex.split(command)[-1] for command in commands if command.startswith("ip netns add"))
    show = ["ip -o -4 address show dev netbox0", f"ip -n {netns} -o -4 address show dev eth0", f"ip -n {netns} route",
            f"ip -n {netns} -o link show dev eth0", "iptables -t nat -S", "iptables -t filter -S", "iptables -t raw -S"]  # fmt: skip
    script = "\n".join(["set -e", "mount -t tmpfs none /run", "ip link set lo up", *commands, "echo BUILT", *show])
    by_hand = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert by_hand.returncode == 0, by_hand.stderr
    built = by_hand.stdout.partition("BUILT\n")[2].replace('"', "")
    with running(cli, "box", *options[2:-1]):
        endpoint = inspect(cli, "box")["network"]["endpoints"][0]
        assert f"inet {endpoint['address']}/20" in built
        assert f"inet {endpoint['gateway']}/20" in built
        assert endpoint["mac_address"] in built
        assert f"default via {endpoint['gateway']} dev eth0" in built
        assert f"--dport 18080 -m comment --comment sandbox:{netns} -j DNAT --to-destination {endpoint['address']}:80" in built
        rules = subprocess.run(["iptables-legacy", "-t", "nat", "-S"], capture_output=True, text=True, timeout=60, check=True).stdout
        short_id = inspect(cli, "box")["id"][:12]
        for rule in rules.replace(short_id, netns).splitlines():
            if "netbox" in rule.lower():
                assert rule.replace('"', "") in built, rule


@pytest.mark.parametrize("port", [53, 61053])
def test_the_names_can_be_served_by_hand(cli: Cli, private_host: PrivateHost, port: int) -> None:
    """At another port, and with rules that lead there, when the dry run finds port 53 taken by a program of the host."""
    cli("network", "create", "--subnet", "10.77.9.0/24", "app")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 53 if port != 53 else 0))
        options = ("--network", "app", "--network-alias", "db", "--name", "web", "busybox", "true")
        commands = sections(cli("run", "--dry-run", *options).stdout)["# network"]
    assert any(f"--port={port} " in command for command in commands)
    assert any(command.endswith(f"-j DNAT --to-destination 10.77.9.1:{port}") for command in commands) == (port != 53)
    netns = next(shlex.split(command)[-1] for command in commands if command.startswith("ip netns add"))
    asks = [f"ip netns exec {netns} busybox nslookup {name} 10.77.9.1 | tail -n +3" for name in ("web.app.netbox.internal", "db", netns)]
    script = "\n".join(["set -e", "mount -t tmpfs none /run", "ip link set lo up", *commands, *asks])
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    by_hand = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert by_hand.returncode == 0, by_hand.stderr
    assert by_hand.stdout.count("10.77.9.2") == 3, by_hand.stdout
    cli("network", "rm", "app")


def test_the_cgroup_can_be_made_by_hand(cli: Cli, private_host: PrivateHost) -> None:
    parent = f"/{private_host.cgroup}/"
    commands = sections(cli("run", "--dry-run", "-m", "64m", "--pids-limit", "7", "busybox", "true").stdout)["# cgroup"]
    result = subprocess.run(["sh", "-e", "-c", "\n".join(commands)], capture_output=True, text=True, timeout=60, check=False)
    try:
        assert result.returncode == 0, result.stderr
        made = {word for command in commands if command.startswith("mkdir") for word in shlex.split(command) if parent in word}
        limits = [path.read_text() for directory in made for path in Path(directory).glob("pids.max")]
        assert limits == ["7\n"]
    finally:
        for command in commands:
            if command.startswith("mkdir"):
                Path(shlex.split(command)[-1]).rmdir()


def test_the_printed_shell_syntax_is_valid(cli: Cli, private_host: PrivateHost) -> None:
    """Whatever the arguments hold."""
    odd = private_host.base / "a b'c;$(touch odd)"
    odd.mkdir()
    output = cli("run", "--dry-run", "-v", f"{odd}:/x y", "--hostname", "box", "busybox", "sh", "-c", "echo 'a b'; exit 1").stdout
    subprocess.run(["sh", "-n"], input=output, text=True, timeout=60, check=True)
    assert shlex.split(sections(output)["# command"][0]) == ["sh", "-c", "echo 'a b'; exit 1"]
    assert shlex.quote(str(odd)) in output


def test_every_part_of_the_request_is_in_the_plan(cli: Cli, private_host: PrivateHost) -> None:
    line = (
        "--memory 64m --cpuset-cpus 0 -p 18080:80 --mac-address 02:42:ac:11:00:02 --tmpfs /scratch -v /etc:/host-etc:ro --init "
        "--sysctl kernel.msgmax=4321 --ulimit nofile=77:88 -u 12:34 --cap-drop ALL --hostname web busybox httpd"
    )
    output = cli("run", "--dry-run", *line.split()).stdout
    words = (
        "67108864 cpuset.cpus --dport_18080 02:42:ac:11:00:02 /rootfs/scratch /rootfs/host-etc netbox-init "
        "kernel.msgmax=4321 77:88 --reuid=12 --regid=34 --bounding-set=0x0 --no-new-privs hostname_web"
    )
    for word in words.replace("_", "\n").split(" "):
        word = word.replace("\n", " ")
        assert word in output, word


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("nosuch", "true"), "no image 'nosuch'", 125),
        (("--ip", "192.0.2.1", "busybox", "true"), "outside the network's subnet", 125),
        (("-p", "192.0.2.1:80:80", "busybox", "true"), "no such address", 125),
        (("--network", "container:nosuch", "busybox", "true"), "no such sandbox", 125),
        (("--sysctl", "vm.swappiness=1", "busybox", "true"), "belongs to the whole machine", 125),
        (("--mount", "type=bind,source=/nosuch,target=/x", "busybox", "true"), "it does not exist", 125),
        (("--security-opt", "seccomp=/etc/passwd", "busybox", "true"), "not JSON", 125),
    ],
)
def test_what_a_start_would_refuse_is_refused(cli: Cli, arguments: tuple[str, ...], words: str, code: int) -> None:
    result = cli("run", "--dry-run", *arguments, check=code)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_taken_name_is_refused(cli: Cli) -> None:
    with running(cli, "box", "--network", "none"):
        assert "box" in cli("run", "--dry-run", "--name", "box", "busybox", "true", check=125).stderr


def test_a_target_that_runs_is_joined(cli: Cli) -> None:
    with running(cli, "box"):
        output = cli("run", "--dry-run", "--network", "container:box", "busybox", "true").stdout
        assert f"/proc/{inspect(cli, 'box')['pid']}/ns/net" in output or "nsenter" in output
        assert "--net " not in output
