"""Following a dockerd that starts while sandboxes run.

dockerd may set the policy of FORWARD to DROP, and an internal network is cut off then until netbox's accepts stand in the chain that it
makes (``docker_user``). No netbox command need run at that moment, but where such a network stands the name service does: it hears of the
new chain from the kernel and starts ``main`` in a process of its own, which does what the next start of a sandbox would do.
"""

from __future__ import annotations

import os
import sys

from netbox.errors import NetboxError
from netbox.network import docker_user
from netbox.settings import Settings
from netbox.state.store import Store

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_KEPT = ("PATH", "NETBOX_")


def command() -> list[str]:
    """The command line that runs ``main``, with the interpreter and the packages of the caller."""
    code = f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); from netbox.network.dockerd import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", code]


def environment() -> dict[str, str]:
    """What of the caller's environment it gets: where the state is, and which firewall backend was asked for."""
    return {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}


def main() -> int:
    """Lets the networks that stand pass. Exit code 1 when that failed: ``netbox check`` says why, ``netbox repair`` tries again."""
    from netbox.network import firewall_switch, networks

    store = Store(Settings.from_environment())
    try:
        with networks.locked(store.settings):
            firewall_switch.follow(store)
            docker_user.follow(store)
    except NetboxError as error:
        print(f"netbox: {error}", file=sys.stderr)
        return 1
    finally:
        store.close()
    return 0
