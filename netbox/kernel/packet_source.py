"""What the kernel does with packets, as a stream of ``PacketEvent``: by BPF where it is allowed, else by a private instance of tracefs.

``PacketSource`` costs nothing until it is opened and leaves nothing behind when its process is killed (for tracefs see there).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from netbox.errors import Unsupported
from netbox.kernel import bpf, btf
from netbox.kernel.packet_event import PacketEvent
from netbox.kernel.packet_programs import ENUMS, OFFSETS, PREFIX, Wanted, decode, program
from netbox.kernel.symbols import Symbols

BPF, TRACEFS, NONE = "bpf", "tracefs", "none"
TRACERS = (BPF, TRACEFS, NONE)
DROPS = ("kfree_skb",)
WAY = ("net_dev_queue", "netif_receive_skb", "kfree_skb", "consume_skb")
_RING = 1 << 22  # bytes: some 20,000 packets


class PacketSource(Protocol):
    """A running stream of packets."""

    name: str

    def fileno(self) -> int:
        """Readable when there may be events."""

    def read(self) -> list[PacketEvent]:
        """The events that are there, in no certain order between processors; ``time`` tells."""

    def close(self) -> None:
        """Ends it."""


class BpfSource:
    """Programs on the tracepoints ``tracepoints`` (names of ``packet_programs.TRACEPOINTS``). ``cache`` is a directory for what is slow to
    find out about this kernel.

    Raises:
        Unsupported: this kernel or this process cannot.
    """

    name = BPF

    def __init__(self, tracepoints: Sequence[str] = WAY, wanted: Wanted | None = None, cache: str | None = None) -> None:
        layout = btf.layout(OFFSETS, ENUMS, cache)
        self._reasons = btf.without_prefix(layout.enums[ENUMS[0]], PREFIX)
        self._symbols = Symbols(cache)
        self._attached = bpf.Attached(bpf.RingBuffer(_RING))
        try:
            for tracepoint in tracepoints:
                self._add(tracepoint, layout, wanted or Wanted())
        except ValueError as error:
            self._attached.close()
            raise Unsupported(str(error), "use another tracer (--tracer tracefs)") from error
        except BaseException:
            self._attached.close()
            raise

    def _add(self, tracepoint: str, layout: btf.Layout, wanted: Wanted) -> None:
        given = (tracepoint, layout.offsets, layout.enums[ENUMS[0]], self._attached.ring.fileno(), wanted)
        try:
            self._attached.add(tracepoint, program(*given))
        except Unsupported as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EINVAL:
                raise
            self._attached.add(tracepoint, program(*given, located=False))

    def fileno(self) -> int:
        """See ``PacketSource``."""
        return self._attached.ring.fileno()

    def read(self) -> list[PacketEvent]:
        """See ``PacketSource``."""
        found = []
        for record in self._attached.ring.read():
            event, location = decode(record, self._reasons)
            found.append(event._replace(function=self._symbols.name(location)) if location else event)
        return found

    def close(self) -> None:
        """See ``PacketSource``."""
        self._attached.close()

    def __enter__(self) -> BpfSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_source(
    tracer: str | None,
    tracepoints: Sequence[str] = WAY,
    wanted: Wanted | None = None,
    cache: str | None = None,
    before: Callable[[str], object] | None = None,
) -> tuple[PacketSource | None, list[str]]:
    """The best stream that this host allows, with a note for each that it does not; ``None`` without any. ``tracer`` asks for one.
    ``before`` is called with the name of the tracefs instance before it is made; without it tracefs is not used.

    Raises:
        Unsupported: the one that was asked for cannot be had.
    """
    if tracer == NONE:
        return None, []
    notes: list[str] = []
    for name in (BPF, TRACEFS) if tracer is None else (tracer,):
        try:
            return _open(name, tracepoints, wanted, cache, before), notes
        except Unsupported as error:
            if tracer is not None:
                raise
            notes.append(str(error))
    return None, notes


def _open(
    name: str, tracepoints: Sequence[str], wanted: Wanted | None, cache: str | None, before: Callable[[str], object] | None
) -> PacketSource:
    if name == BPF:
        return BpfSource(tracepoints, wanted, cache)
    if before is None:
        raise Unsupported("tracefs is not used for this")
    from netbox.kernel.tracefs import TracefsSource

    return TracefsSource(before)
