"""The four network modes and published ports through the command line, seen from the outside, the host and the sandboxes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.boxes import await_listener, inside, inspect, running, server, sh
from tests.kernel.network_lab import ask, out_of_reach, reachable, serve
from tests.support.cli import Cli
from tests.support.host import Neighbour, PrivateHost

FILES = "cat /etc/hosts; echo --; cat /etc/hostname; echo --; cat /etc/resolv.conf; echo --; hostname"
LOOPBACK = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def address(cli: Cli, name: str) -> str:
    return str(inspect(cli, name)["network"]["endpoints"][0]["address"])


def files(cli: Cli, *options: str) -> list[str]:
    """/etc/hosts, /etc/hostname, /etc/resolv.conf and the host name of a new sandbox."""
    return sh(cli, FILES, *options).split("--\n")


class TestModes:
    def test_bridge(self, cli: Cli, outside: Neighbour) -> None:
        with running(cli, "one"), running(cli, "two"):
            first, second = address(cli, "one"), address(cli, "two")
            assert first != second
            for target in (second, outside.address, outside.host_address):
                cli("exec", "one", "ping", "-c1", "-W30", target)
            assert cli("exec", "one", "ip", "route").stdout.split("\n")[0].startswith("default via 10.")
            listener = serve("tcp", 8000)
            try:
                with outside.inside():
                    far = serve("tcp", 8001)
                with inside(cli, "one"):
                    assert ask("tcp", outside.host_address, 8000) == f"{first} 8000"
                    assert ask("tcp", outside.address, 8001) == f"{outside.host_address} 8001"  # masqueraded
                far.close()
            finally:
                listener.close()

    def test_none(self, cli: Cli, outside: Neighbour) -> None:
        output = sh(cli, "ip -o link | cut -d: -f2; ip route; ping -c1 -W30 127.0.0.1 > /dev/null && echo alive", "--network", "none")
        assert output.split() == ["lo", "alive"]
        assert (
            cli("run", "--rm", "--network", "none", "busybox", "ping", "-c1", "-W1", outside.address, check=1).stdout.count("bytes from")
            == 0
        )
        assert not Path("/sys/class/net/netbox0").exists()

    def test_host(self, cli: Cli, outside: Neighbour) -> None:
        output = sh(cli, "ip -o -4 address show; hostname", "--network", "host")
        assert f"{outside.host_address}/24" in output
        assert output.splitlines()[-1] == os.uname().nodename
        assert not Path("/sys/class/net/netbox0").exists()

    def test_host_with_a_name_of_its_own(self, cli: Cli) -> None:
        assert sh(cli, "hostname; cat /etc/hostname", "--network", "host", "--hostname", "mine") == "mine\nmine\n"
        assert os.uname().nodename != "mine"

    def test_container(self, cli: Cli) -> None:
        with running(
            cli, "web", "--hostname", "web.example", "--add-host", "db:203.0.113.5", command=("httpd", "-f", "-p", "80", "-h", "/etc")
        ):
            await_listener(cli, "web", 80)
            one = files(cli, "--network", "container:web")
            assert one == cli("exec", "web", "sh", "-c", FILES).stdout.split("--\n")
            assert "203.0.113.5\tdb\n" in one[0]
            assert one[3] == "web.example\n"
            assert sh(cli, "wget -qO- http://127.0.0.1/hostname", "--network", "container:web") == "web.example\n"
            with running(cli, "side", "--network", f"container:{inspect(cli, 'web')['id'][:8]}"):
                links = [os.readlink(f"/proc/{inspect(cli, name)['pid']}/ns/net") for name in ("web", "side")]
                assert links[0] == links[1]
                cli("exec", "web", "sh", "-c", "echo 203.0.113.9 later >> /etc/hosts")
                assert "later" in cli("exec", "side", "cat", "/etc/hosts").stdout  # the same file, not a copy

    def test_container_of_a_container(self, cli: Cli) -> None:
        with running(cli, "web"), running(cli, "side", "--network", "container:web"):
            assert files(cli, "--network", "container:side") == files(cli, "--network", "container:web")

    def test_container_outlives_its_target(self, cli: Cli) -> None:
        """The namespace stays while somebody is in it; the target's link goes with the target."""
        with running(cli, "web"), running(cli, "side", "--network", "container:web"):
            cli("rm", "-f", "web")
            assert cli("exec", "side", "sh", "-c", "ls /sys/class/net; cat /etc/hosts > /dev/null").stdout.split() == ["lo"]

    @pytest.mark.parametrize(
        ("state", "words"), [("created", "does not run"), ("exited", "does not run"), ("absent", "no such sandbox: web")]
    )
    def test_container_whose_target_does_not_run(self, cli: Cli, state: str, words: str) -> None:
        if state != "absent":
            cli("create", "--name", "web", "busybox", "true")
        if state == "exited":
            cli("start", "-a", "web")
        result = cli("run", "--rm", "--network", "container:web", "busybox", "true", check=125)
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1
        if state != "absent":
            assert "netbox start web" in result.stderr
            cli("rm", "web")

    def test_container_itself(self, cli: Cli) -> None:
        cli("create", "--name", "web", "--network", "bridge", "busybox", "true")
        cli("create", "--name", "loop", "--network", "container:web", "busybox", "true")
        cli("rm", "web")
        assert "no such sandbox: web" in cli("start", "loop", check=125).stderr
        cli("rm", "loop")

    @pytest.mark.parametrize("mode", ["bridge", "none", "host"])
    def test_statistics_and_card(self, cli: Cli, mode: str) -> None:
        with running(cli, "box", "--network", mode):
            (row,) = json.loads(cli("stats", "--no-stream", "--format", "json", "box").stdout)
            assert {"rx_bytes", "rx_packets", "tx_bytes", "tx_packets"} <= row.keys()
            assert mode in cli("show", "box").stdout


