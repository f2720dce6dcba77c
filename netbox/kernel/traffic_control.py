"""Queueing disciplines, classes and filters over rtnetlink, encoded by hand with the standard library alone.

A request is a value for ``RouteSocket.request``. Sources: tc(8), tc-tbf(8), tc-htb(8), tc-netem(8), tc-u32(8), ``<linux/pkt_sched.h>``,
``<linux/pkt_cls.h>``. Rates are bytes a second, times nanoseconds, sizes bytes, handles 32 bits: major number above, minor below.
"""

from __future__ import annotations

import errno
import socket
import struct

from netbox.kernel.rtnetlink import NLM_F_CREATE, NLM_F_EXCL, Request, attribute, number, packed, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

RTM_NEWQDISC, RTM_DELQDISC = 36, 37
RTM_NEWTCLASS = 40
RTM_NEWTFILTER = 44
TC_H_ROOT = 0xFFFFFFFF
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
TCA_HTB_PARMS, TCA_HTB_INIT, TCA_HTB_RATE64, TCA_HTB_CEIL64 = 1, 2, 6, 7
TCA_NETEM_CORRUPT = 4
TCA_U32_CLASSID, TCA_U32_SEL = 1, 5
TC_LINKLAYER_ETHERNET = 1
TC_U32_TERMINAL = 1
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
SOURCE, DESTINATION = 12, 16  # in the header of IPv4
_OFFSETS6 = {SOURCE: 8, DESTINATION: 24}  # in that of IPv6
"""Where an IPv4 header holds its addresses (RFC 791)."""

TICK = 64  # ns, PSCHED_SHIFT of <net/pkt_sched.h>
HTB_VERSION, HTB_RATE_TO_QUANTUM = 3, 10
_NETEM_PACKETS = 50_000  # that netem holds at most: 100 ms at 5 gbit
_NETEM_PACKETS_MIN, _MEAN_PACKET = 100, 500  # packets, bytes
_UNLIMITED = 125_000_000_000  # bytes a second
_HTB_QUANTUM = 60_000  # bytes; given, so that the kernel does not complain about the one that it would compute
_HEADROOM = 14  # bytes, of Ethernet

_TC = struct.Struct("=BxxxiIII")
_RATE = struct.Struct("=BBHhHI")  # struct tc_ratespec
_NETEM = struct.Struct("=6I")  # struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter
_U32 = struct.Struct("=BBBxHHhhI")  # struct tc_u32_sel without keys
_U32_KEY = struct.Struct("=4s4sii")  # struct tc_u32_key


def handle(major: int, minor: int = 0) -> int:
    """``major:minor`` as a number."""
    return major << 16 | minor


def name(value: int) -> str:
    """A handle as tc(8) writes it: hexadecimal, ``root`` for the root."""
    if value == TC_H_ROOT:
        return "root"
    return f"{value >> 16:x}:{value & 0xFFFF:x}" if value & 0xFFFF else f"{value >> 16:x}:"


def delete_root(index: int) -> Request:
    """Everything away from a link's way out. None there is fine: ENOENT, or EINVAL for the kernel's own that cannot be deleted."""
    return Request(RTM_DELQDISC, 0, _TC.pack(0, index, 0, TC_H_ROOT, 0), f"the root of link {index}", (errno.ENOENT, errno.EINVAL))


def add_tbf(index: int, parent: int, own: int, rate: int, burst: int, limit: int) -> Request:
    """A token bucket: ``rate`` bytes a second, ``burst`` bytes at once, ``limit`` bytes may wait. A segment offloaded packet that is larger
    than the bucket is cut into its segments.
    """
    # struct tc_tbf_qopt: rate, peak rate, limit, buffer, mtu. With a link layer the kernel needs none of the historic rate tables.
    parameters = _rate(rate) + bytes(_RATE.size) + struct.pack("=III", limit, 0, 0)
    options = attribute(TCA_TBF_PARMS, parameters) + number(TCA_TBF_BURST, burst) + _rate64(TCA_TBF_RATE64, rate)
    return _qdisc(index, parent, own, "tbf", options)


