"""What a monitor becomes when its sandbox has ended and nobody else sees to the clean-up."""

from __future__ import annotations

import os
import sys

from netbox.errors import NetboxError
from netbox.settings import Settings

PATIENCE = 1.0  # seconds; who holds the sandbox for longer has started it again
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def command(sandbox_id: str) -> list[str]:
    """The command line that runs ``main`` for a sandbox, in the environment that the monitor gives it.

    It finds this very package, whatever the working directory and however the caller found it.
    """
    code = f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); from netbox.engine.collector import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", code, sandbox_id]


def main() -> int:
    """Settles the sandbox and takes idle networks down. Exit code 1 when something stays for the next ``netbox gc``."""
    from netbox.engine import ending, recovery  # starting.py imports this module for its command
    from netbox.engine.context import Context

    context = Context(Settings.from_environment())
    try:
        ending.settle(context, sys.argv[1], PATIENCE)
        recovery.release_networks(context)
    except NetboxError as error:
        print(f"netbox: {error}", file=sys.stderr)
        return 1
    return 0
