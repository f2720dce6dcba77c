"""``netbox extcap``, called by the real tshark."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbox.cli.extcap import SYSTEM_DIRECTORIES
from tests.e2e.boxes import inspect, running
from tests.support import linux
from tests.support.cli import Cli
from tests.support.host import PrivateHost
from tests.support.waiting import wait_until


@pytest.fixture
def directory(private_host: PrivateHost, tmp_path: Path) -> Iterator[Path]:
    """An empty directory in place of that of this machine's tshark."""
    candidates = (Path(pattern.format(f"{os.uname().machine}-linux-gnu")) for pattern in SYSTEM_DIRECTORIES)
    path = next(path for path in candidates if path.is_dir())
    linux.mount(str(tmp_path), str(path), flags=linux.MS_BIND)
    yield path
    linux.umount(str(path))


def tshark(cli: Cli, *arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(["tshark", *arguments], env=cli.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert check is None or result.returncode == check, result.stderr
    return result


def test_tshark_lists_and_records_sandboxes(cli: Cli, directory: Path, tmp_path: Path) -> None:
    assert cli("extcap", "--install").stdout == f"{directory}/netbox\n"
    with running(cli, "web"):
        listed = tshark(cli, "-D").stdout
        for name in ("netbox-all (netbox: every sandbox)", "netbox-network-bridge (", "netbox-sandbox-web (netbox: sandbox web)"):
            assert name in listed
        assert "EN10MB" in tshark(cli, "-i", "netbox-sandbox-web", "-L").stdout
        gateway = inspect(cli, "web")["network"]["endpoints"][0]["gateway"]
        fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "icmp.type"]
        command = ["tshark", "-l", "-i", "netbox-sandbox-web", "-f", "icmp", "-c", "4", *fields]
        with subprocess.Popen(command, env=cli.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
            # tshark says when it has begun only after the first packet: so until it is content there is always another one.
            wait_until(lambda: cli("exec", "web", "ping", "-c", "1", gateway) and reader.poll() is not None, "four packets", timeout=60)
            out, errors = reader.communicate(timeout=60)
        assert reader.returncode == 0, errors
        rows = [line.split("\t") for line in out.splitlines()]
        assert len(rows) == 4
        assert {row[0] for row in rows} == {"web/eth0", "web/host-end"}
    assert cli("extcap", "--uninstall").stdout == f"{directory}/netbox\n"
    assert list(tmp_path.iterdir()) == []
    assert "netbox" not in tshark(cli, "-D").stdout


def test_the_protocol(cli: Cli) -> None:
    assert cli("extcap", "--extcap-interfaces", "--extcap-version=4.0").stdout.splitlines()[0].startswith("extcap {version=")
    options = cli("extcap", "--extcap-config", "--extcap-interface", "netbox-all").stdout
    assert "{call=--loopback}" in options
    assert "{call=--verdicts}" in options
    check = ("extcap", "--extcap-interface", "netbox-all", "--extcap-capture-filter")
    assert cli(*check, "tcp port 80").stdout == ""
    assert "syntax error" in cli(*check, "tcp porto").stdout
    record = ("extcap", "--capture", "--fifo", "/nowhere/fifo", "--extcap-interface")
    assert "no such interface: eth0" in cli(*record, "eth0", check=125).stderr
    assert "cannot write /nowhere/fifo" in cli(*record, "netbox-all", check=125).stderr
    assert "nothing to do" in cli("extcap", check=125).stderr


def test_what_others_have_put_there_stays(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "netbox").write_text("#!/bin/sh\n")
    for verb in ("--install", "--uninstall"):
        assert "was not made by netbox" in cli("extcap", verb, "--directory", str(tmp_path), check=125).stderr
    assert (tmp_path / "netbox").read_text() == "#!/bin/sh\n"
