"""Which firewall rules a packet meets: the kernel's own trace of nf_tables and of the legacy tables, in one network namespace.

A table of nf_tables (see ``trace_tables``) that belongs to this process (``flags owner``: it goes with the process's socket, however that
ends) marks the packets that are asked for with ``meta nftrace set 1``. The mark lies in the packet, so the legacy tables report it too, as
if a ``TRACE`` rule of raw had matched: no rule of theirs is needed. Chains of that table at both ends of each hook say what the packet
looks like there, and by which devices it comes and goes.

nf_tables reports over nfnetlink (NFT_MSG_TRACE), the legacy tables through the namespace's log (``nf_log``; see ``log_group``). Where it
goes is a sysctl of the namespace that the caller sets, see ``LOG_SYSCTL``. Sources: nft(8), iptables-extensions(8) TRACE,
<linux/netfilter/nf_tables.h>, <linux/netfilter/nfnetlink_log.h>
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from netbox.errors import FirewallError, NetboxError
from netbox.kernel.log_group import COPY_LENGTH, LogGroup, holder
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.netfilter_socket import attributes, messages, open_socket, text
from netbox.kernel.nftables_context import NftablesContext
from netbox.kernel.trace_tables import HOOKS, OWN_PREFIX, commands

LOG_SYSCTL = {4: "net.netfilter.nf_log.2", 6: "net.netfilter.nf_log.10"}
LOG_TO_NETLINK = "nfnetlink_log"

_GROUP_NFTRACE = 9  # NFNLGRP_NFTRACE
_TRACE_MESSAGE = 10 << 8 | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_LOG_MESSAGE = 4 << 8 | 0  # NFNL_SUBSYS_ULOG, NFULNL_MSG_PACKET
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _NETWORK, _TRANSPORT, _IIF, _OIF, _POLICY = (
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    9,
    10,
    12,
    16,
)  # NFTA_TRACE_*
_TYPES = {1: "policy", 2: "return", 3: "rule"}
_VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_PACKET_HEADER, _LOG_IIF, _LOG_OIF, _PAYLOAD, _PREFIX = 1, 4, 5, 9, 10  # NFULA_*
_BUFFER = 4 << 20
_WAITING_MAX = 1 << 14  # messages: more than the buffer holds
_JUMP_TARGET = 2  # NFTA_VERDICT_CHAIN
_WAITING = "rules of legacy iptables may be missing: the netbox that reads them for all who trace was stopped (bring it to the foreground)"
_numbers = itertools.count(1)


class RuleRecord(NamedTuple):
    """A rule (or a chain's end) that a packet met.

    ``netns`` is the inode number of the network namespace. ``kind`` is ``rule``, ``policy`` or ``return``. ``number`` is a rule's position
    for ``iptables`` and its handle for ``nftables``. ``verdict`` is known for nftables only. ``hook`` is empty where the record does not
    say it, and begins with the family for hooks of another than inet (``bridge forward``). ``packet`` begins with the
    network header; records of nf_tables have it only once per chain on a hook. ``identity`` is the same for the records of one packet in
    nf_tables.
    """

    netns: int
    backend: str
    family: str
    table: str
    chain: str
    kind: str
    number: int
    verdict: str
    target: str
    hook: str
    in_device: str
    out_device: str
    packet: bytes
    identity: int = 0


class RuleTracer:
    """Traces in one network namespace until it is closed. ``matches`` are what packets to follow look like, in the words of nft(8).

    ``legacy`` asks for the legacy tables' records as well (the log has to go to netlink then, see ``LOG_SYSCTL``); ``notes`` says what
    of it does not work. Raises ``Unsupported`` without libnftables, ``FirewallError``, ``NoPermission``, ``OSError``.
    """

    def __init__(self, netns_fd: int, matches: Sequence[str], legacy: bool) -> None:
        self.netns = os.fstat(netns_fd).st_ino
        self.notes: list[str] = []
        self._devices: dict[int, str] = {}
        self._log: LogGroup | None = None
        self._fd = os.dup(netns_fd)
        self.table = f"{OWN_PREFIX}{os.getpid()}_{next(_numbers)}"
        try:
            if legacy:
                self._log = self._open_log()
            with inside_netns(netns_fd):
                self._socket = open_socket(groups=[_GROUP_NFTRACE], buffer=_BUFFER)
                self._socket.setblocking(False)
                try:
                    self._context = NftablesContext()
                    lines, self._families = commands(self.table, matches, self._context.run("list chains"))
                    self._context.run("\n".join(lines))
                except BaseException:
                    self._socket.close()
                    raise
        except BaseException:
            if self._log is not None:
                self._log.close()
            os.close(self._fd)
            raise

    def _open_log(self) -> LogGroup | None:
        try:
            return LogGroup(self._fd)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            busy = f"{holder(self._fd) or 'another program'} reads NFLOG group 0"
            reason = busy if error.errno in (errno.EPERM, errno.EBUSY) else "the kernel lacks nfnetlink_log"
            self.notes.append(f"rules of legacy iptables are not seen: {reason}")
            return None

    def filenos(self) -> list[int]:
        """What to poll: readable when there are records."""
        return [self._socket.fileno(), *(self._log.filenos() if self._log else [])]

    def read(self) -> list[RuleRecord]:
        """The records that are there: those of each of the two sources in their order, nf_tables' first."""
        # Read last, so that it shows every packet that the log tells of.
        log = self._log.read() if self._log is not None else []
        if self._log is not None and self._log.is_waiting and _WAITING not in self.notes:
            self.notes.append(_WAITING)
        found = [record for data in _waiting(self._socket) for record in self._trace_records(data)]
        return found + [record for data in log for record in self._log_records(data)]

    def _trace_records(self, data: bytes) -> Iterator[RuleRecord]:
        for kind, family, fields in messages(data):
            if kind != _TRACE_MESSAGE:
                continue
            verdict = attributes(fields.get(_VERDICT, b""))
            code = struct.unpack(">i", verdict[1])[0] if 1 in verdict else None
            event = _TYPES.get(_number(fields.get(_TYPE, b"")), "")
            if event == "policy" and code is None:
                code = _number(fields.get(_POLICY, b""))
            hook, _, end = text(fields.get(_CHAIN, b"")).partition("_")
            own = text(fields.get(_TABLE, b"")) == self.table
            name = _FAMILIES.get(family, str(family))
            place = hook if name == "inet" else f"{name} {hook}"
            yield RuleRecord(
                self.netns,
                "nftables",
                name,
                text(fields.get(_TABLE, b"")),
                end if own else text(fields.get(_CHAIN, b"")),
                event,
                _number(fields.get(_HANDLE, b"")),
                _VERDICTS.get(code, "") if code is not None else "",
                text(verdict.get(_JUMP_TARGET, b"")),
                place if own else "",
                self._device(_number(fields.get(_IIF, b""))),
                self._device(_number(fields.get(_OIF, b""))),
                fields.get(_NETWORK, b"") + fields.get(_TRANSPORT, b""),
                _number(fields.get(_ID, b"")),
            )

    def _log_records(self, data: bytes) -> Iterator[RuleRecord]:
        for kind, family, fields in messages(data):
            if kind != _LOG_MESSAGE:
                continue
            place = parse_prefix(text(fields.get(_PREFIX, b"")))
            if place is None:
                continue
            table, chain, event, number = place
            hook = fields[_PACKET_HEADER][2]
            yield RuleRecord(
                self.netns,
                "iptables",
                _FAMILIES.get(family, str(family)),
                table,
                chain,
                event,
                number,
                "",
                "",
                HOOKS[hook] if hook < len(HOOKS) else "",
                self._device(_number(fields.get(_LOG_IIF, b""))),
                self._device(_number(fields.get(_LOG_OIF, b""))),
                fields.get(_PAYLOAD, b"")[:COPY_LENGTH],
            )

    def _device(self, index: int) -> str:
        if not index:
            return ""
        if index not in self._devices:
            with inside_netns(self._fd):
                try:
                    self._devices[index] = socket.if_indextoname(index)
                except OSError:
                    self._devices[index] = f"if{index}"  # it has gone meanwhile
        return self._devices[index]

    def listing(self) -> str:
        """The namespace's nf_tables rules as nft(8) lists them, with handles, without elements of sets. Raises ``FirewallError``."""
        with inside_netns(self._fd):
            return self._context.run("list ruleset", handles=True)

    def close(self) -> None:
        """Takes the tables away and stops listening."""
        try:
            self._context.run("\n".join(f"delete table {family} {self.table}" for family in self._families))
        except NetboxError:
            pass  # it goes with the context
        self._context.close()
        self._socket.close()
        if self._log is not None:
            self._log.close()
        os.close(self._fd)


def parse_prefix(prefix: str) -> tuple[str, str, str, int] | None:
    """``TRACE: filter:FORWARD:rule:3 `` as (table, chain, kind, number); ``None`` for another program's log record. Pure."""
    if not prefix.startswith("TRACE: "):
        return None
    parts = prefix.removeprefix("TRACE: ").strip().split(":")
    if len(parts) < 4 or not parts[-1].isdecimal():
        return None
    return parts[0], ":".join(parts[1:-2]), parts[-2], int(parts[-1])


def has_legacy_tables(family: int) -> bool:
    """Whether the calling thread's namespace has tables of legacy iptables (``family`` 4) or ip6tables (6)."""
    try:
        with open(f"/proc/thread-self/net/{'ip' if family == 4 else 'ip6'}_tables_names", encoding="ascii") as file:
            return bool(file.read().strip())
    except OSError:
        return False


def _waiting(sock: socket.socket) -> Iterator[bytes]:
    """What is there: not all that comes meanwhile, which may come faster than it is read."""
    for _ in range(_WAITING_MAX):
        try:
            yield sock.recv(1 << 17)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # records were lost; those that are there can still be read
                raise FirewallError(f"cannot read the trace of the firewall: {error.strerror}", None, error.errno or 0) from error


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")
