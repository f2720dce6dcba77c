"""``netbox.packet.capture``: a capture in the background of a Python program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from netbox.engine import Engine
from netbox.packet.capturing.session import Capture
from netbox.packet.capturing.sinks import Sink, open_output
from netbox.packet.capturing.values import RING_SIZE, SNAPSHOT_LENGTH, InterfaceSummary, Limits, Selection, parse_limits, parse_rotation


class Recording:
    """A capture that runs until ``stop``, or the end of the ``with`` block.

    ``path`` is its file, ``summary`` what was recorded on each interface once it has stopped, ``total`` the number of packets so far.
    """

    def __init__(
        self, engine: Engine, selection: Selection, path: str, ring: str | None, filter: str, size: int, limits: Limits, verdicts: bool
    ) -> None:
        rotation = parse_rotation(ring) if ring is not None else None
        self.path = path
        self.summary: tuple[InterfaceSummary, ...] = ()
        self._capture = Capture(
            engine, selection, filter=filter, snapshot_length=size, ring_size=RING_SIZE, limits=limits, verdicts=verdicts
        )
        self._engine = engine
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._output: Callable[[], Sink] = lambda: open_output(path, rotation, size, filter)
        self._thread = threading.Thread(target=self._record, name="netbox-capture", daemon=True)
        self._thread.start()
        self._ready.wait()
        self._raise_failure()

    @property
    def total(self) -> int:
        """How many packets were recorded so far."""
        return self._capture.total

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end that ``count`` or ``duration`` set; whether it has come within ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Ends it; the file is complete then. Stopping twice is fine.

        Raises:
            HostError: the file could not be written.
        """
        self._capture.stop()
        self._thread.join()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._thread.join()
            failure, self._failure = self._failure, None
            raise failure

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _record(self) -> None:
        try:
            try:
                self._capture.open(self._output())
                self._ready.set()
                self._capture.run()
            finally:
                self.summary = tuple(self._capture.close())
        except BaseException as error:  # noqa: BLE001 - the top of the thread: ``stop`` raises it where it is seen
            self._failure = error
        finally:
            self._engine._context.store.close()  # this thread's connection
            self._ready.set()


def capture(
    engine: Engine,
    *names: str,
    write: str,
    networks: tuple[str, ...] = (),
    all: bool = False,
    labels: tuple[tuple[str, str], ...] = (),
    interfaces: tuple[str, ...] = (),
    filter: str = "",
    from_start: bool = False,
    ring: str | None = None,
    snapshot_length: int = SNAPSHOT_LENGTH,
    count: int | None = None,
    duration: float | None = None,
    verdicts: bool = False,
) -> Recording:
    """Records packets of sandboxes into the pcapng file ``write``: ``with packet.capture(engine, "web", write="web.pcapng"):``.

    A thread of its own does it.

    Everything is recorded from the return on. The arguments are those of ``netbox capture``; ``duration`` is in seconds,
    ``snapshot_length`` in bytes, ``ring`` as ``"10x50MB"``.

    Raises:
        UsageError: nothing was chosen, or the filter or a limit makes no sense.
        NotFound, WrongState: a sandbox or network is not there, or does not run.
        HostError: the file cannot be made, or the kernel refuses.
        NoPermission: not root.
    """
    from netbox.errors import UsageError

    if not (names or networks or all or labels):
        raise UsageError("nothing to capture", "name sandboxes or networks, or use all=True")
    selection = Selection(names, networks, all, labels, interfaces, from_start)
    return Recording(engine, selection, write, ring, filter, snapshot_length, parse_limits(count, duration), verdicts)
