"""What a test may leave behind: a snapshot of everything, and the difference of two."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from tests.support import cgroups

Snapshot = dict[str, set[str]]

_KEPT_BELOW_ROOT = re.compile(r"state\.db(-wal|-shm)?|cache/.*|images/(?!\.incoming)[^/]+/.*|.*\.lock")
_KEPT_BELOW_RUN = re.compile(r"[^/]+\.lock")
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "net/ipv6/conf/default/accept_ra",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    *(f"net/ipv4/conf/all/{name}" for name in ("forwarding", "route_localnet", "rp_filter", "arp_ignore")),
    *(f"net/ipv4/conf/default/{name}" for name in ("forwarding", "route_localnet", "rp_filter", "arp_ignore")),
)


def links() -> set[str]:
    """The interfaces of the calling thread's network namespace."""
    return {name for _, name in socket.if_nameindex()}


def routes() -> set[str]:
    """The IPv4 routes of the calling thread's network namespace, without their counters."""
    lines = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
    return {" ".join((fields[0], fields[1], fields[2], fields[7])) for fields in map(str.split, lines)}


def firewall() -> set[str]:
    """The rules, chains and policies of all legacy tables of both families. Tables as the kernel makes them count as nothing."""
    found: set[str] = set()
    for command in ("iptables-legacy-save", "ip6tables-legacy-save"):
        result = subprocess.run([command], capture_output=True, text=True, timeout=60, check=True)
        table = ""
        for line in result.stdout.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":"):
                chain, policy = line[1:].split()[:2]
                if policy != "ACCEPT":
                    found.add(f"{command.partition('-')[0]} -t {table} chain {chain} {policy}")
            elif line.startswith("-"):
                found.add(f"{command.partition('-')[0]} -t {table} {line}")
    return found | _nft_rules()


def _nft_rules() -> set[str]:
    """Our own table of nf_tables: its chains, rules and elements. Others' tables are seen through ``nft list ruleset`` as whole lines."""
    text = subprocess.run(["nft", "-j", "-s", "list", "ruleset"], capture_output=True, text=True, timeout=60, check=True).stdout
    found = set()
    for item in json.loads(text)["nftables"]:
        for kind, value in item.items():
            if kind == "metainfo" or (kind == "chain" and value.get("policy") == "accept" and value["table"] != "netbox"):
                continue
            plain = {key: part for key, part in value.items() if key not in ("handle", "elem")}
            found.add(f"nft {kind} {plain}")
            found |= {f"nft {kind} {value['name']} element {part}" for part in value.get("elem", ())}
    return found


def mounts() -> set[str]:
    """The mounts of the calling process: where, type, source."""
    found = set()
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = after.split()
        found.add(f"{before.split()[4]} {fields[0]} {fields[1]}")
    return found


def sysctls() -> set[str]:
    """The values of the settings that netbox may change in a network namespace."""
    found = set()
    for name in _SYSCTLS:
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{name.replace('/', '.')} = {Path('/proc/sys', name).read_text().strip()}")
    return found


def files(directory: Path, kept: re.Pattern[str]) -> set[str]:
    """The files and non-empty directories below ``directory`` that no process may leave."""
    found: set[str] = set()
    for path, names, file_names in os.walk(directory):
        entries = file_names + [name for name in names if Path(path, name).is_symlink()]
        found.update(str(Path(path, name)) for name in entries)
        if Path(path).parent.name == "sandboxes":
            found.add(path + "/")
    return {path for path in found if not kept.fullmatch(str(Path(path).relative_to(directory)))}


def state_rows(database: Path) -> set[str]:
    """The rows of the state database that belong to a sandbox: every table that has such a column, and the sandboxes themselves."""
    if not database.exists():
        return set()
    found = set()
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in sorted(set(tables) & {"sandboxes", "leases", "ports", "id_ranges", "journal"}):
            cursor = connection.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                values = dict(zip(columns, row, strict=True))
                if table == "leases" and "sandbox_id" in values and not values["sandbox_id"]:
                    continue  # a released lease is remembered, so that its address is the last to be given out again
                found.add(f"{table}: " + ", ".join(f"{key}={str(value)[:60]}" for key, value in values.items() if value is not None))
    except sqlite3.DatabaseError as error:
        if "not a database" not in str(error) and "malformed" not in str(error):
            raise  # a test that damages the file on purpose has no rows
    finally:
        connection.close()
    return found


def open_files() -> set[str]:
    """The open fds of this process as ``number -> target``. Sockets that python-iptables caches for good are closed first."""
    gc.collect()
    iptc = sys.modules.get("iptc.ip4tc"), sys.modules.get("iptc.ip6tc")
    for module, name in zip(iptc, ("Table", "Table6"), strict=True):
        for table in list(getattr(module, name)._cache.values()) if module else ():
            if table._handle:
                table.autocommit = False  # close() would commit
                table.close()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("/proc/"):  # the listing's own
                found.add(f"{name} -> {target}")
    return found


def threads() -> set[str]:
    """The running threads of this process."""
    return {f"{thread.name} ({thread.native_id})" for thread in threading.enumerate()}


def describe_process(pid: int) -> str:
    """``pid: command line`` of a process, for a person."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid}: gone"
    return f"{pid}: {command[:160] or '(no command line)'}"


def snapshot(root: Path, run: Path, cgroup_parent: str, mark: Path) -> Snapshot:
    """Everything that a test inside a private host could leave. ``mark`` is the cgroup that all processes of this test run are in."""
    pids = cgroups.processes(mark) - {os.getpid()}
    for hierarchy in cgroups.hierarchies():
        pids |= cgroups.processes(hierarchy / cgroup_parent)
    return {
        "link": links(),
        "route": routes(),
        "firewall": firewall(),
        "mount": mounts(),
        "cgroup": cgroups.below(cgroup_parent),
        "process": {describe_process(pid) for pid in pids},
        "file": files(root, _KEPT_BELOW_ROOT) | files(run, _KEPT_BELOW_RUN),
        "state": state_rows(root / "state.db"),
        "sysctl": sysctls(),
        "open file": open_files(),
        "thread": threads(),
    }


def run_prefix() -> str:
    """How the cgroups of this test run are called, on its controller and on its workers."""
    return f"netbox-test-{os.environ.setdefault('NETBOX_TEST_RUN', secrets.token_hex(8))}"


def machine_snapshot() -> Snapshot:
    """What a whole test run must leave alone on the machine itself. The cgroups of other test runs are theirs."""
    return {
        "link": links(),
        "route": routes(),
        "firewall": firewall(),
        "mount": mounts(),
        "cgroup": {path for path in cgroups.below("") if _is_mine(path)},
        "file": {str(path) for path in (Path("/var/lib/netbox"), Path("/run/netbox")) if path.exists()},
        "sysctl": sysctls(),
    }


def _is_mine(path: str) -> bool:
    """Whether a cgroup is of this test run, or of netbox as no test run calls it."""
    parts = path.split("/")
    runs = [part for part in parts if part.startswith("netbox-test-")]
    return runs[0].startswith(run_prefix()) if runs else "netbox" in parts


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """One line per thing that appeared (``+``) or vanished (``-``), grouped by kind. A vanished process, fd or thread is nobody's loss."""
    lines = []
    for kind in after:
        lines += [f"+ {kind}: {item}" for item in sorted(after[kind] - before[kind])]
        if kind not in ("process", "open file", "thread"):
            lines += [f"- {kind}: {item}" for item in sorted(before[kind] - after[kind])]
    return lines
