"""A capture: taps on every chosen place, packets put in order of time, and what comes and goes meanwhile. One thread, one poll loop."""

from __future__ import annotations

import os
import select
import socket
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import repeat
from operator import itemgetter

from netbox.engine import Engine, watchers
from netbox.engine.watchers import Arrival, Registration
from netbox.errors import NoPermission, Unsupported
from netbox.kernel import packet_ring, packet_source
from netbox.kernel.namespaces import identity
from netbox.kernel.packet_filter import check_filter, socket_program
from netbox.packet.capturing import subjects
from netbox.packet.capturing.copies import Copies
from netbox.packet.capturing.rulings import Rulings
from netbox.packet.capturing.sinks import Sink
from netbox.packet.capturing.subjects import HOST_NAME, Device, Subject
from netbox.packet.capturing.taps import Named, Tap
from netbox.packet.capturing.values import RING_SIZE, SNAPSHOT_LENGTH, Interface, InterfaceSummary, Limits, Packet, Selection
from netbox.packet.capturing.verdicts import Verdicts

HOLD = 3 * packet_ring.DELAY_MS * 1_000_000  # nanoseconds that a packet waits for older ones of other rings, and for news of its end
_FEW = 1000  # packets
_LOOK_AGAIN = 0.5  # seconds between two looks at what has happened to sandboxes
_LAST_BLOCK = 2 * packet_ring.DELAY_MS / 1000  # seconds until the kernel hands over a block that is not full
_LAST_PACKET = _LAST_BLOCK + HOLD / 1_000_000_000


