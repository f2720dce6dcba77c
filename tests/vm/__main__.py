"""``python -m tests.vm``: see ``--help``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.vm import machine
from tests.vm.kernel import Failed, kernel

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT = ["tests/contract"]


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The command line: our own options, and pytest's arguments."""
    parser = argparse.ArgumentParser(
        prog="scripts/test-vm",
        usage="%(prog)s [--memory MIB] [--timeout SECONDS] [--command] [pytest arguments…]",
        description="Runs tests on Debian's own kernel, with cgroup version 2, in a virtual machine that sees this machine's files.",
        epilog=f"Without arguments: {' '.join(DEFAULT)}. Without KVM everything takes about four times as long.",
        allow_abbrev=False,
    )
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB", help="of the machine (3072)")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="for everything (3600)")
    parser.add_argument("--command", action="store_true", help="what follows is a command instead of arguments for pytest")
    return parser.parse_known_args()


def main() -> int:
    """Makes the machine, runs the tests, removes the machine."""
    options, rest = arguments()
    command = rest if options.command else [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(rest or DEFAULT)]
    variables = {"PYTHONPATH": str(CHECKOUT), "NETBOX_NO_SKIP": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}
    variables["PY_COLORS"] = str(int(sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    prefix = ["env", f"--chdir={CHECKOUT}", *(f"{name}={value}" for name, value in variables.items())]
    start = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # by way of the clean-up
    try:
        found = kernel()
        print(f"Linux {found.release} in {machine.QEMU}: {' '.join(command)}", flush=True)
        code = machine.run(found, [*prefix, *command], memory=options.memory, processors=2, timeout=options.timeout)
    except Failed as error:
        print(f"scripts/test-vm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"exit code {code} after {time.monotonic() - start:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
