"""One lock for all changes of our rules in a network namespace, whichever backend makes them.

It is ``flock`` on the namespace's own file (``/proc/thread-self/ns/net``): whoever is in the same namespace gets the same lock, there is no
file to leave behind, and it goes with its holder.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from netbox.errors import FirewallError, host_error
from netbox.kernel import flock

NAMESPACE = "/proc/thread-self/ns/net"
TIMEOUT = 20.0  # seconds

_held = threading.local()


@contextmanager
def exclusive() -> Iterator[None]:
    """Holds the lock of the calling thread's network namespace; may be nested.

    Raises:
        FirewallError: another process held it for ``TIMEOUT`` seconds.
    """
    try:
        fd = os.open(NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise host_error("open", NAMESPACE, error) from error
    try:
        status = os.fstat(fd)
        holding: set[tuple[int, int]] = _held.__dict__.setdefault("namespaces", set())
        namespace = (status.st_dev, status.st_ino)
        if namespace in holding:
            yield
            return
        if not flock.acquire(fd, TIMEOUT):
            raise FirewallError(f"another netbox has been changing firewall rules for {TIMEOUT:g} s", "try again")
        holding.add(namespace)
        try:
            yield
        finally:
            holding.discard(namespace)
    finally:
        os.close(fd)