class Capture:
    """``open``, ``run`` until a limit or ``stop`` (from a signal handler or another thread) ends it, ``close``. Everything but ``stop``
    belongs to one thread.

    ``verdicts`` asks for the firewall rules that packets met; ``notes`` says then what of it does not work on this host.

    Raises:
        NoPermission: the caller is not root.
        NotFound, WrongState: a sandbox or network that was asked for is not there.
        UsageError, Unsupported: the filter cannot be compiled.
    """

    def __init__(
        self,
        engine: Engine,
        selection: Selection,
        *,
        filter: str = "",
        snapshot_length: int = SNAPSHOT_LENGTH,
        ring_size: int = RING_SIZE,
        limits: Limits | None = None,
        verdicts: bool = False,
    ) -> None:
        if os.geteuid() != 0:
            raise NoPermission("cannot record packets: netbox needs root for that", "run it with sudo")
        selection = subjects.resolved(engine, selection)
        check_filter(filter)
        self._programs = {loopback: socket_program(filter, snapshot_length, loopback=loopback) for loopback in (False, True)}
        self._engine, self._selection, self._ring_size = engine, selection, ring_size
        self._limits = limits or Limits()
        self._sinks: tuple[Sink, ...] = ()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._subjects: dict[int, Subject] = {}  # by the number of their pidfd
        self._ending: dict[int, float] = {}
        self._gone: dict[tuple[object, ...], float] = {}
        self._taps: dict[tuple[object, ...], Tap] = {}
        self._interfaces: list[Interface] = []
        self._packets: dict[int, int] = {}
        self._ended: dict[int, InterfaceSummary] = {}
        self._waiting: list[Packet] = []
        self._copies = Copies()
        self._namespaces = {identity("/proc/thread-self/ns/net")[1]: HOST_NAME}
        self._names: dict[str, str] = {}
        self._verdicts: Verdicts | None = None
        self._with_rules = verdicts
        self._rulings: Rulings | None = None
        self._registration: Registration | None = None
        self._last_event = 0
        self._look_at = self._ends_at = self._drops_from = 0.0
        self._stopped = False
        self.total = 0
        self.notes: tuple[str, ...] = ()
        self._closed = False

    @property
    def interfaces(self) -> list[Interface]:
        """What is, or was, recorded."""
        return list(self._interfaces)

    # -- life ------------------------------------------------------------------------------------------------------------------------

    def open(self, *sinks: Sink) -> None:
        """Everything that is there is recorded from the return on, into every sink."""
        self._sinks = sinks
        self._watch(self._stop, self._on_stop)
        self._open_verdicts()
        if self._selection.waits:
            self._registration = Registration(self._engine.settings)
            self._watch(self._registration.fileno(), self._on_start)
        events = self._engine._context.store.events()
        self._last_event = events[-1].seq if events else 0
        self._add_names(subjects.all_names(self._engine))
        for subject in subjects.running(self._engine, self._selection, set()):
            self._add_namespace(subject)
            self._add_devices(subject)
        now = time.monotonic()
        self._look_at = now + _LOOK_AGAIN
        self._ends_at = now + self._limits.duration if self._limits.duration else float("inf")

    def run(self) -> None:
        """Records until a limit is reached, ``stop`` is called, or nothing is left to record.

        Raises:
            BrokenPipeError: the reader of a sink is gone.
            HostError: a sink cannot be written to.
        """
        while not self._stopped and time.monotonic() < self._ends_at:
            self._turn()
            if not self._subjects and not self._selection.waits:
                break
        if not self._reached():
            self._read_rest()
            self._flush(None)

    def stop(self) -> None:
        """Ends ``run`` soon; safe in a signal handler and from any thread, also when it has ended."""
        if not self._closed:
            os.eventfd_write(self._stop, 1)

    def close(self) -> list[InterfaceSummary]:
        """Lets go of everything and finishes the sinks. Returns what was recorded on each interface."""
        if self._closed:
            return list(self._ended.values())
        try:
            for key in list(self._taps):
                self._end_tap(key)
        finally:
            self._closed = True
            for sink in self._sinks:
                sink.close()
            for tap in self._taps.values():
                tap.close()
            for subject in self._subjects.values():
                subject.close()
            for resource in (self._verdicts, self._registration):
                if resource is not None:
                    resource.close()
            os.close(self._stop)
        return [self._ended[number] for number in sorted(self._ended)]

    # -- the loop --------------------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        ready = self._poll.poll(self._patience())
        begun = time.time_ns()  # what is older than this by HOLD is read in this turn, however long it takes
        for fd, _ in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
        now = time.monotonic()
        for number, due in list(self._ending.items()):
            if now >= due:
                self._end_subject(number)
        for key, due in list(self._gone.items()):
            if now >= due:
                self._taps[key].read_rest(self._waiting)
                self._end_tap(key)
        self._read_drops()
        self._flush(begun - HOLD)
        if now >= self._look_at:
            self._look_at = now + _LOOK_AGAIN
            self._look()

    def _patience(self) -> int:
        """Milliseconds until the loop has to do something by itself."""
        if self._waiting or self._ending or self._gone:
            return packet_ring.DELAY_MS
        return max(1, int(min(_LOOK_AGAIN, self._ends_at - time.monotonic()) * 1000) + 1)

    def _read_rest(self) -> None:
        for tap in self._taps.values():
            tap.ring.stop()
        time.sleep(_LAST_BLOCK)
        if self._verdicts is not None:
            self._verdicts.read()
        for tap in self._taps.values():
            tap.read_rest(self._waiting)

    def _flush(self, until: int | None) -> None:
        """Writes what is older than ``until``, in order of time; with ``None`` everything."""
        if not self._waiting:
            return
        self._waiting.sort(key=itemgetter(0))
        ready = self._waiting
        if until is not None:
            count = bisect_right(self._waiting, until, key=itemgetter(0))
            ready, self._waiting = self._waiting[:count], self._waiting[count:]
        else:
            self._waiting = []
        if self._limits.count is not None:
            ready = ready[: self._limits.count - self.total]
        if not ready:
            return
        identities = self._copies.identify(ready)
        verdicts: Iterable[str] = repeat("")
        if self._verdicts is not None and self._verdicts.some:
            of = self._verdicts.of
            verdicts = [of(data, way.interface.link_type) for _, way, data, _ in ready]
        records = list(zip(ready, identities, verdicts, strict=False))
        for number, count in Counter([way[0] for _, way, _, _ in ready]).items():
            self._packets[number] += count
        self.total += len(records)
        for sink in self._sinks:
            sink.write(records)
        self._stopped = self._stopped or self._reached()

    def _reached(self) -> bool:
        return self._limits.count is not None and self.total >= self._limits.count

    def _on_stop(self) -> None:
        self._stopped = True

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # -- what comes ------------------------------------------------------------------------------------------------------------------

    def _open_verdicts(self) -> None:
        if self._with_rules:
            self._rulings = Rulings(self._engine)
            self._verdicts = Verdicts(self._rulings, self._namespaces, self._rulings)
            self.notes = tuple(self._rulings.notes)
            return
        try:
            source, _ = packet_source.open_source(None, packet_source.DROPS, cache=f"{self._engine.settings.root}/cache/kernel")
        except Unsupported:
            return  # no verdicts here; everything else works
        if source is not None:
            self._verdicts = Verdicts(source, self._namespaces)

    def _read_drops(self) -> None:
        """Reads what was dropped; when many packets wait for a quarter of the time at most: in a flood of drops packets come first."""
        begun = time.monotonic()
        if self._verdicts is not None and (begun >= self._drops_from or len(self._waiting) < _FEW):
            self._verdicts.read()
            self._drops_from = begun + 4 * (time.monotonic() - begun)

    def _on_start(self) -> None:
        assert self._registration is not None
        channel = self._registration.accept()
        if channel is not None:
            self._watch(channel.fileno(), lambda: self._on_message(channel, None))

    def _on_message(self, channel: socket.socket, subject: Subject | None) -> None:
        message = watchers.receive(channel)
        if message is None:
            return
        if isinstance(message, Arrival):
            arrived = subjects.arriving(message)
            if self._selection.wants(message.id, message.name, message.labels, arrived.plan):
                self._add_namespace(arrived)
                watchers.answer(channel, watchers.ARMED)
                self._handlers[channel.fileno()] = lambda: self._on_message(channel, arrived)
                return
            self._add_names(subjects.names_of(arrived.name, arrived.plan))
            arrived.close()
            watchers.answer(channel, watchers.PASS)
        elif message is True and subject is not None:
            self._add_devices(subject)
            watchers.answer(channel, watchers.ARMED)
        self._forget(channel.fileno())
        channel.close()

    def _add_namespace(self, subject: Subject) -> None:
        """Hears the sandbox's own interfaces, or those that it shares, and waits for its end."""
        self._subjects[subject.pidfd] = subject
        self._watch(subject.pidfd, lambda: self._on_end(subject.pidfd))
        self._add_names(subjects.names_of(subject.name, subject.plan))
        if subjects.is_on_host(subject):
            return
        selection, owner = self._selection, subjects.namespace_name(self._engine, subject)
        mode = subject.plan.mode if subject.plan.endpoints or subject.plan.mode != "bridge" else "none"

        def label(interface: str) -> Named | None:
            wanted = selection.wants_interface(interface, mode)
            return (f"{owner}/{interface}", f"{interface} of sandbox {owner}") if wanted else None

        device, inode = identity(subject.netns)
        self._namespaces.setdefault(inode, owner)
        key = ("namespace", device, inode)
        if key not in self._taps:
            program = self._programs[selection.wants_interface("lo", mode)]
            if self._rulings is not None:
                self._rulings.add(owner, subject.netns)
            self._add_tap(key, Tap.on_namespace(subject.netns, program, self._ring_size, label, self._add_interface))
        self._taps[key].users.add(subject.pidfd)

    def _add_names(self, records: list[tuple[str, str]]) -> None:
        new = {address: name for address, name in records if self._names.get(address) != name}
        if new:
            self._names |= new
            for sink in self._sinks:
                sink.add_names(list(new.items()))

    def _add_devices(self, subject: Subject) -> None:
        """Hears the host's side of a sandbox; its own side may have got interfaces since the namespace was there."""
        for tap in self._taps.values():
            if subject.pidfd in tap.users:
                tap.announce()
        if subjects.is_on_host(subject):
            devices = subjects.shared_devices(subject, self._selection)
        else:
            devices = subjects.host_devices(subject, self._selection)
        for device in devices:
            self._add_device(device, subject)

    def _add_device(self, device: Device, subject: Subject) -> None:
        try:
            # By its index: the link of a sandbox that starts again has the name of the last one.
            key = ("device", socket.if_nametoindex(device.device))
        except OSError:
            return  # not there yet, or not any more: the next look finds out
        if key not in self._taps:
            program = self._programs[device.device == "lo"]
            tap = Tap.on_device(device.device, program, self._ring_size, (device.name, device.description), self._add_interface)
            if tap is None:
                return
            self._add_tap(key, tap)
        self._taps[key].users.add(subject.pidfd)

    def _add_tap(self, key: tuple[object, ...], tap: Tap) -> None:
        self._taps[key] = tap
        self._watch(tap.ring.fileno(), lambda: self._on_ring(key))
        tap.announce()

    def _add_interface(self, named: Named, link_type: int) -> Interface:
        interface = Interface(len(self._interfaces), *named, link_type)
        self._interfaces.append(interface)
        self._packets[interface.number] = 0
        for sink in self._sinks:
            sink.add_interface(interface)
        return interface

    def _look(self) -> None:
        """After something has happened to sandboxes: starts that were not announced, connects and disconnects."""
        events = self._engine._context.store.events(after=self._last_event)
        if not events:
            return
        self._last_event = events[-1].seq
        self._add_names(subjects.all_names(self._engine))
        live = [subject for number, subject in self._subjects.items() if number not in self._ending]
        for subject in live:
            plan = subjects.current_plan(self._engine, subject.id)
            if plan is not None:
                renewed = self._subjects[subject.pidfd] = subject._replace(plan=plan)
                self._add_devices(renewed)  # also those of a start that did not wait for this capture
        if self._selection.waits:
            for subject in subjects.running(self._engine, self._selection, {subject.id for subject in live}):
                self._add_namespace(subject)
                self._add_devices(subject)

    # -- what goes -------------------------------------------------------------------------------------------------------------------

    def _on_ring(self, key: tuple[object, ...]) -> None:
        tap = self._taps[key]
        tap.read(self._waiting)
        if tap.ring.take_error() and tap.is_gone():
            self._gone[key] = time.monotonic() + _LAST_PACKET

    def _on_end(self, number: int) -> None:
        """The sandbox has ended; its last packets are in blocks that the kernel has not handed over yet."""
        self._forget(number)
        self._ending[number] = time.monotonic() + _LAST_PACKET

    def _end_subject(self, number: int) -> None:
        del self._ending[number]
        subject = self._subjects.pop(number)
        for key, tap in list(self._taps.items()):
            tap.users.discard(number)
            if not tap.users:
                tap.read_rest(self._waiting)
                self._end_tap(key)
        subject.close()

    def _end_tap(self, key: tuple[object, ...]) -> None:
        tap = self._taps.pop(key)
        if self._rulings is not None and isinstance(inode := key[-1], int) and key[0] == "namespace":
            self._rulings.forget(inode)
        self._gone.pop(key, None)
        self._forget(tap.ring.fileno())
        interfaces = {interface.number for interface in tap.interfaces()}
        if any(way.interface.number in interfaces for _, way, _, _ in self._waiting):
            self._flush(None)
        try:
            for interface, counters in tap.statistics(self._packets):
                packets = self._packets[interface.number]
                self._ended[interface.number] = InterfaceSummary(interface.name, packets, counters.lost, counters.refused)
                for sink in self._sinks:
                    sink.end_interface(interface, counters)
        finally:
            tap.close()
