"""Names of sandboxes on user-defined networks, through the command line."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.e2e.boxes import await_listener
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until


def lookup(cli: Cli, sandbox: str, name: str, check: int | None = 0) -> str:
    return cli("exec", sandbox, "nslookup", name, check=check).stdout


def test_names_follow_the_sandboxes(private_host: PrivateHost, cli: Cli) -> None:
    for network in ("front", "back"):
        cli("network", "create", network)
    cli("run", "-d", "--name", "web", "--network", "front", "busybox", "httpd", "-f")
    cli("run", "-d", "--name", "db", "--network", "back", "--network-alias", "database", "busybox", "sleep", "60")
    assert "can't find" in lookup(cli, "web", "db.back", check=None)  # a stranger's network
    cli("network", "connect", "back", "web")
    address = cli("exec", "db", "hostname", "-i").stdout.strip()
    for name in ("db", "database", "db.back"):
        assert f"Address: {address}" in lookup(cli, "web", name, check=None)
    await_listener(cli, "web", 80)
    cli("exec", "db", "wget", "-qO-", "http://web.back:80/nothing", check=1)  # 404: found, reached, answered
    cli("rename", "web", "www")
    assert "Address: 10." in lookup(cli, "db", "www.back").partition("Name:")[2]
    assert "NXDOMAIN" in lookup(cli, "db", "web.back.netbox.internal", check=None)
    cli("network", "disconnect", "front", "www")
    assert f"Address: {address}" in lookup(cli, "www", "db.back")
    cli("rm", "-f", "db")
    assert "can't find" in lookup(cli, "www", "db.back", check=None)
    cli("rm", "-f", "www")
    cli("network", "rm", "front", "back")


def test_a_killed_name_service_comes_back(private_host: PrivateHost, cli: Cli) -> None:
    cli("network", "create", "front")
    cli("run", "-d", "--name", "web", "--network", "front", "busybox", "sleep", "60")
    cli("run", "-d", "--name", "db", "--network", "front", "busybox", "sleep", "60")

    def both() -> list[int]:
        found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and name_of(path) == "netbox-names"]
        return found if len(found) == 2 else []

    servers = wait_until(both, "the name service and its standby")
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in servers), "the name service to die")
    cli("ps")  # any command puts it back
    assert "Address: 10." in lookup(cli, "web", "db.front").partition("Name:")[2]
    cli("rm", "-f", "web", "db")
    cli("network", "rm", "front")


def name_of(process: Path) -> str:
    try:
        # Only those of this test's network: a name service of the machine is none of our business.
        if os.stat(process / "ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
            return ""
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
