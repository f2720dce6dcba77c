"""``scripts/bench capture``: does ``netbox capture`` lose packets at 50,000 a second?

A flow between two sandboxes is seen on both ends of both links.
Every datagram has to be in the file once for each of the four interfaces; what the kernel dropped is what the capture itself says.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time

from tests.bench import place, processes
from tests.bench.place import Place

PORT = 9999
INTERFACES = 4


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench capture", description=__doc__)
    parser.add_argument("--rate", type=int, default=50_000, help="datagrams a second (50000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long (5)")
    parser.add_argument("--size", type=int, default=100, help="bytes in a datagram (100)")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a packet was lost")
    options = parser.parse_args(sys.argv[1:])
    if os.geteuid() != 0:
        print("scripts/bench: this needs root: sudo scripts/bench capture", file=sys.stderr)
        return 2
    return place.run_inside(lambda where: measure(where, options))


def measure(where: Place, options: argparse.Namespace) -> int:
    """One run; prints what came of it."""
    environment = {
        **os.environ,
        "NETBOX_ROOT": str(where.directory / "root"),
        "NETBOX_RUN": "/run/netbox",
        "NETBOX_CGROUP": f"{where.cgroup}/netbox",
        "PYTHONPATH": os.getcwd(),
    }
    netbox = [sys.executable, "-m", "netbox.cli"]
    addresses = {}
    try:
        for name in ("bench-a", "bench-b"):
            processes.run([*netbox, "run", "-d", "--name", name, "busybox", "sleep", "1000"], environment)
            shown = processes.run([*netbox, "inspect", name], environment)
            found = re.search(r'"address": "([0-9.]+)"', shown)
            pid = re.search(r'"pid": ([0-9]+)', shown)
            assert found is not None
            assert pid is not None
            addresses[name] = (found[1], f"/proc/{pid[1]}/ns/net")
        return _flow(where, options, environment, netbox, addresses)
    finally:
        processes.run([*netbox, "rm", "-f", "bench-a", "bench-b"], environment)


def _flow(
    where: Place, options: argparse.Namespace, environment: dict[str, str], netbox: list[str], addresses: dict[str, tuple[str, str]]
) -> int:
    target, receiving = addresses["bench-b"]
    path = where.directory / "bench.pcapng"
    flow = [sys.executable, "-m", "tests.bench.packet_flow"]
    rest = [target, str(PORT), str(options.rate), str(options.seconds), str(options.size)]
    pipe = subprocess.PIPE
    filter_ = ["-f", f"udp port {PORT}"]
    with (
        subprocess.Popen(
            [*netbox, "capture", "bench-a", "bench-b", "-w", str(path), *filter_], env=environment, stderr=pipe, text=True
        ) as capture,
        subprocess.Popen([*flow, "receive", receiving, *rest], env=environment, stdout=pipe, text=True) as receiver,
    ):
        assert capture.stderr is not None
        assert receiver.stdout is not None
        capture.stderr.readline()
        receiver.stdout.readline()
        before, begun = _ticks(capture.pid), time.monotonic()
        sent = int(processes.run([*flow, "send", addresses["bench-a"][1], *rest], environment))
        took = time.monotonic() - begun
        received = int(receiver.stdout.read())
        ticks = _ticks(capture.pid) - before
        capture.terminate()
        summary = capture.stderr.read()
    total, dropped = map(int, re.findall(r"^([0-9]+) packets? recorded, ([0-9]+) dropped", summary, re.MULTILINE)[0])
    missing = sent * INTERFACES - total
    load = 100 * ticks / os.sysconf("SC_CLK_TCK") / took
    print(f"{sent} datagrams sent at {sent / took:,.0f}/s, {received} received; {total} sightings on {INTERFACES} interfaces recorded")
    print(
        f"{dropped} dropped by the kernel, {missing} missing in the file of {path.stat().st_size >> 20} MiB; capture used {load:.0f} % CPU"
    )
    return 1 if options.check and (dropped or missing) else 0


def _ticks(pid: int) -> int:
    """The processor time of a process, in clock ticks (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))


if __name__ == "__main__":
    sys.exit(main())
