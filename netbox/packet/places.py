"""Where a probe, a capture or a trace starts and where it goes: a place that packets leave from, a target that they are for.

A place is a sandbox, ``host``, or ``lan``: a neighbour of this machine, made for the occasion (see ``lan``). A target is one of these or
an address, with a port where one was written: ``db``, ``db:5432``, ``db:53/udp``, ``10.0.0.1:80``, ``[2001:db8::1]:80``, ``host:22``,
``example.org:443``. What a sandbox's name stands for depends on who asks:

- from another sandbox: its address on the first network that the two share, else its first address; a port is one inside it
- from the host: a port that it publishes under this number is asked for at the published address (127.0.0.1 where that is every address);
  any other port is one inside it, at its own address
- from the lan: a published port, by host port first and by inside port then, at the host's address on that lan; what is not published is
  asked for at the sandbox's own address, by way of the host

``finding`` turns names into these values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from netbox.errors import WrongState, host_error
from netbox.kernel.processes import start_time
from netbox.spec import PortSpec

if TYPE_CHECKING:
    from netbox.engine import Engine
    from netbox.packet.lan import Neighbour

SANDBOX, HOST, LAN = "sandbox", "host", "lan"


@dataclass(frozen=True)
class Place:
    """Whose network namespace it is. ``name`` is as typed, ``title`` the sandbox's name, ``host`` or ``lan``.

    ``kind`` is ``sandbox``, ``host`` or ``lan``. ``pid`` is pid 1 of the sandbox and ``pid_start`` its start time, so that a later process
    with its number is told apart; ``state`` is ``running`` or ``paused``. A place of kind ``lan`` holds the neighbour: leave it as a
    context manager, or ``close`` it.
    """

    name: str
    kind: str
    title: str
    sandbox_id: str | None = None
    pid: int | None = None
    pid_start: int | None = None
    state: str = "running"
    neighbour: Neighbour | None = field(default=None, compare=False, repr=False)

    def open(self) -> int:
        """A file descriptor of the network namespace; the caller closes it.

        Raises:
            WrongState: the sandbox has ended.
            HostError: the kernel refuses.
        """
        try:
            if self.neighbour is not None:
                return os.dup(self.neighbour.fd)
            if self.pid is None:
                return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise self._ended() from error
        except OSError as error:
            raise host_error("enter", f"the network of {self.title}", error) from error
        if start_time(self.pid) != self.pid_start:  # asked after it was opened: the number may be another process's by now
            os.close(fd)
            raise self._ended()
        return fd

    def _ended(self) -> WrongState:
        return WrongState(f"{self.title} has just ended", f"start it again (netbox start {self.title})")

    def close(self) -> None:
        """Takes down a neighbour that was made for this place."""
        if self.neighbour is not None:
            self.neighbour.close()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def to_json(self) -> dict[str, Any]:
        """The place as plain JSON values."""
        return {"name": self.name, "kind": self.kind, "title": self.title, "sandbox_id": self.sandbox_id, "pid": self.pid}


@dataclass(frozen=True)
class Target:
    """Where packets go.

    ``name`` is as typed; ``address`` what it stands for, IPv4 or IPv6; ``port`` and ``protocol`` (tcp, udp, sctp) as far as they were
    written. ``place`` is where packets should arrive: the sandbox, the host, the lan; ``None`` for any other address. ``network`` is the
    one that source and target share. ``published`` is the published port that is used: then ``address`` and ``port`` are the host's side,
    and ``inner`` is (address, port) in the sandbox.
    """

    name: str
    address: str
    port: int | None = None
    protocol: str | None = None
    place: Place | None = None
    network: str | None = None
    published: PortSpec | None = None
    inner: tuple[str, int | None] | None = None
    written_as_name: bool = False

    @property
    def sandbox_id(self) -> str | None:
        """The id of the sandbox, if it is one."""
        return self.place.sandbox_id if self.place else None

    @property
    def title(self) -> str:
        """``db (10.20.30.3)``, or the address alone."""
        if self.place is not None:
            return f"{self.place.title} ({self.address})"
        return f"{self.name} ({self.address})" if self.written_as_name else self.address

    @property
    def is_ipv6(self) -> bool:
        """Whether the address is one of IPv6."""
        return ":" in self.address

    def close(self) -> None:
        """Takes down a neighbour that was made for this target."""
        if self.place is not None:
            self.place.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def to_json(self) -> dict[str, Any]:
        """The target as plain JSON values."""
        return {
            "name": self.name,
            "address": self.address,
            "port": self.port,
            "protocol": self.protocol,
            "kind": self.place.kind if self.place else "address",
            "sandbox_id": self.sandbox_id,
            "network": self.network,
            "published": None if self.published is None else self.published._asdict(),
        }


def source(engine: Engine, text: str) -> Place:
    """The place of this name: a sandbox (name, id, prefix of an id), ``host`` or ``lan``.

    Raises:
        NotFound: there is none.
        WrongState: the sandbox does not run.
        NoPermission: not root.
    """
    from netbox.packet import finding

    return finding.source(engine, text)


def target(engine: Engine, place: Place, text: str, protocol: str | None = None, port: int | None = None, *, ipv6: bool = False) -> Target:
    """What ``text`` means to packets that start at ``place``; see the head of this module.

    ``protocol`` and ``port`` hold where the text has none; ``ipv6`` asks for an IPv6 address where there are both.

    Raises:
        NotFound: neither a sandbox nor a name that the place can resolve.
        WrongState: the sandbox does not run, or has no address.
        UsageError: not a target.
    """
    from netbox.packet import finding

    return finding.target(engine, place, text, protocol, port, ipv6=ipv6)