class TestFiles:
    def test_bridge(self, cli: Cli) -> None:
        hosts, hostname, resolv, name = files(cli, "--hostname", "box")
        assert re.fullmatch(re.escape(LOOPBACK) + r"10\.\d+\.\d+\.\d+\tbox\n", hosts)
        assert (hostname, name) == ("box\n", "box\n")
        assert resolv == "nameserver 198.51.100.1\nsearch example.test\n"

    def test_the_name_is_the_short_id(self, cli: Cli) -> None:
        with running(cli, "box"):
            assert cli("exec", "box", "hostname").stdout.strip() == inspect(cli, "box")["id"][:12]

    def test_none(self, cli: Cli) -> None:
        hosts, hostname, resolv, name = files(cli, "--network", "none", "--hostname", "box")
        assert hosts.startswith(LOOPBACK)
        assert hosts.removeprefix(LOOPBACK) in ("127.0.0.1\tbox\n", "127.0.1.1\tbox\n")
        assert (hostname, name) == ("box\n", "box\n")
        assert "nameserver" not in resolv

    def test_host(self, cli: Cli) -> None:
        hosts, hostname, resolv, name = files(cli, "--network", "host")
        assert hosts == Path("/etc/hosts").read_text()
        assert hostname == name == os.uname().nodename + "\n"
        assert resolv == Path("/etc/resolv.conf").read_text()

    @pytest.mark.parametrize("mode", ["bridge", "none", "host"])
    def test_what_was_asked_for(self, cli: Cli, mode: str) -> None:
        options = ("--dns", "203.0.113.53", "--dns-search", "corp.example", "--dns-option", "ndots:2", "--add-host", "db:203.0.113.5")
        hosts, _, resolv, _ = files(cli, "--network", mode, *options)
        assert resolv == "nameserver 203.0.113.53\nsearch corp.example\noptions ndots:2\n"
        assert "203.0.113.5\tdb\n" in hosts

    def test_host_gateway(self, cli: Cli) -> None:
        output = sh(cli, "grep up /etc/hosts; ip route | head -1", "--add-host", "up:host-gateway").split()
        assert output[0] == output[4]

    @pytest.mark.parametrize(("image", "command"), [("busybox", "ping -c1 -W30 $(hostname)"), ("host", "getent hosts $(hostname)")])
    def test_its_own_name_resolves(self, cli: Cli, image: str, command: str) -> None:
        assert sh(cli, f"{command} > /dev/null && echo found", image=image) == "found\n"

    def test_they_are_new_at_every_start(self, cli: Cli) -> None:
        """The address may be another one by then."""
        cli("run", "--name", "box", "busybox", "cat", "/etc/hosts")
        with running(cli, "thief"):
            cli("start", "-a", "box")
            taken = address(cli, "thief")
        first, second = (line.split()[0] for line in cli("logs", "box").stdout.splitlines()[2::3])
        assert second not in (taken, "127.0.0.1")
        assert first.startswith("10.")
        cli("rm", "box")


