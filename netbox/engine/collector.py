"""``python -m netbox.engine.collector ID``: what a monitor becomes when its sandbox has ended and nobody else sees to the clean-up."""

from __future__ import annotations

import sys

from netbox.engine import ending, recovery
from netbox.engine.context import Context
from netbox.errors import NetboxError
from netbox.settings import Settings


def main() -> int:
    """Settles the sandbox and takes idle networks down. Exit code 1 when something stays for the next ``netbox gc``."""
    context = Context(Settings.from_environment())
    try:
        ending.settle(context, sys.argv[1])
        recovery.release_networks(context)
    except NetboxError as error:
        print(f"netbox: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