def tbf_sizes(rate: int, mtu: int) -> tuple[int, int]:
    """Bucket and queue for a rate: 5 ms and ten frames at least; what waits is 50 ms more, and 32 KiB at least."""
    burst = max(rate // 200, 10 * (mtu + _HEADROOM))
    return burst, burst + max(rate // 20, 1 << 15)


def add_bfifo(index: int, parent: int, own: int, limit: int) -> Request:
    """A queue of ``limit`` bytes: below a token bucket whose own queue was replaced by classes."""
    return _qdisc(index, parent, own, "bfifo", struct.pack("=I", limit))


def add_netem(index: int, parent: int, own: int, delay: int, jitter: int, corrupt: float, loss: float, packets: int) -> Request:
    """Delay, its variation (uniform, plus or minus), the percentage of packets in which one bit is turned over, and of those that vanish.
    It holds at most so many ``packets``.
    """
    options = _NETEM.pack(delay // TICK, packets, _probability(loss), 0, 0, jitter // TICK)
    if corrupt:
        options += attribute(TCA_NETEM_CORRUPT, struct.pack("=II", _probability(corrupt), 0))
    return _qdisc(index, parent, own, "netem", options)


def _probability(percent: float) -> int:
    return min(round(percent / 100 * (1 << 32)), 0xFFFFFFFF)


def netem_packets(delay: int, jitter: int, rate: int) -> int:
    """How many packets netem may hold below a token bucket of ``rate`` (0 for none): what is under way, and not a queue of its own."""
    if not rate:
        return _NETEM_PACKETS
    return min(_NETEM_PACKETS, _NETEM_PACKETS_MIN + rate * (delay + jitter) // (1_000_000_000 * _MEAN_PACKET))


def add_htb(index: int, parent: int, own: int, default: int) -> Request:
    """A tree of classes; what no filter sends elsewhere goes to the class with the minor number ``default``."""
    options = attribute(TCA_HTB_INIT, struct.pack("=5I", HTB_VERSION, HTB_RATE_TO_QUANTUM, default, 0, 0))
    return _qdisc(index, parent, own, "htb", options)


def add_open_class(index: int, parent: int, own: int) -> Request:
    """A class of htb that limits nothing: it is there to tell packets apart."""
    buffer = 10_000_000 // TICK  # 10 ms
    parameters = _rate(_UNLIMITED) + _rate(_UNLIMITED) + struct.pack("=5I", buffer, buffer, _HTB_QUANTUM, 0, 0)
    options = attribute(TCA_HTB_PARMS, parameters) + _rate64(TCA_HTB_RATE64, _UNLIMITED) + _rate64(TCA_HTB_CEIL64, _UNLIMITED)
    body = _TC.pack(0, index, own, parent, 0) + text(TCA_KIND, "htb") + attribute(TCA_OPTIONS, options)
    return Request(RTM_NEWTCLASS, NLM_F_CREATE | NLM_F_EXCL, body, f"the class {name(own)}")


def add_filter(index: int, parent: int, preference: int, field: int, prefixes: Sequence[str], target: int) -> list[Request]:
    """Packets whose address at ``field`` (``SOURCE``, ``DESTINATION``) lies in one of the prefixes go to the class ``target``."""
    return [_filter(index, parent, preference + offset, field, prefix, target) for offset, prefix in enumerate(prefixes)]


def _filter(index: int, parent: int, preference: int, field: int, prefix: str, target: int) -> Request:
    address, _, length = prefix.partition("/")
    family, value = packed(address)
    bits, protocol, offset = len(value) * 8, ETH_P_IP, field
    if family == socket.AF_INET6:
        protocol, offset = ETH_P_IPV6, _OFFSETS6[field]
    mask = (((1 << int(length or bits)) - 1) << (bits - int(length or bits))).to_bytes(len(value), "big")
    keys = [
        _U32_KEY.pack(part, bytes(a & b for a, b in zip(part, value[start : start + 4], strict=True)), offset + start, 0)
        for start in range(0, len(value), 4)
        if any(part := mask[start : start + 4])
    ]
    selector = _U32.pack(TC_U32_TERMINAL, 0, len(keys), 0, 0, 0, 0, 0) + b"".join(keys)
    options = number(TCA_U32_CLASSID, target) + attribute(TCA_U32_SEL, selector)
    body = _TC.pack(0, index, 0, parent, preference << 16 | socket.htons(protocol)) + text(TCA_KIND, "u32")
    return Request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body + attribute(TCA_OPTIONS, options), "u32")


def _qdisc(index: int, parent: int, own: int, kind: str, options: bytes) -> Request:
    body = _TC.pack(0, index, own, parent, 0) + text(TCA_KIND, kind) + attribute(TCA_OPTIONS, options)
    return Request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body, kind)


def _rate(rate: int) -> bytes:
    return _RATE.pack(0, TC_LINKLAYER_ETHERNET, 0, -1, 0, min(rate, 0xFFFFFFFF))


def _rate64(kind: int, rate: int) -> bytes:
    return attribute(kind, struct.pack("=Q", rate)) if rate > 0xFFFFFFFF else b""
