"""``netbox check``: the table, the document, the exit code; and that trying things out leaves nothing (the leak check looks)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.host import PrivateHost

DASH = "\N{EN DASH}"
GROUPS = ["machine", "namespaces", "cgroups", "network", "firewall", "file systems", "security", "debugging"]


def facts(cli: Cli, **env: str) -> dict[str, dict[str, object]]:
    document = json.loads(cli("check", "--format", "json", check=None, env=env).stdout)
    return {f"{fact['group']}/{fact['name']}": fact for fact in document["facts"]}


def test_table(cli: Cli) -> None:
    result = cli("check")
    assert result.stderr == ""
    titles = [line for line in result.stdout.splitlines() if line and not line.startswith(" ")]
    assert titles[:-1] == GROUPS
    assert titles[-1].startswith("netbox can run here: ")
    rows = [line for line in result.stdout.splitlines() if line[:4].strip() in ("✓", DASH, "✗")]
    assert len(rows) == len(facts(cli))
    assert not any(line.startswith("  ✗") for line in rows)
    assert all(len(line) <= 110 for line in result.stdout.splitlines()[:-1])


def test_document(cli: Cli) -> None:
    result = cli("check", "--format", "json")
    document = json.loads(result.stdout)
    assert document["usable"] is True
    groups = list(dict.fromkeys(fact["group"] for fact in document["facts"]))
    assert groups == GROUPS
    for fact in document["facts"]:
        assert set(fact) == {"group", "name", "state", "purpose", "detail", "remedy", "required"}
        assert fact["state"] in ("ok", "limited", "missing")
        assert fact["purpose"]
        if fact["state"] == "missing":
            assert fact["remedy"], fact["name"]
    required = {fact["name"] for fact in document["facts"] if fact["required"]}
    assert {"root", "network", "veth", "bridge", "ip_tables", "overlay"} <= required


def test_it_agrees_with_the_machine(cli: Cli) -> None:
    found = facts(cli)
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    for name in ("overlay", "tmpfs", "devpts", "mqueue"):
        assert (found[f"file systems/{name}"]["state"] == "ok") == (name in known)
    assert (found["machine/tini"]["state"] == "ok") == os.access("/usr/bin/tini-static", os.X_OK)
    assert (found["machine/busybox"]["state"] == "ok") == os.path.exists("/bin/busybox")


def test_what_is_missing_is_told_with_how_to_get_it(cli: Cli, private_host: PrivateHost) -> None:
    """Nothing that the main job needs, so it is usable."""
    hidden = private_host.base / "empty"
    hidden.touch()
    subprocess.run(["mount", "--bind", str(hidden), "/usr/bin/tini-static"], check=True, timeout=60)
    try:
        result = cli("check")
        assert facts(cli)["machine/tini"]["state"] == "missing"
    finally:
        subprocess.run(["umount", "/usr/bin/tini-static"], check=True, timeout=60)
    assert f"  {DASH} tini" in result.stdout
    assert "→ apt install tini" in result.stdout
    assert "tini" in result.stdout.splitlines()[-1]


def test_exit_code_when_the_main_job_cannot_run(cli: Cli) -> None:
    """The extensions of iptables hidden, as on a machine that has its libraries (systemd brings them) and not the package."""
    hidden = next(path for path in (f"/usr/lib/{os.uname().machine}-linux-gnu/xtables", "/usr/lib64/xtables") if os.path.isdir(path))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", hidden], check=True, timeout=60)
    try:
        result = cli("check", check=1)
        assert json.loads(cli("check", "--format", "json", check=1).stdout)["usable"] is False
        start = cli("run", "--rm", "-p", "18080:80", "busybox", "true", check=125)
    finally:
        subprocess.run(["umount", hidden], check=True, timeout=60)
    assert "  ✗ " in result.stdout
    assert "netbox cannot run here" in result.stdout.splitlines()[-1]
    for output in (result.stdout, start.stderr):
        assert "apt install iptables" in output
    assert len(start.stderr.splitlines()) == 1


@pytest.mark.parametrize("width", ["40", "60", "200"])
def test_it_fits_the_terminal(cli: Cli, width: str) -> None:
    lines = cli("check", env={"COLUMNS": width}).stdout.splitlines()
    assert lines[0] == "machine"
    assert any("netbox can run here" in line for line in lines)
