"""Who may delete what in the store, and half-made directories that do not outlive their maker.

Two kinds of flock(2), both released by the kernel when their holder dies:

- ``.lock`` of the store: held shared while something begins to use a layer or puts one in place, exclusively while unused layers are taken
  away.
- ``lock`` inside a workspace: held by its maker. A workspace whose lock is free belongs to nobody; ``Workspace.abandoned`` finds it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from netbox.image.removal import remove_tree

PREFIX = ".incoming-"


class StoreLock:
    """The store's lock, per thread: nested use by the same thread is free, except exclusive inside shared, which would wait for itself."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._held = threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While held, no layer disappears. Raises OSError when the store cannot be made."""
        with self._take(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While held, nobody else holds it in any way."""
        if getattr(self._held, "kind", None) == fcntl.LOCK_SH:
            raise RuntimeError("the exclusive lock was asked for while the shared one is held")
        with self._take(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _take(self, kind: int) -> Iterator[None]:
        if getattr(self._held, "kind", None) is not None:
            yield
            return
        fd = self._open()
        try:
            fcntl.flock(fd, kind)
            self._held.kind = kind
            yield
        finally:
            self._held.kind = None
            os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(f"{self._directory}/.lock", flags, 0o600)
        except FileNotFoundError:
            # 0700: set-user-id files of an image must be out of reach for the users of this machine
            os.makedirs(self._directory, 0o700, exist_ok=True)
            return os.open(f"{self._directory}/.lock", flags, 0o600)


@contextmanager
def one_maker(directory: str, name: str) -> Iterator[None]:
    """Held while an image that makes itself is made: who comes second waits, and finds it. Raises OSError."""
    fd = os.open(f"{directory}/.{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Workspace:
    """A directory on the store's file system for what is being made or deleted. It goes when the ``with`` block ends, however it ends.

    The caller holds the store's lock while making or adopting one, so that nobody takes it for abandoned before it is locked.
    """

    def __init__(self, path: str, lock: int | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, directory: str) -> Workspace:
        """A new, empty one in ``directory``."""
        path = f"{directory}/{PREFIX}{os.urandom(8).hex()}"
        os.mkdir(path, 0o700)
        lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return cls(path, lock)

    @classmethod
    def abandoned(cls, directory: str) -> list[Workspace]:
        """Those whose maker died, now ours to end. The caller holds the store's exclusive lock."""
        found = []
        for name in sorted(os.listdir(directory)):
            if not name.startswith(PREFIX):
                continue
            path, lock = f"{directory}/{name}", None
            # without a lock file its maker died before locking it, or someone is deleting it already: two may do that at once
            with suppress(FileNotFoundError):
                lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
            found.append(cls(path, lock))
        return found

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            remove_tree(self.path)
        finally:
            if self._lock is not None:
                os.close(self._lock)
