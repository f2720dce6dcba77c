"""The BPF programs that report packets, made for the running kernel's layout. Pure.

One program per tracepoint, all alike: collect what a ``PacketEvent`` has on the stack, look whether it is wanted, write it into the ring.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from netbox.kernel.bpf_assembler import STACK, Program
from netbox.kernel.packet_event import CONSUME, DELIVER, DROP, TRANSMIT, PacketEvent

OFFSETS = (
    *("sk_buff.dev", "sk_buff.sk", "sk_buff.head", "sk_buff.data", "sk_buff.network_header", "sk_buff.len", "sk_buff.protocol"),
    *("sk_buff.mark", "net_device.name", "net_device.ifindex", "net_device.nd_net.net", "net.ns.inum"),
    "sock.__sk_common.skc_net.net",
)
ENUMS = ("skb_drop_reason",)
PREFIX = "SKB_DROP_REASON_"
TRACEPOINTS = {"net_dev_queue": TRANSMIT, "netif_receive_skb": DELIVER, "kfree_skb": DROP, "consume_skb": CONSUME}
PACKET_MAX = 128  # bytes
_KINDS = (TRANSMIT, DELIVER, DROP, CONSUME)
_SAYS_NOTHING = "SKB_DROP_REASON_NOT_SPECIFIED"  # and below: no reason, or nothing was dropped. Its number has changed (Linux 6.2)

_KTIME_GET_NS, _PROBE_READ_KERNEL, _RINGBUF_OUTPUT = 5, 113, 130  # enum bpf_func_id
_SKB, _DEVICE, _SCRATCH = 6, 7, 8
_RECORD = struct.Struct("=QQQII16sIHBxII")
_SIZE = _RECORD.size + PACKET_MAX
_TIME, _SKB_AT, _LOCATION, _NETNS, _IFINDEX, _NAME, _LENGTH, _PROTOCOL, _KIND, _REASON, _MARK = 0, 8, 16, 24, 28, 32, 48, 52, 54, 56, 60
_PACKET = _RECORD.size
_POINTER = _SIZE + 8  # below the record: a pointer on its way


class Match(NamedTuple):
    """A value of ``size`` bytes at an offset into the packet (from its network header on, in its byte order), behind a first look: the
    byte at ``guard_offset``, ANDed with ``guard_mask``, has to be ``guard``. An IPv4 header is taken to have no options.
    """

    offset: int
    size: int
    value: int
    guard_offset: int = 0
    guard_mask: int = 0
    guard: int = 0


class Wanted(NamedTuple):
    """Which packets to report: those of a namespace (by inode), or those with one of the matches; without either, all. ``consumed`` and
    ``undropped`` (freed without a reason) are left out unless asked for.
    """

    namespaces: Sequence[int] = ()
    matches: Sequence[Match] = ()


def program(
    tracepoint: str, offsets: Mapping[str, int], reasons: Mapping[int, str], ring: int, wanted: Wanted, located: bool = True
) -> bytes:
    """The program for one of ``TRACEPOINTS``. ``reasons`` is the enum ``skb_drop_reason``, ``ring`` the descriptor of its ring buffer.
    ``located`` says whether consume_skb tells where (Linux 6.4): to read an argument that is not there is refused.
    """
    code, kind = Program(), TRACEPOINTS[tracepoint]
    base = -_SIZE
    code.load(8, _SKB, 1, 0)
    if kind == DROP:
        code.load(8, 2, 1, 16)
        code.jump_if(2, "<=", next((number for number, name in reasons.items() if name == _SAYS_NOTHING), 0), "end")
    for place in range(0, _SIZE, 8):
        code.store_number(8, STACK, base + place, 0)
    code.store(8, STACK, base + _SKB_AT, _SKB)
    if kind == DROP or (kind == CONSUME and located):
        code.load(8, 3, 1, 8)
        code.store(8, STACK, base + _LOCATION, 3)
    if kind == DROP:
        code.store(4, STACK, base + _REASON, 2)
    code.store_number(1, STACK, base + _KIND, _KINDS.index(kind))
    _namespace(code, offsets)
    for field, size, place in (("len", 4, _LENGTH), ("protocol", 2, _PROTOCOL), ("mark", 4, _MARK)):
        _read(code, base + place, size, _SKB, offsets[f"sk_buff.{field}"])
    _packet(code, offsets, from_data=kind == DELIVER)
    _filter(code, wanted)
    code.call(_KTIME_GET_NS)
    code.store(8, STACK, base + _TIME, 0)
    code.load_map(1, ring)
    code.move(2, STACK)
    code.calculate("+", 2, base)
    code.set(3, _SIZE)
    code.set(4, 0)
    code.call(_RINGBUF_OUTPUT)
    code.label("end")
    code.set(0, 0)
    code.exit()
    return code.code()


def _read(code: Program, place: int, size: int, base: int, offset: int) -> None:
    """``size`` bytes of kernel memory at ``base + offset`` to the stack. A bad address gives zeros."""
    code.move(3, base)
    code.calculate("+", 3, offset)
    _read_here(code, place, size)


def _read_here(code: Program, place: int, size: int) -> None:
    """The same; the address is in register 3."""
    code.move(1, STACK)
    code.calculate("+", 1, place)
    code.set(2, size)
    code.call(_PROBE_READ_KERNEL)


def _namespace(code: Program, offsets: Mapping[str, int]) -> None:
    """Device and network namespace: those of skb->dev, else of the socket."""
    base = -_SIZE
    _read(code, -_POINTER, 8, _SKB, offsets["sk_buff.dev"])
    code.load(8, _DEVICE, STACK, -_POINTER)
    code.jump_if(_DEVICE, "==", 0, "no device")
    _read(code, base + _NAME, 16, _DEVICE, offsets["net_device.name"])
    _read(code, base + _IFINDEX, 4, _DEVICE, offsets["net_device.ifindex"])
    _read(code, -_POINTER, 8, _DEVICE, offsets["net_device.nd_net.net"])
    code.load(8, _SCRATCH, STACK, -_POINTER)
    code.jump_if(_SCRATCH, "!=", 0, "namespace")
    code.label("no device")
    _read(code, -_POINTER, 8, _SKB, offsets["sk_buff.sk"])
    code.load(8, _SCRATCH, STACK, -_POINTER)
    code.jump_if(_SCRATCH, "==", 0, "no namespace")
    _read(code, -_POINTER, 8, _SCRATCH, offsets["sock.__sk_common.skc_net.net"])
    code.load(8, _SCRATCH, STACK, -_POINTER)
    code.label("namespace")
    _read(code, base + _NETNS, 4, _SCRATCH, offsets["net.ns.inum"])
    code.label("no namespace")


def _packet(code: Program, offsets: Mapping[str, int], from_data: bool) -> None:
    """The packet's bytes. On arrival the network header is where the data begin, and the field still says where it was before."""
    base = -_SIZE
    if from_data:
        _read(code, -_POINTER, 8, _SKB, offsets["sk_buff.data"])
        code.load(8, 3, STACK, -_POINTER)
    else:
        _read(code, -_POINTER, 8, _SKB, offsets["sk_buff.head"])
        code.load(8, _DEVICE, STACK, -_POINTER)
        code.store_number(8, STACK, -_POINTER, 0)
        _read(code, -_POINTER, 2, _SKB, offsets["sk_buff.network_header"])
        code.load(8, 3, STACK, -_POINTER)
        code.add_register(3, _DEVICE)
    _read_here(code, base + _PACKET, PACKET_MAX)