class TestPublishedPorts:
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_reachable_from_everywhere(self, cli: Cli, outside: Neighbour, protocol: str) -> None:
        with running(cli, "web", "-p", f"18080:80/{protocol}"), running(cli, "other"), server(cli, "web", protocol, 80):
            with outside.inside():
                assert ask(protocol, outside.host_address, 18080) == f"{outside.address} 80"  # the real client's address
            assert (ask(protocol, outside.host_address, 18080) or "").endswith(" 80")
            assert (ask(protocol, "127.0.0.1", 18080) or "").endswith(" 80")
            for name in ("web", "other"):
                with inside(cli, name):
                    assert (ask(protocol, outside.host_address, 18080) or "").endswith(" 80"), name

    def test_a_real_server_and_client(self, cli: Cli, outside: Neighbour) -> None:
        with running(cli, "web", "-p", "8080:80", command=("httpd", "-f", "-p", "80", "-h", "/etc")):
            await_listener(cli, "web", 80)
            url = f"http://{outside.host_address}:8080/hostname"
            hostname = cli("exec", "web", "hostname").stdout
            with outside.inside():
                assert (
                    subprocess.run(["busybox", "wget", "-qO-", url], capture_output=True, text=True, timeout=60, check=True).stdout
                    == hostname
                )
            assert subprocess.run(["busybox", "wget", "-qO-", "http://127.0.0.1:8080/hostname"],
                                  capture_output=True, text=True, timeout=60, check=True).stdout == hostname  # fmt: skip
            assert sh(cli, f"wget -qO- {url}") == hostname
            assert cli("port", "web").stdout == "80/tcp -> 0.0.0.0:8080\n"

    def test_what_is_not_published_is_out_of_reach(self, cli: Cli, outside: Neighbour) -> None:
        with running(cli, "web", "-p", "18080:80"), server(cli, "web", "tcp", 81), server(cli, "web", "tcp", 80):
            target = address(cli, "web")
            assert reachable("tcp", target, 81)  # the host reaches its sandboxes
            with outside.inside():
                assert out_of_reach("tcp", outside.host_address, 81)
                outside.execute("ip", "route", "add", "10.0.0.0/8", "via", outside.host_address)
                for port in (80, 81):
                    assert out_of_reach("tcp", target, port)

    def test_one_address_only(self, cli: Cli, outside: Neighbour) -> None:
        with running(cli, "web", "-p", "127.0.0.1:18080:80"), server(cli, "web", "tcp", 80):
            assert reachable("tcp", "127.0.0.1", 18080)
            assert out_of_reach("tcp", outside.host_address, 18080)
            with outside.inside():
                assert out_of_reach("tcp", outside.host_address, 18080)

    def test_a_range(self, cli: Cli, outside: Neighbour) -> None:
        with running(cli, "web", "-p", "18000-18002:80-82"), server(cli, "web", "tcp", 80), server(cli, "web", "tcp", 82):
            with outside.inside():
                assert ask("tcp", outside.host_address, 18000) == f"{outside.address} 80"
                assert out_of_reach("tcp", outside.host_address, 18001)
                assert ask("tcp", outside.host_address, 18002) == f"{outside.address} 82"
                assert out_of_reach("tcp", outside.host_address, 18003)
            assert cli("port", "web").stdout == "80-82/tcp -> 0.0.0.0:18000-18002\n"
            assert cli("port", "web", "81").stdout == "0.0.0.0:18001\n"

    def test_a_free_port(self, cli: Cli) -> None:
        with running(cli, "web", "-p", "80", "-p", "127.0.0.1::53/udp"), server(cli, "web", "tcp", 80), server(cli, "web", "udp", 53):
            tcp, udp = (int(cli("port", "web", port).stdout.rpartition(":")[2]) for port in ("80/tcp", "53/udp"))
            assert (ask("tcp", "127.0.0.1", tcp) or "").endswith(" 80")
            assert (ask("udp", "127.0.0.1", udp) or "").endswith(" 53")

    def test_closed_again_after_the_end(self, cli: Cli, outside: Neighbour) -> None:
        with running(cli, "web", "-p", "18080:80"):
            cli("stop", "-t", "0", "web")
            mine = serve("tcp", 18080)  # the port is the host's again
            mine.close()
            cli("start", "web")
            with server(cli, "web", "tcp", 80):
                assert (ask("tcp", "127.0.0.1", 18080) or "").endswith(" 80")

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_a_port_taken_by_a_sandbox(self, cli: Cli, protocol: str) -> None:
        with running(cli, "first", "-p", f"18080:80/{protocol}"):
            for verb in (("run", "--rm"), ("run", "--dry-run")):
                result = cli(*verb, "-p", f"127.0.0.1:18080:80/{protocol}", "busybox", "true", check=125)
                assert f"port 18080/{protocol} is published by sandbox first" in result.stderr
            cli("run", "--rm", "-p", f"18080:80/{'udp' if protocol == 'tcp' else 'tcp'}", "busybox", "true")

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_a_port_taken_by_a_process(self, cli: Cli, protocol: str) -> None:
        listener = serve(protocol, 18080)
        try:
            for verb in (("run", "--rm"), ("run", "--dry-run")):
                result = cli(*verb, "-p", f"18080:80/{protocol}", "busybox", "true", check=125)
                assert f"port 18080/{protocol} is in use by " in result.stderr
                assert str(os.getpid()) in result.stderr
        finally:
            listener.close()

    def test_a_stopped_sandbox_whose_port_was_taken_meanwhile(self, cli: Cli) -> None:
        with running(cli, "first", "-p", "18080:80"):
            cli("stop", "-t", "0", "first")
            with running(cli, "second", "-p", "18080:80"):
                assert "is published by sandbox second" in cli("start", "first", check=125).stderr
                assert inspect(cli, "first")["state"] == "exited"
                assert "is published by sandbox second" in inspect(cli, "first")["error"]
            cli("start", "first")

    def test_with_a_user_namespace(self, cli: Cli, outside: Neighbour) -> None:
        with running(cli, "web", "--userns", "auto", "-p", "8080:80", command=("httpd", "-f", "-p", "80", "-h", "/etc")):
            await_listener(cli, "web", 80)
            assert subprocess.run(["busybox", "wget", "-qO-", f"http://{outside.host_address}:8080/hostname"],
                                  capture_output=True, timeout=60, check=True).stdout  # fmt: skip


