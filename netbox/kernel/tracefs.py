"""Packet events without BPF: an instance of tracefs of our own, apart from everybody else's tracing.

Its text tells less than BPF does: a packet is an address, a device, a length; no headers and no namespace. The file system is mounted for
this process alone (a detached mount, gone with its descriptor), but an instance outlives its process: the caller journals its name first.
Source: https://docs.kernel.org/trace/ftrace.html
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from netbox.errors import Unsupported
from netbox.kernel import syscalls
from netbox.kernel.packet_event import CONSUME, DELIVER, DROP, TRANSMIT, PacketEvent
from netbox.kernel.symbols import Symbols

PREFIX = "netbox-"
_EVENTS = {"net_dev_queue": "net", "netif_receive_skb": "net", "kfree_skb": "skb", "consume_skb": "skb"}
_KINDS = {"net_dev_queue": TRANSMIT, "netif_receive_skb": DELIVER, "kfree_skb": DROP, "consume_skb": CONSUME}
_LINE = re.compile(r".*?\s(?P<seconds>\d+)\.(?P<fraction>\d+): (?P<name>\w+): (?P<rest>.*)")
_FIELD = re.compile(r"(\w+)[=:]\s*(\S+)")
_ADDRESS = re.compile(r"[0-9a-f]{16}")
_ATTEMPTS = 50
_REMEMBERED = 8192
_READS = 4096  # of a page each: packets may come faster than they are read
_NO_REASONS = ("NOT_SPECIFIED", "NOT_DROPPED_YET", "CONSUMED")


class TracefsSource:
    """A stream of packet events; see ``PacketSource``. ``before`` is called with the instance's name before it is made.

    Raises:
        Unsupported: this kernel or this process cannot.
    """

    name = "tracefs"

    def __init__(self, before: Callable[[str], object]) -> None:
        self._instance = f"{PREFIX}{os.getpid()}-{time.monotonic_ns():x}"
        self._pipe = -1
        self._rest = b""
        self._symbols = Symbols()
        self._devices: OrderedDict[int, tuple[str, int]] = OrderedDict()
        self._root = _mount()
        try:
            before(self._instance)
            try:
                os.mkdir(f"instances/{self._instance}", 0o700, dir_fd=self._root)
                self._write("trace_clock", "mono")
                with contextlib.suppress(OSError):  # since Linux 5.12; a location is an address up to 6.1
                    self._write("trace_options", "nohash-ptr")
                self._pipe = os.open(self._path("trace_pipe"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._root)
                for event, system in _EVENTS.items():
                    self._write(f"events/{system}/{event}/enable", "1")
            except OSError as error:
                raise _refused("make an instance of tracefs", error) from error
        except BaseException:
            self.close()
            raise

    def _path(self, name: str) -> str:
        return f"instances/{self._instance}/{name}"

    def _write(self, name: str, value: str) -> None:
        descriptor = os.open(self._path(name), os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._root)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)

    def fileno(self) -> int:
        """See ``PacketSource``."""
        return self._pipe

    def read(self) -> list[PacketEvent]:
        """See ``PacketSource``."""
        found = []
        for _ in range(_READS):
            try:
                data = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                event = parse(line.decode(errors="replace"))
                if event is not None:
                    found.append(self._with_device(event))
        return found

    def _with_device(self, event: PacketEvent) -> PacketEvent:
        """The end of a packet is told without its device: that where it was last seen."""
        if _ADDRESS.fullmatch(event.function):
            event = event._replace(function=self._symbols.name(int(event.function, 16)))
        if event.kind in (TRANSMIT, DELIVER):
            self._devices[event.skb] = (event.device, event.length)
            while len(self._devices) > _REMEMBERED:
                self._devices.popitem(last=False)
            return event
        device, length = self._devices.pop(event.skb, ("", 0))
        return event._replace(device=device, length=length)

    def close(self) -> None:
        """Takes the instance away."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        _remove(self._root, self._instance)
        os.close(self._root)


def parse(line: str) -> PacketEvent | None:
    """A line of trace_pipe; ``None`` for one of another kind, or for a packet that was freed without a reason. Pure."""
    match = _LINE.fullmatch(line)
    if match is None or match["name"] not in _KINDS:
        return None
    fields = dict(_FIELD.findall(match["rest"]))
    kind, reason = _KINDS[match["name"]], fields.get("reason", "")
    if kind == DROP and (not reason or reason in _NO_REASONS):
        return None
    moment = int(match["seconds"]) * 1_000_000_000 + int(match["fraction"].ljust(9, "0")[:9])
    function = fields.get("location", "").partition("+")[0]
    try:
        skb = int(fields.get("skbaddr", "0"), 16)
        return PacketEvent(moment, kind, skb, 0, 0, fields.get("dev", ""), 0, int(fields.get("len", "0")), b"", reason, function)
    except ValueError:
        return None


def remove(instance: str) -> None:
    """Takes an instance away that a killed process has left; none is fine. Raises ``Unsupported``."""
    if not instance.startswith(PREFIX) or "/" in instance:
        raise ValueError(f"not one of ours: {instance}")
    root = _mount()
    try:
        _remove(root, instance)
    finally:
        os.close(root)


def _remove(root: int, instance: str) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            os.rmdir(f"instances/{instance}", dir_fd=root)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # The files of the killed process close a moment after it.
            if error.errno != errno.EBUSY or attempt == _ATTEMPTS - 1:
                raise _refused("remove an instance of tracefs", error) from error
            time.sleep(0.02)


def _mount() -> int:
    """A descriptor of a mount of tracefs that hangs nowhere: nobody else sees it."""
    try:
        context = syscalls.fsopen("tracefs")
        try:
            syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
            return syscalls.fsmount(context)
        finally:
            os.close(context)
    except OSError as error:
        raise _refused("mount tracefs", error) from error


def _refused(operation: str, error: OSError) -> Unsupported:
    hint = (
        "it needs CONFIG_FTRACE" if error.errno in (errno.ENODEV, errno.ENOENT) else "it needs root, and a kernel that is not locked down"
    )
    return Unsupported(f"tracefs is not allowed here: cannot {operation}: {os.strerror(error.errno or 0)}", hint)