def _filter(code: Program, wanted: Wanted) -> None:
    if not wanted.namespaces and not wanted.matches:
        return
    base = -_SIZE
    if wanted.namespaces:
        code.load(4, 2, STACK, base + _NETNS)
    for number in wanted.namespaces:
        code.jump_if_word(2, "==", number, "wanted")
    for index, match in enumerate(wanted.matches):
        if match.guard_mask:
            code.load(1, 2, STACK, base + _PACKET + match.guard_offset)
            code.calculate("&", 2, match.guard_mask)
            code.jump_if(2, "!=", match.guard, f"next {index}")
        code.load(match.size, 2, STACK, base + _PACKET + match.offset)
        value = int.from_bytes(match.value.to_bytes(match.size, "big"), "little")
        code.jump_if_word(2, "==", value, "wanted")
        code.label(f"next {index}")
    code.jump("end")
    code.label("wanted")


def decode(record: bytes, reasons: Mapping[int, str]) -> tuple[PacketEvent, int]:
    """A record of the ring as an event, and the address where the packet was freed (0 unless it was)."""
    time, skb, location, netns, ifindex, name, length, protocol, kind, reason, mark = _RECORD.unpack_from(record)
    text = reasons.get(reason, str(reason)) if reason else ""
    device = name.split(b"\0", 1)[0].decode(errors="replace")
    packet = record[_PACKET:_SIZE]
    ethertype = (protocol & 0xFF) << 8 | protocol >> 8
    return PacketEvent(time, _KINDS[kind], skb, netns, ifindex, device, ethertype, length, packet, text, "", mark), location