class TestAddresses:
    def test_ip_and_mac(self, cli: Cli) -> None:
        subnet = re.search(r"ip address add (10\.\d+\.\d+)\.1/", cli("run", "--dry-run", "busybox", "true").stdout)
        assert subnet is not None
        wanted = f"{subnet[1]}.77"
        with running(cli, "box", "--ip", wanted, "--mac-address", "02:42:AC:11:00:02"):
            output = cli("exec", "box", "ip", "address", "show", "eth0").stdout
            assert f"inet {wanted}/20" in output
            assert "link/ether 02:42:ac:11:00:02" in output
            result = cli("run", "--rm", "--ip", wanted, "busybox", "true", check=125)
            assert f"the address {wanted} is taken by sandbox box" in result.stderr
            result = cli("run", "--rm", "--mac-address", "02:42:ac:11:00:02", "busybox", "true", check=125)
            assert "the MAC 02:42:ac:11:00:02 is taken by sandbox box" in result.stderr
            cli("restart", "-t", "0", "box")
            assert address(cli, "box") == wanted

    def test_the_mtu_is_that_of_the_way_out(self, cli: Cli, private_host: PrivateHost) -> None:
        neighbour = Neighbour(mtu=1380)
        try:
            assert sh(cli, "cat /sys/class/net/eth0/mtu") == "1380\n"
        finally:
            neighbour.close()

    def test_starts_at_once_never_share_an_address(self, cli: Cli) -> None:
        """Ten processes race for the network's bring-up, for addresses and for free ports."""
        processes = [cli.popen("run", "-d", "--name", f"box{i}", "-p", "0.0.0.0::80", "busybox", "sleep", "100") for i in range(10)]
        for process in processes:
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
        documents = json.loads(cli("inspect", *(f"box{i}" for i in range(10))).stdout)
        endpoints = [document["network"]["endpoints"][0] for document in documents]
        assert len({endpoint["address"] for endpoint in endpoints}) == 10
        assert len({endpoint["mac_address"] for endpoint in endpoints}) == 10
        assert len({document["network"]["ports"][0][1] for document in documents}) == 10
        cli("rm", "-f", *(f"box{i}" for i in range(10)), timeout=60)

    def test_starts_and_ends_at_once(self, cli: Cli) -> None:
        """One's take-down of the network meets the other's bring-up."""
        processes = [cli.popen("run", "--rm", "busybox", "ip", "route") for _ in range(10)]
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
            assert out.startswith("default via ")
