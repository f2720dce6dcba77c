"""What a light command and the start path load: the heavy libraries stay out, measured in real processes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.cli import CHECKOUT, Cli

HEAVY = {"scapy", "pyroute2", "iptc", "rich", "pyseccomp", "zstandard", "asyncio"}
# The start path is a fresh interpreter for every sandbox; each of these costs it a millisecond or more.
NOT_BEFORE_A_START = HEAVY | {
    *("argparse", "click", "contextlib", "dataclasses", "enum", "inspect", "logging", "pathlib", "re", "shutil", "sqlite3", "subprocess"),
    *("tempfile", "threading", "typing"),
}


def _loaded(stderr: str) -> set[str]:
    """The top-level packages in the report of ``-X importtime``."""
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", stderr, re.MULTILINE)
    assert len(names) > 3, stderr
    return {name.partition(".")[0] for name in names}


def _python(*arguments: str, cli: Cli) -> set[str]:
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, env=cli.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return _loaded(result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import netbox"),
        ("-m", "netbox.cli", "--help"),
        ("-m", "netbox.cli", "run", "--help"),
        ("-m", "netbox.cli", "ps"),
        ("-m", "netbox.cli", "version"),
        ("-m", "netbox.cli", "network", "ls"),
        ("-c", "import netbox.packet, netbox.packet.probing.api, netbox.packet.verifying.run"),
        ("-m", "netbox.cli", "probe", "host", "127.0.0.1"),
        ("-c", "import netbox.packet.diagnosis.api, netbox.packet.diagnosis.following, netbox.packet.tracing.follow"),
        ("-c", "import netbox.pytest_plugin"),
    ],
    ids=["import", "help", "run-help", "ps", "version", "network", "packet", "probe", "why", "pytest-plugin"],
)
def test_light_commands_load_no_heavy_library(arguments: tuple[str, ...], cli: Cli) -> None:
    heavy = HEAVY - {"asyncio", "rich"} if "pytest_plugin" in arguments[-1] else HEAVY  # pytest itself may load these two
    assert _python(*arguments, cli=cli) & heavy == set()


def test_import_netbox_loads_nothing_at_all(cli: Cli) -> None:
    code = "import sys; before = set(sys.modules); import netbox; print(*(set(sys.modules) - before))"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}]; {code}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["netbox"]


def test_the_monitor_is_light() -> None:
    code = f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}]; import netbox.runtime.monitor; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "netbox" in loaded
    assert loaded & NOT_BEFORE_A_START == set()
